//! keel: a low-level OCI container runtime. Reads the command line, opens the log, calls the operation, and says
//! what failed.
//!
//! There is no Rust `main`, only C's: what the standard library does before its own (reading /proc/self/maps for
//! the stack's guard page, a signal stack) would cost every start 60 us, an eighth of a whole `keel state`.
#![no_main]

use std::ffi::OsString;
use std::io::{Write, stderr, stdin, stdout};
use std::os::fd::{AsFd, IntoRawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;

use keel::cli::{self, Global, Operation, RunOptions};
use keel::create::Process;
use keel::error::{Context, Error, Result};
use keel::fds::Passed;
use keel::linux::self_exe::{self, Protection};
use keel::log::{self, Level};
use keel::{
    check, checkpoint, create, delete, events, exec, features, kill, list, pause, ps, restore, run,
    spec_command, start, state, sys, update,
};

keel::entry!(self_exe::overlay::early);
keel::c_main!(start_keel);

/// The exit code.
fn start_keel() -> i32 {
    let args = cli::normalise(std::env::args_os());
    match set_signals().and_then(|()| open_standard_streams()).and_then(|()| run_command(&args)) {
        Ok(code) => code,
        Err(error) => {
            report(&args, &error);
            // As with runc: 1 may be the code of the process.
            if cli::command_name(&args).is_some_and(|command| command == "exec") { 255 } else { 1 }
        }
    }
}

/// A write to a closed pipe is an error like others. And a caller that ignores SIGCHLD passes that on: the kernel would
/// throw away how hooks and containers ended.
fn set_signals() -> Result<()> {
    sys::process::signal_ignore(libc::SIGPIPE);
    sys::process::reset_signal(libc::SIGCHLD).context(|| "reset SIGCHLD")
}

/// What is opened while 0, 1 or 2 is closed gets that number, and would become the container's stdio.
fn open_standard_streams() -> Result<()> {
    for fd in [stdin().as_fd(), stdout().as_fd(), stderr().as_fd()] {
        if fcntl(fd, FcntlArg::F_GETFD) == Err(Errno::EBADF) {
            let null = open("/dev/null", OFlag::O_RDWR, Mode::empty()).context(|| "open /dev/null")?;
            // It has the lowest free number, which is the closed one, and stays open.
            let _number = null.into_raw_fd();
        }
    }
    Ok(())
}

fn run_command(args: &[OsString]) -> Result<i32> {
    // Before all else: what runs from here on may already be the protected copy, which begins anew.
    let enters = |name| ["create", "run", "exec", "restore"].iter().any(|entering| name == *entering);
    let enters = cli::command_name(args).is_some_and(enters);
    let protection = if enters { self_exe::protect()? } else { Protection::Everybody };
    let (global, operation) = cli::parse(args)?;
    // Before the log or anything else is opened: every other descriptor of the caller's is closed.
    let passed = match &operation {
        Operation::Create(create) | Operation::Run(RunOptions { create, .. }) => {
            Passed::keep(create.preserve_fds)?
        }
        Operation::Exec(options) => Passed::keep_preserved(options.preserve_fds)?,
        Operation::Restore(_) => Passed::keep_preserved(0)?,
        _ => Passed::default(),
    };
    global.open_log()?;
    global.check(&operation)?;
    perform(&global, operation, &Process { protection, passed })
}

/// The exit code: 0, or that of the container's process.
fn perform(global: &Global, operation: Operation, process: &Process) -> Result<i32> {
    match operation {
        Operation::Create(options) => create::create(&options, process)?,
        Operation::Run(options) => return run::run(&options, process),
        Operation::Exec(options) => return exec::exec(&global.root(), &options, process),
        Operation::Start(options) => start::start(&global.root(), &options.id)?,
        Operation::State(options) => print(&state::state(&global.root(), &options.id)?)?,
        Operation::Kill(options) => kill::kill(&global.root(), &options.id, &options.signal, options.all)?,
        Operation::Delete(options) => delete::delete(&global.root(), &options.id, options.force)?,
        Operation::Pause(options) => pause::pause(&global.root(), &options.id)?,
        Operation::Resume(options) => pause::resume(&global.root(), &options.id)?,
        Operation::Ps(options) => print(&ps::ps(&global.root(), &options)?)?,
        Operation::Events(options) => events::events(&global.root(), &options)?,
        Operation::Checkpoint(options) => checkpoint::checkpoint(&global.root(), &options)?,
        Operation::Restore(options) => return restore::restore(&global.root(), &options),
        Operation::Update(options) => update::update(&global.root(), &options)?,
        Operation::List(options) => print(&list::list(&global.root(), global.has_root(), options.format())?)?,
        Operation::Spec(options) => spec_command::spec(&options.bundle, options.rootless)?,
        Operation::Features => print(&features::features()?)?,
        Operation::Print(text) => print(&text)?,
        Operation::Check(options) => {
            let (found, result) = check::check(&options.bundle, global.manager());
            print(&found)?;
            print(&check::seccomp(&options.bundle, &options.seccomp)?)?;
            result?;
        }
    }
    Ok(0)
}

fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut stdout = stdout();
    stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()).context(|| "write to stdout")
}

/// Callers read stderr by lines and take the last error of the log for the reason of the failure.
fn report(args: &[OsString], error: &Error) {
    if !log::is_open()
        && let Some(global) = cli::parse_global(args)
    {
        // Whatever keeps the log from being opened, what is said on stderr is what went wrong first.
        let _ = global.open_log();
    }
    log::error(error);
    log::tell(Level::Error, error);
}
