//! /hooks.
//!
//! JOINT: a stand-in for what the commands need of it, until the real one is merged over this file.

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

#[derive(Serialize, Deserialize)]
pub struct Hook {
    pub path: String,
}

/// Runs a hook with the container's state on its stdin.
pub fn run(hook: &Hook, state: &[u8]) -> Result<()> {
    let what = || format!("run hook {}", hook.path);
    let mut child =
        std::process::Command::new(&hook.path).stdin(std::process::Stdio::piped()).spawn().context(what)?;
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), state).context(what)?;
    match child.wait().context(what)? {
        status if status.success() => Ok(()),
        status => Err(Error::new(format!("run hook {}: {status}", hook.path))),
    }
}
