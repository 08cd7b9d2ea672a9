//! What a command in the foreground does until the container's process ends: it passes its signals on, reaps
//! what is left to it, and with a terminal carries the bytes and the size between its own and the container's.
//!
//! One loop waits for all of it by poll(2). (Not epoll, which refuses regular files: `keel run c < file`.)
//!
//! Job control stays with the shell: the container's process is in a session of its own, so SIGTSTP, SIGTTIN
//! and SIGTTOU stop this process, as they would stop any other, and are not passed on.

use std::array::from_fn;
use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, isatty, read, tcgetpgrp, write};

use crate::error::{Context, Result};
use crate::gate;
use crate::log;
use crate::notify::Notify;
use crate::sys::process::{pidfd_send_signal, wait_any};
use crate::sys::terminal::{Size, tiocgptpeer, tiocgwinsz, tiocswinsz};

/// The signals of this process, held back for [`foreground`].
pub struct Signals {
    fd: SignalFd,
    /// The same without those that end nobody.
    ending: SignalFd,
}

impl Signals {
    /// Readable when a signal has come that would have ended this process.
    pub fn interrupt(&self) -> BorrowedFd<'_> {
        self.ending.as_fd()
    }
}

/// Holds signals back from now on. Before the clone, or one that comes before [`foreground`] would end this
/// process and leave the container behind. (Init clears the mask that it inherits.)
pub fn block_signals() -> Result<Signals> {
    const OURS: [Signal; 4] = [
        // Not held back: Rust ignores it, so that a write to a closed pipe gives EPIPE and nothing else.
        Signal::SIGPIPE,
        // Job control. With these held back a background process would get EIO from its terminal.
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ];
    let mut mask = SigSet::all();
    OURS.into_iter().for_each(|signal| mask.remove(signal));
    mask.thread_block().context(|| "block signals")?;
    let signalfd = |mask: &SigSet| {
        SignalFd::with_flags(mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context(|| "make a signalfd")
    };
    Ok(Signals { fd: signalfd(&mask)?, ending: signalfd(&gate::ending_signals())? })
}

/// Passes signals, bytes and the container's word that it is ready on until process `pid`, a child, has ended and all
/// that it wrote is out. Returns its exit code, or 128 + n if signal n ended it.
pub fn foreground(
    signals: &Signals,
    pid: Pid,
    pidfd: BorrowedFd<'_>,
    mut console: Option<Console>,
    mut notify: Option<Notify>,
) -> Result<i32> {
    let mut status = None;
    reap(pid, &mut status)?;
    loop {
        if let Some(status) = status
            && console.as_mut().is_none_or(Console::is_drained)
        {
            // It may have been ready, said so, and ended.
            while notify.as_ref().is_some_and(Notify::has_word) {
                pass_word(&mut notify, pid);
            }
            return Ok(status);
        }
        // A place that nothing needs waits for nothing.
        let mut fds: [_; 5] = from_fn(|_| PollFd::new(signals.fd.as_fd(), PollFlags::empty()));
        fds[0].set_events(PollFlags::POLLIN);
        if let Some(console) = &console {
            console.wait_for(&mut fds[1..4]);
        }
        if let Some(notify) = &notify {
            fds[4] = PollFd::new(notify.as_fd(), PollFlags::POLLIN);
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context(|| "wait for the container"),
        }
        // None: the kernel said something that nix does not know.
        let [signal, input, master, output, ready] =
            fds.map(|fd| fd.revents().is_none_or(|found| !found.is_empty()));
        if let Some(console) = &mut console {
            console.carry(input, master, output);
        }
        if ready {
            pass_word(&mut notify, pid);
        }
        while signal && let Some(info) = signals.fd.read_signal().context(|| "read a signal")? {
            match (info.ssi_signo as i32, &console) {
                (libc::SIGCHLD, _) => reap(pid, &mut status)?,
                (libc::SIGWINCH, Some(console)) => console.follow_size(),
                (signal, _) if forward(signal, pidfd) => {}
                // It is gone, only its output keeps us, and we are asked to end too.
                _ if status.is_some() => console = None,
                _ => {}
            }
            if info.ssi_signo as i32 == libc::SIGCONT
                && let Some(console) = &console
            {
                console.resume();
            }
        }
    }
}

/// Reads what the container has said and, when that is READY=1, tells the host; then nobody listens any more.
fn pass_word(notify: &mut Option<Notify>, pid: Pid) {
    if let Some(ready) = notify.take_if(|notify| notify.receive_ready().unwrap_or(true)) {
        // A service manager that has gone must not end the container.
        ready.tell_host(pid).map_or_else(log::warning, drop);
    }
}

/// False if the process is gone.
fn forward(signal: i32, pidfd: BorrowedFd<'_>) -> bool {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) => true,
        Err(Errno::ESRCH) => false,
        Err(errno) => {
            log::warning(format_args!("pass signal {signal} on to the container: {errno}"));
            true
        }
    }
}

