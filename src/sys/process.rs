//! Making processes and telling them apart.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use nix::unistd::Pid;

use super::raw::Arguments;
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

/// `pidfd_getfd(pidfd, target, 0)` — a copy of another process's descriptor, by the number that it has there. See
/// `pidfd_getfd(2)`. Since Linux 5.6.
pub fn pidfd_getfd(pidfd: impl AsFd, target: RawFd) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_fd().as_raw_fd(), target, 0) })
}

/// `pidfd_send_signal(pidfd, signal, NULL, 0)` — sends a signal, real-time ones included. See
/// `pidfd_send_signal(2)`. Since Linux 5.1.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, info, 0) })?;
    Ok(())
}

/// `ioctl(namespace, NS_GET_NSTYPE)` — which kind of namespace a file is, as its CLONE_NEW* flag; ENOTTY when it is
/// none. See `ioctl_nsfs(2)`. Since Linux 4.11.
pub fn ns_get_nstype(namespace: impl AsFd) -> Result<i32> {
    // SAFETY: this request takes no argument.
    check(unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_NSTYPE) }.into())
        .map(|flag| flag as i32)
}

/// `setdomainname(name, length)` — the NIS domain name of this process's uts namespace. See `setdomainname(2)`.
pub fn setdomainname(name: &str) -> Result<()> {
    // SAFETY: the pointer and length are those of one string, which the kernel only reads.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())?;
    Ok(())
}

/// The arguments and the environment of this process.
pub fn with_own_arguments<T>(f: impl FnOnce(Arguments<'_>) -> T) -> T {
    let argv: Vec<CString> =
        std::env::args_os().filter_map(|argument| CString::new(argument.into_vec()).ok()).collect();
    let argv: Vec<_> = argv.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: one thread, or none that changes the environment, so that nobody writes the variable meanwhile.
    let envp = unsafe { libc::environ };
    // SAFETY: argv ends with a null pointer and outlives the call with its strings; environ is kept so by libc.
    f(unsafe { Arguments::new(argv.as_ptr(), envp.cast_const().cast()) })
}

/// `getauxval(AT_EXECFN)` — the path that the kernel was given to run this program. See `getauxval(3)`.
pub fn exec_path() -> &'static CStr {
    // SAFETY: reads what the kernel left on the stack at the start.
    let path = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
    if path.is_null() {
        return c"";
    }
    // SAFETY: the kernel made it a C string, and it stays for the life of the process.
    unsafe { CStr::from_ptr(path) }
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

/// `rt_sigaction(signal, SIG_DFL)` for all signals — what execve should find, with [`unblock_signals`]: keel ignores
/// SIGPIPE, and an ignored signal would pass to the program. See `rt_sigaction(2)`.
pub fn reset_signals() -> Result<()> {
    for signal in (1..=64).filter(|&signal| signal != libc::SIGKILL && signal != libc::SIGSTOP) {
        reset_signal(signal)?;
    }
    Ok(())
}

/// `rt_sigprocmask(SIG_SETMASK, {})` — lets all signals in; a mask would pass to the program. See
/// `rt_sigprocmask(2)`.
pub fn unblock_signals() -> Result<()> {
    nix::sys::signal::SigSet::empty().thread_set_mask()
}

/// The three sets that capset sets at once, a bit for each capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// The kernel's `struct __user_cap_header_struct`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

const CAP_HEADER: CapHeader = CapHeader { version: 0x2008_0522, pid: 0 };

/// `capget({_LINUX_CAPABILITY_VERSION_3, 0}, data)` — the calling thread's capabilities. See `capget(2)`.
pub fn capget() -> Result<Caps> {
    let mut header = CAP_HEADER;
    // struct __user_cap_data_struct[2]: effective, permitted, inheritable; the low 32 bits first.
    let mut data = [[0u32; 3]; 2];
    // SAFETY: header and data live across the call, and version 3 means two elements.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let set = |i: usize| u64::from(data[0][i]) | u64::from(data[1][i]) << 32;
    Ok(Caps { effective: set(0), permitted: set(1), inheritable: set(2) })
}

/// `capset({_LINUX_CAPABILITY_VERSION_3, 0}, data)` — sets the calling thread's capabilities. See `capset(2)`.
pub fn capset(caps: Caps) -> Result<()> {
    let mut header = CAP_HEADER;
    let half =
        |shift: u32| [caps.effective, caps.permitted, caps.inheritable].map(|set| (set >> shift) as u32);
    let data = [half(0), half(32)];
    // SAFETY: header and data live across the call, and version 3 means two elements.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })?;
    Ok(())
}

/// `prctl(PR_CAPBSET_READ, cap)` — whether the bounding set has a capability; EINVAL beyond the kernel's last.
/// See `PR_CAPBSET_READ(2const)`.
pub fn capbset_read(cap: u32) -> Result<bool> {
    Ok(prctl(libc::PR_CAPBSET_READ, cap, 0)? != 0)
}

/// `prctl(PR_CAPBSET_DROP, cap)` — takes a capability from the bounding set for good; EINVAL beyond the kernel's
/// last. See `PR_CAPBSET_DROP(2const)`.
pub fn capbset_drop(cap: u32) -> Result<()> {
    prctl(libc::PR_CAPBSET_DROP, cap, 0).map(drop)
}

/// `prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)` — empties the ambient set. See `PR_CAP_AMBIENT(2const)`.
/// Since Linux 4.3.
pub fn cap_ambient_clear_all() -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u32, 0).map(drop)
}

