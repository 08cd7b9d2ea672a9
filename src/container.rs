//! A container as it is known between commands: its state directory, lock, state and status.
//!
//! ```text
//! <root>/<id>/            mode 0700; an exclusive flock on it keeps commands that change it apart
//!     state.json          State; replaced as a whole, by rename
//!     config.json         the bundle's bytes as they were at create; nobody reads the bundle again
//!     lock                init holds an OFD write lock on it until it executes: that is "created"
//!     start.sock          init listens on it for start
//! ```
//!
//! A status is never stored, it is found out: from the pidfd of init, from `lock` (which the kernel drops
//! when init executes or dies), from the cgroup. Everything is reached from the descriptor of the directory.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#state>

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, renameat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{Pid, UnlinkatFlags, geteuid, unlinkat};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::linux::hooks::Hook;
use crate::linux::rdt;
use crate::sys::fs::{ofd_is_locked, ofd_write_lock};
use crate::sys::process::pidfd_open;

/// The runtime spec that this program follows.
pub const OCI_VERSION: &str = "1.3.0";

const STATE: &str = "state.json";
const NEW_STATE: &str = "state.json.new";
const CONFIG: &str = "config.json";
const LOCK: &str = "lock";
const SOCKET: &str = "start.sock";
/// What the container sees of the directory: where it reports to sd_notify.
pub const NOTIFY_DIR: &str = "notify";
pub const NOTIFY_SOCKET: &str = "notify/notify.sock";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// What later commands need to know. Written before the cgroup is made (pid 0), again when init exists, and
/// once more when `creating` ends.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    pub oci_version: String,
    pub id: String,
    /// This and the next stand early, where [`salvage`] finds them in a torn file.
    pub boot_id: String,
    /// Below the cgroup2 mount, from its root on.
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
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
    /// What linux::rdt made and delete removes.
    pub rdt: Option<rdt::Created>,
}

