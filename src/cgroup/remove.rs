//! Removing a cgroup with all that the container made below it, as soon as its last process has ended.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Cgroup, Events, children, list, read_events};
use crate::error::{Context, Error, Result};
use crate::sys::process::pidfd_open;

/// How long the kernel may take to end killed processes before `remove` gives up.
pub(super) const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Removes it with everything below. Waits for processes that have been killed, kills none.
    pub fn remove(&self) -> Result<()> {
        let what = || format!("remove cgroup {}", self.path.display());
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        // EBUSY: processes or cgroups are inside. After the wait there are none but those that somebody else
        // keeps making; the limit is for that race.
        for _ in 0..128 {
            match unlinkat(AT_FDCWD, &self.path, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EBUSY) => {}
                Err(errno) => return Err(errno).context(what),
            }
            if !self.wait_until_empty(deadline).context(what)? {
                let left = list(&self.pids()?);
                return Err(Error::new(format!("{}: after 10 s there are still processes {left}", what())));
            }
            match remove_below(self.fd.as_fd()) {
                Ok(()) | Err(Errno::EBUSY) => {}
                Err(errno) => return Err(errno).context(|| format!("{}: remove those below it", what())),
            }
        }
        Err(Errno::EBUSY).context(what)
    }

    /// Waits until it has no processes; false when the time is over.
    pub(super) fn wait_until_empty(&self, deadline: Instant) -> Result<bool> {
        let file = match self.open_file(c"cgroup.events", OFlag::O_RDONLY) {
            Err(Errno::ENOENT | Errno::ENODEV) => return Ok(true),
            other => other.context(|| "open cgroup.events")?,
        };
        loop {
            // The read arms the poll, so that no change falls between them.
            match read_events(&file) {
                Ok(Events { populated: true, .. }) => {}
                Ok(_) | Err(Errno::ENODEV) => return Ok(true),
                Err(errno) => return Err(errno).context(|| "read cgroup.events"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // The kernel holds events back for 10 ms after the last one; a process tells of its end at once. The
            // last is the last to be killed.
            let process = self.pids()?.last().and_then(|&pid| pidfd_open(pid).ok());
            let mut fds = vec![PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            fds.extend(process.iter().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context(|| "wait for cgroup.events"),
            }
        }
    }
}

/// Removes the cgroups below this one, which have no processes, deepest first. Neither by recursion nor with a
/// descriptor for each level: the container chose the depth. EBUSY when they change meanwhile.
fn remove_below(top: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut way: Vec<CString> = Vec::new();
    let mut dir = open_dir(top, c".")?;
    loop {
        let step = match remove_childless(&mut dir) {
            Ok(Some(name)) => open_dir(&dir, &name).inspect(|_| way.push(name)),
            Ok(None) => match way.pop() {
                None => return Ok(()),
                // A cgroup cannot be moved, so this is the directory that we came from.
                Some(name) => open_dir(&dir, c"..").and_then(|parent| {
                    unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
                    Ok(parent)
                }),
            },
            Err(errno) => Err(errno),
        };
        dir = match step {
            Err(Errno::ENOENT | Errno::ENODEV) => return Err(Errno::EBUSY),
            other => other?,
        };
    }
}

/// Removes the cgroups in `dir` that have none below them; gives the first that has some.
fn remove_childless(dir: &mut Dir) -> Result<Option<CString>, Errno> {
    for name in children(dir)? {
        match unlinkat(&*dir, name.as_c_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EBUSY) => return Ok(Some(name)),
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

fn open_dir(parent: impl AsFd, name: &CStr) -> Result<Dir, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Dir::openat(parent, name, flags, Mode::empty())
}
