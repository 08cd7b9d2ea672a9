//! The command line before clap sees it: Go's way of writing options, and which command it is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The global options that take a value, which [`find_command`] has to step over.
pub(super) const GLOBAL_VALUES: [&str; 6] =
    ["root", "log", "log-format", "log-level", "cgroup-manager", "rootless"];

/// Every long option of every command.
#[rustfmt::skip]
pub(super) const LONG_OPTIONS: [&str; 38] = [
    "all", "blkio-weight", "bundle", "cgroup-manager", "console-socket", "cpu-burst", "cpu-idle",
    "cpu-period", "cpu-quota", "cpu-share", "cpuset-cpus", "cpuset-mems", "debug", "detach", "force",
    "format", "help", "keep", "log", "log-format", "log-level", "memory", "memory-reservation",
    "memory-swap", "no-new-keyring", "no-pivot", "no-subreaper", "pid-file", "pidfd-socket", "pids-limit",
    "preserve-fds", "quiet", "resources", "root", "rootless", "seccomp", "systemd-cgroup",
    "version",
];

/// Go's flag package takes `-bundle` for `--bundle`, and some callers write it so.
pub fn normalise(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut after_dashes = false;
    let normal = |arg: OsString| {
        after_dashes |= arg == "--";
        if after_dashes || !is_single_dash_long(&arg) { arg } else { dashed(arg) }
    };
    args.map(normal).collect()
}

fn dashed(arg: OsString) -> OsString {
    let mut bytes = arg.into_vec();
    bytes.insert(0, b'-');
    OsString::from_vec(bytes)
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
