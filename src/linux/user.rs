//! `/process/user`: the ids that the program runs with, its umask, and what depends on them: the owner of its
//! standard streams and its home directory.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-user>,
//! [credentials(7)](https://man7.org/linux/man-pages/man7/credentials.7.html)

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, umask};
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setgroups, setresgid, setresuid};

use crate::error::{At, Context, Error, Field, Result};
use crate::linux::idmap::IdMap;
use crate::root::{Root, is_dev_null};
use crate::spec::{Node, Report};
use crate::sys::process::stdio;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    uid: Uid,
    gid: Gid,
    additional_gids: Vec<Gid>,
    /// None keeps the caller's.
    umask: Option<Mode>,
    field: Field,
}

/// NGROUPS_MAX.
const MAX_GROUPS: usize = 65536;

impl User {
    /// Reads `user` of the process; a process without it is a problem.
    pub fn plan(process: &Node) -> Option<Self> {
        let Some(node) = process.object("user") else {
            if !process.has("user") {
                process.problem("user", "is required");
            }
            return None;
        };
        node.expect_keys(&["uid", "gid", "umask", "additionalGids"]);
        let id = |key| {
            node.required_u32(key).filter(|&id| {
                if id == UNCHANGED {
                    node.problem(key, UNCHANGED_REASON);
                }
                id != UNCHANGED
            })
        };
        let (uid, gid) = (id("uid"), id("gid"));
        let groups = node.u32s("additionalGids");
        for (_, field) in groups.iter().filter(|(group, _)| *group == UNCHANGED) {
            node.report().problem(field.clone(), UNCHANGED_REASON);
        }
        if groups.len() > MAX_GROUPS {
            node.problem("additionalGids", format_args!("has more than {MAX_GROUPS} groups"));
        }
        let umask = node.u32("umask").filter(|&umask| {
            if umask > 0o777 {
                node.problem("umask", format_args!("must be at most 511 (0777), not {umask}"));
            }
            umask <= 0o777
        });
        Some(Self {
            uid: Uid::from_raw(uid?),
            gid: Gid::from_raw(gid?),
            additional_gids: groups.into_iter().map(|(group, _)| Gid::from_raw(group)).collect(),
            umask: umask.map(Mode::from_bits_truncate),
            field: node.field().clone(),
        })
    }

    pub fn uid(&self) -> Uid {
        self.uid
    }

    pub fn gid(&self) -> Gid {
        self.gid
    }

    /// Reports the ids that the container's user namespace does not have.
    pub fn refuse_unmapped(&self, map: &IdMap, report: &Report) {
        map.refuse_unmapped_uid(self.uid.as_raw(), self.field.child("uid"), report);
        map.refuse_unmapped_gid(self.gid.as_raw(), self.field.child("gid"), report);
        for (i, group) in self.additional_gids.iter().enumerate() {
            map.refuse_unmapped_gid(group.as_raw(), self.field.child("additionalGids").child(i), report);
        }
    }

    /// Reports groups that a user cannot set who maps its own group and no others.
    pub fn refuse_groups(&self, report: &Report) {
        if !self.additional_gids.is_empty() {
            report.problem(self.field.child("additionalGids"), GROUPS_DENIED);
        }
    }

    /// Gives this process's standard streams, which are the container's too, to the user as the host knows them. From
    /// inside a user namespace that is not possible, since their owner is not known there.
    pub fn own_stdio(&self, map: &IdMap) -> Result<()> {
        map.host_uid(self.uid).map_or(Ok(()), own_stdio)
    }

    /// Becomes the user, with standard streams that are its own. `inherited_umask` is the umask that the runtime was
    /// called with: init works with 0, and the spec wants the caller's when the config sets none.
    pub fn apply(&self, inherited_umask: Mode, root: &Root) -> Result<()> {
        let Self { uid, gid, .. } = *self;
        // As long as we may: the user could not give them to itself.
        settle_stdio(uid, root)?;
        // An empty list too, or the groups of the runtime's caller pass to the container.
        let set = match setgroups(&self.additional_gids) {
            // What a user who maps its own group cannot give up, it keeps.
            Err(Errno::EPERM) if self.additional_gids.is_empty() => Ok(()),
            Err(Errno::EPERM) => Err(Error::new(GROUPS_DENIED)),
            set => set.map_err(Error::from),
        };
        set.map_err(|error| error.errno().map_or(error, |errno| unmapped(errno, "one is")))
            .context(|| format!("set additional groups {:?}", raw(&self.additional_gids)))
            .at(&self.field.child("additionalGids"))?;
        // The group first: the user may not be allowed to change it.
        setresgid(gid, gid, gid)
            .map_err(|errno| unmapped(errno, "it is"))
            .context(|| format!("set gid {gid}"))
            .at(&self.field.child("gid"))?;
        setresuid(uid, uid, uid)
            .map_err(|errno| unmapped(errno, "it is"))
            .context(|| format!("set uid {uid}"))
            .at(&self.field.child("uid"))?;
        umask(self.umask.unwrap_or(inherited_umask));
        Ok(())
    }

