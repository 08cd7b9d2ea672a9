//! `/linux/timeOffsets`: what the clocks of a new time namespace are ahead of the host's. They are set before the first
//! process is in it, so it is made in two steps: by unshare(2), which leaves its maker outside, and by the writes.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#timeOffsets>, `time_namespaces(7)`

use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::write;

use crate::error::{At, Context, Field, Result};
use crate::proc::Proc;
use crate::spec::Node;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Offsets(pub Vec<Offset>);

/// What a clock of the container is ahead of the host's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offset {
    pub clock: &'static str,
    pub secs: i64,
    pub nanosecs: u32,
    pub field: Field,
}

impl Offsets {
    /// For the two clocks that a time namespace has, in the order of the keys.
    pub fn plan(linux: &Node) -> Self {
        const CLOCKS: [&str; 2] = ["monotonic", "boottime"];
        let Some(offsets) = linux.object("timeOffsets") else { return Self::default() };
        let mut planned = Vec::new();
        for key in offsets.keys() {
            let Some(&clock) = CLOCKS.iter().find(|&&clock| clock == key) else {
                offsets.problem(key, "is not a clock of a time namespace: only monotonic and boottime are");
                continue;
            };
            let Some(offset) = offsets.object(key) else { continue };
            offset.expect_keys(&["secs", "nanosecs"]);
            let nanosecs = offset.u32("nanosecs").unwrap_or(0);
            if nanosecs >= 1_000_000_000 {
                offset.problem("nanosecs", format_args!("must be less than 1000000000, not {nanosecs}"));
            }
            let secs = offset.i64("secs").unwrap_or(0);
            planned.push(Offset { clock, secs, nanosecs, field: offset.field().clone() });
        }
        Self(planned)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The file of this process that they are written to.
    pub fn open(proc: &Proc) -> Result<OwnedFd> {
        proc.open("self/timens_offsets", libc::O_WRONLY)
    }

    /// Makes a time namespace for the children of this process, whose own clocks stay.
    pub fn make_namespace(&self, file: &OwnedFd) -> Result<()> {
        unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)).context(|| "unshare time namespace")?;
        for Offset { clock, secs, nanosecs, field } in &self.0 {
            let line = format!("{clock} {secs} {nanosecs}");
            let written = write(file, line.as_bytes()).map(drop);
            written.context(|| format!("write {line:?} to /proc/self/timens_offsets")).at(field)?;
        }
        Ok(())
    }
}
