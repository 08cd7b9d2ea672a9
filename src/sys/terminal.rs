//! Pseudo-terminals, and passing their descriptors: `ioctl_tty(2)`, `unix(7)`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};


use super::{Result, check, check_fd};

/// `ioctl(master, TIOCSPTLCK, &0)` — lets the other end of a new pseudo-terminal be opened. See
/// `TIOCSPTLCK(2const)`.
pub fn tiocsptlck_unlock(master: impl AsFd) -> Result<()> {
    let lock: libc::c_int = 0;
    // SAFETY: lock lives across the call.
    check(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK, &lock) }.into())?;
    Ok(())
}

/// `ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)` — opens the other end of a pseudo-terminal
/// without a path. See `TIOCGPTPEER(2const)`. Since Linux 4.13.
pub fn tiocgptpeer(master: impl AsFd) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: no pointers are passed.
    check_fd(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())
}

/// `ioctl(slave, TIOCSCTTY, 0)` — makes a terminal the controlling one of the calling session leader. See
/// `TIOCSCTTY(2const)`.
pub fn tiocsctty(slave: impl AsFd) -> Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::ioctl(slave.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }.into())?;
    Ok(())
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// `ioctl(terminal, TIOCSWINSZ, &winsize)` — sets the size; the foreground process group gets SIGWINCH if it
/// changed. See `TIOCSWINSZ(2const)`.
pub fn tiocswinsz(terminal: impl AsFd, size: Size) -> Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: size lives across the call.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) }.into())?;
    Ok(())
}

/// `ioctl(terminal, TIOCGWINSZ, &winsize)` — the size. See `TIOCGWINSZ(2const)`.
pub fn tiocgwinsz(terminal: impl AsFd) -> Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: size lives across the call.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) }.into())?;
    Ok(Size { rows: size.ws_row, columns: size.ws_col })
}