    /// The user's home directory from the container's /etc/passwd; `/` when it has no such user. Before `apply`,
    /// since the user may be unable to read the file.
    pub fn home(&self, root: &Root) -> Vec<u8> {
        let path = Path::new("/etc/passwd");
        // Should the image have a FIFO or a terminal there, opening it must not wait or take it over.
        let Ok(fd) = root.open(path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY) else {
            return b"/".to_vec();
        };
        if !fstat(&fd).is_ok_and(|stat| kind(&stat) == SFlag::S_IFREG) {
            return b"/".to_vec();
        }
        home_in(BufReader::new(File::from(fd).take(MAX_PASSWD)), self.uid)
    }
}

/// Bytes of /etc/passwd that are read; an image could have one without end.
const MAX_PASSWD: u64 = 10 << 20;

const GROUPS_DENIED: &str = "the kernel lets nobody set groups where a user has mapped its own group by itself, without \
                             newgidmap";

/// `(uid_t)-1`: the system calls take it as "do not change".
const UNCHANGED: u32 = u32::MAX;
const UNCHANGED_REASON: &str = "4294967295 is not an id: for the kernel it means no change";

/// The only thing that can be invalid about an id.
fn unmapped(errno: Errno, what: &str) -> Error {
    match errno {
        Errno::EINVAL => Error::new(format!("{what} not mapped in the container's user namespace")),
        errno => errno.into(),
    }
}

fn own_stdio(uid: Uid) -> Result<()> {
    stdio().into_iter().try_for_each(|stream| own(stream, &look_at(stream)?, uid))
}

/// Gives the standard streams to the user; but the host's /dev/null makes way for the container's. Whoever has a file
/// open may change its mode, as its owner, and criu can open again only what the container has.
fn settle_stdio(uid: Uid, root: &Root) -> Result<()> {
    let mut null = None;
    for stream in stdio() {
        let stat = look_at(stream)?;
        if !is_dev_null(&stat) {
            own(stream, &stat, uid)?;
            continue;
        }
        let number = stream.as_raw_fd();
        let what = || format!("replace the host's /dev/null as file descriptor {number}");
        let null: &OwnedFd = match &mut null {
            Some(null) => null,
            none => none.insert(root.open_dev_null(libc::O_RDWR).context(what)?),
        };
        match number {
            0 => dup2_stdin(null),
            1 => dup2_stdout(null),
            _ => dup2_stderr(null),
        }
        .context(what)?;
    }
    Ok(())
}

fn look_at(stream: BorrowedFd<'_>) -> Result<FileStat> {
    fstat(stream).context(|| format!("stat file descriptor {}", stream.as_raw_fd()))
}

