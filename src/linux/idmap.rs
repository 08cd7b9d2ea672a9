//! `/linux/uidMappings` and `/linux/gidMappings`, and those of a mount: which ids of the host stand behind those of
//! a user namespace.
//!
//! The parent writes the mappings of the container's user namespace, which init waits for. Those of a mount are the
//! mappings of some user namespace too, as far as the kernel is concerned; one is made for them by a process that
//! does nothing else, and lives on in its descriptor.
//!
//! A user may map its own id, and others by the programs of [`subids`] only.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#user-namespace-mappings>,
//! [user_namespaces(7)](https://man7.org/linux/man-pages/man7/user_namespaces.7.html)

mod subids;

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Gid, Pid, Uid, getegid, setgroups, setresgid, setresuid};

use crate::error::{At, Context, Error, Field, Result};
use crate::proc::Proc;
use crate::rights::Rights;
use crate::spec::{Node, Report};
use crate::sys::process::{Clone, clone3, exit_now};

/// The mappings of a user namespace. Two with the same ranges are the same, wherever they are from.
#[derive(Clone, Debug)]
pub struct IdMap {
    uids: Ranges,
    gids: Ranges,
}

#[derive(Clone, Debug)]
struct Ranges {
    list: Vec<Range>,
    field: Field,
}

/// `size` ids from `inside` on in the container, which are those from `outside` on of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    inside: u32,
    outside: u32,
    size: u32,
}

/// The most that the kernel takes: UID_GID_MAP_MAX_EXTENTS, and less than a page of text.
const MOST_RANGES: usize = 340;
const MOST_TEXT: usize = 4095; // bytes

const KEYS: [&str; 2] = ["uidMappings", "gidMappings"];

/// Reads both mappings of `node`, /linux or a mount; None without any. An empty list is none, as for the callers'
/// JSON libraries.
pub fn plan(node: &Node) -> Option<IdMap> {
    let [uids, gids] = KEYS.map(|key| Ranges::plan(node, key));
    match (uids, gids) {
        (Some(uids), Some(gids)) => Some(IdMap { uids, gids }),
        (None, None) => None,
        (uids, _) => {
            let (missing, there) = if uids.is_none() { (KEYS[0], KEYS[1]) } else { (KEYS[1], KEYS[0]) };
            node.problem(missing, format_args!("is required beside {there}"));
            None
        }
    }
}

impl Ranges {
    fn plan(node: &Node, key: &str) -> Option<Self> {
        let mut list = Vec::new();
        for range in node.objects(key) {
            range.expect_keys(&["containerID", "hostID", "size"]);
            let [inside, outside, size] =
                ["containerID", "hostID", "size"].map(|key| range.required_u32(key));
            let (Some(inside), Some(outside), Some(size)) = (inside, outside, size) else { continue };
            if size == 0 {
                range.problem("size", "must be at least 1");
            }
            for (key, first) in [("containerID", inside), ("hostID", outside)] {
                // 4294967295 is no id.
                if first.checked_add(size).is_none() {
                    range.problem(key, format_args!("{size} ids from {first} on are more than there are"));
                }
            }
            let new = Range { inside, outside, size };
            for (key, first) in
                [("containerID", Range::inside as fn(&Range) -> u32), ("hostID", Range::outside)]
            {
                if list.iter().any(|old: &Range| {
                    first(old) < first(&new).saturating_add(size)
                        && first(&new) < first(old).saturating_add(old.size)
                }) {
                    range.problem(key, "some of these ids are mapped already");
                }
            }
            list.push(new);
        }
        let ranges = Self { list, field: node.at(key) };
        if ranges.list.len() > MOST_RANGES || ranges.text().len() > MOST_TEXT {
            let reason = format_args!(
                "is too long: the kernel takes {MOST_RANGES} ranges, in {MOST_TEXT} bytes of text"
            );
            node.problem(key, reason);
        }
        (!ranges.list.is_empty()).then_some(ranges)
    }

    /// As `/proc/PID/uid_map` takes it.
    fn text(&self) -> String {
        let mut text = String::new();
        for Range { inside, outside, size } in &self.list {
            // A String takes all that is written to it.
            let _ = writeln!(text, "{inside} {outside} {size}");
        }
        text
    }

