//! Attributes and propagation of a mount, as its options ask for them.
//!
//! [mount_setattr(2)](https://man7.org/linux/man-pages/man2/mount_setattr.2.html)

use std::os::fd::AsFd;

use nix::errno::Errno;

use crate::error::{Context, Result};
use crate::sys::mount::{Change, mount_setattr};

pub(super) fn set(mount: impl AsFd, recursive: bool, change: Change) -> Result<()> {
    if change == Change::default() {
        return Ok(());
    }
    let changed = mount_setattr(mount, recursive, change);
    changed.context(|| {
        let below = if recursive { " and below" } else { "" };
        format!(
            "set attributes {:#x}, clear {:#x}, propagation {:#x}{below}{}",
            change.set,
            change.clear,
            change.propagation,
            match changed {
                Err(Errno::EPERM) => " (a user namespace cannot take a flag off what the host has mounted)",
                _ => "",
            }
        )
    })
}