/// Reaps all children that have ended, as a subreaper must, and keeps the status of `pid`.
fn reap(pid: Pid, status: &mut Option<i32>) -> Result<()> {
    loop {
        match wait_any() {
            Ok(Some((ended, code))) if ended == pid => *status = Some(code),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(Errno::ECHILD) if status.is_some() => return Ok(()),
            Err(errno) => return Err(errno).context(|| format!("wait for process {pid}")),
        }
    }
}

/// The container's terminal and ours, joined. Dropping it gives ours its settings back.
pub struct Console {
    /// None once our side of the output is gone: the container then sees its terminal hang up, as it would if
    /// this were the terminal itself.
    pty: Option<Pty>,
    input: OwnedFd,
    output: OwnedFd,
    /// From input to the container; ends with the input, and nothing is sent for that: the container's process
    /// reads on, as under other runtimes.
    typed: Flow,
    /// From the container to output.
    shown: Flow,
    raw: Option<Raw>,
    /// How many bytes may still be shown after the end.
    rest: usize,
}

struct Pty {
    master: OwnedFd,
    /// The other end, kept open: while no process of the container has it open (a daemon that closed its
    /// streams and will open /dev/console again) poll would report a hang-up without a pause, and the end of
    /// the process is what ends the relay.
    _slave: OwnedFd,
}

impl Console {
    /// Joins the container's terminal to standard input and output; ours becomes raw, if there is one. Before
    /// the container's process starts, so that it finds the right size; `keep_size` if the config gives one.
    pub fn attach(master: OwnedFd, keep_size: bool) -> Result<Self> {
        let input = stdin().as_fd().try_clone_to_owned().context(|| "duplicate standard input")?;
        let raw = Raw::set(&input)?;
        let mut console = Self::join(master, input, open_output()?)?;
        console.raw = raw;
        if !keep_size {
            console.follow_size();
        }
        Ok(console)
    }

