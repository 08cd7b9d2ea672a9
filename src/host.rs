//! What this host is: the kernel floor, the cgroup2 mount, the own cgroup. Nothing is looked up before it is
//! asked for; `state`, `kill` and `list` need none of it.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::sys::utsname::uname;
use nix::unistd::{AccessFlags, Pid, access};

use crate::error::{Context, Error, Result};
use crate::proc::unescaped_path;

pub struct Host {
    cgroup2: OnceCell<Cgroup2>,
}

/// The mount of the unified hierarchy.
pub struct Cgroup2 {
    path: PathBuf,
    fd: OwnedFd,
}

impl Host {
    /// # Errors
    /// On a kernel below the floor, since nothing here has fall-back code for one.
    pub fn new() -> Result<Self> {
        let uname = uname().context(|| "read the kernel's version")?;
        let release = uname.release().to_string_lossy();
        if !is_new_enough(&release) {
            return Err(Error::new(format!("keel needs Linux 5.14 or newer, this is {release}")));
        }
        Ok(Self { cgroup2: OnceCell::new() })
    }

    /// # Errors
    /// When no cgroup2 file system is mounted.
    pub fn cgroup2(&self) -> Result<&Cgroup2> {
        if let Some(found) = self.cgroup2.get() {
            return Ok(found);
        }
        let found = find_cgroup2()?;
        Ok(self.cgroup2.get_or_init(|| found))
    }

    /// The caller's own cgroup, absolute, as its cgroup namespace names it.
    pub fn own_cgroup(&self) -> Result<PathBuf> {
        cgroup_of("self")
    }

    /// The same of another process.
    pub fn cgroup_of(&self, pid: Pid) -> Result<PathBuf> {
        cgroup_of(&pid.to_string())
    }

    /// Where the cgroup2 mount shows a cgroup of that name. In a container without a cgroup namespace it shows the
    /// container's own only, at its top, while names are still those of the host.
    pub fn locate_cgroup(&self, name: &Path) -> Result<PathBuf> {
        let mount = self.cgroup2()?.path();
        if name.components().any(|component| component == Component::ParentDir) {
            return Err(Error::new(format!("cgroup {} is outside of the cgroup namespace", name.display())));
        }
        let whole = mount.join(name.strip_prefix("/").unwrap_or(name));
        if whole.exists() {
            return Ok(whole);
        }
        let mountinfo = read("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo")?;
        let shown = cgroup2_mounts(&mountinfo).filter(|(_, path)| path == mount).last();
        match shown.as_ref().and_then(|(top, _)| name.strip_prefix(top).ok()) {
            Some(below) => Ok(mount.join(below)),
            None => Ok(whole),
        }
    }
}

impl Cgroup2 {
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(path: &Path) -> Result<Self, Errno> {
        let fd = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        match fstatfs(&fd)?.filesystem_type() {
            CGROUP2_SUPER_MAGIC => Ok(Self { path: path.into(), fd }),
            _ => Err(Errno::ENODEV),
        }
    }
}

impl AsFd for Cgroup2 {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(5), Some(14))
}

fn find_cgroup2() -> Result<Cgroup2> {
    // Where systemd puts it, on unified and on hybrid hosts; the list of mounts can be thousands of lines.
    for usual in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        if let Ok(found) = Cgroup2::open(Path::new(usual)) {
            return Ok(found);
        }
    }
    let mountinfo = read("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo")?;
    cgroup2_mounts(&mountinfo)
        .filter(|(top, _)| top == Path::new("/"))
        .find_map(|(_, path)| Cgroup2::open(&path).ok())
        .ok_or_else(|| Error::new("find the cgroup2 mount: no cgroup2 file system is mounted"))
}

/// What each mount of type cgroup2 shows at its top, and its mount point. See `proc_pid_mountinfo(5)`.
fn cgroup2_mounts(mountinfo: &[u8]) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        // 36 35 98:0 /root /mount\040point rw,noatime master:1 - ext3 /dev/root rw
        let mut fields = line.split(|&byte| byte == b' ');
        let (top, path) = (fields.nth(3)?, fields.next()?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (kind == b"cgroup2").then(|| (unescaped_path(top), unescaped_path(path)))
    })
}

