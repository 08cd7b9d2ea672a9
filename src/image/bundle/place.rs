//! The bundle's directory, from nothing to whole: what is in the making is recorded in the store first and gets its
//! config.json last, so that one which was killed half-way is known as that and can be made again.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use serde_json::Value;

use crate::error::{Context, Error, Kind, Result};
use crate::image::mounted::overlays;
use crate::image::store::Store;
use crate::image::store::bundles::Bundle;

pub struct Place<'s> {
    store: &'s Store,
    /// Absolute, without links.
    path: PathBuf,
    /// What had the name before, until the new one is whole.
    old: Option<(PathBuf, Bundle)>,
    /// There is a mount on its rootfs.
    pub mounted: bool,
    /// The directory was there, and empty.
    was_there: bool,
    whole: bool,
}

/// What can be made at a path.
pub enum Free {
    Nothing,
    Empty,
    /// A bundle of ours, whole or not, that may go.
    Bundle(Box<Bundle>),
}

/// Whether a bundle can be made at `path`; nothing is changed.
pub fn look(store: &Store, path: &Path, force: bool) -> Result<Free> {
    let what = || format!("make bundle {}", path.display());
    let mut entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !parent.is_dir() {
                let message = format!("{}: there is no directory {}", what(), parent.display());
                return Err(Error::of_kind(Kind::NotFound, message));
            }
            return Ok(Free::Nothing);
        }
        entries => entries.context(what)?,
    };
    if entries.next().is_none() {
        return Ok(Free::Empty);
    }
    let real = path.canonicalize().context(what)?;
    let Some(bundle) = store.get_bundle(&real)? else {
        let way_out =
            "It is no bundle that this store knows of: name another directory, or remove it yourself.";
        return Err(Error::new(format!("{}: the directory is not empty", what())).with_way_out(way_out));
    };
    let is_whole = path.join("config.json").exists();
    if is_whole && !force {
        let error = Error::new(format!("{}: there is a bundle already", what()));
        return Err(error.with_way_out("Replace it, with all that its container has written: --force."));
    }
    let upper = real.join("upper");
    if bundle.mounted
        || overlays()?.iter().any(|options| options.contains(&format!("upperdir={}", upper.display())))
    {
        let error = Error::new(format!("{}: it is in use", what()));
        return Err(error.with_way_out("End its container, or unmount it with keel-image umount."));
    }
    Ok(Free::Bundle(Box::new(bundle)))
}

impl<'s> Place<'s> {
    pub fn make(store: &'s Store, path: &Path, force: bool) -> Result<Self> {
        let what = || format!("make bundle {}", path.display());
        let free = look(store, path, force)?;
        let was_there = matches!(free, Free::Empty);
        let mut old = None;
        if let Free::Bundle(bundle) = free {
            let real = path.canonicalize().context(what)?;
            let mut name = std::ffi::OsString::from(".");
            name.push(real.file_name().unwrap_or_default());
            name.push(format!(".old-{}", std::process::id()));
            let aside = real.with_file_name(name);
            fs::rename(&real, &aside).context(what)?;
            old = Some((aside, *bundle));
        }
        if !was_there {
            DirBuilder::new().mode(0o700).create(path).context(what)?;
        }
        let mut place = Self { store, path: path.to_owned(), old, mounted: false, was_there, whole: false };
        place.path = path.canonicalize().context(what)?;
        // Setuid programs of strangers are in it.
        fs::set_permissions(&place.path, Permissions::from_mode(0o700)).context(what)?;
        Ok(place)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn directory(&self, name: &str, mode: u32) -> Result<OwnedFd> {
        let path = self.path.join(name);
        let make = || {
            DirBuilder::new().mode(mode).create(&path)?;
            // Whatever the umask is.
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            File::open(&path).map(OwnedFd::from)
        };
        make().context(|| format!("make {}", path.display()))
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

    pub fn give_to(&self, uid: u32, gid: u32) -> Result<()> {
        chown(&self.path, Some(uid), Some(gid)).context(|| format!("chown {}", self.path.display()))
    }

    /// The bundle is whole with this.
    pub fn finish(mut self, config: &Value) -> Result<PathBuf> {
        let (new, path) = (self.path.join(".config.json"), self.path.join("config.json"));
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(format!("{config:#}\n").as_bytes())?;
            fs::rename(&new, &path)
        };
        write().context(|| format!("write {}", path.display()))?;
        self.whole = true;
        if let Some((old, _)) = self.old.take() {
            fs::remove_dir_all(&old).context(|| format!("remove {}", old.display()))?;
        }
        Ok(self.path.clone())
    }
}

impl Drop for Place<'_> {
    /// The way back: what cannot be undone is left to who reads the error that led here.
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
        match &self.old {
            Some((old, bundle)) => {
                let _ = fs::rename(old, &self.path);
                let _ = self.store.put_bundle(bundle);
            }
            None => drop(self.store.remove_bundle(&self.path)),
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
