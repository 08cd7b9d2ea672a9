//! `keel create`, as the runtime spec's lifecycle tells it, in order.
//!
//! What is about to be made is written into the state first, so that a `create` that fails, or is killed at
//! any moment, is cleaned up by the code and from the facts that `delete --force` uses.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#lifecycle>

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::cli::CreateOptions;
use crate::container::{Container, State, Status};
use crate::delete::destroy;
use crate::error::{Context, Error, Result};
use crate::fds;
use crate::host::Host;
use crate::init::{self, Inherited};
use crate::linux::{hooks, lsm, mounts, net_devices, rdt, schedule, sysctl, terminal};
use crate::log;
use crate::notify;
use crate::plan::Plan;
use crate::proc::Proc;
use crate::spawn::{Spawned, spawn};
use crate::spec::Report;
use crate::sync::{FromInit, ToInit};

/// When the container's program runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// When `start` asks for it.
    OnRequest,
    /// At once, for `run`.
    AtOnce,
}

/// A container whose first process is set up (or already runs its program, for [`Start::AtOnce`]).
pub struct Created {
    pub container: Container,
    pub state: State,
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// The terminal's master, when there is a terminal and no console socket.
    pub terminal: Option<OwnedFd>,
}

pub fn create(options: &CreateOptions) -> Result<()> {
    new_container(options, Start::OnRequest).map(drop)
}

/// Creates a container, or leaves nothing behind.
pub fn new_container(options: &CreateOptions, start: Start) -> Result<Created> {
    plan_and_make(options, start).context(|| format!("create container {}", options.id))
}

fn plan_and_make(options: &CreateOptions, start: Start) -> Result<Created> {
    let host = Host::probe()?;
    let report = Report::default();
    let mut bundle = Bundle::load(&options.bundle, &report)?;
    let first_private_fd = fds::pass(&mut bundle.spec, options.preserve_fds)?;
    let notified = notify::offer(&mut bundle.spec, &options.root.join(&options.id))?;
    // All validation is here: after it only the kernel and the hooks can refuse.
    let plan = Plan::new(&bundle, &options.id, &report);
    plan.check_host(&host, &report);
    plan.check_options(options, start, &report);
    for warning in report.finish()? {
        log::warning(format_args!("config.json {warning}"));
    }
    let console_socket = options.console_socket.as_deref().map(terminal::connect_console_socket).transpose()?;

    let container = Container::create(&options.root, &options.id)?;
    let mut state = plan.first_state(&bundle, &options.id)?;
    let made = make();
    made.inspect_err(|_| {
        if let Err(e) = destroy(&container, &state) {
            log::warning(format_args!("undo create container {}: {e}", options.id));
        }
    })
}
