//! config.json, validated whole and once: after this nobody reads it again.
//!
//! `Spec -> Plan -> kernel`: each facility plans its own part, purely; this file knows who reads what, and
//! the rules that touch several parts. Every problem is found before anything exists.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config.md>

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use caps::Capability;
use nix::unistd::{Pid, Uid};

use crate::bundle::Bundle;
use crate::cgroup::{self, Manager};
use crate::error::{Error, Result};
use crate::linux::capabilities::Capabilities;
use crate::linux::devices::{self, Devices};
use crate::linux::hooks::Hooks;
use crate::linux::idmap::{self, IdMap};
use crate::linux::lsm::Labels;
use crate::linux::memory_policy::MemoryPolicy;
use crate::linux::mounts::{self, Mounts};
use crate::linux::names::{self, Names};
use crate::linux::namespaces::{Kind, Namespace, Namespaces};
use crate::linux::net_devices::{self, NetDevice};
use crate::linux::oom_score::OomScoreAdj;
use crate::linux::paths::{self, Paths};
use crate::linux::personality::Personality;
use crate::linux::program::Program;
use crate::linux::rdt::{self, Rdt};
use crate::linux::rlimits::Rlimits;
use crate::linux::rootfs::{self, Rootfs};
use crate::linux::schedule::{ExecAffinity, IoPriority, Scheduler};
use crate::linux::seccomp::Seccomp;
use crate::linux::sysctl::{self, Private, Sysctl};
use crate::linux::terminal::{self, Terminal};
use crate::linux::user::User;
use crate::rights::Rights;
use crate::spec::{Node, Report};

/// The whole validated request, one field per facility.
pub struct Plan {
    /// Of the caller.
    pub rights: Rights,
    pub annotations: BTreeMap<String, String>,
    pub namespaces: Namespaces,
    /// Of the container's user namespace; one that is joined need not have them here.
    pub id_map: Option<IdMap>,
    pub cgroup: cgroup::Plan,
    /// The user of the container whom the cgroup's files are to belong to, if the container may manage them.
    pub cgroup_owner: Option<Uid>,
    pub rootfs: Rootfs,
    pub mounts: Mounts,
    pub devices: Devices,
    pub paths: Paths,
    pub names: Names,
    pub sysctls: Vec<Sysctl>,
    pub net_devices: Vec<NetDevice>,
    pub rdt: Option<Rdt>,
    pub hooks: Hooks,
    mount_label: Labels,
    /// Without one a container can be created but not started.
    pub process: Option<Process>,
}

/// The program to run and all that is set on its process alone: the container's first, or one of `exec`.
pub struct Process {
    /// Of the caller.
    pub rights: Rights,
    pub program: Program,
    pub user: User,
    pub labels: Labels,
    pub personality: Option<Personality>,
    pub memory_policy: Option<MemoryPolicy>,
    pub seccomp: Option<Seccomp>,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub rlimits: Rlimits,
    pub oom_score_adj: Option<OomScoreAdj>,
    pub scheduler: Option<Scheduler>,
    pub io_priority: Option<IoPriority>,
    /// Of programs that `exec` runs; by the spec it has no effect on the container's first.
    pub exec_affinity: ExecAffinity,
    pub terminal: Option<Terminal>,
}

