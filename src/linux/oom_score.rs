//! `/process/oomScoreAdj`: how soon the kernel kills the process when memory runs out. Unset leaves the caller's.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#linux-process>,
//! `proc_pid_oom_score_adj(5)`

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

    /// By create, through the host's proc. A value below the caller's own needs CAP_SYS_RESOURCE.
    pub fn apply(&self, proc: &Proc, init: Pid) -> Result<()> {
        proc.write(&format!("{init}/oom_score_adj"), &self.score.to_string()).at(&self.field)
    }
}
