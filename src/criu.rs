//! Talking to criu(8), which saves the processes of a container into files and makes them anew from these.
//!
//! It runs as a child, `criu swrk FD`, for one request: it gets the options as one protobuf message, and until its last
//! answer it tells how far it is and waits each time for leave to go on. (Its command line lacks what a terminal
//! needs: the master of a terminal that is made anew comes as a descriptor with a message.)
//!
//! <https://criu.org/RPC>, <https://man7.org/linux/man-pages/man8/criu.8.html>

mod images;
pub mod rpc;
pub mod stdio;

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{AccessFlags, Pid, access, execve};
use prost::Message;

use crate::error::{Context, Error, Result};
use crate::rights::Rights;
use crate::socket::receive;
use crate::sys::process::{Clone, clone3, exit_now, pidfd_send_signal, reset_signals, unblock_signals};

pub use images::Images;
use rpc::{Answer, Opts, Request, RequestType};

/// A criu that waits for its request.
pub struct Criu {
    pub pid: Pid,
    pidfd: OwnedFd,
    socket: OwnedFd,
}

/// What criu says between the request and the last answer.
pub struct Notice {
    /// At which point of its work it is: `setup-namespaces`, `post-restore` ...
    pub script: String,
    /// Of the first restored process, at some points.
    pub pid: Option<Pid>,
    pub fd: Option<OwnedFd>,
}

impl Criu {
    /// Says before anything is done that criu(8) takes the host's root.
    pub fn refuse_user() -> Result<()> {
        match Rights::of_caller().is_user() {
            true => Err(Error::new("criu takes root")),
            false => Ok(()),
        }
    }

