//! `update`: other limits for a container, all of them or none.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use crate::sandbox::{Sandbox, cgroupfs, controller, disk, keel};
use crate::{needs, tests};

tests![
    a_file_changes_limits,
    stdin_changes_limits,
    a_controller_that_was_not_at_work_is_put_to_work,
    a_refused_value_leaves_the_old_limits,
    every_problem_of_a_file_is_named,
    device_rules_are_replaced,
    a_flag_is_the_field_of_that_name,
    every_flag_is_written,
    a_refused_value_leaves_every_old_limit,
    what_both_filters_say_holds_between_them,
    what_only_cgroup_v1_has_is_refused,
    schemata_are_refused_without_intel_rdt,
    schemata_that_are_none_are_refused,
    nothing_to_change_is_an_error,
    a_file_and_flags_together_are_an_error,
];

fn running() -> Sandbox {
    let mut c = Sandbox::new();
    c.acts("pause").created().start().ok();
    c
}

fn a_file_changes_limits() {
    needs!(controller("hugetlb"));
    let c = running();
    c.update(&json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 2097152}]})).ok();
    assert_eq!(c.limit("hugetlb.2MB.max"), "2097152");
}

fn stdin_changes_limits() {
    needs!(controller("hugetlb"));
    let c = running();
    let mut command = c.command(&["update", "--resources=-", &c.id]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(br#"{"unified": {"hugetlb.2MB.max": "4194304"}}"#).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(c.limit("hugetlb.2MB.max"), "4194304");
}

fn a_controller_that_was_not_at_work_is_put_to_work() {
    needs!(keel(), controller("hugetlb"));
    let mut c = Sandbox::new();
    c.set("/linux/cgroupsPath", format!("/{}/below", c.id)).running();
    assert!(!c.cgroup().join("below/hugetlb.2MB.max").exists());
    c.update(&json!({"unified": {"hugetlb.2MB.max": "2097152"}})).ok();
    assert_eq!(c.limit("below/hugetlb.2MB.max"), "2097152");
    c.delete_force().ok();
    fs::remove_dir(c.cgroup()).unwrap();
}

fn a_refused_value_leaves_the_old_limits() {
    needs!(keel());
    let c = running();
    let unified = json!({"cgroup.max.depth": "5", "cgroup.max.descendants": "many"});
    let error = c.update(&json!({"unified": unified})).fails();
    assert!(error.contains("resources.json /unified/cgroup.max.descendants]"), "{error}");
    assert_eq!(c.limit("cgroup.max.depth"), "max");
}

fn every_problem_of_a_file_is_named() {
    needs!(keel());
    let c = running();
    let error = c.update(&json!({"memory": {"limit": "x"}, "pids": {"limit": -5}})).fails();
    assert!(error.contains("resources.json: /memory/limit: must be a whole number"), "{error}");
    assert!(error.contains("; /pids/limit: must be -1"), "{error}");
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
    c.update(&json!({"devices": [{"allow": false, "access": "rwm"}, allow]})).ok();
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
        let named = [field, &period].iter().any(|field| error.contains(&format!("[flags /{field}]")));
        assert!(named, "{flag}: {error}");
    }
}

fn every_flag_is_written() {
    needs!(keel(), controller("memory"), controller("cpu"), controller("cpuset"), controller("io"), disk());
    let c = running();
    for (flags, file, value) in [
        ("--memory=64M", "memory.max", "67108864"),
        ("--memory-swap=96M", "memory.swap.max", "33554432"),
        ("--memory-reservation=16m", "memory.low", "16777216"),
        ("--memory=128M --memory-swap=128M", "memory.swap.max", "0"),
        ("--memory-swap=-1", "memory.swap.max", "max"),
        ("--memory-reservation=-1", "memory.low", "max"),
        ("--memory=-1", "memory.max", "max"),
        ("--cpu-quota=50000", "cpu.max", "50000 100000"),
        ("--cpu-period=200000", "cpu.max", "50000 200000"),
        ("--cpu-burst=40000", "cpu.max.burst", "40000"),
        ("--cpu-quota=-1", "cpu.max", "max 200000"),
        ("--cpu-share=512", "cpu.weight", "59"),
        ("--cpu-idle=1", "cpu.idle", "1"),
        ("--cpu-idle=0", "cpu.idle", "0"),
        ("--cpuset-cpus=1", "cpuset.cpus", "1"),
        ("--cpuset-mems=0", "cpuset.mems", "0"),
        ("--pids-limit=7", "pids.max", "7"),
        ("--pids-limit=0", "pids.max", "0"),
        ("--pids-limit=-1", "pids.max", "max"),
        ("--blkio-weight=300", "io.bfq.weight", "default 300"),
    ] {
        let args: Vec<&str> = ["update"].into_iter().chain(flags.split(' ')).chain([&*c.id]).collect();
        c.keel(&args).ok();
        // systemd has a period of its own for no quota, and no word for no process.
        let value = match value {
            "max 200000" | "0" if file != "memory.swap.max" && cgroupfs().is_err() => continue,
            value => value,
        };
        assert_eq!(c.limit(file), value, "{flags}");
    }
}

/// Whether the first, the last or one between is refused, by keel or by the kernel.
fn a_refused_value_leaves_every_old_limit() {
    needs!(keel(), controller("memory"), controller("cpu"), controller("cpuset"), controller("io"), disk());
    let mut c = Sandbox::with_resources(json!({"memory": {"limit": 67_108_864, "swap": 67_108_864},
        "cpu": {"quota": 50000, "burst": 30000, "shares": 512}, "pids": {"limit": 50}}));
    c.running();
    let files = [
        "memory.max",
        "memory.low",
        "memory.swap.max",
        "cpu.weight",
        "cpu.idle",
        "cpu.max",
        "cpu.max.burst",
        "cpuset.cpus.effective",
        "cpuset.mems.effective",
        "pids.max",
        "io.bfq.weight",
        "hugetlb.2MB.max",
    ];
    let all = || files.map(|file| fs::read_to_string(c.cgroup().join(file)).unwrap_or_default());
    let new = json!({
        "memory": {"limit": 33_554_432, "swap": -1, "reservation": 4096},
        "cpu": {"quota": 20000, "period": 50000, "burst": 10000, "idle": 1, "cpus": "1", "mems": "0"},
        "pids": {"limit": 9}, "blockIO": {"weight": 700},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
    });
    let old = all();
    for (section, key, refused) in [
        ("memory", "swap", json!(-2)),
        ("cpu", "quota", json!(i64::MAX)),
        ("cpu", "period", json!(1)),
        ("cpu", "idle", json!(2)),
        ("cpu", "cpus", json!("9999")),
        ("cpu", "mems", json!("1023")),
        ("pids", "limit", json!(-2)),
        ("pids", "limit", json!(i64::MAX)),
        ("blockIO", "weight", json!(5)),
        ("hugepageLimits/0", "pageSize", json!("3MB")),
        ("unified", "cgroup.max.depth", json!("x")),
    ] {
        let mut resources = new.clone();
        match resources.pointer_mut(&format!("/{section}")) {
            Some(section) => section[key] = refused,
            None => resources[section] = json!({key: refused}),
        }
        let error = c.update(&resources).fails();
        assert!(error.contains(&format!("/{section}/{key}")), "{error}");
        assert_eq!(all(), old, "{error}");
    }
    c.update(&new).ok();
    assert_eq!(c.limit("cpuset.cpus"), "1");
}

/// Not for a moment is there none, or one that says something else.
fn what_both_filters_say_holds_between_them() {
    needs!(keel());
    let allow = |minor: u64| json!({"allow": true, "type": "c", "major": 1, "minor": minor, "access": "r"});
    for (rule, outcome) in [(allow(11), "ok"), (allow(4), "EPERM")] {
        let mut c = Sandbox::new();
        for set in ["bounding", "effective", "permitted"] {
            c.set(&format!("/process/capabilities/{set}"), json!(["CAP_MKNOD", "CAP_SYSLOG"]));
        }
        c.set("/linux/resources/devices", json!([rule]));
        c.acts("mknod c /kmsg 1 11 ; echo waiting ; reopen r /kmsg").created().start().ok();
        c.wait_printed("waiting");
        for round in 100..120 {
            c.update(&json!({"devices": [allow(round), rule]})).ok();
        }
        c.write("stop", "");
        c.wait_printed(&format!("waiting\n{outcome}"));
    }
}

fn what_only_cgroup_v1_has_is_refused() {
    needs!(keel());
    let c = running();
    for (flag, field) in [
        ("--kernel-memory", "memory/kernel: cgroup v2 has no limit for it alone"),
        ("--kernel-memory-tcp", "memory/kernelTCP: cgroup v2 has no limit for it alone"),
        ("--cpu-rt-period", "cpu/realtimePeriod: cgroup v2 has no realtime limits"),
        ("--cpu-rt-runtime", "cpu/realtimeRuntime: cgroup v2 has no realtime limits"),
    ] {
        let error = c.keel(&["update", flag, "1000", &c.id]).fails();
        assert!(error.contains(&format!("invalid flags: /{field}")), "{error}");
    }
}

fn schemata_are_refused_without_intel_rdt() {
    needs!(keel());
    let c = running();
    for (flag, schema) in [("--l3-cache-schema", "L3:0=f"), ("--mem-bw-schema", "MB:0=20")] {
        let error = c.keel(&["update", flag, schema, &c.id]).fails();
        assert!(error.contains("a container that was created with intelRdt"), "{error}");
    }
}

fn schemata_that_are_none_are_refused() {
    needs!(keel());
    let c = running();
    let error = c.keel(&["update", "--mem-bw-schema", "XX:0=20", &c.id]).fails();
    assert!(error.contains("invalid flags: /memBwSchema: must start with MB:"), "{error}");
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