    fn join(master: OwnedFd, input: OwnedFd, output: OwnedFd) -> Result<Self> {
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))
            .context(|| "make the container's terminal non-blocking")?;
        let slave = tiocgptpeer(&master).context(|| "open the other end of the container's terminal")?;
        let pty = Some(Pty { master, _slave: slave });
        let (typed, shown) = (Flow::default(), Flow::default());
        Ok(Self { pty, input, output, typed, shown, raw: None, rest: 1 << 16 })
    }

    /// Gives the container's terminal the size of ours. Without one, or when it is just being closed, the size
    /// stays.
    fn follow_size(&self) {
        let ours: Result<Size, Errno> =
            tiocgwinsz(stdin()).or_else(|_| tiocgwinsz(stdout())).or_else(|_| tiocgwinsz(stderr()));
        if let (Ok(size), Some(pty)) = (ours, &self.pty)
            && let Err(errno) = tiocswinsz(&pty.master, size)
        {
            log::warning(format_args!("set the size of the container's terminal: {errno}"));
        }
    }

    /// After a stop: the shell had our terminal meanwhile, and the window may have changed.
    fn resume(&self) {
        if let Some(Err(errno)) = self.raw.as_ref().map(Raw::enter) {
            log::warning(format_args!("make the terminal raw again: {errno}"));
        }
        self.follow_size();
    }

    /// What to wait for: input, the container, output. Each direction either reads or writes, so a side that is
    /// slow holds the other up and nothing is lost.
    fn wait_for<'a>(&'a self, fds: &mut [PollFd<'a>]) {
        if !self.shown.is_empty() {
            fds[2] = PollFd::new(self.output.as_fd(), PollFlags::POLLOUT);
        }
        let Some(pty) = &self.pty else { return };
        if self.typed.is_empty() && !self.typed.ended {
            fds[0] = PollFd::new(self.input.as_fd(), PollFlags::POLLIN);
        }
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLOUT, !self.typed.is_empty());
        events.set(PollFlags::POLLIN, self.shown.is_empty());
        if !events.is_empty() {
            fds[1] = PollFd::new(pty.master.as_fd(), events);
        }
    }

    /// Carries on what can be carried.
    fn carry(&mut self, input: bool, master: bool, output: bool) {
        if input && self.typed.fill(&self.input).is_err() {
            // EIO: our terminal has hung up, or this is a background process that no shell will continue.
            self.typed.ended = true;
        }
        if output && self.shown.drain(&self.output).is_err() {
            // EPIPE, or EIO.
            self.shown = Flow::default();
            self.pty = None;
        }
        let Some(pty) = self.pty.as_ref().filter(|_| master) else { return };
        let typed = if self.typed.is_empty() { Ok(()) } else { self.typed.drain(&pty.master) };
        let shown = if self.shown.is_empty() { self.shown.fill(&pty.master) } else { Ok(()) };
        if typed.and(shown).is_err() || self.shown.ended {
            self.pty = None;
        }
    }

    /// Whether all that the container wrote is out, once its process has ended. A process that it left behind
    /// may write for ever, but what it left itself is less than `rest`: a pseudo-terminal holds some 20 kB.
    fn is_drained(&mut self) -> bool {
        self.typed.start = self.typed.end;
        self.typed.ended = true;
        if self.shown.is_empty() {
            self.carry(false, true, false);
            self.rest = self.rest.saturating_sub(self.shown.pending().len());
        }
        self.shown.is_empty() || self.rest == 0
    }
}

/// Standard output, such that a write does not block. A terminal may take less than it promised (its window
/// hangs), so it is opened again: O_NONBLOCK on what we inherited would hit everybody else who writes there.
/// A pipe or socket that poll calls writable takes a whole buffer, a file always does.
fn open_output() -> Result<OwnedFd> {
    if isatty(stdout()).unwrap_or(false) {
        let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        if let Ok(output) = open("/proc/self/fd/1", flags, Mode::empty()) {
            return Ok(output);
        }
        // EACCES: another user's terminal, after su. Then a hanging window holds us up.
    }
    stdout().as_fd().try_clone_to_owned().context(|| "duplicate standard output")
}

/// Bytes on their way in one direction.
struct Flow {
    /// PIPE_BUF bytes: what a pipe takes at once when poll calls it writable.
    buffer: [u8; 4096],
    start: usize,
    end: usize,
    ended: bool,
}

impl Default for Flow {
    fn default() -> Self {
        Self { buffer: [0; 4096], start: 0, end: 0, ended: false }
    }
}