impl Default for State {
    /// What a state file lacks that another version of the program wrote.
    fn default() -> Self {
        Self {
            oci_version: OCI_VERSION.into(),
            id: String::new(),
            boot_id: String::new(),
            cgroup: None,
            pid: 0,
            start_time: 0,
            creating: false,
            created: String::new(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            owner: String::new(),
            annotations: BTreeMap::new(),
            pid_namespace_private: true,
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

    /// The container's cgroup, if it exists.
    pub fn open_cgroup(&self) -> Result<Option<Cgroup>> {
        self.cgroup.as_deref().map_or(Ok(None), Cgroup::open)
    }

    /// Processes and cgroups end with the boot; what has their names now is somebody else's.
    fn forget_other_boot(mut self) -> Result<Self> {
        if self.boot_id != boot_id()? {
            (self.pid, self.cgroup, self.rdt) = (0, None, None);
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

/// An open state directory.
///
/// A clone inherits its descriptor and with it the flock: init must drop its copy before anything else, or
/// the lock outlives `create`.
pub struct Container {
    id: String,
    root: PathBuf,
    dir: File,
    locked: bool,
}

impl Container {
    /// Makes the state directory and locks it.
    pub fn create(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let path = root.join(id);
        let mut private = DirBuilder::new();
        private.mode(0o700);
        let made = match private.create(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let root_made = private.recursive(true).create(root);
                root_made.context(|| format!("create state root {}", root.display()))?;
                private.recursive(false).create(&path)
            }
            made => made,
        };
        match made {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::new(format!("container with id \"{id}\" already exists")));
            }
            made => made.context(|| format!("create state directory {}", path.display()))?,
        }
        let mut container = Self::open(root, id)?;
        // Only a delete --force can have been faster; the directory is then gone.
        container.lock()?;
        Ok(container)
    }

    pub fn open(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let path = root.join(id);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = match open(&path, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Err(missing(id)),
            dir => dir.context(|| format!("open state directory {}", path.display()))?,
        };
        Ok(Self { id: id.into(), root: root.into(), dir: dir.into(), locked: false })
    }

    /// The names in the root directory that can be containers, sorted.
    pub fn ids(root: &Path) -> Result<Vec<String>, std::io::Error> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().filter(|name| check_id(name).is_ok());
            if let Some(name) = name
                && entry.file_type()?.is_dir()
            {
                ids.push(name);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// The state directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for other commands that change this container, then keeps them out until this process ends.
    pub fn lock(&mut self) -> Result<()> {
        self.dir.lock().context(|| format!("lock container {}", self.id))?;
        self.expect_not_deleted()
    }

    /// The same without waiting: whether the lock was to be had.
    pub fn try_lock(&mut self) -> Result<bool> {
        match self.dir.try_lock() {
            Ok(()) => self.expect_not_deleted().map(|()| true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) => Err(e).context(|| format!("lock container {}", self.id)),
        }
    }

    /// A delete may have been faster, and a create may have made the name anew.
    fn expect_not_deleted(&mut self) -> Result<()> {
        self.locked = true;
        let path = self.path();
        let held = fstat(&self.dir).context(|| format!("stat {}", path.display()))?;
        match fstatat(AT_FDCWD, &path, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(named) if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino) => Ok(()),
            Ok(_) | Err(Errno::ENOENT) => Err(missing(&self.id)),
            Err(errno) => Err(errno).context(|| format!("stat {}", path.display())),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    /// # Errors
    /// [`Kind::NoContainer`] when there is no state file: `create` has just begun, or was killed then.
    pub fn state(&self) -> Result<State> {
        let text = self.read_state()?;
        let state: State = serde_json::from_slice(&text).map_err(|e| {
            let path = self.path().join(STATE);
            Error::new(format!("read {}: {e} (delete --force removes the container)", path.display()))
        })?;
        state.forget_other_boot()
    }

    /// What a state file that cannot be read as a whole tells about what is not to be left behind.
    pub fn salvage_state(&self) -> Result<State> {
        salvage(&self.id, &self.read_state()?).forget_other_boot()
    }

    fn read_state(&self) -> Result<Vec<u8>> {
        match self.open_file(STATE, OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => Err(missing(&self.id)),
            file => file.map_err(Error::from).and_then(|file| Ok(read_all(file)?)),
        }
        .context(|| format!("read {}", self.path().join(STATE).display()))
    }

    /// Replaces state.json; a reader sees the old or the new one, whatever happens.
    pub fn write_state(&self, state: &State) -> Result<()> {
        let write = || -> Result<()> {
            let text = serde_json::to_vec(state).map_err(|e| Error::new(e.to_string()))?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
            self.open_file(NEW_STATE, flags)?.write_all(&text)?;
            Ok(renameat(&self.dir, NEW_STATE, &self.dir, STATE)?)
        };
        write().context(|| format!("write {}", self.path().join(STATE).display()))
    }

    /// Freezes the bytes of the bundle's config.json.
    pub fn write_config(&self, config: &[u8]) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let write = || -> Result<()> { Ok(self.open_file(CONFIG, flags)?.write_all(config)?) };
        write().context(|| format!("write {}", self.path().join(CONFIG).display()))
    }

    fn open_file(&self, name: &str, flags: OFlag) -> Result<File, Errno> {
        let mode = Mode::from_bits_truncate(0o600);
        openat(&self.dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, mode).map(File::from)
    }

    /// The lock that says "created" for as long as any copy of it is open; execve closes init's.
    pub fn created_lock(&self) -> Result<OwnedFd> {
        let what = || format!("lock {}", self.path().join(LOCK).display());
        let file = self.open_file(LOCK, OFlag::O_RDWR | OFlag::O_CREAT).context(what)?;
        ofd_write_lock(&file).context(what)?;
        Ok(file.into())
    }

    /// The socket on which init waits for `start`.
    pub fn bind_start_socket(&self) -> Result<OwnedFd> {
        let bind_socket = || -> Result<OwnedFd, Errno> {
            let socket = stream_socket()?;
            bind(socket.as_raw_fd(), &self.socket_address()?)?;
            listen(&socket, Backlog::new(8)?)?;
            Ok(socket)
        };
        bind_socket().context(|| format!("bind {}", self.path().join(SOCKET).display()))
    }

    /// # Errors
    /// ECONNREFUSED: init has executed or is dead. ENOENT: there is no socket yet.
    pub fn connect_start_socket(&self) -> Result<OwnedFd> {
        let connect_socket = || -> Result<OwnedFd, Errno> {
            let socket = stream_socket()?;
            connect(socket.as_raw_fd(), &self.socket_address()?)?;
            Ok(socket)
        };
        connect_socket().context(|| format!("connect to {}", self.path().join(SOCKET).display()))
    }

    /// A socket's path has 107 bytes at most; through /proc the state root may be as long as it likes.
    fn socket_address(&self) -> Result<UnixAddr, Errno> {
        UnixAddr::new(format!("/proc/self/fd/{}/{SOCKET}", self.dir.as_raw_fd()).as_str())
    }

    pub fn status(&self, state: &State) -> Result<Status> {
        if state.pid == 0 {
            return Ok(if self.is_held_by_another()? { Status::Creating } else { Status::Stopped });
        }
        if state.init()?.is_none() {
            return Ok(Status::Stopped);
        }
        if self.has_not_executed()? {
            return Ok(if state.creating { Status::Creating } else { Status::Created });
        }
        let cgroup = state.open_cgroup()?;
        let frozen = cgroup.is_some_and(|cgroup| cgroup.events().is_ok_and(|events| events.frozen));
        Ok(if frozen { Status::Paused } else { Status::Running })
    }

    fn has_not_executed(&self) -> Result<bool> {
        match self.open_file(LOCK, OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => Ok(false),
            lock => lock.and_then(ofd_is_locked),
        }
        .context(|| format!("read the lock {}", self.path().join(LOCK).display()))
    }

    /// Whether another process has this container locked.
    fn is_held_by_another(&self) -> Result<bool> {
        if self.locked {
            return Ok(false);
        }
        // Opened anew, for a lock on `dir` itself would stay until its end.
        let dir = self.open_file(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let dir = dir.context(|| format!("open {}", self.path().display()))?;
        match dir.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e).context(|| format!("lock {}", self.path().display())),
        }
    }

    /// Deletes the state directory; the caller holds the lock. state.json goes last: what is left of a
    /// remove that was killed is deleted like the whole.
    pub fn remove(&self) -> Result<()> {
        remove(&self.dir, Path::new(NOTIFY_SOCKET), UnlinkatFlags::NoRemoveDir)
            .and_then(|()| remove(&self.dir, Path::new(NOTIFY_DIR), UnlinkatFlags::RemoveDir))
            .context(|| format!("remove {}", self.path().join(NOTIFY_DIR).display()))?;
        for name in [SOCKET, LOCK, CONFIG, NEW_STATE, STATE] {
            remove(&self.dir, Path::new(name), UnlinkatFlags::NoRemoveDir)
                .context(|| format!("remove {}", self.path().join(name).display()))?;
        }
        let path = self.path();
        remove(AT_FDCWD, &path, UnlinkatFlags::RemoveDir).context(|| format!("remove {}", path.display()))
    }
}

fn remove(dir: impl AsFd, path: &Path, flags: UnlinkatFlags) -> Result<(), Errno> {
    match unlinkat(dir, path, flags) {
        Err(Errno::ENOENT) => Ok(()),
        removed => removed,
    }
}

fn missing(id: &str) -> Error {
    Error::of_kind(Kind::NoContainer, format!("container \"{id}\" does not exist"))
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// An id is a file name, a cgroup name and a keyring name.
fn check_id(id: &str) -> Result<()> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
    if id.is_empty() || id == "." || id == ".." || !id.chars().all(valid) {
        return Err(Error::new(format!("invalid container id {id:?}: it must match [a-zA-Z0-9_+.-]+")));
    }
    if id.len() > NAME_MAX {
        return Err(Error::new(format!("invalid container id {id:?}: it is longer than {NAME_MAX} bytes")));
    }
    Ok(())
}

const NAME_MAX: usize = 255;

fn salvage(id: &str, text: &[u8]) -> State {
    fn value<T: for<'de> Deserialize<'de>>(text: &str, key: &str) -> Option<T> {
        let (_, value) = text.split_once(key)?;
        serde_json::Deserializer::from_str(value).into_iter().next()?.ok()
    }
    let text = String::from_utf8_lossy(text);
    let boot_id = value(&text, "\"bootId\":").unwrap_or_default();
    State { id: id.into(), boot_id, cgroup: value(&text, "\"cgroup\":"), ..State::default() }
}

/// Whether the process is dead; a zombie is.
pub fn has_ended(pidfd: &OwnedFd) -> Result<bool> {
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

/// The name of a user of the host, or `#1000`, as runc has it. A static program has no NSS.
fn user_name(uid: u32) -> String {
    let passwd = read_file("/etc/passwd").unwrap_or_default();
    find_user(&String::from_utf8_lossy(&passwd), uid).unwrap_or_else(|| format!("#{uid}"))
}

fn find_user(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let mut entries = passwd.lines().map(|line| line.split(':'));
    entries.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_string())
    })
}

fn read_file(path: &str) -> Result<Vec<u8>, Errno> {
    let file = File::from(open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?);
    read_all(file).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}

/// One read for the text and one for its end; without `take` the standard library asks for the size first.
fn read_all(file: File) -> Result<Vec<u8>, std::io::Error> {
    let mut bytes = Vec::with_capacity(4096);
    file.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A state root that is removed with all it holds.
    pub struct Root(pub PathBuf);

    impl Root {
        pub fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("keel-container-{}-{name}", std::process::id())))
        }

        pub fn create(&self, id: &str) -> Container {
            Container::create(&self.0, id).unwrap()
        }

        fn open(&self, id: &str) -> Container {
            Container::open(&self.0, id).unwrap()
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    pub struct Process(pub Child);

    impl Process {
        pub fn spawn() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().unwrap())
        }

        pub fn pid(&self) -> Pid {
            Pid::from_raw(self.0.id() as i32)
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    /// Other tests fork, and until their children execute they hold copies of this test's descriptors.
    fn eventually(condition: impl Fn() -> bool) -> bool {
        for _ in 0..500 {
            if condition() {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        false
    }

    fn message<T>(result: Result<T>) -> String {
        result.err().unwrap().to_string()
    }

    #[test]
    fn ids_are_file_names_of_harmless_characters() {
        let long = "x".repeat(NAME_MAX);
        for id in ["c1", "a", "-x", "...", ".x", "A_b+c.d-9", &long] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        let too_long = "x".repeat(NAME_MAX + 1);
        for id in ["", ".", "..", "a/b", "/", "a b", "../x", "\u{e4}", "a\n", "a:b", "a\0", &too_long] {
            assert!(message(check_id(id)).starts_with("invalid container id"), "{id}");
        }
    }

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
    fn users_are_named_by_the_hosts_passwd() {
        let passwd = "root:x:0:0::/:/bin/sh\n\nbroken\nup:x:1000:5::/:\nalso:x:1000:5::/:\n";
        for (uid, name) in [(0, Some("root")), (1000, Some("up")), (5, None), (1, None)] {
            assert_eq!(find_user(passwd, uid).as_deref(), name);
        }
    }

    #[test]
    fn a_state_survives_the_way_through_its_file() {
        let root = Root::new("state");
        let container = root.create("c");
        let mut state = State::new("c").unwrap();
        state.set_init(Pid::this()).unwrap();
        state.cgroup = Some("/keel/c".into());
        state.annotations = [("a\"b".to_string(), "\u{e4}\n".to_string())].into();
        state.rdt = Some(serde_json::from_str(r#"["/sys/fs/resctrl/c"]"#).unwrap());
        container.write_state(&state).unwrap();
        let read = container.state().unwrap();
        let json = |state: &State| serde_json::to_value(state).unwrap();
        assert_eq!(json(&read), json(&state));
        assert_eq!(read.owner, user_name(geteuid().as_raw()));
        assert!(read.creating && read.start_time > 0);
    }

    #[test]
    fn an_earlier_boots_processes_and_cgroups_are_not_ours() {
        let root = Root::new("boot");
        let container = root.create("c");
        let mut state = State::new("c").unwrap();
        state.set_init(Pid::this()).unwrap();
        state.cgroup = Some("/".into());
        state.boot_id = "another".into();
        container.write_state(&state).unwrap();
        let read = container.state().unwrap();
        assert_eq!((read.pid, read.cgroup), (0, None));
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
    fn a_name_can_be_taken_once() {
        let root = Root::new("once");
        let _container = root.create("c");
        assert_eq!(message(Container::create(&root.0, "c")), "container with id \"c\" already exists");
        let missing = Container::open(&root.0, "d").err().unwrap();
        assert_eq!(
            (missing.kind(), missing.to_string().as_str()),
            (Kind::NoContainer, "container \"d\" does not exist")
        );
        assert_eq!(Container::ids(&root.0).unwrap(), ["c"]);
    }

    #[test]
    fn a_container_deleted_while_its_lock_was_waited_for_is_gone() {
        let root = Root::new("gone");
        let creator = root.create("c");
        let mut waiting = root.open("c");
        assert!(!waiting.try_lock().unwrap());
        creator.remove().unwrap();
        drop(creator);
        let _anew = root.create("c");
        assert_eq!(waiting.lock().unwrap_err().kind(), Kind::NoContainer);
    }

    #[test]
    fn without_a_process_the_creators_lock_tells_creating_from_stopped() {
        let root = Root::new("creating");
        let creator = root.create("c");
        creator.write_state(&State::new("c").unwrap()).unwrap();
        let other = root.open("c");
        let status = || other.status(&other.state().unwrap()).unwrap();
        assert_eq!(status(), Status::Creating);
        drop(creator);
        assert!(eventually(|| status() == Status::Stopped));
    }

    #[test]
    fn the_status_follows_the_process() {
        let root = Root::new("status");
        let container = root.create("c");
        let mut process = Process::spawn();
        let mut state = State::new("c").unwrap();
        state.set_init(process.pid()).unwrap();
        let lock = container.created_lock().unwrap();
        assert_eq!(container.status(&state).unwrap(), Status::Creating);
        state.creating = false;
        assert_eq!(container.status(&state).unwrap(), Status::Created);
        drop(lock);
        assert!(eventually(|| container.status(&state).unwrap() == Status::Running));
        // A zombie, until Process is dropped.
        process.0.kill().unwrap();
        assert!(eventually(|| container.status(&state).unwrap() == Status::Stopped));
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
    fn start_finds_the_socket_of_a_waiting_init_only() {
        let root = Root::new(&"long-".repeat(40));
        let container = root.create("c");
        assert_eq!(container.connect_start_socket().unwrap_err().errno(), Some(Errno::ENOENT));
        let listener = container.bind_start_socket().unwrap();
        container.connect_start_socket().unwrap();
        drop(listener);
        let refused = || container.connect_start_socket().err().and_then(|e| e.errno());
        assert!(eventually(|| refused() == Some(Errno::ECONNREFUSED)));
    }

    #[test]
    fn remove_takes_what_is_left_and_nothing_unknown() {
        let root = Root::new("remove");
        let container = root.create("c");
        container.write_config(b"{}").unwrap();
        container.write_state(&State::new("c").unwrap()).unwrap();
        drop((container.created_lock().unwrap(), container.bind_start_socket().unwrap()));
        let stranger = root.0.join("c/stranger");
        std::fs::write(&stranger, "").unwrap();
        assert!(message(container.remove()).ends_with("/c: Directory not empty (39)"));
        assert_eq!(std::fs::read_dir(root.0.join("c")).unwrap().count(), 1);
        std::fs::remove_file(&stranger).unwrap();
        container.remove().unwrap();
        container.remove().unwrap();
        assert!(!root.0.join("c").exists());
    }

    #[test]
    fn hooks_get_the_specs_state() {
        let mut state = State::new("c").unwrap();
        state.bundle = "/b".into();
        let expected = r#"{"ociVersion":"1.3.0","id":"c","status":"creating","pid":7,"bundle":"/b"}"#;
        assert_eq!(String::from_utf8(state.oci_state(Status::Creating, 7)).unwrap(), expected);
    }
}
