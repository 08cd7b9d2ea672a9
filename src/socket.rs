//! Unix sockets that callers name: connecting to them, and sending them one descriptor.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect as connect_to, sendmsg,
    socket,
};
use nix::sys::stat::Mode;

use crate::error::{Context, Result};

/// Connects to the stream socket at `path`, however long that is: a socket's address has only 108 bytes, so it is
/// named through a descriptor.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let connect = || -> Result<OwnedFd, Errno> {
        let target = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let address = UnixAddr::new(format!("/proc/self/fd/{}", target.as_raw_fd()).as_str())?;
        connect_to(socket.as_raw_fd(), &address)?;
        Ok(socket)
    };
    connect().context(|| format!("connect to {}", path.display()))
}

/// Sends one message with exactly one descriptor; `text` must not be empty.
pub fn send_fd(socket: impl AsFd, text: &[u8], fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let fds = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let socket = socket.as_fd().as_raw_fd();
    sendmsg::<()>(socket, &[IoSlice::new(text)], &control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}
