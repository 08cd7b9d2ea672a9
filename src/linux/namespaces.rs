//! /linux/namespaces and /linux/timeOffsets: which namespaces are made, which are joined, with which clocks.
//!
//! New namespaces come from clone3's flags. One that exists is joined by the parent, which goes there, clones,
//! and goes back: a process cannot join a pid or time namespace itself, only be born in it. Three exceptions:
//! init joins a mount namespace itself, so that the parent keeps the host's files; and it joins or makes its
//! cgroup namespace, whose root is the cgroup that it is in by then (and from a joined one the parent might
//! not be allowed to clone into a cgroup that lies outside it).
//!
//! From a user namespace there is no way back, so one to be joined is left to a process in between (`spawn.rs`). The
//! others are joined before it, with the rights of the host: they need not belong to it. For the same reason init
//! does not join a cgroup namespace when it has a user namespace.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#namespaces>,
//! `namespaces(7)`, `time_namespaces(7)`.

mod inside;
mod offsets;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Pid;

use self::offsets::Offsets;
use crate::error::{At, Context, Error, Field, Result};
use crate::proc::Proc;
use crate::rights::Rights;
use crate::spec::Node;
use crate::sys::process::{Clone, ns_get_nstype};

pub use inside::{in_locked_mount_namespace, in_mount_namespace};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Pid,
    Network,
    Mount,
    Ipc,
    Uts,
    User,
    Cgroup,
    Time,
}

/// In the order of `Kind`: its type in config.json, its file in /proc/PID/ns, its flag.
const KINDS: [(Kind, &str, &str, i32); 8] = [
    (Kind::Pid, "pid", "pid", libc::CLONE_NEWPID),
    (Kind::Network, "network", "net", libc::CLONE_NEWNET),
    (Kind::Mount, "mount", "mnt", libc::CLONE_NEWNS),
    (Kind::Ipc, "ipc", "ipc", libc::CLONE_NEWIPC),
    (Kind::Uts, "uts", "uts", libc::CLONE_NEWUTS),
    (Kind::User, "user", "user", libc::CLONE_NEWUSER),
    (Kind::Cgroup, "cgroup", "cgroup", libc::CLONE_NEWCGROUP),
    (Kind::Time, "time", "time", libc::CLONE_NEWTIME),
];

/// The types that a container may have namespaces of, in order.
pub fn names() -> Vec<&'static str> {
    let mut names = KINDS.map(|(_, name, ..)| name).to_vec();
    names.sort_unstable();
    names
}

impl Kind {
    fn name(self) -> &'static str {
        KINDS[self as usize].1
    }

    /// Its name in /proc/PID/ns.
    pub fn file(self) -> &'static str {
        KINDS[self as usize].2
    }

    /// CLONE_NEW*, which is also what names the type to setns and NS_GET_NSTYPE.
    fn flag(self) -> i32 {
        KINDS[self as usize].3
    }
}

/// Where the container's namespace of one kind comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Namespace {
    /// The runtime's own.
    #[default]
    Inherit,
    New,
    /// The one that this file of the host names; the field is the path's.
    Join(PathBuf, Field),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Indexed by `Kind`.
    kinds: [Namespace; 8],
    /// Of a new time namespace.
    offsets: Offsets,
}

impl Namespaces {
    pub fn plan(linux: &Node) -> Self {
        let mut namespaces = Self::default();
        for entry in linux.objects("namespaces") {
            entry.expect_keys(&["type", "path"]);
            let namespace = match entry.string("path") {
                None | Some("") => Namespace::New,
                Some(path) => Namespace::Join(path.into(), entry.at("path")),
            };
            if matches!(&namespace, Namespace::Join(path, _) if !path.is_absolute()) {
                entry.problem("path", "must be absolute");
            }
            let Some(name) = entry.required_string("type") else { continue };
            let Some(&(kind, ..)) = KINDS.iter().find(|(_, known, ..)| *known == name) else {
                let known = KINDS.map(|(_, name, ..)| name).join(", ");
                entry.problem("type", format_args!("must be one of {known}, not {name:?}"));
                continue;
            };
            let place = &mut namespaces.kinds[kind as usize];
            if *place != Namespace::Inherit {
                entry.problem("type", format_args!("a {name} namespace is asked for twice"));
            }
            *place = namespace;
        }
        if let (true, Namespace::Join(_, field)) =
            (namespaces.is_new(Kind::User), namespaces.get(Kind::Mount))
        {
            let reason =
                "a new user namespace has no rights in it: join the user namespace that it belongs to";
            linux.report().problem(field.clone(), reason);
        }
        namespaces.offsets = Offsets::plan(linux);
        if !namespaces.offsets.is_empty() && !namespaces.is_new(Kind::Time) {
            linux.problem("timeOffsets", "needs a new time namespace in /linux/namespaces");
        }
        namespaces
    }

