//! What an image's layers, each unpacked on its own, cannot show together, is put right in a small layer above all of
//! them. Most images need none.
//!
//! - A directory that a layer only implied hides the mode and owner that a layer below gave it.
//! - A hard link to a file of a layer below is not there.
//! - A whiteout of what no layer below has shows as a device where overlayfs does not merge the directory.
//!
//! Nothing is mounted for this: a path is looked up in the open layers as overlayfs would, name by name.

pub mod stack;

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, linkat};

use self::stack::{Found, Stack};
use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::Digest;
use crate::image::store::Store;
use crate::image::store::layers::{Layer, chain_name};
use crate::image::unpack::Lacks;
use crate::image::unpack::tree::{open_below, open_directory};
use crate::image::unpack::xattr::read_ours;
use crate::sys::fs::fsetxattr;

/// The layers that an overlay of the image has, the topmost first, with the fix-up layer if there is one.
pub fn lowers(
    store: &Store,
    diff_ids: &[Digest],
    layers: &[Layer],
    variant: &str,
    user_xattr: bool,
) -> Result<Vec<Layer>> {
    let name = chain_name(diff_ids, variant);
    let fix_up = match store.layer(&name)? {
        Some(fix_up) => fix_up,
        None => make(store, &name, layers, user_xattr)?,
    };
    let base = match fix_up.lacks()?.opaque {
        // Seldom enough to look for it again.
        true => base_of(&lacks_of(layers)?),
        false => 0,
    };
    let own = Some(fix_up).filter(|fix_up| fix_up.fs().exists());
    Ok(own.into_iter().chain(layers[base..].iter().rev().cloned()).collect())
}

fn lacks_of(layers: &[Layer]) -> Result<Vec<Lacks>> {
    layers.iter().map(Layer::lacks).collect()
}

/// The lowest layer that counts.
fn base_of(lacks: &[Lacks]) -> usize {
    lacks.iter().rposition(|lacks| lacks.opaque).unwrap_or(0)
}

fn make(store: &Store, name: &str, layers: &[Layer], user_xattr: bool) -> Result<Layer> {
    let _lock = store.lock(name)?;
    if let Some(made) = store.layer(name)? {
        return Ok(made);
    }
    let what = || "make the layer that puts the others right";
    let lacks = lacks_of(layers)?;
    let base = base_of(&lacks);
    let new = store.new_layer()?;
    let open = |layer: &Layer| File::open(layer.fs()).map(OwnedFd::from);
    let tops = layers[base..].iter().map(open).collect::<Result<Vec<_>, _>>().context(what)?;
    let stack = Stack::new(tops, &lacks[base..], user_xattr);
    let mut fix =
        FixUp { top: File::open(new.fs()).context(what)?.into(), placed: HashMap::new(), is_needed: false };
    fix.implied(&stack).context(what)?;
    fix.links(&stack).context(what)?;
    fix.whiteouts(&stack).context(what)?;
    fix.finish().context(what)?;
    if !fix.is_needed {
        std::fs::remove_dir(new.fs()).context(what)?;
    }
    // What it says of itself: whether layers below do not count.
    store.put_layer(&new, name, &Lacks { opaque: base > 0, ..Lacks::default() })
}

struct FixUp {
    top: OwnedFd,
    /// Directories, with the time that they get in the end.
    placed: HashMap<PathBuf, TimeSpec>,
    is_needed: bool,
}

impl FixUp {
    fn implied(&mut self, stack: &Stack<'_>) -> Result<()> {
        let all = stack.tops.len();
        for (layer, lacks) in stack.lacks.iter().enumerate() {
            for path in &lacks.implied {
                let (real, Found::Directory(found)) = stack.find(all, path)? else { continue };
                if let (_, Found::Other { kind: SFlag::S_IFLNK, .. }) = stack.find(layer, path)? {
                    return Err(Error::of_kind(Kind::Other, format!(
                        "{path:?} is a symbolic link in one layer, and a layer above it puts files behind it"
                    ))
                    .with_way_out("An overlay cannot show that. Take --rootfs=copy."));
                }
                // Only the topmost shows, and only if one below has more to say.
                if real != *path || found.first().is_none_or(|(top, _)| *top != layer) {
                    continue;
                }
                let told = found.iter().find(|(i, _)| !stack.is_implied(*i, path));
                if let Some((_, told)) = told
                    && attributes(told)? != attributes(&found[0].1)?
                {
                    self.place(stack, path)?;
                }
            }
        }
        Ok(())
    }

