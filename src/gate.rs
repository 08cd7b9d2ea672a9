//! The gate between `create` and `start`: init waits at it, `start` opens it.
//!
//! It is a socket in the state directory. Init accepts one caller, answers [`OPENED`] and closes the gate; the
//! connection then closes by itself when init executes the program, or carries init's error. (A FIFO would
//! block for ever on a dead init and has no way back for an error.)

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{Backlog, MsgFlags, listen, send};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::process::exit_now;

/// Init's word that this caller, and no other, starts the container.
const OPENED: u8 = b'O';

/// Blocks every signal, so that those that come while init waits are kept for [`wait`]: a pid namespace's
/// first process would otherwise never see one, and `kill` on a created container would do nothing.
pub fn hold_signals() -> Result<()> {
    SigSet::all().thread_set_mask().context(|| "block signals")
}

/// From now on a `start` is heard; before, while hooks run for instance, it is refused.
pub fn listen_for_start(gate: &OwnedFd) -> Result<()> {
    Backlog::new(8).and_then(|callers| listen(gate, callers)).context(|| "listen for start")
}

/// Init's side: returns when `start` has come, with the way to tell it of an error. A signal that would end a
/// program ends init here. Needs [`hold_signals`].
pub fn wait(listener: OwnedFd) -> Result<Caller> {
    let listener = UnixListener::from(listener);
    let flags = SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&ending_signals(), flags).context(|| "wait for signals")?;
    loop {
        let mut ready = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context(|| "wait for start")?,
        };
        if ready[1].any() == Some(true)
            && let Some(info) = signals.read_signal().context(|| "read a signal")?
        {
            exit_now(128 + info.ssi_signo as i32);
        }
        if ready[0].any() == Some(true) {
            let (caller, _) = listener.accept().context(|| "accept start")?;
            // EPIPE: `start` was killed after it had asked, and what it asked for still happens. No SIGPIPE, which
            // would wait for the program.
            let _ = send(caller.as_raw_fd(), &[OPENED], MsgFlags::MSG_NOSIGNAL);
            return Ok(Caller(caller));
        }
    }
}

/// The `start` that init answers to; closed by execve.
pub struct Caller(UnixStream);

impl Caller {
    pub fn failed(mut self, error: &Error) {
        // EPIPE: nobody is left to tell.
        let _ = self.0.write_all(&error.to_json(usize::MAX));
    }
}

/// `start`'s side: a connection lets init go on; this returns when it has executed the program.
///
/// # Errors
/// Init's own error; or [`Kind::WrongStatus`] when another `start` was first.
pub fn await_execution(gate: OwnedFd) -> Result<()> {
    let mut answer = Vec::new();
    match UnixStream::from(gate).read_to_end(&mut answer) {
        // Init died or executed with this connection not yet accepted.
        Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => {}
        other => drop(other.context(|| "wait for the container's first process")?),
    }
    match answer.split_first() {
        Some((&OPENED, [])) => Ok(()),
        Some((&OPENED, error)) => Err(Error::from_json(error)),
        _ => Err(already_started()),
    }
}

pub fn already_started() -> Error {
    Error::of_kind(Kind::WrongStatus, "cannot start an already running or stopped container")
}

/// The signals whose default action ends a program.
fn ending_signals() -> SigSet {
    let harmless = [
        Signal::SIGCHLD,
        Signal::SIGURG,
        Signal::SIGWINCH,
        Signal::SIGCONT,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ];
    let mut set = SigSet::all();
    for signal in harmless {
        set.remove(signal);
    }
    set
}
