//! Network interfaces and netlink sockets.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use super::{Result, check};

/// `ioctl(socket, SIOCSIFFLAGS, {name, IFF_UP})` — brings up an interface of the network namespace that the socket was
/// made in. See `netdevice(7)`.
pub fn interface_up(socket: impl AsFd, name: &str) -> Result<()> {
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte fewer than the field holds: the zero at its end stays.
    let room = &mut request.ifr_name[..libc::IFNAMSIZ - 1];
    let room = room.get_mut(..name.len()).ok_or(Errno::ENAMETOOLONG)?;
    for (to, from) in room.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: request lives across the call, and this request reads an ifreq.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &request) }.into())?;
    Ok(())
}

/// `setsockopt(socket, SOL_NETLINK, option, &value, sizeof value)` — sets an option of a netlink socket. See
/// `netlink(7)`.
pub fn set_netlink_option(socket: impl AsFd, option: i32, value: i32) -> Result<()> {
    let (socket, size) = (socket.as_fd().as_raw_fd(), size_of::<i32>() as libc::socklen_t);
    let value = (&raw const value).cast();
    // SAFETY: value points to what lives across the call, and the size is that of it.
    check(unsafe { libc::setsockopt(socket, libc::SOL_NETLINK, option, value, size) }.into())?;
    Ok(())
}
