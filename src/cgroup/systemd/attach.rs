//! A process that `exec` adds to a scope which it may not have born there.
//!
//! Whoever moves a process, or has it born elsewhere, has to be allowed to write to cgroup.procs of the first cgroup that
//! is above the old and the new one. A scope of a user's is below `user@UID.service`, which is the user's, but a session
//! (of login, ssh or su) is beside that, and what is above both is root's. The user's systemd has root's move it then.
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#delegation-containment>, `org.freedesktop.systemd1(5)`

use std::path::Path;

use nix::unistd::Pid;

use super::bus::{Bus, Instance};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};

/// Where in a scope a process is to be brought to.
pub struct Attach {
    unit: String,
    instance: Instance,
    /// Below the scope's own cgroup, which is `/`.
    below: String,
}

impl Attach {
    /// `cgroup`: that of the scope at `scope`, or one below it.
    pub fn new(unit: &str, instance: Instance, scope: &Path, cgroup: &Cgroup) -> Self {
        let below = cgroup.path().strip_prefix(scope).unwrap_or(Path::new(""));
        Self { unit: unit.into(), instance, below: format!("/{}", below.display()) }
    }

    /// Brings a process there, which waits for that.
    pub fn apply(&self, pid: Pid) -> Result<()> {
        let what = || format!("bring process {pid} to {} of the systemd unit {}", self.below, self.unit);
        let mut bus = Bus::connect(self.instance, None).context(what)?;
        let answer = bus.ask("AttachProcessesToUnit", "ssau", |body| {
            body.text(&self.unit);
            body.text(&self.below);
            body.u32s(&[pid.as_raw() as u32]);
        });
        answer.context(what)?.map(drop).map_err(Error::from).context(what)
    }
}
