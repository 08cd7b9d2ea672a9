//! `delete`: what it refuses, and that nothing is left after it.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sandbox::{Sandbox, eventually, is_keel, keel, processes_of, program};
use crate::{needs, tests};

tests![
    a_running_container_is_not_deleted,
    a_created_container_is_killed_and_deleted,
    a_stopped_container_is_deleted,
    force_kills_a_running_container,
    force_of_a_missing_container_succeeds,
    a_missing_container_is_an_error,
    force_takes_children_in_the_hosts_pid_namespace_along,
    children_that_outlive_init_are_deleted_with_it,
    a_nested_cgroup_is_deleted,
    parents_of_the_cgroup_are_left_to_their_owner,
    force_deletes_a_running_container_whose_state_is_torn,
    nothing_sleeps_until_the_last_process_has_ended,
    the_bundle_is_left_as_it_is,
    a_container_whose_bundle_is_gone_is_deleted,
    another_containers_cgroup_stays,
    a_created_container_without_a_process_is_deleted,
    force_does_not_wait_for_a_hook_that_hangs,
    force_does_not_wait_for_a_run_that_is_stopped,
    a_create_that_died_early_takes_nobody_elses_cgroup_along,
];

fn a_running_container_is_not_deleted() {
    let mut c = Sandbox::new();
    let pid = c.running().pid();
    assert!(c.delete().fails().contains("running"));
    assert_eq!((c.status().as_str(), c.pid()), ("running", pid));
}

