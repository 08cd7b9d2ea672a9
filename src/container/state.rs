//! What state.json says about a container, and whether it still holds: a pid, a cgroup path and a resctrl group
//! mean something only as long as they are the container's own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};

use super::{OCI_VERSION, Status};
use crate::cgroup::{Cgroup, Manager, oom, systemd};
use crate::error::{Context, Error, Kind, Result};
use crate::host;
use crate::linux::hooks::Hook;
use crate::linux::rdt;
use crate::sys::process::pidfd_open;

/// What later commands need to know. Written before the cgroup is made (pid 0), again when init exists, and
/// once more when `creating` ends.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    pub oci_version: String,
    pub id: String,
    /// This and the next three stand early, where [`salvage`] finds them in a torn file.
    pub boot_id: String,
    /// Its absolute path on the host.
    pub cgroup: Option<PathBuf>,
    /// Init's, or 0 before there is one. Another process may have it by now: see [`State::init`].
    pub pid: i32,
    /// Field 22 of /proc/PID/stat, in clock ticks since boot.
    pub start_time: u64,
    /// Until `create` has succeeded.
    pub creating: bool,
    /// RFC 3339, with nanoseconds.
    pub created: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// The name of the user who created it.
    pub owner: String,
    pub annotations: BTreeMap<String, String>,
    /// Init's death kills every process of a pid namespace of its own, and none of a shared one.
    pub pid_namespace_private: bool,
    /// Whether it has a session keyring of its own.
    pub new_keyring: bool,
    /// Whether it is in a time namespace that its config does not ask for: criu(8) makes one, so that clocks go on.
    pub extra_time_namespace: bool,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
    pub rdt: Option<rdt::Assigned>,
    pub cgroup_manager: Manager,
    /// systemd's, in which the container is; with a cgroup it is the container's own for sure.
    pub unit: Option<String>,
    /// For `start`; none if the config limits no memory.
    pub oom_watch: Option<oom::Watch>,
}

impl Default for State {
    /// What a state file lacks that another version of the program wrote.
    fn default() -> Self {
        Self {
            oci_version: OCI_VERSION.into(),
            id: String::new(),
            boot_id: String::new(),
            cgroup: None,
            cgroup_manager: Manager::default(),
            unit: None,
            oom_watch: None,
            pid: 0,
            start_time: 0,
            creating: false,
            created: String::new(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            owner: String::new(),
            annotations: BTreeMap::new(),
            pid_namespace_private: true,
            new_keyring: false,
            extra_time_namespace: false,
            poststart: Vec::new(),
            poststop: Vec::new(),
            rdt: None,
        }
    }
}

impl State {
    /// The state of a container that begins to be created now.
    pub fn new(id: &str) -> Result<Self> {
        Ok(Self {
            id: id.into(),
            boot_id: boot_id()?,
            creating: true,
            created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
            owner: user_name(geteuid().as_raw()),
            ..Self::default()
        })
    }

    /// By which its unit can be told from another's of the same name.
    pub fn description(&self) -> String {
        format!("keel container {}, created {}", self.id, self.created)
    }

    /// Notes who init is, so that nobody takes a later process with its pid for it.
    pub fn set_init(&mut self, pid: Pid) -> Result<()> {
        let what = || format!("read the start time of process {pid}");
        self.start_time = start_time(pid.as_raw())?.ok_or(Errno::ESRCH).context(what)?;
        self.pid = pid.as_raw();
        Ok(())
    }

    /// Init, if it is alive: the process with its pid that was born when it was. A zombie is not alive.
    pub fn init(&self) -> Result<Option<OwnedFd>> {
        if self.pid <= 0 {
            return Ok(None);
        }
        let pidfd = match pidfd_open(Pid::from_raw(self.pid)) {
            // EINVAL: the pid is a thread's now.
            Err(Errno::ESRCH | Errno::EINVAL) => return Ok(None),
            pidfd => pidfd.context(|| format!("open a pidfd of process {}", self.pid))?,
        };
        // Read by pid, which another process may get at any time: it counts only if the pidfd's process was
        // alive after it.
        let born = start_time(self.pid)?;
        let is_init = born == Some(self.start_time) && !has_ended(&pidfd)?;
        Ok(is_init.then_some(pidfd))
    }

    /// Whether somebody else has the unit of this name now.
    pub fn is_unit_anothers(&self) -> bool {
        let unit = self.unit.as_ref().zip(self.cgroup_manager.systemd());
        unit.is_some_and(|(unit, instance)| systemd::is_anothers(unit, instance, &self.description()))
    }

    /// The container's cgroup, if it exists. A scope goes with its last process, and then its name is free for a
    /// container of another state root.
    pub fn open_cgroup(&self) -> Result<Option<Cgroup>> {
        if self.is_unit_anothers() {
            return Ok(None);
        }
        self.cgroup.as_deref().map_or(Ok(None), Cgroup::open)
    }

    /// The same for a command that can do nothing without one.
    pub fn need_cgroup(&self) -> Result<Option<Cgroup>> {
        match self.cgroup_manager.lacks() {
            Some(why) => Err(Error::of_kind(Kind::WrongStatus, why)),
            None => self.open_cgroup(),
        }
    }

    /// Processes and cgroups end with the boot; what has their names now is somebody else's.
    pub(super) fn forget_other_boot(mut self) -> Result<Self> {
        if self.boot_id != boot_id()? {
            (self.pid, self.cgroup, self.unit, self.rdt) = (0, None, None, None);
        }
        Ok(self)
    }