    pub fn get(&self, kind: Kind) -> &Namespace {
        &self.kinds[kind as usize]
    }

    pub fn is_new(&self, kind: Kind) -> bool {
        *self.get(kind) == Namespace::New
    }

    /// New or joined: what is done in it does not reach the runtime's own, unless the path names just that
    /// (see [`Joined::is_own`]).
    pub fn is_private(&self, kind: Kind) -> bool {
        *self.get(kind) != Namespace::Inherit
    }

    /// The CLONE_NEW* flags of the namespaces that clone3 makes.
    pub fn clone_flags(&self) -> i32 {
        KINDS
            .iter()
            .filter(|&&(kind, ..)| self.is_new(kind) && kind != Kind::Cgroup)
            // A clock can only be set before the first process is in the namespace, so not in clone3's.
            .filter(|&&(kind, ..)| kind != Kind::Time || self.offsets.is_empty())
            .fold(0, |flags, (.., flag)| flags | flag)
    }

    /// The CLONE_NEW* flags by which another process joins those of the container's first: also those that are the
    /// runtime's own, which `exec` may have been called outside of. (Its pid namespace it is born in; a user or time
    /// namespace that is its own already cannot be joined again, or costs.) `user`: whether the user namespace is
    /// another.
    pub fn join_flags(&self, user: bool) -> i32 {
        KINDS
            .iter()
            .filter(|&&(kind, ..)| match kind {
                Kind::Pid => false,
                Kind::User => user,
                Kind::Time => self.is_private(kind),
                _ => true,
            })
            .fold(0, |flags, (.., flag)| flags | flag)
    }

    /// The CLONE_NEW* flags of the namespaces of another process that are not this one's: a user may join what belongs
    /// to a user namespace of its own, and not even its own of the host.
    pub fn foreign_flags(proc: &Proc, pid: Pid) -> Result<i32> {
        KINDS.iter().try_fold(0, |flags, &(_, _, file, flag)| {
            let own = same(&proc.namespace(pid, file)?, &proc.namespace("self", file)?)?;
            Ok(if own { flags } else { flags | flag })
        })
    }

    /// Opens the namespaces to be joined, and those of the runtime that it must go back to.
    pub fn open(&self, proc: &Proc) -> Result<Joined> {
        let mut joined = Joined::default();
        for (kind, ..) in KINDS {
            let Namespace::Join(path, field) = self.get(kind) else { continue };
            let there = open_namespace(kind, path).at(field)?;
            let own = proc.namespace("self", kind.file())?;
            if same(&there, &own)? {
                joined.own.push(kind);
                continue;
            }
            let hop = Hop { kind, path: path.clone(), field: field.clone(), there, own };
            match kind {
                Kind::User => joined.user = Some(hop),
                Kind::Mount => joined.by_init.push(hop),
                Kind::Cgroup if !self.is_private(Kind::User) => joined.by_init.push(hop),
                _ => joined.by_parent.push(hop),
            }
        }
        Ok(joined)
    }

    /// What is to be said when the namespace of this path may not be the runtime's own.
    pub fn refuse_own(&self, kind: Kind) -> Error {
        let error = Error::new(format!("join {} namespace: it is the runtime's own", kind.name()));
        match self.get(kind) {
            Namespace::Join(_, field) => error.field(field),
            _ => error,
        }
    }

