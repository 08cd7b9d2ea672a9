//! The command line: runc's commands and flags, so that a caller does not notice that it is not runc.
//!
//! The command is found before clap is called, and clap gets the options of that one only: building a parser
//! for all of them would cost a tenth of the time that `keel state` takes.

mod argv;
mod checkpoint;
mod options;

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use nix::unistd::geteuid;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

pub use argv::{command_name, normalise};
pub use checkpoint::*;
pub use options::*;

use crate::cgroup::Manager;
use crate::error::{Error, Result};
use crate::log;
use crate::rights::Rights;

// Accepted before and after the command. (No doc comment: clap would print it as help.)
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Directory that holds the state of all containers [default: /run/keel; unless root, $XDG_RUNTIME_DIR/keel]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File to append the log to; without it warnings go to stderr
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of the log file: text or json [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = log_format)]
    log_format: Option<log::Format>,
    /// The least severe messages to log: debug, info, warning or error [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = log_level)]
    log_level: Option<log::Level>,
    /// The same as --log-level debug
    #[arg(long)]
    debug: bool,
    /// The same as --cgroup-manager systemd
    #[arg(long)]
    systemd_cgroup: bool,
    /// Who makes the container's cgroup: cgroupfs, which is keel itself, or systemd; disabled for none [default: cgroupfs]
    #[arg(long, value_name = "MANAGER", value_parser = ["cgroupfs", "systemd", "disabled"])]
    cgroup_manager: Option<String>,
    /// Whether a container may do without a cgroup where the caller cannot make one, if its config needs none: true,
    /// false, or auto for all but the host's root [default: auto]
    #[arg(long, value_name = "WHEN", value_parser = ["true", "false", "auto"])]
    rootless: Option<String>,
}

impl Global {
    /// The directory that holds the state of all containers.
    pub fn root(&self) -> PathBuf {
        if let Some(root) = &self.root {
            return root.clone();
        }
        Self::user_root().unwrap_or_else(|| "/run/keel".into())
    }

    /// The state root in the runtime directory of a user.
    fn user_root() -> Option<PathBuf> {
        user_dir().filter(|_| is_users()).map(|dir| dir.join("keel"))
    }

    /// As with runc.
    fn may_lack_cgroup(&self, rights: Rights) -> bool {
        match self.rootless.as_deref() {
            Some("true") => true,
            Some("false") => false,
            _ => rights != Rights::Root,
        }
    }

    /// Who makes the cgroup of a new container. Callers give the flag to every command; the others go by the state.
    pub fn manager(&self) -> Manager {
        match self.cgroup_manager.as_deref() {
            Some("disabled") => Manager::Disabled,
            Some("systemd") => Self::systemd(),
            _ if self.systemd_cgroup => Self::systemd(),
            _ => Manager::Cgroupfs,
        }
    }

    /// The one that lets this user make units.
    fn systemd() -> Manager {
        if is_users() { Manager::SystemdUser } else { Manager::Systemd }
    }

    /// Whether `--root` was given: a default that does not exist yet holds no containers, another is an error.
    pub fn has_root(&self) -> bool {
        self.root.is_some()
    }

    pub fn open_log(&self) -> Result<()> {
        let level = self.log_level.unwrap_or(log::Level::Info);
        let least = if self.debug { log::Level::Debug } else { level };
        log::open(self.log.as_deref(), self.log_format.unwrap_or_default(), least)
    }

    /// What is asked for and not there yet is an error, never ignored.
    pub fn check(&self, operation: &Operation) -> Result<()> {
        let manager = self.cgroup_manager.as_deref();
        if self.systemd_cgroup && manager.is_some_and(|manager| manager != "systemd") {
            return Err(Error::new("--systemd-cgroup contradicts --cgroup-manager"));
        }
        let needs_root = !matches!(
            operation,
            Operation::Spec(_) | Operation::Features | Operation::Check(_) | Operation::Print(_)
        );
        if needs_root && self.root.is_none() && !geteuid().is_root() && user_dir().is_none() {
            let what = "find the state root: XDG_RUNTIME_DIR is not set, and only root has /run/keel";
            return Err(Error::new(format!(
                "{what} (set it, to /run/user/{} usually, or give --root)",
                geteuid()
            )));
        }
        Ok(())
    }
}

