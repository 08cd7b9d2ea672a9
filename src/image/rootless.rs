//! A user without privileges: layers have files of many owners, which only a user namespace can make. The command itself
//! goes into one, with the ids of /etc/subuid and /etc/subgid if newuidmap(1) is there to give them, else with its own id
//! alone, and everything then belongs to that.
//!
//! The namespace's ids are written from outside, by a process that is started before.
//!
//! <https://man7.org/linux/man-pages/man7/user_namespaces.7.html>,
//! <https://man7.org/linux/man-pages/man5/subuid.5.html>

use std::fs;
use std::io::{Read, stdin};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

use crate::error::{Context, Error, Result};
use crate::host::{find_program, subordinate_ids, user_name};
use crate::image::unpack::Range;

/// What the ids inside are outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootless {
    pub uids: Vec<Range>,
    pub gids: Vec<Range>,
}

impl Rootless {
    /// There is one id only.
    pub fn is_single(&self) -> bool {
        self.uids.iter().map(|range| range.count).sum::<u32>() == 1
    }

    /// What the name of a layer has behind its diff_id.
    pub fn variant(&self) -> &'static str {
        if self.is_single() { "-single" } else { "-user" }
    }
}

/// Goes into a user namespace as its root; root stays where it is. Before any thread is started.
pub fn enter() -> Result<Option<Rootless>> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    if uid == 0 {
        return Ok(None);
    }
    let what = || "enter a user namespace";
    let own = |outside| Range { inside: 0, outside, count: 1 };
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    let has = |program| find_program(program).is_some();
    let rootless = match subordinate(uid).filter(|_| has("newuidmap") && has("newgidmap")) {
        Some((uids, gids)) => {
            let of = |own: Range, more: Vec<Range>| [own].into_iter().chain(more).collect::<Vec<_>>();
            let rootless = Rootless { uids: of(own(uid), uids), gids: of(own(gid), gids) };
            let mut mapper = Command::new("/proc/self/exe");
            mapper.args(["map-ids", &std::process::id().to_string()]);
            mapper.args([text(&rootless.uids), text(&rootless.gids)]);
            let mut mapper = mapper.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context(what)?;
            unshare(flags).context(what)?;
            // Its end is the sign.
            drop(mapper.stdin.take());
            if !mapper.wait().context(what)?.success() {
                return Err(
                    Error::new(what()).because("map the ids of /etc/subuid and /etc/subgid".to_owned())
                );
            }
            setgroups(&[]).context(what)?;
            rootless
        }
        None => {
            unshare(flags).context(what)?;
            let rootless = Rootless { uids: vec![own(uid)], gids: vec![own(gid)] };
            // Without that a group of a user's could be dropped to get what it is kept from.
            let files = [
                ("setgroups", "deny".into()),
                ("uid_map", text(&rootless.uids)),
                ("gid_map", text(&rootless.gids)),
            ];
            for (file, content) in files {
                fs::write(format!("/proc/self/{file}"), content)
                    .context(|| format!("write /proc/self/{file}"))
                    .context(what)?;
            }
            rootless
        }
    };
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).context(what)?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).context(what)?;
    Ok(Some(rootless))
}

/// `keel-image map-ids`: waits until the process is in its namespace, and gives it its ids.
pub fn map_ids(pid: u32, uids: &str, gids: &str) -> Result<Vec<u8>> {
    stdin().read_to_end(&mut Vec::new()).context(|| "wait for the user namespace")?;
    for (program, ranges) in [("newuidmap", uids), ("newgidmap", gids)] {
        let mut command = Command::new(program);
        command.arg(pid.to_string()).args(ranges.split_whitespace());
        let status = command.status().context(|| format!("run {program}"))?;
        if !status.success() {
            return Err(Error::new(format!("run {program} {pid} {ranges}: {status}")));
        }
    }
    Ok(Vec::new())
}

/// As uid_map and newuidmap take it.
fn text(ranges: &[Range]) -> String {
    let lines = ranges.iter().map(|Range { inside, outside, count }| format!("{inside} {outside} {count}\n"));
    lines.collect()
}

/// What the user was given, from the namespace's id 1 on; None without both.
fn subordinate(uid: u32) -> Option<(Vec<Range>, Vec<Range>)> {
    let user = user_name(uid).unwrap_or_else(|| uid.to_string());
    let read = |path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        ranges(subordinate_ids(&text, &user, uid))
    };
    Some((read("/etc/subuid"), read("/etc/subgid")))
        .filter(|(uids, gids)| !uids.is_empty() && !gids.is_empty())
}

/// One after the other, as far as they are ids.
fn ranges(given: Vec<(u64, u64)>) -> Vec<Range> {
    let mut inside = 1_u32;
    let mut found = Vec::new();
    for (first, end) in given {
        let (Ok(outside), Ok(count)) = (u32::try_from(first), u32::try_from(end - first)) else { continue };
        if inside.checked_add(count).is_some() && outside.checked_add(count).is_some() {
            found.push(Range { inside, outside, count });
            inside += count;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_user_follow_his_own() {
        let range = |inside, outside, count| Range { inside, outside, count };
        let given =
            vec![(100_000, 165_536), (300_000, 300_010), (4294967290, 4295032826), (1 << 40, 1 << 41)];
        assert_eq!(ranges(given), [range(1, 100_000, 65536), range(65537, 300_000, 10)]);
        assert_eq!(text(&[range(0, 1000, 1), range(1, 100_000, 5)]), "0 1000 1\n1 100000 5\n");
    }
}
