//! The cgroups of a user: those that were delegated to it, and none.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::rootless::{newuidmap, with_own_id};
use crate::sandbox::{Output, Running, Sandbox, USER, cgroup_root, controller, eventually, keel, program};
use crate::{needs, tests};

tests![
    nothing_delegated_and_nothing_asked_is_no_cgroup,
    what_needs_a_cgroup_is_refused_without_one,
    the_way_in_rootless_false_is_an_error,
    commands_that_need_a_cgroup_say_that_there_is_none,
    kill_all_reaches_what_the_pid_namespace_holds,
    delete_warns_of_a_shared_pid_namespace,
    a_delegated_cgroup_is_used_beside_the_callers,
    the_callers_cgroup_is_used_if_it_alone_is_delegated,
    every_command_works_with_a_delegated_cgroup,
    limits_hold_in_a_delegated_cgroup,
    a_controller_that_is_not_delegated_is_named,
    device_rules_are_skipped,
    a_cgroup_of_a_subordinate_user_is_removed,
    the_users_cgroups_are_not_writable_in_the_container,
];

/// A cgroup of the user, with one in it for whoever calls the runtime; both removed at the end.
pub struct Delegated {
    pub top: PathBuf,
    pub caller: PathBuf,
}

impl Delegated {
    /// `whole`: the top belongs to the user too, and not only the caller's.
    pub fn new(c: &Sandbox, whole: bool) -> Self {
        let top = cgroup_root().expect("a cgroup2 mount").join(format!("{}-user", c.id));
        let caller = top.join("caller");
        fs::create_dir_all(&caller).unwrap();
        let given: &[&Path] = if whole { &[&top, &caller] } else { &[&caller] };
        for dir in given {
            for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                chown(dir.join(name), Some(USER), Some(USER)).unwrap();
            }
        }
        Self { top, caller }
    }

    /// The runtime, called from in there.
    pub fn spawn(&self, c: &Sandbox, words: &[&str]) -> Running {
        c.write_config();
        let keel = c.command(words);
        let script = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", self.caller.display());
        let (uid, gid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", "setpriv", &uid, &gid, "--clear-groups"]);
        command.arg(keel.get_program()).args(keel.get_args()).current_dir(c.bundle()).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("SANDBOX", &c.id);
        c.spawn(command)
    }

    #[track_caller]
    pub fn call(&self, c: &Sandbox, words: &[&str]) -> Output {
        self.spawn(c, &[words, &[&*c.id]].concat()).wait()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for dir in [&self.caller, &self.top] {
            if let Err(e) = fs::remove_dir(dir)
                && !std::thread::panicking()
            {
                panic!("remove {}: {e}", dir.display());
            }
        }
    }
}

