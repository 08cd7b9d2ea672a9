//! Keyrings: <https://man7.org/linux/man-pages/man7/keyrings.7.html>

use std::ffi::CStr;

use super::{Result, check};

/// The serial number of a key or keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(i32);

/// `keyctl(KEYCTL_JOIN_SESSION_KEYRING, name)` — leaves the inherited session keyring for the one of this name,
/// which is made if there is none. See `KEYCTL_JOIN_SESSION_KEYRING(2const)`.
pub fn join_session_keyring(name: &CStr) -> Result<Key> {
    // SAFETY: name lives across the call.
    let key =
        check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(Key(key as i32))
}

/// `keyctl(KEYCTL_SETPERM, key, permissions)` — who may do what with a key. See `KEYCTL_SETPERM(2const)`.
pub fn setperm(key: Key, permissions: u32) -> Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, key.0, permissions) })?;
    Ok(())
}
