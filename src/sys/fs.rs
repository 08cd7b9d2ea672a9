//! Files and directories by descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::{Result, c_path, check, check_fd};

bitflags::bitflags! {
    /// How openat2 walks a path.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Resolve: u64 {
        const NO_XDEV = libc::RESOLVE_NO_XDEV;
        const NO_MAGICLINKS = libc::RESOLVE_NO_MAGICLINKS;
        const NO_SYMLINKS = libc::RESOLVE_NO_SYMLINKS;
        const BENEATH = libc::RESOLVE_BENEATH;
        const IN_ROOT = libc::RESOLVE_IN_ROOT;
    }
}

/// `openat2(dirfd, path, {flags | O_CLOEXEC, mode, resolve})` — opens a file with limits on how the path is
/// walked. EAGAIN when a rename raced the walk. See `openat2(2)`. Since Linux 5.6.
pub fn openat2(dir: impl AsFd, path: &Path, flags: i32, mode: u32, resolve: Resolve) -> Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: open_how is plain data for which all zeroes is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = resolve.bits();
    // SAFETY: path and how live across the call, and the size is that of how.
    check_fd(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            &how,
            size_of::<libc::open_how>(),
        )
    })
}

/// `flistxattr(fd, list, size)` — the names of a file's extended attributes, each ended by a NUL; ERANGE when
/// `list` is too small. See `flistxattr(2)`.
pub fn flistxattr(fd: impl AsFd, list: &mut [u8]) -> Result<usize> {
    // SAFETY: list is writable and as long as said.
    let size = unsafe { libc::flistxattr(fd.as_fd().as_raw_fd(), list.as_mut_ptr().cast(), list.len()) };
    Ok(check(size as libc::c_long)? as usize)
}

/// `fgetxattr(fd, name, value, size)` — the value of an extended attribute; ERANGE when `value` is too small. See
/// `fgetxattr(2)`.
pub fn fgetxattr(fd: impl AsFd, name: &CStr, value: &mut [u8]) -> Result<usize> {
    let (fd, into) = (fd.as_fd().as_raw_fd(), value.as_mut_ptr().cast());
    // SAFETY: name is a C string, value is writable and as long as said.
    let size = unsafe { libc::fgetxattr(fd, name.as_ptr(), into, value.len()) };
    Ok(check(size as libc::c_long)? as usize)
}

/// `fsetxattr(fd, name, value, size, 0)` — sets an extended attribute. See `fsetxattr(2)`.
pub fn fsetxattr(fd: impl AsFd, name: &CStr, value: &[u8]) -> Result<()> {
    let (fd, from) = (fd.as_fd().as_raw_fd(), value.as_ptr().cast());
    // SAFETY: name is a C string, value is as long as said.
    check(unsafe { libc::fsetxattr(fd, name.as_ptr(), from, value.len(), 0) }.into())?;
    Ok(())
}

/// `fremovexattr(fd, name)` — removes an extended attribute. See `fremovexattr(2)`.
pub fn fremovexattr(fd: impl AsFd, name: &CStr) -> Result<()> {
    // SAFETY: name is a C string.
    check(unsafe { libc::fremovexattr(fd.as_fd().as_raw_fd(), name.as_ptr()) }.into())?;
    Ok(())
}

/// `close_range(first, ~0, CLOSE_RANGE_CLOEXEC)` — marks every descriptor from `first` on to be closed by
/// execve. See `close_range(2)`. Since Linux 5.11.
pub fn close_range_cloexec(first: u32) -> Result<()> {
    // SAFETY: only flags of descriptors change; no descriptor becomes invalid.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// `close_range(first, ~0, 0)` — closes every descriptor from `first` on. Sound only while none of them is owned
/// by anything in this process: at its start. See `close_range(2)`. Since Linux 5.9.
pub fn close_range(first: u32) -> Result<()> {
    // SAFETY: nothing in this process owns a descriptor yet but stdio.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// `close_range` around `kept` — closes every descriptor from `first` on but those. Their owners in this process
/// must never use nor drop them any more: for a process that is about to become another program.
pub fn close_all_but(first: u32, kept: &[RawFd]) -> Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|&fd| fd as u32).filter(|&fd| fd >= first).collect();
    kept.sort_unstable();
    let mut from = first;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > from {
            let to = if fd == u32::MAX { fd } else { fd - 1 };
            // SAFETY: the caller vouches that nobody uses them again.
            check(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) })?;
        }
        from = fd.saturating_add(1);
    }
    Ok(())
}

/// `fcntl(fd, F_GETFD)` — whether a descriptor of this number is open. See `fcntl(2)`.
pub fn is_open(fd: u32) -> bool {
    // SAFETY: reads the flags of a number, open or not.
    check(unsafe { libc::fcntl(fd as i32, libc::F_GETFD) }.into()).is_ok()
}

/// `fcntl(fd, F_OFD_SETLK, {F_WRLCK, whole file})` — takes a write lock that belongs to the open file
/// description, so that every process that inherits it holds it. See `fcntl(2)`. Since Linux 3.15.
pub fn ofd_write_lock(fd: impl AsFd) -> Result<()> {
    let lock = whole_file(libc::F_WRLCK);
    // SAFETY: lock lives across the call.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &lock) }.into())?;
    Ok(())
}

/// `fcntl(fd, F_OFD_GETLK, {F_WRLCK, whole file})` — whether another open file description holds a lock.
/// See `fcntl(2)`. Since Linux 3.15.
pub fn ofd_is_locked(fd: impl AsFd) -> Result<bool> {
    let mut lock = whole_file(libc::F_WRLCK);
    // SAFETY: lock lives across the call.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &mut lock) }.into())?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn whole_file(kind: i32) -> libc::flock {
    // SAFETY: flock is plain data for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock
}