fn state_file(c: &Sandbox) -> Value {
    let text = fs::read(c.dir.join("state").join(&c.id).join("state.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn cgroup_of(process: impl std::fmt::Display) -> String {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
}

fn nothing_delegated_and_nothing_asked_is_no_cgroup() {
    needs!(keel());
    let mut c = with_own_id();
    c.running();
    assert_eq!(cgroup_of(c.pid()), cgroup_of("self"));
    let state = state_file(&c);
    assert_eq!((&state["cgroupManager"], &state["cgroup"]), (&json!("undelegated"), &Value::Null));
    c.exec(&[], "echo in").ok();
    c.kill("KILL").ok();
    c.wait_stopped();
    c.delete().ok();
    // A limit of none is as good.
    c.set("/linux/resources", json!({"pids": {"limit": -1}, "devices": [{"allow": false}]}));
    c.acts("exit 0").run().ok();
}

fn what_needs_a_cgroup_is_refused_without_one() {
    needs!(keel());
    for (pointer, value, field) in [
        ("/linux/resources", json!({"memory": {"limit": 9_000_000}}), "/linux/resources/memory/limit"),
        ("/linux/resources", json!({"pids": {"limit": 5}}), "/linux/resources/pids/limit"),
        ("/linux/cgroupsPath", json!("a"), "/linux/cgroupsPath"),
        ("/linux/cgroupsPath", json!("/keel-test/a"), "/linux/cgroupsPath"),
        ("/annotations", json!({"run.oci.delegate-cgroup": "x"}), "/annotations/run.oci.delegate-cgroup"),
    ] {
        let error = with_own_id().set(pointer, value).refused(field);
        assert!(error.contains("delegated to this user"), "{error}");
    }
    let mut c = with_own_id();
    c.set("/mounts/6/options", json!(["nosuid"])).refused("/mounts/6/options");
}

fn the_way_in_rootless_false_is_an_error() {
    needs!(keel());
    let c = with_own_id();
    c.write_config();
    let error = c.keel(&["--rootless", "false", "run", &c.id]).fails();
    assert!(error.contains("create cgroup") && error.contains("not delegated"), "{error}");
    c.keel(&["--rootless", "true", "run", &c.id]).ok();
}

fn commands_that_need_a_cgroup_say_that_there_is_none() {
    needs!(keel());
    let mut c = with_own_id();
    c.running();
    for words in
        [&["pause"][..], &["resume"], &["ps"], &["events", "--stats"], &["update", "--pids-limit", "3"]]
    {
        let error = c.keel(&[words, &[&*c.id]].concat()).fails();
        assert!(error.contains("none was delegated to the user who made it"), "{words:?}: {error}");
    }
    assert_eq!(c.status(), "running");
}

fn kill_all_reaches_what_the_pid_namespace_holds() {
    needs!(keel());
    let mut c = with_own_id();
    c.acts("spawn 3 ; pause").created().start().ok();
    c.wait_printed("ok");
    let error = c.keel(&["kill", "--all", &c.id, "TERM"]).fails();
    assert!(error.contains("its processes could be found"), "{error}");
    c.keel(&["kill", "--all", &c.id, "KILL"]).ok();
    c.wait_stopped();
    c.keel(&["kill", "--all", &c.id, "KILL"]).ok();
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn delete_warns_of_a_shared_pid_namespace() {
    needs!(keel());
    let mut c = with_own_id();
    c.without_namespace("pid").set("/mounts", json!([])).set("/linux/maskedPaths", json!([]));
    c.set("/linux/readonlyPaths", json!([])).running();
    let output = c.delete_force();
    assert!(output.code == 0 && output.stderr.contains("its other processes may live on"), "{output:#?}");
}

fn a_delegated_cgroup_is_used_beside_the_callers() {
    needs!(keel(), program("setpriv"));
    for path in [None, Some("deep/er")] {
        let mut c = with_own_id();
        let user = Delegated::new(&c, true);
        if let Some(path) = path {
            c.set("/linux/cgroupsPath", path);
        }
        c.acts("pause");
        user.call(&c, &["create"]).ok();
        let cgroup = user.top.join(path.unwrap_or(&c.id));
        let pid = c.pid();
        assert!(fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().contains(&pid.to_string()));
        c.delete_force().ok();
        assert!(!cgroup.exists());
        if path.is_some() {
            fs::remove_dir(user.top.join("deep")).unwrap();
        }
    }
}

fn the_callers_cgroup_is_used_if_it_alone_is_delegated() {
    needs!(keel(), program("setpriv"));
    let mut c = with_own_id();
    let user = Delegated::new(&c, false);
    c.acts("pause");
    user.call(&c, &["create"]).ok();
    assert_eq!(state_file(&c)["cgroup"], json!(user.caller.join(&c.id)));
    c.delete_force().ok();
}

fn every_command_works_with_a_delegated_cgroup() {
    needs!(keel(), program("setpriv"));
    let mut c = with_own_id();
    let user = Delegated::new(&c, true);
    c.acts("spawn 2 ; pause");
    user.call(&c, &["create"]).ok();
    user.call(&c, &["start"]).ok();
    c.wait_printed("ok");
    let exec = user.spawn(&c, &["exec", "-d", &c.id, "/payload", "pause"]).wait().ok();
    assert_eq!(exec.stdout, "");
    let pids = || user.call(&c, &["ps", "-f", "json"]).ok().json().as_array().unwrap().len();
    eventually("four processes", || pids() == 4);
    user.call(&c, &["pause"]).ok();
    assert_eq!(c.status(), "paused");
    user.call(&c, &["resume"]).ok();
    assert!(user.call(&c, &["events", "--stats"]).ok().stdout.contains("\"type\":\"stats\""));
    user.spawn(&c, &["kill", "--all", &c.id, "KILL"]).wait().ok();
    c.wait_stopped();
    user.call(&c, &["delete"]).ok();
    assert!(!user.top.join(&c.id).exists());
    // And in one go.
    c.acts("cat /proc/self/cgroup");
    assert_eq!(user.call(&c, &["run"]).ok().stdout.lines().last(), Some("0::/"));
}

fn limits_hold_in_a_delegated_cgroup() {
    needs!(keel(), program("setpriv"), controller("pids"));
    let mut c = with_own_id();
    let user = Delegated::new(&c, true);
    fs::write(user.top.parent().unwrap().join("cgroup.subtree_control"), "+pids").unwrap();
    c.set("/linux/resources", json!({"pids": {"limit": 3}})).acts("spawn 9");
    assert_eq!(user.call(&c, &["run"]).ok().stdout, "EAGAIN after 2\n");
}

fn a_controller_that_is_not_delegated_is_named() {
    needs!(keel(), program("setpriv"));
    let mut c = with_own_id();
    let user = Delegated::new(&c, true);
    c.set("/linux/resources", json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}));
    c.acts("exit 0");
    let output = user.call(&c, &["run"]);
    // Unless the host passes it on to all.
    if output.code != 0 {
        let error = output.fails();
        assert!(error.contains("enable the cgroup controller hugetlb"), "{error}");
        assert!(error.contains("/linux/resources/hugepageLimits/0"), "{error}");
    }
    assert_eq!(c.left(), Vec::<String>::new());
}

fn device_rules_are_skipped() {
    needs!(keel(), program("setpriv"));
    let mut c = with_own_id();
    let user = Delegated::new(&c, true);
    c.set("/linux/resources", json!({"devices": [{"allow": false, "access": "rwm"}]}));
    c.acts("write /dev/null x");
    assert_eq!(user.call(&c, &["run"]).ok().stdout, "ok\n");
}

/// The container makes cgroups as another user than the one who removes them.
fn a_cgroup_of_a_subordinate_user_is_removed() {
    needs!(keel(), program("setpriv"), newuidmap());
    let mut c = Sandbox::new();
    c.rootless_with_subids();
    let user = Delegated::new(&c, true);
    c.set("/mounts/6/options", json!(["nosuid"]))
        .acts("mkdir /sys/fs/cgroup/in ; mkdir /sys/fs/cgroup/in/er");
    assert_eq!(user.call(&c, &["run"]).ok().stdout, "ok\nok\n");
    assert!(!user.top.join(&c.id).exists());
}

/// CVE-2023-25809: without a cgroup namespace, and with all of the host's /sys bound, as a user's config has it, the
/// container could write to the cgroups of its user.
fn the_users_cgroups_are_not_writable_in_the_container() {
    needs!(keel(), program("setpriv"));
    for namespace in [false, true] {
        for delegated in [false, true] {
            let mut c = with_own_id();
            let user = Delegated::new(&c, delegated);
            c.keel(&["spec", "--rootless"]).ok();
            c.config = serde_json::from_slice(&fs::read(c.bundle().join("config.json")).unwrap()).unwrap();
            c.set("/process/terminal", false).set("/process/capabilities/bounding/-", "CAP_DAC_OVERRIDE");
            c.set("/process/capabilities/permitted/-", "CAP_DAC_OVERRIDE");
            c.set("/process/capabilities/effective/-", "CAP_DAC_OVERRIDE");
            if !namespace {
                c.without_namespace("cgroup");
            }
            // Through the host's /sys, and through the mount of its own.
            let outer = user.caller.display().to_string();
            let acts = format!(
                "mkdir {outer}/x ; write {outer}/cgroup.procs 0 ; mkdir /sys/fs/cgroup/x ; \
                 write /sys/fs/cgroup/cgroup.procs 0"
            );
            let done = user
                .call(
                    &{
                        c.acts(&acts);
                        c
                    },
                    &["run"],
                )
                .ok()
                .stdout;
            for line in done.lines() {
                assert!(["EROFS", "ENOENT"].contains(&line), "namespace {namespace}: {done}");
            }
            assert!(done.lines().filter(|line| *line == "EROFS").count() >= 2, "{done}");
        }
    }
}
