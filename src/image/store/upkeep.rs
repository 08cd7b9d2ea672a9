//! What nobody waits for: sweeping `tmp/`, emptying the trash, and saying of layers that the disk has them.
//!
//! The next command that finds something to do leaves it to a process of its own (`keel-image upkeep`): a thread would
//! not do, since a program cannot end while one of its threads is in syncfs(2).

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::syncfs;

use super::Store;
use crate::error::{Context, Result};
use crate::image::cli::Global;
use crate::image::mounted::Mounted;

/// After so long the kernel has written it anyway (vm.dirty_expire_centisecs): syncfs(2) disturbs nobody then.
const SETTLED: Duration = Duration::from_secs(60);

/// Leaves it to another process, if there is something to do.
pub fn start(store: &Store) -> Result<()> {
    if store.names("tmp")?.is_empty() && store.names("trash")?.is_empty() && store.settled()?.is_empty() {
        return Ok(());
    }
    // What does not start, or fails, is the next command's.
    let _ = Command::new("/proc/self/exe")
        .arg("--store")
        .arg(&store.path)
        .arg("upkeep")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    Ok(())
}

/// `keel-image upkeep`, which no user has to know of.
pub fn upkeep(global: &Global) -> Result<Vec<u8>> {
    let store = global.store()?;
    store.sweep()?;
    store.sync(&store.settled()?)?;
    Ok(Vec::new())
}

impl Store {
    /// The layers that nobody has said of that the disk has them, and which it must have by now.
    fn settled(&self) -> Result<Vec<String>> {
        let is_old = |name: &str| {
            let ok = self.path.join("layers").join(name).join("ok");
            let age =
                fs::metadata(ok).and_then(|meta| meta.modified()).ok().and_then(|made| made.elapsed().ok());
            age.is_some_and(|age| age > SETTLED)
        };
        let mut settled = Vec::new();
        for name in self.layers()? {
            if is_old(&name) && self.waits_for_sync(&name)? {
                settled.push(name);
            }
        }
        Ok(settled)
    }

    /// Removes what was left in the making or thrown away, and can be.
    pub fn sweep(&self) -> Result<()> {
        self.sweep_tmp()?;
        let names = self.names("trash")?;
        if names.is_empty() {
            return Ok(());
        }
        let mounted = Mounted::read()?;
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
    pub fn is_mounted(&self, layer: &str, mounted: &Mounted) -> bool {
        mounted.has_layer(&self.path, &self.layer_at(layer).fs())
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
