//! The container's cgroup (v2).
//!
//! JOINT: a stand-in for what the commands need of it, until the real one is merged over this file.

pub mod devices;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::error::{Context, Error, Result};

pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup at `path` below the cgroup2 mount, if it exists.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let is_v2 = |mount: &&str| statfs(*mount).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().find(is_v2);
        let mount = mount.ok_or_else(|| Error::new("find the cgroup2 mount"))?;
        let path = Path::new(mount).join(path.strip_prefix("/").unwrap_or(path));
        Ok(path.exists().then_some(Self { path }))
    }

    /// SIGKILL to every process in it and below.
    pub fn kill(&self) -> Result<()> {
        std::fs::write(self.path.join("cgroup.kill"), "1").context(|| "write cgroup.kill")
    }

    pub fn frozen(&self) -> Result<bool> {
        Ok(self.read("cgroup.freeze")?.trim_end() == "1")
    }

    /// Whether a process is in it or below.
    pub fn populated(&self) -> Result<bool> {
        Ok(self.read("cgroup.events")?.contains("populated 1"))
    }

    /// Whether it became empty in time.
    pub fn wait_until_empty(&self, timeout: Duration) -> Result<bool> {
        let events = std::fs::File::open(self.path.join("cgroup.events")).context(|| "open cgroup.events")?;
        let end = Instant::now() + timeout;
        loop {
            let text = std::io::read_to_string(&events).context(|| "read cgroup.events")?;
            if text.contains("populated 0") {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now()).as_millis();
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            if poll(&mut fds, timeout).context(|| "poll cgroup.events")? == 0 {
                return Ok(false);
            }
            std::io::Seek::rewind(&mut &events).context(|| "rewind cgroup.events")?;
        }
    }

    /// Every process in it and below.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids: Vec<i32> = self.read("cgroup.procs")?.lines().filter_map(|l| l.parse().ok()).collect();
        for child in self.children()? {
            pids.extend(child.pids()?);
        }
        Ok(pids)
    }

    /// Removes it and those below it; they hold no processes any more.
    pub fn remove(&self) -> Result<()> {
        for child in self.children()? {
            child.remove()?;
        }
        match nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, &self.path, nix::unistd::UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            removed => removed.context(|| format!("remove cgroup {}", self.path.display())),
        }
    }

    fn children(&self) -> Result<Vec<Self>> {
        let entries = std::fs::read_dir(&self.path).context(|| "read the cgroup")?;
        let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
        Ok(dirs.map(|entry| Self { path: entry.path() }).collect())
    }

    fn read(&self, file: &str) -> Result<String> {
        std::fs::read_to_string(self.path.join(file)).context(|| format!("read {file}"))
    }
}
