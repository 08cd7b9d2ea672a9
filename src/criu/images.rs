//! The directories of a checkpoint: that of its images, and the one that criu works and writes its log in.

use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::rpc::{Answer, Opts};
use crate::error::{Context, Error, Result};

pub struct Images {
    dir: OwnedFd,
    work: Option<OwnedFd>,
    log: PathBuf,
}

impl Images {
    /// Makes the directories if they are missing: callers make them, or leave it to the runtime.
    pub fn make(dir: &Path, work: Option<&Path>, log: &str) -> Result<Self> {
        make_dir(dir).context(|| format!("create image directory {}", dir.display()))?;
        Self::open(dir, work, log)
    }

    /// `log` is a name in the work directory, which is the images' unless there is another.
    pub fn open(dir: &Path, work: Option<&Path>, log: &str) -> Result<Self> {
        let images = open_dir(dir).context(|| format!("open image directory {}", dir.display()))?;
        let open_work = |path: &Path| make_dir(path).map_err(Error::from).and_then(|()| Ok(open_dir(path)?));
        let opened = work
            .map(|path| open_work(path).context(|| format!("open work directory {}", path.display())))
            .transpose()?;
        let log = work.unwrap_or(dir).join(log);
        Ok(Self { dir: images, work: opened, log: std::path::absolute(&log).unwrap_or(log) })
    }

    /// The options that name the directories; criu opens them through this process.
    pub fn opts(&self) -> Opts {
        Opts {
            images_dir_fd: self.dir.as_raw_fd(),
            work_dir_fd: self.work.as_ref().map(AsRawFd::as_raw_fd),
            log_file: self.log.file_name().map(|name| name.to_string_lossy().into_owned()),
            // All that helps to find out why it failed.
            log_level: Some(4),
            notify_scripts: Some(true),
            ..Opts::default()
        }
    }

    /// Sees that `parent`, where an earlier dump lies, is there. Criu wants it relative to the images.
    pub fn check_parent(&self, parent: &str) -> Result<()> {
        let what = || format!("open parent image directory {parent}");
        if Path::new(parent).is_absolute() {
            return Err(Error::new("it must be relative to the image directory")).context(what);
        }
        openat(&self.dir, parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .context(what)
            .map(drop)
    }

    pub fn write(&self, name: &str, text: &[u8]) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        let write = || -> Result<()> {
            let file = openat(&self.dir, name, flags, Mode::from_bits_truncate(0o600))?;
            Ok(std::io::Write::write_all(&mut File::from(file), text)?)
        };
        write().context(|| format!("write {name} of the images"))
    }

    /// None if there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let file = match openat(&self.dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            file => file,
        };
        let mut text = Vec::new();
        let read = || -> Result<()> { Ok(File::from(file?).read_to_end(&mut text).map(drop)?) };
        read().context(|| format!("read {name} of the images"))?;
        Ok(Some(text))
    }

    /// What an answer that is no success means: the errors of the log, which is where the rest is to be found.
    pub fn failure(&self, answer: &Answer) -> Error {
        self.explain(answer.cr_errmsg.as_deref().unwrap_or_default())
    }

    /// The errors that criu logged, or `otherwise`.
    pub fn explain(&self, otherwise: &str) -> Error {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let errors = errors(&String::from_utf8_lossy(&log));
        let said = if errors.is_empty() { otherwise.trim().to_owned() } else { errors.join("; ") };
        let said = if said.is_empty() { "it does not say why".to_owned() } else { said };
        Error::new(format!("criu failed: {said} (its log is {})", self.log.display()))
    }
}

fn make_dir(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// The last errors of a log, without the times and places in criu's sources:
/// `(00.009412) Error (criu/files-reg.c:1798): Can't lookup mount=5 for fd=1 path=/x`.
fn errors(log: &str) -> Vec<String> {
    const MOST: usize = 5;
    let text = |line: &str| {
        let (_, error) = line.split_once("Error (")?;
        let (_, text) = error.split_once("): ")?;
        // What a container called a file must not send escape sequences to our terminal.
        Some(text.trim().replace(char::is_control, " "))
    };
    let errors: Vec<String> = log.lines().filter_map(text).collect();
    errors[errors.len().saturating_sub(MOST)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_of_a_log_are_told() {
        let line = |n: u32| format!("(00.00{n}) Error (criu/mount.c:{n}): mnt: error {n}: x): y\x1b\n");
        let log =
            format!("(00.1) Warn  (a.c:1): w\n{}(00.2) an Error\n", (1..=6).map(line).collect::<String>());
        let expected: Vec<String> = (2..=6).map(|n| format!("mnt: error {n}: x): y ")).collect();
        assert_eq!(errors(&log), expected);
        assert!(errors("").is_empty());
    }
}
