//! `/process/scheduler`, `/process/ioPriority`, `/process/execCPUAffinity`: when the program gets a CPU and the disk,
//! and on which CPUs it runs.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#linux-process>,
//! [sched(7)](https://man7.org/linux/man-pages/man7/sched.7.html),
//! [ioprio_set(2)](https://man7.org/linux/man-pages/man2/ioprio_set.2.html)

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{At, Context, Error, Field, Result};
use crate::log;
use crate::spec::Node;
use crate::sys::schedule::{SchedAttr, ioprio_set, sched_setaffinity, sched_setattr};

/// How the program shares the CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduler {
    name: String,
    attr: SchedAttr,
    field: Field,
}

const POLICIES: [(&str, i32); 6] = [
    ("SCHED_OTHER", libc::SCHED_OTHER),
    ("SCHED_FIFO", libc::SCHED_FIFO),
    ("SCHED_RR", libc::SCHED_RR),
    ("SCHED_BATCH", libc::SCHED_BATCH),
    ("SCHED_IDLE", libc::SCHED_IDLE),
    ("SCHED_DEADLINE", libc::SCHED_DEADLINE),
];

/// The config has no values for the two of utilization clamping: their clamps are then 0, as in runc.
const FLAGS: [(&str, i32); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", libc::SCHED_FLAG_RESET_ON_FORK),
    ("SCHED_FLAG_RECLAIM", libc::SCHED_FLAG_RECLAIM),
    ("SCHED_FLAG_DL_OVERRUN", libc::SCHED_FLAG_DL_OVERRUN),
    ("SCHED_FLAG_KEEP_POLICY", libc::SCHED_FLAG_KEEP_POLICY),
    ("SCHED_FLAG_KEEP_PARAMS", libc::SCHED_FLAG_KEEP_PARAMS),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", libc::SCHED_FLAG_UTIL_CLAMP_MIN),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", libc::SCHED_FLAG_UTIL_CLAMP_MAX),
];

impl Scheduler {
    pub fn plan(process: &Node) -> Option<Self> {
        let node = process.object("scheduler")?;
        node.expect_keys(&["policy", "nice", "priority", "flags", "runtime", "deadline", "period"]);
        let name = node.required_string("policy")?;
        let Some(&(_, policy)) = POLICIES.iter().find(|(known, _)| *known == name) else {
            node.problem(
                "policy",
                match name {
                    "SCHED_ISO" => "SCHED_ISO is reserved, Linux has no such policy".to_owned(),
                    _ => format!("{name:?} is not a scheduling policy"),
                },
            );
            return None;
        };
        let attr = SchedAttr {
            policy: policy as u32,
            flags: plan_flags(&node, policy),
            nice: plan_nice(&node, policy),
            priority: plan_priority(&node, policy),
            ..plan_deadline(&node, policy)
        };
        Some(Self { name: name.to_owned(), attr, field: node.field().clone() })
    }

    /// Before capabilities are dropped: most of it needs CAP_SYS_NICE. After the CPU affinity is reset, since
    /// SCHED_DEADLINE wants all CPUs. A SCHED_DEADLINE process cannot fork without SCHED_FLAG_RESET_ON_FORK.
    pub fn apply(&self, pid: Pid) -> Result<()> {
        let Self { name, attr, field } = self;
        let deadline = attr.policy == libc::SCHED_DEADLINE as u32;
        let why = |errno| match errno {
            Errno::EOPNOTSUPP => "this kernel has no utilization clamping",
            Errno::EBUSY if deadline => "the CPUs have not as much time left",
            Errno::EINVAL if deadline => {
                "the period must be within sysctl kernel.sched_deadline_period_min_us and _max_us"
            }
            Errno::EPERM if deadline => "it needs CAP_SYS_NICE and a cpuset with all CPUs",
            Errno::EPERM => "it needs CAP_SYS_NICE, and real time in the cgroup (CONFIG_RT_GROUP_SCHED)",
            _ => "the kernel refuses it",
        };
        sched_setattr(pid, attr)
            .or_else(|errno| Err(errno).context(|| why(errno)))
            .context(|| format!("set scheduler {name}"))
            .at(field)
    }
}

