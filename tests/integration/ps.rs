//! `ps`: the processes of a container as the host sees them.

use serde_json::json;

use crate::sandbox::Sandbox;
use crate::tests;

tests![json_is_the_pids, a_table_is_that_of_ps, a_table_without_pids_is_an_error];

fn json_is_the_pids() {
    let mut c = Sandbox::new();
    c.acts("pause").created().start().ok();
    let pid = c.state()["pid"].clone();
    assert_eq!(c.keel(&["ps", "--format", "json", &c.id]).ok().json(), json!([pid]));
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
