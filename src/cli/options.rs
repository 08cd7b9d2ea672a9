//! The options of each command, as clap reads them. The structs have no doc comments, which clap would print as help.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use caps::Capability;
use clap::Args;

use crate::cgroup::Manager;
use crate::list::Format;
use crate::rights::Rights;

// What `create` and `run` have in common.
#[derive(Args, Debug)]
pub struct CreateOptions {
    /// The directory that holds the state of all containers.
    #[arg(skip)]
    pub root: PathBuf,
    /// Who makes the cgroup.
    #[arg(skip)]
    pub cgroup_manager: Manager,
    /// Whether to do without one where none was delegated to the caller.
    #[arg(skip)]
    pub cgroup_optional: bool,
    /// Of the caller.
    #[arg(skip)]
    pub rights: Rights,
    /// Name of the new container
    pub id: String,
    /// The bundle: a directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket to send the container's terminal to, its master side
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket to send a pidfd of the container's process to
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File to write the pid of the container's process to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Do without pivot_root(2), for hosts that run from a ramdisk
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the caller's session keyring instead of making one for the container
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass this many descriptors, from number 3 on, to the container's process
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub preserve_fds: u32,
}

#[derive(Args, Debug)]
pub struct RunOptions {
    #[command(flatten)]
    pub create: CreateOptions,
    /// Return as soon as the container's process runs
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the container after its process has ended
    #[arg(long)]
    pub keep: bool,
    /// Do not adopt the container's orphaned processes
    #[arg(long)]
    pub no_subreaper: bool,
}

#[derive(Args, Debug)]
pub struct ExecOptions {
    /// Name of the container
    pub id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
    /// File that describes the process to run, as /process of config.json does; flags override it
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Environment variable to add or replace; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User to run as, by numbers; the group stays that of the container's process if it is left out
    #[arg(short, long, value_name = "UID[:GID]", value_parser = user)]
    pub user: Option<(u32, Option<u32>)>,
    /// Additional group, by number; may be repeated
    #[arg(short = 'g', long, value_name = "GID", value_parser = id)]
    pub additional_gids: Vec<u32>,
    /// Capability to add; may be repeated
    #[arg(short = 'c', long = "cap", value_name = "CAP", value_parser = capability)]
    pub caps: Vec<Capability>,
    /// Return as soon as the process runs
    #[arg(short, long)]
    pub detach: bool,
    /// File to write the process's pid to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Unix socket to send the process's terminal to, its master side
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket to send a pidfd of the process to
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// SELinux label to run with
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile to run under
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Whether the process is kept from gaining privileges
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub no_new_privs: Option<bool>,
    /// Pass this many descriptors, from number 3 on, to the process
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub preserve_fds: u32,
    /// Run in this cgroup, which exists below the container's
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Run it although the container is paused: it will go on when the container does
    #[arg(long)]
    pub ignore_paused: bool,
}

/// Numbers only: names are the image's affair, and the engine's who knows it.
fn user(text: &str) -> Result<(u32, Option<u32>), &'static str> {
    let user = match text.split_once(':') {
        Some((uid, gid)) => id(uid).and_then(|uid| Ok((uid, Some(id(gid)?)))),
        None => id(text).map(|uid| (uid, None)),
    };
    user.map_err(|_| "must be UID or UID:GID, numbers from 0 to 4294967294")
}

fn id(text: &str) -> Result<u32, &'static str> {
    // Not what parse() takes besides digits: +1 is no id. For the kernel the last number means "no change".
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let id = text.parse().ok().filter(|&id| digits && id != u32::MAX);
    id.ok_or("must be a number from 0 to 4294967294")
}

/// `CAP_CHOWN`, also without the prefix and in lower case.
fn capability(text: &str) -> Result<Capability, &'static str> {
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("CAP_") { name } else { format!("CAP_{name}") };
    name.parse().map_err(|_| "must be a capability such as CAP_NET_ADMIN")
}

#[derive(Args, Debug)]
pub struct Id {
    /// Name of the container
    pub id: String,
}

