//! `spec`: a config to begin with.

use std::fs;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    the_config_runs_once_it_names_a_program,
    the_config_passes_the_check,
    an_existing_config_is_not_overwritten,
    it_is_written_into_the_bundle_that_is_named,
];

fn written(c: &Sandbox) -> Value {
    c.keel(&["spec"]).ok();
    serde_json::from_slice(&fs::read(c.bundle().join("config.json")).unwrap()).unwrap()
}

fn the_config_runs_once_it_names_a_program() {
    let mut c = Sandbox::new();
    c.config = written(&c);
    assert_eq!(c.config["root"]["path"], "rootfs");
    assert_eq!(c.config["process"]["args"], json!(["sh"]));
    let cgroup = format!("/{}", c.id);
    c.set("/process/terminal", false).set("/linux/cgroupsPath", cgroup);
    let seen = c.args(&["/payload", "report"]).run().ok().json();
    assert_eq!((&seen["pid"], &seen["noNewPrivileges"]), (&json!(1), &json!(true)));
}

fn the_config_passes_the_check() {
    needs!(keel());
    let c = Sandbox::new();
    written(&c);
    c.keel(&["check"]).ok();
}

fn an_existing_config_is_not_overwritten() {
    let c = Sandbox::new();
    fs::write(c.bundle().join("config.json"), "mine").unwrap();
    assert!(c.keel(&["spec"]).fails().contains("exist"));
    assert_eq!(fs::read_to_string(c.bundle().join("config.json")).unwrap(), "mine");
}

fn it_is_written_into_the_bundle_that_is_named() {
    let c = Sandbox::new();
    let other = c.host_dir("other");
    c.keel(&["spec", "--bundle", other.to_str().unwrap()]).ok();
    assert!(other.join("config.json").exists());
    assert!(!c.bundle().join("config.json").exists());
}