    /// Runs `clone` with the flags for clone3 while the parent is in the namespaces to be joined. Only the parent
    /// goes back to its own, also after an error.
    pub fn around_clone(
        &self,
        joined: &Joined,
        proc: &Proc,
        clone: impl FnOnce(i32) -> Result<Clone>,
    ) -> Result<Clone> {
        let own_time = self.makes_time_before_clone().then(|| proc.namespace("self", Kind::Time.file()));
        let own_time = own_time.transpose()?;
        let go = || {
            joined.by_parent.iter().try_for_each(Hop::join)?;
            own_time.as_ref().map_or(Ok(()), |_| self.offsets.make_namespace(&Offsets::open(proc)?))
        };
        let result = go().and_then(|()| clone(self.clone_flags()));
        if let Ok(Clone::Child) = result {
            return result;
        }
        for hop in &joined.by_parent {
            enter(hop.kind, &hop.own).context(|| format!("leave {} namespace", hop.kind.name()))?;
        }
        if let Some(own) = own_time {
            enter(Kind::Time, &own).context(|| "leave time namespace")?;
        }
        result
    }

    /// Enters all that are joined by path but the mount namespace, never to come back. For a process in between.
    pub fn enter(&self, joined: &Joined, proc: &Proc, rights: Rights) -> Result<()> {
        // While this process's files are the caller's, who has all rights over a user namespace of its own.
        let offsets = self.makes_time_before_clone().then(|| Offsets::open(proc)).transpose()?;
        let enter_others = || {
            joined.by_parent.iter().try_for_each(Hop::join)?;
            offsets.as_ref().map_or(Ok(()), |offsets| self.offsets.make_namespace(offsets))
        };
        // With the rights of the host's root they need not belong to the user namespace; a user has no rights before.
        if !rights.is_user() {
            enter_others()?;
        }
        // Before anybody in there can look into this process, which holds the host's descriptors.
        prctl::set_dumpable(false).context(|| "become undumpable")?;
        joined.user.as_ref().map_or(Ok(()), Hop::join)?;
        if rights.is_user() { enter_others() } else { Ok(()) }
    }

    /// A time namespace has its offsets before the first process is in it, and belongs to the user namespace that its
    /// maker is in: with a new one, that is init.
    fn makes_time_before_clone(&self) -> bool {
        !self.offsets.is_empty() && !self.is_new(Kind::User)
    }

    /// Init's part; `proc` is the host's. After this the root and working directory are those of a joined mount
    /// namespace.
    pub fn enter_as_init(&self, joined: &Joined, proc: &Proc) -> Result<()> {
        if !self.offsets.is_empty() && !self.makes_time_before_clone() {
            self.offsets.make_namespace(&Offsets::open(proc)?)?;
            let own = proc.namespace("self", "time_for_children")?;
            enter(Kind::Time, &own).context(|| "enter the new time namespace")?;
        }
        joined.by_init.iter().try_for_each(Hop::join)
    }

    /// Init's part once it is in the container's cgroup, which is the top of what its new cgroup namespace shows.
    pub fn unshare_cgroup(&self) -> Result<()> {
        if self.is_new(Kind::Cgroup) {
            unshare(CloneFlags::CLONE_NEWCGROUP).context(|| "unshare cgroup namespace")?;
        }
        Ok(())
    }
}

/// The namespaces to be joined, open.
#[derive(Default)]
pub struct Joined {
    by_parent: Vec<Hop>,
    by_init: Vec<Hop>,
    own: Vec<Kind>,
    pub user: Option<Hop>,
}

/// From one namespace to another.
pub struct Hop {
    kind: Kind,
    path: PathBuf,
    field: Field,
    pub there: OwnedFd,
    own: OwnedFd,
}

impl Joined {
    /// Whether the parent cannot go there to clone: from a user namespace it could not come back, and from a cgroup
    /// namespace it might not be allowed to clone into a cgroup outside. The root of a user namespace, as rootless Podman
    /// is, has no rights over the host's namespaces, which it would have to come back to.
    pub fn is_one_way(&self, rights: Rights) -> bool {
        self.user.is_some()
            || self.by_parent.iter().any(|hop| hop.kind == Kind::Cgroup || rights != Rights::Root)
    }

