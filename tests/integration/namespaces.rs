//! /linux/namespaces and /linux/timeOffsets: new, inherited and joined namespaces.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::sandbox::{Running, Sandbox, eventually, keel};
use crate::{needs, tests};

tests![
    each_listed_namespace_is_new,
    a_namespace_that_is_not_listed_is_the_hosts,
    the_payload_is_pid_1_of_its_pid_namespace,
    a_namespace_is_joined_by_path,
    a_joined_pid_namespace_has_another_pid_1,
    clock_offsets_are_the_configured_ones,
    time_offsets_without_a_time_namespace_are_refused,
    a_namespace_twice_is_refused,
    an_unknown_namespace_type_is_refused,
    a_namespace_file_of_another_type_is_refused,
    a_path_that_is_no_namespace_is_refused,
    a_relative_namespace_path_is_refused,
    a_new_net_namespace_has_loopback_up,
    all_namespaces_are_reported_at_once,
    a_mount_namespace_is_joined_by_path,
    the_runtimes_own_mount_namespace_is_refused,
    the_runtimes_own_uts_namespace_takes_no_names,
];

const TYPES: [(&str, &str); 6] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
];

fn host(file: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{file}")).unwrap().display().to_string()
}

/// Puts one entry in place of the default one; it is the last of the array, number 5.
fn join(c: &mut Sandbox, kind: &str, path: &str) {
    c.without_namespace(kind).set("/linux/namespaces/-", json!({"type": kind, "path": path}));
}

fn each_listed_namespace_is_new() {
    let seen = Sandbox::new().report();
    for (kind, file) in TYPES {
        assert_ne!(seen["namespaces"][file], host(file), "{kind}");
        assert!(seen["namespaces"][file].is_string(), "{kind}");
    }
    assert_eq!(seen["namespaces"]["user"], host("user"));
}

fn a_namespace_that_is_not_listed_is_the_hosts() {
    for (kind, file) in TYPES.into_iter().filter(|(kind, _)| *kind != "mount" && *kind != "network") {
        let mut c = Sandbox::new();
        c.without_namespace(kind);
        if kind == "uts" {
            c.unset("/hostname");
        }
        assert_eq!(c.report()["namespaces"][file], host(file), "{kind}");
    }
}

fn the_payload_is_pid_1_of_its_pid_namespace() {
    let mut c = Sandbox::new();
    assert_eq!(c.report()["pid"], 1);
    assert_ne!(c.without_namespace("pid").report()["pid"], 1);
}

fn a_namespace_is_joined_by_path() {
    let mut target = Sandbox::new();
    let pid = target.running().pid();
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")] {
        let path = format!("/proc/{pid}/ns/{file}");
        let mut c = Sandbox::new();
        join(&mut c, kind, &path);
        if kind == "uts" {
            c.unset("/hostname");
        }
        assert_eq!(
            c.report()["namespaces"][file],
            fs::read_link(path).unwrap().display().to_string(),
            "{kind}"
        );
    }
}

fn a_joined_pid_namespace_has_another_pid_1() {
    let mut target = Sandbox::new();
    let path = format!("/proc/{}/ns/pid", target.running().pid());
    let mut c = Sandbox::new();
    join(&mut c, "pid", &path);
    let seen = c.report();
    assert_eq!(seen["namespaces"]["pid"], fs::read_link(path).unwrap().display().to_string());
    assert_ne!(seen["pid"], 1);
    assert_eq!(target.status(), "running");
}

fn clock_offsets_are_the_configured_ones() {
    let mut c = Sandbox::new();
    c.set("/linux/namespaces/-", json!({"type": "time"}));
    c.set(
        "/linux/timeOffsets",
        json!({"monotonic": {"secs": 172800, "nanosecs": 5}, "boottime": {"secs": -7}}),
    );
    let seen = c.report();
    assert_ne!(seen["namespaces"]["time"], host("time"));
    let words: Vec<&str> = seen["timeOffsets"].as_str().unwrap().split_whitespace().collect();
    assert_eq!(words, ["monotonic", "172800", "5", "boottime", "-7", "0"]);
}

