//! Requests to the kernel's network configuration: `rtnetlink(7)`, message format in `netlink(7)`.
//!
//! Only what moving a device needs; the libraries for it are many times this size.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, send, socket,
};

use crate::error::{Context, Error, Result};
use crate::sys::net::set_netlink_option;

/// A rtnetlink socket. It stays in the network namespace in which it was opened, wherever its process goes.
pub struct Route {
    socket: OwnedFd,
}

impl Route {
    pub fn open() -> Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .context(|| "open a rtnetlink socket")?;
        let route = Self { socket };
        // The reason of an error in words, but not the whole request before it; a dump of what was asked for only.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            route.set(option, 1)?;
        }
        Ok(route)
    }

    /// Also receives the namespace's news about devices, from now on.
    pub fn watch_links(&self) -> Result<()> {
        self.set(libc::NETLINK_ADD_MEMBERSHIP, libc::RTNLGRP_LINK as i32)
    }

    fn set(&self, option: i32, value: i32) -> Result<()> {
        set_netlink_option(&self.socket, option, value).context(|| format!("set netlink option {option}"))
    }

    /// Sends a request and hands over the type and payload of each message up to the kernel's verdict on it.
    /// EINTR when a change interrupted a dump, which may then lack something.
    pub fn request(&self, message: Message, mut each: impl FnMut(u16, &[u8])) -> Result<()> {
        let socket = self.socket.as_raw_fd();
        send(socket, &message.finish(), MsgFlags::empty()).context(|| "send to rtnetlink")?;
        let mut buffer = vec![0; 32 << 10]; // bytes, more than the kernel puts into one datagram
        let mut interrupted = false;
        loop {
            let (length, sender) =
                recvfrom::<NetlinkAddr>(socket, &mut buffer).context(|| "receive from rtnetlink")?;
            // Only the kernel has port 0; a process in the container's network namespace could pose as it.
            if sender.is_none_or(|sender| sender.pid() != 0) {
                continue;
            }
            for (kind, flags, payload) in messages(&buffer[..length]) {
                interrupted |= flags & libc::NLM_F_DUMP_INTR != 0;
                let words = match i32::from(kind) {
                    // Behind the errno and the header of the request.
                    libc::NLMSG_ERROR => 4 + HEADER,
                    libc::NLMSG_DONE => 4,
                    _ => {
                        each(kind, payload);
                        continue;
                    }
                };
                return match word(payload, 0) {
                    Some(0) if interrupted => Err(Errno::EINTR.into()),
                    Some(0) => Ok(()),
                    Some(errno) => Err(refusal(-errno, attributes(payload, words))),
                    None => Err(Errno::EBADMSG).context(|| "receive from rtnetlink"),
                };
            }
        }
    }
}

/// The kernel's error, with its reason in words if it gives one.
fn refusal<'a>(errno: i32, mut attributes: impl Iterator<Item = (u16, &'a [u8])>) -> Error {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let errno = Errno::from_raw(errno);
    match attributes.find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG) {
        Some((_, text)) => {
            let text = String::from_utf8_lossy(text);
            Error::from(errno).because(text.trim_end_matches('\0').into())
        }
        None => errno.into(),
    }
}

/// The bytes of a nlmsghdr: length, type, flags, sequence number, port.
const HEADER: usize = 16;

/// A request in the making.
pub struct Message(Vec<u8>);

impl Message {
    /// `header` is the struct that every message of this type begins with, `ifinfomsg` for example.
    pub fn new(kind: u16, flags: i32, header: &[u8]) -> Self {
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        let mut bytes = vec![0; 4]; // the length, known at the end
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(header);
        Self(bytes)
    }

    pub fn attribute(mut self, kind: u16, data: &[u8]) -> Self {
        self.0.extend((4 + data.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Type, flags and payload of each message of a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, i32, &[u8])> {
    std::iter::from_fn(move || {
        let message = bytes.get(..word(bytes, 0)? as usize)?;
        bytes = bytes.get(message.len().next_multiple_of(4)..).unwrap_or_default();
        Some((half(message, 4)?, half(message, 6)?.into(), message.get(HEADER..)?))
    })
}

/// Type and data of each attribute behind a payload's own header.
pub fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut bytes = payload.get(header..).unwrap_or_default();
    std::iter::from_fn(move || {
        const TYPE: u16 = 0x3fff; // without its two flags
        let attribute = bytes.get(..half(bytes, 0)?.into())?;
        bytes = bytes.get(attribute.len().next_multiple_of(4)..).unwrap_or_default();
        Some((half(attribute, 2)? & TYPE, attribute.get(4..)?))
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The 32 bits at this offset.
pub fn word(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_padded_and_read_back() {
        let message =
            || Message::new(7, 0x300, &[1, 2, 3, 4]).attribute(3, b"eth0\0").attribute(0x8005, &[9; 4]);
        let bytes = message().finish();
        assert_eq!(bytes.len(), 16 + 4 + (4 + 8) + (4 + 4));
        let datagram = [bytes, message().finish()].concat();
        let read: Vec<_> = messages(&datagram).collect();
        assert_eq!(read.len(), 2);
        let (kind, flags, payload) = read[1];
        assert_eq!((kind, flags), (7, 0x301));
        let attributes: Vec<_> = attributes(payload, 4).collect();
        assert_eq!(attributes, [(3, &b"eth0\0"[..]), (5, &[9; 4][..])]);
    }

    #[test]
    fn lengths_that_do_not_fit_end_the_reading() {
        let short = |length: u16| [&length.to_ne_bytes()[..], &[0; 6]].concat();
        for length in [0, 3, 9, u16::MAX] {
            assert_eq!(attributes(&short(length), 0).count(), 0);
            assert_eq!(messages(&short(length)).count(), 0);
        }
    }

    #[test]
    fn the_kernels_words_stand_before_its_errno() {
        let message = Message::new(0, 0, &[]).attribute(1, b"device is busy\0").finish();
        let error = refusal(16, attributes(&message, HEADER));
        assert_eq!(error.to_string(), "device is busy: Device or resource busy (16)");
    }
}
