//! The container's first process, from its first instruction to execve, in order.
//!
//! It is a copy of `create` in new namespaces, with the plan in memory and the descriptors of [`Inherited`].
//! Whatever goes wrong is told to create (before the commit) or to `start` (after it). It never returns: it
//! ends in execve or in `_exit`.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};

use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, getpid, setsid};

use crate::cgroup::delegate;
use crate::container::{State, Status};
use crate::error::{Context, Error, Field, Result};
use crate::gate;
use crate::host::Host;
use crate::linux::idmap::IdMap;
use crate::linux::mounts::Users;
use crate::linux::namespaces::{Joined, Kind};
use crate::linux::program::Program;
use crate::linux::seccomp::Seccomp;
use crate::linux::terminal::Pty;
use crate::linux::{
    capabilities, devices, hooks, idmap, keyring, mounts, net_devices, paths, rootfs, schedule, sysctl,
    terminal,
};
use crate::log;
use crate::plan::{Plan, Process};
use crate::proc::Proc;
use crate::rights::Rights;
use crate::root::Root;
use crate::sync::{InitEnd, ToInit};
use crate::sys::fs::close_all_but;
use crate::sys::process::{exit_now, reset_signals, unblock_signals};
use crate::trees::{self, Trees};

/// What was opened on the host, before the clone, for init's use.
pub struct Inherited {
    /// None: they are still to be opened, by create or by init.
    pub trees: Option<Trees>,
    /// The device nodes that init may not make itself, but create may.
    pub devices: Option<OwnedFd>,
    /// The mappings of its user namespace, and whom it becomes there, if that is not the runtime's own.
    pub mapped: Option<(IdMap, (Uid, Gid))>,
    /// Whether its cgroup is still to be made, around it.
    pub scope_follows: bool,
    /// Where init moves to, from the top of its cgroup namespace.
    pub cgroup_leaf: Option<OwnedFd>,
    /// Where the terminal's master goes; without it, to create.
    pub console_socket: Option<OwnedFd>,
    /// Where `start` knocks; without it the program starts at once.
    pub gate: Option<OwnedFd>,
    /// Its lock says "created" for as long as init holds it; execve closes it.
    pub created_lock: Option<OwnedFd>,
    /// The first descriptor that the program does not get.
    pub first_private_fd: u32,
    pub new_keyring: bool,
}

/// All of a cloned process's life; whatever goes wrong in it is told to the parent.
pub fn run(parent: InitEnd, live: impl FnOnce(&InitEnd) -> Result<Infallible>) -> Infallible {
    // Never dropped, and so at hand for the panic hook: unwinding would run the parent's code in this copy of it.
    let parent: &'static InitEnd = Box::leak(Box::new(parent));
    std::panic::set_hook(Box::new(|panic| {
        parent.failed(&Error::new(format!("init panicked: {panic}")));
        exit_now(1);
    }));
    let Err(error) = live(parent);
    parent.failed(&error);
    exit_now(1)
}

/// The life of a container's first process.
pub fn live(
    plan: &Plan,
    host: &Host,
    state: &State,
    joined: &Joined,
    mut inherited: Inherited,
    create: &InitEnd,
) -> Result<Infallible> {
    let gate = inherited.gate.take();
    let lock = inherited.created_lock.take();
    let kept = [Some(create.as_fd().as_raw_fd()), log::descriptor(), raw(&gate), raw(&lock)];
    let ready = set_up(plan, host, state, joined, inherited, create, &kept)?;
    // Not before: a start that came while hooks run would wait, perhaps for the hook that called it.
    gate.as_ref().map_or(Ok(()), gate::listen)?;
    create.ready()?;
    // If create dies before it commits, nobody will ever know of this process.
    let Some(order) = create.receive()? else { exit_now(1) };
    let caller = match (order, gate) {
        (ToInit::Commit, Some(gate)) => Some(gate::wait(gate)?),
        _ => None,
    };
    let error = match ready {
        Some(program) => start(plan, state, program),
        None => Error::new("there is no process to start").field(&Field::root().child("process")),
    };
    if let Some(caller) = caller {
        caller.failed(&error);
    }
    Err(error)
}

