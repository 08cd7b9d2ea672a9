//! Where a container's standard streams lead: outside of it, so criu neither saves nor makes what is at the other end.
//!
//! `descriptors.json` of the images, which other runtimes have too, holds what descriptors 0 to 2 were. In the restored
//! container whatever led there leads to the descriptor of this number that the caller of `restore` has.

use std::collections::BTreeSet;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, fstat, major};

use super::Images;
use super::rpc::InheritFd;
use crate::error::{Context, Error, Result};
use crate::proc::Proc;

const FILE: &str = "descriptors.json";

/// The standard streams of a process.
pub struct Streams {
    /// What each is: the text of its link in /proc, or criu's name for a file of the host.
    names: Vec<String>,
    /// What criu is to take as given.
    pub external: Vec<String>,
}

impl Streams {
    pub fn of(proc: &Proc, pid: i32) -> Result<Self> {
        let mounts = mount_ids(&proc.read(&format!("{pid}/mountinfo"))?);
        let (mut names, mut external) = (Vec::new(), Vec::new());
        for fd in 0..3 {
            let (name, is_external) = match proc.descriptor(pid, fd) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => (String::new(), None),
                opened => {
                    let (link, file) = opened?;
                    let mount = mount_of(&proc.read(&format!("{pid}/fdinfo/{fd}"))?);
                    let stat = fstat(&file).context(|| format!("stat descriptor {fd} of process {pid}"))?;
                    name(link, &stat, mount.filter(|id| !mounts.contains(id)))
                }
            };
            names.push(name);
            external.extend(is_external);
        }
        Ok(Self { names, external })
    }

    pub fn save(&self, images: &Images) -> Result<()> {
        let json = serde_json::to_vec(&self.names).map_err(|e| Error::new(e.to_string()))?;
        images.write(FILE, &json)
    }
}

/// The streams of this process for those of the images.
pub fn inherited(images: &Images) -> Result<Vec<InheritFd>> {
    let Some(text) = images.read(FILE)? else {
        return Err(Error::new(format!(
            "the images have no {FILE}: is this the directory of a whole checkpoint?"
        )));
    };
    let names: Vec<String> =
        serde_json::from_slice(&text).map_err(|e| Error::new(format!("read {FILE} of the images: {e}")))?;
    let numbered = (0..).zip(names).take(3);
    Ok(numbered.filter(|(_, name)| is_given(name)).map(|(fd, key)| InheritFd { key, fd }).collect())
}

fn is_given(name: &str) -> bool {
    ["pipe:[", "socket:[", "file[", "tty["].iter().any(|kind| name.starts_with(kind))
}

/// How a stream is called in the images, and how criu is told that it is given. `outside` is the mount that it is on,
/// if that is none of the container's.
fn name(link: String, stat: &FileStat, outside: Option<u32>) -> (String, Option<String>) {
    const IS_UNIX: &str = "unix";
    if link.starts_with("socket:[") {
        return (link, Some(format!("{IS_UNIX}[{}]", stat.st_ino)));
    }
    let Some(mount) = outside.filter(|_| link.starts_with('/')) else { return (link, None) };
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    // Majors of terminals: consoles and serial lines, /dev/tty, and the slaves of pseudo-terminals.
    let name = if kind == SFlag::S_IFCHR && matches!(major(stat.st_rdev), 4 | 5 | 136..=143) {
        format!("tty[{:x}:{:x}]", stat.st_rdev, stat.st_dev)
    } else {
        format!("file[{mount:x}:{:x}]", stat.st_ino)
    };
    (name.clone(), Some(name))
}

/// The first field of each line of `proc_pid_mountinfo(5)`.
fn mount_ids(mountinfo: &str) -> BTreeSet<u32> {
    mountinfo.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

/// See `proc_pid_fdinfo(5)`.
fn mount_of(fdinfo: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_stream_that_leads_out_of_the_container_is_named_as_criu_does() {
        let null = fstat(std::fs::File::open("/dev/null").unwrap()).unwrap();
        let mut tty = null;
        tty.st_rdev = nix::sys::stat::makedev(136, 1);
        (tty.st_ino, tty.st_dev) = (0x2f, 0x17);
        let file = format!("file[1a:{:x}]", null.st_ino);
        for (link, stat, outside, expected, external) in [
            ("pipe:[77]", &null, Some(9), "pipe:[77]", None),
            ("socket:[77]", &tty, Some(9), "socket:[77]", Some("unix[47]")),
            ("/dev/null", &null, Some(26), file.as_str(), Some(file.as_str())),
            ("/dev/null", &null, None, "/dev/null", None),
            ("/dev/pts/1", &tty, Some(26), "tty[8801:17]", Some("tty[8801:17]")),
            ("anon_inode:[eventfd]", &null, Some(9), "anon_inode:[eventfd]", None),
        ] {
            let external = external.map(str::to_owned);
            assert_eq!(name(link.into(), stat, outside), (expected.into(), external), "{link}");
        }
    }

    #[test]
    fn the_streams_of_a_process_are_read() {
        let (mine, theirs) = nix::unistd::pipe().unwrap();
        let child = std::process::Command::new("sleep")
            .arg("9")
            .stdin(mine)
            .stdout(theirs.try_clone().unwrap())
            .spawn();
        let mut child = child.unwrap();
        let streams = Streams::of(&Proc::host(), child.id() as i32).unwrap();
        child.kill().and_then(|()| child.wait()).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", theirs.as_raw_fd())).unwrap();
        assert_eq!(streams.names[..2], [link.to_str().unwrap(), link.to_str().unwrap()]);
        assert!(is_given(&streams.names[0]) && !is_given("/dev/null") && !is_given(""));
    }

    #[test]
    fn mounts_are_known_by_their_ids() {
        let ids = mount_ids("36 35 98:0 /a /b rw - ext3 /dev/root rw\n7 1 0:5 / /dev rw - tmpfs t rw\n");
        assert_eq!(ids, BTreeSet::from([7, 36]));
        assert_eq!(mount_of("pos:\t0\nflags:\t0100002\nmnt_id:\t22\nino:\t4\n"), Some(22));
        assert_eq!(mount_of("pos:\t0\n"), None);
    }
}
