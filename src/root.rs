//! The container's root file system, reached through its descriptor only.
//!
//! Everything in it is hostile: any name may be a symbolic link to anywhere and may change between two
//! look-ups. So each path is walked once, by openat2 with RESOLVE_IN_ROOT (a link cannot lead out of the
//! root) and without magic links, and what was found is used by descriptor from then on.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, mkdirat};

use crate::error::{Context, Result};
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

    /// Opens the directory `path`, made with its missing parents (mode 0755, umask 0 is the caller's).
    pub fn create_dir_all(&self, path: &Path) -> Result<OwnedFd> {
        match self.open(path, libc::O_PATH | libc::O_DIRECTORY) {
            Err(Errno::ENOENT) => {}
            other => return other.context(|| format!("open directory {} in the rootfs", path.display())),
        }
        let mut walked = PathBuf::from("/");
        let mut dir = self.open(&walked, libc::O_PATH | libc::O_DIRECTORY).context(|| "open the rootfs")?;
        for name in names(path) {
            walked.push(name);
            dir = match self.open(&walked, libc::O_PATH | libc::O_DIRECTORY) {
                Err(Errno::ENOENT) => self.create_dir(&dir, &walked, name),
                other => other,
            }
            .context(|| format!("create directory {} in the rootfs", walked.display()))?;
        }
        Ok(dir)
    }

    fn create_dir(&self, parent: &OwnedFd, path: &Path, name: &OsStr) -> Result<OwnedFd, Errno> {
        match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
            // EEXIST: made meanwhile, or a dangling link, which the open then refuses with ENOENT.
            Ok(()) | Err(Errno::EEXIST) => self.open(path, libc::O_PATH | libc::O_DIRECTORY),
            Err(errno) => Err(errno),
        }
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
        let (parent, name) = self.create_parent(path)?;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
        let resolve = Resolve::BENEATH | Resolve::NO_SYMLINKS;
        match retry(|| openat2(&parent, Path::new(name), flags, 0o644, resolve)) {
            Ok(_) | Err(Errno::EEXIST) => self.open(path, libc::O_PATH),
            Err(errno) => Err(errno),
        }
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

/// An absolute path without `.`, `..` and doubled slashes, as config.json's paths are compared.
pub fn clean(path: &Path) -> PathBuf {
    Path::new("/").join(names(path).into_iter().collect::<PathBuf>())
}

/// The names of a path; `..` at the top stays at the top, as inside a root.
fn names(path: &Path) -> Vec<&OsStr> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            _ => {}
        }
    }
    names
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
