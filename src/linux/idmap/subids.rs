//! The mappings that a user without privileges may have: its own id, which it writes itself, and those that
//! /etc/subuid and /etc/subgid give it, by newuidmap(1) and newgidmap(1), which have the privileges.
//!
//! The programs are asked at once, and only if one refuses is it found out why: the files may not be all that counts
//! (`subid:` in nsswitch.conf).
//!
//! [newuidmap(1)](https://man7.org/linux/man-pages/man1/newuidmap.1.html),
//! [subuid(5)](https://man7.org/linux/man-pages/man5/subuid.5.html)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::prctl;
use nix::unistd::{Pid, getegid, geteuid};

use super::{IdMap, Range, Ranges};
use crate::error::{At, Context, Error, Result};
use crate::host;
use crate::proc::Proc;
use crate::sys::fs::fgetxattr;

/// How the ids of one kind are mapped.
struct Kind {
    program: &'static str,
    /// What allows ranges to users.
    allowed: &'static str,
    way_out: &'static str,
}

const UIDS: Kind = Kind { program: "newuidmap", allowed: "/etc/subuid", way_out: "--add-subuids" };
const GIDS: Kind = Kind { program: "newgidmap", allowed: "/etc/subgid", way_out: "--add-subgids" };

/// Gives the mappings to the new user namespace of a process, which must be dumpable: else its files belong to root.
pub(super) fn write(map: &IdMap, proc: &Proc, pid: Pid) -> Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let own = [map.uids.is_only(uid), map.gids.is_only(gid)];
    let uids = (!own[0]).then(|| UIDS.start(pid, &map.uids)).transpose().at(&map.uids.field)?;
    let gids = (!own[1]).then(|| GIDS.start(pid, &map.gids)).transpose();
    // Neither is left running, whatever becomes of the other.
    let uids_done = uids.map_or(Ok(()), |child| UIDS.finish(child, &map.uids, uid)).at(&map.uids.field);
    let gids_done = gids.and_then(|child| child.map_or(Ok(()), |child| GIDS.finish(child, &map.gids, gid)));
    uids_done?;
    gids_done.at(&map.gids.field)?;
    if own[0] {
        proc.write(&format!("{pid}/uid_map"), &map.uids.text()).at(&map.uids.field)?;
    }
    if own[1] {
        // Whoever gave up a group could get into what is closed to that group.
        proc.write(&format!("{pid}/setgroups"), "deny").at(&map.gids.field)?;
        proc.write(&format!("{pid}/gid_map"), &map.gids.text()).at(&map.gids.field)?;
    }
    Ok(())
}

impl Kind {
    fn start(&self, pid: Pid, ranges: &Ranges) -> Result<Child> {
        let program = self.find()?;
        let numbers = ranges.list.iter().flat_map(|range| [range.inside, range.outside, range.size]);
        Command::new(&program)
            .arg(pid.to_string())
            .args(numbers.map(|number| number.to_string()))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context(|| format!("run {}", program.display()))
    }

    fn finish(&self, child: Child, ranges: &Ranges, own: u32) -> Result<()> {
        let output = child.wait_with_output().context(|| format!("wait for {}", self.program))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim_end().replace('\n', ", ");
        Err(Error::new(format!("map ids by {}: {}", self.program, self.explain(ranges, own, &said))))
    }

    fn find(&self) -> Result<PathBuf> {
        host::find_program(self.program).ok_or_else(|| {
            Error::new(format!(
                "map ids by {}: it is not on PATH (package uidmap or shadow-utils); without it a user can map its own \
                 id alone",
                self.program
            ))
        })
    }

    /// Why the program has refused, as far as that can be known; else what it said.
    fn explain(&self, ranges: &Ranges, own: u32, said: &str) -> String {
        let uid = geteuid().as_raw();
        let user = host::user_name(uid).unwrap_or_else(|| uid.to_string());
        let text = fs::read_to_string(self.allowed).unwrap_or_default();
        let allowed = host::subordinate_ids(&text, &user, uid);
        if let Some(range) = ranges.list.iter().find(|range| !is_allowed(range, own, &allowed)) {
            let last = range.outside.saturating_add(range.size - 1);
            let wanted = format!("{}-{last}", range.outside);
            let has = match &allowed[..] {
                [] => format!("has no line for {user} (uid {uid})"),
                allowed => {
                    let list: Vec<_> =
                        allowed.iter().map(|(first, end)| format!("{first}-{}", end - 1)).collect();
                    format!("allows {user} only {}", list.join(", "))
                }
            };
            let way_out = format!("as root: usermod {} {wanted} {user}", self.way_out);
            return format!("{said}: {} {has}, not {wanted} ({way_out})", self.allowed);
        }
        if prctl::get_no_new_privs() == Ok(true) {
            return format!("{said}: it has no privileges, since no_new_privs is set on its caller");
        }
        match self.find() {
            Ok(program) if !is_privileged(&program) => {
                format!("{said}: {} is neither setuid root nor has file capabilities", program.display())
            }
            _ => said.to_owned(),
        }
    }
}

fn is_privileged(program: &Path) -> bool {
    let setuid = fs::metadata(program).is_ok_and(|stat| stat.permissions().mode() & 0o4000 != 0);
    let file = fs::File::open(program);
    setuid || file.is_ok_and(|file| fgetxattr(&file, c"security.capability", &mut []).is_ok())
}

/// As newuidmap(1) has it: each range within one that is allowed, or the caller's own id.
fn is_allowed(range: &Range, own: u32, allowed: &[(u64, u64)]) -> bool {
    let (first, end) = (u64::from(range.outside), u64::from(range.outside) + u64::from(range.size));
    (range.outside == own && range.size == 1) || allowed.iter().any(|&(a, b)| a <= first && end <= b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_within_one_that_is_allowed_or_the_own_id() {
        let allowed = [(100000, 100010), (100010, 100020)];
        for (outside, size, expected) in [
            (100000, 10, true),
            (100005, 6, false),
            (100019, 1, true),
            (100020, 1, false),
            (1000, 1, true),
            (1000, 2, false),
            (u32::MAX, 1, false),
        ] {
            assert_eq!(
                is_allowed(&Range { inside: 0, outside, size }, 1000, &allowed),
                expected,
                "{outside}"
            );
        }
    }
}
