//! Layers over each other, unmounted: a path is looked up as overlayfs would, name by name, in directories that are held
//! open. Links among a path's parents are followed inside of the image.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{SFlag, fstatat};

use crate::error::Result;
use crate::image::unpack::Lacks;
use crate::image::unpack::tree::open_directory;
use crate::image::unpack::xattr::is_opaque;

/// As many as the kernel follows.
const MOST_LINKS: u32 = 40;

/// Open layers, the lowest first.
pub struct Stack<'l> {
    pub tops: Vec<Rc<OwnedFd>>,
    pub lacks: &'l [Lacks],
    implied: Vec<HashSet<&'l Path>>,
    /// A user's marks are other ones than root's.
    user_xattr: bool,
}

/// A layer's, shared: there may be hundreds of layers, and few descriptors.
type Level = (usize, Rc<OwnedFd>);

pub enum Found {
    Nothing,
    /// Merged of these layers' directories, the topmost first.
    Directory(Vec<Level>),
    /// The last name of the path, in a directory of a layer.
    Other {
        layer: usize,
        directory: Rc<OwnedFd>,
        kind: SFlag,
    },
}

impl<'l> Stack<'l> {
    pub fn new(tops: Vec<OwnedFd>, lacks: &'l [Lacks], user_xattr: bool) -> Self {
        let implied = |lacks: &'l Lacks| lacks.implied.iter().map(PathBuf::as_path).collect();
        let implied = lacks.iter().map(implied).collect();
        Self { tops: tops.into_iter().map(Rc::new).collect(), lacks, implied, user_xattr }
    }

    /// The tops of these layers, the topmost first.
    fn top(&self, layers: Range<usize>) -> Vec<Level> {
        layers.rev().map(|layer| (layer, self.tops[layer].clone())).collect()
    }

    /// What `path` is in the layers below `end`, and where that is once links among its parents are followed.
    pub fn find(&self, end: usize, path: &Path) -> Result<(PathBuf, Found)> {
        let mut links = 0;
        let mut path = names(path);
        'again: loop {
            let mut here = self.top(0..end);
            for (at, name) in path.iter().enumerate() {
                match step(&here, name, self.user_xattr)? {
                    Found::Directory(next) => here = next,
                    Found::Other { directory, kind: SFlag::S_IFLNK, .. } if at + 1 < path.len() => {
                        links += 1;
                        if links > MOST_LINKS {
                            return Ok((joined(&path), Found::Nothing));
                        }
                        let target = readlinkat(&directory, OsStr::from_bytes(name))?;
                        let before = if target.as_bytes().starts_with(b"/") { 0 } else { at };
                        let target = names(Path::new(&target));
                        let way = path[..before].iter().chain(&target).chain(&path[at + 1..]);
                        path = cleaned(way);
                        continue 'again;
                    }
                    found if at + 1 == path.len() => return Ok((joined(&path), found)),
                    _ => return Ok((joined(&path), Found::Nothing)),
                }
            }
            return Ok((joined(&path), Found::Directory(here)));
        }
    }

    /// Whether the layers from `start` on decide alone what is at `path`.
    pub fn covers(&self, start: usize, path: &Path) -> Result<bool> {
        let mut here = self.top(start..self.tops.len());
        let mut cut = false;
        for name in names(path) {
            let mut next = Vec::new();
            for (i, directory) in &here {
                match look(directory.as_fd(), &name, self.user_xattr)? {
                    Look::Nothing => continue,
                    Look::Whiteout | Look::Other(_) => cut = true,
                    Look::Directory(fd, opaque) => {
                        next.push((*i, Rc::new(fd)));
                        cut |= opaque;
                        if !opaque {
                            continue;
                        }
                    }
                }
                break;
            }
            if next.is_empty() {
                return Ok(cut);
            }
            here = next;
        }
        Ok(true)
    }

    pub fn is_implied(&self, layer: usize, path: &Path) -> bool {
        self.implied[layer].contains(path)
    }
}

enum Look {
    Nothing,
    Whiteout,
    Directory(OwnedFd, bool),
    Other(SFlag),
}

fn look(directory: BorrowedFd<'_>, name: &[u8], user_xattr: bool) -> Result<Look> {
    let stat = match fstatat(directory, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(Look::Nothing),
        stat => stat?,
    };
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    Ok(match kind {
        SFlag::S_IFCHR if stat.st_rdev == 0 => Look::Whiteout,
        SFlag::S_IFDIR => {
            let fd = open_directory(directory, name)?;
            let opaque = is_opaque(&fd, user_xattr);
            Look::Directory(fd, opaque)
        }
        kind => Look::Other(kind),
    })
}

/// One name further, as overlayfs goes.
fn step(here: &[Level], name: &[u8], user_xattr: bool) -> Result<Found> {
    let mut next = Vec::new();
    for (i, directory) in here {
        match look(directory.as_fd(), name, user_xattr)? {
            Look::Nothing => continue,
            Look::Directory(fd, opaque) => {
                next.push((*i, Rc::new(fd)));
                if !opaque {
                    continue;
                }
            }
            Look::Other(kind) if next.is_empty() => {
                return Ok(Found::Other { layer: *i, directory: directory.clone(), kind });
            }
            Look::Other(_) | Look::Whiteout => {}
        }
        break;
    }
    Ok(if next.is_empty() { Found::Nothing } else { Found::Directory(next) })
}

fn names(path: &Path) -> Vec<Vec<u8>> {
    let names = path.as_os_str().as_bytes().split(|&byte| byte == b'/');
    names.filter(|name| ![&b""[..], b"."].contains(name)).map(<[u8]>::to_vec).collect()
}

/// Without `..`, which at the top stays at the top.
fn cleaned<'n>(names: impl Iterator<Item = &'n Vec<u8>>) -> Vec<Vec<u8>> {
    names.fold(Vec::new(), |mut path, name| {
        if name == b".." {
            drop(path.pop())
        } else {
            path.push(name.clone())
        }
        path
    })
}

fn joined(names: &[Vec<u8>]) -> PathBuf {
    names.iter().map(|name| OsStr::from_bytes(name)).collect()
}
