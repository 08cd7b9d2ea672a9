//! keel: a low-level OCI container runtime. Reads the command line, opens the log, calls the operation, and says
//! what failed.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use keel::cli::{self, Global, Operation, RunOptions};
use keel::error::{Context, Error, Result};
use keel::fds::Passed;
use keel::{check, create, delete, kill, linux, list, log, run, spec_command, start, state};

fn main() -> ExitCode {
    let args = cli::normalise(std::env::args_os());
    match run_command(&args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report(&args, &error);
            ExitCode::from(1)
        }
    }
}

fn run_command(args: &[OsString]) -> Result<u8> {
    // Before all else: what runs from here on may already be the protected copy, which begins anew.
    if cli::command_name(args).is_some_and(|command| command == "create" || command == "run") {
        linux::self_exe::protect()?;
    }
    let (global, operation) = cli::parse(args)?;
    // Before the log or anything else is opened: all other descriptors of the caller's are closed.
    let passed = match &operation {
        Operation::Create(create) | Operation::Run(RunOptions { create, .. }) => {
            Passed::keep(create.preserve_fds)?
        }
        _ => Passed::default(),
    };
    global.open_log()?;
    global.check()?;
    perform(&global, operation, passed)
}

/// The exit code: 0, or that of the container's process.
fn perform(global: &Global, operation: Operation, passed: Passed) -> Result<u8> {
    match operation {
        Operation::Create(options) => create::create(&options, passed)?,
        // 128 + n at most, as the shell has it.
        Operation::Run(options) => return run::run(&options, passed).map(|code| code as u8),
        Operation::Start(options) => start::start(&global.root(), &options.id)?,
        Operation::State(options) => print(&state::state(&global.root(), &options.id)?)?,
        Operation::Kill(options) => kill::kill(&global.root(), &options.id, &options.signal, options.all)?,
        Operation::Delete(options) => delete::delete(&global.root(), &options.id, options.force)?,
        Operation::List(options) => print(&list::list(&global.root(), global.has_root(), &options)?)?,
        Operation::Spec(options) => spec_command::spec(&options.bundle, options.rootless)?,
        Operation::Print(text) => print(&text)?,
        Operation::Check(options) => {
            let (found, result) = check::check(&options.bundle);
            print(&found)?;
            result?;
        }
    }
    Ok(0)
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context(|| "write to stdout")
}

/// Callers read stderr by lines and take the last error of the log for the reason of the failure.
fn report(args: &[OsString], error: &Error) {
    if !log::is_open()
        && let Some(global) = cli::parse_global(args)
        && let Err(e) = global.open_log()
    {
        tell(&e);
    }
    log::error(error);
    tell(error);
}

fn tell(error: &Error) {
    let line = error.to_string().replace('\n', " ");
    // EPIPE, ENOSPC: there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "keel: error: {line}");
}
