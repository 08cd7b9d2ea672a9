//! The descriptors beyond stdio that the program gets: the listening sockets of systemd's socket activation
//! first (sd_listen_fds(3)), then those of `--preserve-fds`. All others are closed before anything is opened,
//! so that nothing of the caller's, a host directory least of all, is within the container's reach.

use serde_json::{Map, Value, json};

use crate::error::{Context, Error, Result};
use crate::sys::fs::{close_range, is_open};

/// sd_listen_fds(3): the first passed descriptor.
const FIRST: u32 = 3;

/// What is passed on: FIRST.., the listening sockets first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    listening: u32,
    preserved: u32,
}

impl Passed {
    /// Counts them, sees that they are there, and closes the rest. Before the first descriptor is opened.
    pub fn keep(preserved: u32) -> Result<Self> {
        Self { listening: listen_fds()?, preserved }.close_others()
    }

    /// The same without listening sockets, which are for a container's first process.
    pub fn keep_preserved(preserved: u32) -> Result<Self> {
        Self { listening: 0, preserved }.close_others()
    }

    fn close_others(self) -> Result<Self> {
        let (passed, listening) = (self, self.listening);
        let end = passed.end()?;
        for fd in FIRST..end {
            if !is_open(fd) {
                let option = if fd < FIRST + listening { "LISTEN_FDS" } else { "--preserve-fds" };
                return Err(Error::new(format!("pass descriptor {fd} ({option}): it is not open")));
            }
        }
        close_range(end).context(|| format!("close the descriptors from {end} on"))?;
        Ok(passed)
    }

    /// The first descriptor that the program does not get.
    pub fn first_private(self) -> u32 {
        FIRST + self.listening + self.preserved
    }

    fn end(self) -> Result<u32> {
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        let (_, most) = limit.context(|| "read the limit of open files")?;
        let end = u64::from(FIRST) + u64::from(self.listening) + u64::from(self.preserved);
        if end > most {
            return Err(Error::new(format!("pass descriptors up to {end}: at most {most} can be open")));
        }
        Ok(self.first_private())
    }

    /// Tells the program of its listening sockets; it is process 1 in its own eyes, as runc has it.
    pub fn announce(self, config: &mut Map<String, Value>) {
        if self.listening == 0 {
            return;
        }
        // A config whose env is of the wrong type is refused by the plan.
        if let Some(Value::Object(process)) = config.get_mut("process")
            && let Value::Array(env) = process.entry("env").or_insert(json!([]))
        {
            env.push(json!(format!("LISTEN_FDS={}", self.listening)));
            env.push(json!("LISTEN_PID=1"));
            if let Ok(names) = std::env::var("LISTEN_FDNAMES") {
                env.push(json!(format!("LISTEN_FDNAMES={names}")));
            }
        }
    }
}

/// LISTEN_FDS, if it is meant for this process.
fn listen_fds() -> Result<u32> {
    let own_pid = std::process::id().to_string();
    match (std::env::var("LISTEN_FDS"), std::env::var("LISTEN_PID")) {
        (Ok(count), Ok(pid)) if pid == own_pid => {
            count.parse().map_err(|_| Error::new(format!("LISTEN_FDS={count}: not a number")))
        }
        _ => Ok(0),
    }
}
