//! /linux/resources/memory on a host whose cgroups have the controller: what is written, and that it holds.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, cgroupfs, controller, keel, swap};
use crate::{needs, tests};

tests![
    amounts_become_limits,
    who_takes_more_than_the_limit_is_killed,
    who_stays_below_the_limit_lives,
    swap_is_what_the_limit_leaves_of_both,
    swap_beside_the_limit_is_refused,
    a_limit_that_not_even_init_fits_into_is_named,
    a_limit_below_the_usage_kills_unless_that_is_checked,
    a_new_limit_of_both_counts_the_memory_that_holds,
];

const MIB: u64 = 1 << 20; // bytes

fn memory(section: Value) -> Sandbox {
    Sandbox::with_resources(json!({"memory": section}))
}

fn limits(c: &Sandbox) -> [String; 3] {
    ["memory.max", "memory.low", "memory.swap.max"].map(|file| c.limit(file))
}

fn amounts_become_limits() {
    needs!(controller("memory"));
    for (section, expected) in [
        (json!({}), ["max", "0", "max"]),
        (json!({"limit": 0, "reservation": 0, "swap": 0}), ["max", "0", "max"]),
        (json!({"limit": 64 * MIB}), ["67108864", "0", "max"]),
        (json!({"limit": 64 * MIB, "reservation": 16 * MIB}), ["67108864", "16777216", "max"]),
        (json!({"limit": 64 * MIB, "swap": 96 * MIB}), ["67108864", "0", "33554432"]),
        (json!({"limit": 64 * MIB, "swap": 64 * MIB}), ["67108864", "0", "0"]),
        (json!({"limit": 64 * MIB, "swap": -1}), ["67108864", "0", "max"]),
        (json!({"limit": -1, "swap": 32 * MIB}), ["max", "0", "33554432"]),
        (json!({"limit": -1}), ["max", "0", "max"]),
        (json!({"reservation": -1}), ["max", "max", "max"]),
    ] {
        let c = memory(section.clone());
        c.created();
        assert_eq!(limits(&c), expected, "{section}");
    }
}

fn who_takes_more_than_the_limit_is_killed() {
    needs!(cgroupfs(), controller("memory"));
    let mut c = memory(json!({"limit": 64 * MIB, "swap": 64 * MIB}));
    assert_eq!(c.acts("memory 96").run().code, 137);
    c.created().start().ok();
    c.wait_stopped();
    assert_eq!(c.count("memory.events", "oom_kill"), 1);
}

fn who_stays_below_the_limit_lives() {
    needs!(controller("memory"));
    let mut c = memory(json!({"limit": 64 * MIB, "swap": 64 * MIB}));
    c.acts("memory 32 ; pause").created().start().ok();
    c.wait_printed("ok");
    assert_eq!(c.count("memory.events", "oom_kill"), 0);
    let usage: u64 = c.limit("memory.current").parse().unwrap();
    assert!((32 * MIB..64 * MIB).contains(&usage), "{usage}");
}

fn swap_is_what_the_limit_leaves_of_both() {
    needs!(controller("memory"), swap());
    let mut c = memory(json!({"limit": 32 * MIB, "swap": 64 * MIB}));
    c.acts("memory 48 ; pause").created().start().ok();
    c.wait_printed("ok");
    let swapped: u64 = c.limit("memory.swap.current").parse().unwrap();
    assert!((16 * MIB..32 * MIB).contains(&swapped), "{swapped}");
    assert_eq!(memory(json!({"limit": 32 * MIB, "swap": 64 * MIB})).acts("memory 96").run().code, 137);
}

fn swap_beside_the_limit_is_refused() {
    needs!(keel());
    for (section, reason) in [
        (json!({"swap": MIB}), "needs a limit of memory beside it"),
        (json!({"limit": 2 * MIB, "swap": MIB}), "1048576 is less than the limit 2097152"),
        (json!({"limit": MIB, "swap": -2}), "must be -1 or a number of bytes, not -2"),
    ] {
        let error = memory(section).refused("/linux/resources/memory/swap");
        assert!(error.contains(reason), "{error}");
    }
}

fn a_limit_that_not_even_init_fits_into_is_named() {
    needs!(cgroupfs(), keel(), controller("memory"));
    let c = memory(json!({"limit": 4096, "swap": 4096}));
    let error = c.create().fails();
    let killed =
        "killed by the out-of-memory killer: memory.max is 4096 [config.json /linux/resources/memory/limit]";
    assert!(error.contains(killed), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_limit_below_the_usage_kills_unless_that_is_checked() {
    needs!(cgroupfs(), keel(), controller("memory"));
    let mut c = memory(json!({"limit": 64 * MIB, "swap": 64 * MIB}));
    c.acts("memory 48 ; pause").created().start().ok();
    c.wait_printed("ok");
    let mut section = json!({"limit": 16 * MIB, "swap": 16 * MIB, "checkBeforeUpdate": true});
    let error = c.update(&json!({"memory": section})).fails();
    assert!(error.contains("/memory/limit: must not be below the current usage"), "{error}");
    assert_eq!(limits(&c), ["67108864", "0", "0"]);
    section["checkBeforeUpdate"] = json!(false);
    c.update(&json!({"memory": section})).ok();
    c.wait_stopped();
    assert_eq!(c.count("memory.events", "oom_kill"), 1);
}

fn a_new_limit_of_both_counts_the_memory_that_holds() {
    needs!(keel(), controller("memory"));
    let mut c = memory(json!({"limit": 64 * MIB}));
    c.running();
    c.update(&json!({"memory": {"swap": 96 * MIB}})).ok();
    assert_eq!(limits(&c), ["67108864", "0", "33554432"]);
    let error = c.update(&json!({"memory": {"swap": 32 * MIB}})).fails();
    assert!(error.contains("/memory/swap"), "{error}");
    c.update(&json!({"memory": {"limit": -1}})).ok();
    assert_eq!(limits(&c), ["max", "0", "max"]);
}