/// Whether it is a user who calls, who may be root of a user namespace, as with runc.
fn is_users() -> bool {
    match Rights::of_caller() {
        Rights::User => true,
        Rights::Namespaced => std::env::var_os("USER").is_none_or(|user| user != "root"),
        Rights::Root => false,
    }
}

fn user_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

fn log_format(text: &str) -> Result<log::Format, &'static str> {
    match text {
        "text" => Ok(log::Format::Text),
        "json" => Ok(log::Format::Json),
        _ => Err("must be text or json"),
    }
}

fn log_level(text: &str) -> Result<log::Level, &'static str> {
    match text {
        "debug" => Ok(log::Level::Debug),
        "info" => Ok(log::Level::Info),
        "warning" | "warn" => Ok(log::Level::Warning),
        "error" => Ok(log::Level::Error),
        _ => Err("must be debug, info, warning or error"),
    }
}

#[derive(Debug)]
pub enum Operation {
    Create(CreateOptions),
    Run(RunOptions),
    Exec(Box<ExecOptions>),
    Start(Id),
    State(Id),
    Kill(KillOptions),
    Delete(DeleteOptions),
    Pause(Id),
    Resume(Id),
    Ps(PsOptions),
    Events(EventsOptions),
    Update(Box<UpdateOptions>),
    Checkpoint(Box<CheckpointOptions>),
    Restore(Box<RestoreOptions>),
    List(ListOptions),
    Spec(SpecOptions),
    Features,
    Check(CheckOptions),
    /// Help or the version, for stdout.
    Print(String),
}

/// One command: its name, what it does, its options, and how they are read.
struct Entry {
    name: &'static str,
    about: &'static str,
    options: fn(Command) -> Command,
    read: fn(&ArgMatches) -> Result<Operation, clap::Error>,
}

#[rustfmt::skip]
static COMMANDS: [Entry; 18] = [
    Entry {
        name: "create", about: "Create a container from a bundle; its program waits for start",
        options: with_global::<CreateOptions>, read: |m| CreateOptions::from_arg_matches(m).map(Operation::Create),
    },
    Entry {
        name: "run", about: "Create a container, run its program until it ends, and delete it",
        options: with_global::<RunOptions>, read: |m| RunOptions::from_arg_matches(m).map(Operation::Run),
    },
    Entry {
        name: "start", about: "Start the program of a created container",
        options: with_global::<Id>, read: |m| Id::from_arg_matches(m).map(Operation::Start),
    },
    Entry {
        name: "exec", about: "Run another process in a container",
        options: with_global::<ExecOptions>,
        read: |m| ExecOptions::from_arg_matches(m).map(|options| Operation::Exec(Box::new(options))),
    },
    Entry {
        name: "state", about: "Print the state of a container as JSON",
        options: with_global::<Id>, read: |m| Id::from_arg_matches(m).map(Operation::State),
    },
    Entry {
        name: "kill", about: "Send a signal to the first process of a container",
        options: with_global::<KillOptions>, read: |m| KillOptions::from_arg_matches(m).map(Operation::Kill),
    },
    Entry {
        name: "delete", about: "Delete a container that has stopped or was not started",
        options: with_global::<DeleteOptions>, read: |m| DeleteOptions::from_arg_matches(m).map(Operation::Delete),
    },
    Entry {
        name: "pause", about: "Stop all processes of a container where they stand",
        options: with_global::<Id>, read: |m| Id::from_arg_matches(m).map(Operation::Pause),
    },
    Entry {
        name: "resume", about: "Let the processes of a paused container go on",
        options: with_global::<Id>, read: |m| Id::from_arg_matches(m).map(Operation::Resume),
    },
    Entry {
        name: "ps", about: "List the processes of a container",
        options: with_global::<PsOptions>, read: |m| PsOptions::from_arg_matches(m).map(Operation::Ps),
    },
    Entry {
        name: "events", about: "Print what a container uses, and when memory runs out in it",
        options: with_global::<EventsOptions>, read: |m| EventsOptions::from_arg_matches(m).map(Operation::Events),
    },
    Entry {
        name: "update", about: "Change the limits of a container",
        options: with_global::<UpdateOptions>,
        read: |m| UpdateOptions::from_arg_matches(m).map(Box::new).map(Operation::Update),
    },
    Entry {
        name: "checkpoint", about: "Save the processes of a container into files with criu, and end it",
        options: with_global::<CheckpointOptions>,
        read: |m| CheckpointOptions::from_arg_matches(m).map(|options| Operation::Checkpoint(Box::new(options))),
    },
    Entry {
        name: "restore", about: "Create a container with the processes that a checkpoint has saved",
        options: with_global::<RestoreOptions>,
        read: |m| RestoreOptions::from_arg_matches(m).map(|options| Operation::Restore(Box::new(options))),
    },
    Entry {
        name: "list", about: "List the containers",
        options: with_global::<ListOptions>, read: |m| ListOptions::from_arg_matches(m).map(Operation::List),
    },
    Entry {
        name: "spec", about: "Write an example of a config.json",
        options: with_rootless, read: |m| SpecOptions::from_arg_matches(m).map(Operation::Spec),
    },
    Entry {
        name: "features", about: "Print what this runtime supports, as JSON",
        options: Global::augment_args, read: |_| Ok(Operation::Features),
    },
    Entry {
        name: "check", about: "Say everything that is wrong with a bundle's config.json; creates nothing",
        options: with_global::<CheckOptions>, read: |m| CheckOptions::from_arg_matches(m).map(Operation::Check),
    },
];

