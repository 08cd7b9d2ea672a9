//! How host names are looked up.

use std::ffi::{CStr, c_char, c_int};

use super::Result;
use nix::errno::Errno;

unsafe extern "C" {
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// `__nss_configure_lookup(database, services)` — take this instead of a line of /etc/nsswitch.conf. glibc's own, in
/// `nss.h`; before any look-up. See `nsswitch.conf(5)` for the services.
///
/// A static program would otherwise load the host's modules, built for another C library, and die inside of one.
pub fn nss_configure_lookup(database: &CStr, services: &CStr) -> Result<()> {
    // SAFETY: both are C strings; the C library copies them.
    match unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}
