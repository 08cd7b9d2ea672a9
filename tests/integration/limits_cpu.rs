//! /linux/resources/cpu on a host whose cgroups have the controllers: what is written, and that it holds.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, cgroupfs, controller, eventually, keel};
use crate::{needs, tests};

tests![
    shares_are_a_weight,
    quota_and_period_are_the_maximum,
    a_quota_throttles,
    saved_up_time_is_burst,
    an_idle_container_has_the_least_weight,
    a_container_can_become_idle_and_busy_again,
    a_quota_and_burst_replace_greater_and_smaller_ones,
    the_program_runs_on_its_cpus_and_nodes,
    all_its_cpus_although_the_caller_has_one,
    two_share_a_cpu_by_their_weights,
    what_cannot_be_names_its_field,
];

fn cpu(section: Value) -> Sandbox {
    Sandbox::with_resources(json!({"cpu": section}))
}

fn shares_are_a_weight() {
    needs!(keel(), controller("cpu"));
    let mut c = cpu(json!({"shares": 1024}));
    c.running();
    assert_eq!(c.limit("cpu.weight"), "100");
    for (shares, weight) in
        [(1, "1"), (2, "1"), (3, "2"), (512, "59"), (2048, "174"), (0, "174"), (262_144, "10000")]
    {
        c.update(&json!({"cpu": {"shares": shares}})).ok();
        assert_eq!(c.limit("cpu.weight"), weight, "{shares}");
    }
}

fn quota_and_period_are_the_maximum() {
    needs!(controller("cpu"));
    for (section, max, burst) in [
        (json!({"quota": 50000}), "50000 100000", "0"),
        (json!({"period": 50000}), "max 50000", "0"),
        (json!({"quota": 25000, "period": 50000}), "25000 50000", "0"),
        (json!({"quota": -1}), "max 100000", "0"),
        (json!({"quota": -1, "period": 50000}), "max 50000", "0"),
        (json!({"quota": 0, "period": 0}), "max 100000", "0"),
        (json!({"quota": 50000, "burst": 20000}), "50000 100000", "20000"),
    ] {
        let c = cpu(section.clone());
        c.created();
        assert_eq!([c.limit("cpu.max"), c.limit("cpu.max.burst")], [max, burst], "{section}");
    }
}

fn a_quota_throttles() {
    needs!(cgroupfs(), controller("cpu"));
    let burnt = |section| {
        let mut c = cpu(section);
        c.acts("burn 1000").created().start().ok();
        c.wait_stopped();
        c
    };
    assert_eq!(burnt(json!({"quota": -1})).count("cpu.stat", "nr_throttled"), 0);
    // A tenth of a CPU.
    let c = burnt(json!({"quota": 10000, "period": 100_000}));
    let throttled = c.count("cpu.stat", "nr_throttled");
    assert!(throttled >= 5, "{throttled}");
}

/// What it did not use of a period it may use in a later one.
fn saved_up_time_is_burst() {
    needs!(cgroupfs(), controller("cpu"));
    let mut c = cpu(json!({"quota": 50000, "period": 100_000, "burst": 50000}));
    c.acts("await USR1 ; burn 400").created().start().ok();
    c.wait_printed("waiting");
    c.kill("USR1").ok();
    c.wait_stopped();
    assert!(c.count("cpu.stat", "nr_bursts") > 0, "{}", c.limit("cpu.stat"));
}

/// Linux says 0 of an idle cgroup before 6.12, and 1 since.
const LEAST: u64 = 1;

fn idle_and_weight(c: &Sandbox) -> [u64; 2] {
    let weight: u64 = c.limit("cpu.weight").parse().unwrap();
    [c.limit("cpu.idle").parse().unwrap(), weight.max(LEAST)]
}

fn an_idle_container_has_the_least_weight() {
    needs!(controller("cpu"));
    let c = cpu(json!({"idle": 1, "shares": 1024}));
    c.created();
    assert_eq!(idle_and_weight(&c), [1, LEAST]);
}