/// A program that can be executed as things stand.
pub struct Found<'p> {
    process: &'p Process,
    program: Program,
    path: CString,
    /// What is left to be loaded, at the last moment: the fewer system calls follow it, the less it must allow.
    filter: Option<&'p Seccomp>,
}

/// The container, up to the user's program.
fn set_up<'p>(
    plan: &'p Plan,
    host: &Host,
    state: &State,
    joined: &Joined,
    inherited: Inherited,
    create: &InitEnd,
    kept: &[Option<i32>],
) -> Result<Option<Found<'p>>> {
    let user = plan.rights.is_user();
    // Nobody in a joined namespace may look into this process, which still holds the host's descriptors. In a new user
    // namespace of a user nobody else can be, and /proc/PID/uid_map has to be the user's until it is written.
    if !(user && plan.namespaces.is_new(Kind::User)) {
        prctl::set_dumpable(false).context(|| "become undumpable")?;
    }
    gate::hold_signals()?;
    schedule::reset_affinity();
    // What is made in the rootfs gets the modes that the config gives.
    let callers_umask = umask(Mode::empty());
    setsid().context(|| "start a session")?;
    // While systemd makes the scope, init can do what takes no memory to speak of; but create's words come in order.
    let mut enter_cgroup =
        Some(|| enter_cgroup(plan, inherited.scope_follows, inherited.cgroup_leaf, create));
    plan.namespaces.enter_as_init(joined, &Proc::host())?;
    if inherited.trees.is_none() {
        enter_cgroup.take().map_or(Ok(()), |enter| enter())?;
    }
    let has_user_namespace = inherited.mapped.is_some();
    let proc = match plan.rights {
        Rights::Root if !has_user_namespace => Proc::private(),
        _ => Proc::private_or_host(),
    };
    if (has_user_namespace || plan.rights != Rights::Root) && plan.needs_proc_inside() {
        proc.prepare()?;
    }
    if user {
        await_mappings(create)?;
        prctl::set_dumpable(false).context(|| "become undumpable")?;
    }
    let (root, sources) = match inherited.trees {
        Some(Trees { root, sources }) => (root, Some(sources)),
        None if user => {
            let map = inherited.mapped.as_ref().map(|(map, _)| map);
            let users = Users::new(&proc, map, false);
            let Trees { root, sources } = Trees::open(plan, host, state.open_cgroup()?.as_ref(), &users)?;
            (root, Some(sources))
        }
        None => (Some(trees::receive(create)?), None),
    };
    // As long as the host's are in reach, by their paths and by the caller's rights: directories of the host's root
    // may be on the way to the bundle.
    let devices = devices::Nodes::open(&plan.devices, inherited.devices)?;
    let place = rootfs::place(&plan.rootfs)?;
    if let Some((_, (uid, gid))) = inherited.mapped {
        if !user {
            await_mappings(create)?;
        }
        // Before anything is made, which is to belong to the container's root: files, file systems, the keyring.
        idmap::become_mapped(uid, gid)?;
    }
    let root = match root {
        Some(root) => root,
        None => mounts::make_root(&plan.mounts)?,
    };
    let root = rootfs::attach(root, place, &plan.rootfs)?;
    if inherited.new_keyring {
        join_keyring(plan.process.as_ref(), &proc, &state.id)?;
    }
    if plan.namespaces.is_new(Kind::Network) {
        net_devices::loopback_up()?;
    }

    let sources = sources.map_or_else(
        || plan.mounts.have_sources().map(|has| has.then(|| trees::receive(create)).transpose()).collect(),
        Ok,
    )?;
    let mounts::Made { writable, kernel } =
        mounts::apply(&plan.mounts, sources, &root, || enter_cgroup.map_or(Ok(()), |enter| enter()))?;
    // After the mounts, since one of them is /dev.
    devices::apply(&plan.devices, &root, &proc, devices)?;
    // After the devices, and while /dev can be written to.
    let terminal = open_terminal(plan, &root, inherited.console_socket, create)?;
    if let Some(process) = &plan.process {
        process.program.create_cwd(&root)?;
    }

    // With the host's files still in reach: these hooks are the host's.
    if plan.hooks.any_in_create() {
        // A user's hooks, which give it a network, could not enter its namespaces otherwise.
        let is_open = user && plan.namespaces.is_new(Kind::User);
        if is_open {
            prctl::set_dumpable(true).context(|| "let hooks in")?;
        }
        create.mounted()?;
        if create.receive()?.is_none() {
            exit_now(1);
        }
        if is_open {
            prctl::set_dumpable(false).context(|| "become undumpable")?;
        }
        umask(callers_umask);
        hooks::run(&plan.hooks.create_container, &own_state(state, Status::Creating), &[])?;
        umask(Mode::empty());
    }

    rootfs::enter(&root, &plan.rootfs, &proc)?;
    plan.names.apply()?;
    // After createRuntime hooks and create's net devices, whose parameters may be among these.
    sysctl::apply(&plan.sysctls, &proc)?;
    // After the sysctls, which masked paths would hide.
    paths::apply(&plan.paths, &root, kernel)?;
    // Last on the rootfs: from here on nothing can be made in it.
    mounts::finish(writable)?;
    rootfs::finish(&root, &plan.rootfs)?;

    let Some(process) = &plan.process else {
        drop((proc, root));
        close_host(inherited.first_private_fd, kept.to_vec())?;
        return Ok(None);
    };
    if let Some(terminal) = terminal {
        terminal.become_stdio()?;
    }
    if user || !has_user_namespace {
        process.schedule(THIS)?;
    }
    restrict(process, &root, proc, callers_umask, inherited.first_private_fd, kept, create).map(Some)
}