/// The name of a user of the host, if it has one. A static program has no NSS.
pub fn user_name(uid: u32) -> Option<String> {
    find_user(&String::from_utf8_lossy(&read("/etc/passwd").unwrap_or_default()), uid)
}

fn find_user(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let mut entries = passwd.lines().map(|line| line.split(':'));
    entries.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_string())
    })
}

/// What a file like /etc/subuid gives to a user, by name or number: the first id of each range, and the one after it.
/// See `subuid(5)`.
pub fn subordinate_ids(text: &str, user: &str, uid: u32) -> Vec<(u64, u64)> {
    let uid = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        ((owner == user || owner == uid) && count > 0).then_some((first, first.saturating_add(count)))
    };
    text.lines().filter_map(range).collect()
}

/// A program of the host by its name.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join(name));
    places.find(|place| access(place, AccessFlags::X_OK).is_ok())
}

fn cgroup_of(process: &str) -> Result<PathBuf> {
    let path = format!("/proc/{process}/cgroup");
    let text = read(&path).context(|| format!("read {path}"))?;
    parse_cgroup(&text).ok_or_else(|| Error::new(format!("find a cgroup: {path} has no line \"0::/...\"")))
}

fn parse_cgroup(text: &[u8]) -> Option<PathBuf> {
    let path = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    path.starts_with(b"/").then(|| PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}

fn read(path: &str) -> Result<Vec<u8>, Errno> {
    let fd = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        match nix::unistd::read(&fd, &mut part)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&part[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_5_14() {
        for (release, enough) in [
            ("6.18.44-fc-v669", true),
            ("5.14.0-427.el9.x86_64", true),
            ("5.14-rc1", true),
            ("10.0", true),
            ("5.13.19", false),
            ("4.18.0-553", false),
            ("5", false),
            ("", false),
        ] {
            assert_eq!(is_new_enough(release), enough, "{release}");
        }
    }

    #[test]
    fn a_cgroup2_mount_is_found_whatever_its_name_and_options() {
        let mountinfo = br"22 1 0:20 / /sys rw,nosuid - sysfs sysfs rw
31 22 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup2 rw,cpu
32 22 0:28 /part /mnt/part rw - cgroup2 cgroup2 rw
33 22 0:28 / /mnt/a\040b\134\011c rw,nosuid shared:4 master:1 - cgroup2 none rw,nsdelegate
34 22 0:28 / /x - cgroup2 none rw
";
        let found: Vec<_> = cgroup2_mounts(mountinfo).collect();
        let expected = [("/part", "/mnt/part"), ("/", "/mnt/a b\\\tc"), ("/", "/x")];
        assert_eq!(found, expected.map(|(top, path)| (PathBuf::from(top), PathBuf::from(path))));
    }

    #[test]
    fn the_own_cgroup_is_that_of_the_unified_hierarchy() {
        let path = |text: &str| parse_cgroup(text.as_bytes());
        assert_eq!(path("9:cpu:/a\n0::/user.slice/a:b\n"), Some("/user.slice/a:b".into()));
        assert_eq!(path("0::/\n"), Some("/".into()));
        assert_eq!(path("9:cpu:/a\n"), None);
    }

    #[test]
    fn users_are_named_by_the_hosts_passwd() {
        let passwd = "root:x:0:0::/:/bin/sh\n\nbroken\nup:x:1000:5::/:\nalso:x:1000:5::/:\n";
        for (uid, name) in [(0, Some("root")), (1000, Some("up")), (5, None), (1, None)] {
            assert_eq!(find_user(passwd, uid).as_deref(), name);
        }
    }

    #[test]
    fn this_host_is_known() {
        let host = Host::new().unwrap();
        match host.cgroup2() {
            Ok(found) => assert!(found.path().join("cgroup.procs").exists()),
            Err(e) => println!("SKIP {e}"),
        }
    }

    #[test]
    fn subordinate_ids_are_given_by_name_or_number() {
        let text = "alice:100000:65536\n# alice:1:1\n1000:300000:10\nbob:5:5\nalice:x:1\nalice:7:0\n1000\n";
        assert_eq!(subordinate_ids(text, "alice", 1000), [(100000, 165536), (300000, 300010)]);
        assert_eq!(subordinate_ids(text, "carol", 1001), []);
    }
}