impl Plan {
    /// Reads the whole config; what is wrong with it goes to `report`, and then the plan must not be used.
    pub fn new(
        bundle: &Bundle,
        id: &str,
        no_pivot: bool,
        manager: Manager,
        rights: Rights,
        report: &Report,
    ) -> Self {
        let config = Node::root(&bundle.spec, report);
        config.expect_keys(&[
            "ociVersion",
            "root",
            "mounts",
            "process",
            "hostname",
            "domainname",
            "linux",
            "hooks",
            "annotations",
        ]);
        plan_version(&config);
        let linux = config.object_or_empty("linux");
        linux.expect_keys(&LINUX_KEYS);
        let namespaces = Namespaces::plan(&linux);
        let has = |kind| namespaces.is_private(kind);
        if !has(Kind::Mount) {
            needs_mount_namespace(&config, &linux);
        }
        if rights.is_user() && !has(Kind::User) {
            let what = "a user other than root needs a user namespace here, with uidMappings and gidMappings beside it";
            linux.problem("namespaces", format_args!("{what} (keel spec --rootless writes them)"));
        }
        let names = names::plan(&config, has(Kind::Uts));
        let id_map = plan_id_map(&linux, &namespaces);
        let map = id_map.as_ref();
        let own = mounts::Own {
            mount: has(Kind::Mount),
            cgroup: has(Kind::Cgroup),
            user: has(Kind::User),
            rights,
            map,
        };
        let private = Private {
            ipc: has(Kind::Ipc),
            network: has(Kind::Network),
            uts: has(Kind::Uts),
            user: has(Kind::User),
        };
        let process = config.object("process");
        let makes = match (rights, has(Kind::User)) {
            (Rights::Root, false) => devices::From::Mknod,
            (Rights::Root, true) => devices::From::Shelf,
            _ => devices::From::Host,
        };
        let mut plan = Self {
            rights,
            annotations: plan_annotations(&config),
            cgroup: cgroup::plan(&config, Some(&linux), id, manager),
            cgroup_owner: None,
            rootfs: rootfs::plan(&config, &bundle.dir, has(Kind::Mount), no_pivot),
            mounts: mounts::plan(&config, &bundle.dir, own),
            devices: devices::plan(&config, Some(&linux), makes, map),
            paths: paths::plan(&linux),
            sysctls: sysctl::plan(&linux, private, names.domainname()),
            net_devices: net_devices::plan(&linux, has(Kind::Network)),
            rdt: rdt::plan(&linux),
            hooks: Hooks::plan(&config),
            mount_label: Labels::of_mounts(&linux),
            process: process.and_then(|process| Process::plan(&process, &linux, rights)),
            names,
            namespaces,
            id_map,
        };
        if let (Some(process), Some(map)) = (&plan.process, &plan.id_map) {
            process.user.refuse_unmapped(map, report);
            if map.denies_groups(rights) {
                process.user.refuse_groups(report);
            }
        }
        plan.cgroup_owner = plan.delegatee();
        if manager == Manager::Disabled {
            let makes_devices = plan.bounds(Capability::CAP_MKNOD);
            plan.cgroup.refuse_without_cgroup(&linux, makes_devices);
            plan.mounts.refuse_writable_cgroups(manager.lacks().unwrap_or_default(), report);
        }
        plan
    }

    /// Who runs the container's program, if it is to see its own cgroup as the top of a writable hierarchy: the spec
    /// wants no ownership changed without both.
    fn delegatee(&self) -> Option<Uid> {
        let delegated = self.namespaces.is_new(Kind::Cgroup) && self.mounts.has_writable_cgroup();
        self.process.as_ref().filter(|_| delegated).map(|process| process.user.uid())
    }

    /// Whether a mount shows the cgroup alone that systemd makes when init is there.
    pub fn binds_scope(&self) -> bool {
        self.cgroup.scope().is_some() && self.mounts.binds_cgroup()
    }

    pub fn terminal(&self) -> Option<&Terminal> {
        self.process.as_ref()?.terminal.as_ref()
    }

    /// Whether something is written to /proc once the container's root is entered.
    pub fn needs_proc_inside(&self) -> bool {
        let labels = self.process.as_ref().is_some_and(|process| process.labels.are_set());
        labels || !self.sysctls.is_empty()
    }

    /// Whether the container could take the immutable flag off a file that it gets hold of.
    pub fn may_clear_immutable(&self) -> bool {
        self.bounds(Capability::CAP_LINUX_IMMUTABLE)
    }

    /// Whether a program of the container may ever have a capability.
    fn bounds(&self, capability: Capability) -> bool {
        self.process.as_ref().is_some_and(|process| process.capabilities.bounds(capability))
    }

    /// What the config asks of this host that the host does not have.
    pub fn check_host(&self, report: &Report) {
        self.mount_label.check(report);
        if let Some(process) = &self.process {
            process.labels.check(report);
        }
    }
}

#[rustfmt::skip]
const LINUX_KEYS: [&str; 17] = [
    "namespaces", "uidMappings", "gidMappings", "timeOffsets", "devices", "netDevices", "cgroupsPath",
    "rootfsPropagation", "resources", "seccomp", "sysctl", "maskedPaths", "readonlyPaths", "mountLabel",
    "intelRdt", "personality", "memoryPolicy",
];

impl Process {
    /// Reads `/process`, and of `/linux` what is set on each process of the container.
    pub fn plan(process: &Node, linux: &Node, rights: Rights) -> Option<Self> {
        process.expect_keys(&PROCESS_KEYS);
        let user = User::plan(process);
        let plan = Self {
            rights,
            program: Program::plan(process),
            labels: Labels::of_process(process),
            personality: Personality::plan(linux),
            memory_policy: MemoryPolicy::plan(linux),
            seccomp: Seccomp::plan(linux),
            capabilities: Capabilities::plan(process),
            no_new_privileges: process.boolean("noNewPrivileges"),
            rlimits: Rlimits::plan(process),
            oom_score_adj: OomScoreAdj::plan(process),
            scheduler: Scheduler::plan(process),
            io_priority: IoPriority::plan(process),
            exec_affinity: ExecAffinity::plan(process),
            terminal: terminal::plan(process),
            user: user?,
        };
        plan.check_filter(linux);
        Some(plan)
    }

