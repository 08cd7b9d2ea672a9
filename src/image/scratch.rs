//! Files for the time of a command: unnamed ones, and ones that get their name only when they are whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Context, Error, Result};

/// Where what does not fit into memory goes: images are too big for a /tmp that is memory itself.
pub fn directory() -> PathBuf {
    std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// A file without a name, for reading and writing, which goes with its descriptor.
pub fn unnamed(directory: &Path) -> Result<File> {
    let (path, file) = create(directory, "keel", 0o600)?;
    fs::remove_file(&path).context(|| format!("remove the name of {}", path.display()))?;
    Ok(file)
}

/// A file that is not there yet: it is written under another name beside its own.
pub struct Unfinished {
    pub file: File,
    temporary: PathBuf,
    path: PathBuf,
    named: bool,
}

impl Unfinished {
    pub fn new(path: &Path) -> Result<Self> {
        Self::by_way_of(parent(path), path)
    }

    /// The same with its other name in another directory of the file system.
    pub fn by_way_of(directory: &Path, path: &Path) -> Result<Self> {
        let name =
            path.file_name().ok_or_else(|| Error::new(format!("{}: it names no file", path.display())))?;
        let (temporary, file) = create(directory, &name.to_string_lossy(), 0o644)?;
        Ok(Self { file, temporary, path: path.to_owned(), named: false })
    }

    /// Gives it its name; what had it before is gone then, and not earlier.
    pub fn finish(mut self) -> Result<()> {
        let what = || format!("write {}", self.path.display());
        // Or the name could be there after a power failure, and not the content.
        self.file.sync_all().context(what)?;
        fs::rename(&self.temporary, &self.path).context(what)?;
        self.named = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.named {
            // ENOENT: somebody has tidied up.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A new file of a name that nobody has.
fn create(directory: &Path, name: &str, mode: u32) -> Result<(PathBuf, File)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name: String = name.chars().take(100).collect();
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(OsString::from(format!(".{name}.{}-{count}.tmp", std::process::id())));
        match File::options().read(true).write(true).create_new(true).mode(mode).open(&path) {
            // Another pid namespace has the same numbers.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            file => return Ok((path.clone(), file.context(|| format!("create {}", path.display()))?)),
        }
    }
}