fn a_created_container_is_killed_and_deleted() {
    let c = Sandbox::new();
    c.created();
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_stopped_container_is_deleted() {
    let mut c = Sandbox::new();
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
    assert!(c.delete().fails().contains("does not exist"));
}

fn force_kills_a_running_container() {
    let mut c = Sandbox::new();
    c.running();
    c.delete_force().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn force_of_a_missing_container_succeeds() {
    Sandbox::new().delete_force().ok();
}

fn a_missing_container_is_an_error() {
    assert!(Sandbox::new().delete().fails().contains("does not exist"));
}

fn force_takes_children_in_the_hosts_pid_namespace_along() {
    let mut c = Sandbox::new();
    c.without_namespace("pid").acts("spawn 3 ; pause").created().start().ok();
    c.wait_printed("ok");
    eventually("all four are there", || processes_of(&c.id).len() == 4);
    c.delete_force().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn children_that_outlive_init_are_deleted_with_it() {
    let mut c = Sandbox::new();
    c.without_namespace("pid").acts("spawn 2 ; exit 0").created().start().ok();
    c.wait_stopped();
    assert_eq!(processes_of(&c.id).len(), 2);
    c.delete_force().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_nested_cgroup_is_deleted() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.without_mount("/sys/fs/cgroup");
    c.mount(serde_json::json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
    c.acts("mkdir /sys/fs/cgroup/a ; mkdir /sys/fs/cgroup/a/b ; await TERM").created().start().ok();
    c.wait_printed("ok\nok\nwaiting");
    assert!(c.cgroup().join("a/b").is_dir());
    c.kill("TERM").ok();
    c.wait_stopped();
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

/// As with the peers: another container may be about to be made there.
fn parents_of_the_cgroup_are_left_to_their_owner() {
    let mut c = Sandbox::new();
    c.set("/linux/cgroupsPath", format!("/{}/a/b", c.id)).running();
    c.delete_force().ok();
    let parent = c.cgroup().join("a");
    assert!(!parent.join("b").exists());
    fs::remove_dir(&parent).unwrap();
    fs::remove_dir(c.cgroup()).unwrap();
}

fn nothing_sleeps_until_the_last_process_has_ended() {
    needs!(keel(), program("strace"));
    let mut c = Sandbox::new();
    c.without_namespace("pid").acts("spawn 20 ; pause").created().start().ok();
    c.wait_printed("ok");
    let trace = c.dir.join("trace");
    let strace =
        ["strace", "-f", "-qq", "-e", "trace=nanosleep,clock_nanosleep,poll", "-o", trace.to_str().unwrap()];
    c.behind(&strace, &["delete", "--force", &c.id]).ok();
    let trace = fs::read_to_string(trace).unwrap();
    assert!(!trace.contains("sleep") && trace.contains("poll("), "{trace}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn the_bundle_is_left_as_it_is() {
    let mut c = Sandbox::new();
    c.write("/keep/me", "kept");
    c.running();
    c.delete_force().ok();
    assert_eq!(fs::read_to_string(c.rootfs().join("keep/me")).unwrap(), "kept");
    assert!(c.bundle().join("config.json").exists());
}

fn a_container_whose_bundle_is_gone_is_deleted() {
    let mut c = Sandbox::new();
    c.running();
    fs::rename(c.bundle(), c.dir.join("moved")).unwrap();
    let mut command = c.command(&["delete", "--force", &c.id]);
    c.execute({
        command.current_dir("/");
        command
    })
    .ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn another_containers_cgroup_stays() {
    let (mut a, mut b) = (Sandbox::new(), Sandbox::new());
    a.running();
    b.running();
    a.delete_force().ok();
    assert_eq!(b.status(), "running");
    assert!(b.cgroup().is_dir() || !crate::sandbox::is_keel());
}

/// Its first process waits for a start that can only fail, and must hold nothing meanwhile.
fn a_created_container_without_a_process_is_deleted() {
    let mut c = Sandbox::new();
    c.unset("/process").created();
    if is_keel() {
        let open = fs::read_dir(format!("/proc/{}/fd", c.pid())).unwrap();
        let open: Vec<_> = open.map(|fd| fs::read_link(fd.unwrap().path()).unwrap()).collect();
        let of_host =
            |path: &PathBuf| path.starts_with("/sys") || path.ends_with(&c.id) || path.starts_with("/proc");
        assert!(!open.iter().any(of_host), "{open:?}");
    }
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn force_does_not_wait_for_a_hook_that_hangs() {
    needs!(keel());
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut c = Sandbox::new();
        let hook = c.script("hook", "touch $D/hangs; exec sleep 100");
        c.set(&format!("/hooks/{kind}"), serde_json::json!([{"path": hook, "env": ["PATH=/bin:/usr/bin"]}]));
        c.write_config();
        let create = c.spawn(c.command(&["create", &c.id]));
        eventually("the hook runs", || c.dir.join("hangs").exists());
        c.delete_force().ok();
        create.wait().fails();
        eventually("nothing is left", || c.left().is_empty());
    }
}

fn force_does_not_wait_for_a_run_that_is_stopped() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.acts("await USR1 ; await TERM");
    let run = c.run_in_background();
    c.wait_printed("waiting");
    let signal = |signal| kill(Pid::from_raw(run.pid() as i32), signal).unwrap();
    // What passes a signal on has no more to do but that.
    signal(Signal::SIGUSR1);
    c.wait_printed("USR1\nwaiting");
    signal(Signal::SIGSTOP);
    c.delete_force().ok();
    signal(Signal::SIGCONT);
    assert_eq!(run.wait().code, 137);
}

/// It had noted which cgroup it would make, and another create has made it meanwhile.
fn a_create_that_died_early_takes_nobody_elses_cgroup_along() {
    needs!(keel());
    let mut owner = Sandbox::new();
    owner.running();
    let state = fs::read(owner.dir.join("state").join(&owner.id).join("state.json")).unwrap();
    let mut state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    (state["id"], state["pid"], state["creating"]) = ("early".into(), 0.into(), true.into());
    fs::create_dir(owner.dir.join("state/early")).unwrap();
    fs::write(owner.dir.join("state/early/state.json"), state.to_string()).unwrap();
    let delete = owner.spawn(owner.command(&["delete", "--force", "early"]));
    // Whom it finds it must wait for: it could be what that create made, and ends by itself.
    let fds = format!("/proc/{}/fd", delete.pid());
    let links = || fs::read_dir(&fds).unwrap().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    eventually("it waits for a process", || links().any(|link| link.ends_with("anon_inode:[pidfd]")));
    assert_eq!(owner.status(), "running");
    owner.kill("KILL").ok();
    assert_eq!(delete.wait().code, 0);
    assert_eq!(owner.containers(), [owner.id.as_str()]);
}

/// As much as a file system that lost its power may leave of a file.
fn force_deletes_a_running_container_whose_state_is_torn() {
    needs!(keel());
    for (last, without_cgroup) in [("\"pid\":", false), ("\"creating\":", true), ("\"creating\":", false)] {
        let mut c = Sandbox::new();
        let manager: &[&str] = if without_cgroup { &["--cgroup-manager", "disabled"] } else { &[] };
        if without_cgroup {
            c.unset("/linux/cgroupsPath");
        }
        c.acts("await TERM").write_config();
        assert_eq!(c.keel(&[manager, &["run", "--detach", &c.id]].concat()).code, 0);
        let program = PathBuf::from(format!("/proc/{}/exe", c.state()["pid"]));
        let path = c.dir.join("state").join(&c.id).join("state.json");
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, &whole[..whole.find(last).unwrap()]).unwrap();
        c.delete().fails();
        assert_eq!(c.containers(), [c.id.clone()]);
        let deleted = c.delete_force();
        assert!(deleted.code == 0 && deleted.stderr.contains("state.json"), "{deleted:#?}");
        assert_eq!(c.left(), Vec::<String>::new(), "cut before {last}");
        // Where there is no cgroup to be found by; it may still be a zombie.
        assert!(!program.exists(), "cut before {last}");
    }
}
