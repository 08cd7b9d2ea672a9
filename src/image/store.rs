//! The store: what images are made of, kept on this machine for the next time.
//!
//! | What | Where | File |
//! |---|---|---|
//! | blobs: manifests, configs, layers as they came | `blobs/sha256/<hex>` | [`blobs`] |
//! | layers, unpacked, and the fix-up layer of an image | `layers/<name>/{fs,lacks,ok}` | [`layers`] |
//! | what a name stands for | `refs/<SHA-256 of the name>` | [`refs`] |
//! | the manifests whose image is here | `images/<hex>` | [`images`] |
//! | where there are bundles | `bundles/<SHA-256 of the path>` | [`bundles`] |
//! | what is in the making | `tmp/`, each entry locked by its maker | [`tmp`] |
//! | what waits to be deleted | `trash/` | [`upkeep`] |
//!
//! Whatever counts gets its name by rename(2) once it is whole and verified, so that a command which is killed leaves
//! nothing but an entry of `tmp/` that nobody holds the lock of. `refs`, `images` and `bundles` say what is in use; all
//! else is looked for by its digest.
//!
//! Everything is root's, or the user's, and nobody else's: layers hold setuid programs of strangers. A directory that was
//! there before keeps its mode, for it may be /tmp; what is made in it is private anyway. See `flock(2)`.

pub mod blobs;
pub mod bundles;
pub mod images;
pub mod layers;
pub mod refs;
pub mod tmp;
pub mod upkeep;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf, absolute};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{geteuid, syncfs};
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::image::rootless::Rootless;
use crate::image::unpack::Range;

const DIRECTORIES: [&str; 8] =
    ["blobs", "blobs/sha256", "layers", "refs", "images", "bundles", "tmp", "trash"];

pub struct Store {
    /// Absolute, without links: as the kernel shows it in mountinfo.
    path: PathBuf,
    boot: Boot,
    /// Shared; prune's is not.
    lock: Flock<File>,
}

/// The time between two starts of one machine: what was written in it can be read, on the disk or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    boot: String,
    machine: String,
}

