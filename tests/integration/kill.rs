//! `kill`: names, numbers, whom it reaches, and when it is refused.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, eventually, keel, processes_of};
use crate::{needs, tests};

tests![
    every_way_of_writing_a_signal_works,
    the_default_is_term,
    real_time_signals_work,
    an_unknown_signal_is_refused,
    a_stopped_container_is_not_running,
    a_created_container_dies_of_term,
    a_created_container_dies_of_kill,
    kill_reaches_init_only,
    kill_all_reaches_every_process,
    kill_in_a_shared_pid_namespace_takes_the_children_along,
    kill_reaches_the_children_of_an_init_that_is_gone,
    kill_takes_what_outlived_init_along,
    signal_zero_tells_whether_it_runs,
    a_pid_that_another_process_got_is_never_signalled,
    a_frozen_container_dies_of_kill,
    kill_all_of_a_stopped_container_is_no_error,
];

fn awaiting(signal: &str) -> Sandbox {
    let mut c = Sandbox::new();
    c.acts(&format!("await {signal}")).created().start().ok();
    c.wait_printed("waiting");
    c
}

fn every_way_of_writing_a_signal_works() {
    for text in ["USR1", "SIGUSR1", "usr1", "sigusr1", "10"] {
        let c = awaiting("USR1");
        c.kill(text).ok();
        c.wait_printed("USR1");
    }
}

fn the_default_is_term() {
    let c = awaiting("TERM");
    c.keel(&["kill", &c.id]).ok();
    c.wait_printed("TERM");
}

fn real_time_signals_work() {
    needs!(keel());
    // The payload cannot await them by name; without a handler it lives on as pid 1, so that 0 is the proof.
    let mut c = Sandbox::new();
    c.running();
    for text in ["RTMIN", "RTMIN+3", "SIGRTMIN+30", "RTMAX", "RTMAX-2", "34", "64"] {
        c.kill(text).ok();
    }
    for text in ["RTMIN+31", "RTMAX-31", "65", "RTMIN-1"] {
        c.kill(text).fails();
    }
}

fn an_unknown_signal_is_refused() {
    let mut c = Sandbox::new();
    c.running();
    for text in ["NONESUCH", "SIG", "-1", "65", "1x", "99999999999"] {
        c.keel(&["kill", "--", &c.id, text]).fails();
    }
    assert_eq!(c.status(), "running");
}

fn a_stopped_container_is_not_running() {
    let mut c = Sandbox::new();
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    for signal in ["TERM", "KILL"] {
        assert!(c.kill(signal).fails().contains("not running"));
    }
}

/// pid 1 ignores what it has no handler for, and a created container is pid 1 already.
fn a_created_container_dies_of_term() {
    let c = Sandbox::new();
    c.created();
    c.kill("TERM").ok();
    c.wait_stopped();
    c.delete().ok();
}

fn a_created_container_dies_of_kill() {
    let c = Sandbox::new();
    c.created();
    c.kill("KILL").ok();
    c.wait_stopped();
    c.start().fails();
    c.delete().ok();
}

fn kill_reaches_init_only() {
    let mut c = Sandbox::new();
    c.acts("spawn 2 ; await USR1 ; pause").created().start().ok();
    c.wait_printed("waiting");
    c.kill("USR1").ok();
    c.wait_printed("USR1");
    assert_eq!(processes_of(&c.id).len(), 3);
}

fn kill_all_reaches_every_process() {
    let mut c = Sandbox::new();
    c.without_namespace("pid").acts("spawn 3 ; pause").created().start().ok();
    c.wait_printed("ok");
    eventually("all four are there", || processes_of(&c.id).len() == 4);
    c.keel(&["kill", "--all", &c.id, "KILL"]).ok();
    eventually("all four are gone", || processes_of(&c.id).is_empty());
    c.wait_stopped();
}

/// In a pid namespace of its own the kernel sees to that.
fn kill_in_a_shared_pid_namespace_takes_the_children_along() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.without_namespace("pid").acts("spawn 3 ; pause").created().start().ok();
    c.wait_printed("ok");
    eventually("all four are there", || processes_of(&c.id).len() == 4);
    c.kill("KILL").ok();
    eventually("all four are gone", || processes_of(&c.id).is_empty());
}

fn kill_reaches_the_children_of_an_init_that_is_gone() {
    needs!(keel());
    for command in [&["kill", "ID", "KILL"][..], &["kill", "--all", "ID", "TERM"]] {
        let mut c = Sandbox::new();
        c.without_namespace("pid").acts("spawn 3 ; exit 0").created().start().ok();
        c.wait_stopped();
        assert_eq!(processes_of(&c.id).len(), 3);
        let args: Vec<&str> = command.iter().map(|arg| if *arg == "ID" { &*c.id } else { arg }).collect();
        c.keel(&args).ok();
        eventually("the others are gone", || processes_of(&c.id).is_empty());
    }
}

fn kill_takes_what_outlived_init_along() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.without_namespace("pid").acts("spawn 2 ; exit 0").created().start().ok();
    c.wait_stopped();
    assert!(c.kill("TERM").fails().contains("not running"));
    assert_eq!(processes_of(&c.id).len(), 2);
    c.kill("KILL").ok();
    eventually("both are gone", || processes_of(&c.id).is_empty());
    assert!(c.kill("KILL").fails().contains("not running"));
}

fn signal_zero_tells_whether_it_runs() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.running();
    c.kill("0").ok();
    assert_eq!(c.status(), "running");
}

fn a_pid_that_another_process_got_is_never_signalled() {
    needs!(keel());
    let mut c = Sandbox::new();
    let pid = c.running().pid();
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let path = c.dir.join("state").join(&c.id).join("state.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(state["pid"], pid);
    // The container's process was born a little earlier.
    (state["pid"], state["startTime"]) =
        (json!(stranger.id()), json!(state["startTime"].as_u64().unwrap() - 1));
    std::fs::write(&path, state.to_string()).unwrap();
    assert_eq!((c.status().as_str(), c.pid()), ("stopped", 0));
    assert!(c.kill("KILL").fails().contains("not running"));
    c.delete_force().ok();
    assert_eq!(c.left(), Vec::<String>::new());
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger was killed");
    stranger.kill().and_then(|()| stranger.wait()).unwrap();
}

fn a_frozen_container_dies_of_kill() {
    needs!(keel());
    for command in [&["kill", "ID", "KILL"][..], &["delete", "--force", "ID"]] {
        let mut c = Sandbox::new();
        c.running();
        std::fs::write(c.cgroup().join("cgroup.freeze"), "1").unwrap();
        eventually("it is frozen", || c.status() == "paused");
        let args: Vec<&str> = command.iter().map(|arg| if *arg == "ID" { &*c.id } else { arg }).collect();
        c.keel(&args).ok();
        eventually("it is gone", || processes_of(&c.id).is_empty());
    }
}

fn kill_all_of_a_stopped_container_is_no_error() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    for signal in ["TERM", "KILL"] {
        c.keel(&["kill", "--all", &c.id, signal]).ok();
    }
}
