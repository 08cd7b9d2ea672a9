//! The container's root file system, reached through its descriptor only.
//!
//! Everything in it is hostile: any name may be a symbolic link to anywhere and may change between two
//! look-ups. So each path is walked once, by openat2 with RESOLVE_IN_ROOT (a link cannot lead out of the
//! root) and without magic links, and what was found is used by descriptor from then on.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, makedev, mkdirat};

use crate::error::{Context, Error, Result};
use crate::sys::fs::{Resolve, openat2};

pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// The root whose top directory `fd` is.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens what `path` (absolute, seen from inside) names; symbolic links are followed inside the root.
    /// `flags` as in `open(2)`; O_PATH | O_NOFOLLOW opens a link itself.
    pub fn open(&self, path: &Path, flags: i32) -> Result<OwnedFd, Errno> {
        self.openat2(path, flags, 0)
    }

    /// As [`Root::open`], but ELOOP when any part of `path` is a symbolic link.
    pub fn open_no_symlinks(&self, path: &Path, flags: i32) -> Result<OwnedFd, Errno> {
        let resolve = Resolve::IN_ROOT | Resolve::NO_MAGICLINKS | Resolve::NO_SYMLINKS;
        retry(|| openat2(&self.fd, path, flags, 0, resolve))
    }

    /// The container's /dev/null, checked by what was opened: an image, or what runs in the container, may have a link to
    /// /proc/sys/kernel/core_pattern there, or a file that keeps what is written (CVE-2025-31133).
    pub fn open_dev_null(&self, flags: i32) -> Result<OwnedFd> {
        let opened = self
            .open(Path::new("/dev/null"), flags | libc::O_NOFOLLOW)
            .context(|| "open /dev/null in the rootfs")?;
        let stat = fstat(&opened).context(|| "stat /dev/null in the rootfs")?;
        match is_dev_null(&stat) {
            true => Ok(opened),
            false => Err(Error::new("use /dev/null in the rootfs: it is not the null device")),
        }
    }

    /// Opens the directory `path`, made with its missing parents (mode 0755, umask 0 is the caller's).
    pub fn create_dir_all(&self, path: &Path) -> Result<OwnedFd> {
        match self.open(path, libc::O_PATH | libc::O_DIRECTORY) {
            Err(Errno::ENOENT) => self.create_dir(path),
            other => other.context(|| format!("open directory {} in the rootfs", path.display())),
        }
    }

    /// As [`Root::create_dir_all`], for a path that was found missing just now.
    pub fn create_dir(&self, path: &Path) -> Result<OwnedFd> {
        // The usual case: only the last name is missing.
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = self.open(parent, libc::O_PATH | libc::O_DIRECTORY)
            && make_dir(&parent, name) == Ok(())
            && let Ok(dir) = open_name(&parent, name, libc::O_DIRECTORY)
        {
            return Ok(dir);
        }
        self.walk_and_make(path, Last::Directory)
            .context(|| format!("create directory {} in the rootfs", path.display()))
    }

    /// Goes down name by name, from descriptor to descriptor. The kernel cannot make what is missing behind a
    /// link (an image with /var/run -> /run, and no /run), so links are read here; a `..` goes back to the
    /// descriptor that we came from, never above the root.
    fn walk_and_make(&self, path: &Path, last: Last) -> Result<OwnedFd, Errno> {
        const MAX_LINKS: u32 = 40; // the kernel's own limit
        let mut links = 0;
        let mut ahead: Vec<PathBuf> = vec![path.into()];
        let mut way = vec![self.open(Path::new("/"), libc::O_PATH | libc::O_DIRECTORY)?];
        while let Some(rest) = ahead.pop() {
            let mut components = rest.components();
            let Some(component) = components.next() else { continue };
            ahead.push(components.as_path().into());
            let is_last = ahead.iter().all(|rest| rest.as_os_str().is_empty());
            let name = match component {
                Component::Normal(name) => name,
                Component::ParentDir if way.len() > 1 => {
                    way.pop();
                    continue;
                }
                _ => continue,
            };
            let here = &way[way.len() - 1];
            let is_file = is_last && last == Last::File;
            let next = match open_name(here, name, 0) {
                Err(Errno::ENOENT) => {
                    if is_file {
                        make_file(here, name)?
                    } else {
                        make_dir(here, name)?
                    }
                    open_name(here, name, 0)?
                }
                found => found?,
            };
            match SFlag::from_bits_truncate(fstat(&next)?.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFDIR => way.push(next),
                SFlag::S_IFLNK if links == MAX_LINKS => return Err(Errno::ELOOP),
                SFlag::S_IFLNK => {
                    links += 1;
                    let target = PathBuf::from(readlinkat(&next, "")?);
                    if target.is_absolute() {
                        way.truncate(1);
                    }
                    ahead.push(target);
                }
                _ if is_file => return Ok(next),
                _ => return Err(Errno::ENOTDIR),
            }
        }
        Ok(way.pop().expect("the root is never left"))
    }

    /// Opens the parent directory of `path`, made if missing, and gives the last name.
    /// EINVAL when `path` has no last name (`/` or one that ends in `..`).
    pub fn create_parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr)> {
        let name = path
            .file_name()
            .ok_or(Errno::EINVAL)
            .context(|| format!("find the last name of {}", path.display()))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        Ok((self.create_dir_all(parent)?, name))
    }

    /// Opens the file `path` with O_PATH, made empty (mode 0644, before umask) with its parents if missing.
    pub fn create_file(&self, path: &Path) -> Result<OwnedFd> {
        match self.open(path, libc::O_PATH) {
            Err(Errno::ENOENT) => {}
            other => return other.context(|| format!("open {} in the rootfs", path.display())),
        }
        self.walk_and_make(path, Last::File)
            .context(|| format!("create file {} in the rootfs", path.display()))
    }

    fn openat2(&self, path: &Path, flags: i32, mode: u32) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        retry(|| openat2(&self.fd, path, flags, mode, Resolve::IN_ROOT | Resolve::NO_MAGICLINKS))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What is made where the last name of a path is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Directory,
    File,
}

/// Opens a name itself, whatever it is; with O_DIRECTORY only a directory.
fn open_name(dir: &OwnedFd, name: &OsStr, flags: i32) -> Result<OwnedFd, Errno> {
    let resolve = Resolve::BENEATH | Resolve::NO_MAGICLINKS;
    retry(|| openat2(dir, Path::new(name), libc::O_PATH | libc::O_NOFOLLOW | flags, 0, resolve))
}

/// EEXIST is as good: somebody else was faster.
fn make_dir(dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match mkdirat(dir, name, Mode::from_bits_truncate(0o755)) {
        Err(Errno::EEXIST) => Ok(()),
        made => made,
    }
}

/// As [`make_dir`]. It is opened anew, by its name: it may be another's.
fn make_file(dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
    let resolve = Resolve::BENEATH | Resolve::NO_SYMLINKS;
    match retry(|| openat2(dir, Path::new(name), flags, 0o644, resolve)) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Only a character device has its number: a file of another type has whatever it likes there.
pub fn is_dev_null(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR && stat.st_rdev == makedev(1, 3)
}

/// The absolute path without `.` and `..`; `..` at the top stays at the top, as inside a root.
pub fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

/// openat2 gives EAGAIN when any rename on the system raced a walk with `..` or IN_ROOT; a process that
/// renames in a loop makes a single try fail often, and 128 in a row has not been seen.
fn retry<T>(mut walk: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..128 {
        match walk() {
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}
