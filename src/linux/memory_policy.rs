//! `/linux/memoryPolicy`: from which NUMA nodes the container gets its memory. Init sets it for itself; forks and
//! execve keep it.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#memory-policy>,
//! [set_mempolicy(2)](https://man7.org/linux/man-pages/man2/set_mempolicy.2.html)

use nix::errno::Errno;

use crate::error::{At, Context, Error, Field, Result};
use crate::spec::Node;
use crate::sys::schedule::set_mempolicy;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// An MPOL_* mode with its MPOL_F_* flags.
    mode: i32,
    /// A bit for each node; empty is none.
    nodes: Vec<u64>,
    name: String,
    field: Field,
}

const MPOL_PREFERRED_MANY: i32 = 5;
const MPOL_WEIGHTED_INTERLEAVE: i32 = 6;

pub const MODES: [(&str, i32); 7] = [
    ("MPOL_DEFAULT", libc::MPOL_DEFAULT),
    ("MPOL_PREFERRED", libc::MPOL_PREFERRED),
    ("MPOL_BIND", libc::MPOL_BIND),
    ("MPOL_INTERLEAVE", libc::MPOL_INTERLEAVE),
    ("MPOL_LOCAL", libc::MPOL_LOCAL),
    ("MPOL_PREFERRED_MANY", MPOL_PREFERRED_MANY),
    ("MPOL_WEIGHTED_INTERLEAVE", MPOL_WEIGHTED_INTERLEAVE),
];

pub const FLAGS: [(&str, i32); 3] = [
    ("MPOL_F_NUMA_BALANCING", libc::MPOL_F_NUMA_BALANCING),
    ("MPOL_F_RELATIVE_NODES", libc::MPOL_F_RELATIVE_NODES),
    ("MPOL_F_STATIC_NODES", libc::MPOL_F_STATIC_NODES),
];

/// Both say how `nodes` follow the cpuset when it changes.
const NODE_FLAGS: i32 = libc::MPOL_F_RELATIVE_NODES | libc::MPOL_F_STATIC_NODES;

impl MemoryPolicy {
    pub fn plan(linux: &Node) -> Option<Self> {
        let node = linux.object("memoryPolicy")?;
        node.expect_keys(&["mode", "nodes", "flags"]);
        let name = node.required_string("mode")?;
        let Some(&(_, mode)) = MODES.iter().find(|(known, _)| *known == name) else {
            node.problem("mode", format_args!("{name:?} is not a memory policy"));
            return None;
        };
        let nodes = node.id_mask("nodes");
        match mode {
            libc::MPOL_DEFAULT | libc::MPOL_LOCAL if nodes.is_some() => {
                node.problem("nodes", format_args!("{name} has no nodes"));
            }
            libc::MPOL_DEFAULT | libc::MPOL_LOCAL | libc::MPOL_PREFERRED => {}
            // A list that cannot be read has been reported.
            _ if node.value("nodes").is_none_or(|list| list == "") => {
                node.problem("nodes", format_args!("{name} needs at least one node"));
            }
            _ => {}
        }
        let flags = plan_flags(&node, mode, nodes.is_some());
        Some(Self {
            mode: mode | flags,
            nodes: nodes.unwrap_or_default(),
            name: name.to_owned(),
            field: node.field().clone(),
        })
    }

    /// In the container's cgroup, whose cpuset.mems bounds the nodes.
    pub fn apply(&self) -> Result<()> {
        match set_mempolicy(self.mode, &self.nodes) {
            Err(Errno::ENOSYS) => Err(Errno::ENOSYS).context(|| "this kernel has no NUMA support"),
            Err(Errno::EINVAL) => Err(Errno::EINVAL).context(
                || "the kernel lacks this mode or flag, or no such node has memory that the cpuset allows",
            ),
            result => result.map_err(Error::from),
        }
        .context(|| format!("set memory policy {}", self.name))
        .at(&self.field)
    }
}

