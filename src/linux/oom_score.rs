//! `/process/oomScoreAdj`: how soon the kernel kills the program when memory runs out.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#linux-process>,
//! [proc_pid_oom_score_adj(5)](https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html)

use nix::errno::Errno;

use crate::error::{At, Context, Field, Result};
use crate::proc::Proc;
use crate::spec::Node;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OomScore {
    adjustment: i32,
    field: Field,
}

impl OomScore {
    /// None leaves what the caller has.
    pub fn plan(process: &Node) -> Option<Self> {
        let adjustment = process.i32("oomScoreAdj")?;
        if !(-1000..=1000).contains(&adjustment) {
            process.problem("oomScoreAdj", format_args!("must be from -1000 to 1000, not {adjustment}"));
        }
        Some(Self { adjustment, field: process.at("oomScoreAdj") })
    }

    /// For the caller itself, by a procfs of its own pid namespace. Before the user is set: the file is root's.
    pub fn apply(&self, proc: &Proc) -> Result<()> {
        let written = proc.write("self/oom_score_adj", &self.adjustment.to_string());
        match written.as_ref().err().and_then(|error| error.errno()) {
            Some(Errno::EACCES) => {
                written.context(|| "a lower score than it was given needs CAP_SYS_RESOURCE")
            }
            _ => written,
        }
        .at(&self.field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    #[test]
    fn an_unset_score_differs_from_zero() {
        for (json, adjustment, problems) in [
            ("{}", None, vec![]),
            (r#"{"oomScoreAdj": 0}"#, Some(0), vec![]),
            (r#"{"oomScoreAdj": -1000}"#, Some(-1000), vec![]),
            (
                r#"{"oomScoreAdj": 1001}"#,
                Some(1001),
                vec!["/oomScoreAdj: must be from -1000 to 1000, not 1001"],
            ),
        ] {
            let report = Report::default();
            let value = parse(json.as_bytes(), &report).unwrap();
            assert_eq!(
                OomScore::plan(&Node::root(&value, &report)).map(|score| score.adjustment),
                adjustment
            );
            let found = report
                .finish()
                .err()
                .map_or(vec![], |e| e.problems().iter().map(|p| p.to_string()).collect());
            assert_eq!(found, problems);
        }
    }
}
