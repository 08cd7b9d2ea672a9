//! One clone: from the runtime's process straight into the container's namespaces and cgroup.
//!
//! New namespaces come from clone3's flags; those joined by path are entered by this process just before the
//! clone and left right after it (see `linux/namespaces.rs`), so that init is born in all of them. A user namespace
//! cannot be left, so for one by path a process in between goes there and clones. A process that joins a container
//! is born in its pid namespace and goes to the others itself.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, pipe2, write};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::linux::namespaces::{Joined, Namespaces};
use crate::proc::{Proc, is_ending};
use crate::rights::Rights;
use crate::sync::{self, CreateEnd, FromInit, InitEnd, ToInit};
use crate::sys::process::{Clone, adopt_fd, clone3, exit_now, pidfd_getfd};

/// What the process waits for.
pub enum Request {
    /// It has made its mounts.
    Mounted,
    /// Its filter leaves system calls to an agent, which is to get this.
    Listener(OwnedFd),
}

/// The process that will become the container's.
pub struct Spawned {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub sync: CreateEnd,
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
    rights: Rights,
    init: impl FnOnce(InitEnd) -> Infallible,
) -> Result<Spawned> {
    let ends = sync::pair()?;
    let cloned = if joined.is_one_way(rights) {
        clone_by_hop(cgroup, || {
            namespaces.enter(joined, proc, rights)?;
            Ok(namespaces.clone_flags())
        })?
    } else {
        namespaces.around_clone(joined, proc, |flags| clone_first(flags, cgroup))?
    };
    Ok(go_on(cloned, ends, init))
}

