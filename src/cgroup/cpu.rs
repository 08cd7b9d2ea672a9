//! `/linux/resources/cpu`: cpu.weight, cpu.max, cpu.max.burst, cpu.idle, and cpuset.cpus and cpuset.mems.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#cpu>,
//! kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu>

use super::limits::Limit;
use crate::spec::Node;

pub fn plan(resources: &Node, limits: &mut Vec<Limit>) {
    let Some(cpu) = resources.object("cpu") else { return };
    cpu.expect_keys(&[
        "shares",
        "quota",
        "burst",
        "period",
        "realtimeRuntime",
        "realtimePeriod",
        "cpus",
        "mems",
        "idle",
    ]);
    for key in ["realtimeRuntime", "realtimePeriod"] {
        if cpu.i64(key).is_some_and(|us| us != 0) {
            cpu.problem(key, "cgroup v2 has no realtime limits");
        }
    }
    let idle = cpu.i64("idle");
    if let Some(idle) = idle {
        if !(0..=1).contains(&idle) {
            cpu.problem("idle", format_args!("must be 0 or 1, not {idle}"));
        }
        limits.push(Limit::new("cpu.idle", idle, cpu.at("idle")));
    }
    // After idle 0: an idle cgroup takes no weight. With idle 1 the kernel gives it the least there is.
    if let Some(shares) = cpu.u64("shares").filter(|&shares| shares != 0 && idle != Some(1)) {
        limits.push(Limit::new("cpu.weight", weight(shares), cpu.at("shares")));
    }
    plan_max(&cpu, limits);
    for key in ["cpus", "mems"] {
        if let Some(list) = cpu.string(key).filter(|list| !list.is_empty()) {
            cpu.id_mask(key);
            limits.push(Limit::new(format!("cpuset.{key}"), list, cpu.at(key)));
        }
    }
}

/// The kernel's bounds.
const LEAST_US: u64 = 1000;
const LONGEST_PERIOD_US: u64 = 1_000_000;

fn plan_max(cpu: &Node, limits: &mut Vec<Limit>) {
    let quota_us = cpu.i64("quota").filter(|&quota| quota != 0);
    let period_us = cpu.u64("period").filter(|&period| period != 0);
    let burst_us = cpu.u64("burst");
    // The kernel takes both in one write, and its refusal would not say which of them it means.
    if let Some(quota) = quota_us.filter(|&quota| quota < LEAST_US as i64 && quota != -1) {
        cpu.problem("quota", format_args!("must be -1 or at least {LEAST_US} microseconds, not {quota}"));
    }
    if let Some(period) = period_us.filter(|period| !(LEAST_US..=LONGEST_PERIOD_US).contains(period)) {
        let range = format_args!("{LEAST_US} to {LONGEST_PERIOD_US} microseconds");
        cpu.problem("period", format_args!("must be from {range}, not {period}"));
    }
    if burst_us.is_some() && quota_us.is_some() {
        // A quota below the burst that an update replaces would be refused.
        limits.push(Limit::new("cpu.max.burst", 0, cpu.at("burst")));
    }
    if quota_us.is_some() || period_us.is_some() {
        let quota = quota_us.filter(|&quota| quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
        let field = if quota_us.is_some() { "quota" } else { "period" };
        // A quota alone leaves the period as it is: 100 ms in a new cgroup.
        let period = period_us.map_or(String::new(), |period| format!(" {period}"));
        limits.push(Limit::new("cpu.max", quota + &period, cpu.at(field)));
    }
    if let Some(burst) = burst_us {
        if let Some(quota) = quota_us.filter(|&quota| quota > 0 && burst > quota.unsigned_abs()) {
            cpu.problem("burst", format_args!("must not be above the quota: {burst} is more than {quota}"));
        }
        // After the quota, which bounds it.
        limits.push(Limit::new("cpu.max.burst", burst, cpu.at("burst")));
    }
}

/// Shares (2 to 262,144, default 1,024) as a weight (1 to 10,000, default 100): the quadratic formula through these
/// three points that runc and crun took to when the linear one had turned 1,024 into 39.
fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::planned_limits;
    use super::*;

    fn cpu(section: &str) -> Vec<String> {
        planned_limits(&format!(r#"{{"cpu": {section}}}"#), plan)
    }

    #[test]
    fn shares_become_a_weight() {
        for (shares, expected) in [
            (1, 1),
            (2, 1),
            (3, 2),
            (256, 35),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (262_144, 10_000),
            (1 << 40, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert_eq!(cpu(r#"{"shares": 1024}"#), ["cpu.weight=100"]);
        assert_eq!(cpu(r#"{"shares": 0, "quota": 0, "period": 0}"#), [""; 0]);
    }

    #[test]
    fn quota_and_period_go_together() {
        assert_eq!(cpu(r#"{"quota": 50000}"#), ["cpu.max=50000"]);
        assert_eq!(cpu(r#"{"period": 5000}"#), ["cpu.max=max 5000"]);
        assert_eq!(cpu(r#"{"quota": -1, "period": 5000}"#), ["cpu.max=max 5000"]);
        assert_eq!(
            cpu(r#"{"quota": 70000, "burst": 60000}"#),
            ["cpu.max.burst=0", "cpu.max=70000", "cpu.max.burst=60000"]
        );
        assert_eq!(cpu(r#"{"burst": 60000}"#), ["cpu.max.burst=60000"]);
    }

    #[test]
    fn sets_are_written_as_they_are() {
        assert_eq!(cpu(r#"{"cpus": "0-1,3", "mems": "0"}"#), ["cpuset.cpus=0-1,3", "cpuset.mems=0"]);
    }

    #[test]
    fn only_what_is_not_idle_takes_a_weight() {
        assert_eq!(cpu(r#"{"idle": 1, "shares": 1024}"#), ["cpu.idle=1"]);
        assert_eq!(cpu(r#"{"idle": 0, "shares": 1024}"#), ["cpu.idle=0", "cpu.weight=100"]);
    }

    #[test]
    fn what_cannot_be_is_a_problem() {
        assert_eq!(
            cpu(r#"{"realtimeRuntime": 1, "quota": -5, "idle": 2, "cpus": "a"}"#),
            [
                "/cpu/realtimeRuntime: cgroup v2 has no realtime limits",
                "/cpu/idle: must be 0 or 1, not 2",
                "/cpu/quota: must be -1 or at least 1000 microseconds, not -5",
                "/cpu/cpus: must be a list such as 0-3,7 with numbers up to 65535, not \"a\"",
            ]
        );
        for (period, possible) in
            [(0, true), (999, false), (1000, true), (1_000_000, true), (1_000_001, false)]
        {
            let planned = cpu(&format!(r#"{{"period": {period}, "quota": 1000}}"#));
            let expected = format!("/cpu/period: must be from 1000 to 1000000 microseconds, not {period}");
            assert_eq!(planned != [expected], possible, "{planned:?}");
        }
        assert_eq!(
            cpu(r#"{"quota": 5000, "burst": 6000}"#),
            ["/cpu/burst: must not be above the quota: 6000 is more than 5000"]
        );
    }
}
