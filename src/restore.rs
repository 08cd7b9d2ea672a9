//! `keel restore`: a container from a bundle, as `create` makes it, with the processes that criu has saved.
//!
//! State, cgroup, hooks and limits are made here. Criu makes the namespaces, mounts and processes; it is born in the
//! container's cgroup, so that all of them are too, and it looks for the container's root in a mount namespace of
//! this process's own, of which nothing is left when both have ended. Until the container's first process is there
//! criu stands for it in the state, so that `delete --force` ends all.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

use crate::bundle::Bundle;
use crate::cgroup::systemd::Bus;
use crate::cgroup::{self, Cgroup, Manager, delegate};
use crate::checkpoint::{check, common, external_key};
use crate::cli::RestoreOptions;
use crate::container::{Container, NOTIFY_DIR, State, Status};
use crate::create::{check_private, check_terminal, claim_upper, first_state, undo};
use crate::criu::rpc::{CgroupRoot, ExtMount, InheritFd, JoinNamespace, Opts, RequestType};
use crate::criu::{Criu, Images, Notice, stdio};
use crate::delete::destroy_unless_gone;
use crate::error::{Context, Error, Result};
use crate::handover;
use crate::host::Host;
use crate::init::join_keyring;
use crate::linux::mounts::{self, external};
use crate::linux::namespaces::{Joined, Kind, same};
use crate::linux::{hooks, net_devices, rootfs, sysctl};
use crate::log;
use crate::notify;
use crate::plan::Plan;
use crate::proc::Proc;
use crate::relay::{self, Console, Signals};
use crate::rights::Rights;
use crate::socket;
use crate::spec::Report;
use crate::sys::process::pidfd_open;

const LOG: &str = "restore.log";

/// The exit code of the container's process; 0 when it runs on, detached.
pub fn restore(root: &Path, options: &RestoreOptions) -> Result<i32> {
    load(root, options).context(|| format!("restore container {}", options.id))
}

fn load(root: &Path, options: &RestoreOptions) -> Result<i32> {
    Criu::refuse_user()?;
    let manager = options.cgroup_manager;
    if manager == Manager::Disabled {
        return Err(Error::new("a container is restored in a cgroup, so not with --cgroup-manager disabled"));
    }
    let host = Host::new()?;
    let report = Report::default();
    let bundle = Bundle::load(&options.bundle, &report)?;
    let plan = Plan::new(&bundle, &options.id, options.no_pivot, manager, Rights::of_caller(), &report);
    plan.check_host(&report);
    check_terminal(plan.terminal().is_some(), !options.detach, options.console_socket.is_some(), &report);
    for warning in report.finish()? {
        log::warning(format_args!("config.json {warning}"));
    }
    check(&plan.namespaces)?;
    // Before any directory is opened that criu works in: it can mount only in those of its own mount namespace.
    unshare(CloneFlags::CLONE_NEWNS).context(|| "unshare mount namespace")?;
    rootfs::leave_hosts_mounts()?;
    let images = Images::open(&options.criu.image_path, options.criu.work_path.as_deref(), LOG)?;
    let streams = stdio::inherited(&images)?;

    // Before the container exists: a signal that comes meanwhile must not leave half of it behind.
    let signals = if options.detach { None } else { Some(relay::block_signals()?) };
    if signals.is_some() && !options.no_subreaper {
        nix::sys::prctl::set_child_subreaper(true).context(|| "become a subreaper")?;
    }
    let state = first_state(&plan, &bundle, &options.id, manager, true)?;
    let container = Container::create(root, &options.id)?;
    let mut making =
        Making { options, host, plan, container, state, cgroup: None, net_devices: None, console: None };
    match making.first_process(&bundle.config, &images, streams, signals.as_ref().map(Signals::interrupt)) {
        Ok(()) => {
            making.container.unlock()?;
            signals.map_or(Ok(0), |signals| making.attend(&signals))
        }
        Err(error) => {
            making.undo();
            Err(error)
        }
    }
}

/// A container in the making; `state` and `cgroup` say what there is to undo.
struct Making<'a> {
    options: &'a RestoreOptions,
    host: Host,
    plan: Plan,
    container: Container,
    state: State,
    cgroup: Option<Cgroup>,
    net_devices: Option<net_devices::Given>,
    console: Option<Console>,
}

