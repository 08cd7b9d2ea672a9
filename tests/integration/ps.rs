//! `ps`: the processes of a container as the host sees them.

use std::fs;

use serde_json::json;

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    json_is_the_pids,
    every_process_of_the_container_is_listed_and_no_other,
    a_table_is_that_of_ps,
    a_table_without_pids_is_an_error,
];

fn json_is_the_pids() {
    let mut c = Sandbox::new();
    c.acts("pause").created().start().ok();
    let pid = c.state()["pid"].clone();
    assert_eq!(c.keel(&["ps", "--format", "json", &c.id]).ok().json(), json!([pid]));
}

fn every_process_of_the_container_is_listed_and_no_other() {
    let mut c = Sandbox::new();
    c.acts("spawn 3 ; pause").created().start().ok();
    c.wait_printed("ok");
    // A cgroup below the container's belongs to it.
    let pids: Vec<u64> = c.limit("cgroup.procs").lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 4);
    let below = c.cgroup().join("below");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.procs"), pids[3].to_string()).unwrap();
    let mut listed: Vec<u64> =
        serde_json::from_value(c.keel(&["ps", "--format", "json", &c.id]).ok().json()).unwrap();
    listed.sort();
    assert_eq!(listed, pids);
}

fn a_table_is_that_of_ps() {
    let mut c = Sandbox::new();
    c.acts("pause").created().start().ok();
    let pid = c.state()["pid"].to_string();
    let table = c.keel(&["ps", &c.id, "-o", "pid,args"]).ok();
    let lines: Vec<Vec<&str>> = table.lines().iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines, [vec!["PID", "COMMAND"], vec![&pid, "/payload", "pause"]]);
    assert_eq!(c.keel(&["ps", &c.id]).ok().lines().len(), 2);
}

fn a_table_without_pids_is_an_error() {
    let mut c = Sandbox::new();
    c.acts("pause").created().start().ok();
    let error = c.keel(&["ps", &c.id, "-o", "args"]).fails();
    assert!(error.to_lowercase().contains("pid"), "{error}");
}