/// `prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap)` — adds a permitted and inheritable capability to the ambient
/// set. See `PR_CAP_AMBIENT(2const)`. Since Linux 4.3.
pub fn cap_ambient_raise(cap: u32) -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u32, cap).map(drop)
}

/// The prctl options above: numbers only, and the rest must be 0.
fn prctl(option: i32, arg2: u32, arg3: u32) -> Result<libc::c_long> {
    const UNUSED: libc::c_ulong = 0;
    let (arg2, arg3) = (libc::c_ulong::from(arg2), libc::c_ulong::from(arg3));
    // SAFETY: no pointers are passed.
    check(unsafe { libc::prctl(option, arg2, arg3, UNUSED, UNUSED) }.into())
}

/// `getcwd(buffer, sizeof buffer)` — the working directory as the kernel tells it: `(unreachable)` comes first when
/// it is not below the root. glibc's function hides that. See `getcwd(2)`.
pub fn getcwd() -> Result<Vec<u8>> {
    let mut buffer = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes no more than the length that is given.
    let length = check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    buffer.truncate((length as usize).saturating_sub(1)); // the NUL
    Ok(buffer)
}

/// `prlimit(pid, resource, {soft, hard}, NULL)` — sets a resource limit of another process. See `prlimit(2)`. Since
/// Linux 2.6.36.
pub fn prlimit(pid: Pid, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let old = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: limit lives across the call, and a null pointer for the old one is allowed.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid.as_raw(), resource, &limit, old) })?;
    Ok(())
}

/// The standard streams.
pub fn stdio() -> [BorrowedFd<'static>; 3] {
    // SAFETY: 0, 1 and 2 are open for as long as the program runs: Rust's start-up opens /dev/null where one is
    // missing, and nothing closes them.
    [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// `rt_sigaction(signal, SIG_DFL)` — gives one signal its default action. See `rt_sigaction(2)`.
pub fn reset_signal(signal: i32) -> Result<()> {
    /// The kernel's struct sigaction: handler, flags, restorer, mask; all zeroes is SIG_DFL.
    const DEFAULT: [u64; 4] = [0; 4];
    let old = std::ptr::null_mut::<u64>();
    // SAFETY: DEFAULT is as large as the kernel's struct on every 64-bit architecture, 8 is its mask's size.
    check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &DEFAULT, old, 8) })?;
    Ok(())
}

/// `waitpid(-1, &status, WNOHANG)` — takes the status of one child that has ended: its exit code, or 128 + n if
/// signal n killed it. None while every child lives, ECHILD without any. (nix's wrapper loses the status of a
/// process that a real-time signal killed.) See `waitpid(2)`.
pub fn wait_any() -> Result<Option<(Pid, i32)>> {
    let mut status = 0;
    // SAFETY: status lives across the call.
    let pid = check(unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) }.into())?;
    let code =
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    Ok((pid != 0).then_some((Pid::from_raw(pid as i32), code)))
}
