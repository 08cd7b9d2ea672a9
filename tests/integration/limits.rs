//! /linux/resources: the limits of the cgroup's controllers. Which of them a machine has differs; what can be seen
//! everywhere is that a limit is written or refused by name.

use std::fs;

use serde_json::json;

use crate::sandbox::{Sandbox, controller, huge_pages, keel};
use crate::{needs, tests};

tests![
    a_limit_of_huge_pages_is_written_with_its_reservations,
    a_line_of_unified_is_written,
    a_controller_that_the_host_lacks_is_named,
    a_page_size_that_the_host_lacks_is_refused,
    a_file_that_the_kernel_lacks_is_refused,
    a_value_that_the_kernel_refuses_names_its_field,
    limits_of_cgroup_v1_are_refused,
    a_fork_beyond_the_limit_of_processes_is_refused,
    a_limit_of_processes_can_be_changed,
    a_huge_page_beyond_the_limit_is_refused,
    a_limit_for_a_device_that_the_host_lacks_is_refused,
    a_key_of_unified_is_a_file_of_the_cgroup,
    a_line_of_unified_holds,
    controllers_reach_a_cgroup_whose_parents_are_missing,
    an_update_brings_its_controller,
    empty_sections_are_no_limits,
];

fn a_limit_of_huge_pages_is_written_with_its_reservations() {
    needs!(controller("hugetlb"));
    let c = Sandbox::with_resources(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}));
    c.created();
    assert_eq!(c.limit("hugetlb.2MB.max"), "4194304");
    assert_eq!(c.limit("hugetlb.2MB.rsvd.max"), "4194304");
}

fn a_line_of_unified_is_written() {
    needs!(controller("hugetlb"));
    let c = Sandbox::with_resources(
        json!({"unified": {"hugetlb.2MB.max": "2097152", "cgroup.max.descendants": "7"}}),
    );
    c.created();
    assert_eq!(c.limit("hugetlb.2MB.max"), "2097152");
    assert_eq!(c.limit("cgroup.max.descendants"), "7");
}

fn a_controller_that_the_host_lacks_is_named() {
    needs!(keel());
    for (name, section, field) in [
        ("memory", json!({"memory": {"limit": 1 << 30}}), "memory/limit"),
        ("cpu", json!({"cpu": {"shares": 512}}), "cpu/shares"),
        ("cpuset", json!({"cpu": {"mems": "0"}}), "cpu/mems"),
        ("pids", json!({"pids": {"limit": 5}}), "pids/limit"),
        ("io", json!({"blockIO": {"weight": 50}}), "blockIO/weight"),
        ("rdma", json!({"rdma": {"mlx5_1": {"hcaObjects": 1}}}), "rdma/mlx5_1"),
        ("misc", json!({"unified": {"misc.max": "res_a 1"}}), "unified/misc.max"),
    ] {
        if controller(name).is_err() {
            let error = Sandbox::with_resources(section).refused(&format!("/linux/resources/{field}"));
            assert!(error.contains(&format!("enable the cgroup controller {name} in ")), "{error}");
        }
    }
}

fn a_page_size_that_the_host_lacks_is_refused() {
    needs!(keel(), controller("hugetlb"));
    let error = Sandbox::with_resources(json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 0}]}))
        .refused("/linux/resources/hugepageLimits/0/pageSize");
    assert!(error.contains("hugetlb.3MB.max"), "{error}");
}

fn a_file_that_the_kernel_lacks_is_refused() {
    needs!(keel(), controller("hugetlb"));
    Sandbox::with_resources(json!({"unified": {"hugetlb.nonesuch": "1"}}))
        .refused("/linux/resources/unified/hugetlb.nonesuch");
}

fn a_value_that_the_kernel_refuses_names_its_field() {
    needs!(keel());
    let error = Sandbox::with_resources(json!({"unified": {"cgroup.max.depth": "x"}}))
        .refused("/linux/resources/unified/cgroup.max.depth");
    assert!(error.contains("\"x\"") && error.contains("Invalid argument"), "{error}");
}

fn limits_of_cgroup_v1_are_refused() {
    needs!(keel());
    let alone = "cgroup v2 has no limit for it alone: it counts as memory";
    for (section, field, reason) in [
        (json!({"memory": {"swappiness": 5}}), "memory/swappiness", "cgroup v2 has no swappiness"),
        (json!({"memory": {"kernel": 5}}), "memory/kernel", alone),
        (json!({"memory": {"kernelTCP": 5}}), "memory/kernelTCP", alone),
        (
            json!({"memory": {"disableOOMKiller": true}}),
            "memory/disableOOMKiller",
            "cgroup v2 cannot disable it",
        ),
        (
            json!({"memory": {"useHierarchy": false}}),
            "memory/useHierarchy",
            "cgroup v2 is always hierarchical",
        ),
        (json!({"cpu": {"realtimePeriod": 5}}), "cpu/realtimePeriod", "cgroup v2 has no realtime limits"),
        (json!({"cpu": {"realtimeRuntime": 5}}), "cpu/realtimeRuntime", "cgroup v2 has no realtime limits"),
        (json!({"network": {"classID": 5}}), "network/classID", "cgroup v2 has no network controller"),
        (json!({"network": {"priorities": []}}), "network/priorities", "cgroup v2 has no network controller"),
        (json!({"blockIO": {"leafWeight": 500}}), "blockIO/leafWeight", "cgroup v2 has no leaf weight"),
        (
            json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10, "leafWeight": 10}]}}),
            "blockIO/weightDevice/0/leafWeight",
            "cgroup v2 has no leaf weight",
        ),
    ] {
        let field = format!("/linux/resources/{field}");
        let error = Sandbox::with_resources(section).refused(&field);
        assert!(error.contains(&format!("{field}: {reason}")), "{error}");
    }
}

