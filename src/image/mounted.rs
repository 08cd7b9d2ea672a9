//! Which overlays there are, in whatever mount namespace: what one stands on must not be deleted.

use std::collections::HashSet;
use std::fs;

use crate::error::{Context, Result};

/// The options of every overlay that a process of this user, or for root any process, has mounted. See
/// `proc_pid_mountinfo(5)`.
pub fn overlays() -> Result<Vec<String>> {
    let mut namespaces = HashSet::new();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context(|| "list /proc")? {
        let process = entry.context(|| "list /proc")?.path();
        // The process may end, or be another user's; what is no process has neither.
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
        if namespaces.insert(namespace)
            && let Ok(mountinfo) = fs::read(process.join("mountinfo"))
        {
            found.extend(overlay_options(&String::from_utf8_lossy(&mountinfo)).map(str::to_owned));
        }
    }
    Ok(found)
}

fn overlay_options(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| {
        let mut fields = line.split_once(" - ")?.1.splitn(3, ' ');
        (fields.next() == Some("overlay")).then(|| fields.nth(1)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_overlays_are_found_in_mountinfo() {
        let mountinfo = "\
22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
30 27 0:44 / / rw,relatime - overlay overlay rw,lowerdir+=/s/layers/a/fs,upperdir=/b\\040c/upper
31 27 0:45 / /x rw - overlay overlay ro,lowerdir=/a:/b
";
        let found: Vec<_> = overlay_options(mountinfo).collect();
        assert_eq!(found, ["rw,lowerdir+=/s/layers/a/fs,upperdir=/b\\040c/upper", "ro,lowerdir=/a:/b"]);
    }
}
