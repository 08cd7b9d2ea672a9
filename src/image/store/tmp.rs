//! `tmp/`: what is in the making. Each entry is locked by who makes it, for as long as that process lives; one whose
//! lock is free was left by a process that was killed, and anybody may remove it.
//!
//! The lock can only be taken after the entry has got its name, so that a sweeper may come in between: whoever has
//! taken a lock looks whether its entry is still there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::Store;
use crate::error::{Context, Result};

/// A directory in `tmp/`, which goes with its maker.
pub struct Entry {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Entry {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // What cannot be removed now is somebody's to sweep later.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What nobody else works on meanwhile.
pub struct Lock {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked: who waits sees that it is gone. What cannot be removed is swept later.
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    pub fn entry(&self) -> Result<Entry> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let make = || -> io::Result<Option<Entry>> {
            let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = self.path.join("tmp").join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                // Of a process that was killed, or lives in another pid namespace.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
                made => made?,
            }
            let directory = match File::open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            let lock = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                locked => locked.map_err(|(_, errno)| errno)?,
            };
            Ok(is_at(&lock, &path)?.then_some(Entry { path, _lock: lock }))
        };
        loop {
            if let Some(entry) = make().context(|| format!("make an entry in {}/tmp", self.path.display()))? {
                return Ok(entry);
            }
        }
    }

    /// Waits until no other process or thread works on what `name` stands for. The lock ends when it is dropped.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        let path = self.path.join("tmp").join(format!("{name}.lock"));
        let lock = || -> io::Result<Option<Flock<File>>> {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
            Ok(is_at(&lock, &path)?.then_some(lock))
        };
        loop {
            if let Some(lock) = lock().context(|| format!("lock {}", path.display()))? {
                return Ok(Lock { path, _lock: lock });
            }
        }
    }

    /// Removes what nobody works on any more.
    pub(super) fn sweep_tmp(&self) -> Result<()> {
        for name in self.names("tmp")? {
            let path = self.path.join("tmp").join(&name);
            let what = || format!("sweep {}", path.display());
            let file = match File::open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                opened => opened.context(what)?,
            };
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Err((_, Errno::EWOULDBLOCK)) => continue,
                locked => locked.map_err(|(_, errno)| errno).context(what)?,
            };
            if !is_at(&lock, &path).context(what)? {
                continue;
            }
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.context(what)?;
        }
        Ok(())
    }
}

/// Whether `path` still names the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = nix::sys::stat::fstat(file)?;
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok((meta.dev(), meta.ino()) == (open.st_dev, open.st_ino)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
