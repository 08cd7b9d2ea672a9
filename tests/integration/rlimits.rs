//! /process/rlimits.

use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    each_limit_is_the_configured_one,
    limits_that_are_not_listed_stay,
    a_container_with_few_descriptors_is_started,
    no_list_is_no_change,
    a_limit_twice_is_refused,
    an_unknown_limit_is_refused,
    a_soft_limit_above_the_hard_one_is_refused,
    a_limit_without_a_value_is_refused,
    a_limit_that_may_not_be_raised_is_refused,
];

fn limit(kind: &str, soft: u64, hard: u64) -> Value {
    json!({"type": kind, "soft": soft, "hard": hard})
}

fn each_limit_is_the_configured_one() {
    let limits = [
        ("RLIMIT_AS", 1 << 32, 1 << 33),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_CPU", 100, 200),
        ("RLIMIT_DATA", 1 << 30, 1 << 31),
        ("RLIMIT_FSIZE", 1 << 20, 1 << 21),
        ("RLIMIT_LOCKS", 5, 6),
        ("RLIMIT_MEMLOCK", 4096, 8192),
        ("RLIMIT_MSGQUEUE", 1000, 2000),
        ("RLIMIT_NICE", 0, 0),
        ("RLIMIT_NOFILE", 64, 128),
        ("RLIMIT_NPROC", 500, 600),
        ("RLIMIT_RSS", 1 << 30, 1 << 31),
        ("RLIMIT_RTPRIO", 0, 0),
        ("RLIMIT_RTTIME", 1000, 2000),
        ("RLIMIT_SIGPENDING", 10, 20),
        ("RLIMIT_STACK", 1 << 20, 1 << 21),
    ];
    let mut c = Sandbox::new();
    let list: Vec<Value> = limits.iter().map(|(kind, soft, hard)| limit(kind, *soft, *hard)).collect();
    let seen = c.set("/process/rlimits", json!(list)).report();
    for (kind, soft, hard) in limits {
        assert_eq!(seen["rlimits"][kind], json!([soft, hard]), "{kind}");
    }
}

fn limits_that_are_not_listed_stay() {
    let seen = Sandbox::new().report();
    let (soft, hard) = getrlimit(Resource::RLIMIT_STACK).unwrap();
    assert_eq!(seen["rlimits"]["RLIMIT_STACK"], json!([soft, hard]));
    assert_eq!(seen["rlimits"]["RLIMIT_NOFILE"], json!([1024, 1024]));
}

/// What waits for `start`, or for the end of a hook, needs some itself.
fn a_container_with_few_descriptors_is_started() {
    for (soft, hard) in [(3, 3), (4, 4), (3, 4096), (0, 0)] {
        let mut c = Sandbox::new();
        c.set("/process/rlimits", json!([limit("RLIMIT_NOFILE", soft, hard)]));
        c.set("/hooks/startContainer", json!([{"path": "/payload", "args": ["/payload", "echo", "hook"]}]));
        c.acts("pause").created();
        c.start().ok();
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", c.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[3..5], [soft.to_string(), hard.to_string()]);
        let opened = if soft > 3 { "ok\n" } else { "EMFILE\n" };
        assert_eq!(c.exec(&[], "open r /payload").ok().stdout, opened);
        c.delete_force().ok();
    }
}

fn no_list_is_no_change() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let seen = Sandbox::new().unset("/process/rlimits").report();
    assert_eq!(seen["rlimits"]["RLIMIT_NOFILE"], json!([soft, hard]));
}

fn a_limit_twice_is_refused() {
    let twice = json!([limit("RLIMIT_CPU", 1, 1), limit("RLIMIT_CPU", 2, 2)]);
    Sandbox::new().set("/process/rlimits", twice).refused("/process/rlimits/1");
}

fn an_unknown_limit_is_refused() {
    for kind in ["RLIMIT_NONESUCH", "NOFILE", "rlimit_cpu", ""] {
        Sandbox::new().set("/process/rlimits", json!([limit(kind, 1, 1)])).refused("/process/rlimits/0/type");
    }
}

fn a_soft_limit_above_the_hard_one_is_refused() {
    Sandbox::new().set("/process/rlimits", json!([limit("RLIMIT_CPU", 2, 1)])).refused("/process/rlimits/0");
}

fn a_limit_without_a_value_is_refused() {
    let list = json!([{"type": "RLIMIT_CPU", "soft": 1}]);
    if crate::sandbox::is_keel() {
        Sandbox::new().set("/process/rlimits", list).refused("/process/rlimits/0/hard");
    }
}

/// Needs CAP_SYS_RESOURCE, which some sandboxes take away from root, and beyond fs.nr_open nobody may.
fn a_limit_that_may_not_be_raised_is_refused() {
    let beyond = 1u64 << 40;
    Sandbox::new()
        .set("/process/rlimits", json!([limit("RLIMIT_NOFILE", 1, beyond)]))
        .refused("/process/rlimits/0");
}
