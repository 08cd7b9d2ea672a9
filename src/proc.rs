//! A handle on a procfs that nothing in the container can have replaced.
//!
//! The rootfs may have anything at /proc, and a volume may be mounted over parts of it. Init makes a procfs
//! mount of its own, attached nowhere; the parent uses the host's, checked to be the real one.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::fmt;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlink, readlinkat};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::sys::fs::{Resolve, openat2};
use crate::sys::mount::{attr, fsconfig_create, fsmount, fsopen};

/// Opened when it is first used: most configs write nothing to /proc.
pub struct Proc {
    fd: OnceCell<OwnedFd>,
    open: fn() -> Result<OwnedFd>,
}

impl Proc {
    /// A procfs of the caller's own pid namespace, visible to nobody else.
    pub fn private() -> Self {
        Self { fd: OnceCell::new(), open: mount_private }
    }

    /// The same for a process that is in a user namespace, or about to join one. What is to be used after the
    /// container's root is entered must be [opened](Proc::prepare) before: later the kernel may refuse it, as what it
    /// shows must not be more than what the mounts there show. And a pid namespace that belongs to another user namespace
    /// is seen in the host's only.
    pub fn private_or_host() -> Self {
        Self { fd: OnceCell::new(), open: mount_private_or_open_host }
    }

    pub fn prepare(&self) -> Result<()> {
        self.fd().map(drop)
    }

    /// The host's /proc, if it is a procfs and its root.
    pub fn host() -> Self {
        Self { fd: OnceCell::new(), open: open_host }
    }

    fn fd(&self) -> Result<&OwnedFd> {
        match self.fd.get() {
            Some(fd) => Ok(fd),
            None => (self.open)().map(|fd| self.fd.get_or_init(|| fd)),
        }
    }

    /// Opens a path relative to /proc. Neither a mount on top of a file nor a link out of proc is followed.
    pub fn open(&self, path: &str, flags: i32) -> Result<OwnedFd> {
        let resolve = Resolve::BENEATH | Resolve::NO_XDEV | Resolve::NO_MAGICLINKS;
        openat2(self.fd()?, Path::new(path), flags, 0, resolve).context(|| format!("open /proc/{path}"))
    }

    /// A namespace of a process (`self` or a pid): `name` is its file in /proc/PID/ns. Only this last step is a link
    /// out of proc.
    pub fn namespace(&self, process: impl fmt::Display, name: &str) -> Result<OwnedFd> {
        let dir = self.open(&format!("{process}/ns"), libc::O_PATH | libc::O_DIRECTORY)?;
        openat2(&dir, Path::new(name), libc::O_RDONLY, 0, Resolve::empty())
            .context(|| format!("open /proc/{process}/ns/{name}"))
    }

    /// The root directory of a process, where the link that only this last step is leads out of proc.
    pub fn root(&self, process: impl fmt::Display) -> Result<OwnedFd> {
        let dir = self.open(&process.to_string(), libc::O_PATH | libc::O_DIRECTORY)?;
        openat2(&dir, Path::new("root"), libc::O_PATH | libc::O_DIRECTORY, 0, Resolve::empty())
            .context(|| format!("open /proc/{process}/root"))
    }

    /// What descriptor `fd` of a process is, by name and as such, again behind the last step only; without being opened.
    pub fn descriptor(&self, process: impl fmt::Display, fd: i32) -> Result<(String, OwnedFd)> {
        let what = || format!("open /proc/{process}/fd/{fd}");
        let dir = self.open(&format!("{process}/fd"), libc::O_PATH | libc::O_DIRECTORY)?;
        let name = fd.to_string();
        let link = readlinkat(&dir, name.as_str()).context(what)?;
        let file = openat2(&dir, Path::new(&name), libc::O_PATH, 0, Resolve::empty()).context(what)?;
        Ok((link.to_string_lossy().into_owned(), file))
    }

    pub fn read(&self, path: &str) -> Result<String> {
        let mut text = String::new();
        std::fs::File::from(self.open(path, libc::O_RDONLY)?)
            .read_to_string(&mut text)
            .context(|| format!("read /proc/{path}"))?;
        Ok(text)
    }

    /// The mount points of a process's mount namespace, below its root; see `proc_pid_mountinfo(5)`.
    pub fn mount_points(&self, process: impl fmt::Display) -> Result<Vec<PathBuf>> {
        let mounts = self.read(&format!("{process}/mountinfo"))?;
        Ok(mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped_path).collect())
    }

    /// One `write(2)`, as proc files want it.
    pub fn write(&self, path: &str, value: &str) -> Result<()> {
        let mut file = std::fs::File::from(self.open(path, libc::O_WRONLY)?);
        let written = file.write(value.as_bytes()).context(|| format!("write {value:?} to /proc/{path}"))?;
        if written != value.len() {
            return Err(Error::new(format!(
                "write {value:?} to /proc/{path}: only {written} bytes were taken"
            )));
        }
        Ok(())
    }
}

/// Whether a process of the host is on its way out, or gone. It loses its memory, and the program with it, before its
/// files: when a descriptor that execve would close too is seen to close, this tells which of the two it was.
pub fn is_ending(pid: Pid) -> bool {
    matches!(readlink(format!("/proc/{pid}/exe").as_str()), Err(Errno::ENOENT | Errno::ESRCH))
}

fn mount_private() -> Result<OwnedFd> {
    let mount = || -> Result<OwnedFd, Errno> {
        let fs = fsopen("proc")?;
        fsconfig_create(&fs)?;
        fsmount(&fs, attr::NOSUID | attr::NODEV | attr::NOEXEC)
    };
    mount().context(|| "mount a private proc")
}

fn mount_private_or_open_host() -> Result<OwnedFd> {
    match mount_private() {
        Err(error) if error.errno() == Some(Errno::EPERM) => open_host(),
        mounted => mounted,
    }
}

fn open_host() -> Result<OwnedFd> {
    const ROOT_INODE: u64 = 1;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = open("/proc", flags, Mode::empty()).context(|| "open /proc")?;
    let magic = fstatfs(&fd).context(|| "statfs /proc")?.filesystem_type();
    let inode = fstat(&fd).context(|| "stat /proc")?.st_ino;
    if magic != PROC_SUPER_MAGIC || inode != ROOT_INODE {
        return Err(Error::new("/proc is not a mounted proc file system"));
    }
    Ok(fd)
}

/// What a field of mountinfo means: blanks, newlines and backslashes stand there as a backslash and three octal digits.
/// See `proc_pid_mountinfo(5)`.
pub fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// The same of a path.
pub fn unescaped_path(field: impl AsRef<[u8]>) -> PathBuf {
    OsString::from_vec(unescaped(field.as_ref())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_back() {
        for (field, plain) in [
            (&br"/a\040b\134c"[..], &b"/a b\\c"[..]),
            (br"\012\377", b"\n\xff"),
            // What the kernel never writes.
            (br"\0", br"\0"),
            (br"\400\+12\8", br"\400\+12\8"),
        ] {
            assert_eq!(unescaped(field), plain);
        }
    }
}