fn time_offsets_without_a_time_namespace_are_refused() {
    let mut c = Sandbox::new();
    c.set("/linux/timeOffsets", json!({"monotonic": {"secs": 1}})).refused("/linux/timeOffsets");
}

fn a_namespace_twice_is_refused() {
    let mut c = Sandbox::new();
    c.set("/linux/namespaces/-", json!({"type": "pid"})).refused("/linux/namespaces/6");
}

fn an_unknown_namespace_type_is_refused() {
    let mut c = Sandbox::new();
    c.set("/linux/namespaces/-", json!({"type": "syslog"})).refused("/linux/namespaces/6/type");
}

fn a_namespace_file_of_another_type_is_refused() {
    for (kind, path) in
        [("network", "/proc/self/ns/uts"), ("pid", "/proc/self/ns/net"), ("ipc", "/proc/self/ns/mnt")]
    {
        let mut c = Sandbox::new();
        join(&mut c, kind, path);
        c.refused("/linux/namespaces/5/path");
    }
}

fn a_path_that_is_no_namespace_is_refused() {
    for path in ["/etc/passwd", "/nonexistent", "/"] {
        let mut c = Sandbox::new();
        join(&mut c, "network", path);
        let error = c.refused("/linux/namespaces/5/path");
        assert!(error.contains(path), "{error}");
    }
}

fn a_relative_namespace_path_is_refused() {
    let mut c = Sandbox::new();
    join(&mut c, "network", "proc/self/ns/net");
    c.refused("/linux/namespaces/5/path");
}

fn a_new_net_namespace_has_loopback_up() {
    let mut c = Sandbox::new();
    assert_eq!(c.report()["interfaces"], json!(["lo"]));
    // IFF_UP | IFF_LOOPBACK
    assert_eq!(c.does("cat /sys/class/net/lo/flags"), ["0x9"]);
}

fn all_namespaces_are_reported_at_once() {
    let mut c = Sandbox::new();
    c.set("/linux/namespaces", json!([{"type": "x"}, {"path": "/proc/self/ns/net"}, {"type": 5}]));
    let error = c.refused("/linux/namespaces/0/type");
    for field in ["/linux/namespaces/1/type", "/linux/namespaces/2/type"] {
        assert!(!crate::sandbox::is_keel() || error.contains(field), "{error}");
    }
}

fn a_mount_namespace_is_joined_by_path() {
    let target = Running::of(Command::new("unshare").args(["--mount", "sleep", "1000"]));
    let path = format!("/proc/{}/ns/mnt", target.pid());
    let there = || fs::read_link(&path).unwrap().display().to_string();
    eventually("it is in its own namespace", || there() != host("mnt"));
    let mut c = Sandbox::new();
    join(&mut c, "mount", &path);
    let seen = c.report();
    assert_eq!((&seen["namespaces"]["mnt"], &seen["hostname"]), (&json!(there()), &json!(null)));
    assert_eq!(seen["root"], json!(["dev", "payload", "proc", "sys", "tmp"]));
}

/// The container's root would be mounted over the host's. keel has a mount namespace of its own here, to harm no other test.
fn the_runtimes_own_mount_namespace_is_refused() {
    needs!(keel());
    let mut c = Sandbox::new();
    join(&mut c, "mount", "/proc/self/ns/mnt");
    c.acts("exit 0").write_config();
    let error = c.behind(&["unshare", "--mount"], &["create", &c.id]).fails();
    assert!(error.contains("own [config.json /linux/namespaces/5/path]"), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn the_runtimes_own_uts_namespace_takes_no_names() {
    needs!(keel());
    for key in ["hostname", "domainname"] {
        let mut c = Sandbox::new();
        join(&mut c, "uts", "/proc/self/ns/uts");
        c.unset("/hostname").set(&format!("/{key}"), "other").acts("exit 0").write_config();
        let error = c.behind(&["unshare", "--uts"], &["create", &c.id]).fails();
        assert!(error.contains("own [config.json /linux/namespaces/5/path]"), "{error}");
        c.unset(&format!("/{key}"));
        assert_eq!(c.does("echo up"), ["up"]);
    }
}