#[derive(Args, Debug)]
pub struct KillOptions {
    /// Name of the container
    pub id: String,
    /// Signal by name (KILL, SIGKILL, RTMIN+1) or number
    #[arg(default_value = "TERM")]
    pub signal: String,
    /// Send it to every process of the container; a container that has stopped is no error then
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Args, Debug)]
pub struct DeleteOptions {
    /// Name of the container
    pub id: String,
    /// Kill what still runs; a container that does not exist is no error
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct ListOptions {
    /// What the list is printed as
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// Print the names only
    #[arg(short, long)]
    quiet: bool,
}

impl ListOptions {
    pub fn format(&self) -> Format {
        match self.format.as_str() {
            _ if self.quiet => Format::Quiet,
            "json" => Format::Json,
            _ => Format::Table,
        }
    }
}

#[derive(Args, Debug)]
pub struct PsOptions {
    /// Name of the container
    pub id: String,
    /// table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    pub format: String,
    /// Options of ps(1) for the table [default: -ef]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    pub ps_options: Vec<OsString>,
}

#[derive(Args, Debug)]
pub struct EventsOptions {
    /// Name of the container
    pub id: String,
    /// Time between two lines of statistics, such as 500ms or 1m30s [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = interval, allow_hyphen_values = true)]
    interval: Option<Duration>,
    /// Print the statistics once and end
    #[arg(long)]
    pub stats: bool,
}

impl EventsOptions {
    pub fn interval(&self) -> Duration {
        self.interval.unwrap_or(Duration::from_secs(5))
    }
}

fn interval(text: &str) -> Result<Duration, &'static str> {
    let interval = humantime::parse_duration(text).ok().filter(|interval| !interval.is_zero());
    interval.ok_or("must be a duration greater than 0, such as 5s, 500ms or 1m30s")
}

#[derive(Args, Debug)]
pub struct UpdateOptions {
    /// Name of the container
    pub id: String,
    /// File with an object as /linux/resources of config.json has it, or - for stdin
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Limit of memory, in bytes or with a unit (512M); -1 for none
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    pub memory: Option<i64>,
    /// Limit of memory and swap together; -1 for none
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    pub memory_swap: Option<i64>,
    /// Memory that is kept from being reclaimed
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    pub memory_reservation: Option<i64>,
    /// CPU time in a period, in microseconds; -1 for no limit
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// The period, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// Unused CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    /// Share of CPU time beside others, 2 to 262144
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    /// 1 to run only when nothing else does
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<i64>,
    /// CPUs to run on (0-3,7)
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Most processes; -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Share of disk time beside others, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u64>,
    /// Cache for the container's resctrl class (L3:0=7f0;1=1f)
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Memory bandwidth for the container's resctrl class (MB:0=20;1=70)
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
    // What only cgroup v1 has: read for an error that says so.
    #[arg(long, hide = true, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    pub kernel_memory: Option<i64>,
    #[arg(long, hide = true, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    pub kernel_memory_tcp: Option<i64>,
    #[arg(long, hide = true, value_name = "US")]
    pub cpu_rt_period: Option<u64>,
    #[arg(long, hide = true, value_name = "US", allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<i64>,
}

/// A number of bytes, as runc reads it: k, m, g, t are powers of 1,024, with or without `b` or `ib` after them.
fn bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a number of bytes such as 1048576, 512M or -1");
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match number.find(|c: char| !c.is_ascii_digit() && c != '-') {
        None => (number, 0),
        Some(at) => match &number[at..] {
            "k" => (&number[..at], 10),
            "m" => (&number[..at], 20),
            "g" => (&number[..at], 30),
            "t" => (&number[..at], 40),
            _ => return Err(wrong()),
        },
    };
    let number: i64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[derive(Args, Debug)]
pub struct SpecOptions {
    /// The bundle: the directory to write config.json in
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    // For a container that runs without privileges; the global option of this name, without a value.
    #[arg(skip)]
    pub rootless: bool,
}

#[derive(Args, Debug)]
pub struct CheckOptions {
    /// A directory with config.json
    #[arg(default_value = ".")]
    pub bundle: PathBuf,

    /// Say what the seccomp filter does with these system calls, by name or number
    #[arg(long, value_name = "CALL", value_delimiter = ',')]
    pub seccomp: Vec<String>,
}
