//! `keel create`, as the runtime spec's lifecycle tells it, in order.
//!
//! What is about to be made is written into the state first, so that a `create` that fails, or is killed at
//! any moment, is cleaned up by the code and from the facts that `delete --force` uses.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#lifecycle>

mod for_init;
mod own_cgroup;
mod upper;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::Pid;

use crate::bundle::Bundle;
use crate::cgroup::systemd::Bus;
use crate::cgroup::{self, Cgroup, Manager, oom, undelegated};
use crate::cli::CreateOptions;
use crate::container::{Container, State, Status};
pub use crate::create::for_init::check_private;
use crate::create::for_init::{make_dev, map_ids, open_early, open_for_init, opens_late, user_namespace};
pub use crate::create::own_cgroup::hold_signals;
pub use crate::create::upper::claim as claim_upper;
use crate::delete::destroy;
use crate::error::{Context, Field, Result};
use crate::fds::Passed;
use crate::handover;
use crate::host::Host;
use crate::init::{self};
use crate::linux::idmap::IdMap;
use crate::linux::mounts::Users;
use crate::linux::namespaces::{Kind, in_mount_namespace};
use crate::linux::self_exe::{self, Protection};
use crate::linux::{hooks, net_devices};
use crate::log;
use crate::notify::{self, Notify};
use crate::plan::Plan;
use crate::proc::Proc;
use crate::relay::{Console, Signals};
use crate::spawn::{Request, Spawned, spawn};
use crate::spec::Report;
use crate::sync::ToInit;
use crate::trees::Trees;

/// What this process is, before it creates anything.
pub struct Process {
    /// Who is kept from writing to the program that it runs.
    pub protection: Protection,
    /// What it was handed for the container.
    pub passed: Passed,
}

/// Who waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `create`: the program runs when `start` asks for it.
    Create,
    /// `run --detach`: the program runs at once, on its own.
    Detached,
    /// `run`: the program runs at once, and the caller waits for it and has its terminal.
    Foreground,
}

/// A container whose first process is set up, and unless [`Mode::Create`] runs the program.
pub struct Created {
    pub container: Container,
    pub state: State,
    pub first: First,
    /// Where it will say that it is ready, if anybody waits for that and it runs already.
    pub notify: Option<Notify>,
}

/// The container's first process.
pub struct First {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// The container's terminal joined with this process's, in [`Mode::Foreground`].
    pub console: Option<Console>,
}

pub fn create(options: &CreateOptions, process: &Process) -> Result<()> {
    let signals = hold_signals(options)?;
    let interrupt = signals.as_ref().map(Signals::interrupt);
    new_container(options, process, Mode::Create, interrupt).map(drop)
}