    /// Whether the namespace to be joined is the one that the runtime is in.
    pub fn is_own(&self, kind: Kind) -> bool {
        self.own.contains(&kind)
    }

    /// What a user cannot do: to join a namespace of another kind takes rights over it, which come with the user
    /// namespace that it belongs to.
    pub fn refuse_as_user(&self) -> Result<()> {
        let mut others = self.by_parent.iter().chain(&self.by_init);
        let hop = match &self.user {
            None => others.next(),
            Some(_) => others.find(|hop| hop.kind == Kind::Mount),
        };
        let Some(Hop { kind, path, field, .. }) = hop else { return Ok(()) };
        let why = match kind {
            Kind::Mount => "a user without privileges cannot bring anything into it",
            _ => {
                "a user without privileges joins it only with the user namespace that it belongs to, by path"
            }
        };
        Err(Error::new(format!("join {} namespace {}: {why}", kind.name(), path.display()))).at(field)
    }

    /// The namespace of this kind, if one is to be joined.
    pub fn get(&self, kind: Kind) -> Option<BorrowedFd<'_>> {
        let hop = self.by_parent.iter().chain(&self.by_init).find(|hop| hop.kind == kind)?;
        Some(hop.there.as_fd())
    }
}

impl Hop {
    pub fn join(&self) -> Result<()> {
        let entered = enter(self.kind, &self.there);
        entered
            .context(|| {
                // Init is in the container's user namespace by then; the others are joined with the host's rights.
                let hint = match (self.kind, entered) {
                    (Kind::Mount, Err(Errno::EPERM)) => " (it belongs to another user namespace)",
                    _ => "",
                };
                format!("join {} namespace {}{hint}", self.kind.name(), self.path.display())
            })
            .at(&self.field)
    }
}

fn enter(kind: Kind, namespace: &OwnedFd) -> Result<(), Errno> {
    setns(namespace, CloneFlags::from_bits_retain(kind.flag()))
}

/// Opens a namespace of the host and sees that it is of the kind that was asked for.
fn open_namespace(kind: Kind, path: &Path) -> Result<OwnedFd> {
    // Without O_NONBLOCK a FIFO in its place would block for ever.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let context = || format!("open {} namespace {}", kind.name(), path.display());
    let fd = open(path, flags, Mode::empty()).context(context)?;
    match ns_get_nstype(&fd) {
        Ok(flag) if flag == kind.flag() => Ok(fd),
        Ok(flag) => {
            let found = KINDS.iter().find(|(.., known)| *known == flag).map_or("unknown", |known| known.1);
            Err(Error::new(format!("it is a {found} namespace"))).context(context)
        }
        Err(Errno::ENOTTY) => Err(Error::new("it is not a namespace")).context(context),
        Err(errno) => Err(errno).context(context),
    }
}

