//! `/linux/cgroupsPath` and `/linux/resources`: the container's cgroup (v2).
//!
//! `create` makes it before the container's first process, which clone3 then starts inside. Everything is reached
//! by descriptor from the cgroup2 mount; a cgroup is a directory of it.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#configLinuxControlGroups>,
//! kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html>

mod cpu;
pub mod delegate;
pub mod devices;
mod freeze;
mod hugetlb;
mod io;
pub mod limits;
mod manager;
mod memory;
pub mod oom;
mod pids;
mod rdma;
mod remove;
pub mod stats;
pub mod systemd;
pub mod undelegated;
mod unified;
pub mod watch;

use std::ffi::{CStr, CString, OsStr};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::sys::uio::pread;
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

pub use manager::Manager;

use crate::error::{At, Context, Error, Field, Result};
use crate::host::{Cgroup2, Host};
use crate::log;
use crate::spec::Node;
use crate::sys::fs::{Resolve, openat2};

/// Where the cgroup is, and what it limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub devices: devices::Filter,
    pub limits: Vec<limits::Limit>,
    /// Where below it the container's first process goes.
    pub leaf: Option<delegate::Leaf>,
    field: Field,
    place: Place,
    /// By /linux/cgroupsPath.
    is_named: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Where systemd puts it.
    Scope(systemd::Scope),
    /// Below the cgroup2 mount.
    Absolute(PathBuf),
    /// Below the parent of the caller's own cgroup, as with runc: a cgroup with processes in it, like the
    /// caller's, cannot have limits for its children.
    Sibling(PathBuf),
}

/// Reads `/linux`, and `/annotations` of the whole `config`; without a cgroupsPath the container's id is the name.
pub fn plan(config: &Node, linux: Option<&Node>, id: &str, manager: Manager) -> Plan {
    let resources = linux.and_then(|linux| linux.object("resources"));
    let mut limits = resources.as_ref().map(limits::plan).unwrap_or_default();
    let named = linux.and_then(plan_path);
    let is_named = named.is_some();
    let place = match manager.systemd() {
        Some(instance) => Place::Scope(systemd::plan(config, linux, &mut limits, id, instance)),
        None => named.unwrap_or_else(|| Place::Sibling(id.into())),
    };
    let field = linux.map_or_else(Field::root, |linux| linux.at("cgroupsPath"));
    let leaf = delegate::plan_leaf(config);
    Plan { devices: devices::plan(resources.as_ref()), limits, leaf, field, place, is_named }
}

fn plan_path(linux: &Node<'_>) -> Option<Place> {
    // Callers write an empty string for "none".
    let path = linux.string("cgroupsPath").filter(|path| !path.is_empty())?;
    let below = path.strip_prefix('/').unwrap_or(path);
    if below.is_empty() {
        linux.problem("cgroupsPath", "must not be the top of the hierarchy");
    } else if let Some(wrong) = below.split('/').find(|name| matches!(*name, "" | "." | "..")) {
        let what = format!("must not have the component {wrong:?}, as {path:?} has");
        linux.problem("cgroupsPath", what);
    }
    Some(if path == below { Place::Sibling(below.into()) } else { Place::Absolute(below.into()) })
}

impl Plan {
    /// The cgroup's absolute path on this host, which the state keeps for later commands.
    pub fn path(&self, host: &Host) -> Result<PathBuf> {
        let mount = host.cgroup2().at(&self.field)?.path();
        let below = match &self.place {
            Place::Absolute(path) => return Ok(mount.join(path)),
            Place::Sibling(path) => path,
            Place::Scope(scope) => {
                return Err(Error::new(format!("where {} is, systemd will say", scope.name)));
            }
        };
        let own = host.own_cgroup().at(&self.field)?;
        let parent = own.parent().unwrap_or(&own);
        Ok(host
            .locate_cgroup(parent)
            .context(|| "place the cgroup beside the caller's")
            .at(&self.field)?
            .join(below))
    }
}

pub struct Cgroup {
    path: PathBuf,
    fd: OwnedFd,
    /// The directories that this object made, topmost first; the last is the cgroup itself.
    made: Vec<PathBuf>,
}

/// What cgroup.events says of a cgroup and everything below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    pub populated: bool, // by a process that has not ended; a zombie does not count
    pub frozen: bool,
}

