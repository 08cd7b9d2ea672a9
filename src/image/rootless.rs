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
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

use crate::error::{Context, Error, Result};
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
    let rootless = match subordinate(uid).filter(|_| has_program("newuidmap") && has_program("newgidmap")) {
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
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let read = |path| ranges(&fs::read_to_string(path).unwrap_or_default(), &passwd, uid);
    Some((read("/etc/subuid"), read("/etc/subgid")))
        .filter(|(uids, gids)| !uids.is_empty() && !gids.is_empty())
}

/// The user's lines of subuid(5), which have a name or a number.
fn ranges(file: &str, passwd: &str, uid: u32) -> Vec<Range> {
    let number = uid.to_string();
    let is_own = |line: &&str| line.split(':').nth(2) == Some(&number);
    let name = passwd.lines().find(is_own).and_then(|line| line.split(':').next());
    let mut inside = 1_u32;
    let mut found = Vec::new();
    for line in file.lines() {
        let mut fields = line.trim().split(':');
        let (Some(who), Some(start), Some(count)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (Ok(outside), Ok(count)) = (start.parse::<u32>(), count.parse::<u32>()) else { continue };
        let fits = count > 0 && inside.checked_add(count).is_some() && outside.checked_add(count).is_some();
        if fits && (who == number || Some(who) == name) {
            found.push(Range { inside, outside, count });
            inside += count;
        }
    }
    found
}

fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| Path::new(&directory).join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_user_follow_his_own() {
        let passwd = "root:x:0:0::/:/bin/sh\nme:x:1000:1000::/:/bin/sh\n";
        let file = "other:1:5\nme:100000:65536\n1000:300000:10\nme:x:1\nme:4294967290:65536\nbroken\n";
        let range = |inside, outside, count| Range { inside, outside, count };
        assert_eq!(ranges(file, passwd, 1000), [range(1, 100_000, 65536), range(65537, 300_000, 10)]);
        assert_eq!(ranges(file, passwd, 7), []);
        assert_eq!(text(&[range(0, 1000, 1), range(1, 100_000, 5)]), "0 1000 1\n1 100000 5\n");
    }
}