/// To the container's cgroup, to the namespace that has it for its top, and then to the leaf below it.
fn enter_cgroup(plan: &Plan, scope_follows: bool, leaf: Option<OwnedFd>, create: &InitEnd) -> Result<()> {
    let leaf = match scope_follows {
        // If create dies before that, nobody knows of this process.
        true => create.receive_scope()?.unwrap_or_else(|| exit_now(1)),
        false => leaf,
    };
    plan.namespaces.unshare_cgroup()?;
    leaf.map_or(Ok(()), delegate::enter)
}

/// Until the ids of this process's user namespace are mapped.
fn await_mappings(create: &InitEnd) -> Result<()> {
    if create.receive()?.is_none() {
        // Create is dead, and has told nobody of this process.
        exit_now(1);
    }
    Ok(())
}

/// The calling process, for calls that take a pid.
pub const THIS: Pid = Pid::from_raw(0);

/// Takes the process from root on the host to the config's user with no more rights than it is given. The same for
/// the container's first process and for those of `exec`.
pub fn restrict<'p>(
    process: &'p Process,
    root: &Root,
    proc: Proc,
    callers_umask: Mode,
    first_private_fd: u32,
    kept: &[Option<i32>],
    parent: &InitEnd,
) -> Result<Found<'p>> {
    if process.no_new_privileges {
        capabilities::set_no_new_privileges()?;
    }
    // Before capabilities are dropped: all of this may need them.
    if let Some(policy) = &process.memory_policy {
        policy.apply()?;
    }
    if let Some(personality) = &process.personality {
        personality.apply()?;
    }
    process.labels.apply(&proc, process.no_new_privileges)?;
    let mut program = process.program.clone();
    if program.env_value("HOME").is_none_or(<[u8]>::is_empty) {
        program.set_env("HOME", &process.user.home(root));
    }
    drop(proc);
    close_host(first_private_fd, [kept, &[Some(root.as_fd().as_raw_fd())]].concat())?;

    let entered = program.try_enter_cwd(root)?;
    let granted = process.capabilities.before_setuid()?;
    // Needs CAP_SYS_RESOURCE; late, since the limits bind this process too.
    process.rlimits.apply()?;
    process.user.apply(callers_umask, root)?;
    if !entered {
        program.enter_cwd(root)?;
    }
    match process.seccomp {
        Some(_) if !process.no_new_privileges => granted.apply_before_filter()?,
        _ => granted.apply()?,
    }
    // As the final user, with the final capabilities: what is found now is what execve will take.
    let path = program.find()?;
    // All are held back until execve, so that none can end this process meanwhile.
    reset_signals().context(|| "reset signals")?;
    // Of what is called from the load on, the plan knows (`Process::check_filter`).
    match &process.seccomp {
        // Its agent gets it from the parent, which is there until the process is ready and no longer.
        Some(seccomp) if seccomp.listener().is_some() => {
            match seccomp.load()? {
                Some(listener) if process.rights.is_user() => parent.send_listener(listener.as_fd())?,
                // By its number: sendmsg(2) may be one of the calls that wait for the agent. It stays open until execve.
                Some(listener) => parent.listener(listener.into_raw_fd())?,
                None => {}
            }
            // Execve would do that, but it may be long in coming.
            if !process.no_new_privileges {
                granted.drop_sys_admin()?;
            }
            Ok(Found { process, program, path, filter: None })
        }
        filter => Ok(Found { process, program, path, filter: filter.as_ref() }),
    }
}

