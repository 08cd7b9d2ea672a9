//! /linux/resources: the limits of the cgroup's controllers. Which of them a machine has differs; what can be seen
//! everywhere is that a limit is written or refused by name.

use std::fs;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, controller, keel};
use crate::{needs, tests};

tests![
    a_limit_of_huge_pages_is_written_with_its_reservations,
    a_line_of_unified_is_written,
    a_controller_that_the_host_lacks_is_named,
    a_page_size_that_the_host_lacks_is_refused,
    a_file_that_the_kernel_lacks_is_refused,
    a_value_that_the_kernel_refuses_names_its_field,
    limits_of_cgroup_v1_are_refused,
    empty_sections_are_no_limits,
];

fn with(resources: Value) -> Sandbox {
    let mut c = Sandbox::new();
    c.set("/linux/resources", resources);
    c
}

fn limit_of(c: &Sandbox, file: &str) -> String {
    fs::read_to_string(c.cgroup().join(file)).unwrap().trim_end().to_owned()
}

fn a_limit_of_huge_pages_is_written_with_its_reservations() {
    needs!(controller("hugetlb"));
    let c = with(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}));
    c.created();
    assert_eq!(limit_of(&c, "hugetlb.2MB.max"), "4194304");
    assert_eq!(limit_of(&c, "hugetlb.2MB.rsvd.max"), "4194304");
}

fn a_line_of_unified_is_written() {
    needs!(controller("hugetlb"));
    let c = with(json!({"unified": {"hugetlb.2MB.max": "2097152", "cgroup.max.descendants": "7"}}));
    c.created();
    assert_eq!(limit_of(&c, "hugetlb.2MB.max"), "2097152");
    assert_eq!(limit_of(&c, "cgroup.max.descendants"), "7");
}

fn a_controller_that_the_host_lacks_is_named() {
    needs!(keel());
    if controller("rdma").is_ok() {
        return;
    }
    let error = with(json!({"rdma": {"mlx5_1": {"hcaObjects": 1}}})).refused("/linux/resources/rdma/mlx5_1");
    assert!(error.contains("enable the cgroup controller rdma"), "{error}");
}

fn a_page_size_that_the_host_lacks_is_refused() {
    needs!(keel(), controller("hugetlb"));
    let error = with(json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 0}]}))
        .refused("/linux/resources/hugepageLimits/0/pageSize");
    assert!(error.contains("hugetlb.3MB.max"), "{error}");
}

fn a_file_that_the_kernel_lacks_is_refused() {
    needs!(keel(), controller("hugetlb"));
    with(json!({"unified": {"hugetlb.nonesuch": "1"}})).refused("/linux/resources/unified/hugetlb.nonesuch");
}

fn a_value_that_the_kernel_refuses_names_its_field() {
    needs!(keel());
    let error = with(json!({"unified": {"cgroup.max.depth": "x"}}))
        .refused("/linux/resources/unified/cgroup.max.depth");
    assert!(error.contains("\"x\"") && error.contains("Invalid argument"), "{error}");
}

fn limits_of_cgroup_v1_are_refused() {
    needs!(keel());
    for (section, field) in [
        (json!({"memory": {"swappiness": 5}}), "/linux/resources/memory/swappiness"),
        (json!({"memory": {"kernel": 5}}), "/linux/resources/memory/kernel"),
        (json!({"cpu": {"realtimePeriod": 5}}), "/linux/resources/cpu/realtimePeriod"),
        (json!({"network": {"classID": 5}}), "/linux/resources/network/classID"),
        (json!({"blockIO": {"leafWeight": 500}}), "/linux/resources/blockIO/leafWeight"),
    ] {
        with(section).refused(field);
    }
}

fn empty_sections_are_no_limits() {
    let empty = json!({"memory": {}, "cpu": {}, "pids": {}, "blockIO": {"weightDevice": []}, "network": {},
        "hugepageLimits": [], "rdma": {}, "unified": {}});
    with(empty).acts("exit 0").run().ok();
}
