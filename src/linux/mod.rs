//! One file per facility of config.md and config-linux.md; none uses another.

pub mod capabilities;
pub mod devices;
pub mod file_system;
pub mod hooks;
pub mod keyring;
pub mod lsm;
pub mod memory_policy;
pub mod mount_destination;
pub mod mount_options;
pub mod mounts;
pub mod names;
pub mod namespaces;
pub mod net_devices;
pub mod oom_score;
pub mod paths;
pub mod personality;
pub mod program;
pub mod rdt;
pub mod rlimits;
pub mod rootfs;
pub mod schedule;
pub mod self_exe;
pub mod sysctl;
pub mod terminal;
pub mod tmpcopyup;
pub mod user;
