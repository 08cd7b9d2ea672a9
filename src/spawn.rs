//! One clone: from the runtime's process straight into the container's namespaces and cgroup.
//!
//! New namespaces come from clone3's flags; those joined by path are entered by this process just before the
//! clone and left right after it (see `linux/namespaces.rs`), so that init is born in all of them.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::linux::namespaces::{Joined, Namespaces};
use crate::proc::{Proc, is_ending};
use crate::sync::{self, CreateEnd, FromInit, InitEnd, ToInit};
use crate::sys::process::{Clone, clone3};

/// The process that will become the container's.
pub struct Spawned {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub sync: CreateEnd,
}

impl Spawned {
    /// Returns when init has something to say; an error when `interrupt` is readable before.
    pub fn await_message(&self, interrupt: BorrowedFd<'_>) -> Result<()> {
        let mut fds = [self.sync.as_fd(), interrupt].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        while let Err(errno) = poll(&mut fds, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno).context(|| "wait for init");
            }
        }
        if fds[0].any() == Some(true) { Ok(()) } else { Err(Error::new("interrupted by a signal")) }
    }

    pub fn tell(&self, message: ToInit) -> Result<()> {
        self.sync.send(message).map_err(|error| match error.errno() {
            Some(Errno::EPIPE) => self.unexplained_death(),
            _ => error,
        })
    }

    /// Until init has executed the program, which closes its end, or has said why it could not.
    pub fn await_execution(&self) -> Result<()> {
        match self.sync.receive()? {
            FromInit::Closed => Ok(()),
            FromInit::Failed(error) => Err(error),
            _ => Err(Error::new("init spoke out of turn")),
        }
    }

    /// The signal that has ended init, if it has ended and by one.
    pub fn killed_by(&self) -> Option<Signal> {
        match is_ending(self.pid).then(|| self.wait()) {
            Some(Ok(WaitStatus::Signaled(_, signal, _))) => Some(signal),
            _ => None,
        }
    }

    /// Until init has ended; it stays to be reaped.
    fn wait(&self) -> Result<WaitStatus, Errno> {
        waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
    }

    /// Init could not say what happened to it, but its parent is told how it ended.
    pub fn unexplained_death(&self) -> Error {
        match self.wait() {
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                Error::new(format!("the container's first process was killed by {signal} during set-up"))
            }
            Ok(WaitStatus::Exited(_, code)) => {
                Error::new(format!("the container's first process exited with {code} during set-up"))
            }
            Ok(_) | Err(_) => Error::new("the container's first process ended during set-up"),
        }
    }
}

/// What clone3 means where the errno alone would send the reader astray.
fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EBUSY => {
            ": its cgroup passes controllers on to others, and can have no processes (see cgroups(7))"
        }
        Errno::EOPNOTSUPP => ": its cgroup is threaded, or below one that is",
        Errno::EAGAIN => {
            ": no more processes may be made (pids.max of its cgroup or one above it, RLIMIT_NPROC)"
        }
        Errno::ENOMEM => {
            ": no memory for it (memory.max of the caller's cgroup or one above it, or the host's own)"
        }
        _ => "",
    }
}

/// Clones init, which does `init` and never comes back from it.
pub fn spawn(
    namespaces: &Namespaces,
    joined: &Joined,
    proc: &Proc,
    cgroup: Option<BorrowedFd<'_>>,
    init: impl FnOnce(InitEnd) -> Infallible,
) -> Result<Spawned> {
    let (create_end, init_end) = sync::pair()?;
    let cloned = namespaces.around_clone(joined, proc, |flags| {
        clone3(flags, cgroup).map_err(|errno| {
            Error::from(errno).because(format!("clone the container's first process{}", hint(errno)))
        })
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
