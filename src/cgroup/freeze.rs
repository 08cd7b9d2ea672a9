//! Freezing a cgroup: `pause` and `resume`.
//!
//! Kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html#core-interface-files> (cgroup.freeze)

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Cgroup, read_events};
use crate::error::{Context, Error, Result};

/// How long processes may take to come to where they can be stopped.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Stops all processes in it and below, and returns when all of them stand still.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen("1")?;
        if self.wait_until_frozen()? {
            return Ok(());
        }
        self.thaw()?;
        let path = self.path.display();
        Err(Error::new(format!("freeze cgroup {path}: after 10 s a process in it cannot be stopped yet")))
    }

    pub fn thaw(&self) -> Result<()> {
        self.set_frozen("0")
    }

    fn set_frozen(&self, value: &str) -> Result<()> {
        self.write("cgroup.freeze", value)
            .context(|| format!("write {value} to {}/cgroup.freeze", self.path.display()))
    }

    fn wait_until_frozen(&self) -> Result<bool> {
        let what = || format!("wait for {}/cgroup.events", self.path.display());
        let file = self.open_file(c"cgroup.events", OFlag::O_RDONLY).context(what)?;
        let deadline = Instant::now() + TIMEOUT;
        // The read arms the poll, so that no change falls between them.
        while !read_events(&file).context(what)?.frozen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context(what),
            }
        }
        Ok(true)
    }
}
