//! `/root` and `/linux/rootfsPropagation`: the container's root directory, and how it becomes `/`.
//!
//! The parent clones the root's mounts on the host; init attaches the clone over its own `/`, mounts below it by
//! descriptor, and pivots into it, so that no path of the bundle is needed after the clone. Only hooks that run
//! before the pivot look for the container's mounts where `/root/path` says, and then they are put there.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#root>,
//! <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#rootfs-mount-propagation>,
//! <https://man7.org/linux/man-pages/man2/pivot_root.2.html>

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, readlink};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};
use nix::unistd::{chdir, chroot, fchdir};

use crate::error::{At, Context, Field, Result};
use crate::linux::mount_options::Propagation;
use crate::proc::{Proc, unescaped_path};
use crate::root::Root;
use crate::spec::Node;
use crate::sys::mount::{Change, attr, mount_setattr, move_mount, open_tree_clone, pivot_root_here};

#[derive(Debug, PartialEq)]
pub struct Rootfs {
    /// On the host, absolute.
    pub path: PathBuf,
    read_only: bool,
    propagation: Option<Propagation>,
    entry: Entry,
    /// Hooks run before the pivot and look for the mounts at `path`.
    seen_by_hooks: bool,
    field: Field,
}

/// How init gets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Pivot,
    /// For a host whose root cannot be pivoted away, a ramdisk: `--no-pivot`.
    Move,
    /// Without a mount namespace.
    Chroot,
}

/// `config` is the whole document; `bundle` is absolute.
pub fn plan(config: &Node, bundle: &Path, mount_namespace: bool, no_pivot: bool) -> Rootfs {
    let root = config.object("root");
    if !config.has("root") {
        config.problem("root", "is required");
    }
    let path = root.as_ref().and_then(|root| {
        root.expect_keys(&["path", "readonly"]);
        let path = root.required_string("path")?;
        if path.is_empty() {
            root.problem("path", "must not be empty");
        }
        Some(bundle.join(path))
    });
    let read_only = root.as_ref().is_some_and(|root| root.boolean("readonly"));
    let linux = config.object("linux");
    let propagation = linux.as_ref().and_then(|linux| {
        let name = linux.string("rootfsPropagation").filter(|name| !name.is_empty())?;
        let propagation = Propagation::named(name);
        if propagation.is_none() {
            let reason = format_args!("must be shared, slave, private or unbindable, not {name:?}");
            linux.problem("rootfsPropagation", reason);
        }
        if !mount_namespace {
            linux.problem("rootfsPropagation", "needs a mount namespace of the container's own");
        }
        propagation
    });
    if let (Some(root), true, false) = (&root, read_only, mount_namespace) {
        root.problem("readonly", "needs a mount namespace of the container's own");
    }
    let entry = match (mount_namespace, no_pivot) {
        (false, _) => Entry::Chroot,
        (true, true) => Entry::Move,
        (true, false) => Entry::Pivot,
    };
    // All three run before the pivot, and may do so in the container's mount namespace.
    let hooks = config.object("hooks");
    let some = |kind: &&str| hooks.as_ref()?.value(kind)?.as_array().map(|hooks| !hooks.is_empty());
    let seen_by_hooks =
        ["prestart", "createRuntime", "createContainer"].iter().any(|kind| some(kind) == Some(true));
    let field = config.at("root").child("path");
    Rootfs { path: path.unwrap_or_default(), read_only, propagation, entry, seen_by_hooks, field }
}

impl Rootfs {
    /// The root with all mounts below it, attached nowhere. For the parent, before the clone.
    pub fn open(&self) -> Result<OwnedFd> {
        // The last "." refuses what is no directory.
        let path = self.path.join(".");
        if self.entry == Entry::Chroot {
            open_directory(&path)
        } else {
            open_tree_clone(AT_FDCWD, &path, libc::AT_RECURSIVE).map_err(Into::into)
        }
        .context(|| format!("open root directory {}", self.path.display()))
        .at(&self.field)
    }

    /// How the root stands to the host's mounts while the container is set up: nothing may travel there, and
    /// pivot_root(2) takes no shared mount. Sharing starts in `finish`, in a peer group of the container's own.
    fn early_propagation(&self) -> Propagation {
        match self.propagation {
            Some(Propagation { kind: libc::MS_SLAVE, .. }) => Propagation::SLAVE,
            _ => Propagation::PRIVATE,
        }
    }

    fn late_propagation(&self) -> Option<Propagation> {
        self.propagation.filter(|p| matches!(p.kind, libc::MS_SHARED | libc::MS_UNBINDABLE))
    }
}

