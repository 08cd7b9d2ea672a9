//! `/linux/resources/memory`: memory.max, memory.low and memory.swap.max.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#memory>,
//! kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html#memory>

use super::limits::Limit;
use crate::spec::Node;

/// An amount as the config has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amount {
    /// Absent, or 0, which callers write for "not set".
    Unset,
    /// -1
    Unlimited,
    Bytes(u64),
}

impl Amount {
    fn read(memory: &Node, key: &str) -> Self {
        match memory.i64(key) {
            None | Some(0) => Self::Unset,
            Some(-1) => Self::Unlimited,
            Some(bytes) => bytes.try_into().map(Self::Bytes).unwrap_or_else(|_| {
                memory.problem(key, format_args!("must be -1 or a number of bytes, not {bytes}"));
                Self::Unset
            }),
        }
    }

    fn value(self) -> Option<String> {
        match self {
            Self::Unset => None,
            Self::Unlimited => Some("max".into()),
            Self::Bytes(bytes) => Some(bytes.to_string()),
        }
    }
}

pub fn plan(resources: &Node, limits: &mut Vec<Limit>) {
    let Some(memory) = resources.object("memory") else { return };
    memory.expect_keys(&[
        "limit",
        "reservation",
        "swap",
        "kernel",
        "kernelTCP",
        "swappiness",
        "disableOOMKiller",
        "useHierarchy",
        "checkBeforeUpdate",
    ]);
    refuse_v1(&memory);
    let limit = Amount::read(&memory, "limit");
    let swap = plan_swap(&memory, limit);
    if let Some(value) = swap.value() {
        // Without swap the kernel has no such file, and what these two ask for holds anyway.
        let may_lack = value == "max" || value == "0";
        limits.push(Limit { may_lack, ..Limit::new("memory.swap.max", value, memory.at("swap")) });
    }
    limits.extend(limit.value().map(|value| Limit::new("memory.max", value, memory.at("limit"))));
    let reservation = Amount::read(&memory, "reservation").value();
    limits.extend(reservation.map(|value| Limit::new("memory.low", value, memory.at("reservation"))));
}

/// The config limits memory and swap together, cgroup v2 swap alone.
fn plan_swap(memory: &Node, limit: Amount) -> Amount {
    match (Amount::read(memory, "swap"), limit) {
        // As cgroup v1 had it: unlimited memory alone means unlimited swap too.
        (Amount::Unset, Amount::Unlimited) => Amount::Unlimited,
        (Amount::Bytes(_), Amount::Unset) => {
            memory.problem("swap", "is memory and swap together, and needs a limit of memory beside it");
            Amount::Unset
        }
        (Amount::Bytes(both), Amount::Bytes(limit)) => match both.checked_sub(limit) {
            Some(swap) => Amount::Bytes(swap),
            None => {
                let reason =
                    format_args!("is memory and swap together: {both} is less than the limit {limit}");
                memory.problem("swap", reason);
                Amount::Unset
            }
        },
        (swap, _) => swap,
    }
}

/// What cgroup v2 cannot do; values that ask for what it does anyway are fine, since callers write them.
fn refuse_v1(memory: &Node) {
    for key in ["kernel", "kernelTCP"] {
        if !matches!(Amount::read(memory, key), Amount::Unset | Amount::Unlimited) {
            memory.problem(key, "cgroup v2 has no limit for it alone: it counts as memory");
        }
    }
    if memory.u64("swappiness").is_some() {
        memory.problem("swappiness", "cgroup v2 has no swappiness");
    }
    if memory.boolean("disableOOMKiller") {
        memory.problem("disableOOMKiller", "cgroup v2 cannot disable it");
    }
    if memory.has("useHierarchy") && !memory.boolean("useHierarchy") {
        memory.problem("useHierarchy", "cgroup v2 is always hierarchical");
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::planned_limits;
    use super::*;

    fn memory(section: &str) -> Vec<String> {
        planned_limits(&format!(r#"{{"memory": {section}}}"#), plan)
    }

    #[test]
    fn swap_is_the_difference() {
        assert_eq!(memory(r#"{"limit": 100, "swap": 150}"#), ["memory.swap.max=50", "memory.max=100"]);
        assert_eq!(memory(r#"{"limit": 100, "swap": 100}"#), ["memory.swap.max=0", "memory.max=100"]);
        assert_eq!(memory(r#"{"limit": -1, "swap": 150}"#), ["memory.swap.max=150", "memory.max=max"]);
        assert_eq!(memory(r#"{"limit": -1}"#), ["memory.swap.max=max", "memory.max=max"]);
        assert_eq!(memory(r#"{"limit": 100, "swap": -1}"#), ["memory.swap.max=max", "memory.max=100"]);
    }

    #[test]
    fn zero_is_not_set() {
        assert_eq!(memory(r#"{"limit": 0, "swap": 0, "reservation": 0, "kernel": 0}"#), [""; 0]);
        assert_eq!(memory(r#"{"reservation": 7}"#), ["memory.low=7"]);
    }

    #[test]
    fn what_cannot_be_is_a_problem() {
        let swap = "/memory/swap: is memory and swap together";
        assert_eq!(memory(r#"{"swap": 5}"#), [format!("{swap}, and needs a limit of memory beside it")]);
        assert_eq!(memory(r#"{"limit": 9, "swap": 5}"#), [format!("{swap}: 5 is less than the limit 9")]);
        assert_eq!(memory(r#"{"limit": -2}"#), ["/memory/limit: must be -1 or a number of bytes, not -2"]);
        assert_eq!(memory(r#"{"swappiness": 0}"#), ["/memory/swappiness: cgroup v2 has no swappiness"]);
        assert_eq!(
            memory(r#"{"disableOOMKiller": true, "useHierarchy": false, "kernel": 1}"#),
            [
                "/memory/kernel: cgroup v2 has no limit for it alone: it counts as memory",
                "/memory/disableOOMKiller: cgroup v2 cannot disable it",
                "/memory/useHierarchy: cgroup v2 is always hierarchical",
            ]
        );
    }

    #[test]
    fn what_holds_anyway_is_fine() {
        assert_eq!(memory(r#"{"disableOOMKiller": false, "useHierarchy": true, "kernelTCP": -1}"#), [""; 0]);
    }
}
