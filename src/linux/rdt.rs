//! /linux/intelRdt.
//!
//! JOINT: a stand-in for what delete needs of it, until the real one is merged over this file.

use crate::error::Result;

/// Removes what `create` made below /sys/fs/resctrl.
pub fn remove(_made: &serde_json::Value) -> Result<()> {
    Ok(())
}