/// Where the root is to be attached. For init, with the rights of the host.
pub fn place(rootfs: &Rootfs) -> Result<OwnedFd> {
    let place = if rootfs.seen_by_hooks { rootfs.path.as_path() } else { Path::new("/") };
    open_directory(place).context(|| format!("open {}", place.display()))
}

/// Attaches the root at its place. For init, first of all in its mount namespace: until then what it mounts appears on
/// the host.
pub fn attach(tree: OwnedFd, place: OwnedFd, rootfs: &Rootfs) -> Result<Root> {
    if rootfs.entry == Entry::Chroot {
        return Ok(Root::new(tree));
    }
    leave_hosts_mounts()?;
    let propagation = rootfs.early_propagation();
    mount_setattr(&tree, true, propagation.change())
        .context(|| "take the root out of the host's peer groups")?;
    move_mount(&tree, place).context(|| "attach the root").at(&rootfs.field)?;
    Ok(Root::new(tree))
}

/// Attaches the root at its own path, and gives this too, as the kernel has it: criu(8) pivots into a mount point. For
/// a process in a mount namespace of its own.
pub fn attach_for_criu(tree: OwnedFd, rootfs: &Rootfs) -> Result<(Root, PathBuf)> {
    mount_setattr(&tree, true, rootfs.early_propagation().change())
        .context(|| "take the root out of the host's peer groups")?;
    let place = open_directory(&rootfs.path).context(|| format!("open {}", rootfs.path.display()))?;
    let path = readlink(format!("/proc/self/fd/{}", place.as_raw_fd()).as_str());
    move_mount(&tree, place)
        .context(|| format!("attach the root on {}", rootfs.path.display()))
        .at(&rootfs.field)?;
    Ok((Root::new(tree), path.context(|| "find the root's path")?.into()))
}

/// What is mounted from now on does not appear on the host. For a process in a mount namespace of its own.
pub fn leave_hosts_mounts() -> Result<()> {
    const NONE: Option<&str> = None;
    // Slave, not private: a private copy keeps busy what the host unmounts meanwhile.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .context(|| "make all mounts slaves of the host's")
}

/// Makes the root `/` and the working directory, and lets go of the host's mounts. For init, after the hooks
/// that look for the root at its path; `proc` is init's own.
pub fn enter(root: &Root, rootfs: &Rootfs, proc: &Proc) -> Result<()> {
    fchdir(root).context(|| "enter the root")?;
    match rootfs.entry {
        Entry::Pivot => {
            pivot_root_here().context(|| "pivot_root")?;
            // The old root now lies over the new one, in the working directory.
            umount2(".", MntFlags::MNT_DETACH).context(|| "unmount the old root")?;
        }
        Entry::Move => {
            if rootfs.seen_by_hooks {
                move_mount(root, open_directory(Path::new("/"))?).context(|| "move the root over /")?;
            }
            hide_kernel_mounts(proc)?;
            chroot(".").context(|| "chroot into the root")?;
        }
        Entry::Chroot => chroot(".").context(|| "chroot into the root")?,
    }
    chdir("/").context(|| "change to the new root")
}

/// Sets what would be in the way earlier: read-only, shared and unbindable. For init, last of all on the rootfs.
pub fn finish(root: &Root, rootfs: &Rootfs) -> Result<()> {
    let set = if rootfs.read_only { attr::RDONLY } else { 0 };
    let change = |recursive: bool, change: Change| {
        if change == Change::default() {
            return Ok(());
        }
        mount_setattr(root, recursive, change).context(|| {
            format!("set attributes {:#x}, propagation {:#x} of the root", change.set, change.propagation)
        })
    };
    match rootfs.late_propagation() {
        Some(Propagation { kind, recursive: false }) => {
            change(false, Change { set, propagation: kind, clear: 0 })
        }
        late => {
            change(false, Change { set, ..Change::default() })?;
            change(true, late.map_or(Change::default(), Propagation::change))
        }
    }
}

/// Below a root that was only moved over it, the host's root stays in the namespace. Whole proc and sysfs mounts in
/// it would let a user namespace mount them again without the masks (the kernel asks for a whole one to be there).
fn hide_kernel_mounts(proc: &Proc) -> Result<()> {
    for path in kernel_mounts(&proc.read("self/mountinfo")?) {
        // A look-up from init's root meets the host's mounts, never those below the container's root.
        while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
        let left = match statfs(&path) {
            Ok(stat) => [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&stat.filesystem_type()),
            // It was below another one that is gone.
            Err(Errno::ENOENT) => false,
            Err(errno) => return Err(errno).context(|| format!("statfs {}", path.display())),
        };
        if left {
            mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::MS_RDONLY, Some("nr_blocks=1,nr_inodes=2"))
                .context(|| format!("cover {}", path.display()))?;
        }
    }
    Ok(())
}

