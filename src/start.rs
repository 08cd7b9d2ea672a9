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
use crate::proc::is_ending;

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
    let executed = match (gate::await_execution(gate), oom_kill(&state)?) {
        // What a limit that is too small for execve, or for the program's first instructions, ends without a word.
        (Ok(()), Some(killed)) => Err(killed),
        (Err(error), Some(killed)) if error.kind() == Kind::WrongStatus => Err(killed),
        (executed, _) => executed,
    };
    executed.inspect_err(|error| after_failure(&mut container, &state, error))?;
    run_poststart(&mut container, &state)?;
    if let Some(notify) = notify
        && let Some(pidfd) = state.init()?
    {
        notify.relay(Pid::from_raw(state.pid), pidfd.as_fd())?;
    }
    Ok(())
}

fn refusal(container: &Container) -> Error {
    let found = container.state().and_then(|state| Ok((container.status(&state)?, oom_kill(&state)?)));
    match found {
        Ok((Status::Creating, _)) => {
            Error::of_kind(Kind::WrongStatus, "cannot start a container that is creating")
        }
        Ok((Status::Stopped, Some(killed))) => killed.because(gate::already_started().to_string()),
        _ => gate::already_started(),
    }
}

/// The error that says so, if the container has a limit of memory and that has ended init.
fn oom_kill(state: &State) -> Result<Option<Error>> {
    let Some(watch) = state.oom_watch.as_ref().filter(|_| is_ending(Pid::from_raw(state.pid))) else {
        return Ok(None);
    };
    state.cgroup.as_deref().map_or(Ok(None), |cgroup| watch.killed_at(cgroup))
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