impl Making<'_> {
    fn first_process(
        &mut self,
        config: &[u8],
        images: &Images,
        streams: Vec<InheritFd>,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let bus = match self.options.cgroup_manager.systemd() {
            Some(instance) => {
                let bus = Bus::connect(instance, interrupt)?;
                self.state.unit = self.plan.cgroup.scope().map(|scope| scope.name.clone());
                self.container.create_state(&self.state)?;
                Some(bus)
            }
            None => self.make_cgroup().map(|()| None)?,
        };
        claim_upper(&self.plan, &self.container, &self.state)?;
        self.container.write_config(config)?;

        let proc = Proc::host();
        let joined = self.plan.namespaces.open(&proc)?;
        check_private(&self.plan, &joined)?;
        // The processes keep that of criu.
        join_keyring(self.plan.process.as_ref(), &proc, &self.options.id)?;
        let passed: Vec<_> = [Kind::Network, Kind::Pid].iter().filter_map(|&kind| joined.get(kind)).collect();
        let criu = Criu::start(self.cgroup.as_ref().map(Cgroup::as_fd), &passed)?;
        if let Some(bus) = bus {
            self.enter_scope(bus, criu.pid)?;
        }
        let cgroup = self.cgroup.as_ref().ok_or(Errno::ENOENT)?;
        let mut opts = self.request(images, &proc, &joined, cgroup)?;
        opts.inherit_fd.extend(streams);
        opts.root = Some(self.make_root(cgroup)?);
        self.state.set_init(criu.pid)?;
        if let Some(rdt) = &self.plan.rdt {
            self.state.rdt = Some(rdt.apply(&proc, &self.options.id, criu.pid)?);
        }
        self.container.write_state(&self.state)?;

        let answer = criu.ask(RequestType::Restore, opts, interrupt, |notice| self.noticed(&proc, notice));
        // One that cannot be talked to is killed with all that it has made.
        let answer = answer?;
        criu.finish(RequestType::Restore)?;
        if !answer.success {
            return Err(images.failure(&answer));
        }
        // Criu was in the way: a cgroup with controllers for its children has no processes of its own.
        let (plan, cgroup) = (&self.plan, self.cgroup.as_ref().ok_or(Errno::ENOENT)?);
        plan.cgroup.leaf.as_ref().map_or(Ok(()), |leaf| leaf.free(cgroup, self.host.cgroup2()?))?;
        plan.cgroup_owner.map_or(Ok(()), |uid| delegate::give(cgroup, plan.cgroup.leaf.as_ref(), uid))
    }

    fn make_cgroup(&mut self) -> Result<()> {
        let path = self.plan.cgroup.path(&self.host)?;
        Cgroup::refuse_used(&self.plan.cgroup, &path)?;
        self.state.cgroup = Some(path.clone());
        self.container.create_state(&self.state)?;
        let made = Cgroup::create(&self.plan.cgroup, &path, &self.host);
        // It has undone itself, and what is there now is not ours.
        self.cgroup = Some(made.inspect_err(|_| self.state.cgroup = None)?);
        Ok(())
    }

    /// Has systemd make the cgroup around criu.
    fn enter_scope(&mut self, mut bus: Bus, criu: Pid) -> Result<()> {
        let Some(scope) = self.plan.cgroup.scope() else { return Ok(()) };
        let description = self.state.description();
        let path = scope.start(&mut bus, &description, &self.plan.cgroup, criu, &self.host)?;
        self.state.cgroup = Some(path.clone());
        self.cgroup = Some(Cgroup::of_scope(&self.plan.cgroup, &path, &self.host)?);
        Ok(())
    }

    /// The container's root where criu finds it, with all that mounts go onto.
    fn make_root(&self, cgroup: &Cgroup) -> Result<String> {
        let plan = &self.plan;
        let own_cgroup_namespace = plan.namespaces.is_private(Kind::Cgroup);
        let proc = Proc::host();
        let users = mounts::Users::new(&proc, None, false);
        let bound = (!own_cgroup_namespace).then(|| cgroup.as_fd());
        let sources = mounts::open_sources(&plan.mounts, bound, &users)?;
        let tree = match &plan.mounts.root {
            Some(mount) => mounts::open_root(mount, &users)?,
            None => plan.rootfs.open()?,
        };
        let (root, path) = rootfs::attach_for_criu(tree, &plan.rootfs)?;
        for mount in external::make_destinations(&plan.mounts, sources, &root)?.iter().rev() {
            umount2(format!("/proc/self/fd/{}", mount.as_raw_fd()).as_str(), MntFlags::MNT_DETACH)
                .context(|| "unmount what was mounted to find destinations")?;
        }
        text(&path)
    }

    fn request(&self, images: &Images, proc: &Proc, joined: &Joined, cgroup: &Cgroup) -> Result<Opts> {
        let mut opts = Opts {
            // The container's first process is this process's child.
            rst_sibling: Some(true),
            evasive_devices: Some(true),
            lsm_profile: self.options.lsm_profile.clone(),
            lsm_mount_context: self.options.lsm_mount_context.clone(),
            ..common(&self.options.criu, images, &self.plan.annotations)
        };
        // The empty name is that of cgroup v2.
        let below = cgroup.path().strip_prefix(self.host.cgroup2()?.path()).unwrap_or(cgroup.path());
        opts.cg_root =
            vec![CgroupRoot { ctrl: Some(String::new()), path: text(&Path::new("/").join(below))? }];
        for kind in [Kind::Network, Kind::Pid] {
            let given = |fd: BorrowedFd<'_>| InheritFd { key: external_key(kind).into(), fd: fd.as_raw_fd() };
            opts.inherit_fd.extend(joined.get(kind).map(given));
        }
        for kind in [Kind::Ipc, Kind::Uts, Kind::Time] {
            if let Some(fd) = joined.get(kind) {
                let ns_file = format!("/proc/{}/fd/{}", Pid::this(), fd.as_raw_fd());
                opts.join_ns.push(JoinNamespace { ns: kind.file().into(), ns_file });
            }
        }
        for mount in external::list(&self.plan.mounts, &proc.mount_points("self")?) {
            let val = text(mount.source.as_deref().unwrap_or(cgroup.path()))?;
            opts.ext_mnt.push(ExtMount { key: text(&mount.destination)?, val });
        }
        // Whether the container had it is in the images.
        notify::make_dir(&self.container)?;
        let notify_dir = std::path::absolute(self.container.path().join(NOTIFY_DIR))?;
        opts.ext_mnt.push(ExtMount { key: notify::INSIDE.into(), val: text(&notify_dir)? });
        Ok(opts)
    }

    fn noticed(&mut self, proc: &Proc, notice: Notice) -> Result<()> {
        match (notice.script.as_str(), notice.pid, notice.fd) {
            ("setup-namespaces", Some(pid), _) => self.set_up_network(proc, pid),
            ("orphan-pts-master", _, Some(master)) => self.hand_over_terminal(master),
            ("post-restore", Some(pid), _) => self.take_over(proc, pid),
            _ => Ok(()),
        }
    }

    /// Criu leaves a new network namespace empty: what `create` and its hooks do for it is done here.
    fn set_up_network(&mut self, proc: &Proc, pid: Pid) -> Result<()> {
        let plan = &self.plan;
        let [own, its] = namespaces(proc, pid, Kind::Network)?;
        if plan.namespaces.is_new(Kind::Network) {
            if same(&own, &its)? {
                return Err(Error::new("criu has not made a network namespace"));
            }
            inside(&own, &its, net_devices::loopback_up)?;
        }
        net_devices::apply(&plan.net_devices, proc, pid, &mut self.net_devices)?;
        let stdin = self.state.oci_state(Status::Creating, pid.as_raw());
        hooks::run(&plan.hooks.prestart, &stdin, &[])?;
        hooks::run(&plan.hooks.create_runtime, &stdin, &[])?;
        // After the hooks, whose devices' parameters may be among these. (Those of other namespaces are in the images.)
        inside(&own, &its, || sysctl::apply_network(&plan.sysctls, proc))
    }

    fn hand_over_terminal(&mut self, master: OwnedFd) -> Result<()> {
        match &self.options.console_socket {
            Some(path) => socket::send_fd(socket::connect(path)?, b"/dev/ptmx", master.as_fd())
                .context(|| format!("send the terminal to {}", path.display())),
            None if self.plan.terminal().is_some() => {
                let sized = self.plan.terminal().is_some_and(|terminal| terminal.size.is_some());
                self.console = Some(Console::attach(master, sized)?);
                Ok(())
            }
            None => Err(Error::new("the images have a terminal, and config.json has none")),
        }
    }

    /// All processes are there and none has gone on yet.
    fn take_over(&mut self, proc: &Proc, pid: Pid) -> Result<()> {
        let cgroup = self.cgroup.as_ref().ok_or(Errno::ENOENT)?;
        cgroup::limits::apply(&self.plan.cgroup.limits, cgroup)?;
        cgroup::devices::apply(&self.plan.cgroup.devices, cgroup)?;
        let [own, its] = namespaces(proc, pid, Kind::Time)?;
        self.state.extra_time_namespace = !self.plan.namespaces.is_private(Kind::Time) && !same(&own, &its)?;
        self.state.set_init(pid)?;
        self.state.creating = false;
        self.container.write_state(&self.state)?;
        self.options.pid_file.as_deref().map_or(Ok(()), |path| handover::write_pid_file(path, pid))
    }

    /// Stays with the container to its end.
    fn attend(mut self, signals: &Signals) -> Result<i32> {
        let pid = Pid::from_raw(self.state.pid);
        let pidfd = pidfd_open(pid).context(|| format!("open a pidfd of process {pid}"))?;
        let code = relay::foreground(signals, pid, pidfd.as_fd(), self.console.take(), None);
        destroy_unless_gone(&mut self.container, &self.state)?;
        code
    }

    /// Leaves nothing behind.
    fn undo(&self) {
        undo(&self.container, &self.state, self.cgroup.as_ref(), self.net_devices.as_ref());
        if let Some(path) = self.options.pid_file.as_deref().filter(|_| !self.state.creating) {
            handover::remove_pid_file(path);
        }
    }
}

/// This process's and that of `pid`.
fn namespaces(proc: &Proc, pid: Pid, kind: Kind) -> Result<[OwnedFd; 2]> {
    Ok([proc.namespace("self", kind.file())?, proc.namespace(pid, kind.file())?])
}

/// Does something in another network namespace, and comes back.
fn inside(own: &OwnedFd, other: &OwnedFd, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let enter = |fd: &OwnedFd| setns(fd, CloneFlags::CLONE_NEWNET).context(|| "enter a network namespace");
    enter(other)?;
    let done = act();
    enter(own).and(done)
}

/// Criu takes text only.
fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::new(format!("{}: the path is not UTF-8", path.display())))
}