fn with_global<T: Args>(command: Command) -> Command {
    Global::augment_args(T::augment_args(command))
}

fn with_rootless(command: Command) -> Command {
    with_global::<SpecOptions>(command).mut_arg("rootless", |arg| {
        let arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
        arg.hide_possible_values(true)
            .help("For a container that runs without privileges, as the calling user")
    })
}

/// The parser of one command.
fn command(entry: &Entry) -> Command {
    // As with runc, the last one of a repeated option counts.
    let command = Command::new(entry.name).bin_name(format!("keel {}", entry.name)).args_override_self(true);
    (entry.options)(command).about(entry.about)
}

/// The parser of a line without a command, which can only ask for help or be wrong.
fn no_command() -> Command {
    keel(COMMANDS.iter().map(|entry| Command::new(entry.name).about(entry.about)))
}

/// Everything: for shell completions and manual pages, which are made beforehand (see examples/manual.rs).
pub fn whole() -> Command {
    keel(COMMANDS.iter().map(command))
}

fn keel(commands: impl Iterator<Item = Command>) -> Command {
    let version = Arg::new("version").short('v').long("version").action(ArgAction::Version);
    let keel = Command::new("keel")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg(version.help("Print the version"))
        .subcommands(commands);
    Global::augment_args(keel).about("Runs OCI containers")
}

/// As runc prints it, for callers that parse it.
fn version() -> String {
    let commit = option_env!("KEEL_COMMIT").map_or(String::new(), |commit| format!("commit: {commit}\n"));
    format!("keel version {}\n{commit}spec: {}\n", env!("CARGO_PKG_VERSION"), crate::container::OCI_VERSION)
}

/// Reads a command line that [`normalise`] made.
pub fn parse(args: &[OsString]) -> Result<(Global, Operation)> {
    match try_parse(args) {
        Ok(parsed) => Ok(parsed),
        Err(error) => match error.kind() {
            ErrorKind::DisplayVersion => Ok((Global::default(), Operation::Print(version()))),
            ErrorKind::DisplayHelp => Ok((Global::default(), Operation::Print(error.render().to_string()))),
            _ => Err(usage(&error)),
        },
    }
}

fn try_parse(args: &[OsString]) -> Result<(Global, Operation), clap::Error> {
    let (entry, args) = split(args);
    let Some(entry) = entry else {
        no_command().try_get_matches_from(args)?;
        return Err(clap::Error::raw(ErrorKind::MissingSubcommand, "a command is required"));
    };
    // Left to the end of the process: to take them apart would be a tenth of all that `keel state` does.
    let mut parser = ManuallyDrop::new(command(entry));
    let matches = ManuallyDrop::new(parser.try_get_matches_from_mut(args)?);
    let mut global = Global::from_arg_matches(&matches)?;
    let mut operation = (entry.read)(&matches)?;
    match &mut operation {
        Operation::Create(create) | Operation::Run(RunOptions { create, .. }) => {
            (create.root, create.cgroup_manager) = (global.root(), global.manager());
            create.rights = Rights::of_caller();
            create.cgroup_optional = global.may_lack_cgroup(create.rights);
        }
        Operation::Restore(restore) => restore.cgroup_manager = global.manager(),
        Operation::Spec(spec) => spec.rootless = global.rootless.take().is_some_and(|when| when == "true"),
        _ => {}
    }
    Ok((global, operation))
}

