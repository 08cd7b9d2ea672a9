//! config.json, validated whole and once: after this nobody reads it again.
//!
//! `Spec -> Plan -> kernel`: each facility plans its own part, purely; this file knows who reads what, and
//! the rules that touch several parts. Every problem is found before anything exists.

use std::path::Path;

use serde_json::{Map, Value};

use crate::cgroup;
use crate::error::{Problem, Result};
use crate::host::Host;
use crate::linux::hooks::Hooks;
use crate::linux::memory_policy::MemoryPolicy;
use crate::linux::mounts::Mount;
use crate::linux::names::Names;
use crate::linux::namespaces::{Kind, Namespaces};
use crate::linux::net_devices::NetDevices;
use crate::linux::rdt::Rdt;
use crate::linux::rootfs::Rootfs;
use crate::linux::sysctl::Sysctls;
use crate::linux::*;
use crate::spec::{Node, Report};

/// The whole validated request, one field per facility.
pub struct Plan {
    pub oci_version: String,
    pub annotations: Map<String, Value>,
    pub namespaces: Namespaces,
    pub rootfs: Rootfs,
    pub mounts: Vec<Mount>,
    pub devices: devices::Devices,
    pub paths: paths::Paths,
    pub names: Names,
    pub sysctls: Sysctls,
    pub net_devices: NetDevices,
    pub hooks: Hooks,
    pub rdt: Option<Rdt>,
    pub cgroup: cgroup::Plan,
    pub personality: Option<personality::Personality>,
    pub memory_policy: Option<MemoryPolicy>,
    /// Without it a container can be created but not started.
    pub process: Option<Process>,
}

/// The program to run and all that is set on its process alone.
pub struct Process {
    pub program: program::Program,
    pub user: user::User,
    pub capabilities: capabilities::Capabilities,
    pub no_new_privileges: bool,
    pub rlimits: rlimits::Rlimits,
    pub oom_score_adj: Option<OomScoreAdj>,
    pub schedule: schedule::Schedule,
    pub labels: lsm::Labels,
    pub terminal: Option<terminal::Terminal>,
}
