//! `keel state`: what is known about a container, as the spec's state object with runc's additions.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::container::{Container, State, Status};
use crate::error::{Context, Error, Result};

/// What `state` prints, and `list` of each container.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    pub oci_version: String,
    pub id: String,
    /// 0 when there is no process.
    pub pid: i32,
    pub status: Status,
    pub bundle: String,
    pub rootfs: String,
    pub created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    pub owner: String,
}

impl Shown {
    pub fn new(container: &Container) -> Result<Self> {
        let state: State = container.state()?;
        let status = container.status(&state)?;
        Ok(Self {
            oci_version: state.oci_version,
            id: state.id,
            pid: if status == Status::Stopped { 0 } else { state.pid },
            status,
            bundle: state.bundle.to_string_lossy().into_owned(),
            rootfs: state.rootfs.to_string_lossy().into_owned(),
            created: state.created,
            annotations: state.annotations,
            owner: state.owner,
        })
    }
}

pub fn state(root: &Path, id: &str) -> Result<String> {
    let shown = Shown::new(&Container::open(root, id)?)?;
    let json = serde_json::to_string_pretty(&shown).map_err(|e| Error::new(e.to_string()));
    json.map(|json| json + "\n").context(|| format!("print the state of container {id}"))
}