fn plan_flags(node: &Node, policy: i32) -> u64 {
    let mut flags = 0;
    for (name, field) in node.strings("flags") {
        match FLAGS.iter().find(|(known, _)| *known == name) {
            Some(&(_, libc::SCHED_FLAG_RECLAIM | libc::SCHED_FLAG_DL_OVERRUN))
                if policy != libc::SCHED_DEADLINE =>
            {
                node.report().problem(field, format_args!("{name} goes with the policy SCHED_DEADLINE only"));
            }
            Some(&(_, flag)) => flags |= flag as u64,
            None => node.report().problem(field, format_args!("{name:?} is not a scheduling flag")),
        }
    }
    flags
}

fn plan_nice(node: &Node, policy: i32) -> i32 {
    let nice = node.i32("nice").unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        node.problem("nice", format_args!("must be from -20 to 19, not {nice}"));
    } else if nice != 0 && ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&policy) {
        node.problem("nice", "goes with the policies SCHED_OTHER and SCHED_BATCH only");
    }
    nice
}

fn plan_priority(node: &Node, policy: i32) -> u32 {
    let priority = node.i32("priority").unwrap_or(0);
    let real_time = [libc::SCHED_FIFO, libc::SCHED_RR].contains(&policy);
    if real_time && !(1..=99).contains(&priority) {
        node.problem(
            "priority",
            format_args!("must be from 1 to 99 for SCHED_FIFO and SCHED_RR, not {priority}"),
        );
    } else if !real_time && priority != 0 {
        node.problem("priority", "goes with the policies SCHED_FIFO and SCHED_RR only");
    }
    priority as u32
}

/// The three times, in nanoseconds, with what the kernel wants of them; the rest of the result is zero.
fn plan_deadline(node: &Node, policy: i32) -> SchedAttr {
    const SHORTEST: u64 = 1024;
    let time = |key| {
        let time = node.u64(key).unwrap_or(0);
        if policy != libc::SCHED_DEADLINE && time != 0 {
            node.problem(key, "goes with the policy SCHED_DEADLINE only");
        } else if time >= 1 << 63 {
            node.problem(key, format_args!("must be below 2^63 ns, not {time}"));
        }
        time
    };
    let (runtime, deadline, period) = (time("runtime"), time("deadline"), time("period"));
    if policy == libc::SCHED_DEADLINE {
        if runtime < SHORTEST {
            node.problem("runtime", format_args!("must be at least {SHORTEST} ns, not {runtime}"));
        }
        if deadline < runtime.max(SHORTEST) {
            node.problem(
                "deadline",
                format_args!("must not be shorter than the runtime, but is {deadline} ns"),
            );
        }
        // 0 is the deadline.
        if period != 0 && period < deadline {
            node.problem("period", format_args!("must not be shorter than the deadline, but is {period} ns"));
        }
    }
    SchedAttr { runtime, deadline, period, ..SchedAttr::default() }
}

/// How the program shares the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoPriority {
    class: u8,
    level: u8,
    field: Field,
}

const IO_CLASSES: [(&str, u8); 3] =
    [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

impl IoPriority {
    pub fn plan(process: &Node) -> Option<Self> {
        let node = process.object("ioPriority")?;
        node.expect_keys(&["class", "priority"]);
        let class = node.required_string("class").and_then(|name| {
            let class = IO_CLASSES.iter().find(|(known, _)| *known == name);
            if class.is_none() {
                node.problem("class", format_args!("{name:?} is not an I/O scheduling class"));
            }
            class.map(|(_, class)| *class)
        });
        if !node.has("priority") {
            node.problem("priority", "is required");
        }
        let level = node.i64("priority").and_then(|level| {
            if !(0..=7).contains(&level) {
                node.problem("priority", format_args!("must be from 0 to 7, not {level}"));
            }
            u8::try_from(level).ok()
        });
        Some(Self { class: class?, level: level?, field: node.field().clone() })
    }

    /// For init and all that it forks. Not for its process group, which may still be the caller's. Before
    /// capabilities are dropped: IOPRIO_CLASS_RT needs CAP_SYS_NICE.
    pub fn apply(&self, pid: Pid) -> Result<()> {
        let Self { class, level, ref field } = *self;
        let name = IO_CLASSES[usize::from(class) - 1].0;
        ioprio_set(pid, class, level).context(|| format!("set I/O priority {name} {level}")).at(field)
    }
}

/// The CPUs of a process that exec adds to a container. The container's first process has nothing of it, by the
/// spec; it has [`reset_affinity`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecAffinity {
    initial: Option<Vec<u64>>,
    last: Option<Vec<u64>>,
    field: Field,
}

