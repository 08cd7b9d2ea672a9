//! /linux/memoryPolicy.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keel, path};
use crate::{needs, tests};

tests![
    each_mode_is_seen_by_the_payload,
    a_mode_that_needs_nodes_is_refused_without_them,
    a_mode_that_takes_no_nodes_is_refused_with_them,
    an_unknown_mode_is_refused,
    an_unknown_flag_is_refused,
    a_bad_node_list_is_refused,
    a_node_that_does_not_exist_is_refused,
];

fn with(policy: Value) -> Sandbox {
    let mut c = Sandbox::new();
    c.set("/linux/memoryPolicy", policy);
    c
}

/// The numbers of set_mempolicy(2); flags are the mode's high bits.
fn each_mode_is_seen_by_the_payload() {
    needs!(keel(), path("/proc/self/numa_maps"));
    for (policy, mode, nodes) in [
        (json!({"mode": "MPOL_DEFAULT"}), 0, 0),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), 1, 1),
        (json!({"mode": "MPOL_BIND", "nodes": "0"}), 2, 1),
        (json!({"mode": "MPOL_INTERLEAVE", "nodes": "0-0"}), 3, 1),
        (json!({"mode": "MPOL_LOCAL"}), 4, 0),
        (json!({"mode": "MPOL_PREFERRED_MANY", "nodes": "0"}), 5, 1),
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}), 2 | 1 << 15, 1),
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}), 2 | 1 << 14, 1),
    ] {
        assert_eq!(with(policy.clone()).report()["memoryPolicy"], json!([mode, nodes]), "{policy}");
    }
}

fn a_mode_that_needs_nodes_is_refused_without_them() {
    needs!(keel());
    for mode in ["MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE", "MPOL_PREFERRED_MANY"] {
        with(json!({"mode": mode})).refused("/linux/memoryPolicy");
    }
}

fn a_mode_that_takes_no_nodes_is_refused_with_them() {
    needs!(keel());
    for mode in ["MPOL_DEFAULT", "MPOL_LOCAL"] {
        with(json!({"mode": mode, "nodes": "0"})).refused("/linux/memoryPolicy");
    }
}

fn an_unknown_mode_is_refused() {
    needs!(keel());
    with(json!({"mode": "MPOL_NONESUCH"})).refused("/linux/memoryPolicy/mode");
    with(json!({"nodes": "0"})).refused("/linux/memoryPolicy/mode");
}

fn an_unknown_flag_is_refused() {
    needs!(keel());
    with(json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_X"]}))
        .refused("/linux/memoryPolicy/flags/0");
}

fn a_bad_node_list_is_refused() {
    needs!(keel());
    for nodes in ["x", "1-", "3-1", "-1", "99999999999"] {
        with(json!({"mode": "MPOL_BIND", "nodes": nodes})).refused("/linux/memoryPolicy/nodes");
    }
}

fn a_node_that_does_not_exist_is_refused() {
    needs!(keel());
    with(json!({"mode": "MPOL_BIND", "nodes": "900"})).refused("/linux/memoryPolicy");
}
