//! One clone: from the runtime's process straight into the container's namespaces and cgroup.
//!
//! New namespaces come from clone3's flags; those joined by path are entered by this process just before the
//! clone and left right after it (see `linux/namespaces.rs`), so that init is born in all of them.

use std::convert::Infallible;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::unistd::Pid;

use crate::error::{Context, Result};
use crate::linux::namespaces::{Joined, Namespaces};
use crate::proc::Proc;
use crate::sync::{self, CreateEnd, InitEnd};
use crate::sys::process::{Clone, clone3};

/// The process that will become the container's.
pub struct Spawned {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub sync: CreateEnd,
}

/// Clones init, which does `init` and never comes back from it.
pub fn spawn(
    namespaces: &Namespaces,
    joined: &Joined,
    proc: &Proc,
    cgroup: BorrowedFd<'_>,
    init: impl FnOnce(InitEnd) -> Infallible,
) -> Result<Spawned> {
    let (create_end, init_end) = sync::pair()?;
    let cloned = namespaces.around_clone(joined, proc, |flags| {
        clone3(flags, Some(cgroup)).context(|| "clone the container's first process")
    })?;
    match cloned {
        Clone::Parent { pid, pidfd } => Ok(Spawned { pid, pidfd, sync: create_end }),
        Clone::Child => {
            drop(create_end);
            #[expect(
                unreachable_code,
                reason = "the compiler sees that init never returns, but wants a value"
            )]
            match init(init_end) {}
        }
    }
}
