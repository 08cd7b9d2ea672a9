//! `pause` and `resume`, and what else works on a paused container.

use std::fs;

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    a_paused_container_stands_still_until_resumed,
    a_paused_counter_does_not_count,
    a_created_container_can_be_paused,
    a_paused_container_can_be_killed,
    a_paused_container_can_be_deleted_by_force,
    a_stopped_container_cannot_be_paused,
    a_running_container_cannot_be_resumed,
];

fn paused(acts: &str) -> Sandbox {
    let mut c = Sandbox::new();
    c.acts(acts).created().start().ok();
    c.wait_printed("waiting");
    c.keel(&["pause", &c.id]).ok();
    assert_eq!(c.status(), "paused");
    c
}

fn a_paused_container_stands_still_until_resumed() {
    let c = paused("await USR1");
    c.kill("USR1").ok();
    let events = fs::read_to_string(c.cgroup().join("cgroup.events")).unwrap();
    assert!(events.contains("frozen 1"), "{events}");
    assert!(!c.printed().contains("USR1"));
    c.keel(&["resume", &c.id]).ok();
    c.wait_printed("USR1");
}

fn a_paused_counter_does_not_count() {
    let mut c = Sandbox::new();
    c.write("number", "");
    c.acts("count /number").created().start().ok();
    let number = || {
        let bytes = fs::read(c.rootfs().join("number")).unwrap();
        bytes.try_into().map_or(0, u64::from_ne_bytes)
    };
    let counts_on = |from| crate::sandbox::eventually("it counts", || number() > from);
    counts_on(0);
    c.keel(&["pause", &c.id]).ok();
    let paused = number();
    assert_eq!(c.status(), "paused");
    assert_eq!(number(), paused);
    c.keel(&["resume", &c.id]).ok();
    counts_on(paused);
}

fn a_created_container_can_be_paused() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.acts("pause").created();
    c.keel(&["pause", &c.id]).ok();
    assert_eq!(c.status(), "paused");
    c.keel(&["resume", &c.id]).ok();
    assert_eq!(c.status(), "created");
}

fn a_paused_container_can_be_killed() {
    needs!(keel());
    let c = paused("await USR1");
    c.kill("KILL").ok();
    crate::sandbox::eventually("it dies", || c.status() == "stopped");
}

fn a_paused_container_can_be_deleted_by_force() {
    let c = paused("await USR1");
    c.delete_force().ok();
    assert!(c.containers().is_empty());
}

fn a_stopped_container_cannot_be_paused() {
    let mut c = Sandbox::new();
    c.acts("exit 0").created().start().ok();
    crate::sandbox::eventually("it stops", || c.status() == "stopped");
    let error = c.keel(&["pause", &c.id]).fails();
    assert!(keel().is_err() || error.contains("container not running or created: stopped"), "{error}");
}

fn a_running_container_cannot_be_resumed() {
    let mut c = Sandbox::new();
    c.acts("pause").created().start().ok();
    let error = c.keel(&["resume", &c.id]).fails();
    assert!(keel().is_err() || error.contains("container not paused: running"), "{error}");
}
