//! A cgroup that the container manages itself: whom its files belong to, and where its first process lives.
//!
//! A container with a cgroup namespace and a writable cgroup mount may make cgroups below its own. Two things are in
//! its way. Unless it is the host's root, it owns no file there: [`give`] gives it those of the kernel's list, and
//! none that would lift its limits. And a cgroup that has processes cannot pass controllers on to others (the "no
//! internal processes" rule), while the container's first process is right there: a [`Leaf`] takes that out of the way.
//!
//! The leaf is asked for by crun's annotation `run.oci.delegate-cgroup`, whose value is its name, and never made
//! unasked: callers expect the first process in the container's cgroup (Podman reads the path from it), every
//! privileged container of Docker has a writable mount and few have a use for it, and systemd, kind or Docker's dind
//! script move their processes themselves.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#cgroup-ownership>,
//! kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html#delegation>, `cgroups(7)`

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::fstat;
use nix::unistd::{Uid, fchownat};

use super::{Cgroup, limits, not_made};
use crate::error::{At, Context, Field, Result};
use crate::host::Cgroup2;
use crate::spec::Node;

/// A cgroup below the container's, for its first process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    path: PathBuf,
    pub(super) field: Field,
}

pub const ANNOTATION: &str = "run.oci.delegate-cgroup";

/// Which files a delegatee owns besides the directory.
const LIST: &str = "/sys/kernel/cgroup/delegate";

/// They are these where the kernel has no list, says the runtime spec.
const UNLISTED: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

/// Reads `/annotations` of the whole config; an empty name is none, as with crun.
pub(super) fn plan_leaf(config: &Node) -> Option<Leaf> {
    let annotations = config.object("annotations")?;
    let path = annotations.string(ANNOTATION).filter(|path| !path.is_empty())?;
    if let Some(wrong) = path.split('/').find(|name| matches!(*name, "" | "." | "..")) {
        let what =
            format_args!("must be a path below the cgroup, without the component {wrong:?}, not {path:?}");
        annotations.problem(ANNOTATION, what);
    }
    Some(Leaf { path: path.into(), field: annotations.at(ANNOTATION) })
}

impl Leaf {
    /// Makes the leaf below the container's cgroup. Gives the file by which init moves there, open: init has to be
    /// in the container's own cgroup when it makes its cgroup namespace, which is rooted where it then is.
    pub fn make(&self, cgroup: &Cgroup) -> Result<OwnedFd> {
        let mut made = PathBuf::new();
        let mut last = None;
        for name in &self.path {
            made.push(name);
            let below = cgroup.make_below(&made).map_err(|errno| not_made(&cgroup.path().join(&made), errno));
            last = Some(below.at(&self.field)?);
        }
        let leaf = last.as_ref().unwrap_or(cgroup);
        let procs = leaf.open_file(c"cgroup.procs", OFlag::O_WRONLY);
        procs.context(|| format!("open {}/cgroup.procs", leaf.path().display())).at(&self.field)
    }

    /// Lets the cgroups beside the leaf have the container's controllers; after init has moved.
    pub fn free(&self, cgroup: &Cgroup, mount: &Cgroup2) -> Result<()> {
        let leaf = cgroup.path().join(&self.path);
        limits::enable_all(leaf.parent().unwrap_or(&leaf), mount).at(&self.field)
    }
}

/// Init's part: it moves to the leaf whose `cgroup.procs` this is.
pub fn enter(procs: OwnedFd) -> Result<()> {
    nix::unistd::write(procs, b"0").map(drop).context(|| "move to the delegated cgroup")
}

/// Gives the container's cgroup, and the leaf in it, to a user of the host.
pub fn give(cgroup: &Cgroup, leaf: Option<&Leaf>, uid: Uid) -> Result<()> {
    let owner = fstat(cgroup.as_fd()).context(|| format!("stat {}", cgroup.path().display()))?.st_uid;
    if owner == uid.as_raw() && leaf.is_none() {
        return Ok(());
    }
    let list = match std::fs::read_to_string(LIST) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => UNLISTED.to_owned(),
        list => list.context(|| format!("read {LIST}"))?,
    };
    give_files(cgroup, Path::new("."), &list, uid)?;
    let mut below = PathBuf::from(".");
    for name in leaf.iter().flat_map(|leaf| &leaf.path) {
        below.push(name);
        give_files(cgroup, &below, &list, uid)?;
    }
    Ok(())
}

fn give_files(cgroup: &Cgroup, below: &Path, list: &str, uid: Uid) -> Result<()> {
    for name in std::iter::once(".").chain(list.lines()) {
        let path = below.join(name);
        match fchownat(cgroup.as_fd(), &path, Some(uid), None, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // A file of a controller that is not at work here.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => {
                return Err(errno)
                    .context(|| format!("chown {} to {uid}", cgroup.path().join(&path).display()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::cgroup::tests::test_place;

    #[test]
    fn a_user_gets_the_listed_files_that_there_are() {
        let Some((host, plan, path)) = test_place("give") else { return };
        let cgroup = Cgroup::create(&plan, &path, &host).unwrap();
        let list = format!("{UNLISTED}memory.nonesuch\n");
        give_files(&cgroup, Path::new("."), &list, Uid::from_raw(4321)).unwrap();
        let owner = |name: &str| std::fs::metadata(path.join(name)).unwrap().uid();
        for name in [".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            assert_eq!(owner(name), 4321, "{name}");
        }
        assert_eq!((owner("cgroup.kill"), owner("cgroup.max.depth"), owner("..")), (0, 0, 0));
        give(&cgroup, None, Uid::from_raw(0)).unwrap();
        assert_eq!((owner("."), owner("cgroup.procs")), (0, 0));
        cgroup.undo().unwrap();
    }
}