impl Flow {
    fn pending(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn fill(&mut self, from: &OwnedFd) -> Result<(), Errno> {
        match read(from, &mut self.buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => (self.start, self.end) = (0, count),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn drain(&mut self, to: &OwnedFd) -> Result<(), Errno> {
        match write(to, self.pending()) {
            Ok(count) => self.start += count,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }
}

/// A terminal whose bytes come unchanged: the container's own terminal does the echo, ^C and line editing.
struct Raw {
    terminal: OwnedFd,
    before: libc::termios,
}

impl Raw {
    /// None if `fd` is no terminal.
    fn set(fd: &OwnedFd) -> Result<Option<Self>> {
        let before = match tcgetattr(fd) {
            Ok(before) => before.into(),
            Err(_) => return Ok(None),
        };
        let copy = || fd.try_clone().context(|| "duplicate standard input");
        let raw = Self { terminal: copy()?, before };
        // A panic aborts without running any drop, and a raw terminal would hide even its message.
        let (terminal, report) = (copy()?, std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            restore(&terminal, before);
            report(panic);
        }));
        raw.enter().context(|| "make the terminal raw")?;
        Ok(Some(raw))
    }

    fn enter(&self) -> Result<(), Errno> {
        let mut raw = Termios::from(self.before);
        cfmakeraw(&mut raw);
        tcsetattr(&self.terminal, SetArg::TCSANOW, &raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore(&self.terminal, self.before);
    }
}

fn restore(terminal: &OwnedFd, before: libc::termios) {
    // In the background the terminal is somebody else's, who set it as they need it (and SIGTTOU would stop us).
    if tcgetpgrp(terminal).is_ok_and(|foreground| foreground != getpgrp()) {
        return;
    }
    // EIO: it has hung up, and there is nothing left to restore.
    let _ = tcsetattr(terminal, SetArg::TCSANOW, &before.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use nix::unistd::pipe;

    /// A console between two pipes, with what is typed, what is shown, and the container's end.
    fn joined() -> (Console, OwnedFd, OwnedFd, OwnedFd) {
        let (input, typed) = pipe().unwrap();
        let (shown, output) = pipe().unwrap();
        let pty = openpty(None, None).unwrap();
        (Console::join(pty.master, input, output).unwrap(), typed, shown, pty.slave)
    }

    fn read_some(from: &OwnedFd) -> Vec<u8> {
        let mut bytes = [0; 8192];
        let count = read(from, &mut bytes).unwrap();
        bytes[..count].to_vec()
    }

    #[test]
    fn what_is_typed_arrives_and_the_echo_comes_back() {
        let (mut console, typed, shown, slave) = joined();
        write(&typed, b"hello\n").unwrap();
        console.carry(true, false, false);
        console.carry(false, true, false);
        assert_eq!(read_some(&slave), b"hello\n");
        console.carry(false, true, false);
        console.carry(false, false, true);
        assert_eq!(read_some(&shown), b"hello\r\n");
    }

    #[test]
    fn the_end_of_the_input_leaves_the_terminal_open() {
        let (mut console, typed, _shown, slave) = joined();
        drop(typed);
        console.carry(true, true, false);
        assert!(console.typed.ended && console.pty.is_some());
        assert_eq!(write(&slave, b"on"), Ok(2));
    }

    #[test]
    fn output_that_nobody_reads_hangs_the_terminal_up() {
        let (mut console, _typed, shown, slave) = joined();
        drop(shown);
        write(&slave, b"x").unwrap();
        console.carry(false, true, false);
        console.carry(false, false, true);
        assert!(console.pty.is_none());
        assert_eq!(write(&slave, b"x"), Err(Errno::EIO));
        assert!(console.is_drained());
    }

    #[test]
    fn what_was_written_before_the_end_is_shown() {
        let (mut console, _typed, shown, slave) = joined();
        let written = [b'x'; 10_000];
        assert_eq!(write(&slave, &written), Ok(written.len()));
        drop(slave);
        let mut seen = Vec::new();
        while !console.is_drained() {
            console.carry(false, false, true);
            seen.extend(read_some(&shown));
        }
        assert_eq!(seen, written);
    }

    #[test]
    fn a_process_left_behind_cannot_keep_the_relay() {
        const LINE: [u8; 1024] = [b'x'; 1024];
        let (mut console, _typed, shown, slave) = joined();
        for _ in 0..66 {
            write(&slave, &LINE).unwrap();
            if console.is_drained() {
                return;
            }
            console.carry(false, false, true);
            read_some(&shown);
        }
        panic!("still not drained");
    }

    #[test]
    fn a_partial_write_goes_on_where_it_stopped() {
        let pty = openpty(None, None).unwrap();
        fcntl(&pty.slave, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut flow = Flow { buffer: from_fn(|i| b'!' + (i % 89) as u8), ..Flow::default() };
        let (mut written, mut seen) = (Vec::new(), Vec::new());
        // Until the terminal takes a part; when it is just full, a little room is made.
        while flow.is_empty() || flow.start == 0 {
            assert!(written.len() < 1 << 20, "no write was partial");
            if flow.is_empty() {
                (flow.start, flow.end) = (0, flow.buffer.len());
                written.extend(flow.buffer);
            } else {
                seen.extend(read_some(&pty.master));
            }
            flow.drain(&pty.slave).unwrap();
        }
        while seen.len() < written.len() {
            seen.extend(read_some(&pty.master));
            flow.drain(&pty.slave).unwrap();
        }
        assert_eq!(seen, written);
    }
}
