//! System calls without the C library, for what runs before it is set up: see [`super::entry`].
//!
//! Until then neither `errno` can be written nor `memcpy`, `memset`, `memcmp` or `strlen` be called, which a static
//! program finds through addresses that `_start` has yet to fill in. The compiler calls them by itself, for big
//! values that are copied or zeroed and for slices that are compared: not here, nor in the callers. What loops
//! over bytes reads and writes them as volatile, for otherwise the compiler would know the loop as one of these.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Or the number of the error.
pub type Result<T> = std::result::Result<T, i32>;

/// A descriptor that is closed when it is dropped, as an OwnedFd, which needs the C library for that.
pub struct Fd(i32);

impl AsFd for Fd {
    #[inline(always)]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open for as long as self lives.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

impl Drop for Fd {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours, and nobody uses it after this. Closing one that is not written to
        // does not fail.
        unsafe { syscall(libc::SYS_close, self.0 as usize, 0, 0, 0, 0) };
    }
}

/// The arguments and the environment for another program.
#[derive(Clone, Copy)]
pub struct Arguments<'a> {
    argv: *const *const c_char,
    envp: *const *const c_char,
    strings: std::marker::PhantomData<&'a CStr>,
}

impl Arguments<'_> {
    /// # Safety
    /// Both are arrays of C strings that end with a null pointer, and live for as long as this does.
    #[inline(always)]
    pub unsafe fn new(argv: *const *const c_char, envp: *const *const c_char) -> Self {
        Self { argv, envp, strings: std::marker::PhantomData }
    }
}

/// What tells one file from all others, and its STATX_ATTR_*.
pub struct Stat {
    pub device: (u32, u32),
    pub inode: u64,
    pub attributes: u64,
}

/// `statx(dirfd, path, flags | AT_STATX_DONT_SYNC, STATX_BASIC_STATS)` — which file it is. See `statx(2)`. Since
/// Linux 4.11.
#[inline(always)]
pub fn statx(dir: BorrowedFd<'_>, path: &CStr, flags: i32) -> Result<Stat> {
    let mut stat = MaybeUninit::<libc::statx>::uninit();
    let flags = (flags | libc::AT_STATX_DONT_SYNC) as usize;
    let (mask, into) = (libc::STATX_BASIC_STATS as usize, stat.as_mut_ptr() as usize);
    // SAFETY: path and stat live across the call.
    check(unsafe { syscall(libc::SYS_statx, number(dir), address(path), flags, mask, into) })?;
    // SAFETY: the kernel has filled it in.
    let stat = unsafe { stat.assume_init_ref() };
    Ok(Stat {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        attributes: stat.stx_attributes,
    })
}

/// `statfs(path, &buf)`, the magic number `f_type` of it — the kind of file system that a file is on. See `statfs(2)`.
#[inline(always)]
pub fn statfs_type(path: &CStr) -> Result<u32> {
    let mut statfs = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: path and statfs live across the call.
    check(unsafe { syscall(libc::SYS_statfs, address(path), statfs.as_mut_ptr() as usize, 0, 0, 0) })?;
    // SAFETY: the kernel has filled it in.
    Ok(unsafe { statfs.assume_init_ref() }.f_type as u32)
}

/// `openat(AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC)` — a directory by its path. See `open(2)`.
#[inline(always)]
pub fn open_dir(path: &CStr) -> Result<Fd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: path lives across the call.
    check_fd(unsafe {
        syscall(libc::SYS_openat, libc::AT_FDCWD as usize, address(path), flags as usize, 0, 0)
    })
}

/// `openat2(dirfd, path, {O_PATH | O_CLOEXEC, 0, resolve})` — a file with limits on how the path is walked. See
/// `openat2(2)`. Since Linux 5.6.
#[inline(always)]
pub fn openat2(dir: BorrowedFd<'_>, path: &CStr, resolve: u64) -> Result<Fd> {
    // struct open_how: flags, mode, resolve.
    let how = [(libc::O_PATH | libc::O_CLOEXEC) as u64, 0, resolve];
    let (how, size) = ((&raw const how) as usize, size_of_val(&how));
    // SAFETY: path and how live across the call, and the size is that of how.
    check_fd(unsafe { syscall(libc::SYS_openat2, number(dir), address(path), how, size, 0) })
}

