//! `keel exec`: adds a process to a container that lives.
//!
//! What is set on it is planned and applied by the same code as for the container's first process, from the config
//! as `create` froze it; it makes nothing and joins all that the first process has (see `join.rs`).

mod process;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::cgroup::systemd::{Attach, Instance};
use crate::cgroup::{Cgroup, undelegated};
use crate::cli::ExecOptions;
use crate::container::{Container, State, Status};
use crate::create::{self, check_terminal};
use crate::error::{self, Context, Error, Field, Problem, Result};
use crate::handover;
use crate::host::Host;
use crate::init;
use crate::join::{self, Joining};
use crate::linux::capabilities::Capabilities;
use crate::linux::idmap::IdMap;
use crate::linux::namespaces::{Kind, Namespaces, same};
use crate::linux::self_exe::{self, Protection};
use crate::log;
use crate::plan::Process;
use crate::proc::Proc;
use crate::relay::{self, Console, Signals};
use crate::rights::Rights;
use crate::socket;
use crate::spawn::{Request, Spawned, spawn_beside};
use crate::spec::{self, Node, Report};
use crate::sys::process::pidfd_send_signal;

/// The exit code of the process; 0 when it runs on, detached.
pub fn exec(root: &Path, options: &ExecOptions, own: &create::Process) -> Result<i32> {
    add_process(root, options, own).context(|| format!("exec in container {}", options.id))
}

fn add_process(root: &Path, options: &ExecOptions, own: &create::Process) -> Result<i32> {
    let container = Container::open(root, &options.id)?;
    let state = container.state()?;
    let first = first_process(&container, &state, options.ignore_paused)?;
    let rights = Rights::of_caller();
    if rights.is_user() && container.status(&state)? == Status::Created {
        // Init still holds what is the host's, so the kernel lets nobody but root look at it.
        let why = "cannot exec in a created container as a user other than root: start it first";
        return Err(Error::of_kind(error::Kind::WrongStatus, why));
    }
    let host = Host::new()?;
    let plan = container
        .config()
        .and_then(|config| Plan::new(&config, options, rights))
        .map_err(|error| explain(error, first.as_fd(), options))?;
    if own.protection == Protection::UnlessImmutableIsCleared && plan.may_clear_immutable {
        match self_exe::restart()? {}
    }

    // Before the process exists: a signal that comes meanwhile must not leave it behind.
    let signals = if options.detach { None } else { Some(relay::block_signals()?) };
    let interrupt = signals.as_ref().map(Signals::interrupt);
    let (spawned, console) = start(&plan, &state, first.as_fd(), &host, options, own, interrupt)
        .map_err(|error| explain(error, first.as_fd(), options))?;
    match signals {
        Some(signals) => relay::foreground(&signals, spawned.pid, spawned.pidfd.as_fd(), console, None),
        None => Ok(0),
    }
}

/// The container's first process, in whose namespaces the new one will be.
fn first_process(container: &Container, state: &State, ignore_paused: bool) -> Result<OwnedFd> {
    let refuse = |why| Error::of_kind(error::Kind::WrongStatus, format!("cannot exec in a {why}"));
    let first = match state.init()? {
        Some(first) if !state.creating => first,
        None if container.status(state)? == Status::Stopped => return Err(refuse("stopped container")),
        _ => return Err(refuse("container that is creating")),
    };
    if !ignore_paused
        && let Some(cgroup) = state.open_cgroup()?
        && cgroup.events()?.frozen
    {
        return Err(refuse("paused container (use --ignore-paused to override)"));
    }
    Ok(first)
}

/// All that is set on the new process.
struct Plan {
    process: Process,
    namespaces: Namespaces,
    may_clear_immutable: bool,
}

impl Plan {
    fn new(config: &[u8], options: &ExecOptions, rights: Rights) -> Result<Self> {
        // The config as it was created: what there was to say about it has been said.
        let frozen = Report::default();
        let read = || "read the config that the container was created with";
        let config = spec::parse(config, &frozen).context(read)?;
        let node = Node::root(&config, &frozen);
        let linux = node.object_or_empty("linux");

        let report = Report::default();
        let process = process::to_run(config.get("process"), options, &report)?;
        let process_node = Node::at_field(&process, Field::root().child("process"), &report);
        let planned = Process::plan(&process_node, &linux, rights);
        if let Some(planned) = &planned {
            let terminal = planned.terminal.is_some();
            check_terminal(terminal, !options.detach, options.console_socket.is_some(), &report);
            planned.labels.check(&report);
        }
        let process = report
            .finish()
            .and_then(|warnings| {
                // About the container's own there were these at create.
                if let Some(path) = &options.process {
                    warnings.iter().for_each(|warning| warn(path, warning));
                }
                planned.ok_or_else(|| Error::new("there is no process to run"))
            })
            .map_err(|error| error.in_document(document(options), "/process"))?;

        // Either of them may get hold of this program's file.
        let first = Capabilities::plan(&node.object_or_empty("process"));
        let clears = |capabilities: &Capabilities| capabilities.bounds(caps::Capability::CAP_LINUX_IMMUTABLE);
        let may_clear_immutable = clears(&first) || clears(&process.capabilities);
        let namespaces = Namespaces::plan(&linux);
        frozen.finish().context(read)?;
        Ok(Self { process, namespaces, may_clear_immutable })
    }
}

