//! Hard links: to what the layer itself brings, or, where lower layers are in the tree, to what these brought.
//!
//! The target's parents are walked inside of the tree; what is linked is the target itself, by its name in a directory
//! that is held open, even if it is a symbolic link.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::SFlag;
use nix::unistd::linkat;

use super::extract::{Layer, to_path};
use super::tar::Entry;
use super::{Mode, malformed, tree};
use crate::error::{Context, Result};
use crate::sys::fs::{Resolve, openat2};

impl Layer<'_> {
    /// Makes the link `path`; the tree is at its parent.
    pub fn hard_link(&mut self, entry: &Entry, path: &[&[u8]]) -> Result<()> {
        let shown = String::from_utf8_lossy(&entry.link);
        let target = components(&entry.link)
            .ok_or_else(|| malformed(format!("hard link target {shown:?} is outside the layer")))?;
        let Some((&target_name, target_parents)) = target.split_last() else {
            return Err(malformed(format!("hard link target {shown:?} is a directory")));
        };
        if target == path {
            return Err(malformed("a hard link to itself"));
        }
        if self.skipped.contains(&target.join(&b'/')) {
            self.unpacked.devices_skipped += 1;
            let path = path.join(&b'/');
            self.tree.spent.remember(path.len())?;
            self.skipped.insert(path);
            return Ok(());
        }
        let Some((&name, parents)) = path.split_last() else { return Ok(()) };
        let elsewhere = match target_parents == parents {
            true => None,
            false => Some(in_root(&self.top, &target_parents.join(&b'/'), libc::O_DIRECTORY)),
        };
        let found = match &elsewhere {
            None => tree::kind(self.tree.here(), target_name),
            Some(Ok(directory)) => tree::kind(directory.as_fd(), target_name),
            Some(Err(errno)) => Err(*errno),
        };
        let kind = match found {
            Err(Errno::ENOENT | Errno::ENOTDIR) if self.options.mode != Mode::Apply => {
                self.tree.spent.remember(entry.path.len() + entry.link.len())?;
                self.tree.clear(name)?;
                let paths = (to_path(&path.join(&b'/')), to_path(&target.join(&b'/')));
                self.unpacked.lacks.links.push(paths);
                return Ok(());
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                return Err(malformed(format!("hard link target {shown:?} does not exist")));
            }
            kind => kind.context(|| format!("stat hard link target {shown:?}"))?,
        };
        if kind == SFlag::S_IFDIR {
            return Err(malformed(format!("hard link target {shown:?} is a directory")));
        }
        let directory = elsewhere.and_then(Result::ok);
        let target_name = OsStr::from_bytes(target_name);
        let linked = self.make(name, |here, name| {
            let from = directory.as_ref().map_or(here, |directory| directory.as_fd());
            // Without AT_SYMLINK_FOLLOW: the target itself, even if it is a symbolic link.
            linkat(from, target_name, here, name, AtFlags::empty())
        });
        match linked {
            Err(error) if error.errno() == Some(Errno::ENOENT) => {
                Err(malformed(format!("hard link target {shown:?} is replaced by the link itself")))
            }
            linked => linked,
        }
    }
}

/// The names of a path; none if one of them is `..`. An absolute path is taken from the layer's top.
pub fn components(path: &[u8]) -> Option<Vec<&[u8]>> {
    let names = path.split(|&byte| byte == b'/').filter(|name| ![&b""[..], b"."].contains(name));
    names.map(|name| (name != b"..").then_some(name)).collect()
}

/// Opens `path` with O_PATH; links in it are followed inside of the tree.
pub fn in_root(top: &OwnedFd, path: &[u8], flags: i32) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(path)) };
    for _ in 0..128 {
        // EAGAIN when any rename on the system raced the walk.
        match openat2(top, path, libc::O_PATH | flags, 0, Resolve::IN_ROOT | Resolve::NO_MAGICLINKS) {
            Err(Errno::EAGAIN) => {}
            found => return found,
        }
    }
    Err(Errno::EAGAIN)
}