impl Cgroup {
    /// Makes the cgroup at `path`, which is the plan's, with its missing parents. One that exists is taken if it
    /// has no processes and is not frozen.
    pub fn create(plan: &Plan, path: &Path, host: &Host) -> Result<Self> {
        let mount = host.cgroup2()?;
        let mut made = Vec::new();
        let created = make(mount, path, &mut made).and_then(|()| {
            let cgroup = Self { path: path.into(), fd: open_below(mount, path)?, made: Vec::new() };
            cgroup.check_usable(&made, mount)?;
            limits::enable(&plan.limits, &cgroup, mount)?;
            Ok(cgroup)
        });
        match created {
            Ok(cgroup) => Ok(Self { made, ..cgroup }),
            Err(e) => {
                if let Err(left_over) = remove_empty(&made) {
                    log::warning(left_over);
                }
                Err(e)
            }
        }
        .at(&plan.field)
    }

    /// Refuses a cgroup that exists and is in use; `create` looks again.
    pub fn refuse_used(plan: &Plan, path: &Path) -> Result<()> {
        Self::open(path)?.map_or(Ok(()), |cgroup| cgroup.refuse_if_used()).at(&plan.field)
    }

    /// Opens the cgroup that `create` made at `path`; None when it is gone.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let what = || format!("open cgroup {}", path.display());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match open(path, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.context(what)?,
        };
        if fstatfs(&fd).context(what)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(Error::new(format!("{}: it is not on a cgroup2 file system", what())));
        }
        Ok(Some(Self { path: path.into(), fd, made: Vec::new() }))
    }

    /// The cgroup that a process is in now.
    pub fn of_process(host: &Host, pid: Pid) -> Result<Option<Self>> {
        Self::open(&host.locate_cgroup(&host.cgroup_of(pid)?)?)
    }

    /// Opens the cgroup that this process is in.
    pub fn of_caller(host: &Host) -> Result<Self> {
        let path = host.locate_cgroup(&host.own_cgroup()?)?;
        Self::open(&path)?
            .ok_or_else(|| Error::new(format!("open the caller's cgroup {}: it is gone", path.display())))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `create` made it, rather than found it.
    pub fn is_new(&self) -> bool {
        !self.made.is_empty()
    }

    fn check_usable(&self, made: &[PathBuf], mount: &Cgroup2) -> Result<()> {
        // A new one is empty, and born frozen only below a frozen parent, which the top cannot be.
        if !made.is_empty() && self.path.parent() == Some(mount.path()) {
            return Ok(());
        }
        self.refuse_if_used()
    }

    fn refuse_if_used(&self) -> Result<()> {
        let events = self.events()?;
        if events.populated {
            let reason = format!("it holds the processes {}", list(&self.pids()?));
            return Err(Error::new(format!("use cgroup {}: {reason}", self.path.display())));
        }
        if events.frozen {
            // A process that is born frozen would keep `create` waiting for ever.
            let reason = "it, or one above it, is frozen";
            return Err(Error::new(format!("use cgroup {}: {reason}", self.path.display())));
        }
        Ok(())
    }

    pub fn events(&self) -> Result<Events> {
        match self.open_file(c"cgroup.events", OFlag::O_RDONLY).and_then(|file| read_events(&file)) {
            // Removed meanwhile by a `delete`, so without processes.
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(Events { populated: false, frozen: false }),
            read => read.context(|| format!("read {}/cgroup.events", self.path.display())),
        }
    }

    /// Kills every process in it and below, frozen and just forking ones included. They end on their own time.
    pub fn kill(&self) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let file = self.open_file(c"cgroup.kill", OFlag::O_WRONLY)?;
            std::fs::File::from(file).write_all(b"1")
        };
        match write() {
            // Removed, so without processes.
            Err(e) if is_gone(&e) => Ok(()),
            other => other.context(|| format!("write 1 to {}/cgroup.kill", self.path.display())),
        }
    }

    /// Takes back what `create` did, when what follows it has failed.
    pub fn undo(&self) -> Result<()> {
        match self.made.split_last() {
            None => Ok(()),
            Some((_, parents)) => self.remove().and_then(|()| remove_empty(parents)),
        }
    }

    /// The processes in it and below, in the caller's pid namespace.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        let mut pids = Vec::new();
        let mut pending = vec![PathBuf::from(".")];
        while let Some(path) = pending.pop() {
            let what = || format!("list the processes of {}", self.path.join(&path).display());
            let resolve = Resolve::BENEATH | Resolve::NO_SYMLINKS;
            let dir = match openat2(&self.fd, &path, libc::O_RDONLY | libc::O_DIRECTORY, 0, resolve) {
                Err(Errno::ENOENT | Errno::ENODEV) => continue,
                other => other.context(what)?,
            };
            pids.extend(read_pids(&dir).context(what)?);
            let names = Dir::from_fd(dir).and_then(|mut dir| children(&mut dir)).context(what)?;
            pending.extend(names.iter().map(|name| path.join(OsStr::from_bytes(name.to_bytes()))));
        }
        Ok(pids)
    }

    /// Makes a cgroup below this one, unless it is there.
    fn make_below(&self, path: &Path) -> Result<Self, Errno> {
        match mkdirat(&self.fd, path, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        let resolve = Resolve::BENEATH | Resolve::NO_SYMLINKS | Resolve::NO_XDEV;
        let fd = openat2(&self.fd, path, libc::O_PATH | libc::O_DIRECTORY, 0, resolve)?;
        Ok(Self { path: self.path.join(path), fd, made: Vec::new() })
    }

    fn open_file(&self, name: &CStr, flags: OFlag) -> Result<OwnedFd, Errno> {
        openat(&self.fd, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
    }
}

/// The directory, opened with O_PATH: for clone3, for the device filter, and as the source of the container's
/// cgroup mount.
impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes the directory `path` and its missing parents; `made` gets those that are new.
fn make(mount: &Cgroup2, path: &Path, made: &mut Vec<PathBuf>) -> Result<()> {
    match make_one(mount, path, made) {
        Err(Errno::ENOENT) => {}
        other => return other.map_err(|errno| not_made(path, errno)),
    }
    let mut walked = mount.path().to_path_buf();
    for name in below(mount, path).components() {
        walked.push(name);
        make_one(mount, &walked, made).map_err(|errno| not_made(&walked, errno))?;
    }
    Ok(())
}

fn not_made(path: &Path, errno: Errno) -> Error {
    let hint = match errno {
        Errno::EAGAIN => {
            ": no more cgroups may be made (cgroup.max.descendants or cgroup.max.depth above it)"
        }
        Errno::ENOMEM => ": no memory for it (memory.max above it)",
        Errno::EACCES => ": the cgroup above it is not delegated to this user",
        _ => "",
    };
    Error::from(errno).because(format!("create cgroup {}{hint}", path.display()))
}

fn make_one(mount: &Cgroup2, path: &Path, made: &mut Vec<PathBuf>) -> Result<(), Errno> {
    match mkdirat(mount, below(mount, path), Mode::from_bits_truncate(0o755)) {
        Ok(()) => made.push(path.into()),
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    Ok(())
}

fn below<'p>(mount: &Cgroup2, path: &'p Path) -> &'p Path {
    path.strip_prefix(mount.path()).expect("Plan::path begins with the mount's path")
}

