//! `keel start`: lets a created container run its program.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::container::{Container, State, Status};
use crate::delete::{destroy_unless_gone, wait_for_init};
use crate::error::{Context, Error, Kind, Result};
use crate::gate;
use crate::linux::hooks;
use crate::log;
use crate::notify::Notify;

pub fn start(root: &Path, id: &str) -> Result<()> {
    open_gate(root, id).context(|| format!("start container {id}"))
}

fn open_gate(root: &Path, id: &str) -> Result<()> {
    let mut container = Container::open(root, id)?;
    // Before the program runs, which may be ready at once.
    let notify = Notify::listen(&container)?;
    let gate = container.connect_start_socket().map_err(|error| match error.errno() {
        // Nobody listens yet, any more, or ever.
        Some(Errno::ECONNREFUSED | Errno::ENOENT) => refusal(&container),
        _ => error,
    })?;
    // Read while init executes the program: connecting was asking.
    let state = container.state()?;
    gate::await_execution(gate).inspect_err(|error| after_failure(&mut container, &state, error))?;
    run_poststart(&mut container, &state)?;
    if let Some(notify) = notify
        && let Some(pidfd) = state.init()?
    {
        notify.relay(Pid::from_raw(state.pid), pidfd.as_fd())?;
    }
    Ok(())
}

fn refusal(container: &Container) -> Error {
    match container.state().and_then(|state| container.status(&state)) {
        Ok(Status::Creating) => {
            Error::of_kind(Kind::WrongStatus, "cannot start a container that is creating")
        }
        _ => gate::already_started(),
    }
}

/// A program that could not be executed leaves a stopped container, as with runc; a startContainer hook that failed
/// none, as the spec has it. Init is on its way out, and the caller must not find it alive.
fn after_failure(container: &mut Container, state: &State, error: &Error) {
    let by_hook = error.names().is_some_and(|field| field.as_str().starts_with("/hooks/"));
    match error.kind() {
        // Another start was first, and this one has no business with the container.
        Kind::WrongStatus => {}
        _ if by_hook => destroy_failed(container, state),
        _ => wait_for_init(state).unwrap_or_else(log::warning),
    }
}

/// The poststart hooks, after the program has been executed; if one fails the container is destroyed, as the spec
/// has it.
pub fn run_poststart(container: &mut Container, state: &State) -> Result<()> {
    if state.poststart.is_empty() {
        return Ok(());
    }
    hooks::run(&state.poststart, &state.oci_state(Status::Running, state.pid), &[])
        .inspect_err(|_| destroy_failed(container, state))
}

fn destroy_failed(container: &mut Container, state: &State) {
    destroy_unless_gone(container, state).unwrap_or_else(log::warning);
}
