//! `keel kill`: a signal to init, or to every process of the container.
//!
//! Processes are signalled through a pidfd that was checked to be theirs, never by a number that may have been
//! reused. No lock is taken: a container can be killed while its `start` still waits for a hook.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::container::{Container, State};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::process::{pidfd_open, pidfd_send_signal};

/// With `all`, a container that has stopped is no error: none of its processes is left without the signal.
pub fn kill(root: &Path, id: &str, signal: &str, all: bool) -> Result<()> {
    let signal = parse(signal)?;
    let state = Container::open(root, id)?.state()?;
    if state.creating {
        return Err(not_running(id));
    }
    let kills_init = signal == libc::SIGKILL && state.pid_namespace_private;
    if let Some(why) = state.cgroup_manager.lacks().filter(|_| all && !kills_init) {
        return Err(Error::new(format!("kill container {id}: {why}, by which its processes could be found")));
    }
    // Init's death would leave the others of a shared pid namespace alive, and it may be dead already.
    let whole_cgroup = all || signal == libc::SIGKILL && !state.pid_namespace_private;
    let cgroup = if whole_cgroup { state.open_cgroup()? } else { None };
    let reached = match cgroup {
        Some(cgroup) => signal_cgroup(&cgroup, signal)?,
        None => signal_init(&state, signal)?,
    };
    if reached || all { Ok(()) } else { Err(not_running(id)) }
}

fn not_running(id: &str) -> Error {
    Error::of_kind(Kind::WrongStatus, format!("kill container {id}: container not running"))
}

/// Whether init was there to get it.
fn signal_init(state: &State, signal: i32) -> Result<bool> {
    match state.init()? {
        Some(init) => send(&init, Pid::from_raw(state.pid), signal),
        None => Ok(false),
    }
}

/// Whether there was a process to get it.
fn signal_cgroup(cgroup: &Cgroup, signal: i32) -> Result<bool> {
    if signal == libc::SIGKILL {
        // Of the whole cgroup at once: no fork escapes it, and a frozen process dies too.
        let populated = cgroup.events()?.populated;
        cgroup.kill()?;
        return Ok(populated);
    }
    let mut reached = false;
    for pids in cgroup.pids()?.chunks(PIDFDS_AT_ONCE) {
        let opened: Vec<(Pid, Option<OwnedFd>)> =
            pids.iter().map(|&pid| Ok((pid, open_process(pid)?))).collect::<Result<_>>()?;
        // A pid could be reused before it was opened. If it stands in the list now, the pidfd is that process
        // or a dead one.
        let listed: HashSet<Pid> = cgroup.pids()?.into_iter().collect();
        for (pid, pidfd) in opened.into_iter().filter(|(pid, _)| listed.contains(pid)) {
            if let Some(pidfd) = pidfd {
                reached |= send(&pidfd, pid, signal)?;
            }
        }
    }
    Ok(reached)
}

/// A caller's limit of open files is often 1024.
const PIDFDS_AT_ONCE: usize = 256;

fn open_process(pid: Pid) -> Result<Option<OwnedFd>> {
    match pidfd_open(pid) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::ESRCH | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno).context(|| format!("open a pidfd of process {pid}")),
    }
}

/// False when the process has ended.
fn send(pidfd: &OwnedFd, pid: Pid, signal: i32) -> Result<bool> {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(errno).context(|| format!("send signal {signal} to process {pid}")),
    }
}

/// As glibc counts them: the two below are its own.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// A signal by number, or by name in any case, with or without `SIG`; `RTMIN+n` and `RTMAX-n`. 0 sends nothing,
/// it asks whether the process is there.
fn parse(text: &str) -> Result<i32> {
    let unknown = || Error::new(format!("unknown signal {text:?}"));
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return text.parse().ok().filter(|number| *number <= RTMAX).ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        name => name,
    };
    if let Ok(signal) = Signal::from_str(&format!("SIG{known}")) {
        return Ok(signal as i32);
    }
    parse_real_time(name).ok_or_else(unknown)
}

fn parse_real_time(name: &str) -> Option<i32> {
    let (base, offset) = match name.split_at_checked(5)? {
        ("RTMIN", offset) => (RTMIN, offset),
        ("RTMAX", offset) => (RTMAX, offset),
        _ => return None,
    };
    let offset: i32 = match (base, offset.chars().next()) {
        (_, None) => 0,
        (RTMIN, Some('+')) | (RTMAX, Some('-')) => offset.parse().ok()?,
        _ => return None,
    };
    base.checked_add(offset).filter(|signal| (RTMIN..=RTMAX).contains(signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_names_numbers_or_relative_to_the_real_time_ones() {
        for (text, signal) in [
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigkill", 9),
            ("Term", 15),
            ("9", 9),
            ("15", 15),
            ("0", 0),
            ("64", 64),
            ("USR1", libc::SIGUSR1),
            ("STKFLT", libc::SIGSTKFLT),
            ("IOT", 6),
            ("SIGCLD", libc::SIGCHLD),
            ("POLL", libc::SIGIO),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmin+30", 64),
            ("RTMAX", 64),
            ("RTMAX-14", 50),
            ("SIGRTMAX-30", 34),
        ] {
            assert_eq!(parse(text).ok(), Some(signal), "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_an_error() {
        for text in [
            "",
            "SIG",
            "65",
            "-9",
            "+9",
            "9x",
            "99999999999",
            "NOPE",
            "SIGSIGKILL",
            "RTMIN+31",
            "RTMIN-1",
            "RTMAX+1",
            "RTMAX-31",
            "RTMIN+",
            "RTMIN+-1",
            "RTMAX--1",
            "RTMIN3",
            "RTMIN+2147483647",
            "é",
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("unknown signal {text:?}"), "{text}");
        }
    }
}