fn plan_flags(node: &Node, mode: i32, has_nodes: bool) -> i32 {
    let mut flags = 0;
    for (name, field) in node.strings("flags") {
        match FLAGS.iter().find(|(known, _)| *known == name) {
            None => node.report().problem(field, format_args!("{name:?} is not a flag of memory policies")),
            Some(&(_, libc::MPOL_F_NUMA_BALANCING))
                if ![libc::MPOL_BIND, MPOL_PREFERRED_MANY].contains(&mode) =>
            {
                node.report()
                    .problem(field, format_args!("{name} goes with MPOL_BIND and MPOL_PREFERRED_MANY only"));
            }
            Some(&(_, flag)) if flag & NODE_FLAGS != 0 && !has_nodes => {
                node.report().problem(field, format_args!("{name} needs nodes"));
            }
            Some(&(_, flag)) => flags |= flag,
        }
    }
    if flags & NODE_FLAGS == NODE_FLAGS {
        node.problem("flags", "MPOL_F_RELATIVE_NODES and MPOL_F_STATIC_NODES exclude each other");
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    fn plan(json: &str) -> (Option<MemoryPolicy>, Vec<String>) {
        let report = Report::default();
        let value = parse(format!(r#"{{"memoryPolicy": {json}}}"#).as_bytes(), &report).unwrap();
        let policy = MemoryPolicy::plan(&Node::root(&value, &report));
        (
            policy,
            report.finish().err().map_or(vec![], |e| e.problems().iter().map(|p| p.to_string()).collect()),
        )
    }

    #[test]
    fn a_policy_is_a_mode_with_flags_and_a_mask() {
        for (json, mode, nodes) in [
            (r#"{"mode": "MPOL_DEFAULT"}"#, 0, vec![]),
            (r#"{"mode": "MPOL_LOCAL", "nodes": ""}"#, 4, vec![]),
            (r#"{"mode": "MPOL_PREFERRED"}"#, 1, vec![]),
            (
                r#"{"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}"#,
                2 | 1 << 13,
                vec![1],
            ),
            (
                r#"{"mode": "MPOL_INTERLEAVE", "nodes": "2-3", "flags": ["MPOL_F_STATIC_NODES"]}"#,
                3 | 1 << 15,
                vec![0xc],
            ),
            (r#"{"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "64"}"#, 6, vec![0, 1]),
        ] {
            let (policy, problems) = plan(json);
            let policy = policy.unwrap();
            assert_eq!((policy.mode, policy.nodes, problems), (mode, nodes, vec![]), "{json}");
        }
    }

    #[test]
    fn what_the_mode_excludes_is_a_problem() {
        for (json, expected) in [
            (r#"{}"#, vec!["mode: is required"]),
            (r#"{"mode": "MPOL_X"}"#, vec!["mode: \"MPOL_X\" is not a memory policy"]),
            (r#"{"mode": "MPOL_DEFAULT", "nodes": "0"}"#, vec!["nodes: MPOL_DEFAULT has no nodes"]),
            (r#"{"mode": "MPOL_BIND"}"#, vec!["nodes: MPOL_BIND needs at least one node"]),
            (
                r#"{"mode": "MPOL_BIND", "nodes": "x"}"#,
                vec!["nodes: must be a list such as 0-3,7 with numbers up to 65535, not \"x\""],
            ),
            (
                r#"{"mode": "MPOL_LOCAL", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_NUMA_BALANCING", "X"]}"#,
                vec![
                    "flags/0: MPOL_F_STATIC_NODES needs nodes",
                    "flags/1: MPOL_F_NUMA_BALANCING goes with MPOL_BIND and MPOL_PREFERRED_MANY only",
                    "flags/2: \"X\" is not a flag of memory policies",
                ],
            ),
            (
                r#"{"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}"#,
                vec!["flags: MPOL_F_RELATIVE_NODES and MPOL_F_STATIC_NODES exclude each other"],
            ),
        ] {
            let expected: Vec<_> = expected.iter().map(|p| format!("/memoryPolicy/{p}")).collect();
            assert_eq!(plan(json).1, expected, "{json}");
        }
    }
}
