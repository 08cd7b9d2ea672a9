//! What of `/mounts` the parent opens: the sources of bind mounts, and file systems that init, in a user namespace, may
//! not make.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::fchownat;

use super::{Mount, Mounts, Source, Users, What, cgroups, layers, set};
use crate::error::{At, Context, Error, Field, Result};
use crate::linux::file_system::FileSystem;
use crate::sys::mount::open_tree_clone;

impl Mount {
    /// The clone of a bind mount's source with its attributes, or the file system that init may not make; for the
    /// parent.
    fn open_source(&self, cgroup: Option<BorrowedFd>, users: &Users) -> Result<Option<OwnedFd>> {
        let (source, recursive, detach) = match &self.what {
            What::Bind { source, recursive, detach } => (source, recursive, detach),
            What::New { file_system, by_parent: true, .. } => {
                // A tmpfs would be writable for everyone.
                let mode = file_system.inherits_mode().then_some(0o755);
                return self.mount(file_system, mode, users).map(Some);
            }
            _ => return Ok(None),
        };
        let flags = if *recursive { libc::AT_RECURSIVE } else { 0 };
        let tree = match source {
            Source::Path(path) => open_tree_clone(AT_FDCWD, path, flags)
                .map_err(|errno| match errno {
                    // What it covers would be seen.
                    Errno::EINVAL if users.container().is_some() && !recursive => Error::new(
                        "something is mounted below it, which a user namespace cannot leave out: use rbind",
                    ),
                    errno => errno.into(),
                })
                .context(|| format!("open bind source {}", path.display()))
                .at(&self.field.child("source"))?,
            Source::Cgroup => cgroups::open_source(cgroup)?,
        };
        if self.destination == Path::new("/proc") {
            let magic = fstatfs(&tree).context(|| "statfs the bind source")?.filesystem_type();
            if magic != PROC_SUPER_MAGIC {
                return Err(Error::new("the bind source is not a proc file system, as /proc must be"));
            }
        }
        if let Some(propagation) = detach {
            set(&tree, *recursive, propagation.change())?;
        }
        // After it leaves its peers, and before it is attached anywhere.
        self.ids.as_ref().map_or(Ok(()), |ids| ids.apply(&tree, users))?;
        self.set_attributes(&tree)?;
        Ok(Some(tree))
    }

    pub(super) fn open(&self, cgroup: Option<BorrowedFd>, users: &Users) -> Result<Option<OwnedFd>> {
        self.open_source(cgroup, users).context(|| self.to_string()).at(&self.field)
    }

    /// Whether [`open_sources`] has one for it.
    fn has_source(&self) -> bool {
        matches!(self.what, What::Bind { .. } | What::New { by_parent: true, .. })
    }

    /// The file system that this mounts, attached nowhere. For the parent.
    fn mount(&self, file_system: &FileSystem, mode: Option<u32>, users: &Users) -> Result<OwnedFd> {
        let attributes = self.early_attributes().set;
        if let (Some(ids), true) = (&self.ids, file_system.is_overlay()) {
            return layers::with_mapped(&file_system.layers(), ids, users, |layers| {
                file_system.mount_over(layers, mode, attributes)
            });
        }
        let mount = file_system.mount(mode, attributes)?;
        match (&self.ids, users.container()) {
            (Some(ids), _) => ids.apply(&mount, users)?,
            // Empty, it would be the host's root's, and nobody in the container could make anything in it.
            (None, Some(map)) if file_system.is_for_user_namespaces() => {
                let (uid, gid) = map.host_root();
                fchownat(&mount, "", uid, gid, AtFlags::AT_EMPTY_PATH)
                    .context(|| "give it to the container")?;
            }
            _ => {}
        }
        Ok(mount)
    }
}

/// The sources of the bind mounts, in the order of the list; `cgroup` is the container's directory. For the parent,
/// before the clone: open_tree(2) clones only what the caller's own mount namespace holds.
pub fn open_sources(
    mounts: &Mounts,
    cgroup: Option<BorrowedFd>,
    users: &Users,
) -> Result<Vec<Option<OwnedFd>>> {
    let open = |(index, mount): (usize, &Mount)| match mounts.is_dev(index) {
        true => Ok(None),
        false => mount.open(cgroup, users),
    };
    mounts.list.iter().enumerate().map(open).collect()
}

impl Mounts {
    /// Of which mounts of the list the parent opens a source.
    pub fn have_sources(&self) -> impl Iterator<Item = bool> {
        self.list.iter().map(Mount::has_source)
    }

    /// Where overlays prepare what they write, and what says so.
    pub fn work_dirs(&self) -> impl Iterator<Item = (&Path, &Field)> {
        self.root.iter().chain(&self.list).filter_map(|mount| match &mount.what {
            What::New { file_system, .. } => file_system.work_dir(),
            What::Bind { .. } | What::Remount(_) => None,
        })
    }
}

/// The file system that replaces the root, attached nowhere. For an init that makes it itself.
pub fn make_root(mounts: &Mounts) -> Result<OwnedFd> {
    let Some(mount @ Mount { what: What::New { file_system, .. }, .. }) = &mounts.root else {
        return Err(Error::new("make the root: the config has no file system for it"));
    };
    let mode = file_system.inherits_mode().then_some(0o755);
    let made = file_system.mount(mode, mount.early_attributes().set);
    made.context(|| mount.to_string()).at(&mount.field)
}

/// The mount that replaces the root, attached nowhere. For the parent.
pub fn open_root(mount: &Mount, users: &Users) -> Result<OwnedFd> {
    let open = || match (&mount.what, mount.open_source(None, users)?) {
        (_, Some(tree)) => Ok(tree),
        (What::New { file_system, .. }, None) => {
            let mode = file_system.inherits_mode().then_some(0o755);
            mount.mount(file_system, mode, users)
        }
        _ => Err(Error::new("it has no source")),
    };
    open().context(|| mount.to_string()).at(&mount.field)
}