fn open_below(mount: &Cgroup2, path: &Path) -> Result<OwnedFd> {
    let resolve = Resolve::BENEATH | Resolve::NO_SYMLINKS | Resolve::NO_XDEV;
    openat2(mount, below(mount, path), libc::O_PATH | libc::O_DIRECTORY, 0, resolve)
        .context(|| format!("open cgroup {}", path.display()))
}

/// Removes these directories, the last first, as far as nobody else has come to use them.
fn remove_empty(made: &[PathBuf]) -> Result<()> {
    for path in made.iter().rev() {
        match unlinkat(nix::fcntl::AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EBUSY) => break,
            Err(errno) => return Err(errno).context(|| format!("remove cgroup {}", path.display())),
        }
    }
    Ok(())
}

fn children(dir: &mut Dir) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn read_events(file: &OwnedFd) -> Result<Events, Errno> {
    let mut text = [0; 256];
    let length = pread(file, &mut text, 0)?;
    Ok(parse_events(&text[..length]))
}

fn parse_events(text: &[u8]) -> Events {
    let has = |wanted: &[u8]| text.split(|&byte| byte == b'\n').any(|line| line == wanted);
    Events { populated: has(b"populated 1"), frozen: has(b"frozen 1") }
}

fn read_pids(dir: &OwnedFd) -> std::io::Result<Vec<Pid>> {
    let mut text = String::new();
    let read = openat(dir, c"cgroup.procs", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(std::io::Error::from)
        .and_then(|file| std::fs::File::from(file).read_to_string(&mut text));
    match read {
        // A threaded cgroup lists no processes: the domain above it does.
        Err(e) if e.raw_os_error() != Some(libc::EOPNOTSUPP) && !is_gone(&e) => Err(e),
        _ => Ok(text.lines().filter_map(|pid| pid.parse().ok().map(Pid::from_raw)).collect()),
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn list(pids: &[Pid]) -> String {
    let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
    pids.join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::remove::REMOVE_TIMEOUT;
    use super::*;
    use crate::spec::{Report, parse};
    use crate::sys::process::{Clone, clone3, exit_now};
    use nix::sys::wait::{WaitPidFlag, waitpid};

    fn planned(json: &str) -> std::result::Result<Plan, Vec<String>> {
        let report = Report::default();
        let map = parse(json.as_bytes(), &report).unwrap();
        let linux = Node::root(&map, &report);
        let plan = plan(&linux, Some(&linux), "c1", Manager::Cgroupfs);
        match report.finish() {
            Ok(_) => Ok(plan),
            Err(e) => Err(e.problems().iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn an_absolute_path_is_below_the_mount_and_others_are_beside_the_caller() {
        for (json, place) in [
            (r#"{"cgroupsPath": "/a/b"}"#, Place::Absolute("a/b".into())),
            (r#"{"cgroupsPath": "a/b"}"#, Place::Sibling("a/b".into())),
            (r#"{"cgroupsPath": "system.slice:keel:1"}"#, Place::Sibling("system.slice:keel:1".into())),
            (r#"{"cgroupsPath": ""}"#, Place::Sibling("c1".into())),
            ("{}", Place::Sibling("c1".into())),
        ] {
            assert_eq!(planned(json).unwrap().place, place, "{json}");
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_a_problem() {
        for (path, reason) in [
            ("/", "must not be the top of the hierarchy"),
            ("/../a", "must not have the component \"..\", as \"/../a\" has"),
            ("a/..", "must not have the component \"..\", as \"a/..\" has"),
            ("/a/./b", "must not have the component \".\", as \"/a/./b\" has"),
            ("//a", "must not have the component \"\", as \"//a\" has"),
            ("a/", "must not have the component \"\", as \"a/\" has"),
        ] {
            let json = format!("{{\"cgroupsPath\": {path:?}}}");
            assert_eq!(planned(&json).unwrap_err(), [format!("/cgroupsPath: {reason}")]);
        }
    }

    #[test]
    fn events_are_read_line_by_line() {
        let events = |populated, frozen| Events { populated, frozen };
        assert_eq!(parse_events(b"populated 1\nfrozen 0\n"), events(true, false));
        assert_eq!(parse_events(b"populated 0\nfrozen 1\nmore 1\n"), events(false, true));
    }

    /// Below the cgroup2 mount, of the test's own; None where there is none or it may not be written.
    pub(super) fn test_place(name: &str) -> Option<(Host, Plan, PathBuf)> {
        let host = Host::new().unwrap();
        let mount = match host.cgroup2() {
            Ok(mount) if nix::unistd::geteuid().is_root() => mount.path().to_path_buf(),
            _ => {
                println!("SKIP needs root and a cgroup2 mount");
                return None;
            }
        };
        let plan = planned(&format!("{{\"cgroupsPath\": \"/keel-{name}-{}/c1\"}}", Pid::this())).unwrap();
        let path = plan.path(&host).unwrap();
        assert!(path.starts_with(mount));
        Some((host, plan, path))
    }

    /// A child inside the cgroup that runs `act` and exits with its result.
    fn spawn(cgroup: &Cgroup, act: impl FnOnce() -> i32) -> Pid {
        match clone3(0, Some(cgroup.as_fd())).unwrap() {
            Clone::Parent { pid, .. } => pid,
            Clone::Child => exit_now(act()),
        }
    }

    fn sleep_for_ever() -> i32 {
        loop {
            nix::unistd::pause();
        }
    }

    #[test]
    fn only_what_create_made_is_undone() {
        let Some((host, plan, path)) = test_place("undo") else { return };
        let parent = path.parent().unwrap();
        let cgroup = Cgroup::create(&plan, &path, &host).unwrap();
        assert_eq!(cgroup.made, [parent, &path]);
        assert!(cgroup.is_new() && !cgroup.events().unwrap().populated);

        let again = Cgroup::create(&plan, &path, &host).unwrap();
        assert!(!again.is_new());
        again.undo().unwrap();
        assert!(path.exists());

        std::fs::create_dir(parent.join("other")).unwrap();
        cgroup.undo().unwrap();
        assert!(!path.exists() && parent.exists());
        std::fs::remove_dir(parent.join("other")).unwrap();
        std::fs::remove_dir(parent).unwrap();
        assert!(Cgroup::open(&path).unwrap().is_none());
        assert_eq!(cgroup.events().unwrap(), Events { populated: false, frozen: false });
        cgroup.kill().unwrap();
        cgroup.remove().unwrap();
    }

    #[test]
    fn a_cgroup_in_use_is_refused() {
        let Some((host, plan, path)) = test_place("refuse") else { return };
        let cgroup = Cgroup::create(&plan, &path, &host).unwrap();
        let child = spawn(&cgroup, sleep_for_ever);
        let refused = |why: &str| {
            let error = Cgroup::create(&plan, &path, &host).err().unwrap().to_string();
            let field = "[config.json /cgroupsPath]";
            assert_eq!(error, format!("use cgroup {}: {why} {field}", path.display()));
        };
        refused(&format!("it holds the processes {child}"));
        assert!(!cgroup.wait_until_empty(Instant::now() + Duration::from_millis(1)).unwrap());
        cgroup.kill().unwrap();
        waitpid(child, None).unwrap();
        cgroup.wait_until_empty(Instant::now() + REMOVE_TIMEOUT).unwrap();

        let freeze = path.parent().unwrap().join("cgroup.freeze");
        std::fs::write(&freeze, "1").unwrap();
        refused("it, or one above it, is frozen");
        cgroup.remove().unwrap();
        // Born frozen, too.
        refused("it, or one above it, is frozen");
        assert!(!path.exists());
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_tree_of_cgroups_with_frozen_processes_is_killed_and_removed() {
        let Some((host, plan, path)) = test_place("tree") else { return };
        let cgroup = Cgroup::create(&plan, &path, &host).unwrap();
        let mut deep = path.clone();
        for i in 0..50 {
            deep.push("d");
            std::fs::create_dir(&deep).unwrap();
            std::fs::create_dir(deep.join(format!("wide{i}"))).unwrap();
        }
        let child = spawn(&cgroup, sleep_for_ever);
        std::fs::write(deep.join("cgroup.procs"), child.to_string()).unwrap();
        assert_eq!(cgroup.pids().unwrap(), [child]);
        std::fs::write(path.join("cgroup.freeze"), "1").unwrap();
        cgroup.kill().unwrap();
        cgroup.remove().unwrap();
        assert!(!path.exists());
        // The zombie did not keep it.
        let waited = waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap();
        assert_eq!(waited, nix::sys::wait::WaitStatus::Signaled(child, nix::sys::signal::SIGKILL, false));
        cgroup.undo().unwrap();
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn the_kernel_obeys_the_device_filter() {
        let Some((host, plan, path)) = test_place("devices") else { return };
        let cgroup = Cgroup::create(&plan, &path, &host).unwrap();
        let open_both = || {
            let open = |path: &str| open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).err();
            i32::from(open("/dev/null").is_none()) | i32::from(open("/dev/kmsg") == Some(Errno::EPERM)) << 1
        };
        let result = |cgroup: &Cgroup| match waitpid(spawn(cgroup, open_both), None).unwrap() {
            nix::sys::wait::WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        };
        assert_eq!(result(&cgroup), 0b01);
        devices::apply(&plan.devices, &cgroup).unwrap();
        assert_eq!(result(&cgroup), 0b11);

        // A cgroup that was there before keeps no old filter.
        let again = Cgroup::create(&plan, &path, &host).unwrap();
        let kmsg = r#"{"resources": {"devices": [{"allow": true, "type": "c", "major": 1, "minor": 11}]}}"#;
        devices::apply(&planned(kmsg).unwrap().devices, &again).unwrap();
        assert_eq!(result(&cgroup), 0b01);
        devices::apply(&plan.devices, &again).unwrap();
        let all = r#"{"resources": {"devices": [{"allow": true}]}}"#;
        devices::apply(&planned(all).unwrap().devices, &again).unwrap();
        assert_eq!(result(&cgroup), 0b01);
        cgroup.undo().unwrap();
    }
}