impl ExecAffinity {
    pub fn plan(process: &Node) -> Self {
        let Some(node) = process.object("execCPUAffinity") else { return Self::default() };
        node.expect_keys(&["initial", "final"]);
        Self { initial: node.id_mask("initial"), last: node.id_mask("final"), field: node.field().clone() }
    }

    /// In exec's parent, before it clones into the container's cgroup: the clone inherits it.
    pub fn apply_initial(&self) -> Result<()> {
        self.set("initial", self.initial.as_deref())
    }

    /// In the cloned process, first of all. With `initial` alone the kernel decides, as the spec says; without
    /// either, nothing that the runtime inherited may stay.
    pub fn apply_final(&self) -> Result<()> {
        if self.initial.is_none() && self.last.is_none() {
            reset_affinity();
        }
        self.set("final", self.last.as_deref())
    }

    fn set(&self, key: &str, mask: Option<&[u64]>) -> Result<()> {
        let Some(mask) = mask else { return Ok(()) };
        match sched_setaffinity(mask) {
            Err(Errno::EINVAL) => {
                Err(Errno::EINVAL).context(|| "none of these CPUs is online and in the cgroup's cpuset")
            }
            result => result.map_err(Error::from),
        }
        .context(|| format!("set {key} CPU affinity"))
        .at(&self.field.child(key))
    }
}