/// When a container ends meanwhile, its end is the error, not what was missing then. Any other error names the file
/// that the process is from.
fn explain(error: Error, first: BorrowedFd<'_>, options: &ExecOptions) -> Error {
    // A process that ends has no namespaces to join any more. Its pidfd would tell too late: the first of a pid
    // namespace does not end before all others there are reaped, ours included.
    match setns(first, CloneFlags::CLONE_NEWPID) {
        Err(Errno::ESRCH) => error.because("the container ended".into()),
        _ => error.in_document(document(options), "/process"),
    }
}

fn warn(path: &Path, Problem { field, reason }: &Problem) {
    let field = field.as_str();
    let field = field.strip_prefix("/process").unwrap_or(field);
    log::warning(format_args!("{}: {field}: {reason}", path.display()));
}

/// What an error calls the JSON that the process is described by.
fn document(options: &ExecOptions) -> String {
    options.process.as_ref().map_or_else(|| "process".into(), |path| path.display().to_string())
}

/// Clones the process and sees it through to its program.
fn start(
    plan: &Plan,
    state: &State,
    first: BorrowedFd<'_>,
    host: &Host,
    options: &ExecOptions,
    own: &create::Process,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<(Spawned, Option<Console>)> {
    let process = &plan.process;
    let proc = Proc::host();
    let map = user_namespace(&plan.namespaces, state, &proc)?;
    if let Some(map) = map.as_ref().filter(|_| process.terminal.is_none()) {
        process.user.own_stdio(map)?;
    }
    let (mapped, user) = (map.is_some(), process.rights.is_user());
    // Those that the process in between joins.
    const FIRST: i32 = nix::libc::CLONE_NEWUSER | nix::libc::CLONE_NEWPID;
    let foreign = user.then(|| Namespaces::foreign_flags(&proc, Pid::from_raw(state.pid))).transpose()?;
    let restored = if state.extra_time_namespace { nix::libc::CLONE_NEWTIME } else { 0 };
    let mut cgroup = open_cgroup(state, host, options)?;
    let attach = cgroup.as_ref().map_or(Ok(None), |cgroup| attach(state, cgroup, host, options))?;
    if attach.is_some() {
        cgroup = None;
    }
    let joining = Joining {
        first,
        namespaces: foreign.map_or(plan.namespaces.join_flags(mapped) | restored, |flags| flags & !FIRST),
        mapped: map.map(|map| map.maker(Some((process.user.uid(), process.user.gid())))),
        root: (!plan.namespaces.is_private(Kind::Mount)).then(|| proc.root(state.pid)).transpose()?,
        console_socket: options.console_socket.as_deref().map(socket::connect).transpose()?,
        first_private_fd: own.passed.first_private(),
        keyring: state.new_keyring.then_some(&*state.id),
        moves: attach.is_some(),
    };
    // The clone is seen from inside the container at once, while it still holds the host's descriptors. (That of a user
    // is not, before it has done so itself; and this process would lose its own files in /proc.)
    if !user {
        prctl::set_dumpable(false).context(|| "become undumpable")?;
    }
    process.exec_affinity.apply_initial()?;
    let otherwise = || if options.cgroup.is_some() { Ok(None) } else { of_first(state, host) };
    let spawn = || {
        spawn_beside(first, foreign.map(|flags| flags & FIRST), cgroup.as_ref(), otherwise, |parent| {
            init::run(parent, |parent| join::live(process, joining, parent))
        })
    };
    let spawned = match process.oom_score_adj.as_ref().filter(|_| user) {
        Some(score) => score.inherited(&proc, spawn)?,
        None => spawn()?,
    };

    let moved = attach.map_or(Ok(()), |attach| {
        attach.apply(spawned.pid)?;
        spawned.send(|sync| sync.scope(None))
    });
    // All this while the process sets itself up.
    let started = moved.and_then(|()| prepare(process, state, &proc, spawned.pid)).and_then(|()| {
        let pid_file = options.pid_file.as_deref();
        pid_file.map_or(Ok(()), |path| handover::write_pid_file(path, spawned.pid))?;
        see_through(process, state, &spawned, options, mapped, interrupt)
            .inspect_err(|_| pid_file.iter().for_each(|path| handover::remove_pid_file(path)))
    });
    match started {
        Ok(console) => Ok((spawned, console)),
        Err(error) => {
            // It would end by itself when its socket closes, unless it is frozen. ESRCH: it has ended.
            let _ = pidfd_send_signal(&spawned.pidfd, Signal::SIGKILL as i32);
            // Whoever hears of the error finds nothing left.
            if let Err(errno) = waitid(Id::PIDFd(spawned.pidfd.as_fd()), WaitPidFlag::WEXITED) {
                log::warning(format_args!("wait for process {}: {errno}", spawned.pid));
            }
            Err(error)
        }
    }
}

/// The mappings of the container's user namespace; None if that is the runtime's own.
fn user_namespace(namespaces: &Namespaces, state: &State, proc: &Proc) -> Result<Option<IdMap>> {
    let user = Kind::User.file();
    if !namespaces.is_private(Kind::User)
        || same(&proc.namespace(state.pid, user)?, &proc.namespace("self", user)?)?
    {
        return Ok(None);
    }
    IdMap::of_process(proc, Pid::from_raw(state.pid)).map(Some)
}

/// Waits until the process is set up, takes its terminal, and has it execute the program.
fn see_through(
    process: &Process,
    state: &State,
    spawned: &Spawned,
    options: &ExecOptions,
    mapped: bool,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Option<Console>> {
    let terminal = spawned.await_ready(interrupt, |request| match request {
        Request::Mounted => Ok(()),
        Request::Listener(listener) => {
            let oci_state = state.oci_state(Status::Running, state.pid);
            process.send_listener(&listener, spawned.pid, &oci_state)
        }
    })?;
    if mapped && !process.rights.is_user() {
        process.schedule(spawned.pid)?;
    }
    let sized = process.terminal.as_ref().is_some_and(|terminal| terminal.size.is_some());
    // Before the program starts, which may ask for the size at once.
    let console = terminal.map(|master| Console::attach(master, sized)).transpose()?;
    if let Some(path) = &options.pidfd_socket {
        handover::send_pidfd(path, spawned.pidfd.as_fd())?;
    }
    spawned.execute(interrupt)?;
    Ok(console)
}

/// What only the host's side can set.
fn prepare(process: &Process, state: &State, proc: &Proc, pid: Pid) -> Result<()> {
    if let Some(score) = process.oom_score_adj.as_ref().filter(|_| !process.rights.is_user()) {
        score.apply(proc, pid)?;
    }
    state.rdt.as_ref().map_or(Ok(()), |rdt| rdt.add(pid))
}

/// The container's cgroup, or with `--cgroup` the one below it; None if the container has none.
fn open_cgroup(state: &State, host: &Host, options: &ExecOptions) -> Result<Option<Cgroup>> {
    let Some(path) = &state.cgroup else {
        return match &options.cgroup {
            Some(below) => Err(Error::new(format!("use --cgroup {below}: the container has no cgroup"))),
            None => Ok(None),
        };
    };
    let Some(below) = &options.cgroup else {
        // Removed when somebody had moved all processes to another: never into ours for that.
        return state.open_cgroup()?.map_or_else(|| of_first(state, host), |cgroup| Ok(Some(cgroup)));
    };
    if below.contains(':') {
        return Err(Error::new(format!(
            "use --cgroup {below}: cgroup v2 has one hierarchy, so name no controller"
        )));
    }
    let below = Path::new(below.trim_start_matches('/'));
    if below.components().any(|part| part == Component::ParentDir) {
        return Err(Error::new(format!("use --cgroup {}: it leads out of the container", below.display())));
    }
    match Cgroup::open(&path.join(below))? {
        Some(cgroup) => Ok(Some(cgroup)),
        None => Err(Error::new(format!("use --cgroup {}: the container has none there", below.display()))),
    }
}

/// How a user's systemd brings a process to a container's cgroup that the caller may not have it born in.
fn attach(state: &State, cgroup: &Cgroup, host: &Host, options: &ExecOptions) -> Result<Option<Attach>> {
    let instance = state.cgroup_manager.systemd().filter(|instance| *instance == Instance::User);
    let ((Some(instance), Some(unit)), Some(scope)) = ((instance, &state.unit), &state.cgroup) else {
        return Ok(None);
    };
    if undelegated::may_enter(cgroup, host) {
        return Ok(None);
    }
    let moved = if options.cgroup.is_none() && cgroup.passes_on()? { of_first(state, host)? } else { None };
    Ok(Some(Attach::new(unit, instance, scope, moved.as_ref().unwrap_or(cgroup))))
}

/// The cgroup that the container's first process is in now.
fn of_first(state: &State, host: &Host) -> Result<Option<Cgroup>> {
    Cgroup::of_process(host, Pid::from_raw(state.pid))
}
