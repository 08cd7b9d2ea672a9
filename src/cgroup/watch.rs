//! Watching a cgroup: processes that are killed for lack of memory, and the end of the last process.
//!
//! Kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html> (memory.events, cgroup.events)

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::sys::uio::pread;

use super::{Cgroup, read_events};
use crate::error::{Context, Error, Result};

/// Both files end a poll(2) when their text changes, at once, or 10 ms after the last change; a read arms the next
/// poll, so that no change falls between them. (inotify tells of the same moments, but wants a path.)
pub struct Watch {
    events: OwnedFd,
    /// memory.events; None without the memory controller, which does the killing.
    memory: Option<OwnedFd>,
    kills: u64,
}

impl Cgroup {
    /// Counts kills from now on. None when the cgroup is gone.
    pub fn watch(&self) -> Result<Option<Watch>> {
        let open = |name| match self.open_file(name, OFlag::O_RDONLY) {
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(None),
            file => file
                .map(Some)
                .context(|| format!("open {} in {}", name.to_string_lossy(), self.path.display())),
        };
        let Some(events) = open(c"cgroup.events")? else { return Ok(None) };
        let mut watch = Watch { events, memory: open(c"memory.events")?, kills: 0 };
        watch.new_kills()?;
        Ok(Some(watch))
    }
}

impl Watch {
    /// What to wait for.
    pub fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        [&self.events]
            .into_iter()
            .chain(&self.memory)
            .map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI))
    }

    /// Whether there are processes.
    pub fn populated(&self) -> Result<bool> {
        match read_events(&self.events) {
            // Removed.
            Err(Errno::ENODEV) => Ok(false),
            events => Ok(events.context(|| "read cgroup.events")?.populated),
        }
    }

    /// How many processes have been killed for lack of memory since the last call, in it and below.
    pub fn new_kills(&mut self) -> Result<u64> {
        let Some(file) = &self.memory else { return Ok(0) };
        let mut text = [0; 512];
        let kills = match pread(file, &mut text, 0) {
            // Removed, or the controller taken away; the file would end every poll.
            Err(Errno::ENODEV) => {
                self.memory = None;
                return Ok(0);
            }
            length => parse_kills(&text[..length.context(|| "read memory.events")?])?,
        };
        let new = kills.saturating_sub(self.kills);
        self.kills = kills;
        Ok(new)
    }
}

fn parse_kills(text: &[u8]) -> Result<u64> {
    let text = String::from_utf8_lossy(text);
    let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
    kills.ok_or_else(|| Error::new(format!("read memory.events: {text:?} has no number of oom_kill")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_those_of_single_processes() {
        let text = "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(parse_kills(text.as_bytes()).unwrap(), 3);
        assert_eq!(
            parse_kills(b"oom_group_kill 1\n").unwrap_err().to_string(),
            "read memory.events: \"oom_group_kill 1\\n\" has no number of oom_kill"
        );
    }
}
