//! `/mounts/N/destination`: finds, or makes, the file or directory that a mount goes onto.
//!
//! The path lies in an image, which may hold a symbolic link anywhere. Links are followed inside the root, but
//! never into the container's /proc, and /proc and /sys themselves may be none.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#mounts>

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::error::{Context, Error, Result};
use crate::root::Root;

/// What lxcfs and the like may put on /proc. Any other mount there would feign the kernel's word to a program, and
/// to a runtime that is not careful: it has made them write security labels nowhere (CVE-2019-16884).
const ALLOWED_IN_PROC: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Whether a mount that is no proc file system may have this clean path.
pub fn is_allowed(path: &Path) -> bool {
    !path.starts_with("/proc") || ALLOWED_IN_PROC.iter().any(|allowed| path == Path::new(allowed))
}

pub struct Destination {
    pub fd: OwnedFd,
    pub existed: bool,
}

/// What the destination of a mount has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// A directory that is reached through no link: for proc and sysfs.
    RealDirectory,
    Directory,
    /// Whatever is there; made as the source's kind demands.
    Either,
}

/// `is_directory` is asked when something must be made at `path`.
pub fn open(
    root: &Root,
    path: &Path,
    expected: Expected,
    is_directory: impl Fn() -> Result<bool>,
) -> Result<Destination> {
    // These must be where everyone looks for them: a link in an image has made runtimes mount them, and what masks
    // parts of them, elsewhere (CVE-2019-19921, CVE-2023-28642, CVE-2025-54867).
    let real = expected == Expected::RealDirectory || path == Path::new("/proc") || path == Path::new("/sys");
    let flags = libc::O_PATH | if expected == Expected::Either { 0 } else { libc::O_DIRECTORY };
    // Without a link on the way the path is what `is_allowed` took it for.
    let found = match root.open_no_symlinks(path, flags) {
        Ok(fd) => return Ok(Destination { fd, existed: true }),
        Err(Errno::ELOOP) if real => return Err(Error::new("a symbolic link stands there in the rootfs")),
        Err(Errno::ELOOP) => root.open(path, flags),
        Err(errno) => Err(errno),
    };
    let existed = found.is_ok();
    let mut fd = match found {
        Err(Errno::ENOENT) if is_directory()? => root.create_dir(path)?,
        Err(Errno::ENOENT) => root.create_file(path)?,
        found => found.context(|| "open the destination")?,
    };
    if real {
        fd = root.open_no_symlinks(path, flags).context(|| "open the destination")?;
    }
    refuse_inside_proc(root, &fd)?;
    Ok(Destination { fd, existed })
}

/// Each proc file system is a device of its own, so this tells the container's from a bind of the host's.
fn refuse_inside_proc(root: &Root, fd: &OwnedFd) -> Result<()> {
    if fstatfs(fd).context(|| "statfs the destination")?.filesystem_type() != PROC_SUPER_MAGIC {
        return Ok(());
    }
    let proc = root.open(Path::new("/proc"), libc::O_PATH).context(|| "open /proc in the rootfs")?;
    let device = |fd: &OwnedFd| fstat(fd).map(|stat| stat.st_dev).context(|| "stat the destination");
    if device(fd)? == device(&proc)? {
        return Err(Error::new("the destination is a symbolic link into /proc"));
    }
    Ok(())
}

pub fn is_directory(fd: impl AsFd) -> Result<bool> {
    let mode = fstat(fd).context(|| "stat a bind source")?.st_mode;
    Ok(SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

/// Why `source` could not be attached on `target`.
pub fn not_attached(source: &OwnedFd, target: &OwnedFd) -> String {
    match (is_directory(source), is_directory(target)) {
        (Ok(true), Ok(false)) => "attach a directory on a file".to_owned(),
        (Ok(false), Ok(true)) => "attach a file on a directory".to_owned(),
        _ => "attach".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_few_files_may_be_mounted_inside_proc() {
        for (path, allowed) in [
            ("/proc", false),
            ("/proc/self/attr/exec", false),
            ("/proc/uptime", true),
            ("/proc/uptime/x", false),
            ("/process", true),
        ] {
            assert_eq!(is_allowed(Path::new(path)), allowed, "{path}");
        }
    }
}
