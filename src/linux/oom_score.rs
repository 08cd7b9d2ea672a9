//! `/process/oomScoreAdj`: how soon the kernel kills the process when memory runs out. Unset leaves the caller's.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#linux-process>,
//! `proc_pid_oom_score_adj(5)`

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{At, Field, Result};
use crate::proc::Proc;
use crate::spec::Node;

#[derive(Debug, PartialEq, Eq)]
pub struct OomScoreAdj {
    /// -1000 (never killed) to 1000 (first).
    score: i32,
    field: Field,
}

impl OomScoreAdj {
    pub fn plan(process: &Node) -> Option<Self> {
        let score = process.i32("oomScoreAdj")?;
        if !(-1000..=1000).contains(&score) {
            process.problem("oomScoreAdj", format_args!("must be from -1000 to 1000, not {score}"));
        }
        Some(Self { score, field: process.at("oomScoreAdj") })
    }

    /// By create, through the host's proc.
    pub fn apply(&self, proc: &Proc, init: Pid) -> Result<()> {
        self.write(proc, &init.to_string())
    }

    /// Does `clone` while this process has the score, which the other inherits. For a user, who may not write to the
    /// files of a process that hides what it holds of the host.
    pub fn inherited<T>(&self, proc: &Proc, clone: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = proc.read("self/oom_score_adj")?;
        self.write(proc, "self")?;
        let cloned = clone();
        proc.write("self/oom_score_adj", own.trim_end())?;
        cloned
    }

    /// As with runc and crun, to be refused is an error.
    fn write(&self, proc: &Proc, process: &str) -> Result<()> {
        proc.write(&format!("{process}/oom_score_adj"), &self.score.to_string())
            .map_err(|error| match error.errno() {
                Some(Errno::EACCES) => {
                    error.because("less than the caller's own takes CAP_SYS_RESOURCE".into())
                }
                _ => error,
            })
            .at(&self.field)
    }
}
