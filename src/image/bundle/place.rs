//! The bundle's directory, from nothing to whole: what is in the making is recorded in the store first and gets its
//! config.json last, so that one which was killed half-way is known as that and can be made again.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, fchown};
use serde_json::Value;

use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::Digest;
use crate::image::mounted;
use crate::image::store::Store;
use crate::image::store::bundles::Bundle;
use crate::image::store::tmp::Lock;
use crate::sys::fs::{Resolve, openat2};

pub struct Place<'s> {
    store: &'s Store,
    /// Absolute, without links.
    path: PathBuf,
    /// Its modes and owners are set by this: the name, in a user's directory, may be another's by now.
    directory: OwnedFd,
    /// What had the name before, until the new one is whole.
    old: Option<Aside<'s>>,
    /// There is a mount on its rootfs.
    pub mounted: bool,
    /// The directory was there, and empty.
    was_there: bool,
    whole: bool,
    /// Nobody else makes a bundle here.
    _lock: Lock,
}

/// What can be made at a path.
enum Free {
    Nothing,
    Empty,
    /// A bundle of ours, whole or not, that may go.
    Bundle(Box<Bundle>),
}

/// Whether a bundle can be made at `path`; nothing is changed, but that a bundle is put back which a command that was
/// killed has put aside.
pub fn look(store: &Store, path: &Path, force: bool) -> Result<()> {
    let real = resolved(path)?;
    let _lock = lock(store, &real)?;
    find(store, path, &real, force).map(drop)
}

fn find(store: &Store, path: &Path, real: &Path, force: bool) -> Result<Free> {
    let what = || format!("make bundle {}", path.display());
    put_back(store, real).context(what)?;
    let mut entries = match fs::read_dir(real) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Free::Nothing),
        entries => entries.context(what)?,
    };
    if entries.next().is_none() {
        return Ok(Free::Empty);
    }
    let Some(bundle) = store.get_bundle(real)? else {
        let way_out =
            "It is no bundle that this store knows of: name another directory, or remove it yourself.";
        return Err(Error::new(format!("{}: the directory is not empty", what())).with_way_out(way_out));
    };
    if is_whole(real) && !force {
        let error = Error::new(format!("{}: there is a bundle already", what()));
        return Err(error.with_way_out("Replace it, with all that its container has written: --force."));
    }
    if bundle.mounted {
        return Err(in_use().because(what()));
    }
    check_unused(real).context(what)?;
    Ok(Free::Bundle(Box::new(bundle)))
}

fn is_whole(bundle: &Path) -> bool {
    bundle.join("config.json").exists()
}

fn check_unused(bundle: &Path) -> Result<()> {
    if mounted::in_use(bundle)? { Err(in_use()) } else { Ok(()) }
}

fn in_use() -> Error {
    Error::new("it is in use").with_way_out("End its container, or unmount it with keel-image umount.")
}

/// `path`, which need not be there, without links.
fn resolved(path: &Path) -> Result<PathBuf> {
    let what = || format!("make bundle {}", path.display());
    match path.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        real => return real.context(what),
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) if parent.is_dir() => Ok(parent.join(name)),
        _ => {
            let message = format!("{}: there is no directory {}", what(), parent.display());
            Err(Error::of_kind(Kind::NotFound, message))
        }
    }
}

fn lock(store: &Store, real: &Path) -> Result<Lock> {
    store.lock(&format!("bundle-{}", Digest::of(real.as_os_str().as_bytes()).hex()))
}

/// A bundle that has made room for another one, until that is whole. It has a record of its own meanwhile, so that a
/// prune leaves it what it stands on, and that it can be put back if this process is killed.
struct Aside<'s> {
    store: &'s Store,
    bundle: Bundle,
    path: PathBuf,
    gone: bool,
}

impl<'s> Aside<'s> {
    fn put(store: &'s Store, bundle: Bundle) -> Result<Self> {
        let path = aside_of(&bundle.path);
        store.put_bundle(&bundle.named(&path))?;
        fs::rename(&bundle.path, &path).context(|| format!("put it aside as {}", path.display()))?;
        Ok(Self { store, bundle, path, gone: false })
    }

    fn remove(mut self) -> Result<()> {
        self.gone = true;
        fs::remove_dir_all(&self.path).context(|| format!("remove {}", self.path.display()))?;
        self.store.remove_bundle(&self.path).map(drop)
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if !self.gone {
            // What cannot be put back now may be by the next command; there is an error already.
            let _ = restore(self.store, &self.path, &self.bundle);
        }
    }
}

