//! A limit of memory that is too small for the container's first process: whenever it dies, the error says of what.

use std::fs;

use serde_json::json;

use crate::sandbox::{Sandbox, cgroupfs, controller, keel};
use crate::{needs, tests};

tests![
    a_container_that_cannot_be_set_up_names_the_limit,
    a_limit_by_file_name_is_named_too,
    a_limit_above_is_told_from_the_containers_own,
    start_says_that_init_went_before_the_program_came,
    no_limit_lets_a_container_vanish_without_a_word,
];

const KILLED: &str = "the container's first process was killed by the out-of-memory killer: ";

/// Of a container's own limit. systemd removes a cgroup with its last process, and with it what it was killed for.
fn killed_by_limit(limit: &str) -> String {
    match cgroupfs() {
        Ok(()) => format!("{KILLED}memory.max is {limit} ["),
        Err(_) => format!("{}is memory.max too small? [", KILLED.replace("killed by", "killed, perhaps by")),
    }
}

fn a_container_that_cannot_be_set_up_names_the_limit() {
    needs!(keel(), controller("memory"));
    let mut c = Sandbox::new();
    c.set("/linux/resources/memory", json!({"limit": 8192}));
    for output in [c.create(), c.run()] {
        let error = output.fails();
        assert!(
            error.contains(&format!("{}config.json /linux/resources/memory/limit]", killed_by_limit("8192"))),
            "{error}"
        );
        assert_eq!(c.left(), Vec::<String>::new());
    }
}

fn a_limit_by_file_name_is_named_too() {
    needs!(keel(), controller("memory"));
    let mut c = Sandbox::new();
    c.set("/linux/resources/unified", json!({"memory.max": "8192"}));
    assert!(c.refused("/linux/resources/unified/memory.max").contains(&killed_by_limit("8192")));
}

fn a_limit_above_is_told_from_the_containers_own() {
    needs!(keel(), controller("memory"));
    let mut c = Sandbox::new();
    c.set("/linux/cgroupsPath", format!("/{}/below", c.id));
    c.set("/linux/resources/memory", json!({"limit": 64 << 20}));
    // Puts the controller to work at the top.
    c.created().delete_force().ok();
    let mut kills = 0;
    for kib in (8..=200).step_by(16) {
        fs::create_dir_all(c.cgroup()).unwrap();
        fs::write(c.cgroup().join("memory.max"), (kib << 10).to_string()).unwrap();
        let created = c.create();
        if created.code != 0 {
            let error = created.fails();
            let above = format!("{KILLED}the host, or a cgroup above its own, is out of memory");
            kills += usize::from(error.contains(&above));
            assert!(error.contains(&above) || error.contains("no memory for it"), "{kib} KiB: {error}");
        }
        c.delete_force().ok();
        fs::remove_dir(c.cgroup()).unwrap();
    }
    assert!(kills > 0);
}

/// Its first process goes between `start` and execve, along with a hook that takes all the memory there is.
fn start_says_that_init_went_before_the_program_came() {
    needs!(keel(), controller("memory"));
    let mut c = Sandbox::new();
    c.busybox();
    c.set("/linux/resources/memory", json!({"limit": 32 << 20, "swap": 32 << 20}));
    c.set("/linux/resources/unified", json!({"memory.oom.group": "1"}));
    let hog = json!({"path": "/bin/sh", "args": ["sh", "-c", "x=x; while :; do x=$x$x; done"]});
    c.set("/hooks/startContainer", json!([hog])).acts("echo up").created();
    let killed = format!("{}config.json /linux/resources/memory/limit]", killed_by_limit("33554432"));
    let error = c.start().fails();
    assert!(error.contains(&format!("start container {}: {killed}", c.id)), "{error}");
    assert_eq!(c.status(), "stopped");
    let error = c.start().fails();
    assert!(error.contains(&format!("already running or stopped container: {killed}")), "{error}");
    c.delete().ok();
    assert!(c.run().fails().contains(&killed));
    assert!(!c.printed().lines().any(|line| line == "up"));
}

/// From far too little to enough: either it runs, or `create` or `start` says why not.
fn no_limit_lets_a_container_vanish_without_a_word() {
    needs!(keel(), controller("memory"));
    let mut c = Sandbox::new();
    c.acts("echo up ; await TERM");
    // The files that it reads are then somebody else's memory.
    c.set("/linux/resources/memory", json!({"limit": 64 << 20})).run_to_waiting();
    let mut refusals = [0, 0];
    for kib in (16..=640).step_by(16) {
        c.set("/linux/resources/memory", json!({"limit": kib << 10}));
        let created = c.create();
        if created.code != 0 {
            let error = created.fails();
            assert!(
                error.contains(&killed_by_limit(&(kib << 10).to_string()))
                    && error.contains("/memory/limit]"),
                "{kib} KiB: {error}"
            );
            assert_eq!(c.left(), Vec::<String>::new(), "{kib} KiB");
            refusals[0] += 1;
            continue;
        }
        let started = c.start();
        if started.code != 0 {
            let error = started.fails();
            assert!(
                error.contains(&killed_by_limit(&(kib << 10).to_string()))
                    && error.contains("/memory/limit]"),
                "{kib} KiB: {error}"
            );
            refusals[1] += 1;
        }
        c.delete_force().ok();
    }
    println!("refused by create: {}, by start: {}", refusals[0], refusals[1]);
    assert!(refusals[0] > 0 && refusals[0] + refusals[1] < 30, "{refusals:?}");
}

impl Sandbox {
    fn run_to_waiting(&mut self) {
        self.created().start().ok();
        self.wait_printed("waiting");
        self.delete_force().ok();
    }
}