fn a_container_can_become_idle_and_busy_again() {
    needs!(keel(), controller("cpu"));
    let mut c = cpu(json!({"shares": 512}));
    c.running();
    for (section, idle, weight) in [
        (json!({"idle": 1}), 1, LEAST),
        (json!({"idle": 1, "shares": 512}), 1, LEAST),
        (json!({"idle": 0, "shares": 512}), 0, 59),
        (json!({"idle": 1}), 1, LEAST),
        (json!({"idle": 0}), 0, 100),
        (json!({"shares": 512}), 0, 59),
    ] {
        c.update(&json!({"cpu": section})).ok();
        assert_eq!(idle_and_weight(&c), [idle, weight], "{section}");
    }
    // An update that fails after it gives the weight back, which the kernel has forgotten.
    let error = c.update(&json!({"cpu": {"idle": 1}, "unified": {"cgroup.max.depth": "x"}})).fails();
    assert!(error.contains("/unified/cgroup.max.depth"), "{error}");
    assert_eq!(idle_and_weight(&c), [0, 59]);
}

fn a_quota_and_burst_replace_greater_and_smaller_ones() {
    needs!(keel(), controller("cpu"));
    let mut c = cpu(json!({"quota": 50000, "burst": 40000}));
    c.running();
    for (quota, burst) in [(10000, 5000), (90000, 80000), (50000, 0)] {
        c.update(&json!({"cpu": {"quota": quota, "burst": burst}})).ok();
        assert_eq!(c.limit("cpu.max"), format!("{quota} 100000"));
        assert_eq!(c.limit("cpu.max.burst"), burst.to_string());
    }
    // The other half stays as it is.
    c.update(&json!({"cpu": {"period": 200_000}})).ok();
    assert_eq!(c.limit("cpu.max"), "50000 200000");
    c.update(&json!({"cpu": {"quota": 60000}})).ok();
    assert_eq!(c.limit("cpu.max"), "60000 200000");
}

fn the_program_runs_on_its_cpus_and_nodes() {
    needs!(controller("cpuset"));
    let mut c = cpu(json!({"cpus": "1", "mems": "0"}));
    let report = c.report();
    assert_eq!([&report["cpus"], &report["memoryNodes"]], ["1", "0"]);
    c.created();
    assert_eq!([c.limit("cpuset.cpus"), c.limit("cpuset.mems")], ["1", "0"]);
}

fn all_its_cpus_although_the_caller_has_one() {
    needs!(controller("cpuset"));
    let mut c = cpu(json!({"cpus": "0-1"}));
    c.acts("report").write_config();
    let report = c.behind(&["taskset", "-c", "0"], &["run", &c.id]).ok().json();
    assert_eq!(report["cpus"], "0-1");
}

fn two_share_a_cpu_by_their_weights() {
    needs!(controller("cpu"), controller("cpuset"));
    // Weights 35 and 174: one to five.
    let both = [256, 2048].map(|shares| {
        let mut c = cpu(json!({"shares": shares, "cpus": "0"}));
        c.acts("burn 60000").created().start().ok();
        c
    });
    let used = || both.each_ref().map(|c| c.count("cpu.stat", "usage_usec"));
    let before = used();
    let since = || [0, 1].map(|n| used()[n] - before[n]);
    eventually("they have had two seconds of CPU time", || since().iter().sum::<u64>() > 2_000_000);
    let [less, more] = since();
    let ratio = more as f64 / less as f64;
    assert!((3.0..8.0).contains(&ratio), "{less} us and {more} us");
}

fn what_cannot_be_names_its_field() {
    needs!(keel());
    for (needed, section, field) in [
        ("cpu", json!({"quota": 1}), "quota"),
        ("cpu", json!({"quota": i64::MAX}), "quota"),
        ("cpu", json!({"period": 1}), "period"),
        ("cpu", json!({"quota": 5000, "period": 2_000_000}), "period"),
        ("cpu", json!({"quota": 5000, "burst": 6000}), "burst"),
        ("cpu", json!({"idle": 2}), "idle"),
        ("cpuset", json!({"cpus": "9999"}), "cpus"),
        ("cpuset", json!({"mems": "1023"}), "mems"),
    ] {
        needs!(controller(needed));
        cpu(section).refused(&format!("/linux/resources/cpu/{field}"));
    }
}
