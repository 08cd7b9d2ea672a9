//! `update`: other limits for a container, all of them or none.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, controller, keel};
use crate::{needs, tests};

tests![
    a_file_changes_limits,
    stdin_changes_limits,
    a_controller_that_was_not_at_work_is_put_to_work,
    a_refused_value_leaves_the_old_limits,
    every_problem_of_a_file_is_named,
    device_rules_are_replaced,
    a_flag_is_the_field_of_that_name,
    nothing_to_change_is_an_error,
    a_file_and_flags_together_are_an_error,
];

fn running() -> Sandbox {
    let mut c = Sandbox::new();
    c.acts("pause").created().start().ok();
    c
}

fn update(c: &Sandbox, resources: &Value) -> crate::sandbox::Output {
    let file = c.host_file("resources.json", &resources.to_string());
    c.keel(&["update", "--resources", file.to_str().unwrap(), &c.id])
}

fn limit_of(c: &Sandbox, file: &str) -> String {
    fs::read_to_string(c.cgroup().join(file)).unwrap().trim_end().to_owned()
}

fn a_file_changes_limits() {
    needs!(controller("hugetlb"));
    let c = running();
    update(&c, &json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 2097152}]})).ok();
    assert_eq!(limit_of(&c, "hugetlb.2MB.max"), "2097152");
}

fn stdin_changes_limits() {
    needs!(controller("hugetlb"));
    let c = running();
    let mut command = c.command(&["update", "--resources=-", &c.id]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(br#"{"unified": {"hugetlb.2MB.max": "4194304"}}"#).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(limit_of(&c, "hugetlb.2MB.max"), "4194304");
}

fn a_controller_that_was_not_at_work_is_put_to_work() {
    needs!(keel(), controller("hugetlb"));
    let mut c = Sandbox::new();
    c.set("/linux/cgroupsPath", format!("/{}/below", c.id)).running();
    assert!(!c.cgroup().join("below/hugetlb.2MB.max").exists());
    update(&c, &json!({"unified": {"hugetlb.2MB.max": "2097152"}})).ok();
    assert_eq!(limit_of(&c, "below/hugetlb.2MB.max"), "2097152");
    c.delete_force().ok();
    fs::remove_dir(c.cgroup()).unwrap();
}

fn a_refused_value_leaves_the_old_limits() {
    needs!(keel());
    let c = running();
    let unified = json!({"cgroup.max.depth": "5", "cgroup.max.descendants": "many"});
    let error = update(&c, &json!({"unified": unified})).fails();
    assert!(error.contains("/linux/resources/unified/cgroup.max.descendants"), "{error}");
    assert_eq!(limit_of(&c, "cgroup.max.depth"), "max");
}

fn every_problem_of_a_file_is_named() {
    needs!(keel());
    let c = running();
    let error = update(&c, &json!({"memory": {"limit": "x"}, "pids": {"limit": -5}})).fails();
    assert!(error.contains("/linux/resources/memory/limit: must be a whole number"), "{error}");
    assert!(error.contains("/linux/resources/pids/limit: must be -1"), "{error}");
}

fn device_rules_are_replaced() {
    let mut c = Sandbox::new();
    for set in ["bounding", "effective", "permitted"] {
        c.set(&format!("/process/capabilities/{set}"), json!(["CAP_MKNOD", "CAP_SYSLOG"]));
    }
    c.acts("mknod c /kmsg 1 11 ; open r /kmsg ; await USR1 ; open r /kmsg ; await USR2")
        .created()
        .start()
        .ok();
    c.wait_printed("waiting");
    let allow = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"});
    update(&c, &json!({"devices": [{"allow": false, "access": "rwm"}, allow]})).ok();
    c.kill("USR1").ok();
    c.wait_printed("USR1\nok\nwaiting");
    assert!(c.printed().starts_with("ok\nEPERM\nwaiting"), "{}", c.printed());
}

fn a_flag_is_the_field_of_that_name() {
    needs!(keel());
    if controller("memory").is_ok() {
        return;
    }
    let c = running();
    for (flag, value, field) in [
        ("--memory", "64M", "memory/limit"),
        ("--memory-reservation", "1g", "memory/reservation"),
        ("--cpu-quota", "50000", "cpu/quota"),
        ("--cpu-period", "50000", "cpu/quota"),
        ("--cpu-burst", "1", "cpu/burst"),
        ("--cpu-share", "512", "cpu/shares"),
        ("--cpu-idle", "1", "cpu/idle"),
        ("--cpuset-cpus", "0", "cpu/cpus"),
        ("--cpuset-mems", "0", "cpu/mems"),
        ("--pids-limit", "-1", "pids/limit"),
        ("--blkio-weight", "10", "blockIO/weight"),
    ] {
        let error = c.keel(&["update", flag, value, &c.id]).fails();
        let period = field.replace("quota", "period");
        let named =
            [field, &period].iter().any(|field| error.contains(&format!("/linux/resources/{field}]")));
        assert!(named, "{flag}: {error}");
    }
}

fn nothing_to_change_is_an_error() {
    needs!(keel());
    let c = running();
    assert!(c.keel(&["update", &c.id]).fails().contains("nothing to change"));
}

fn a_file_and_flags_together_are_an_error() {
    needs!(keel());
    let c = running();
    let file = c.host_file("resources.json", "{}");
    let error =
        c.keel(&["update", "--resources", file.to_str().unwrap(), "--pids-limit", "5", &c.id]).fails();
    assert!(error.contains("not both"), "{error}");
}
