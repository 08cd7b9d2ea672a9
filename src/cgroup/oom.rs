//! Whether the out-of-memory killer was at work in a container's cgroup, for the error of a container that dies while
//! it is set up: all that its parent sees is a SIGKILL.
//!
//! Kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files> (memory.events)

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Cgroup, Plan};
use crate::error::{Error, Field, Result};

/// What was so before the container's first process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// What limits its memory, if the config does.
    pub field: Option<Field>,
    before: Events,
    /// The same of the cgroup above a scope, for when systemd has removed that with its last process.
    #[serde(default)]
    above: Option<Events>,
}

/// What has happened in a cgroup and below it, which may be older than the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Events {
    /// Processes that the killer has taken there, whoever was out of memory.
    oom_kill: u64,
    /// How often it was the cgroup itself that was out of memory.
    oom: u64,
}

impl Watch {
    pub fn new(plan: &Plan, cgroup: &Cgroup) -> Result<Self> {
        let limit = plan.limits.iter().rfind(|limit| limit.file() == "memory.max" && !limit.is_none());
        let before = if cgroup.is_new() { None } else { Events::read(cgroup)? }.unwrap_or_default();
        let above = cgroup.path().parent().filter(|_| limit.is_some() && plan.scope().is_some());
        let above = above.map_or(Ok(None), Events::read_at)?;
        Ok(Self { field: limit.map(|limit| limit.field.clone()), before, above })
    }

    /// The error that says so, if the killer has taken a process of the cgroup or below since.
    pub fn killed(&self, cgroup: &Cgroup) -> Result<Option<Error>> {
        let Some(now) = Events::read(cgroup)? else { return Ok(self.perhaps_killed()) };
        if now.oom_kill <= self.before.oom_kill {
            return Ok(None);
        }
        let what = "the container's first process was killed by the out-of-memory killer";
        Ok(Some(match &self.field {
            Some(field) if now.oom > self.before.oom => {
                let max = cgroup.value("memory.max")?.unwrap_or_default();
                Error::new(format!("{what}: memory.max is {max}")).field(field)
            }
            _ => Error::new(format!("{what}: the host, or a cgroup above its own, is out of memory")),
        }))
    }

    /// The same for whoever does not know that the first process was killed: the cgroup at `path` may be gone because
    /// all has gone well.
    pub fn killed_at(&self, path: &Path) -> Result<Option<Error>> {
        if let Some(cgroup) = Cgroup::open(path)?
            && Events::read(&cgroup)?.is_some()
        {
            return self.killed(&cgroup);
        }
        let (Some(before), Some(slice)) = (self.above, path.parent()) else { return Ok(None) };
        // Each counts what happens below it too.
        let kills = Events::read_at(slice)?.unwrap_or_default().oom_kill;
        Ok(if kills > before.oom_kill { self.perhaps_killed() } else { None })
    }

    /// systemd removes a cgroup with its last process, and nobody can tell then what it was killed for.
    fn perhaps_killed(&self) -> Option<Error> {
        let what = "the container's first process was killed, perhaps by the out-of-memory killer";
        self.field.as_ref().map(|field| Error::new(format!("{what}: is memory.max too small?")).field(field))
    }
}

impl Events {
    fn read_at(path: &Path) -> Result<Option<Self>> {
        Cgroup::open(path)?.map_or(Ok(None), |cgroup| Self::read(&cgroup))
    }

    /// Without the memory controller there is no such file, and nobody counts.
    fn read(cgroup: &Cgroup) -> Result<Option<Self>> {
        Ok(cgroup.value("memory.events")?.map(|events| Self::parse(&events)))
    }

    fn parse(events: &str) -> Self {
        let count = |name: &str| {
            let line =
                events.lines().filter_map(|line| line.split_once(' ')).find(|(known, _)| *known == name);
            line.and_then(|(_, count)| count.parse().ok()).unwrap_or(0)
        };
        Self { oom_kill: count("oom_kill"), oom: count("oom") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_and_not_mistaken_for_other_events() {
        let events = "low 0\nhigh 1\nmax 20\noom 3\noom_kill 2\noom_group_kill 5";
        assert_eq!(Events::parse(events), Events { oom_kill: 2, oom: 3 });
        assert_eq!(Events::parse("oom_group_kill 1"), Events::default());
    }
}
