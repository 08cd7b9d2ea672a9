//! What nobody waits for: sweeping `tmp/`, emptying the trash, and saying of layers that the disk has them.
//!
//! A thread of whatever command comes next does it, and ends with that command wherever it is.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::unistd::syncfs;

use super::Store;
use crate::error::{Context, Result};
use crate::image::mounted::overlays;

/// After so long the kernel has written what it could (vm.dirty_expire_centisecs), and nobody waits for syncfs(2), the
/// end of the command least of all.
const SETTLED: Duration = Duration::from_secs(60);

/// Does it in a thread, for a command that goes on.
pub fn start(store: &Store) {
    let path = store.path.clone();
    // What fails, and a thread that does not start, is the next command's.
    let _ = std::thread::Builder::new().spawn(move || Store::open(Some(&path)).and_then(|s| s.upkeep()));
}

impl Store {
    fn upkeep(&self) -> Result<()> {
        self.sweep()?;
        let settled = |name: &String| {
            let made =
                fs::metadata(self.path.join("layers").join(name).join("ok")).and_then(|m| m.modified());
            let age = made.ok().and_then(|made| SystemTime::now().duration_since(made).ok());
            age.is_some_and(|age| age > SETTLED)
        };
        let waiting: Vec<_> = self.layers()?.into_iter().filter(settled).collect();
        self.sync(&waiting)
    }

    /// Removes what was left in the making or thrown away, and can be.
    pub fn sweep(&self) -> Result<()> {
        self.sweep_tmp()?;
        let names = self.names("trash")?;
        let mounted = if names.is_empty() { Vec::new() } else { overlays()? };
        for name in names {
            // NAME.PID-INODE
            let layer = name.rsplit_once('.').map_or(&*name, |(layer, _)| layer);
            if !self.is_mounted(layer, &mounted) {
                remove(&self.path.join("trash").join(&name))?;
            }
        }
        Ok(())
    }

    /// Brings the layers to the disk that it may not have, and says so.
    pub fn sync(&self, layers: &[String]) -> Result<()> {
        let mut waiting = Vec::new();
        for name in layers {
            if self.waits_for_sync(name)? {
                waiting.push(name);
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let what = || format!("sync {}", self.path.display());
        syncfs(fs::File::open(&self.path).context(what)?).context(what)?;
        waiting.into_iter().try_for_each(|name| self.mark_synced(name))
    }

    /// Whether some overlay has the layer of this name, or one that had it before, as its own.
    pub fn is_mounted(&self, layer: &str, mounted: &[String]) -> bool {
        let path = format!("{}/fs", self.path.join("layers").join(layer).display());
        mounted.iter().any(|options| options.contains(&path))
    }

    /// Gives what lies at `path` a name in the trash; `name` is the layer's.
    pub(super) fn throw_away(&self, path: &Path, name: &str) -> Result<()> {
        let what = || format!("remove {}", path.display());
        let inode = match fs::symlink_metadata(path) {
            Ok(meta) => meta.ino(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).context(what),
        };
        let trash: PathBuf = self.path.join("trash").join(format!("{name}.{}-{inode}", std::process::id()));
        fs::rename(path, trash).context(what)
    }
}

/// Somebody else may remove it as well.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
