//! /process/capabilities and /process/noNewPrivileges.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, copy, is_keel, program};
use crate::{needs, tests};

tests![
    the_sets_are_the_configured_ones,
    no_capabilities_at_all_means_none,
    a_user_that_is_not_root_keeps_ambient_ones_only,
    the_inheritable_set_is_the_configured_one,
    the_order_of_names_does_not_matter,
    an_unknown_capability_is_a_warning,
    a_capability_that_cannot_be_granted_is_a_warning,
    an_ambient_capability_that_is_not_permitted_is_no_error,
    a_set_that_is_no_list_is_refused,
    new_privileges_are_barred_if_asked,
    a_setuid_program_gains_privileges_only_if_allowed,
];

const SETS: [&str; 5] = ["bounding", "effective", "permitted", "inheritable", "ambient"];

fn with(sets: Value) -> Sandbox {
    let mut c = Sandbox::new();
    c.set("/process/capabilities", sets);
    c
}

fn the_sets_are_the_configured_ones() {
    let (bounding, permitted) =
        (json!(["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"]), json!(["CAP_CHOWN", "CAP_KILL"]));
    let mut c = with(json!({"bounding": bounding, "permitted": permitted, "effective": ["CAP_KILL"]}));
    let seen = c.report()["capabilities"].take();
    // The execve of root makes all that is permitted effective: capabilities(7).
    assert_eq!(
        (&seen["bounding"], &seen["permitted"], &seen["effective"]),
        (&bounding, &permitted, &permitted)
    );
    assert_eq!((&seen["inheritable"], &seen["ambient"]), (&json!([]), &json!([])));
    // And it permits all of the bounding set where new privileges are not barred.
    let seen = c.set("/process/noNewPrivileges", false).report()["capabilities"].take();
    assert_eq!(
        (&seen["bounding"], &seen["permitted"], &seen["effective"]),
        (&bounding, &bounding, &bounding)
    );
}

fn no_capabilities_at_all_means_none() {
    let seen = with(json!({})).report();
    for set in SETS {
        assert_eq!(seen["capabilities"][set], json!([]), "{set}");
    }
    let seen = Sandbox::new().unset("/process/capabilities").report();
    for set in SETS {
        assert_eq!(seen["capabilities"][set], json!([]), "{set}");
    }
}

fn a_user_that_is_not_root_keeps_ambient_ones_only() {
    let all = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let some = json!(["CAP_NET_BIND_SERVICE"]);
    let mut c = with(json!({
        "bounding": all, "permitted": all, "effective": all, "inheritable": some, "ambient": some,
    }));
    let seen = c.set("/process/user", json!({"uid": 1000, "gid": 1000})).report();
    let seen = &seen["capabilities"];
    assert_eq!(seen["bounding"], all);
    for set in ["permitted", "effective", "inheritable", "ambient"] {
        assert_eq!(seen[set], some, "{set}");
    }
}

fn the_inheritable_set_is_the_configured_one() {
    let all = json!(["CAP_KILL"]);
    let seen = with(json!({"bounding": all, "permitted": all, "inheritable": all})).report();
    assert_eq!((&seen["capabilities"]["inheritable"], &seen["capabilities"]["ambient"]), (&all, &json!([])));
}

fn the_order_of_names_does_not_matter() {
    let seen = with(json!({"bounding": ["CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_CHOWN"]})).report();
    assert_eq!(seen["capabilities"]["bounding"], json!(["CAP_CHOWN", "CAP_SYS_ADMIN"]));
}

/// Runs with a log, to which warnings go; gives what the payload saw and the log.
fn logged(c: &mut Sandbox) -> (Value, String) {
    let log = c.dir.join("log");
    c.acts("report").write_config();
    let output = c.keel(&["--log", log.to_str().unwrap(), "run", &c.id]).ok();
    (output.json(), std::fs::read_to_string(log).unwrap_or_default())
}

fn an_unknown_capability_is_a_warning() {
    let sets = json!({"bounding": ["CAP_NONESUCH", "CAP_KILL"], "permitted": ["kill", "CAP_KILL"]});
    let (seen, log) = logged(&mut with(sets));
    assert_eq!(seen["capabilities"]["bounding"], json!(["CAP_KILL"]));
    assert!(log.contains("CAP_NONESUCH"), "{log}");
    assert!(!is_keel() || log.contains("/process/capabilities/bounding/0"), "{log}");
}

fn a_capability_that_cannot_be_granted_is_a_warning() {
    needs!(program("setpriv"));
    let list = json!(["CAP_KILL", "CAP_WAKE_ALARM"]);
    let mut c = with(json!({"bounding": list, "permitted": list, "effective": list}));
    c.acts("report").write_config();
    let log = c.dir.join("log");
    let run = ["--log", log.to_str().unwrap(), "run", &c.id];
    let seen = c.behind(&["setpriv", "--bounding-set", "-wake_alarm"], &run).ok().json();
    assert_eq!(seen["capabilities"]["effective"], json!(["CAP_KILL"]));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("CAP_WAKE_ALARM"), "{log}");
}

fn an_ambient_capability_that_is_not_permitted_is_no_error() {
    let (seen, _) = logged(&mut with(json!({"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]})));
    assert_eq!(seen["capabilities"]["ambient"], json!([]));
}

fn a_set_that_is_no_list_is_refused() {
    with(json!({"bounding": "CAP_KILL"})).refused("/process/capabilities/bounding");
    with(json!({"effective": [1]})).refused("/process/capabilities/effective/0");
}

fn new_privileges_are_barred_if_asked() {
    assert_eq!(Sandbox::new().report()["noNewPrivileges"], true);
    assert_eq!(Sandbox::new().set("/process/noNewPrivileges", false).report()["noNewPrivileges"], false);
    assert_eq!(Sandbox::new().unset("/process/noNewPrivileges").report()["noNewPrivileges"], false);
}

fn a_setuid_program_gains_privileges_only_if_allowed() {
    for (barred, uid) in [(true, 1000), (false, 0)] {
        let mut c = Sandbox::new();
        let setuid = c.rootfs().join("setuid");
        std::fs::create_dir(&setuid).unwrap();
        copy(&c.rootfs().join("payload"), &setuid.join("payload"));
        std::fs::set_permissions(
            setuid.join("payload"),
            std::os::unix::fs::PermissionsExt::from_mode(0o4755),
        )
        .unwrap();
        c.set("/process/user", json!({"uid": 1000, "gid": 1000})).set("/process/noNewPrivileges", barred);
        let seen = c.args(&["/setuid/payload", "report"]).run().ok().json();
        assert_eq!(seen["uid"][1], uid, "noNewPrivileges {barred}");
    }
}
