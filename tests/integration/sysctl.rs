//! /linux/sysctl: only of namespaces that are the container's own.

use std::fs;

use serde_json::json;

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    a_network_sysctl_is_set,
    an_ipc_sysctl_is_set,
    a_uts_sysctl_is_set,
    slashes_may_stand_for_dots,
    an_interface_name_with_a_dot_is_kept,
    a_sysctl_of_the_whole_host_is_refused,
    a_sysctl_of_an_inherited_namespace_is_refused,
    an_unknown_sysctl_is_refused,
    a_bad_value_is_refused,
    a_path_out_of_the_namespace_is_refused,
    a_value_that_is_no_string_is_refused,
    a_sysctl_works_although_proc_sys_is_read_only,
    a_sysctl_of_the_runtimes_own_namespace_joined_by_path_is_refused,
    a_sysctl_needs_no_proc_in_the_container,
];

fn sysctl(key: &str, value: &str) -> Sandbox {
    let mut c = Sandbox::new();
    c.set("/linux/sysctl", json!({key: value}));
    c
}

fn a_network_sysctl_is_set() {
    assert_eq!(sysctl("net.ipv4.ip_forward", "1").does("cat /proc/sys/net/ipv4/ip_forward"), ["1"]);
}

fn an_ipc_sysctl_is_set() {
    assert_eq!(sysctl("kernel.msgmax", "8193").does("cat /proc/sys/kernel/msgmax"), ["8193"]);
    assert_eq!(sysctl("fs.mqueue.queues_max", "77").does("cat /proc/sys/fs/mqueue/queues_max"), ["77"]);
}

fn a_uts_sysctl_is_set() {
    let mut c = sysctl("kernel.domainname", "example.org");
    assert_eq!(c.report()["uname"]["domainname"], "example.org");
}

fn slashes_may_stand_for_dots() {
    assert_eq!(sysctl("net/ipv4/ip_forward", "1").does("cat /proc/sys/net/ipv4/ip_forward"), ["1"]);
}

fn an_interface_name_with_a_dot_is_kept() {
    let error = sysctl("net/ipv4/conf/eth0.100/forwarding", "1").refused("/linux/sysctl");
    assert!(error.contains("eth0.100"), "{error}");
}

/// The value that it has: a runtime that sets it all the same must not harm the host.
fn current(key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/"))).unwrap();
    text.trim().to_owned()
}

fn a_sysctl_of_the_whole_host_is_refused() {
    for key in ["vm.swappiness", "kernel.core_pattern", "fs.file-max", "kernel.panic"] {
        sysctl(key, &current(key)).refused(&format!("/linux/sysctl/{key}"));
    }
}

fn a_sysctl_of_an_inherited_namespace_is_refused() {
    for (key, namespace) in
        [("net.ipv4.ip_forward", "network"), ("kernel.msgmax", "ipc"), ("kernel.domainname", "uts")]
    {
        let mut c = sysctl(key, &current(key));
        c.without_namespace(namespace).unset("/hostname").refused(&format!("/linux/sysctl/{key}"));
    }
}

fn an_unknown_sysctl_is_refused() {
    sysctl("net.ipv4.no_such_thing", "1").refused("/linux/sysctl/net.ipv4.no_such_thing");
}

fn a_bad_value_is_refused() {
    let error = sysctl("net.ipv4.ip_forward", "many").refused("/linux/sysctl/net.ipv4.ip_forward");
    assert!(error.contains("many"), "{error}");
}

/// CVE-2025-52881 in its simplest form.
fn a_path_out_of_the_namespace_is_refused() {
    for key in
        ["net/../kernel/core_pattern", "net.ipv4.../../kernel/core_pattern", "net//../kernel/core_pattern"]
    {
        sysctl(key, &current("kernel.core_pattern")).refused("/linux/sysctl");
    }
}

fn a_value_that_is_no_string_is_refused() {
    let mut c = Sandbox::new();
    c.set("/linux/sysctl", json!({"net.ipv4.ip_forward": 1})).refused("/linux/sysctl/net.ipv4.ip_forward");
}

fn a_sysctl_works_although_proc_sys_is_read_only() {
    let mut c = sysctl("net.core.somaxconn", "77");
    let seen = c.does("cat /proc/sys/net/core/somaxconn ; write /proc/sys/net/core/somaxconn 1");
    assert_eq!(seen, ["77", "EROFS"]);
}

fn a_sysctl_of_the_runtimes_own_namespace_joined_by_path_is_refused() {
    for (key, namespace, file) in [("net.ipv4.ip_forward", "network", "net"), ("kernel.msgmax", "ipc", "ipc")]
    {
        let mut c = sysctl(key, &current(key));
        let path = format!("/proc/self/ns/{file}");
        c.without_namespace(namespace).set("/linux/namespaces/-", json!({"type": namespace, "path": path}));
        c.refused(&format!("/linux/sysctl/{key}"));
    }
}

/// keel writes to a proc of its own, whatever the container has.
fn a_sysctl_needs_no_proc_in_the_container() {
    let mut c = sysctl("net.ipv4.ip_forward", "1");
    c.without_mount("/proc").mount(json!({"destination": "/elsewhere", "type": "proc", "source": "proc"}));
    assert_eq!(c.does("cat /elsewhere/sys/net/ipv4/ip_forward"), ["1"]);
}
