//! The command line before clap sees it: Go's way of writing options, and which command it is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The global options that take a value, which [`find_command`] has to step over.
pub(super) const GLOBAL_VALUES: [&str; 6] =
    ["root", "log", "log-format", "log-level", "cgroup-manager", "rootless"];

/// Every long option of every command.
#[rustfmt::skip]
pub(super) const LONG_OPTIONS: [&str; 77] = [
    "additional-gids", "all", "apparmor", "auto-dedup", "blkio-weight", "bundle", "cap", "cgroup",
    "cgroup-manager", "console-socket", "cpu-burst", "cpu-idle", "cpu-period", "cpu-quota",
    "cpu-rt-period", "cpu-rt-runtime", "cpu-share", "cpuset-cpus", "cpuset-mems", "cwd", "debug",
    "detach", "empty-ns", "env", "ext-unix-sk", "file-locks", "force", "format", "help", "ignore-paused",
    "image-path", "interval", "keep", "kernel-memory", "kernel-memory-tcp", "l3-cache-schema",
    "lazy-pages", "leave-running", "link-remap", "log", "log-format", "log-level", "lsm-mount-context",
    "lsm-profile", "manage-cgroups-mode", "mem-bw-schema", "memory", "memory-reservation", "memory-swap",
    "no-new-keyring", "no-new-privs", "no-pivot", "no-subreaper", "page-server", "parent-path",
    "pid-file", "pidfd-socket", "pids-limit", "pre-dump", "preserve-fds", "process", "process-label",
    "quiet", "resources", "root", "rootless", "seccomp", "shell-job", "stats", "status-fd",
    "systemd-cgroup", "tcp-established", "tcp-skip-in-flight", "tty", "user", "version", "work-path",
];

/// Go's flag package takes `-bundle` for `--bundle`, and some callers write it so. Not behind `--`, nor where the
/// options of another program follow.
pub fn normalise(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let given: Vec<OsString> = args.collect();
    let end = given.iter().position(|arg| arg == "--").unwrap_or(given.len());
    let normal = |arg: &OsString| if is_single_dash_long(arg) { dashed(arg) } else { arg.clone() };
    let mut args: Vec<OsString> = given[..end].iter().map(normal).collect();
    if let Some(at) = find_command(&args)
        && (args[at] == "exec" || args[at] == "ps")
    {
        args.truncate(at);
    }
    args.extend_from_slice(&given[args.len()..]);
    args
}

fn dashed(arg: &OsStr) -> OsString {
    OsString::from_vec([b"-", arg.as_bytes()].concat())
}

fn is_single_dash_long(arg: &OsStr) -> bool {
    let Some(option) = arg.as_bytes().strip_prefix(b"-") else { return false };
    let name = option.split(|&b| b == b'=').next().unwrap_or_default();
    LONG_OPTIONS.iter().any(|long| long.as_bytes() == name)
}

/// The command of a line that [`normalise`] made, without the cost of a parser: create and run must protect the
/// program's file before all else.
pub fn command_name(args: &[OsString]) -> Option<&OsStr> {
    find_command(args).map(|at| args[at].as_os_str())
}

/// The first argument that is neither an option nor an option's value.
pub(super) fn find_command(args: &[OsString]) -> Option<usize> {
    let mut at = 1;
    loop {
        let Some(option) = args.get(at)?.as_bytes().strip_prefix(b"-") else { return Some(at) };
        let has_value = GLOBAL_VALUES.iter().any(|long| option.strip_prefix(b"-") == Some(long.as_bytes()));
        at += if has_value { 2 } else { 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        normalise(["keel"].into_iter().chain(line.split(' ')).map(OsString::from))
    }

    #[test]
    fn a_single_dash_before_a_long_option_counts_as_two() {
        for (given, normal) in [
            ("-no-subreaper", "--no-subreaper"),
            ("-bundle", "--bundle"),
            ("-pid-file=/p", "--pid-file=/p"),
            ("-b", "-b"),
            ("-fq", "-fq"),
            ("-", "-"),
            ("--root", "--root"),
            ("-bundles", "-bundles"),
            ("bundle", "bundle"),
        ] {
            assert_eq!(normalise([given.into()].into_iter()), [OsString::from(normal)]);
        }
        assert_eq!(args("-- -bundle")[2], "-bundle");
        assert_eq!(args("-log x exec c find / -all")[1..], ["--log", "x", "exec", "c", "find", "/", "-all"]);
    }

    #[test]
    fn the_command_is_found_behind_global_options() {
        for (line, command) in [
            ("create c1", Some("create")),
            ("--root create run c1", Some("run")),
            ("--root=create run c1", Some("run")),
            ("--debug --log-format json --systemd-cgroup state create", Some("state")),
            ("-log x -debug kill c", Some("kill")),
            ("--version", None),
            ("--root", None),
            ("--root x", None),
            ("--nope state", Some("state")),
        ] {
            assert_eq!(command_name(&args(line)), command.map(OsStr::new), "{line}");
        }
    }
}