/// As much of the global options as a wrong command line tells, so that its error reaches the log too.
pub fn parse_global(args: &[OsString]) -> Option<Global> {
    let (entry, args) = split(args);
    let parser = entry.map_or_else(no_command, command).ignore_errors(true);
    Global::from_arg_matches(&parser.try_get_matches_from(args).ok()?).ok()
}

/// The command, and the line without it.
fn split(args: &[OsString]) -> (Option<&'static Entry>, impl Iterator<Item = &OsString>) {
    let at = argv::find_command(args);
    let entry = at.and_then(|at| COMMANDS.iter().find(|entry| args[at] == entry.name));
    let skipped = at.filter(|_| entry.is_some());
    (entry, args.iter().enumerate().filter(move |(i, _)| Some(*i) != skipped).map(|(_, arg)| arg))
}

/// The first paragraph of clap's message on one line, and what was perhaps meant; callers read stderr by lines.
fn usage(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let lines: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let line = lines.join(" ");
    let similar = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg];
    let meant = match similar.into_iter().find_map(|kind| error.get(kind)) {
        Some(ContextValue::String(one)) => format!(" (did you mean {one}?)"),
        // The likeliest is the last.
        Some(ContextValue::Strings(some)) => {
            some.last().map_or_else(String::new, |one| format!(" (did you mean {one}?)"))
        }
        _ => String::new(),
    };
    Error::new(format!("{}{meant}, see keel --help", line.trim_start_matches("error: ")))
}

