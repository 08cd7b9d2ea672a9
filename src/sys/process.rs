//! Making processes and telling them apart.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::unistd::Pid;

use super::{Result, check, check_fd};

/// Which side of a clone this is.
pub enum Clone {
    Parent { pid: Pid, pidfd: OwnedFd },
    Child,
}

/// `clone3({flags | CLONE_PIDFD, SIGCHLD, cgroup})` — a copy of this process in new namespaces, born inside the
/// cgroup. Sound because the program has one thread whenever it calls this. See `clone3(2)`. Since Linux 5.7.
pub fn clone3(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<Clone> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u32 as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    if flags & libc::CLONE_PARENT == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: args and pidfd live across the call; without CLONE_VM the child has its own memory, and with
    // one thread no lock can be left taken in it.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Clone::Child);
    }
    // SAFETY: the kernel stored a new descriptor in pidfd, which nothing else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Clone::Parent { pid: Pid::from_raw(pid as i32), pidfd })
}

/// libc's constant of this name overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `pidfd_open(pid, 0)` — a descriptor that names this process and no later one. See `pidfd_open(2)`. Since
/// Linux 5.3.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// `pidfd_send_signal(pidfd, signal, NULL, 0)` — sends a signal, real-time ones included. See
/// `pidfd_send_signal(2)`. Since Linux 5.1.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, info, 0) })?;
    Ok(())
}

/// `pidfd_getfd(pidfd, fd, 0)` — a duplicate of another process's descriptor. See `pidfd_getfd(2)`. Since Linux
/// 5.6.
pub fn pidfd_getfd(pidfd: impl AsFd, fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_fd().as_raw_fd(), fd, 0) })
}

/// `execveat(file, "", argv, envp, AT_EMPTY_PATH)` — runs an open file; returns only an error. See `execveat(2)`.
/// Since Linux 3.19.
pub fn fexecve(file: impl AsFd, argv: &[&CStr], envp: &[&CStr]) -> nix::errno::Errno {
    let pointers = |strings: &[&CStr]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: both arrays end with a null pointer and outlive the call, as do the strings in them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(result).expect_err("execveat returns only on error")
}

/// `int main()` — what the C library calls; its return value is the exit code. For a crate with `no_main`, where the
/// standard library prepares nothing: no signal stack, SIGPIPE as inherited, 0 to 2 open or not.
#[macro_export]
macro_rules! c_main {
    ($run:path) => {
        // SAFETY: the linker would refuse a second symbol of this name; the C library calls it once, with one thread.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "C" fn main() -> i32 {
            $run()
        }
    };
}

/// `_exit(status)` — ends this process at once: no destructors, no exit handlers. See `_exit(2)`.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(status) }
}

/// Takes ownership of a descriptor that was inherited at a known number.
///
/// # Errors
/// EBADF when it is not open.
pub fn adopt_fd(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_GETFD reads the flags of a number, open or not.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into())?;
    // SAFETY: it is open, and the caller is the only one to name it by this number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `signal(signal, SIG_IGN)` — ignores a signal until [`reset_signals`]. See `signal(2)`.
pub fn signal_ignore(signal: i32) {
    // SAFETY: no handler is installed. It fails for numbers that are no signals only, and changes nothing then.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// `rt_sigaction(signal, SIG_DFL)` for all signals and an empty mask — what execve should find. Rust's start-up
/// ignores SIGPIPE, and an ignored signal or a mask would pass to the program. See `rt_sigaction(2)`.
pub fn reset_signals() -> Result<()> {
    /// The kernel's struct sigaction: handler, flags, restorer, mask; all zeroes is SIG_DFL.
    const DEFAULT: [u64; 4] = [0; 4];
    for signal in (1..=64).filter(|&signal| signal != libc::SIGKILL && signal != libc::SIGSTOP) {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: DEFAULT is as large as the kernel's struct on every 64-bit architecture, 8 is its mask's size.
        check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &DEFAULT, old, 8) })?;
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()
}
