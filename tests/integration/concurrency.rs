//! Commands at the same time: on many containers, and on one.

use std::thread;

use crate::sandbox::{Running, Sandbox, eventually, keel};
use crate::{needs, tests};

tests![
    eight_containers_at_once,
    of_two_creates_exactly_one_succeeds,
    of_two_starts_exactly_one_succeeds,
    kill_against_start_is_one_or_the_other,
    delete_force_against_create_leaves_nothing,
    list_against_delete_never_fails,
    state_against_start_is_always_a_status,
    of_two_deletes_the_second_finds_nothing,
];

fn eight_containers_at_once() {
    thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                for _ in 0..5 {
                    let mut c = Sandbox::new();
                    assert_eq!(c.acts(&format!("exit {number}")).run().code, number);
                }
            });
        }
    });
}

fn of_two_creates_exactly_one_succeeds() {
    for _ in 0..10 {
        let mut c = Sandbox::new();
        c.acts("pause").write_config();
        let both = [0, 1].map(|_| c.spawn(c.command(&["create", &c.id]))).map(|running| running.wait().code);
        assert_eq!(both.iter().filter(|code| **code == 0).count(), 1, "{both:?}");
        assert_eq!(c.status(), "created");
    }
}

fn of_two_starts_exactly_one_succeeds() {
    for _ in 0..10 {
        let mut c = Sandbox::new();
        c.acts("pause").created();
        let both = [0, 1].map(|_| c.spawn(c.command(&["start", &c.id]))).map(|running| running.wait().code);
        assert_eq!(both.iter().filter(|code| **code == 0).count(), 1, "{both:?}");
        assert_eq!(c.status(), "running");
    }
}

fn kill_against_start_is_one_or_the_other() {
    for _ in 0..10 {
        let mut c = Sandbox::new();
        c.acts("pause").created();
        let start = c.spawn(c.command(&["start", &c.id]));
        let kill = c.spawn(c.command(&["kill", &c.id, "KILL"]));
        kill.wait().ok();
        // Too late or just in time, but it comes back.
        start.wait();
        c.wait_stopped();
        c.delete().ok();
    }
}

fn delete_force_against_create_leaves_nothing() {
    for _ in 0..20 {
        let mut c = Sandbox::new();
        c.acts("pause").write_config();
        let create = c.spawn(c.command(&["create", &c.id]));
        let delete = c.spawn(c.command(&["delete", "--force", &c.id]));
        delete.wait().ok();
        create.wait();
        c.delete_force().ok();
        eventually("nothing is left", || c.left().is_empty());
    }
}

fn list_against_delete_never_fails() {
    let mut c = Sandbox::new();
    for _ in 0..10 {
        c.acts("pause").created();
        let delete = c.spawn(c.command(&["delete", "--force", &c.id]));
        let lists = [0, 1, 2].map(|_| c.spawn(c.command(&["list"])));
        for list in lists {
            list.wait().ok();
        }
        delete.wait().ok();
    }
}

fn state_against_start_is_always_a_status() {
    for _ in 0..10 {
        let mut c = Sandbox::new();
        c.acts("pause").created();
        let start = c.spawn(c.command(&["start", &c.id]));
        for _ in 0..5 {
            assert!(["created", "running"].contains(&c.status().as_str()));
        }
        start.wait().ok();
        assert_eq!(c.status(), "running");
    }
}

fn of_two_deletes_the_second_finds_nothing() {
    needs!(keel());
    for _ in 0..20 {
        let mut c = Sandbox::new();
        c.acts("pause").created();
        let both = [0, 1].map(|_| c.spawn(c.command(&["delete", &c.id]))).map(Running::wait);
        assert_eq!(both.iter().filter(|output| output.code == 0).count(), 1, "{both:?}");
        // The other one may meet a directory that is empty already, which a create makes too.
        let said = both.iter().map(|output| &*output.stderr).collect::<String>();
        assert!(said.contains("does not exist") || said.contains("creating"), "{said}");
        assert_eq!(c.left(), Vec::<String>::new());
    }
}
