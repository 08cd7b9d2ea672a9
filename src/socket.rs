//! Unix sockets that callers name: connecting to them, and sending them one descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect as connect_to, recvmsg, sendmsg, socket,
};
use nix::sys::stat::Mode;

use crate::error::{Context, Result};
use crate::sys::process::adopt_fd;

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

/// Sends a text of any length over a stream, and a descriptor with its first part.
pub fn send_all_with_fd(socket: impl AsFd, text: &[u8], fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let fds = [fd.as_raw_fd()];
    let mut control = &[ControlMessage::ScmRights(&fds)][..];
    let mut rest = text;
    while !rest.is_empty() {
        let socket = socket.as_fd().as_raw_fd();
        match sendmsg::<()>(socket, &[IoSlice::new(rest)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(sent) => (rest, control) = (&rest[sent..], &[]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Receives one message: its length, 0 at the end, and the descriptor that came with it.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut control = cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags) {
        Err(Errno::EINTR) => return receive(socket, buffer),
        other => other?,
    };
    let mut fd = None;
    // Of a truncated message: what RLIMIT_NOFILE does not let this process have the kernel drops without a word.
    for control in message.cmsgs().map_err(|_| Errno::EMFILE)? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            fd = fds.first().map(|&fd| adopt_fd(fd)).transpose()?;
        }
    }
    Ok((message.bytes, fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, bind, listen, socketpair};
    use nix::sys::stat::fstat;

    #[test]
    fn a_message_carries_one_descriptor() {
        let (mine, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let file = open("/dev/null", OFlag::O_RDONLY, Mode::empty()).unwrap();
        send_fd(&mine, b"text", file.as_fd()).unwrap();
        let mut buffer = [0; 16];
        let (length, received) = receive(&theirs, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"text");
        assert_eq!(fstat(received.unwrap()).unwrap().st_rdev, fstat(&file).unwrap().st_rdev);
    }

    #[test]
    fn a_descriptor_that_is_lost_on_the_way_is_an_error() {
        let (mine, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let fds = [mine.as_raw_fd(); 3];
        let (text, control) = ([IoSlice::new(b"x")], [ControlMessage::ScmRights(&fds)]);
        sendmsg::<()>(mine.as_raw_fd(), &text, &control, MsgFlags::empty(), None).unwrap();
        assert_eq!(receive(&theirs, &mut [0]).unwrap_err(), Errno::EMFILE);
    }

    #[test]
    fn a_socket_may_lie_deep() {
        let dir = std::env::temp_dir().join(format!("keel-socket-{}", std::process::id()));
        let deep = dir.join("d".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let parent = open(&deep, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let short = format!("/proc/self/fd/{}/s", parent.as_raw_fd());
        bind(listener.as_raw_fd(), &UnixAddr::new(short.as_str()).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        assert!(connect(&deep.join("s")).is_ok());
        assert_eq!(connect(&deep.join("t")).unwrap_err().errno(), Some(Errno::ENOENT));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
