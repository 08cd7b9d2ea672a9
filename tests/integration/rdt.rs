//! /linux/intelRdt: resctrl groups.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::skip;
use crate::sandbox::{Sandbox, keel, path};
use crate::{needs, tests};

tests![
    without_resctrl_it_is_refused,
    a_bad_memory_bandwidth_schema_is_refused,
    a_schema_of_two_lines_is_refused,
    a_clos_id_that_is_no_name_is_refused,
    a_group_of_its_own_is_made_and_removed,
    a_missing_preconfigured_group_is_refused,
];

const RESCTRL: &str = "/sys/fs/resctrl/schemata";

fn with(rdt: Value) -> Sandbox {
    let mut c = Sandbox::new();
    c.set("/linux/intelRdt", rdt);
    c
}

fn without_resctrl_it_is_refused() {
    if Path::new(RESCTRL).exists() {
        return skip("needs a machine without resctrl".into());
    }
    with(json!({"closID": "group"})).refused("/linux/intelRdt");
}

fn a_bad_memory_bandwidth_schema_is_refused() {
    needs!(keel());
    with(json!({"memBwSchema": "XX:0=20"})).refused("/linux/intelRdt/memBwSchema");
}

fn a_schema_of_two_lines_is_refused() {
    needs!(keel());
    with(json!({"l3CacheSchema": "L3:0=f\nL3:1=f"})).refused("/linux/intelRdt/l3CacheSchema");
    with(json!({"schemata": ["L3:0=f", "MB:0=10\n"]})).refused("/linux/intelRdt/schemata/1");
}

fn a_clos_id_that_is_no_name_is_refused() {
    needs!(keel());
    for id in ["../x", "a/b", ".", ".."] {
        with(json!({"closID": id})).refused("/linux/intelRdt/closID");
    }
}

fn a_group_of_its_own_is_made_and_removed() {
    needs!(path(RESCTRL));
    let mut c = with(json!({}));
    let group = Path::new("/sys/fs/resctrl").join(&c.id);
    let pid = c.running().pid();
    assert!(fs::read_to_string(group.join("tasks")).unwrap().lines().any(|line| line == pid.to_string()));
    c.delete_force().ok();
    assert!(!group.exists());
}

fn a_missing_preconfigured_group_is_refused() {
    needs!(path(RESCTRL));
    with(json!({"closID": "keel-test-nonesuch"})).refused("/linux/intelRdt/closID");
}
