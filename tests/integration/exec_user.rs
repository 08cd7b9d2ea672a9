//! `exec --user`, `--additional-gids` and `--cap`.

use serde_json::{Value, json};

use crate::exec::running;
use crate::sandbox::{Sandbox, copy, keel};
use crate::{needs, tests};

tests![
    ids_are_exactly_those_given,
    what_is_no_id_is_an_error_and_never_root,
    a_user_keeps_the_groups_of_the_container,
    additional_groups_are_added,
    an_additional_group_that_is_none_is_refused,
    standard_streams_belong_to_the_user,
    the_callers_groups_do_not_leak,
    a_capability_is_added,
    an_added_capability_is_never_inheritable,
    an_added_capability_that_the_config_has_inheritable_outlives_the_change_of_user,
    an_unknown_capability_is_refused,
    an_unknown_capability_of_a_process_file_is_a_warning,
    a_setuid_program_gains_privileges_only_if_allowed,
];

/// CVE-2026-30892: `-u 1` ran as root.
fn ids_are_exactly_those_given() {
    needs!(keel());
    let c = running();
    for (user, uid, gid) in [
        ("1", 1, 0),
        ("1:2", 1, 2),
        ("0", 0, 0),
        ("0:0", 0, 0),
        ("0:7", 0, 7),
        ("007:08", 7, 8),
        ("65534:65534", 65534, 65534),
        ("4294967294:4294967294", 4_294_967_294u32, 4_294_967_294u32),
    ] {
        let seen = c.exec_report(&["--user", user]);
        assert_eq!((&seen["uid"], &seen["gid"]), (&json!(vec![uid; 4]), &json!(vec![gid; 4])), "{user}");
        assert_eq!(seen["groups"], json!([]));
    }
}

fn what_is_no_id_is_an_error_and_never_root() {
    needs!(keel());
    let c = running();
    let wrong = [
        "-1",
        "4294967295",
        "4294967296",
        "18446744073709551616",
        "1x",
        "1:",
        ":1",
        "",
        " 1",
        "1 ",
        "+1",
        "root",
        "root:root",
        "1:root",
        "1:-1",
        "1:4294967295",
        "1:4294967296",
        "1:+1",
        "1:2:3",
        ":",
        "0x1",
        "1.0",
        "1e1",
        "١",
        "1,2",
        "1\n",
        "--",
        "1:1 ",
    ];
    for user in wrong {
        for args in [
            &["exec", "--user", user, &c.id, "/payload", "report"][..],
            &["exec", &format!("--user={user}"), &c.id, "/payload", "report"],
            &["exec", &format!("-u{user}"), &c.id, "/payload", "report"],
        ] {
            // `-u` alone takes the next argument for its value, which is then no id either.
            let output = c.keel(args);
            assert_eq!((output.code, &*output.stdout), (255, ""), "{output:#?}");
            output.exec_fails();
        }
    }
    let error = c.exec(&["-u", "root"], "report").exec_fails();
    assert!(error.contains("'root' for '--user <UID[:GID]>'") && error.contains("numbers"), "{error}");
}

fn a_user_keeps_the_groups_of_the_container() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/process/user", json!({"uid": 1, "gid": 2, "additionalGids": [3], "umask": 0o77})).running();
    let ids = |options: &[&str]| {
        let seen = c.exec_report(options);
        assert_eq!(seen["umask"], "0077");
        [seen["uid"][0].clone(), seen["gid"][0].clone(), seen["groups"].clone()]
    };
    assert_eq!(ids(&[]), [json!(1), json!(2), json!([3])]);
    assert_eq!(ids(&["-u", "5"]), [json!(5), json!(2), json!([3])]);
    assert_eq!(ids(&["-u", "5:6"]), [json!(5), json!(6), json!([3])]);
    assert_eq!(ids(&["-u", "0", "-g", "9"]), [json!(0), json!(2), json!([3, 9])]);
}

fn additional_groups_are_added() {
    needs!(keel());
    let c = running();
    assert_eq!(
        c.exec_report(&["-g", "5", "--additional-gids", "6", "-g=4294967294"])["groups"],
        json!([5, 6, 4_294_967_294u32])
    );
}

fn an_additional_group_that_is_none_is_refused() {
    needs!(keel());
    let c = running();
    for gid in ["-1", "4294967296", "4294967295", "x", "", "1,2", "+5"] {
        let output = c.exec(&[&format!("--additional-gids={gid}")], "report");
        assert_eq!(output.stdout, "", "{output:#?}");
        output.exec_fails();
    }
    let mut process = c.process("report");
    process["user"]["additionalGids"] = json!([1, u32::MAX]);
    let error = c.exec_process(&process).exec_fails();
    assert!(error.contains("process.json: /user/additionalGids/1: "), "{error}");
}

