//! `list`: the containers of a state directory.

use std::fs;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    an_empty_list_has_a_header_only,
    a_table_has_a_line_for_each_container,
    quiet_prints_ids_only,
    json_is_an_array_of_states,
    a_root_that_does_not_exist_is_an_error,
    a_torn_state_does_not_hide_the_others,
    an_unknown_format_is_refused,
];

/// Three containers of one sandbox: created, running and stopped.
fn three(c: &mut Sandbox) -> [String; 3] {
    let ids = ["c", "r", "s"].map(|name| format!("{}-{name}", c.id));
    for (id, act) in ids.iter().zip(["pause", "pause", "exit 0"]) {
        c.set("/linux/cgroupsPath", format!("/{id}")).acts(act).write_config();
        c.keel(&["create", id]).ok();
    }
    c.keel(&["start", &ids[1]]).ok();
    c.keel(&["start", &ids[2]]).ok();
    crate::sandbox::eventually("the third stops", || {
        c.keel(&["state", &ids[2]]).json()["status"] == "stopped"
    });
    ids
}

fn an_empty_list_has_a_header_only() {
    let c = Sandbox::new();
    fs::create_dir(c.dir.join("state")).unwrap();
    let output = c.keel(&["list"]).ok();
    let header: Vec<&str> = output.lines()[0].split_whitespace().collect();
    assert_eq!(
        (header, output.lines().len()),
        (vec!["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], 1)
    );
    assert_eq!(c.keel(&["list", "-q"]).ok().stdout, "");
}

fn a_table_has_a_line_for_each_container() {
    let mut c = Sandbox::new();
    let ids = three(&mut c);
    let output = c.keel(&["list"]).ok();
    let rows: Vec<Vec<&str>> =
        output.lines().iter().skip(1).map(|l| l.split_whitespace().collect()).collect();
    let seen: Vec<(&str, &str)> = rows.iter().map(|row| (row[0], row[2])).collect();
    assert_eq!(seen, [(&*ids[0], "created"), (&*ids[1], "running"), (&*ids[2], "stopped")]);
}

fn quiet_prints_ids_only() {
    let mut c = Sandbox::new();
    let ids = three(&mut c);
    assert_eq!(c.keel(&["list", "-q"]).ok().lines(), ids);
    assert_eq!(c.keel(&["list", "--quiet"]).ok().lines(), ids);
}

fn json_is_an_array_of_states() {
    let mut c = Sandbox::new();
    let ids = three(&mut c);
    let list = c.keel(&["list", "--format", "json"]).ok().json();
    let seen: Vec<&Value> = list.as_array().unwrap().iter().map(|state| &state["id"]).collect();
    assert_eq!(seen, ids.each_ref().map(|id| json!(id)).iter().collect::<Vec<_>>());
    assert_eq!(list[1]["status"], "running");
    for id in &ids {
        c.keel(&["delete", "--force", id]).ok();
    }
    assert_eq!(c.keel(&["list", "-f", "json"]).ok().json().as_array().map_or(0, Vec::len), 0);
}

/// As runc has it: a directory that was named and is not there is a mistake, the default one is just empty.
fn a_root_that_does_not_exist_is_an_error() {
    needs!(keel());
    let c = Sandbox::new();
    assert!(c.keel(&["list"]).fails().contains("No such file or directory"));
}

fn a_torn_state_does_not_hide_the_others() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.running();
    fs::create_dir(c.dir.join("state/torn")).unwrap();
    fs::write(c.dir.join("state/torn/state.json"), "{").unwrap();
    let output = c.keel(&["list", "-q"]);
    assert!(output.code == 0 && output.lines().contains(&&*c.id), "{output:#?}");
}

fn an_unknown_format_is_refused() {
    let output = Sandbox::new().keel(&["list", "--format", "xml"]);
    assert!(output.code != 0 && output.stderr.contains("xml"), "{output:#?}");
}