fn raw(gids: &[Gid]) -> Vec<u32> {
    gids.iter().map(|gid| gid.as_raw()).collect()
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Gives a standard stream to the user, who could not reopen it through /dev/stdout otherwise.
fn own(stream: BorrowedFd<'_>, stat: &FileStat, uid: Uid) -> Result<()> {
    if !needs_owner(stat, uid) {
        return Ok(());
    }
    // The uid only: a terminal's group is the tty group.
    match fchown(stream, Some(uid), None) {
        // A file whose owner is not mapped here, on a read-only mount, or on one that has no such uid: the program
        // can still use what is open.
        Err(Errno::EPERM | Errno::EROFS | Errno::EINVAL) => Ok(()),
        result => result,
    }
    .context(|| format!("give file descriptor {} to uid {uid}", stream.as_raw_fd()))
}

/// Never /dev/null: it may be the host's own node.
fn needs_owner(stat: &FileStat, uid: Uid) -> bool {
    stat.st_uid != uid.as_raw() && !is_dev_null(stat)
}

/// Finds the home directory of a uid in `name:password:uid:gid:comment:home:shell` lines.
fn home_in(mut passwd: impl BufRead, uid: Uid) -> Vec<u8> {
    let is_uid = |field: &[u8]| std::str::from_utf8(field).is_ok_and(|text| text.parse() == Ok(uid.as_raw()));
    let mut line = Vec::new();
    // A read error ends the search as the end of the file does: HOME is then `/`.
    while passwd.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let mut fields = line.trim_ascii().split(|&b| b == b':').skip(2);
        if fields.next().is_some_and(is_uid) {
            let home = fields.nth(2).filter(|home| !home.is_empty() && !home.contains(&0));
            return home.unwrap_or(b"/").to_vec();
        }
        line.clear();
    }
    b"/".to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    fn plan(json: &str) -> (Option<User>, Vec<String>) {
        let report = Report::default();
        let value = parse(json.as_bytes(), &report).unwrap();
        let user = User::plan(&Node::root(&value, &report));
        (user, report.finish().err().map_or(vec![], |e| e.problems().iter().map(|p| p.to_string()).collect()))
    }

    #[test]
    fn a_user_is_read_with_its_groups_and_umask() {
        let (user, problems) =
            plan(r#"{"user": {"uid": 1, "gid": 2, "umask": 63, "additionalGids": [5, 6]}}"#);
        let user = user.unwrap();
        assert!(problems.is_empty());
        assert_eq!((user.uid.as_raw(), user.gid.as_raw(), raw(&user.additional_gids)), (1, 2, vec![5, 6]));
        assert_eq!(user.umask, Some(Mode::from_bits_truncate(0o77)));
    }

    #[test]
    fn an_unset_umask_differs_from_zero() {
        assert_eq!(plan(r#"{"user": {"uid": 0, "gid": 0}}"#).0.unwrap().umask, None);
        let zero = plan(r#"{"user": {"uid": 0, "gid": 0, "umask": 0}}"#).0.unwrap();
        assert_eq!(zero.umask, Some(Mode::empty()));
    }

    #[test]
    fn ids_that_are_none_are_problems() {
        let minus_one = "4294967295 is not an id: for the kernel it means no change";
        for (json, expected) in [
            ("{}", vec!["/user: is required".to_owned()]),
            (r#"{"user": {}}"#, vec!["/user/uid: is required".into(), "/user/gid: is required".into()]),
            (
                r#"{"user": {"uid": 4294967295, "gid": 0, "additionalGids": [1, 4294967295]}}"#,
                vec![format!("/user/uid: {minus_one}"), format!("/user/additionalGids/1: {minus_one}")],
            ),
            (
                r#"{"user": {"uid": -1, "gid": 4294967296}}"#,
                vec![
                    "/user/uid: must be a whole number from 0 to 4294967295, not -1".into(),
                    "/user/gid: must be a whole number from 0 to 4294967295, not 4294967296".into(),
                ],
            ),
            (
                r#"{"user": {"uid": 0, "gid": 0, "umask": 512}}"#,
                vec!["/user/umask: must be at most 511 (0777), not 512".into()],
            ),
        ] {
            assert_eq!(plan(json).1, expected, "{json}");
        }
    }

    #[test]
    fn home_is_the_sixth_field_of_the_first_line_with_the_uid() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n# 7:x:\nbad\n::::\na:x:1000:1:,,:/home/a:/bin/sh\n\
            b:x:1000:1::/home/b:\nempty:x:5:5:::\nshort:x:6\nlast:x:9:9::/home/last";
        for (uid, home) in
            [(0, "/root"), (1000, "/home/a"), (5, "/"), (6, "/"), (9, "/home/last"), (100, "/")]
        {
            assert_eq!(home_in(&passwd[..], Uid::from_raw(uid)), home.as_bytes(), "{uid}");
        }
    }

    #[test]
    fn dev_null_is_never_given_to_the_user() {
        let dev_null = fstat(File::open("/dev/null").unwrap()).unwrap();
        assert!(!needs_owner(&dev_null, Uid::from_raw(1000)));
        let mut file = dev_null; // a file with the device number of /dev/null is not /dev/null
        file.st_mode = SFlag::S_IFREG.bits() | 0o666;
        assert!(needs_owner(&file, Uid::from_raw(1000)));
        assert!(!needs_owner(&file, Uid::from_raw(file.st_uid)));
    }
}
