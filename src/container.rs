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

mod state;

use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, renameat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::Serialize;

use crate::error::{Context, Error, Kind, Result};
use crate::rights::Rights;
use crate::sys::fs::{ofd_is_locked, ofd_write_lock};

pub use state::State;
use state::{read_all, salvage};

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

/// An open state directory.
///
/// A clone inherits its descriptor and with it the flock, which outlives a `create` that is killed until init closes
/// what it has of the host.
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
                // The sticky bit keeps what clears a user's runtime directory from it (XDG base directory specification).
                let is_users = Rights::of_caller() != Rights::Root;
                let root_made =
                    private.mode(if is_users { 0o1700 } else { 0o700 }).recursive(true).create(root);
                root_made.context(|| format!("create state root {}", root.display()))?;
                private.mode(0o700).recursive(false).create(&path)
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

    /// Waits for other commands that change this container, then keeps them out.
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

    pub fn unlock(&mut self) -> Result<()> {
        self.locked = false;
        self.dir.unlock().context(|| format!("unlock container {}", self.id))
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
        if state.id != self.id {
            let path = self.path().join(STATE);
            let what = "it is not the state of this container (delete --force removes the container)";
            return Err(Error::new(format!("read {}: {what}", path.display())));
        }
        state.forget_other_boot()
    }

    /// What a state file that cannot be read as a whole tells about what is not to be left behind.
    pub fn salvage_state(&self) -> Result<State> {
        salvage(&self.id, &self.read_state()?).forget_other_boot()
    }

    fn read_state(&self) -> Result<Vec<u8>> {
        match self.open_file(STATE, OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => return Err(missing(&self.id)),
            file => file.map_err(Error::from).and_then(|file| Ok(read_all(file)?)),
        }
        // A create that was killed between making the file and writing it.
        .and_then(|text| if text.is_empty() { Err(missing(&self.id)) } else { Ok(text) })
        .context(|| format!("read {}", self.path().join(STATE).display()))
    }

    /// Writes the first state, of a container that nobody else knows yet: an empty file is as good as none.
    pub fn create_state(&self, state: &State) -> Result<()> {
        let write = || -> Result<()> {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            Ok(self.open_file(STATE, flags)?.write_all(&to_json(state)?)?)
        };
        write().context(|| format!("write {}", self.path().join(STATE).display()))
    }

    /// Replaces state.json; a reader sees the old or the new one, whatever happens.
    pub fn write_state(&self, state: &State) -> Result<()> {
        let write = || -> Result<()> {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
            self.open_file(NEW_STATE, flags)?.write_all(&to_json(state)?)?;
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

    /// The bytes of config.json as they were at create.
    pub fn config(&self) -> Result<Vec<u8>> {
        let read = || -> Result<Vec<u8>> { Ok(read_all(self.open_file(CONFIG, OFlag::O_RDONLY)?)?) };
        read().context(|| format!("read {}", self.path().join(CONFIG).display()))
    }

    /// Whether the state directory has an entry of this name.
    pub fn has(&self, name: &str) -> Result<bool> {
        match fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno).context(|| format!("stat {}", self.path().join(name).display())),
        }
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

    /// The socket on which init will listen for `start`.
    pub fn bind_start_socket(&self) -> Result<OwnedFd> {
        let bind_socket = || -> Result<OwnedFd, Errno> {
            let socket = stream_socket()?;
            bind(socket.as_raw_fd(), &self.socket_address()?)?;
            Ok(socket)
        };
        bind_socket().context(|| format!("bind {}", self.path().join(SOCKET).display()))
    }

    /// # Errors
    /// ECONNREFUSED: init does not listen yet, has executed or is dead. ENOENT: there is no socket yet.
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
        if state.creating {
            return Ok(Status::Creating);
        }
        match state.open_cgroup()? {
            Some(cgroup) if cgroup.events()?.frozen => Ok(Status::Paused),
            _ if self.has_not_executed()? => Ok(Status::Created),
            _ => Ok(Status::Running),
        }
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

fn to_json(state: &State) -> Result<Vec<u8>> {
    serde_json::to_vec(state).map_err(|e| Error::new(e.to_string()))
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

#[cfg(test)]
pub mod tests {
    use super::state::user_name;
    use super::*;
    use std::process::{Child, Command};

    use nix::unistd::{Pid, geteuid};

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
    pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
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
    fn a_state_survives_the_way_through_its_file() {
        let root = Root::new("state");
        let container = root.create("c");
        let mut state = State::new("c").unwrap();
        state.set_init(Pid::this()).unwrap();
        state.cgroup = Some("/sys/fs/cgroup/c".into());
        state.annotations = [("a\"b".to_string(), "\u{e4}\n".to_string())].into();
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
    fn start_finds_the_socket_of_a_waiting_init_only() {
        let root = Root::new(&"long-".repeat(40));
        let container = root.create("c");
        assert_eq!(container.connect_start_socket().unwrap_err().errno(), Some(Errno::ENOENT));
        let gate = container.bind_start_socket().unwrap();
        let refused = || container.connect_start_socket().err().and_then(|e| e.errno());
        assert_eq!(refused(), Some(Errno::ECONNREFUSED));
        crate::gate::listen(&gate).unwrap();
        container.connect_start_socket().unwrap();
        drop(gate);
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
}