    /// What `/proc/PID/uid_map` shows.
    fn read(proc: &Proc, pid: Pid, file: &str) -> Result<Self> {
        let text = proc.read(&format!("{pid}/{file}"))?;
        let range = |line: &str| {
            let numbers: Vec<u32> = line.split_whitespace().map_while(|number| number.parse().ok()).collect();
            let [inside, outside, size] = numbers[..] else { return None };
            Some(Range { inside, outside, size })
        };
        let list = text.lines().map(range).collect::<Option<_>>();
        let list =
            list.ok_or_else(|| Error::new(format!("read /proc/{pid}/{file}: {text:?} is no mapping")))?;
        Ok(Self { list, field: Field::root() })
    }

    /// Whether it maps this id of the host and no other.
    fn is_only(&self, id: u32) -> bool {
        matches!(self.list[..], [Range { outside, size: 1, .. }] if outside == id)
    }

    fn host(&self, id: u32) -> Option<u32> {
        self.list.iter().find_map(|range| {
            let offset = id.checked_sub(range.inside).filter(|&offset| offset < range.size)?;
            range.outside.checked_add(offset)
        })
    }

    /// The kernel shows ranges in the order of the ids in the container once there are more than a few.
    fn sorted(&self) -> Vec<Range> {
        let mut list = self.list.clone();
        list.sort_unstable();
        list
    }

    fn refuse_unmapped(&self, id: u32, field: Field, report: &Report) {
        if self.host(id).is_none() {
            report.problem(field, format_args!("{id} is not mapped by {}", self.field));
        }
    }
}

impl Range {
    fn inside(&self) -> u32 {
        self.inside
    }

    fn outside(&self) -> u32 {
        self.outside
    }
}

impl PartialEq for IdMap {
    fn eq(&self, other: &Self) -> bool {
        self.uids.sorted() == other.uids.sorted() && self.gids.sorted() == other.gids.sorted()
    }
}

impl IdMap {
    /// The host's id behind one of the container's.
    pub fn host_uid(&self, uid: Uid) -> Option<Uid> {
        self.uids.host(uid.as_raw()).map(Uid::from_raw)
    }

    pub fn host_gid(&self, gid: Gid) -> Option<Gid> {
        self.gids.host(gid.as_raw()).map(Gid::from_raw)
    }

    /// Who makes what the runtime makes in the container: its root, and without one the program's user.
    pub fn maker(&self, user: Option<(Uid, Gid)>) -> (Uid, Gid) {
        user.filter(|_| !self.has_root()).unwrap_or((Uid::from_raw(0), Gid::from_raw(0)))
    }

    /// Whether a user writes the gid mapping itself, which takes that nobody in the namespace may set groups.
    pub fn denies_groups(&self, rights: Rights) -> bool {
        rights.is_user() && self.gids.is_only(getegid().as_raw())
    }

    /// The container's root as the host knows it, if there is one.
    pub fn host_root(&self) -> (Option<Uid>, Option<Gid>) {
        (self.host_uid(Uid::from_raw(0)), self.host_gid(Gid::from_raw(0)))
    }

    pub fn has_root(&self) -> bool {
        matches!(self.host_root(), (Some(_), Some(_)))
    }

    /// An id that is to be used in the container has to be one there.
    pub fn refuse_unmapped_uid(&self, uid: u32, field: Field, report: &Report) {
        self.uids.refuse_unmapped(uid, field, report);
    }

    pub fn refuse_unmapped_gid(&self, gid: u32, field: Field, report: &Report) {
        self.gids.refuse_unmapped(gid, field, report);
    }

