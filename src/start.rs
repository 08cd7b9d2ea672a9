//! `keel start`: lets a created container run its program.

use crate::container::{Container, Status};
use crate::error::{Context, Result};
use crate::gate;
use crate::linux::hooks;
use crate::notify::Notify;
use crate::state::oci_state;

pub fn start(root: &std::path::Path, id: &str) -> Result<()> {
    open_gate(root, id).context(|| format!("start container {id}"))
}

fn open_gate(root: &std::path::Path, id: &str) -> Result<()> {
    let container = Container::open(root, id)?;
    let state = container.state()?;
    let notify = Notify::listen(&container)?;
    gate::open(container.connect_start_socket()?)?;
    after_start(&container, &state, notify)
}
