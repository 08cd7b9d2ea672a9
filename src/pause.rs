//! `keel pause` and `keel resume`: stops all processes of a container where they stand, and lets them go on.

use std::path::Path;

use crate::cgroup::Cgroup;
use crate::container::{Container, Status};
use crate::error::{Context, Error, Kind, Result};

pub fn pause(root: &Path, id: &str) -> Result<()> {
    change(root, id, |status, cgroup| match status {
        Status::Created | Status::Running => cgroup.freeze(),
        _ => Err(wrong("container not running or created", status)),
    })
    .context(|| format!("pause container {id}"))
}

pub fn resume(root: &Path, id: &str) -> Result<()> {
    change(root, id, |status, cgroup| match status {
        Status::Paused => cgroup.thaw(),
        _ => Err(wrong("container not paused", status)),
    })
    .context(|| format!("resume container {id}"))
}

fn change(root: &Path, id: &str, act: impl FnOnce(Status, &Cgroup) -> Result<()>) -> Result<()> {
    let mut container = Container::open(root, id)?;
    // Two at once would each wait for what the other undoes.
    container.lock()?;
    let state = container.state()?;
    let status = container.status(&state)?;
    match state.need_cgroup()? {
        Some(cgroup) => act(status, &cgroup),
        None => Err(wrong("container has no cgroup", status)),
    }
}

fn wrong(what: &str, status: Status) -> Error {
    Error::of_kind(Kind::WrongStatus, format!("{what}: {status}"))
}
