//! `keel delete`: undoes what `create` did, in the reverse order, and runs the poststop hooks.
//!
//! It works from what the state file says, whatever became of the `create` that wrote it. Killing is waited for
//! on pidfds and cgroup.events, which tell the moment of death, not on the parent that reaps.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#delete>

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cgroup::systemd;
use crate::container::{Container, State, Status};
use crate::error::{Context, Error, Kind, Result};
use crate::linux::hooks;
use crate::log;
use crate::sys::process::pidfd_send_signal;

/// A process that SIGKILL does not end in this time waits for the kernel (a dead NFS server) or for a parent
/// outside of its pid namespace to reap its child.
const PATIENCE: Duration = Duration::from_secs(10);

/// With `force`, whatever runs is killed, and a container that does not exist is no error.
pub fn delete(root: &Path, id: &str, force: bool) -> Result<()> {
    match delete_existing(root, id, force) {
        // Also when another delete, or the create that we made fail, was faster.
        Err(e) if force && e.kind() == Kind::NoContainer => Ok(()),
        deleted => deleted,
    }
}

fn delete_existing(root: &Path, id: &str, force: bool) -> Result<()> {
    let mut container = Container::open(root, id)?;
    if !container.try_lock()? {
        interrupt(&container, force)?;
        container.lock()?;
    }
    let state = last_state(&container, force)?;
    if !force {
        match container.status(&state)? {
            // Creating: we have the lock, so the create is dead, and init about to notice.
            Status::Stopped | Status::Created | Status::Creating => {}
            status => return Err(not_stopped(id, status)),
        }
    }
    destroy(&container, &state).context(|| format!("delete container {id}"))?;
    warn_of_survivors(&state);
    Ok(())
}

/// Without a cgroup only the first process is known, and all of its pid namespace go with it.
fn warn_of_survivors(state: &State) {
    if let Some(why) = state.cgroup_manager.lacks().filter(|_| !state.pid_namespace_private) {
        log::warning(format_args!("container {}: {why}, its other processes may live on", state.id));
    }
}

/// Another command has the container locked: the `create` that makes it or a second `delete`.
/// Without force, only what it leaves may be deleted. With force its processes are killed at once, for that
/// makes a `create` fail and undo itself.
fn interrupt(container: &Container, force: bool) -> Result<()> {
    let state = match container.state() {
        Err(e) if e.kind() == Kind::NoContainer && !force => {
            return Err(not_stopped(container.id(), Status::Creating));
        }
        // It has made nothing yet that could be killed, or it cannot be told what; the lock tells when it ends.
        Err(_) if force => return Ok(()),
        state => state?,
    };
    if force {
        kill_init(&state)?;
        if is_cgroup_ours(&state)
            && let Some(cgroup) = state.open_cgroup()?
        {
            cgroup.kill()?;
        }
        return Ok(());
    }
    // Whatever else it is, it does not stay: a created one that another delete has just killed looks as if it ran.
    match container.status(&state)? {
        Status::Creating => Err(not_stopped(container.id(), Status::Creating)),
        _ => Ok(()),
    }
}

fn not_stopped(id: &str, status: Status) -> Error {
    let message = format!("cannot delete container {id} that is not stopped: {status}");
    Error::of_kind(Kind::WrongStatus, message)
}

/// The state, or what is left of it. Without a state file nothing was made but the directory. One that cannot
/// be read is somebody's damage; the cgroup it names is all that must not be left behind.
fn last_state(container: &Container, force: bool) -> Result<State> {
    match container.state() {
        Err(e) if e.kind() == Kind::NoContainer => Ok(State::default()),
        Err(e) if force => {
            log::warning(format_args!("delete container {}: {e}", container.id()));
            container.salvage_state()
        }
        state => state,
    }
}

/// Kills what lives, removes everything that is not in memory (cgroup, resctrl group, state directory), and runs the
/// poststop hooks. What `delete` does, and `create` when it fails.
pub fn destroy(container: &Container, state: &State) -> Result<()> {
    if let Some(init) = kill_init(state)? {
        wait_for_end(&init)?;
    }
    if let Some(cgroup) = state.open_cgroup()? {
        // The dead of init's own pid namespace have left it. Not those of a shared one, and who came otherwise.
        if is_cgroup_ours(state) && cgroup.events()?.populated {
            cgroup.kill()?;
        }
        match cgroup.remove() {
            Err(e) if !is_cgroup_ours(state) => {
                log::warning(format_args!("{e}: it was never this container's"))
            }
            removed => removed?,
        }
    }
    if let (Some(unit), Some(instance)) = (&state.unit, state.cgroup_manager.systemd())
        && !state.is_unit_anothers()
    {
        // A create that failed cannot say whether its unit came to be; one whose process was dead by then would stay.
        let description = state.cgroup.is_none().then(|| state.description());
        // Without an answer it ends too, as its cgroup is gone.
        systemd::stop(unit, instance, description.as_deref()).unwrap_or_else(log::warning);
    }
    if let Some(rdt) = &state.rdt {
        rdt.remove()?;
    }
    container.remove()?;
    if !state.poststop.is_empty() {
        // One that fails is a warning: the container is gone.
        hooks::run_all(&state.poststop, &state.oci_state(Status::Stopped, 0));
    }
    Ok(())
}