/// Whether two descriptors are of one file: a namespace, or a directory.
pub fn same(a: &OwnedFd, b: &OwnedFd) -> Result<bool> {
    let a = fstat(a).context(|| "stat a namespace")?;
    let b = fstat(b).context(|| "stat a namespace")?;
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

#[cfg(test)]
mod tests {
    use super::offsets::Offset;
    use super::*;
    use crate::spec::planned;

    fn plan(linux: &str) -> (Namespaces, Vec<String>) {
        planned(linux, Namespaces::plan)
    }

    #[test]
    fn an_empty_path_means_a_new_namespace_and_an_absent_type_the_runtimes_own() {
        let (namespaces, problems) = plan(
            r#"{"namespaces": [{"type": "pid"}, {"type": "uts", "path": ""}, {"type": "ipc", "path": "/x"}]}"#,
        );
        assert!(problems.is_empty());
        assert_eq!(namespaces.clone_flags(), libc::CLONE_NEWPID | libc::CLONE_NEWUTS);
        let field = Field::root().child("namespaces").child(2).child("path");
        assert_eq!(*namespaces.get(Kind::Ipc), Namespace::Join("/x".into(), field));
        assert!(namespaces.is_private(Kind::Ipc) && !namespaces.is_new(Kind::Ipc));
        assert!(!namespaces.is_private(Kind::Network));
    }

    #[test]
    fn the_cgroup_namespace_is_left_to_init_and_a_time_namespace_with_offsets_to_the_parent() {
        let (namespaces, _) = plan(r#"{"namespaces": [{"type": "cgroup"}, {"type": "time"}]}"#);
        assert_eq!(namespaces.clone_flags(), libc::CLONE_NEWTIME);
        let (namespaces, problems) = plan(
            r#"{"namespaces": [{"type": "time"}, {"type": "mount"}],
                "timeOffsets": {"monotonic": {"secs": -5}, "boottime": {"nanosecs": 7}}}"#,
        );
        assert!(problems.is_empty());
        assert_eq!(namespaces.clone_flags(), libc::CLONE_NEWNS);
        let field = |clock| Field::root().child("timeOffsets").child(clock);
        assert_eq!(
            namespaces.offsets.0,
            [
                Offset { clock: "boottime", secs: 0, nanosecs: 7, field: field("boottime") },
                Offset { clock: "monotonic", secs: -5, nanosecs: 0, field: field("monotonic") },
            ]
        );
    }

    #[test]
    fn what_the_spec_forbids_is_a_problem() {
        let table = [
            (r#"{"namespaces": [{"path": "/x"}]}"#, "/namespaces/0/type: is required"),
            (
                r#"{"namespaces": [{"type": "net"}]}"#,
                "/namespaces/0/type: must be one of pid, network, mount, ipc, uts, user, cgroup, time, not \"net\"",
            ),
            (
                r#"{"namespaces": [{"type": "pid"}, {"type": "pid", "path": "/x"}]}"#,
                "/namespaces/1/type: a pid namespace is asked for twice",
            ),
            (r#"{"namespaces": [{"type": "pid", "path": "x"}]}"#, "/namespaces/0/path: must be absolute"),
            (
                r#"{"namespaces": [{"type": "time"}], "timeOffsets": {"realtime": {}}}"#,
                "/timeOffsets/realtime: is not a clock of a time namespace: only monotonic and boottime are",
            ),
            (
                r#"{"namespaces": [{"type": "time"}], "timeOffsets": {"boottime": {"nanosecs": 1000000000}}}"#,
                "/timeOffsets/boottime/nanosecs: must be less than 1000000000, not 1000000000",
            ),
            (
                r#"{"timeOffsets": {"boottime": {"secs": 1}}}"#,
                "/timeOffsets: needs a new time namespace in /linux/namespaces",
            ),
            (
                r#"{"namespaces": [{"type": "time", "path": "/x"}], "timeOffsets": {"boottime": {"secs": 1}}}"#,
                "/timeOffsets: needs a new time namespace in /linux/namespaces",
            ),
        ];
        for (linux, problem) in table {
            assert_eq!(plan(linux).1, [problem]);
        }
    }

    #[test]
    fn a_path_that_is_no_namespace_of_its_type_is_refused_with_its_field() {
        let table = [
            ("/proc/self/ns/net", "open uts namespace /proc/self/ns/net: it is a network namespace"),
            ("/proc/self/stat", "open uts namespace /proc/self/stat: it is not a namespace"),
            ("/nonexistent", "open uts namespace /nonexistent: No such file or directory (2)"),
        ];
        for (path, message) in table {
            let (namespaces, _) =
                plan(&format!(r#"{{"namespaces": [{{"type": "uts", "path": "{path}"}}]}}"#));
            let error = namespaces.open(&Proc::host()).err().unwrap();
            assert_eq!(error.to_string(), format!("{message} [config.json /namespaces/0/path]"));
        }
    }

    #[test]
    fn the_runtimes_own_namespace_by_path_is_not_joined() {
        let (namespaces, _) = plan(r#"{"namespaces": [{"type": "network", "path": "/proc/self/ns/net"}]}"#);
        let joined = namespaces.open(&Proc::host()).unwrap();
        assert!(joined.is_own(Kind::Network) && joined.by_parent.is_empty());
    }
}
