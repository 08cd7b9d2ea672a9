//! Pseudo-terminals, and passing their descriptors: `ioctl_tty(2)`, `unix(7)`.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

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

/// `sendmsg(socket, {data, SCM_RIGHTS [fd]}, MSG_NOSIGNAL)` — sends one message with one descriptor. See
/// `unix(7)`.
pub fn send_fd(socket: impl AsFd, data: &[u8], fd: impl AsFd) -> Result<()> {
    let (socket, fds) = (socket.as_fd().as_raw_fd(), [fd.as_fd().as_raw_fd()]);
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket, &[IoSlice::new(data)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// `recvmsg(socket, MSG_CMSG_CLOEXEC)` — receives one message with one descriptor; None when the other side
/// closed, EBADMSG when the message has another number of descriptors. See `unix(7)`.
pub fn receive_fd(socket: impl AsFd) -> Result<Option<OwnedFd>> {
    let mut data = [0; 64];
    let mut iov = [IoSliceMut::new(&mut data)];
    let mut space = nix::cmsg_space!([i32; 4]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these descriptors for us and nothing else knows their numbers.
            fds.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    match (fds.pop(), fds.is_empty(), message.bytes) {
        (Some(fd), true, _) => Ok(Some(fd)),
        (None, _, 0) => Ok(None),
        _ => Err(Errno::EBADMSG),
    }
}