fn aside_of(bundle: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(bundle.file_name().unwrap_or_default());
    name.push(".old");
    bundle.with_file_name(name)
}

/// Gives what lies aside its name again. The record comes first: with that of another image, a prune would take the
/// layers of this one.
fn restore(store: &Store, aside: &Path, bundle: &Bundle) -> Result<()> {
    store.put_bundle(bundle)?;
    fs::rename(aside, &bundle.path).context(|| format!("put {} back", aside.display()))?;
    store.remove_bundle(aside).map(drop)
}

/// Ends what a command that was killed has begun: what it put aside is put back, or removed if the new one is whole.
fn put_back(store: &Store, real: &Path) -> Result<()> {
    let aside = aside_of(real);
    let Some(old) = store.get_bundle(&aside)? else { return Ok(()) };
    if !aside.try_exists().context(|| format!("find {}", aside.display()))? {
        return store.remove_bundle(&aside).map(drop);
    }
    let bundle = old.named(real);
    if is_whole(real) {
        return Aside { store, bundle, path: aside, gone: false }.remove();
    }
    match check_unused(real).and_then(|()| Ok(fs::remove_dir_all(real)?)) {
        Err(error) if error.errno() != Some(nix::errno::Errno::ENOENT) => {
            return Err(error).context(|| format!("remove {}", real.display()));
        }
        _ => {}
    }
    restore(store, &aside, &bundle)
}

impl<'s> Place<'s> {
    pub fn make(store: &'s Store, path: &Path, force: bool) -> Result<Self> {
        let what = || format!("make bundle {}", path.display());
        let real = resolved(path)?;
        let lock = lock(store, &real)?;
        let free = find(store, path, &real, force)?;
        let was_there = matches!(free, Free::Empty);
        let old = match free {
            Free::Bundle(bundle) => Some(Aside::put(store, *bundle).context(what)?),
            Free::Nothing | Free::Empty => None,
        };
        if !was_there {
            DirBuilder::new().mode(0o700).create(&real).context(what)?;
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let directory = openat2(AT_FDCWD, &real, flags, 0, Resolve::NO_SYMLINKS).context(what)?;
        // Setuid programs of strangers are in it.
        fchmod(&directory, Mode::S_IRWXU).context(what)?;
        Ok(Self { store, path: real, directory, old, mounted: false, was_there, whole: false, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn directory(&self, name: &str, mode: u32) -> Result<OwnedFd> {
        let mode = Mode::from_bits_truncate(mode);
        let make = || {
            mkdirat(&self.directory, name, mode)?;
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            let made =
                openat2(&self.directory, Path::new(name), flags, 0, Resolve::BENEATH | Resolve::NO_SYMLINKS)?;
            // Whatever the umask is.
            fchmod(&made, mode)?;
            nix::Result::Ok(made)
        };
        make().context(|| format!("make {}", self.path.join(name).display()))
    }

    /// Empties what an earlier try has left.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Lets a group through to what is in it, and no further: who may write to it says what the runtime does.
    pub fn let_through(&self, gid: u32) -> Result<()> {
        let through = || {
            fchown(&self.directory, None, Some(Gid::from_raw(gid)))?;
            fchmod(&self.directory, Mode::S_IRWXU | Mode::S_IXGRP)
        };
        through().context(|| format!("let group {gid} into {}", self.path.display()))
    }

    /// The bundle is whole with this.
    pub fn finish(mut self, config: &Value) -> Result<PathBuf> {
        let (new, name) = (".config.json", "config.json");
        let write = || -> std::io::Result<()> {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(&self.directory, new, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            file.write_all(format!("{config:#}\n").as_bytes())?;
            Ok(renameat(&self.directory, new, &self.directory, name)?)
        };
        write().context(|| format!("write {}", self.path.join(name).display()))?;
        self.whole = true;
        self.old.take().map_or(Ok(()), Aside::remove)?;
        Ok(self.path.clone())
    }
}

impl Drop for Place<'_> {
    /// The way back: what cannot be undone is left to who reads the error that led here. What was put aside goes back
    /// after this.
    fn drop(&mut self) {
        if self.whole {
            return;
        }
        if self.mounted && umount2(&self.path.join("rootfs"), MntFlags::MNT_DETACH).is_err() {
            // What is in it is not to be removed through the mount.
            return;
        }
        let _ = match self.was_there {
            true => empty(&self.path),
            false => fs::remove_dir_all(&self.path),
        };
        if self.old.is_none() {
            let _ = self.store.remove_bundle(&self.path);
        }
    }
}

fn empty(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}