    /// Gives the mappings to the new user namespace of a process. For the parent.
    pub fn write(&self, proc: &Proc, pid: Pid, rights: Rights) -> Result<()> {
        if rights.is_user() {
            return subids::write(self, proc, pid);
        }
        for (file, ranges) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let written = proc.write(&format!("{pid}/{file}"), &ranges.text());
            written.map_err(|error| explain(error, ranges)).at(&ranges.field)?;
        }
        Ok(())
    }

    /// Those of the user namespace that a process is in.
    pub fn of_process(proc: &Proc, pid: Pid) -> Result<Self> {
        Ok(Self { uids: Ranges::read(proc, pid, "uid_map")?, gids: Ranges::read(proc, pid, "gid_map")? })
    }

    /// Those of a user namespace. /proc shows them for a process in it only, so one goes there.
    pub fn of_namespace(proc: &Proc, namespace: &OwnedFd) -> Result<Self> {
        let enter = || {
            // Before it can be seen from in there: it holds the host's descriptors.
            prctl::set_dumpable(false)?;
            setns(namespace, CloneFlags::CLONE_NEWUSER)
        };
        beside(0, enter, |pid, _| Self::of_process(proc, pid))
            .context(|| "read the mappings of the user namespace")
    }

    /// Refuses a config whose mappings are not those of the user namespace that it joins.
    pub fn expect(&self, joined: &Self) -> Result<()> {
        for (wanted, found) in [(&self.uids, &joined.uids), (&self.gids, &joined.gids)] {
            if wanted.sorted() != found.sorted() {
                let found = found.text().trim_end().replace('\n', ", ");
                return Err(Error::new(format!(
                    "the user namespace to be joined has another mapping: {found}"
                )))
                .at(&wanted.field);
            }
        }
        Ok(())
    }

    /// A user namespace with these mappings, without a process in it. For the parent.
    pub fn namespace(&self, proc: &Proc) -> Result<OwnedFd> {
        beside(
            libc::CLONE_NEWUSER,
            || Ok(()),
            |pid, _| {
                self.write(proc, pid, Rights::of_caller())?;
                proc.namespace(pid, "user")
            },
        )
        .context(|| "make a user namespace")
    }
}

/// What a refused mapping lacks: the kernel's words are the same for all.
fn explain(error: Error, ranges: &Ranges) -> Error {
    let maps_root = ranges.list.iter().any(|range| range.outside == 0);
    match error.errno() {
        Some(Errno::EPERM) if maps_root => error.because("to map root itself takes CAP_SETFCAP".into()),
        _ => error,
    }
}

/// Does `work`, which is given a pidfd too, while there is a process that was cloned with `flags` and has entered what
/// `enter` says.
pub fn beside<T>(
    flags: i32,
    enter: impl FnOnce() -> nix::Result<()>,
    work: impl FnOnce(Pid, BorrowedFd<'_>) -> Result<T>,
) -> Result<T> {
    let (mut ours, mut its) = UnixStream::pair()?;
    match clone3(flags, None)? {
        Clone::Child => {
            drop(ours);
            let errno = enter().err().map_or(0, |errno| errno as i32);
            // Whatever fails: without this process the parent is told so by the end of the stream. And should the
            // parent die, so does this.
            let _ = its.write_all(&errno.to_ne_bytes());
            let _ = its.read(&mut [0]);
            exit_now(0)
        }
        Clone::Parent { pid, pidfd } => {
            drop(its);
            let mut errno = [0; 4];
            let entered = ours.read_exact(&mut errno).map_err(Error::from);
            let result = entered.and_then(|()| match i32::from_ne_bytes(errno) {
                0 => work(pid, pidfd.as_fd()),
                errno => Err(Error::from(Errno::from_raw(errno))),
            });
            drop(ours);
            waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).context(|| "wait for a process")?;
            result
        }
    }
}