    fn links(&mut self, stack: &Stack<'_>) -> Result<()> {
        let all = stack.tops.len();
        // In which layer, and where in it, that is which the links of this image stand for: they are in no layer's files.
        let mut made: HashMap<PathBuf, (usize, PathBuf)> = HashMap::new();
        for (layer, lacks) in stack.lacks.iter().enumerate() {
            for (link, target) in &lacks.links {
                let missing = || {
                    let what = format!(
                        "layer {}: hard link target {target:?} of {link:?} does not exist",
                        layer + 1
                    );
                    Error::of_kind(Kind::Integrity, what).with_way_out("The image is malformed or hostile.")
                };
                let (from, file) = match stack.find(layer, target)? {
                    (_, Found::Directory(_)) => return Err(missing()),
                    (real, Found::Other { layer, .. }) => (layer, real),
                    (real, Found::Nothing) => made.get(&real).cloned().ok_or_else(missing)?,
                };
                let (real, _) = stack.find(layer + 1, link)?;
                made.insert(real.clone(), (from, file.clone()));
                if stack.covers(layer + 1, &real)? {
                    continue;
                }
                let (Some(parent), Some(last)) = (real.parent(), real.file_name()) else { continue };
                let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { continue };
                if !matches!(stack.find(all, parent)?.1, Found::Directory(_)) {
                    continue;
                }
                let into = self.place(stack, parent)?;
                let directory = open_below(stack.tops[from].as_fd(), directory)?;
                match linkat(&directory, name, &into, last, AtFlags::empty()) {
                    // A later layer's link of the same name counts.
                    Err(Errno::EEXIST) => {
                        nix::unistd::unlinkat(&into, last, nix::unistd::UnlinkatFlags::NoRemoveDir)?;
                        linkat(&directory, name, &into, last, AtFlags::empty())?;
                    }
                    linked => linked.context(|| format!("link {link:?} to {target:?}"))?,
                }
            }
        }
        Ok(())
    }

    fn whiteouts(&mut self, stack: &Stack<'_>) -> Result<()> {
        let mut seen = HashSet::new();
        for (layer, lacks) in stack.lacks.iter().enumerate() {
            for path in &lacks.whiteouts {
                let parent = path.parent().unwrap_or(Path::new(""));
                if !seen.insert((layer, parent.to_owned())) {
                    continue;
                }
                let (real, found) = stack.find(stack.tops.len(), parent)?;
                // Where directories are merged whiteouts are left out.
                if let Found::Directory(found) = found
                    && let [(only, _)] = found[..]
                    && only == layer
                    && real == parent
                {
                    self.place(stack, parent)?;
                }
            }
        }
        Ok(())
    }

    /// Puts a directory of the merged layers here, with its parents; each is as the layers' own words have it.
    fn place(&mut self, stack: &Stack<'_>, path: &Path) -> Result<OwnedFd> {
        self.is_needed = true;
        let mut directory = self.top.try_clone()?;
        let mut way = PathBuf::new();
        self.imitate(stack, &way, &directory)?;
        for name in path {
            way.push(name);
            match mkdirat(&directory, name, Mode::from_bits_truncate(0o700)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).context(|| format!("make directory {}", way.display())),
            }
            directory = open_directory(directory.as_fd(), name.as_bytes())?;
            self.imitate(stack, &way, &directory)?;
        }
        Ok(directory)
    }

    fn imitate(&mut self, stack: &Stack<'_>, path: &Path, directory: &OwnedFd) -> Result<()> {
        if self.placed.contains_key(path) {
            return Ok(());
        }
        let (_, Found::Directory(found)) = stack.find(stack.tops.len(), path)? else { return Ok(()) };
        let told = found.iter().find(|(i, _)| !stack.is_implied(*i, path)).or(found.first());
        let Some((_, told)) = told else { return Ok(()) };
        let Attributes { mode, uid, gid, xattrs } = attributes(told)?;
        fchown(directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        fchmod(directory, Mode::from_bits_truncate(mode))?;
        for (name, value) in &xattrs {
            fsetxattr(directory, name, value)?;
        }
        let stat = fstat(told)?;
        self.placed.insert(path.to_owned(), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
        Ok(())
    }

    /// Sets the times, when nothing more is made.
    fn finish(&self) -> Result<()> {
        for (path, time) in &self.placed {
            futimens(open_below(self.top.as_fd(), path)?, time, time)?;
        }
        Ok(())
    }
}

#[derive(PartialEq, Eq)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    xattrs: Vec<(CString, Vec<u8>)>,
}

fn attributes(directory: &OwnedFd) -> Result<Attributes> {
    let FileStat { st_mode, st_uid, st_gid, .. } = fstat(directory)?;
    Ok(Attributes { mode: st_mode & 0o7777, uid: st_uid, gid: st_gid, xattrs: read_ours(directory)? })
}