fn standard_streams_belong_to_the_user() {
    needs!(keel());
    let c = running();
    c.busybox();
    let script = "echo reopened >/dev/stdout; echo to stderr >/dev/stderr";
    let args = ["exec", "-u", "1000:1000", &c.id, "/bin/sh", "-c", script];
    let output = c.behind(&["sh", "-c", "\"$@\" 2>&1 | cat", "sh"], &args).ok();
    assert_eq!(output.stdout, "reopened\nto stderr\n");
}

fn the_callers_groups_do_not_leak() {
    let c = running();
    let seen = c.behind(&["setpriv", "--groups", "4,27"], &["exec", &c.id, "/payload", "report"]).ok().json();
    assert_eq!(seen["groups"], json!([]));
}

fn sets(seen: &Value) -> [Vec<&str>; 5] {
    ["bounding", "effective", "permitted", "inheritable", "ambient"].map(|set| {
        seen["capabilities"][set].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
    })
}

fn a_capability_is_added() {
    needs!(keel());
    let mut c = Sandbox::new();
    let kill = json!(["CAP_KILL"]);
    c.set("/process/capabilities", json!({"bounding": kill, "effective": kill, "permitted": kill})).running();
    for name in ["CAP_CHOWN", "chown", "cap_chown"] {
        let seen = c.exec_report(&["--cap", name, "-c", "CAP_FOWNER"]);
        let all = vec!["CAP_CHOWN", "CAP_FOWNER", "CAP_KILL"];
        assert_eq!(sets(&seen), [all.clone(), all.clone(), all, vec![], vec![]]);
    }
    // The container's own stay as they were.
    assert_eq!(sets(&c.exec_report(&[]))[0], ["CAP_KILL"]);
}

/// CVE-2022-24769, CVE-2022-27650, CVE-2022-29162.
fn an_added_capability_is_never_inheritable() {
    needs!(keel());
    let c = running();
    for user in ["0", "1000", "1000:1000"] {
        let seen = c.exec_report(&["--user", user, "--cap", "CAP_CHOWN", "--cap", "CAP_KILL"]);
        let [bounding, effective, permitted, inheritable, ambient] = sets(&seen);
        assert!(bounding.contains(&"CAP_CHOWN"));
        assert_eq!((inheritable, ambient), (vec![], vec![]));
        assert!(user == "0" || (effective.is_empty() && permitted.is_empty()), "{seen}");
    }
}

fn an_added_capability_that_the_config_has_inheritable_outlives_the_change_of_user() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/process/capabilities/inheritable", json!(["CAP_KILL"])).running();
    let seen = c.exec_report(&["-u", "1000", "--cap", "CAP_KILL", "--cap", "CAP_NET_BIND_SERVICE"]);
    let [_, effective, permitted, inheritable, ambient] = sets(&seen);
    for set in [effective, permitted, inheritable, ambient] {
        assert_eq!(set, ["CAP_KILL"]);
    }
}

fn an_unknown_capability_is_refused() {
    needs!(keel());
    let c = running();
    for name in ["CAP_NONESUCH", "", "ALL", "CAP_", "CAP_CAP_CHOWN", "0"] {
        let error = c.exec(&[&format!("--cap={name}")], "report").exec_fails();
        assert!(error.contains("must be a capability"), "{error}");
    }
}

/// As in config.json; and of the container's own it was said at create.
fn an_unknown_capability_of_a_process_file_is_a_warning() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/process/capabilities", json!({"bounding": ["CAP_NONESUCH", "CAP_KILL"]}));
    c.acts("pause").create();
    let output = c.exec_process(&c.process("report"));
    assert_eq!((output.code, output.stderr.lines().count()), (0, 1), "{output:#?}");
    assert!(
        output.stderr.contains("process.json: /capabilities/bounding/0: unknown capability"),
        "{output:#?}"
    );
    assert_eq!(sets(&output.json())[0], ["CAP_KILL"]);
    assert_eq!(sets(&c.exec_report(&[]))[0], ["CAP_KILL"]);
}

fn a_setuid_program_gains_privileges_only_if_allowed() {
    needs!(keel());
    for (barred, uid) in [(true, 1000), (false, 0)] {
        let c = running();
        // The payload knows itself by its name.
        std::fs::create_dir(c.rootfs().join("setuid")).unwrap();
        let setuid = c.rootfs().join("setuid/payload");
        copy(&c.rootfs().join("payload"), &setuid);
        std::fs::set_permissions(&setuid, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
        let barred = format!("--no-new-privs={barred}");
        let output = c.keel(&["exec", "-u", "1000", &barred, &c.id, "/setuid/payload", "report"]);
        assert_eq!(output.ok().json()["uid"][1], uid, "{barred}");
    }
}