/// In a user namespace, once its mappings are written: becomes somebody there. What init makes belongs to them.
pub fn become_mapped(uid: Uid, gid: Gid) -> Result<()> {
    prctl::set_dumpable(false).context(|| "become undumpable")?;
    match setgroups(&[]) {
        // All capabilities are there, so this is the "deny" in /proc/self/setgroups, which keeps the groups of a user.
        Ok(()) | Err(Errno::EPERM) => {}
        dropped => dropped.context(|| "drop all groups")?,
    }
    setresgid(gid, gid, gid).context(|| format!("become gid {gid} of the user namespace"))?;
    setresuid(uid, uid, uid).context(|| format!("become uid {uid} of the user namespace"))?;
    // All of this, and joining the namespace, makes it what sysctl fs.suid_dumpable says; and it still has descriptors
    // of the host.
    prctl::set_dumpable(false).context(|| "become undumpable")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::planned;

    fn read(uids: &str, gids: &str) -> (Option<IdMap>, Vec<String>) {
        planned(&format!(r#"{{"uidMappings": {uids}, "gidMappings": {gids}}}"#), plan)
    }

    const ONE: &str = r#"[{"containerID": 0, "hostID": 100000, "size": 65536}]"#;

    #[test]
    fn an_id_of_the_container_is_one_of_the_host_or_none() {
        let two = r#"[{"containerID": 1000, "hostID": 7, "size": 1}, {"containerID": 0, "hostID": 100000, "size": 10}]"#;
        let map = read(two, ONE).0.unwrap();
        for (uid, host) in [(0, Some(100000)), (9, Some(100009)), (10, None), (1000, Some(7)), (1001, None)] {
            assert_eq!(map.host_uid(Uid::from_raw(uid)), host.map(Uid::from_raw), "{uid}");
        }
        assert_eq!(map.host_gid(Gid::from_raw(65535)), Some(Gid::from_raw(165535)));
        assert_eq!(map.host_gid(Gid::from_raw(65536)), None);
        assert_eq!(map.uids.text(), "1000 7 1\n0 100000 10\n");
    }

    #[test]
    fn the_order_of_ranges_makes_no_difference() {
        let range = |inside: u32| format!(r#"{{"containerID": {inside}, "hostID": {inside}, "size": 5}}"#);
        let (a, b) = (range(0), range(10));
        let map = |list: &str| read(list, ONE).0.unwrap();
        assert!(map(&format!("[{a}, {b}]")) == map(&format!("[{b}, {a}]")));
        assert!(map(&format!("[{a}]")) != map(&format!("[{b}]")));
    }

    #[test]
    fn both_mappings_or_none() {
        assert_eq!(planned("{}", |node| plan(node).is_none()), (true, vec![]));
        assert_eq!(read("[]", "[]").1, [""; 0]);
        assert_eq!(read(ONE, "[]").1, ["/gidMappings: is required beside uidMappings"]);
        assert_eq!(read("null", ONE).1, ["/uidMappings: is required beside gidMappings"]);
    }

    #[test]
    fn what_the_kernel_would_not_take_is_a_problem() {
        let range = |inside: u32, outside: u32, size: u32| {
            format!(r#"{{"containerID": {inside}, "hostID": {outside}, "size": {size}}}"#)
        };
        for (list, problem) in [
            (vec![range(0, 0, 0)], "/uidMappings/0/size: must be at least 1"),
            (
                vec![range(1, 0, u32::MAX)],
                "/uidMappings/0/containerID: 4294967295 ids from 1 on are more than there are",
            ),
            (
                vec![range(0, u32::MAX, 1)],
                "/uidMappings/0/hostID: 1 ids from 4294967295 on are more than there are",
            ),
            (
                vec![range(0, 0, 10), range(9, 100, 1)],
                "/uidMappings/1/containerID: some of these ids are mapped already",
            ),
            (
                vec![range(0, 5, 10), range(10, 0, 6)],
                "/uidMappings/1/hostID: some of these ids are mapped already",
            ),
            (
                vec![r#"{"containerID": 0, "size": 1}"#.to_owned(), range(0, 0, 1)],
                "/uidMappings/0/hostID: is required",
            ),
            (
                (0..341).map(|n| range(n, n, 1)).collect(),
                "/uidMappings: is too long: the kernel takes 340 ranges, in 4095 bytes of text",
            ),
            (
                (0..340).map(|n| range(100_000 + n, 100_000 + n, 1)).collect(),
                "/uidMappings: is too long: the kernel takes 340 ranges, in 4095 bytes of text",
            ),
        ] {
            assert_eq!(read(&format!("[{}]", list.join(",")), ONE).1, [problem]);
        }
        assert_eq!(read(&format!("[{}]", range(0, 0, u32::MAX)), ONE).1, [""; 0]);
    }
}
