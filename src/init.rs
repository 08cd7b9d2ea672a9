//! The container's first process, from its first instruction to execve, in order.
//!
//! It is a copy of `create` in new namespaces, with the plan in memory and the descriptors of [`Inherited`].
//! Whatever goes wrong is told to create (before the commit) or to `start` (after it). It never returns: it
//! ends in execve or in `_exit`.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{execve, getpid, setsid};

use crate::container::{State, Status};
use crate::error::{Context, Error, Result};
use crate::gate::{self, Caller};
use crate::linux::namespaces::{Joined, Kind};
use crate::linux::*;
use crate::plan::{Plan, Process};
use crate::proc::Proc;
use crate::root::Root;
use crate::sync::{InitEnd, ToInit};
use crate::sys::fs::close_range_cloexec;
use crate::sys::process::{exit_now, reset_signals};

/// What was opened on the host, before the clone, for init's use.
pub struct Inherited {
    pub joined: Joined,
    pub root: OwnedFd,
    pub mount_sources: Vec<Option<OwnedFd>>,
    /// Where the terminal's master goes; without it, to create.
    pub console_socket: Option<OwnedFd>,
    /// Where `start` knocks; without it the program starts at once.
    pub gate: Option<OwnedFd>,
    /// Its lock says "created" for as long as init holds it; execve closes it.
    pub created_lock: Option<OwnedFd>,
    /// The first descriptor that the program does not get.
    pub first_private_fd: u32,
    pub keep_keyring: bool,
    pub no_pivot: bool,
}

/// All of init's life.
pub fn run(plan: &Plan, state: &State, inherited: Inherited, create: InitEnd) -> Infallible {
    // Never dropped, and so at hand for the panic hook: unwinding would run create's code in this copy of it.
    let create: &'static InitEnd = Box::leak(Box::new(create));
    std::panic::set_hook(Box::new(|panic| {
        create.failed(&Error::new(format!("init panicked: {panic}")));
        exit_now(1);
    }));
    let error = match set_up(plan, state, inherited, create) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    create.failed(&error);
    exit_now(1)
}
