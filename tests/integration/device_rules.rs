//! /linux/resources/devices: what the container's cgroup lets it open and make.

use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    a_device_that_no_rule_allows_is_refused,
    an_allowed_device_opens_for_the_allowed_access_only,
    a_later_rule_overrides_an_earlier_one,
    a_rule_without_numbers_means_all,
    a_rule_without_type_means_all_devices,
    the_default_devices_work_although_all_is_denied,
    any_device_can_be_made_but_not_opened_by_default,
    block_and_character_devices_are_told_apart,
    without_rules_everything_else_is_denied,
    an_unknown_access_letter_is_refused,
    an_unknown_type_is_refused,
    a_rule_without_allow_is_refused,
];

const KMSG: &str = "mknod c /tmp/kmsg 1 11 ; open r /tmp/kmsg ; open w /tmp/kmsg";

fn with_rules(rules: Value) -> Sandbox {
    let mut c = Sandbox::new();
    for set in ["bounding", "effective", "permitted"] {
        c.set(
            &format!("/process/capabilities/{set}"),
            json!(["CAP_MKNOD", "CAP_SYSLOG", "CAP_DAC_OVERRIDE"]),
        );
    }
    c.set("/linux/resources/devices", rules);
    c
}

fn deny_all() -> Value {
    json!({"allow": false, "access": "rwm"})
}

fn a_device_that_no_rule_allows_is_refused() {
    let mut c = with_rules(json!([deny_all()]));
    assert_eq!(c.does(KMSG), ["ok", "EPERM", "EPERM"]);
}

fn an_allowed_device_opens_for_the_allowed_access_only() {
    for (access, expected) in
        [("r", ["ok", "ok", "EPERM"]), ("w", ["ok", "EPERM", "ok"]), ("rw", ["ok", "ok", "ok"])]
    {
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": access});
        assert_eq!(with_rules(json!([deny_all(), rule])).does(KMSG), expected, "{access}");
    }
}

fn a_later_rule_overrides_an_earlier_one() {
    let rule = |allow: bool| json!({"allow": allow, "type": "c", "major": 1, "minor": 11, "access": "rw"});
    let mut c = with_rules(json!([deny_all(), rule(true), rule(false)]));
    assert_eq!(c.does(KMSG), ["ok", "EPERM", "EPERM"]);
    let mut c = with_rules(json!([deny_all(), rule(false), rule(true)]));
    assert_eq!(c.does(KMSG), ["ok", "ok", "ok"]);
}

fn a_rule_without_numbers_means_all() {
    let mut c = with_rules(json!([deny_all(), {"allow": true, "type": "c", "access": "r"}]));
    assert_eq!(c.does(KMSG), ["ok", "ok", "EPERM"]);
    let mut c = with_rules(json!([deny_all(), {"allow": true, "type": "c", "major": 1, "access": "r"}]));
    assert_eq!(c.does(KMSG), ["ok", "ok", "EPERM"]);
    for (major, minor) in [(1, -1), (-1, 11), (-1, -1)] {
        let rule = json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "r"});
        let mut c = with_rules(json!([deny_all(), rule]));
        assert_eq!(c.does(KMSG), ["ok", "ok", "EPERM"], "{major}:{minor}");
    }
    for (major, minor) in [(2, -1), (-1, 12)] {
        let rule = json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "r"});
        let mut c = with_rules(json!([deny_all(), rule]));
        assert_eq!(c.does(KMSG), ["ok", "EPERM", "EPERM"], "{major}:{minor}");
    }
}

fn a_rule_without_type_means_all_devices() {
    let mut c = with_rules(json!([deny_all(), {"allow": true, "access": "rwm"}]));
    assert_eq!(c.does(KMSG), ["ok", "ok", "ok"]);
    let mut c = with_rules(json!([deny_all(), {"allow": true, "type": "a", "access": "rwm"}]));
    assert_eq!(c.does(KMSG), ["ok", "ok", "ok"]);
}

fn the_default_devices_work_although_all_is_denied() {
    let mut c = with_rules(json!([deny_all()]));
    for name in ["null", "zero", "full", "random", "urandom", "ptmx"] {
        let seen = c.does(&format!("open r /dev/{name} ; open w /dev/{name}"));
        assert_eq!(seen, ["ok", "ok"], "{name}");
    }
    // Allowed; without a terminal there is none.
    assert_eq!(c.does("open r /dev/tty"), ["ENXIO"]);
}

fn any_device_can_be_made_but_not_opened_by_default() {
    let mut c = with_rules(json!([deny_all()]));
    let seen = c.does("mknod c /tmp/c 1 1 ; mknod b /tmp/b 7 0 ; open r /tmp/c ; open r /tmp/b");
    assert_eq!(seen, ["ok", "ok", "EPERM", "EPERM"]);
}

fn block_and_character_devices_are_told_apart() {
    let mut c = with_rules(
        json!([deny_all(), {"allow": true, "type": "b", "major": 1, "minor": 11, "access": "rwm"}]),
    );
    assert_eq!(c.does(KMSG), ["ok", "EPERM", "EPERM"]);
}

fn without_rules_everything_else_is_denied() {
    let mut c = with_rules(json!([]));
    c.config["linux"].as_object_mut().unwrap().remove("resources");
    assert_eq!(c.does(KMSG), ["ok", "EPERM", "EPERM"]);
}

fn an_unknown_access_letter_is_refused() {
    let c = with_rules(json!([deny_all(), {"allow": true, "type": "c", "access": "rwx"}]));
    c.refused("/linux/resources/devices/1/access");
}

fn an_unknown_type_is_refused() {
    let c = with_rules(json!([{"allow": true, "type": "d", "access": "rwm"}]));
    c.refused("/linux/resources/devices/0/type");
}

fn a_rule_without_allow_is_refused() {
    with_rules(json!([{"type": "c", "access": "rwm"}])).refused("/linux/resources/devices/0/allow");
}
