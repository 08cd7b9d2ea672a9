//! Filters of system calls: <https://man7.org/linux/man-pages/man2/seccomp.2.html>

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use seccompiler::sock_filter;

use super::{Result, check, check_fd};

/// `seccomp(SECCOMP_SET_MODE_FILTER, flags, {len, filter})` — has the kernel ask this program at each system call of
/// the calling thread and its descendants. See `seccomp(2)`. Since Linux 3.17.
pub fn set_mode_filter(flags: u32, program: &[sock_filter]) -> Result<()> {
    check(set(flags, program)).map(drop)
}

/// `seccomp(SECCOMP_SET_MODE_FILTER, flags | SECCOMP_FILTER_FLAG_NEW_LISTENER, {len, filter})` — and where another
/// process reads the calls that the program leaves to it. See `seccomp_unotify(2)`. Since Linux 5.0.
pub fn set_mode_filter_listener(flags: u32, program: &[sock_filter]) -> Result<OwnedFd> {
    check_fd(set(flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32, program))
}

fn set(flags: u32, program: &[sock_filter]) -> libc::c_long {
    // The kernel refuses more than 4096 instructions, and 0.
    let len = u16::try_from(program.len()).unwrap_or(0);
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program lives across the call, which only reads it; both types are the kernel's struct sock_filter.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) }
}

/// `seccomp(SECCOMP_SET_MODE_FILTER, flags, NULL)` — whether the kernel knows these flags: it looks at them before the
/// program, whose absence is EFAULT. See `seccomp(2)`.
pub fn knows_flags(flags: u32) -> bool {
    let none = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: a null program is never accepted.
    let refused =
        check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, none) });
    refused == Err(Errno::EFAULT)
}