/// Allows every CPU there is or will be; the kernel takes those of the cgroup's cpuset. Init's first act: it is born
/// in its cgroup with the affinity of the runtime's caller, which the kernel keeps over the change of cgroup (a
/// systemd unit with CPUAffinity would hold all its containers to its own CPUs).
pub fn reset_affinity() {
    const ALL: [u64; 1024] = [u64::MAX; 1024];
    if let Err(errno) = sched_setaffinity(&ALL) {
        log::warning(format_args!("reset CPU affinity, so the caller's stays: {errno}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    fn plan<T>(json: &str, plan: impl Fn(&Node) -> T) -> (T, Vec<String>) {
        let report = Report::default();
        let value = parse(json.as_bytes(), &report).unwrap();
        let planned = plan(&Node::root(&value, &report));
        (
            planned,
            report.finish().err().map_or(vec![], |e| e.problems().iter().map(|p| p.to_string()).collect()),
        )
    }

    #[test]
    fn a_scheduler_becomes_the_kernels_attributes() {
        let attr = SchedAttr::default();
        for (json, expected) in [
            (r#"{"policy": "SCHED_OTHER"}"#, SchedAttr { policy: 0, ..attr.clone() }),
            (r#"{"policy": "SCHED_BATCH", "nice": -20}"#, SchedAttr { policy: 3, nice: -20, ..attr.clone() }),
            (r#"{"policy": "SCHED_IDLE", "nice": 0}"#, SchedAttr { policy: 5, ..attr.clone() }),
            (
                r#"{"policy": "SCHED_FIFO", "priority": 99, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}"#,
                SchedAttr { policy: 1, priority: 99, flags: 1, ..attr.clone() },
            ),
            (
                r#"{"policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 2048,
                    "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"]}"#,
                SchedAttr { policy: 6, runtime: 1024, deadline: 2048, flags: 6, ..attr.clone() },
            ),
        ] {
            let (scheduler, problems) = plan(&format!(r#"{{"scheduler": {json}}}"#), Scheduler::plan);
            assert_eq!((scheduler.unwrap().attr, problems), (expected, vec![]), "{json}");
        }
    }

    #[test]
    fn what_does_not_go_with_the_policy_is_a_problem() {
        let deadline_only = "goes with the policy SCHED_DEADLINE only";
        for (json, expected) in [
            (r#"{}"#, vec!["policy: is required".to_owned()]),
            (r#"{"policy": ""}"#, vec!["policy: \"\" is not a scheduling policy".into()]),
            (
                r#"{"policy": "SCHED_ISO"}"#,
                vec!["policy: SCHED_ISO is reserved, Linux has no such policy".into()],
            ),
            (r#"{"policy": "SCHED_OTHER", "nice": 20}"#, vec!["nice: must be from -20 to 19, not 20".into()]),
            (
                r#"{"policy": "SCHED_RR", "nice": 1, "priority": 1}"#,
                vec!["nice: goes with the policies SCHED_OTHER and SCHED_BATCH only".into()],
            ),
            (
                r#"{"policy": "SCHED_FIFO"}"#,
                vec!["priority: must be from 1 to 99 for SCHED_FIFO and SCHED_RR, not 0".into()],
            ),
            (
                r#"{"policy": "SCHED_OTHER", "priority": 1, "runtime": 1, "flags": ["SCHED_FLAG_RECLAIM", "X"]}"#,
                vec![
                    format!("flags/0: SCHED_FLAG_RECLAIM {deadline_only}"),
                    "flags/1: \"X\" is not a scheduling flag".into(),
                    "priority: goes with the policies SCHED_FIFO and SCHED_RR only".into(),
                    format!("runtime: {deadline_only}"),
                ],
            ),
            (
                r#"{"policy": "SCHED_DEADLINE", "deadline": 2000, "period": 1999}"#,
                vec![
                    "runtime: must be at least 1024 ns, not 0".into(),
                    "period: must not be shorter than the deadline, but is 1999 ns".into(),
                ],
            ),
            (
                r#"{"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 2000, "period": 9223372036854775808}"#,
                vec!["period: must be below 2^63 ns, not 9223372036854775808".into()],
            ),
            (
                r#"{"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 1999}"#,
                vec!["deadline: must not be shorter than the runtime, but is 1999 ns".into()],
            ),
        ] {
            let found = plan(&format!(r#"{{"scheduler": {json}}}"#), Scheduler::plan).1;
            assert_eq!(found, expected.iter().map(|p| format!("/scheduler/{p}")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_io_priority_is_a_class_and_a_level() {
        for (json, expected, problems) in [
            (r#"{"class": "IOPRIO_CLASS_RT", "priority": 0}"#, Some((1, 0)), vec![]),
            (r#"{"class": "IOPRIO_CLASS_IDLE", "priority": 7}"#, Some((3, 7)), vec![]),
            (
                r#"{"class": "IOPRIO_CLASS_BE", "priority": 8}"#,
                Some((2, 8)),
                vec!["/ioPriority/priority: must be from 0 to 7, not 8"],
            ),
            (
                r#"{"class": "IOPRIO_CLASS_NONE"}"#,
                None,
                vec![
                    "/ioPriority/class: \"IOPRIO_CLASS_NONE\" is not an I/O scheduling class",
                    "/ioPriority/priority: is required",
                ],
            ),
        ] {
            let (planned, found) = plan(&format!(r#"{{"ioPriority": {json}}}"#), IoPriority::plan);
            assert_eq!(
                (planned.map(|p| (p.class, p.level)), found),
                (expected, problems.iter().map(|p| p.to_string()).collect())
            );
        }
    }

    #[test]
    fn exec_affinity_has_two_masks_each_of_which_may_be_missing() {
        let (affinity, problems) =
            plan(r#"{"execCPUAffinity": {"initial": "7", "final": "0-3,7"}}"#, ExecAffinity::plan);
        assert_eq!((affinity.initial, affinity.last, problems), (Some(vec![0x80]), Some(vec![0x8f]), vec![]));
        let (affinity, problems) =
            plan(r#"{"execCPUAffinity": {"initial": "", "final": "3-"}}"#, ExecAffinity::plan);
        assert_eq!((affinity.initial, affinity.last), (None, None));
        assert_eq!(
            problems,
            ["/execCPUAffinity/final: must be a list such as 0-3,7 with numbers up to 65535, not \"3-\""]
        );
    }
}