/// [`destroy`] by one that does not have the container locked.
pub fn destroy_unless_gone(container: &mut Container, state: &State) -> Result<()> {
    match container.lock().and_then(|()| destroy(container, state)) {
        // A delete was faster.
        Err(e) if e.kind() == Kind::NoContainer => Ok(()),
        destroyed => destroyed.map(|()| warn_of_survivors(state)),
    }
}

/// Until init is known, the state names the cgroup that `create` is about to make, or to find in use by others and
/// refuse. Their processes must live; an init that is there has not been released, and ends with its `create`. (That of a
/// unit is named when systemd has made it.)
fn is_cgroup_ours(state: &State) -> bool {
    state.pid != 0 || !state.creating || state.unit.is_some()
}

/// SIGKILL to init, which takes all of its own pid namespace along. Gives it to be waited for, if it was alive.
fn kill_init(state: &State) -> Result<Option<OwnedFd>> {
    let Some(init) = state.init()? else { return Ok(None) };
    match pidfd_send_signal(&init, libc::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(Some(init)),
        Err(errno) => Err(errno).context(|| format!("kill process {}", state.pid)),
    }
}

/// Until init has ended, if it lives.
pub fn wait_for_init(state: &State) -> Result<()> {
    state.init()?.map_or(Ok(()), |init| wait_for_end(&init))
}

fn wait_for_end(init: &OwnedFd) -> Result<()> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(init.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, timeout).context(|| "poll a pidfd")? {
        0 => Err(Error::new("its first process is still there after 10 s")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::{Process, Root, eventually};

    /// A container whose init is `process`; `created`: that has not executed yet.
    fn make(root: &Root, process: &Process, created: bool) -> (Container, Option<OwnedFd>) {
        let container = root.create("c");
        let mut state = State { creating: false, ..State::new("c").unwrap() };
        state.set_init(process.pid()).unwrap();
        container.write_state(&state).unwrap();
        let lock = created.then(|| container.created_lock().unwrap());
        (container, lock)
    }

    fn try_delete(root: &Root, force: bool) -> Result<(), String> {
        delete(&root.0, "c", force).map_err(|e| e.to_string())
    }

    /// Its directory is gone, and its process dead though not reaped.
    fn expect_deleted(root: &Root, process: &mut Process) {
        assert_eq!(std::fs::read_dir(&root.0).unwrap().count(), 0);
        assert!(process.0.try_wait().unwrap().is_some());
    }

    #[test]
    fn a_missing_container_is_an_error_without_force_only() {
        let root = Root::new("delete-missing");
        drop(root.create("other"));
        assert_eq!(try_delete(&root, false).unwrap_err(), "container \"c\" does not exist");
        assert_eq!(try_delete(&root, true), Ok(()));
    }

    #[test]
    fn a_running_container_is_deleted_by_force_only() {
        let (root, mut process) = (Root::new("delete-running"), Process::spawn());
        drop(make(&root, &process, false));
        let refusal = "cannot delete container c that is not stopped: running";
        assert_eq!(try_delete(&root, false).unwrap_err(), refusal);
        assert!(process.0.try_wait().unwrap().is_none());
        assert_eq!(try_delete(&root, true), Ok(()));
        expect_deleted(&root, &mut process);
    }

    #[test]
    fn a_created_container_is_killed_and_deleted() {
        let (root, mut process) = (Root::new("delete-created"), Process::spawn());
        let (container, _lock) = make(&root, &process, true);
        drop(container);
        assert_eq!(try_delete(&root, false), Ok(()));
        expect_deleted(&root, &mut process);
    }

    #[test]
    fn a_create_that_was_killed_before_it_wrote_a_state_leaves_nothing() {
        for force in [false, true] {
            let root = Root::new("delete-killed");
            drop(root.create("c"));
            assert_eq!(try_delete(&root, force), Ok(()));
            assert_eq!(std::fs::read_dir(&root.0).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_torn_state_takes_force() {
        let root = Root::new("delete-torn");
        drop(root.create("c"));
        let state = root.0.join("c/state.json");
        std::fs::write(&state, r#"{"ociVersion":"1.3.0","id":"c","#).unwrap();
        let error = try_delete(&root, false).unwrap_err();
        assert!(error.contains("c/state.json: EOF while parsing"), "{error}");
        assert!(state.exists());
        assert_eq!(try_delete(&root, true), Ok(()));
        assert_eq!(std::fs::read_dir(&root.0).unwrap().count(), 0);
    }

    #[test]
    fn a_create_at_work_is_left_alone_without_force() {
        let root = Root::new("delete-creating");
        let creator = root.create("c");
        let refusal = "cannot delete container c that is not stopped: creating";
        assert_eq!(try_delete(&root, false).unwrap_err(), refusal);
        creator.write_state(&State::new("c").unwrap()).unwrap();
        assert_eq!(try_delete(&root, false).unwrap_err(), refusal);
        assert!(creator.state().is_ok());
    }

    #[test]
    fn force_kills_what_a_create_waits_for_and_then_waits_for_the_create() {
        let (root, mut process) = (Root::new("delete-interrupt"), Process::spawn());
        let (creator, lock) = make(&root, &process, true);
        let create = std::thread::spawn(move || {
            let was_killed = eventually(|| process.0.try_wait().unwrap().is_some());
            drop(lock);
            creator.remove().unwrap();
            (was_killed, process)
        });
        assert_eq!(try_delete(&root, true), Ok(()));
        let (was_killed, mut process) = create.join().unwrap();
        assert!(was_killed);
        expect_deleted(&root, &mut process);
    }
}
