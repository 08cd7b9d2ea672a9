//! `keel start`: lets a created container run its program.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::container::{Container, State, Status};
use crate::delete::destroy;
use crate::error::{Context, Result};
use crate::gate;
use crate::linux::hooks;
use crate::log;
use crate::notify::Notify;

pub fn start(root: &Path, id: &str) -> Result<()> {
    open_gate(root, id).context(|| format!("start container {id}"))
}

fn open_gate(root: &Path, id: &str) -> Result<()> {
    let container = Container::open(root, id)?;
    let state = container.state()?;
    // Before the program runs, which may be ready at once.
    let notify = Notify::listen(&container)?;
    let gate = container.connect_start_socket().map_err(|error| match error.errno() {
        // Nobody listens any more, or nobody ever will.
        Some(Errno::ECONNREFUSED | Errno::ENOENT) => gate::already_started(),
        _ => error,
    })?;
    gate::open(gate)?;
    run_poststart(&container, &state)?;
    if let (Some(notify), Some(pidfd)) = (notify, state.init()?) {
        notify.relay(Pid::from_raw(state.pid), pidfd.as_fd())?;
    }
    Ok(())
}

/// The poststart hooks, after the program has been executed; if one fails the container is destroyed, as the spec
/// has it.
pub fn run_poststart(container: &Container, state: &State) -> Result<()> {
    if state.poststart.is_empty() {
        return Ok(());
    }
    hooks::run(&state.poststart, &state.oci_state(Status::Running, state.pid)).inspect_err(|_| {
        if let Err(e) = destroy(container, state) {
            log::warning(format_args!("destroy container {} after a failed poststart hook: {e}", state.id));
        }
    })
}
