//! `state`: what the spec and the callers read.

use std::fs;

use serde_json::json;

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    the_state_has_all_fields,
    the_bundle_is_absolute,
    the_pid_is_0_when_stopped,
    the_pid_is_the_payloads_on_the_host,
    the_json_is_readable,
    a_container_that_does_not_exist_is_an_error,
    a_container_of_another_root_does_not_exist,
    a_state_directory_without_a_container_is_an_error,
    the_state_is_prompt_after_the_end,
];

fn the_state_has_all_fields() {
    let mut c = Sandbox::new();
    c.set("/annotations", json!({"com.example.key": "value", "empty": ""})).created();
    let state = c.state();
    assert_eq!(state["id"], c.id);
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], c.bundle().to_str().unwrap());
    assert_eq!(state["rootfs"], c.rootfs().to_str().unwrap());
    assert_eq!(state["annotations"], json!({"com.example.key": "value", "empty": ""}));
    assert!(state["pid"].as_i64().unwrap() > 1, "{state}");
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."), "{state}");
    assert!(
        state["created"].as_str().unwrap().ends_with('Z') && state["created"].as_str().unwrap().contains('T')
    );
    assert!(state["owner"].is_string(), "{state}");
}

fn the_bundle_is_absolute() {
    let c = Sandbox::new();
    c.write_config();
    c.keel(&["create", "--bundle", "../bundle/.", &c.id]).ok();
    assert_eq!(c.state()["bundle"], c.bundle().to_str().unwrap());
}

fn the_pid_is_0_when_stopped() {
    let mut c = Sandbox::new();
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    assert_eq!(c.state()["pid"], 0);
}

fn the_pid_is_the_payloads_on_the_host() {
    let mut c = Sandbox::new();
    let pid = c.running().pid();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap(), "/payload\0pause\0");
}

fn the_json_is_readable() {
    let mut c = Sandbox::new();
    c.running();
    let text = c.keel(&["state", &c.id]).ok().stdout;
    assert!(text.starts_with("{\n  \"") && text.trim_end().ends_with("\n}"), "{text}");
}

fn a_container_that_does_not_exist_is_an_error() {
    let c = Sandbox::new();
    for command in ["state", "start", "kill", "delete"] {
        let error = c.keel(&[command, "nonesuch"]).fails();
        assert!(error.contains("does not exist") && error.contains("nonesuch"), "{command}: {error}");
    }
    assert!(c.containers().is_empty());
}

fn a_container_of_another_root_does_not_exist() {
    let (mut a, b) = (Sandbox::new(), Sandbox::new());
    a.running();
    assert!(b.keel(&["state", &a.id]).fails().contains("does not exist"));
}

fn a_state_directory_without_a_container_is_an_error() {
    needs!(keel());
    let c = Sandbox::new();
    for torn in ["", "{", "{}", "null", "\0\0\0"] {
        fs::create_dir_all(c.dir.join("state/torn")).unwrap();
        fs::write(c.dir.join("state/torn/state.json"), torn).unwrap();
        c.keel(&["state", "torn"]).fails();
        // With a warning.
        assert_eq!(c.keel(&["delete", "--force", "torn"]).code, 0);
        assert!(c.containers().is_empty(), "{torn:?}");
    }
}

/// Callers wait two seconds at most.
fn the_state_is_prompt_after_the_end() {
    let mut c = Sandbox::new();
    c.acts("await TERM").created().start().ok();
    c.wait_printed("waiting");
    let pid = c.pid();
    c.kill("TERM").ok();
    let stat = format!("/proc/{pid}/stat");
    let dead = || fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z") || text.contains(") X"));
    crate::sandbox::eventually("the payload ends", dead);
    assert_eq!(c.status(), "stopped");
}