/// Creates a container, or leaves nothing behind; gives up as soon as `interrupt` is readable.
pub fn new_container(
    options: &CreateOptions,
    process: &Process,
    mode: Mode,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Created> {
    from_bundle(options, process, mode, interrupt).context(|| format!("create container {}", options.id))
}

fn from_bundle(
    options: &CreateOptions,
    process: &Process,
    mode: Mode,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Created> {
    let passed = process.passed;
    let host = Host::new()?;
    let report = Report::default();
    let mut bundle = Bundle::load(&options.bundle, &report)?;
    passed.announce(&mut bundle.spec);
    let notifies = notify::offer(&mut bundle.spec, &options.root.join(&options.id))?;
    // All validation is here: after it only the kernel and the hooks can refuse.
    let plan =
        Plan::new(&bundle, &options.id, options.no_pivot, options.cgroup_manager, options.rights, &report);
    plan.check_host(&report);
    let waits = mode == Mode::Foreground;
    check_terminal(plan.terminal().is_some(), waits, options.console_socket.is_some(), &report);
    for warning in report.finish()? {
        log::warning(format_args!("config.json {warning}"));
    }

    if process.protection == Protection::UnlessImmutableIsCleared && plan.may_clear_immutable() {
        match self_exe::restart()? {}
    }

    let state = first_state(&plan, &bundle, &options.id, options.cgroup_manager, !options.no_new_keyring)?;
    let container = Container::create(&options.root, &options.id)?;
    let mut making = Making {
        options,
        host,
        bundle,
        plan,
        container,
        passed,
        mode,
        interrupt,
        state,
        bus: None,
        cgroup: None,
        oom_watch: oom::Watch::default(),
        net_devices: None,
    };
    let notify = making.listen(notifies);
    match notify.and_then(|notify| Ok((notify, making.first_process()?))) {
        Ok((notify, first)) => {
            // It may be deleted from now on, also while a `run` waits for its end.
            making.container.unlock()?;
            Ok(Created { container: making.container, state: making.state, first, notify })
        }
        Err(error) => {
            undo(&making.container, &making.state, making.cgroup.as_ref(), making.net_devices.as_ref());
            Err(error)
        }
    }
}

/// What a `delete --force` needs to know from now on; the rest is added as it comes to be.
pub fn first_state(
    plan: &Plan,
    bundle: &Bundle,
    id: &str,
    manager: Manager,
    new_keyring: bool,
) -> Result<State> {
    Ok(State {
        bundle: bundle.dir.clone(),
        rootfs: plan.rootfs.path.clone(),
        annotations: plan.annotations.clone(),
        cgroup_manager: manager,
        pid_namespace_private: plan.namespaces.is_new(Kind::Pid),
        new_keyring,
        poststart: plan.hooks.poststart.clone(),
        poststop: plan.hooks.poststop.clone(),
        ..State::new(id)?
    })
}

/// In runc's words where callers know them. `waits`: this process stays until the program ends, and has a terminal
/// for it.
pub fn check_terminal(terminal: bool, waits: bool, console_socket: bool, report: &Report) {
    let message = match (terminal, waits, console_socket) {
        (true, false, false) => "cannot allocate tty if keel will detach without setting --console-socket",
        (false, _, true) | (true, true, true) => {
            "cannot use --console-socket if keel will not detach or allocate tty"
        }
        _ => return,
    };
    report.problem(Field::root().child("process").child("terminal"), message);
}

/// A container in the making; `state` and `cgroup` say what there is to undo.
struct Making<'a> {
    options: &'a CreateOptions,
    host: Host,
    bundle: Bundle,
    plan: Plan,
    container: Container,
    passed: Passed,
    mode: Mode,
    interrupt: Option<BorrowedFd<'a>>,
    state: State,
    /// Where systemd waits to be asked for the container's cgroup.
    bus: Option<Bus<'a>>,
    cgroup: Option<Cgroup>,
    oom_watch: oom::Watch,
    net_devices: Option<net_devices::Given>,
}

impl Making<'_> {
    /// Makes the socket on which the container will say that it is ready, and listens if it runs at once. (The
    /// socket of a container that waits is bound by `start`, which listens to it.)
    fn listen(&self, notifies: bool) -> Result<Option<Notify>> {
        if !notifies {
            return Ok(None);
        }
        notify::make_dir(&self.container)?;
        if self.mode == Mode::Create { Ok(None) } else { Notify::listen(&self.container) }
    }

    /// Clones the container's first process and sees it through to its program, or to where it waits for `start`.
    fn first_process(&mut self) -> Result<First> {
        self.make_cgroup()?;
        upper::claim(&self.plan, &self.container, &self.state)?;
        let Self { options, plan, container, mode, state, .. } = self;
        let proc = Proc::host();
        let joined = plan.namespaces.open(&proc)?;
        check_private(plan, &joined)?;
        let map = user_namespace(plan, &joined, &proc)?;
        let inside = map.is_some() && plan.namespaces.is_private(Kind::Mount);
        let users = Users::new(&proc, map.as_ref(), inside);
        let cgroup = self.cgroup.as_ref();
        // The others are opened once init is where they are: in its mount namespace, in its scope, or by itself.
        let late = opens_late(plan, &users) || plan.binds_scope() || plan.rights.is_user();
        let open = || open_early(plan, &self.host, cgroup, &proc, &users);
        let trees = (!late).then(open).transpose()?;
        let inherited = open_for_init(options, plan, container, self.passed, *mode, cgroup, trees, &users)?;

        let cgroup = self.cgroup.as_ref().map(Cgroup::as_fd);
        let spawn = || {
            spawn(&plan.namespaces, &joined, &proc, cgroup, plan.rights, |parent| {
                init::run(parent, |create| init::live(plan, &self.host, state, &joined, inherited, create))
            })
        };
        let score = plan.process.as_ref().and_then(|process| process.oom_score_adj.as_ref());
        let spawned = match score.filter(|_| plan.rights.is_user()) {
            Some(score) => score.inherited(&proc, spawn)?,
            None => spawn()?,
        };
        let console = match self.see_through(&spawned, &proc, map.as_ref(), &users) {
            Err(error) => {
                // systemd removes the cgroup with init, and what fails for want of it is not the reason.
                let reason = self.oom_kill(&spawned).or_else(|| spawned.last_words());
                // What undoes this knows init by the state.
                if self.state.pid == 0 {
                    self.state.set_init(spawned.pid).unwrap_or_else(log::debug);
                }
                return Err(reason.unwrap_or(error));
            }
            Ok(console) => console,
        };
        if self.mode != Mode::Create
            && self.oom_watch.field.is_some()
            && let Some(error) = self.oom_kill(&spawned)
        {
            // What the limit did not let come to its first breath is no program that ran and was killed.
            self.remove_pid_file();
            return Err(error);
        }
        Ok(First { pid: spawned.pid, pidfd: spawned.pidfd, console })
    }

    /// `map`: of the user namespace that init is in, if it is not the runtime's own.
    fn see_through(
        &mut self,
        spawned: &Spawned,
        proc: &Proc,
        map: Option<&IdMap>,
        users: &Users,
    ) -> Result<Option<Console>> {
        // First of all, since init waits for it.
        self.enter_scope(spawned)?;
        let Self { options, plan, container, mode, interrupt, state, .. } = self;
        if let Some(map) = map {
            map_ids(plan, map, proc, spawned)?;
        }
        let late = opens_late(plan, users);
        let mut trees = None;
        if late {
            let open = || Trees::open(plan, &self.host, self.cgroup.as_ref(), users);
            trees = Some(in_mount_namespace(spawned.pidfd.as_fd(), proc, open)?);
        } else if plan.binds_scope() && !plan.rights.is_user() {
            trees = Some(open_early(plan, &self.host, self.cgroup.as_ref(), proc, users)?);
        }
        trees.iter().try_for_each(|trees| spawned.send(|sync| trees.send_root(sync)))?;
        if map.is_some() {
            spawned.tell(ToInit::Continue)?;
        }
        if let Some(mut trees) = trees {
            if late {
                // While init goes to its root.
                make_dev(plan, &mut trees, users)?;
            }
            spawned.send(|sync| trees.send_sources(sync))?;
        }
        // From here to the first word of init, all is done while init mounts.
        if state.pid == 0 {
            state.set_init(spawned.pid)?;
        }
        // Hooks may ask for the state; without them it may say "created" now, since init does not go on alone.
        let hooks = plan.hooks.any_in_create();
        state.creating = hooks;
        container.write_state(state)?;
        container.write_config(&self.bundle.config)?;
        if let Some(cgroup) = &self.cgroup {
            cgroup::limits::apply(&plan.cgroup.limits, cgroup)?;
            undelegated::apply_devices(&plan.cgroup.devices, cgroup, plan.rights)?;
        }
        let score = plan.process.as_ref().and_then(|process| process.oom_score_adj.as_ref());
        if let Some(score) = score.filter(|_| !plan.rights.is_user()) {
            score.apply(proc, spawned.pid)?;
        }
        if let Some(rdt) = &plan.rdt {
            state.rdt = Some(rdt.apply(proc, &options.id, spawned.pid)?);
            container.write_state(state)?;
        }
        net_devices::apply(&plan.net_devices, proc, spawned.pid, &mut self.net_devices)?;

        // A delete --force kills init and counts on us to notice, whatever a hook does.
        let hook_ends: Vec<_> = [spawned.pidfd.as_fd()].into_iter().chain(*interrupt).collect();
        let terminal = spawned.await_ready(*interrupt, |request| {
            let oci_state = state.oci_state(Status::Creating, state.pid);
            match request {
                Request::Mounted => {
                    hooks::run(&plan.hooks.prestart, &oci_state, &hook_ends)?;
                    hooks::run(&plan.hooks.create_runtime, &oci_state, &hook_ends)
                }
                Request::Listener(listener) => plan
                    .process
                    .as_ref()
                    .map_or(Ok(()), |process| process.send_listener(&listener, spawned.pid, &oci_state)),
            }
        })?;
        if let Some(process) = plan.process.as_ref().filter(|_| map.is_some() && !plan.rights.is_user()) {
            // Not earlier: with a deadline it could not fork for its hooks.
            process.schedule(spawned.pid)?;
        }
        if let Some(cgroup) = &self.cgroup {
            // Init has moved to the leaf by now.
            plan.cgroup.leaf.as_ref().map_or(Ok(()), |leaf| leaf.free(cgroup, self.host.cgroup2()?))?;
            // After it: controllers bring files of their own.
            let owner = plan.cgroup_owner.and_then(|uid| map.map_or(Some(uid), |map| map.host_uid(uid)));
            let leaf = plan.cgroup.leaf.as_ref();
            owner.map_or(Ok(()), |uid| undelegated::give(cgroup, leaf, uid, plan.rights))?;
        }
        // Before the program starts, which may ask for the size at once.
        let sized = plan.terminal().is_some_and(|terminal| terminal.size.is_some());
        let console = terminal.map(|master| Console::attach(master, sized)).transpose()?;
        if hooks {
            state.creating = false;
            container.write_state(state)?;
        }
        own_cgroup::fail_if_killed(self.cgroup.as_ref(), &self.oom_watch)?;
        if let Some(path) = &options.pid_file {
            handover::write_pid_file(path, spawned.pid)?;
        }
        let commit = || {
            if let Some(path) = &options.pidfd_socket {
                handover::send_pidfd(path, spawned.pidfd.as_fd())?;
            }
            match mode {
                Mode::Create => spawned.tell(ToInit::Commit),
                Mode::Detached | Mode::Foreground => spawned.execute(*interrupt),
            }
        };
        commit().inspect_err(|_| self.remove_pid_file())?;
        Ok(console)
    }

    fn remove_pid_file(&self) {
        self.options.pid_file.iter().for_each(|path| handover::remove_pid_file(path));
    }
}

/// Leaves nothing behind of a container in the making.
pub fn undo(
    container: &Container,
    state: &State,
    cgroup: Option<&Cgroup>,
    net_devices: Option<&net_devices::Given>,
) {
    let undone = net_devices
        .map_or(Ok(()), net_devices::Given::take_back)
        .and(destroy(container, state))
        // And the parents that were made for it.
        .and_then(|()| cgroup.map_or(Ok(()), Cgroup::undo));
    if let Err(e) = undone {
        log::warning(format_args!("undo the making of container {}: {e}", state.id));
    }
}