#[cfg(test)]
mod tests {
    use super::argv::{GLOBAL_VALUES, LONG_OPTIONS};
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        normalise(["keel"].into_iter().chain(line.split(' ')).map(OsString::from))
    }

    fn operation(line: &str) -> (Global, Operation) {
        parse(&args(line)).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn error(line: &str) -> String {
        parse(&args(line)).err().unwrap_or_else(|| panic!("{line} was accepted")).to_string()
    }

    #[test]
    fn the_parser_is_consistent() {
        no_command().debug_assert();
        COMMANDS.iter().for_each(|entry| command(entry).debug_assert());
    }

    #[test]
    fn every_long_option_is_listed() {
        let longs = |mut command: Command| -> Vec<String> {
            command.build();
            command.get_arguments().filter_map(|arg| Some(arg.get_long()?.to_string())).collect()
        };
        let mut found: Vec<String> = COMMANDS.iter().flat_map(|entry| longs(command(entry))).collect();
        found.extend(longs(no_command()));
        found.sort();
        found.dedup();
        assert_eq!(found, LONG_OPTIONS);
        let global = Global::augment_args(Command::new("x"));
        let valued: Vec<&str> = global
            .get_arguments()
            .filter(|arg| arg.get_action().takes_values())
            .filter_map(Arg::get_long)
            .collect();
        assert_eq!(valued, GLOBAL_VALUES);
    }

    #[test]
    fn options_are_accepted_before_and_after_the_id() {
        for line in [
            "--root /r create --bundle /b --pid-file /p c1",
            "create c1 --root /r -b /b -pid-file /p",
            "create -pid-file=/p c1 -bundle /b -root=/r",
            "--root /other create -b/b c1 --root /r --pid-file /old --pid-file /p",
        ] {
            let (_, Operation::Create(create)) = operation(line) else { panic!("{line}") };
            assert_eq!((create.id.as_str(), create.root.to_str()), ("c1", Some("/r")), "{line}");
            assert_eq!((create.bundle.to_str(), create.pid_file), (Some("/b"), Some("/p".into())), "{line}");
        }
    }

    #[test]
    fn restores_and_detached_runs_are_understood_as_containerd_writes_them() {
        let (_, Operation::Run(run)) = operation("run --detach --pid-file /p -no-subreaper --bundle /b c1")
        else {
            panic!()
        };
        assert!(run.detach && run.no_subreaper && !run.keep);
        let (_, Operation::Kill(kill)) = operation("kill --all c1 9") else { panic!() };
        assert_eq!((kill.all, kill.signal.as_str()), (true, "9"));
        let (_, Operation::Kill(kill)) = operation("kill c1") else { panic!() };
        assert_eq!((kill.all, kill.signal.as_str()), (false, "TERM"));
    }

    #[test]
    fn what_is_not_there_yet_is_an_error() {
        let (global, state) = operation("--systemd-cgroup --cgroup-manager cgroupfs state c");
        let message = "--systemd-cgroup contradicts --cgroup-manager";
        assert_eq!(global.check(&state).unwrap_err().to_string(), message);
        for line in ["--rootless false state c", "--rootless auto --cgroup-manager cgroupfs state c"] {
            let (global, operation) = operation(line);
            assert!(global.check(&operation).is_ok(), "{line}");
        }
    }

    #[test]
    fn spec_has_a_rootless_of_its_own() {
        for (line, rootless) in
            [("spec", false), ("spec --rootless", true), ("--log /l spec -rootless -b /b", true)]
        {
            let (global, Operation::Spec(spec)) = operation(line) else { panic!("{line}") };
            assert_eq!(spec.rootless, rootless, "{line}");
            assert!(global.check(&Operation::Spec(spec)).is_ok());
        }
    }

    #[test]
    fn an_interval_is_written_as_in_go() {
        for (text, ms) in
            [("5s", 5000), ("500ms", 500), ("1m30s", 90_000), ("1.5h", 5_400_000), ("250000us", 250)]
        {
            let (_, Operation::Events(events)) = operation(&format!("events -interval {text} c")) else {
                panic!()
            };
            assert_eq!(events.interval().as_millis(), ms);
        }
        let (_, Operation::Events(events)) = operation("events c -stats") else { panic!() };
        assert_eq!((events.stats, events.interval().as_secs()), (true, 5));
        for text in ["0s", "-5s", "5", "1m-5s"] {
            let wrong = format!("invalid value '{text}' for '--interval <DURATION>': must be a duration");
            assert!(error(&format!("events c --interval {text}")).starts_with(&wrong), "{text}");
        }
    }

    #[test]
    fn a_usage_error_is_one_line() {
        for (line, message) in [
            ("state", "the following required arguments were not provided: <ID>, see keel --help"),
            ("state c --nope", "unexpected argument '--nope' found, see keel --help"),
            ("nope", "unrecognized subcommand 'nope', see keel --help"),
            ("crate c", "unrecognized subcommand 'crate' (did you mean create?), see keel --help"),
            (
                "create --bundel x c",
                "unexpected argument '--bundel' found (did you mean --bundle?), see keel --help",
            ),
            (
                "--debug",
                "'keel' requires a subcommand but one was not provided [subcommands: create, run, start, exec, state, kill, delete, pause, resume, ps, events, update, checkpoint, restore, list, spec, features, check], see keel --help",
            ),
            (
                "--debug --root",
                "a value is required for '--root <DIR>' but none was supplied, see keel --help",
            ),
            (
                "--log-format xml state c",
                "invalid value 'xml' for '--log-format <FORMAT>': must be text or json, see keel --help",
            ),
        ] {
            assert_eq!(error(line), message, "{line}");
        }
    }

    #[test]
    fn a_log_named_before_the_mistake_is_known() {
        for line in ["--log /l nope", "--log /l state", "state --log /l --nope", "--log /l spec --nope"] {
            let log = parse_global(&args(line)).and_then(|global| global.log);
            assert_eq!(log, Some("/l".into()), "{line}");
        }
    }

    #[test]
    fn the_version_names_the_spec() {
        let (_, Operation::Print(text)) = operation("-v") else { panic!() };
        assert!(text.starts_with(concat!("keel version ", env!("CARGO_PKG_VERSION"), "\n")), "{text}");
        assert!(text.ends_with("spec: 1.3.0\n"), "{text}");
    }
}