    /// A filter holds for the runtime too, as soon as it is loaded.
    fn check_filter(&self, linux: &Node) {
        let Some(seccomp) = &self.seccomp else { return };
        let blocked = |calls: &[&'static str], agent_is_there| seccomp.first_blocked(calls, agent_is_there);
        let listens = seccomp.listener().is_some();
        // With an agent from its load on, which is before the process is ready.
        let capset: &[&str] = if self.no_new_privileges { &[] } else { &["capset"] };
        let late: &[&str] = if self.rlimits.wait() { &["prlimit64"] } else { &[] };
        let calls = [capset, late, &CALLS_UNTIL_START].concat();
        let until_start = || blocked(&[self.call_that_tells()], false).or_else(|| blocked(&calls, true));
        let found = listens.then(until_start).flatten();
        if let Some((call, action)) = found.or_else(|| blocked(&["execve"], listens)) {
            let reason = format_args!("keeps the runtime from {call}, which follows its load: {action}");
            linux.problem("seccomp", reason);
        }
    }

    /// By which the listener gets to the agent.
    fn call_that_tells(&self) -> &'static str {
        if self.rights.is_user() { "sendmsg" } else { "write" }
    }

    /// Sets when the process `pid`, or for 0 this one, gets a CPU and the disk. Most of it needs the host's
    /// CAP_SYS_NICE, which a process has until its capabilities are dropped, and in a user namespace never.
    pub fn schedule(&self, pid: Pid) -> Result<()> {
        self.scheduler.as_ref().map_or(Ok(()), |scheduler| scheduler.apply(pid))?;
        self.io_priority.as_ref().map_or(Ok(()), |priority| priority.apply(pid))
    }

    /// Sends the descriptor by which an agent answers system calls of the process `pid`.
    pub fn send_listener(&self, listener: &OwnedFd, pid: Pid, state: &[u8]) -> Result<()> {
        match self.seccomp.as_ref().and_then(Seccomp::listener) {
            Some(agent) => agent.send(listener.as_fd(), pid, state),
            None => Err(Error::new("there is no seccomp agent")),
        }
    }
}

/// What is called between the load of a filter with an agent and execve: to say that all is set up, to be told to go on,
/// and to wait at the gate.
#[rustfmt::skip]
const CALLS_UNTIL_START: [&str; 9] = [
    "listen", "sendto", "recvmsg", "accept4", if cfg!(target_arch = "x86_64") { "poll" } else { "ppoll" }, "read",
    "close", "rt_sigprocmask", "exit_group",
];

#[rustfmt::skip]
const PROCESS_KEYS: [&str; 15] = [
    "terminal", "consoleSize", "cwd", "env", "args", "rlimits", "apparmorProfile", "capabilities",
    "noNewPrivileges", "oomScoreAdj", "scheduler", "selinuxLabel", "ioPriority", "execCPUAffinity", "user",
];

/// All of 1.x is one format, in which newer versions only add.
fn plan_version(config: &Node) {
    let Some(version) = config.required_string("ociVersion") else { return };
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u32>> = core.split('.').map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [Some(1), Some(_), Some(_)] => {}
        [Some(major), Some(_), Some(_)] => {
            config.problem("ociVersion", format_args!("is {version}, but keel reads version 1, not {major}"));
        }
        _ => config.problem("ociVersion", format_args!("must be a version such as 1.2.0, not {version:?}")),
    }
}

fn plan_annotations(config: &Node) -> BTreeMap<String, String> {
    let Some(annotations) = config.object("annotations") else { return BTreeMap::new() };
    let mut planned = BTreeMap::new();
    for key in annotations.keys() {
        if key.is_empty() {
            annotations.problem(key, "a key must not be empty");
        }
        if let Some(value) = annotations.string(key) {
            planned.insert(key.to_owned(), value.to_owned());
        }
    }
    planned
}

/// A new user namespace needs mappings, one by path may have them as well (and then they must be the same), and without
/// one they would map nothing.
fn plan_id_map(linux: &Node, namespaces: &Namespaces) -> Option<IdMap> {
    let map = idmap::plan(linux);
    match (&map, namespaces.get(Kind::User)) {
        (None, Namespace::New) => linux.problem("uidMappings", "is required by the new user namespace"),
        (Some(_), Namespace::Inherit) => {
            linux.problem("uidMappings", "needs a user namespace in /linux/namespaces");
        }
        _ => {}
    }
    map
}

/// In the runtime's own mount namespace all this would happen to the host.
fn needs_mount_namespace(config: &Node, linux: &Node) {
    let reason = "needs a mount namespace in /linux/namespaces";
    let is_set = |node: &Node, key: &str| {
        node.value(key).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty()))
    };
    for key in ["maskedPaths", "readonlyPaths", "devices", "rootfsPropagation"] {
        if is_set(linux, key) {
            linux.problem(key, reason);
        }
    }
    if let Some(process) = config.object("process")
        && process.value("terminal").is_some_and(|value| value == true)
    {
        process.problem("terminal", reason);
    }
}
