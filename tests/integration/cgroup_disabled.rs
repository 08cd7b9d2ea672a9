//! `--cgroup-manager disabled`: no cgroup is made or touched, and what needs one is refused.

use std::fs;

use serde_json::{Value, json};

use crate::sandbox::{Output, Sandbox, eventually, keel, processes_of};
use crate::{needs, tests};

tests![
    the_container_stays_in_the_callers_cgroup,
    the_callers_cgroup_is_shown_read_only,
    a_limit_is_refused_by_field_and_flag,
    a_writable_hierarchy_is_refused,
    device_rules_that_could_be_evaded_are_refused,
    device_rules_without_effect_are_a_warning,
    check_knows_the_flag,
    commands_that_need_a_cgroup_say_that_there_is_none,
    kill_all_reaches_what_the_pid_namespace_holds,
    kill_all_is_refused_where_it_could_miss_a_process,
    delete_by_force_takes_a_private_pid_namespace_along,
    delete_by_force_warns_of_a_shared_pid_namespace,
];

/// A config that needs no cgroup.
fn frugal() -> Sandbox {
    let mut c = Sandbox::new();
    c.unset("/linux/cgroupsPath").set("/linux/resources", json!({"devices": [{"allow": true}]}));
    c
}

fn call(c: &Sandbox, words: &[&str]) -> Output {
    c.write_config();
    c.keel(&[&["--cgroup-manager", "disabled"], words, &[&*c.id]].concat())
}

fn running(c: &mut Sandbox) -> &Sandbox {
    c.acts("pause");
    call(c, &["create"]).ok();
    c.start().ok();
    c
}

fn own_cgroup(process: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
}

fn the_container_stays_in_the_callers_cgroup() {
    needs!(keel());
    let mut c = frugal();
    running(&mut c);
    assert_eq!(own_cgroup(&c.pid().to_string()), own_cgroup("self"));
    let state = fs::read(c.dir.join("state").join(&c.id).join("state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert_eq!((&state["cgroupManager"], &state["cgroup"]), (&json!("disabled"), &Value::Null));
    c.kill("KILL").ok();
    c.wait_stopped();
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn the_callers_cgroup_is_shown_read_only() {
    needs!(keel());
    for namespace in [true, false] {
        let mut c = frugal();
        if !namespace {
            c.without_namespace("cgroup");
        }
        c.acts("mkdir /sys/fs/cgroup/a ; open r /sys/fs/cgroup/cgroup.procs");
        assert_eq!(call(&c, &["run"]).ok().lines(), ["EROFS", "ok"], "namespace: {namespace}");
    }
}

fn refused(c: &Sandbox, field: &str) -> String {
    let error = call(c, &["create"]).fails();
    assert!(error.contains(&format!("{field}: ")) && error.contains("--cgroup-manager disabled"), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
    error
}

fn a_limit_is_refused_by_field_and_flag() {
    needs!(keel());
    for (pointer, value) in [
        ("/linux/resources/memory/limit", json!(1 << 20)),
        ("/linux/resources/pids/limit", json!(5)),
        ("/linux/resources/cpu/quota", json!(5000)),
        ("/linux/resources/unified/cgroup.max.depth", json!("5")),
        ("/linux/cgroupsPath", json!("/a")),
        ("/annotations/run.oci.delegate-cgroup", json!("a")),
    ] {
        refused(frugal().set(pointer, value), pointer);
    }
}

fn a_writable_hierarchy_is_refused() {
    needs!(keel());
    for namespace in [true, false] {
        let mut c = frugal();
        c.without_mount("/sys/fs/cgroup");
        c.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid"]}));
        if !namespace {
            c.without_namespace("cgroup");
        }
        refused(&c, "/mounts/6/options");
    }
}

fn device_rules_that_could_be_evaded_are_refused() {
    needs!(keel());
    let mut c = frugal();
    c.set("/process/capabilities/bounding", json!(["CAP_MKNOD"]));
    c.set("/process/capabilities/effective", json!([])).set("/process/capabilities/permitted", json!([]));
    c.acts("echo up");
    assert_eq!(call(&c, &["run"]).ok().lines(), ["up"]);
    c.set("/linux/resources", json!({"devices": [{"allow": false, "access": "rwm"}]}));
    assert!(refused(&c, "/linux/resources/devices").contains("drop CAP_MKNOD"));
}

fn device_rules_without_effect_are_a_warning() {
    needs!(keel());
    let mut c = frugal();
    c.set("/linux/resources", json!({"devices": [{"allow": false, "access": "rwm"}]})).acts("echo up");
    let output = call(&c, &["run"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, "up\n"));
    assert!(
        output.stderr.contains("warning") && output.stderr.contains("/linux/resources/devices"),
        "{output:?}"
    );
}

fn check_knows_the_flag() {
    needs!(keel());
    let mut c = frugal();
    c.set("/linux/resources/pids/limit", 5).write_config();
    c.keel(&["check"]).ok();
    let output = c.keel(&["check", "--cgroup-manager", "disabled"]);
    assert_eq!(output.code, 1);
    assert!(output.stdout.contains("/linux/resources/pids/limit: needs a cgroup"), "{output:?}");
}

fn commands_that_need_a_cgroup_say_that_there_is_none() {
    needs!(keel());
    let mut c = frugal();
    running(&mut c);
    for words in [&["pause"][..], &["update", "--pids-limit", "5"], &["ps"]] {
        let error = call(&c, words).fails();
        assert!(error.contains("the container has no cgroup"), "{words:?}: {error}");
    }
    assert!(call(&c, &["resume"]).fails().contains("the container has no cgroup"));
    assert_eq!(c.status(), "running");
}

fn kill_all_reaches_what_the_pid_namespace_holds() {
    needs!(keel());
    let mut c = frugal();
    c.acts("spawn 3 ; pause");
    call(&c, &["create"]).ok();
    c.start().ok();
    c.wait_printed("ok");
    c.keel(&["kill", "--all", &c.id, "KILL"]).ok();
    eventually("all four are gone", || processes_of(&c.id).is_empty());
    c.wait_stopped();
    c.keel(&["kill", "--all", &c.id, "KILL"]).ok();
}

fn kill_all_is_refused_where_it_could_miss_a_process() {
    needs!(keel());
    let mut c = frugal();
    running(&mut c);
    let error = c.keel(&["kill", "--all", &c.id, "TERM"]).fails();
    assert!(error.contains("no cgroup"), "{error}");
    assert_eq!(c.status(), "running");

    let mut c = frugal();
    running(c.without_namespace("pid"));
    let error = c.keel(&["kill", "--all", &c.id, "KILL"]).fails();
    assert!(error.contains("no cgroup"), "{error}");
    assert_eq!(c.status(), "running");
    c.kill("KILL").ok();
    c.wait_stopped();
}

fn delete_by_force_takes_a_private_pid_namespace_along() {
    needs!(keel());
    let mut c = frugal();
    c.acts("spawn 3 ; pause");
    call(&c, &["create"]).ok();
    c.start().ok();
    c.wait_printed("ok");
    c.delete_force().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn delete_by_force_warns_of_a_shared_pid_namespace() {
    needs!(keel());
    let mut c = frugal();
    running(c.without_namespace("pid"));
    let output = c.delete_force();
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stderr.contains("its other processes may live on"), "{output:?}");
    assert_eq!(c.left(), Vec::<String>::new());
}