/// `fsopen(fstype, FSOPEN_CLOEXEC)` — a context for a new file system. See `fsopen(2)`. Since Linux 5.2.
#[inline(always)]
pub fn fsopen(fstype: &CStr) -> Result<Fd> {
    let flags = super::mount::FSOPEN_CLOEXEC as usize;
    // SAFETY: fstype lives across the call.
    check_fd(unsafe { syscall(libc::SYS_fsopen, address(fstype), flags, 0, 0, 0) })
}

/// `fsconfig(fs, FSCONFIG_SET_STRING, key, value, 0)` — sets an option of a new file system. See `fsconfig(2)`. Since
/// Linux 5.2.
#[inline(always)]
pub fn fsconfig_set(fs: BorrowedFd<'_>, key: &CStr, value: &CStr) -> Result<()> {
    let command = super::mount::FSCONFIG_SET_STRING as usize;
    // SAFETY: key and value live across the call.
    check(unsafe { syscall(libc::SYS_fsconfig, number(fs), command, address(key), address(value), 0) })?;
    Ok(())
}

/// `fsconfig(fs, FSCONFIG_CMD_CREATE)` — makes the file system from the options set. See `fsconfig(2)`. Since
/// Linux 5.2.
#[inline(always)]
pub fn fsconfig_create(fs: BorrowedFd<'_>) -> Result<()> {
    let command = super::mount::FSCONFIG_CMD_CREATE as usize;
    // SAFETY: this command takes neither key nor value.
    check(unsafe { syscall(libc::SYS_fsconfig, number(fs), command, 0, 0, 0) })?;
    Ok(())
}

/// `fsmount(fs, FSMOUNT_CLOEXEC, attr)` — a detached mount of a created file system. See `fsmount(2)`. Since
/// Linux 5.2.
#[inline(always)]
pub fn fsmount(fs: BorrowedFd<'_>, attr: u64) -> Result<Fd> {
    let flags = super::mount::FSMOUNT_CLOEXEC as usize;
    // SAFETY: no pointers are passed.
    check_fd(unsafe { syscall(libc::SYS_fsmount, number(fs), flags, attr as usize, 0, 0) })
}

/// `execveat(dir, path, argv, envp, flags)` — runs a program in this one's place; returns only the error. See
/// `execveat(2)`. Since Linux 3.19.
#[inline(always)]
pub fn execveat(dir: BorrowedFd<'_>, path: &CStr, arguments: Arguments<'_>, flags: i32) -> i32 {
    let (argv, envp) = (arguments.argv as usize, arguments.envp as usize);
    // SAFETY: path lives across the call, argv and envp do so by what they are.
    let result =
        unsafe { syscall(libc::SYS_execveat, number(dir), address(path), argv, envp, flags as usize) };
    result.wrapping_neg() as i32
}

/// One byte that is free, the longest path that the kernel tells, and a NUL.
pub type Buffer = MaybeUninit<[u8; 1 + PATH + 1]>;
const PATH: usize = libc::PATH_MAX as usize;

/// Where a file is: the text of a link of procfs, which can be taken apart. (It does not hold the buffer, for moving
/// that would be a memcpy.)
pub struct Location<'a> {
    buffer: &'a mut Buffer,
    /// The last slash, at 1 or later.
    slash: usize,
    /// The NUL.
    end: usize,
}