fn clone_first(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<Clone> {
    clone3(flags, cgroup)
        .map_err(|errno| Error::from(errno).because(format!("clone the container's process{}", hint(errno))))
}

/// Clones a child of this process, but from a process that has gone where `enter` goes, which gives the flags. That
/// shares its descriptors with this one, so that the pidfd arrives here, and ends at once.
fn clone_by_hop(cgroup: Option<BorrowedFd<'_>>, enter: impl FnOnce() -> Result<i32>) -> Result<Clone> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context(|| "make a pipe")?;
    // Already into the cgroup, where the other is born too: from in there it might not be allowed to.
    let hop = match clone_first(libc::CLONE_FILES, cgroup)? {
        Clone::Parent { pidfd, .. } => pidfd,
        Clone::Child => {
            let told = match enter().and_then(|flags| clone_first(flags | libc::CLONE_PARENT, None)) {
                Ok(Clone::Child) => return Ok(Clone::Child),
                Ok(Clone::Parent { pid, pidfd }) => {
                    [pid.as_raw(), pidfd.into_raw_fd()].map(i32::to_ne_bytes).concat()
                }
                Err(error) => error.to_json(PIPE_BUF),
            };
            // Nothing may be dropped: what is closed here is closed in the parent too. Should this fail, it reads nothing.
            let _ = write(&writer, &told);
            exit_now(0)
        }
    };
    waitid(Id::PIDFd(hop.as_fd()), WaitPidFlag::WEXITED).context(|| "wait for the process in between")?;
    drop(writer);
    let mut told = Vec::new();
    File::from(reader).read_to_end(&mut told).context(|| "read from the process in between")?;
    match <[u8; 8]>::try_from(told.as_slice()) {
        Ok([a, b, c, d, e, f, g, h]) => {
            let pidfd = adopt_fd(i32::from_ne_bytes([e, f, g, h])).context(|| "take the pidfd")?;
            Ok(Clone::Parent { pid: Pid::from_raw(i32::from_ne_bytes([a, b, c, d])), pidfd })
        }
        Err(_) if told.is_empty() => Err(Error::new("the process in between ended without a word")),
        Err(_) => Err(Error::from_json(&told)),
    }
}

/// What a pipe takes at once, whoever reads.
const PIPE_BUF: usize = libc::PIPE_BUF; // bytes

/// Clones a process that will join the container of `first`, its first process, whose pid namespace all children of
/// this process are born in from now on. `cgroup` is the one to be born in, if not this process's own. A user may go
/// to the pid namespace only with the user namespace: a process in between does, to `with_user`, the CLONE_NEW* flags.
///
/// A cgroup that passes controllers on to its children may have no processes of its own. The container's first
/// process has then left it for one of these, and that is what `cgroup_of_first` gives.
pub fn spawn_beside(
    first: BorrowedFd<'_>,
    with_user: Option<i32>,
    cgroup: Option<&Cgroup>,
    cgroup_of_first: impl FnOnce() -> Result<Option<Cgroup>>,
    init: impl FnOnce(InitEnd) -> Infallible,
) -> Result<Spawned> {
    let ends = sync::pair()?;
    let join = |flags| {
        setns(first, CloneFlags::from_bits_retain(flags)).context(|| "join the container's pid namespace")
    };
    if with_user.is_none() {
        join(libc::CLONE_NEWPID)?;
    }
    let clone = |cgroup: Option<&Cgroup>| {
        if let Some(flags) = with_user {
            return clone_by_hop(cgroup.map(AsFd::as_fd), || {
                // Before anybody in there can look into this process, which holds the host's descriptors.
                prctl::set_dumpable(false).context(|| "become undumpable")?;
                join(flags)?;
                Ok(0)
            });
        }
        clone3(0, cgroup.map(AsFd::as_fd)).context(|| match cgroup {
            Some(cgroup) => format!("clone a process into cgroup {}", cgroup.path().display()),
            None => "clone a process".into(),
        })
    };
    let cloned = match clone(cgroup) {
        Err(error) if error.errno() == Some(Errno::EBUSY) => match cgroup_of_first()? {
            Some(other) => clone(Some(&other))?,
            None => return Err(error),
        },
        cloned => cloned?,
    };
    Ok(go_on(cloned, ends, init))
}

fn go_on(
    cloned: Clone,
    (create_end, init_end): (CreateEnd, InitEnd),
    init: impl FnOnce(InitEnd) -> Infallible,
) -> Spawned {
    match cloned {
        Clone::Parent { pid, pidfd } => Spawned { pid, pidfd, sync: create_end },
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

impl Spawned {
    /// Serves the process until it is ready, and takes its terminal's master. Gives up as soon as `interrupt` is
    /// readable.
    pub fn await_ready(
        &self,
        interrupt: Option<BorrowedFd<'_>>,
        serve: impl Fn(Request) -> Result<()>,
    ) -> Result<Option<OwnedFd>> {
        let mut terminal = None;
        loop {
            interrupt.map_or(Ok(()), |interrupt| self.await_message(interrupt))?;
            match self.sync.receive()? {
                FromInit::Terminal(master) => terminal = Some(master),
                FromInit::Mounted => {
                    serve(Request::Mounted)?;
                    self.tell(ToInit::Continue)?;
                }
                FromInit::Listener(number) => {
                    let listener = pidfd_getfd(&self.pidfd, number);
                    serve(Request::Listener(listener.context(|| "take the seccomp listener from init")?))?;
                }
                FromInit::ListenerSent(listener) => serve(Request::Listener(listener))?,
                FromInit::Ready => return Ok(terminal),
                FromInit::Failed(error) => return Err(error),
                FromInit::Closed => return Err(self.unexplained_death()),
            }
        }
    }

    fn await_message(&self, interrupt: BorrowedFd<'_>) -> Result<()> {
        let mut fds = [self.sync.as_fd(), interrupt].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        while let Err(errno) = poll(&mut fds, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno).context(|| "wait for init");
            }
        }
        if fds[0].any() == Some(true) {
            Ok(())
        } else {
            Err(Error::of_kind(Kind::Interrupted, "interrupted by a signal"))
        }
    }

    pub fn tell(&self, message: ToInit) -> Result<()> {
        self.send(|sync| sync.send(message))
    }

    pub fn send(&self, send: impl FnOnce(&CreateEnd) -> Result<()>) -> Result<()> {
        send(&self.sync).map_err(|error| match error.errno() {
            Some(Errno::EPIPE) => self.heard().unwrap_or_else(|| self.unexplained_death()),
            _ => error,
        })
    }

    /// Lets it execute the program, and waits until it has, which closes its end, or has said why it could not. Gives
    /// up as soon as `interrupt` is readable: the process may just have been frozen.
    pub fn execute(&self, interrupt: Option<BorrowedFd<'_>>) -> Result<()> {
        self.tell(ToInit::Start)?;
        interrupt.map_or(Ok(()), |interrupt| self.await_message(interrupt))?;
        match self.sync.receive()? {
            FromInit::Closed => Ok(()),
            FromInit::Failed(error) => Err(error),
            _ => Err(Error::new("init spoke out of turn")),
        }
    }

    /// Why init has given up, if it has said so and nobody has listened yet.
    pub fn last_words(&self) -> Option<Error> {
        is_ending(self.pid).then(|| self.heard()).flatten()
    }

    /// Of one that is about to end.
    fn heard(&self) -> Option<Error> {
        loop {
            match self.sync.receive() {
                Ok(FromInit::Failed(error)) => return Some(error),
                Ok(FromInit::Closed) | Err(_) => return None,
                Ok(_) => {}
            }
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
    fn unexplained_death(&self) -> Error {
        match self.wait() {
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                Error::new(format!("the container's process was killed by {signal} during set-up"))
            }
            Ok(WaitStatus::Exited(_, code)) => {
                Error::new(format!("the container's process exited with {code} during set-up"))
            }
            Ok(_) | Err(_) => Error::new("the container's process ended during set-up"),
        }
    }
}
