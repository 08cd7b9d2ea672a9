//! `keel pause` and `keel resume`: stops all processes of a container where they stand, and lets them go on.

use std::path::Path;

use crate::cgroup::Cgroup;
use crate::container::{Container, Status};
use crate::error::{Context, Error, Kind, Result};

pub fn pause(root: &Path, id: &str) -> Result<()> {
    let can = |status| matches!(status, Status::Created | Status::Running);
    change(root, id, can, "container not running or created", Cgroup::freeze)
        .context(|| format!("pause container {id}"))
}

pub fn resume(root: &Path, id: &str) -> Result<()> {
    change(root, id, |status| status == Status::Paused, "container not paused", Cgroup::thaw)
        .context(|| format!("resume container {id}"))
}

fn change(
    root: &Path,
    id: &str,
    can: impl FnOnce(Status) -> bool,
    otherwise: &str,
    act: impl FnOnce(&Cgroup) -> Result<()>,
) -> Result<()> {
    let mut container = Container::open(root, id)?;
    // Two at once would each wait for what the other undoes.
    container.lock()?;
    let state = container.state()?;
    let status = container.status(&state)?;
    // First of all whether it has one at all; systemd removes that of a stopped container.
    let cgroup = state.need_cgroup()?;
    if !can(status) {
        return Err(wrong(otherwise, status));
    }
    cgroup.map_or_else(|| Err(wrong("container has no cgroup", status)), |cgroup| act(&cgroup))
}

fn wrong(what: &str, status: Status) -> Error {
    Error::of_kind(Kind::WrongStatus, format!("{what}: {status}"))
}
