//! /process/scheduler, /process/ioPriority and /process/oomScoreAdj.

use std::fs;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keel, program};
use crate::{needs, tests};

tests![
    a_nice_value_is_the_configured_one,
    batch_and_idle_policies_are_set,
    real_time_policies_take_their_priority,
    the_deadline_policy_takes_its_times,
    reset_on_fork_is_a_flag,
    without_a_scheduler_the_callers_is_kept,
    an_unknown_policy_is_refused,
    a_scheduler_without_policy_is_refused,
    a_nice_value_out_of_range_is_refused,
    a_priority_that_the_policy_does_not_allow_is_refused,
    an_unknown_flag_is_refused,
    an_io_priority_is_the_configured_one,
    an_io_priority_out_of_range_is_refused,
    an_unknown_io_class_is_refused,
    the_oom_score_adjustment_is_the_configured_one,
    without_an_adjustment_the_callers_is_kept,
    an_oom_score_out_of_range_is_refused,
    an_oom_score_that_the_kernel_refuses_names_its_field,
    the_callers_cpu_affinity_is_not_inherited,
];

fn scheduled(scheduler: Value) -> Value {
    let mut c = Sandbox::new();
    c.set("/process/scheduler", scheduler).report()["scheduler"].take()
}

fn a_nice_value_is_the_configured_one() {
    let seen = scheduled(json!({"policy": "SCHED_OTHER", "nice": 7}));
    assert_eq!((&seen["policy"], &seen["nice"]), (&json!(0), &json!(7)));
}

fn batch_and_idle_policies_are_set() {
    let seen = scheduled(json!({"policy": "SCHED_BATCH", "nice": 3}));
    assert_eq!((&seen["policy"], &seen["nice"]), (&json!(3), &json!(3)));
    assert_eq!(scheduled(json!({"policy": "SCHED_IDLE"}))["policy"], 5);
}

fn real_time_policies_take_their_priority() {
    needs!(real_time());
    let seen = scheduled(json!({"policy": "SCHED_FIFO", "priority": 10}));
    assert_eq!((&seen["policy"], &seen["priority"]), (&json!(1), &json!(10)));
    let seen = scheduled(json!({"policy": "SCHED_RR", "priority": 20}));
    assert_eq!((&seen["policy"], &seen["priority"]), (&json!(2), &json!(20)));
}

/// Whether this machine lets root have it at all.
fn real_time() -> Result<(), String> {
    let tried = std::process::Command::new("chrt").args(["-f", "10", "true"]).output();
    tried.is_ok_and(|output| output.status.success()).then_some(()).ok_or("needs real-time scheduling".into())
}

fn the_deadline_policy_takes_its_times() {
    needs!(real_time());
    let seen = scheduled(json!({
        "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 20_000_000, "period": 30_000_000,
    }));
    assert_eq!(seen["policy"], 6);
    assert_eq!(
        (&seen["runtime"], &seen["deadline"], &seen["period"]),
        (&json!(1_000_000), &json!(20_000_000), &json!(30_000_000))
    );
}

fn reset_on_fork_is_a_flag() {
    let seen = scheduled(json!({"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}));
    assert_eq!((&seen["policy"], &seen["flags"]), (&json!(3), &json!(1)));
}

fn without_a_scheduler_the_callers_is_kept() {
    let mut c = Sandbox::new();
    c.acts("report").write_config();
    let keel = c.command(&["run", &c.id]);
    let mut nice = std::process::Command::new("nice");
    nice.args(["-n", "5"]).arg(keel.get_program()).args(keel.get_args()).current_dir(c.bundle());
    assert_eq!(c.execute(nice).ok().json()["scheduler"]["nice"], 5);
}

fn an_unknown_policy_is_refused() {
    let policies = ["SCHED_NONESUCH", "", "OTHER"];
    for policy in policies {
        Sandbox::new()
            .set("/process/scheduler", json!({"policy": policy}))
            .refused("/process/scheduler/policy");
    }
}

fn a_scheduler_without_policy_is_refused() {
    Sandbox::new().set("/process/scheduler", json!({"nice": 1})).refused("/process/scheduler/policy");
}

fn a_nice_value_out_of_range_is_refused() {
    for nice in [-21, 20] {
        let scheduler = json!({"policy": "SCHED_OTHER", "nice": nice});
        Sandbox::new().set("/process/scheduler", scheduler).refused("/process/scheduler");
    }
}

fn a_priority_that_the_policy_does_not_allow_is_refused() {
    for (policy, priority) in [("SCHED_OTHER", 1), ("SCHED_FIFO", 0), ("SCHED_FIFO", 100)] {
        let scheduler = json!({"policy": policy, "priority": priority});
        Sandbox::new().set("/process/scheduler", scheduler).refused("/process/scheduler");
    }
}

fn an_unknown_flag_is_refused() {
    let scheduler = json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NONESUCH"]});
    Sandbox::new().set("/process/scheduler", scheduler).refused("/process/scheduler/flags/0");
}

fn an_io_priority_is_the_configured_one() {
    for (class, number, level) in
        [("IOPRIO_CLASS_RT", 1, 0), ("IOPRIO_CLASS_BE", 2, 6), ("IOPRIO_CLASS_IDLE", 3, 7)]
    {
        let mut c = Sandbox::new();
        c.set("/process/ioPriority", json!({"class": class, "priority": level}));
        assert_eq!(c.report()["ioPriority"], json!([number, level]), "{class}");
    }
}

fn an_io_priority_out_of_range_is_refused() {
    for level in [-1, 8] {
        let priority = json!({"class": "IOPRIO_CLASS_BE", "priority": level});
        Sandbox::new().set("/process/ioPriority", priority).refused("/process/ioPriority/priority");
    }
}

fn an_unknown_io_class_is_refused() {
    let priority = json!({"class": "IOPRIO_CLASS_NONE", "priority": 4});
    Sandbox::new().set("/process/ioPriority", priority).refused("/process/ioPriority/class");
}

fn the_oom_score_adjustment_is_the_configured_one() {
    let mut c = Sandbox::new();
    assert_eq!(c.set("/process/oomScoreAdj", 500).report()["oomScoreAdj"], "500");
}

fn without_an_adjustment_the_callers_is_kept() {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(Sandbox::new().report()["oomScoreAdj"], own.trim());
}

fn an_oom_score_out_of_range_is_refused() {
    for score in [-1001, 1001] {
        Sandbox::new().set("/process/oomScoreAdj", score).refused("/process/oomScoreAdj");
    }
}

fn an_oom_score_that_the_kernel_refuses_names_its_field() {
    needs!(keel(), program("setpriv"));
    let mut c = Sandbox::new();
    c.set("/process/oomScoreAdj", -999).write_config();
    let error = c.behind(&["setpriv", "--bounding-set", "-sys_resource"], &["create", &c.id]).fails();
    assert!(error.contains("[config.json /process/oomScoreAdj]"), "{error}");
}

fn the_callers_cpu_affinity_is_not_inherited() {
    needs!(keel(), program("taskset"));
    let mut c = Sandbox::new();
    c.acts("report").write_config();
    let all = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let seen = c.behind(&["taskset", "--cpu-list", "0"], &["run", &c.id]).ok().json();
    assert_eq!(seen["cpus"], all.trim());
}