impl<'a> Location<'a> {
    /// `readlink(link, buffer, size)` — an absolute path, or ENOENT. See `readlink(2)`.
    #[inline(always)]
    pub fn read(link: &CStr, buffer: &'a mut Buffer) -> Result<Self> {
        let path = buffer.as_mut_ptr() as usize + 1;
        // SAFETY: link lives across the call, and the buffer has this many bytes after its first.
        let length = check(unsafe {
            syscall(libc::SYS_readlinkat, libc::AT_FDCWD as usize, address(link), path, PATH, 0)
        })? as usize;
        let mut location = Self { buffer, slash: length, end: length.wrapping_add(1) };
        // It is no path where this process cannot reach the file: "(unreachable)/...".
        if length == 0 || location.byte(1) != b'/' {
            return Err(libc::ENOENT);
        }
        while location.byte(location.slash) != b'/' {
            location.slash = location.slash.wrapping_sub(1);
        }
        location.set_byte(location.end, 0);
        Ok(location)
    }

    #[inline(always)]
    pub fn directory(&mut self) -> &CStr {
        if self.slash == 1 {
            return c"/";
        }
        self.set_byte(self.slash, 0);
        self.text(1, self.slash)
    }

    #[inline(always)]
    pub fn name(&self) -> &CStr {
        self.text(self.slash.wrapping_add(1), self.end)
    }

    /// The name with "./" before it.
    #[inline(always)]
    pub fn dot_name(&mut self) -> &CStr {
        let from = self.slash.wrapping_sub(1);
        self.set_byte(from, b'.');
        self.set_byte(self.slash, b'/');
        self.text(from, self.end)
    }

    #[inline(always)]
    fn at(&mut self, at: usize) -> *mut u8 {
        self.buffer.as_mut_ptr().cast::<u8>().wrapping_add(at)
    }

    #[inline(always)]
    fn byte(&mut self, at: usize) -> u8 {
        // SAFETY: only bytes of the path are asked for, which the kernel has written.
        unsafe { self.at(at).read_volatile() }
    }

    #[inline(always)]
    fn set_byte(&mut self, at: usize, byte: u8) {
        // SAFETY: no position is beyond that of the NUL, for which the buffer has room.
        unsafe { self.at(at).write_volatile(byte) }
    }

    #[inline(always)]
    fn text(&self, from: usize, nul: usize) -> &CStr {
        let start = self.buffer.as_ptr().cast::<u8>().wrapping_add(from);
        // SAFETY: all positions are within the part of the buffer that was written.
        let bytes = unsafe { std::slice::from_raw_parts(start, nul.wrapping_sub(from).wrapping_add(1)) };
        // SAFETY: a NUL was written at its end; the kernel's path has none.
        unsafe { CStr::from_bytes_with_nul_unchecked(bytes) }
    }
}

#[inline(always)]
fn number(fd: BorrowedFd<'_>) -> usize {
    fd.as_raw_fd() as usize
}

#[inline(always)]
fn address(text: &CStr) -> usize {
    text.as_ptr() as usize
}

/// All results here are numbers that fit.
#[inline(always)]
fn check(result: isize) -> Result<i32> {
    let result = result as i32;
    if result < 0 { Err(result.wrapping_neg()) } else { Ok(result) }
}

#[inline(always)]
fn check_fd(result: isize) -> Result<Fd> {
    match check(result) {
        Ok(fd) => Ok(Fd(fd)),
        Err(errno) => Err(errno),
    }
}

/// The kernel's own convention: the result, or the error's number negated.
///
/// # Safety
/// What the system call does with its arguments must be sound.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn syscall(number: libc::c_long, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    // SAFETY: these are the registers of the x86-64 convention, and the kernel changes no others.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// The kernel's own convention: the result, or the error's number negated.
///
/// # Safety
/// What the system call does with its arguments must be sound.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn syscall(number: libc::c_long, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    // SAFETY: these are the registers of the arm64 convention, and the kernel changes no others.
    unsafe {
        std::arch::asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            options(nostack),
        );
    }
    result
}

/// Where nothing runs before the C library is set up, it may as well make the call.
///
/// # Safety
/// What the system call does with its arguments must be sound.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn syscall(number: libc::c_long, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    // SAFETY: the caller vouches for it.
    match unsafe { libc::syscall(number, a, b, c, d, e) } {
        -1 => -(nix::errno::Errno::last_raw() as isize),
        result => result as isize,
    }
}
