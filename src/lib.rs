//! keel: which file owns which section of config.json.
//!
//! | config.json | file |
//! |---|---|
//! | the order of all of it | [`create`], [`init`]; for a process of `exec` [`exec`], [`join`] |
//! | what is read, and the rules that touch several sections | [`plan`] |
//! | `ociVersion`, `annotations` | [`plan`] |
//! | `root`, `linux.rootfsPropagation` | [`linux::rootfs`] |
//! | `mounts` | [`linux::mounts`]; a new file system [`linux::file_system`], its `tmpcopyup` [`linux::tmpcopyup`] |
//! | `mounts.destination` | [`linux::mount_destination`] |
//! | `mounts.options` | [`linux::mount_options`] |
//! | `process.args`, `env`, `cwd` | [`linux::program`] |
//! | `process.terminal`, `consoleSize` | [`linux::terminal`] |
//! | `process.user` | [`linux::user`] |
//! | `process.capabilities`, `noNewPrivileges` | [`linux::capabilities`] |
//! | `process.rlimits` | [`linux::rlimits`] |
//! | `process.oomScoreAdj` | [`linux::oom_score`] |
//! | `process.scheduler`, `ioPriority`, `execCPUAffinity` | [`linux::schedule`] |
//! | `process.apparmorProfile`, `selinuxLabel`, `linux.mountLabel` | [`linux::lsm`] |
//! | `hostname`, `domainname` | [`linux::names`] |
//! | `hooks` | [`linux::hooks`] |
//! | `linux.namespaces`, `timeOffsets` | [`linux::namespaces`] |
//! | `linux.devices` | [`linux::devices`] |
//! | `linux.cgroupsPath` | [`cgroup`]; for systemd, with `annotations["org.systemd.property.*"]`, [`cgroup::systemd`] |
//! | whom the cgroup belongs to, `annotations["run.oci.delegate-cgroup"]` | [`cgroup::delegate`] |
//! | `linux.resources.devices` | [`cgroup::devices`] |
//! | `linux.maskedPaths`, `readonlyPaths` | [`linux::paths`] |
//! | `linux.sysctl` | [`linux::sysctl`] |
//! | `linux.netDevices` | [`linux::net_devices`] |
//! | `linux.personality` | [`linux::personality`] |
//! | `linux.memoryPolicy` | [`linux::memory_policy`] |
//! | `linux.seccomp` | [`linux::seccomp`] |
//! | `linux.intelRdt` | [`linux::rdt`] |
//! | `linux.uidMappings`, `gidMappings`; of a mount | [`linux::idmap`], [`linux::mounts`] |
//! | the other `linux.resources` | a file each in `cgroup/`, written by [`cgroup::limits`] |
//! | nowhere in it: what of all this there is, for engines | [`features`] |
//! | nowhere in it: the session keyring, keel's own binary | [`linux::keyring`], [`linux::self_exe`] |
#![deny(unsafe_code)]

// Base: used by everything.
pub mod error;
pub mod fds;
pub mod host;
pub mod log;
pub mod lowers;
pub mod netlink;
pub mod proc;
pub mod rights;
pub mod root;
pub mod socket;
pub mod spec;
pub mod sys;

// Facilities: one file each, none uses another.
pub mod cgroup;
pub mod linux;

// The story.
pub mod bundle;
pub mod container;
pub mod criu;
pub mod gate;
pub mod handover;
pub mod init;
pub mod join;
pub mod plan;
pub mod spawn;
pub mod sync;
pub mod trees;

// Operations, and what only they use.
pub mod check;
pub mod checkpoint;
pub mod cli;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod kill;
pub mod list;
pub mod notify;
pub mod pause;
pub mod ps;
pub mod relay;
pub mod restore;
pub mod run;
pub mod spec_command;
pub mod start;
pub mod state;
pub mod update;

// keel-image, the other program: images, and nothing of the runtime but its base.
pub mod image;