fn a_fork_beyond_the_limit_of_processes_is_refused() {
    needs!(controller("pids"));
    for (limit, written, outcome) in [
        (5, "5", "EAGAIN after 4"),
        (1, "1", "EAGAIN after 0"),
        (0, "0", "EAGAIN after 0"),
        (-1, "max", "ok"),
    ] {
        let mut c = Sandbox::with_resources(json!({"pids": {"limit": limit}}));
        c.acts("spawn 8 ; pause").created().start().ok();
        c.wait_printed(outcome);
        assert_eq!(c.limit("pids.max"), written);
    }
}

fn a_limit_of_processes_can_be_changed() {
    needs!(keel(), controller("pids"));
    let mut c = Sandbox::with_resources(json!({"pids": {"limit": 3}}));
    c.acts("spawn 4 ; await USR1 ; spawn 4 ; pause").created().start().ok();
    c.wait_printed("EAGAIN after 2\nwaiting");
    c.update(&json!({"pids": {"limit": 4}})).ok();
    assert_eq!(c.limit("pids.max"), "4");
    c.kill("USR1").ok();
    c.wait_printed("USR1\nEAGAIN after 1");
    // Below what there is: no error, and nobody dies.
    c.update(&json!({"pids": {"limit": 2}})).ok();
    assert_eq!([c.limit("pids.max"), c.limit("pids.current")], ["2", "4"]);
}

fn a_huge_page_beyond_the_limit_is_refused() {
    needs!(controller("hugetlb"), huge_pages(3));
    let mut c = Sandbox::with_resources(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]}));
    assert_eq!(c.does("huge 3 ; huge 2 ; huge 1"), ["ENOMEM", "ok", "ENOMEM"]);
    let mut c = Sandbox::with_resources(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}));
    assert_eq!(c.does("huge 1"), ["ENOMEM"]);
}

fn a_limit_for_a_device_that_the_host_lacks_is_refused() {
    needs!(keel());
    for (needed, section, field) in [
        ("rdma", json!({"rdma": {"mlx5_1": {"hcaObjects": 1}}}), "rdma/mlx5_1"),
        ("misc", json!({"unified": {"misc.max": "nonesuch 2"}}), "unified/misc.max"),
    ] {
        needs!(controller(needed));
        let error = Sandbox::with_resources(section).refused(&format!("/linux/resources/{field}"));
        assert!(error.contains(&format!("{needed}.max: ")), "{error}");
    }
}

fn a_key_of_unified_is_a_file_of_the_cgroup() {
    needs!(keel());
    let no_file = "must be a file of the cgroup, named CONTROLLER.NAME";
    for (key, pointer, reason) in [
        ("a/memory.max", "a~1memory.max", no_file),
        ("../memory.max", "..~1memory.max", no_file),
        ("memory", "memory", no_file),
        ("cgroup.procs", "cgroup.procs", "moves, ends or stops processes"),
        ("nonesuch.max", "nonesuch.max", "enable the cgroup controller nonesuch"),
    ] {
        let error = Sandbox::with_resources(json!({"unified": {key: "1"}}))
            .refused(&format!("/linux/resources/unified/{pointer}"));
        assert!(error.contains(reason), "{error}");
    }
}

fn a_line_of_unified_holds() {
    needs!(controller("pids"));
    // It has the last word.
    let mut c = Sandbox::with_resources(json!({"pids": {"limit": 9}, "unified": {"pids.max": "2"}}));
    c.acts("spawn 8 ; pause").created().start().ok();
    c.wait_printed("EAGAIN after 1");
}

/// Removes the cgroups above the container's, as their owner would.
fn remove_parents(c: &Sandbox) {
    c.delete_force().ok();
    for path in [c.cgroup().join("a"), c.cgroup()] {
        if path.exists() {
            fs::remove_dir(path).unwrap();
        }
    }
}

fn controllers_reach_a_cgroup_whose_parents_are_missing() {
    needs!(controller("memory"), controller("pids"));
    let mut c = Sandbox::with_resources(json!({"pids": {"limit": 2}, "memory": {"limit": 67_108_864}}));
    c.set("/linux/cgroupsPath", format!("/{}/a/b", c.id));
    c.acts("spawn 8 ; pause").created().start().ok();
    c.wait_printed("EAGAIN after 1");
    assert_eq!(c.limit("a/b/memory.max"), "67108864");
    // And no others.
    let mut enabled: Vec<String> = c.limit("cgroup.subtree_control").split(' ').map(str::to_owned).collect();
    enabled.sort();
    assert_eq!(enabled, ["memory", "pids"]);
    remove_parents(&c);
}

fn an_update_brings_its_controller() {
    needs!(keel(), controller("pids"));
    let mut c = Sandbox::new();
    c.set("/linux/cgroupsPath", format!("/{}/a/b", c.id)).running();
    assert_eq!(c.limit("cgroup.subtree_control"), "");
    c.update(&json!({"pids": {"limit": 7}})).ok();
    assert_eq!(c.limit("a/b/pids.max"), "7");
    remove_parents(&c);
}

fn empty_sections_are_no_limits() {
    let empty = json!({"memory": {}, "cpu": {}, "pids": {}, "blockIO": {"weightDevice": []}, "network": {},
        "hugepageLimits": [], "rdma": {}, "unified": {}});
    Sandbox::with_resources(empty).acts("exit 0").run().ok();
}