    /// Starts criu, in `cgroup` if there is one. It inherits `passed`, by the same numbers, and stdio.
    pub fn start(cgroup: Option<BorrowedFd<'_>>, passed: &[BorrowedFd<'_>]) -> Result<Self> {
        let path = find()?;
        let what = || format!("start {}", path.display());
        // Packets, so that each holds one message.
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context(what)?;
        let arguments = arguments(&path, &theirs).context(what)?;
        match clone3(0, cgroup).context(what)? {
            Clone::Parent { pid, pidfd } => Ok(Self { pid, pidfd, socket }),
            Clone::Child => {
                // Whatever went wrong, the parent learns of its end.
                let Err(_) = execute(&arguments, &[passed, &[theirs.as_fd()]].concat());
                exit_now(NOT_EXECUTED)
            }
        }
    }

    /// Makes the request and returns the last answer, which may be that criu has failed. Each of its notices is given to
    /// `noticed`, whose error makes criu clear away what it has made. Returns early when `interrupt` becomes readable.
    pub fn ask(
        &self,
        kind: RequestType,
        opts: Opts,
        interrupt: Option<BorrowedFd<'_>>,
        mut noticed: impl FnMut(Notice) -> Result<()>,
    ) -> Result<Answer> {
        let mut refused = Ok(());
        let answer = self.converse(kind, opts, interrupt, |notice| {
            let done = noticed(notice);
            let goes_on = done.is_ok();
            if refused.is_ok() {
                refused = done;
            }
            goes_on
        });
        refused.and(answer)
    }

    fn converse(
        &self,
        kind: RequestType,
        opts: Opts,
        interrupt: Option<BorrowedFd<'_>>,
        mut noticed: impl FnMut(Notice) -> bool,
    ) -> Result<Answer> {
        self.send(Request { r#type: kind.into(), opts: Some(opts), notify_success: None })?;
        loop {
            interrupt.map_or(Ok(()), |interrupt| self.await_answer(interrupt))?;
            let (answer, fd) = self.receive()?;
            let Some(notify) = answer.notify else { return Ok(answer) };
            let pid = notify.pid.map(Pid::from_raw);
            let goes_on = noticed(Notice { script: notify.script.unwrap_or_default(), pid, fd });
            let kind = RequestType::Notify.into();
            self.send(Request { r#type: kind, opts: None, notify_success: Some(goes_on) })?;
        }
    }

    /// Waits for its end. After a pre-dump it would wait for the next request, and then complain that there is none.
    pub fn finish(self, kind: RequestType) -> Result<()> {
        if kind == RequestType::PreDump {
            // ESRCH: it has ended.
            let _ = pidfd_send_signal(&self.pidfd, Signal::SIGKILL as i32);
        }
        // Whatever happened, without it criu does not go on.
        drop(self.socket);
        waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED).context(|| "wait for criu").map(drop)
    }

    fn send(&self, request: Request) -> Result<()> {
        send(self.socket.as_raw_fd(), &request.encode_to_vec(), MsgFlags::MSG_NOSIGNAL).map(drop).map_err(
            |errno| match errno {
                Errno::EPIPE | Errno::ECONNRESET => self.unexplained_end(),
                errno => Error::from(errno).because("send to criu".into()),
            },
        )
    }

    fn receive(&self) -> Result<(Answer, Option<OwnedFd>)> {
        const LONGEST: usize = 40 << 10; // bytes
        let mut buffer = vec![0; LONGEST];
        let (length, fd) = match receive(&self.socket, &mut buffer) {
            Ok((0, _)) | Err(Errno::ECONNRESET) => return Err(self.unexplained_end()),
            received => received.context(|| "receive from criu")?,
        };
        let answer = Answer::decode(&buffer[..length])
            .map_err(|e| Error::new(e.to_string()).because("read criu's answer".into()))?;
        Ok((answer, fd))
    }

    fn await_answer(&self, interrupt: BorrowedFd<'_>) -> Result<()> {
        let mut fds = [self.socket.as_fd(), interrupt].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        while let Err(errno) = poll(&mut fds, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno).context(|| "wait for criu");
            }
        }
        if fds[0].any() == Some(true) { Ok(()) } else { Err(Error::new("interrupted by a signal")) }
    }

    fn unexplained_end(&self) -> Error {
        let end = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        Error::new(match end {
            Ok(WaitStatus::Exited(_, NOT_EXECUTED)) => "criu could not be executed".into(),
            Ok(WaitStatus::Exited(_, code)) => format!("criu exited with {code} and said nothing"),
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("criu was killed by {signal}"),
            _ => "criu ended and said nothing".into(),
        })
    }
}

const NOT_EXECUTED: i32 = 127;

/// The program, as a shell would find it.
fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates =
        path.as_bytes().split(|&b| b == b':').map(|dir| Path::new(OsStr::from_bytes(dir)).join("criu"));
    let mut runnable = candidates
        .filter(|path| path.is_absolute() && path.is_file() && access(path, AccessFlags::X_OK).is_ok());
    runnable.next().ok_or_else(|| {
        let path = path.display();
        Error::new(format!("criu is not installed: no directory of PATH has it ({path})"))
    })
}

struct Arguments {
    path: CString,
    args: [CString; 3],
    env: Vec<CString>,
}

/// Made before the clone.
fn arguments(path: &Path, socket: &OwnedFd) -> Result<Arguments, Errno> {
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let variable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        CString::new([name.into_vec(), value.into_vec()].join(&b'=')).map_err(|_| Errno::EINVAL)
    };
    Ok(Arguments {
        path: c_string(path.as_os_str().as_bytes())?,
        args: [c_string(b"criu")?, c_string(b"swrk")?, c_string(socket.as_raw_fd().to_string().as_bytes())?],
        env: std::env::vars_os().map(variable).collect::<Result<_, _>>()?,
    })
}

/// In criu's process.
fn execute(arguments: &Arguments, kept: &[BorrowedFd<'_>]) -> Result<Infallible, Errno> {
    for fd in kept {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    reset_signals().and_then(|()| unblock_signals())?;
    execve(&arguments.path, &arguments.args, &arguments.env)
}