/// Becomes the user's program; returns only to say why not.
fn start(plan: &Plan, state: &State, found: Found) -> Error {
    let hooks = &plan.hooks.start_container;
    let hooks_run =
        if hooks.is_empty() { Ok(()) } else { hooks::run(hooks, &own_state(state, Status::Created), &[]) };
    hooks_run.map_or_else(|error| error, |()| found.execute())
}

impl Found<'_> {
    /// Returns only to say why not.
    pub fn execute(self) -> Error {
        let load = || self.filter.map_or(Ok(()), |seccomp| seccomp.load().map(drop));
        let limit = || self.process.rlimits.apply_last();
        match unblock_signals().context(|| "unblock signals").and_then(|()| limit()).and_then(|()| load()) {
            Ok(()) => self.program.execute(&self.path),
            Err(error) => error,
        }
    }
}

/// The keyring that all processes of a container have in common.
pub fn join_keyring(process: Option<&Process>, proc: &Proc, id: &str) -> Result<()> {
    let join = || keyring::join(id);
    process.map_or_else(join, |process| process.labels.with_key_label(proc, join))
}

/// Closed, not left to execve: it walks the program's path first, and /proc/self/fd/7/.. would lead out of the container
/// through any directory of the host (CVE-2024-21626). And the lock of `create` must not outlive it.
fn close_host(first_private_fd: u32, kept: Vec<Option<i32>>) -> Result<()> {
    let kept: Vec<i32> = kept.into_iter().flatten().collect();
    close_all_but(first_private_fd, &kept).context(|| "close the descriptors to the host")
}

fn open_terminal(
    plan: &Plan,
    root: &Root,
    console_socket: Option<OwnedFd>,
    create: &InitEnd,
) -> Result<Option<Pty>> {
    let Some(Process { terminal: Some(terminal), user, .. }) = &plan.process else { return Ok(None) };
    let pty = terminal::allocate(terminal, root, user.uid())?;
    pty.bind_console(root)?;
    match console_socket {
        Some(socket) => pty.send_master(socket.as_fd())?,
        None => create.terminal(pty.master())?,
    }
    Ok(Some(pty))
}

/// The state that this process's hooks read; its pid is the one that they see.
fn own_state(state: &State, status: Status) -> Vec<u8> {
    state.oci_state(status, getpid().as_raw())
}

fn raw(fd: &Option<OwnedFd>) -> Option<i32> {
    fd.as_ref().map(AsRawFd::as_raw_fd)
}
