//! The layers of an overlay whose ids are to be mapped. The kernel maps those of no overlay, but it lays one over mounts
//! that are mapped: what all containers have in common belongs to each one's own root, and what a container writes, to
//! the `upperdir` as it is, belongs to its users on the host too.
//!
//! <https://docs.kernel.org/filesystems/overlayfs.html>

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;

use super::Users;
use super::id_mapped::IdMapped;
use crate::error::{At, Context, Error, Field, Result};
use crate::sys::fs::{Resolve, openat2};
use crate::sys::mount::{move_mount, open_tree_clone};

/// The directory of a layer on the host, and the option that names it.
pub type Layer<'a> = (&'a Path, &'a Field);

/// Has `work` done with the mapped layers, which it can name as `/proc/self/fd/N`. Before Linux 6.15 a layer must be
/// attached somewhere: only in a mount namespace where nobody sees it.
pub fn with_mapped<T>(
    layers: &[Layer<'_>],
    ids: &IdMapped,
    users: &Users,
    work: impl FnOnce(&[OwnedFd]) -> Result<T>,
) -> Result<T> {
    if !users.is_inside() {
        return Err(Error::new(
            "the layers of an overlay are mapped only for a container with a user namespace",
        ))
        .at(ids.field());
    }
    let (clones, opened) = match in_common(layers, ids, users) {
        Some((directory, opened)) => (vec![directory], opened),
        None => (each(layers, ids, users)?, Vec::new()),
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let top = open("/", flags, Mode::empty()).context(|| "open /")?;
    clones.iter().try_for_each(|clone| move_mount(clone, &top)).context(|| "attach the mapped layers")?;
    let done = work(if opened.is_empty() { &clones } else { &opened });
    // The overlay has clones of its own of these, which lie one on the other.
    for clone in clones.iter().rev() {
        umount2(format!("/proc/self/fd/{}", clone.as_raw_fd()).as_str(), MntFlags::MNT_DETACH)
            .context(|| "unmount the mapped layers")?;
    }
    done
}

/// One clone of the directory that all layers are in, as those of an image store are, and the layers in that. None if
/// anything is in the way: a mount, or a link that leads out.
fn in_common(layers: &[Layer<'_>], ids: &IdMapped, users: &Users) -> Option<(OwnedFd, Vec<OwnedFd>)> {
    let paths: Vec<&Path> = layers.iter().map(|(path, _)| *path).collect();
    let directory = common(&paths)?;
    let clone = open_tree_clone(AT_FDCWD, &directory, 0).ok()?;
    let resolve = Resolve::BENEATH | Resolve::NO_XDEV | Resolve::NO_MAGICLINKS;
    let open = |path: &&Path| {
        let inside = path.strip_prefix(&directory).ok()?;
        openat2(&clone, inside, libc::O_PATH | libc::O_DIRECTORY, 0, resolve).ok()
    };
    let opened = paths.iter().map(open).collect::<Option<_>>()?;
    ids.apply(&clone, users).ok()?;
    Some((clone, opened))
}

/// A clone of each.
fn each(layers: &[Layer<'_>], ids: &IdMapped, users: &Users) -> Result<Vec<OwnedFd>> {
    let clone = |&(path, field): &Layer<'_>| {
        let clone = open_tree_clone(AT_FDCWD, &path.join("."), 0)
            .map_err(|errno| match errno {
                Errno::EINVAL => {
                    Error::new("something is mounted below it, which a user namespace cannot leave out")
                }
                errno => errno.into(),
            })
            .context(|| format!("open layer {}", path.display()))
            .at(field)?;
        ids.apply(&clone, users).context(|| format!("layer {}", path.display()))?;
        Ok(clone)
    };
    layers.iter().map(clone).collect()
}

/// The directory that several others are in, by their names.
fn common(paths: &[&Path]) -> Option<PathBuf> {
    let (first, rest) = paths.split_first()?;
    let common =
        first.ancestors().skip(1).find(|ancestor| rest.iter().all(|path| path.starts_with(ancestor)))?;
    (!rest.is_empty()).then(|| common.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_a_directory_in_common() {
        for (paths, expected) in [
            (&["/s/layers/a/fs", "/s/layers/b/fs"][..], Some("/s/layers")),
            (&["/s/a", "/s/ab"], Some("/s")),
            (&["/s/a", "/s/a/b", "/s/a"], Some("/s")),
            (&["/s/a", "/t/a"], Some("/")),
            (&["/s/a"], None),
            (&[], None),
        ] {
            let paths: Vec<&Path> = paths.iter().map(Path::new).collect();
            assert_eq!(common(&paths).as_deref(), expected.map(Path::new), "{paths:?}");
        }
    }
}
