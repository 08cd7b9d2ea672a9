//! All unsafe code of the project: thin wrappers over the system calls that nix does not have.
//!
//! A wrapper keeps the kernel's name and order, takes borrowed file descriptors and paths, and returns
//! owned ones or an [`Errno`]. It never logs, retries or decides.
#![allow(unsafe_code)]

pub mod bpf;
pub mod entry;
pub mod fs;
pub mod keyring;
pub mod mount;
pub mod names;
pub mod net;
pub mod process;
pub mod raw;
pub mod schedule;
pub mod seccomp;
pub mod terminal;

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

pub type Result<T> = std::result::Result<T, Errno>;

/// A system call's result, or the errno that libc left.
fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// A system call's result as the file descriptor that it made.
fn check_fd(result: libc::c_long) -> Result<OwnedFd> {
    let fd = check(result)? as RawFd;
    // SAFETY: the kernel has just made this descriptor for us and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A path as the kernel takes it; a NUL inside is EINVAL.
fn c_path(path: &std::path::Path) -> Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}