/// The mount points of whole proc and sysfs file systems, see `proc_pid_mountinfo(5)`.
fn kernel_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let whole = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (subtree, path) = (fields.next()?, fields.next()?);
        let kind = right.split(' ').next()?;
        (subtree == "/" && matches!(kind, "proc" | "sysfs")).then(|| unescaped_path(path))
    };
    mountinfo.lines().filter_map(whole).collect()
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};
    use serde_json::{Value, json};

    fn planned(config: Value, mount_namespace: bool) -> (Rootfs, Vec<String>) {
        let report = Report::default();
        let map = parse(config.to_string().as_bytes(), &report).unwrap();
        let rootfs = plan(&Node::root(&map, &report), Path::new("/b"), mount_namespace, false);
        let problems = report.finish().err().map_or(Vec::new(), |e| e.problems().to_vec());
        (rootfs, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_path_is_absolute_or_relative_to_the_bundle() {
        for (path, expected) in [("rootfs", "/b/rootfs"), ("/r", "/r")] {
            assert_eq!(planned(json!({"root": {"path": path}}), true).0.path, Path::new(expected));
        }
    }

    #[test]
    fn the_root_is_never_shared_before_it_is_the_root() {
        for (name, early, late) in [
            (None, Propagation::PRIVATE, None),
            (Some("private"), Propagation::PRIVATE, None),
            (Some("slave"), Propagation::SLAVE, None),
            (Some("rslave"), Propagation::SLAVE, None),
            (Some("shared"), Propagation::PRIVATE, Propagation::named("shared")),
            (Some("rshared"), Propagation::PRIVATE, Propagation::named("rshared")),
            (Some("unbindable"), Propagation::PRIVATE, Propagation::named("unbindable")),
        ] {
            let config = json!({"root": {"path": "r"}, "linux": {"rootfsPropagation": name}});
            let (rootfs, problems) = planned(config, true);
            assert_eq!((rootfs.early_propagation(), rootfs.late_propagation()), (early, late), "{name:?}");
            assert!(problems.is_empty());
        }
    }

    #[test]
    fn hooks_before_the_pivot_find_the_root_at_its_path() {
        let hooks = |kind: &str| planned(json!({"root": {"path": "r"}, "hooks": {kind: [{}]}}), true).0;
        assert!(hooks("createContainer").seen_by_hooks);
        assert!(hooks("createRuntime").seen_by_hooks);
        assert!(hooks("prestart").seen_by_hooks);
        assert!(!hooks("startContainer").seen_by_hooks);
    }

    #[test]
    fn what_cannot_be_honoured_is_a_problem() {
        let namespace = "needs a mount namespace of the container's own";
        assert_eq!(planned(json!({}), true).1, ["/root: is required"]);
        assert_eq!(planned(json!({"root": {}}), true).1, ["/root/path: is required"]);
        assert_eq!(planned(json!({"root": {"path": ""}}), true).1, ["/root/path: must not be empty"]);
        let config = json!({"root": {"path": "r"}, "linux": {"rootfsPropagation": "public"}});
        let problem =
            "/linux/rootfsPropagation: must be shared, slave, private or unbindable, not \"public\"";
        assert_eq!(planned(config, true).1, [problem]);
        let config =
            json!({"root": {"path": "r", "readonly": true}, "linux": {"rootfsPropagation": "slave"}});
        let (rootfs, problems) = planned(config, false);
        assert_eq!(rootfs.entry, Entry::Chroot);
        assert_eq!(
            problems,
            [format!("/linux/rootfsPropagation: {namespace}"), format!("/root/readonly: {namespace}")]
        );
    }

    #[test]
    fn whole_proc_and_sysfs_mounts_are_found_in_mountinfo() {
        let mountinfo = "\
22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
23 27 0:22 / /odd\\040name\\134x rw - sysfs sysfs rw
24 27 0:21 /sys /proc/sys ro - proc proc rw
25 27 0:23 / /dev/shm rw - tmpfs proc rw
";
        assert_eq!(kernel_mounts(mountinfo), [Path::new("/proc"), Path::new("/odd name\\x")]);
    }
}