impl Store {
    /// The store at `path`, or the one that this user has by default; made if it is missing. Waits for a prune.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        Self::open_with(path, FlockArg::LockShared)
    }

    /// The same, once no other command works with it.
    pub fn open_alone(path: Option<&Path>) -> Result<Self> {
        Self::open_with(path, FlockArg::LockExclusive)
    }

    fn open_with(path: Option<&Path>, lock: FlockArg) -> Result<Self> {
        let path = match path {
            Some(path) => absolute(path).context(|| format!("find store {}", path.display()))?,
            None => default_path(geteuid().is_root())?,
        };
        let given = path.clone();
        let what = || format!("open store {}", given.display());
        make_private(&path).context(what)?;
        let path = path.canonicalize().context(what)?;
        for name in DIRECTORIES {
            match DirBuilder::new().mode(0o700).create(path.join(name)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => made.context(|| format!("make {name}")).context(what)?,
            }
        }
        // A rename from one to the other must be possible, and must not copy.
        let device = |name: &str| fs::metadata(path.join(name)).map(|meta| meta.dev());
        for name in ["blobs/sha256", "layers", "trash"] {
            if device(name).context(what)? != device("tmp").context(what)? {
                let error = Error::new(format!("{name} and tmp lie on different file systems"));
                return Err(error
                    .with_way_out("Put the whole store on one, and say where with --store.")
                    .because(what()));
            }
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path.join("lock"));
        let lock = Flock::lock(file.context(what)?, lock).map_err(|(_, errno)| errno).context(what)?;
        Ok(Self { boot: Boot::current().context(what)?, path, lock })
    }

    /// Whether there is nothing at `path`, or an empty directory: who only asks makes no store of it.
    pub fn is_missing(path: &Path) -> bool {
        match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }

    /// Has the disk take all that was written before; an error of the disk since the store was opened is seen here.
    fn sync_all(&self) -> Result<()> {
        syncfs(&*self.lock).context(|| format!("sync {}", self.path.display()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A user's layers belong to the ids that he had when they were made; with others they cannot be used.
    pub fn keep_to_ids(&self, rootless: &Rootless) -> Result<()> {
        let lines = |ranges: &[Range]| {
            ranges.iter().map(|r| json!([r.inside, r.outside, r.count])).collect::<Value>()
        };
        let ids = json!({"uids": lines(&rootless.uids), "gids": lines(&rootless.gids)});
        let name = if rootless.is_single() { "ids-single" } else { "ids" };
        match self.get_record(".", name)? {
            Some(known) if known == ids => Ok(()),
            Some(known) => {
                let path = self.path.display();
                Err(Error::new(format!(
                    "open store {path}: its files were made with the ids {known}, not {ids}"
                ))
                .with_way_out("Put /etc/subuid and /etc/subgid back, or take another store with --store."))
            }
            None => self.put_record(".", name, &ids),
        }
    }

    /// Gives `content` the name `directory/name` at once.
    fn put_record(&self, directory: &str, name: &str, content: &Value) -> Result<()> {
        let path = self.path.join(directory).join(name);
        let what = || format!("write {}", path.display());
        let entry = self.entry()?;
        let new = entry.path().join("record");
        fs::write(&new, format!("{content:#}\n")).and_then(|()| fs::rename(&new, &path)).context(what)
    }

    /// None if there is none, and if it is no JSON: a machine that loses its power leaves empty files.
    fn get_record(&self, directory: &str, name: &str) -> Result<Option<Value>> {
        let path = self.path.join(directory).join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(|| format!("read {}", path.display())),
        }
    }

    /// Whether it was there.
    fn remove_record(&self, directory: &str, name: &str) -> Result<bool> {
        let path = self.path.join(directory).join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context(|| format!("remove {}", path.display())),
        }
    }

    /// The names in one of the store's directories, sorted.
    fn names(&self, directory: &str) -> Result<Vec<String>> {
        let path = self.path.join(directory);
        let list = || -> io::Result<Vec<OsString>> {
            fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name())).collect()
        };
        let names = list().context(|| format!("list {}", path.display()))?;
        // What is not UTF-8 is not ours.
        let mut names: Vec<_> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }
}

impl Boot {
    fn current() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        // A disk may be copied to another machine while this one runs. Not every system has an id.
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned();
        Ok(Self { boot, machine })
    }
}

/// `/var/lib/keel`, or `$XDG_DATA_HOME/keel` of a user without privileges.
pub fn default_path(is_root: bool) -> Result<PathBuf> {
    if is_root {
        return Ok("/var/lib/keel".into());
    }
    // The XDG Base Directory Specification has relative paths ignored.
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")));
    data.map(|data| data.join("keel")).ok_or_else(|| {
        Error::new("find the store: there is no $XDG_DATA_HOME and no $HOME")
            .with_way_out("Say where it is with --store.")
    })
}

/// A directory at `path` for a store: a new one, an empty one, or that of a store. Any other stays as it is.
fn make_private(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return Ok(made?),
    }
    const WAY_OUT: &str = "A store is one user's. Name another directory with --store.";
    let meta = fs::metadata(path)?;
    if meta.uid() != geteuid().as_raw() {
        return Err(Error::new(format!("it belongs to user {}", meta.uid())).with_way_out(WAY_OUT));
    }
    if !is_store(path)? {
        return Err(Error::new("the directory has other files in it, and is no store").with_way_out(WAY_OUT));
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(Error::new(format!("others may write to it (mode {mode:o})"))
            .with_way_out(format!("Make it private, chmod 700 {}, or name another.", path.display())));
    }
    Ok(())
}

/// Whether nothing is in a directory but what a store has; with all of that, more may be.
fn is_store(path: &Path) -> io::Result<bool> {
    if DIRECTORIES.iter().all(|name| path.join(name).is_dir()) {
        return Ok(true);
    }
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        // lost+found: the store's own file system.
        let ours = ["lock", "ids", "ids-single", "lost+found"].iter().chain(&DIRECTORIES);
        if !ours.into_iter().any(|ours| name == *ours) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