    /// The spec's state object, as hooks get it on stdin. `pid` is init's as the hook sees it.
    pub fn oci_state(&self, status: Status, pid: i32) -> Vec<u8> {
        let state = OciState {
            oci_version: &self.oci_version,
            id: &self.id,
            status,
            pid,
            bundle: &self.bundle,
            annotations: &self.annotations,
        };
        serde_json::to_vec(&state).expect("bundle paths are UTF-8, all else is text and numbers")
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OciState<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: Status,
    pid: i32,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// What can still be read in a torn file about what must not be left behind.
pub(super) fn salvage(id: &str, text: &[u8]) -> State {
    fn value<T: for<'de> Deserialize<'de>>(text: &str, key: &str) -> Option<T> {
        let (_, value) = text.split_once(key)?;
        serde_json::Deserializer::from_str(value).into_iter().next()?.ok()
    }
    let text = String::from_utf8_lossy(text);
    let boot_id = value(&text, "\"bootId\":").unwrap_or_default();
    State {
        id: id.into(),
        boot_id,
        cgroup: value(&text, "\"cgroup\":"),
        // Cut short it is another process, or none, and the start time is not that one's.
        pid: value(&text, "\"pid\":").unwrap_or_default(),
        start_time: value(&text, "\"startTime\":").unwrap_or_default(),
        ..State::default()
    }
}

/// Whether the process is dead; a zombie is.
fn has_ended(pidfd: &OwnedFd) -> Result<bool> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO).context(|| "poll a pidfd")? > 0)
}

/// When the process started, in clock ticks since boot, or None if it is gone.
fn start_time(pid: i32) -> Result<Option<u64>> {
    let path = format!("/proc/{pid}/stat");
    match read_file(&path) {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(errno) => Err(errno).context(|| format!("read {path}")),
        Ok(text) => match parse_start_time(&text) {
            Some(time) => Ok(Some(time)),
            None => Err(Error::new(format!("read {path}: it has no field 22"))),
        },
    }
}

/// Field 22. Field 2 is the program's name in parentheses and may hold anything, `) ` included.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|&b| b == b')')?;
    let after_name = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    after_name.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = read_file(PATH).context(|| format!("read {PATH}"))?;
    Ok(String::from_utf8_lossy(&text).trim_end().into())
}

/// The name of a user of the host, or `#1000`, as runc has it.
pub(super) fn user_name(uid: u32) -> String {
    host::user_name(uid).unwrap_or_else(|| format!("#{uid}"))
}

fn read_file(path: &str) -> Result<Vec<u8>, Errno> {
    let file = File::from(open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?);
    read_all(file).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}

/// One read for the text and one for its end; without `take` the standard library asks for the size first.
pub(super) fn read_all(file: File) -> Result<Vec<u8>, std::io::Error> {
    let mut bytes = Vec::with_capacity(4096);
    file.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::Process;

    #[test]
    fn the_start_time_is_field_22_whatever_the_program_calls_itself() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20 21";
        for name in ["sleep", "a) S 1", ")", "(", "", "x\n) y", "\u{fc}"] {
            let stat = format!("42 ({name}) {fields}\n");
            assert_eq!(parse_start_time(stat.as_bytes()), Some(987654), "{name}");
        }
        let invalid_utf8 = [b"42 (\xff\xfe) ", fields.as_bytes()].concat();
        assert_eq!(parse_start_time(&invalid_utf8), Some(987654));
        for stat in ["", "42", "42 (x) S 1 2", "42 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x"] {
            assert_eq!(parse_start_time(stat.as_bytes()), None, "{stat}");
        }
    }

    #[test]
    fn a_torn_state_tells_its_cgroup_or_nothing() {
        let mut state = State::new("c").unwrap();
        state.cgroup = Some("/a/\"b\"".into());
        let whole = serde_json::to_vec(&state).unwrap();
        let end_of_cgroup = String::from_utf8_lossy(&whole).find(",\"pid\"").unwrap();
        for length in 0..whole.len() {
            let salvaged = salvage("c", &whole[..length]);
            let expected = state.cgroup.clone().filter(|_| length >= end_of_cgroup);
            assert_eq!(salvaged.cgroup, expected, "{length} bytes");
            assert!(salvaged.cgroup.is_none() || salvaged.boot_id == state.boot_id);
        }
        assert_eq!(salvage("c", b"\"cgroup\":null").cgroup, None);
        assert_eq!(salvage("c", b"\xff\"cgroup\":7").cgroup, None);
    }

    #[test]
    fn a_process_born_at_another_time_is_not_init() {
        let process = Process::spawn();
        let mut state = State::new("c").unwrap();
        state.set_init(process.pid()).unwrap();
        assert!(state.init().unwrap().is_some());
        state.start_time -= 1;
        assert!(state.init().unwrap().is_none());
    }

    #[test]
    fn hooks_get_the_specs_state() {
        let mut state = State::new("c").unwrap();
        state.bundle = "/b".into();
        let expected = r#"{"ociVersion":"1.3.0","id":"c","status":"creating","pid":7,"bundle":"/b"}"#;
        assert_eq!(String::from_utf8(state.oci_state(Status::Creating, 7)).unwrap(), expected);
    }
}
