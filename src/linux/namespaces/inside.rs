//! Going to another mount namespace and back, to open there what a container with a user namespace will attach.

use std::os::fd::BorrowedFd;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::{chroot, fchdir};

use super::{Kind, same};
use crate::error::{Context, Error, Result};
use crate::linux::idmap;
use crate::proc::Proc;

/// Does `work` in the mount namespace of another process. What a user namespace has there is a copy of the host's
/// mounts whose flags are locked, and so are those of all copies that are made there; of what is opened outside and
/// attached in there, its root could take the host's `ro` or `nosuid` off again.
pub fn in_mount_namespace<T>(
    process: BorrowedFd<'_>,
    proc: &Proc,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let own = proc.namespace("self", Kind::Mount.file())?;
    let root = open("/", flags, Mode::empty()).context(|| "open /")?;
    let here = open(".", flags, Mode::empty()).context(|| "open the working directory")?;
    setns(process, CloneFlags::CLONE_NEWNS).context(|| "enter init's mount namespace")?;
    let done =
        open("/", flags, Mode::empty()).context(|| "open / of init's mount namespace").and_then(|there| {
            // All paths would mean something else.
            if !same(&there, &root)? {
                return Err(Error::new(
                    "keel's root is not the root of its mount namespace, so no user namespace can be had",
                ));
            }
            work()
        });
    setns(&own, CloneFlags::CLONE_NEWNS)
        .and_then(|()| fchdir(&root))
        .and_then(|()| chroot("."))
        .and_then(|()| fchdir(&here))
        .context(|| "leave init's mount namespace")?;
    done
}

/// The same in a mount namespace made for that, for what a container attaches that joins both, a mount and a user
/// namespace. Not in the one that it joins: what the host's paths lead to there is up to those who are in it.
pub fn in_locked_mount_namespace<T>(proc: &Proc, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
    idmap::beside(flags, || Ok(()), |_, process| in_mount_namespace(process, proc, work))
}
