//! The agent that decides about calls in the program's stead, and what it is sent: the spec's container process state
//! and the descriptor to read the calls from.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#containerprocessstate>

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use nix::unistd::Pid;
use serde::Serialize;
use serde_json::Value;

use crate::error::{At, Context, Field, Result};
use crate::socket;
use crate::spec::Node;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    path: PathBuf,
    metadata: Option<String>,
    field: Field,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'a Value,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a Value,
}

impl Listener {
    /// Reads `/linux/seccomp`. By the spec the path has no effect without a rule that notifies.
    pub fn plan(seccomp: &Node, notifies: bool) -> Option<Self> {
        let path = seccomp.string("listenerPath").filter(|path| !path.is_empty());
        let metadata = seccomp.string("listenerMetadata");
        if metadata.is_some() && path.is_none() {
            seccomp.problem("listenerMetadata", "must not be set without listenerPath");
        }
        if notifies && path.is_none() {
            seccomp
                .problem("listenerPath", "is required: SCMP_ACT_NOTIFY leaves calls to the agent behind it");
        }
        let path = PathBuf::from(path.filter(|_| notifies)?);
        Some(Self { path, metadata: metadata.map(str::to_owned), field: seccomp.at("listenerPath") })
    }

    /// Connects to the agent and sends it `listener`, with which it answers for the process `pid` (as this process sees
    /// it) of the container whose state, as JSON, is `state`.
    pub fn send(&self, listener: BorrowedFd<'_>, pid: Pid, state: &[u8]) -> Result<()> {
        let agent = || format!("send the seccomp listener to {}", self.path.display());
        let state: Value = serde_json::from_slice(state).map_err(std::io::Error::from).context(agent)?;
        let message = ProcessState {
            oci_version: &state["ociVersion"],
            fds: ["seccompFd"],
            pid: pid.as_raw(),
            metadata: self.metadata.as_deref(),
            state: &state,
        };
        let message = serde_json::to_vec(&message).map_err(std::io::Error::from).context(agent)?;
        let connection = socket::connect(&self.path).at(&self.field)?;
        socket::send_all_with_fd(&connection, &message, listener).context(agent).at(&self.field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::planned;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType};
    use nix::sys::socket::{Backlog, UnixAddr, accept, bind, listen};
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn the_agent_gets_the_descriptor_and_the_state() {
        let path = std::env::temp_dir().join(format!("keel-agent-{}", std::process::id()));
        let none = SockFlag::SOCK_CLOEXEC;
        let server = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, none, None).unwrap();
        bind(server.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&server, Backlog::new(1).unwrap()).unwrap();
        let json = format!(r#"{{"listenerPath": {path:?}, "listenerMetadata": "a \"b\""}}"#);
        let listener = planned(&json, |seccomp| Listener::plan(seccomp, true)).0.unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let state = br#"{"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 7, "bundle": "/b"}"#;
        listener.send(file.as_fd(), Pid::from_raw(7), state).unwrap();
        let connection = crate::sys::process::adopt_fd(accept(server.as_raw_fd()).unwrap()).unwrap();
        let mut buffer = [0; 1000];
        let (length, fd) = socket::receive(&connection, &mut buffer).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&buffer[..length]).unwrap(),
            serde_json::json!({
                "ociVersion": "1.2.0", "fds": ["seccompFd"], "pid": 7, "metadata": "a \"b\"",
                "state": {"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 7, "bundle": "/b"}
            })
        );
        let device = |fd| nix::sys::stat::fstat(fd).unwrap().st_rdev;
        assert_eq!(device(fd.unwrap().as_fd()), device(file.as_fd()));
        assert_eq!(socket::receive(&connection, &mut buffer).unwrap().0, 0, "the connection is closed");
        std::fs::remove_file(&path).unwrap();
        let refused = listener.send(file.as_fd(), Pid::from_raw(7), state).unwrap_err().to_string();
        assert!(refused.contains("No such file or directory (2) [config.json /listenerPath]"), "{refused}");
    }
}
