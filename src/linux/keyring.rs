//! The session keyring: the container gets one of its own, so that it cannot reach the keys of whoever called the
//! runtime. No section of config.json; `--no-new-keyring` leaves it out.
//!
//! [session-keyring(7)](https://man7.org/linux/man-pages/man7/session-keyring.7.html)

use std::ffi::CString;

use nix::errno::Errno;

use crate::error::{Context, Result};
use crate::log;
use crate::sys::keyring::{join_session_keyring, setperm};

/// Whoever has the keyring in its session may do all; its owner may view, read, link and search it. Search is what the
/// kernel does not give by default, and what exec needs to join the keyring by its name later.
const PERMISSIONS: u32 = 0x3f00_0000 | 0x0001_0000 | 0x0002_0000 | 0x0010_0000 | 0x0008_0000;

/// Joins the container's keyring, `_ses.<id>`, which is made if there is none. As root, before the user is set: exec
/// looks for a keyring that root owns.
pub fn join(id: &str) -> Result<()> {
    let name = format!("_ses.{id}");
    let keyring =
        CString::new(name.as_str()).map_err(|_| Errno::EINVAL).and_then(|name| join_session_keyring(&name));
    match keyring {
        // Marginal protection, and not worth a container: a kernel without keys, a runtime whose own seccomp filter
        // forbids them (the container inherits it), or a user with its full number of keys.
        Err(errno @ (Errno::ENOSYS | Errno::EPERM | Errno::EDQUOT)) => {
            log::warning(format_args!("join session keyring {name}, so the caller's stays: {errno}"));
            Ok(())
        }
        // From here on any error is one: a keyring with wrong permissions is worse than none.
        keyring => keyring
            .and_then(|keyring| setperm(keyring, PERMISSIONS))
            .context(|| format!("join session keyring {name}")),
    }
}
