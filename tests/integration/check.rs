//! `check`: every problem of a config at once, with its place, and nothing is made.

use std::fs;

use serde_json::json;

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    a_good_config_is_silent,
    all_problems_are_listed_at_once,
    create_lists_the_same_problems,
    unknown_properties_are_none,
    a_config_that_is_not_json_says_where,
    a_repeated_key_is_a_problem,
    an_unsupported_version_is_a_problem,
    a_missing_config_is_an_error,
    the_current_directory_is_the_default_bundle,
    what_the_seccomp_filter_does_with_a_call_can_be_asked,
];

fn check(c: &Sandbox) -> crate::sandbox::Output {
    c.write_config();
    let output = c.keel(&["check", c.bundle().to_str().unwrap()]);
    assert_eq!(c.left(), Vec::<String>::new());
    output
}

fn a_good_config_is_silent() {
    needs!(keel());
    let output = check(&Sandbox::new()).ok();
    assert_eq!(output.stderr, "");
}

fn wrong() -> (Sandbox, [&'static str; 6]) {
    let mut c = Sandbox::new();
    c.set("/process/cwd", "relative").set("/process/user/uid", -1).set("/root/path", 5);
    c.set("/linux/namespaces/0/type", "x").set("/process/rlimits/0/type", "RLIMIT_X");
    c.mount(json!({"type": "tmpfs"}));
    let fields = [
        "/process/cwd",
        "/process/user/uid",
        "/root/path",
        "/linux/namespaces/0/type",
        "/process/rlimits/0/type",
        "/mounts/7/destination",
    ];
    (c, fields)
}

fn all_problems_are_listed_at_once() {
    needs!(keel());
    let (c, fields) = wrong();
    let output = check(&c);
    assert_eq!(output.code, 1);
    let all = output.stdout + &output.stderr;
    for field in fields {
        assert!(all.contains(&format!("{field}: ")), "{field} in {all}");
    }
}

fn create_lists_the_same_problems() {
    needs!(keel());
    let (c, fields) = wrong();
    for field in fields {
        c.refused(field);
    }
}

fn unknown_properties_are_none() {
    let mut c = Sandbox::new();
    c.set("/x", 1)
        .set("/process/y", json!({}))
        .set("/linux/z", json!([]))
        .set("/mounts/0/w", "v")
        .set("/vm", json!({}));
    assert_eq!(c.does("echo up"), ["up"]);
}

fn a_config_that_is_not_json_says_where() {
    needs!(keel());
    let c = Sandbox::new();
    fs::write(c.bundle().join("config.json"), "{\n  \"ociVersion\": 1.0.2\n}").unwrap();
    let error = c.keel(&["create", &c.id]).fails();
    assert!(error.contains("config.json") && error.contains("line 2"), "{error}");
}

fn a_repeated_key_is_a_problem() {
    needs!(keel());
    let c = Sandbox::new();
    c.write_config();
    let path = c.bundle().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen('{', "{\"hostname\": \"first\",", 1)).unwrap();
    let error = c.keel(&["create", &c.id]).fails();
    assert!(error.contains("/hostname: "), "{error}");
}

fn an_unsupported_version_is_a_problem() {
    needs!(keel());
    for version in [json!("2.0.0"), json!("1.0"), json!("x"), json!("1.x.0"), json!(""), json!(1)] {
        Sandbox::new().set("/ociVersion", version).refused("/ociVersion");
    }
    Sandbox::new().unset("/ociVersion").refused("/ociVersion");
    for version in ["1.0.0", "1.0.2-dev", "1.2.1", "1.3.0", "1.0.2-rc.1+build"] {
        let mut c = Sandbox::new();
        c.set("/ociVersion", version);
        assert_eq!(check(&c).code, 0, "{version}");
    }
}

fn a_missing_config_is_an_error() {
    let c = Sandbox::new();
    let error = c.keel(&["create", &c.id]).fails();
    assert!(error.contains("config.json"), "{error}");
}

fn the_current_directory_is_the_default_bundle() {
    needs!(keel());
    let c = Sandbox::new();
    c.write_config();
    c.keel(&["check"]).ok();
}

fn what_the_seccomp_filter_does_with_a_call_can_be_asked() {
    needs!(keel());
    let mut c = Sandbox::new();
    let ask = |c: &Sandbox, calls: &str| {
        c.write_config();
        c.keel(&["check", c.bundle().to_str().unwrap(), "--seccomp", calls])
    };
    assert_eq!(ask(&c, "mount").stdout, "no seccomp filter: every call is allowed\n");
    let condition = json!({"index": 0, "value": 1, "op": "SCMP_CMP_EQ"});
    c.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2},
            {"names": ["personality"], "action": "SCMP_ACT_TRAP", "args": [condition]},
        ]}),
    );
    let architecture = format!("SCMP_ARCH_{}", std::env::consts::ARCH.to_uppercase());
    assert_eq!(
        ask(&c, "mount,personality,999").stdout.lines().rev().take(3).collect::<Vec<_>>(),
        [
            format!("999 on {architecture}: SCMP_ACT_ALLOW"),
            format!("personality on {architecture}: SCMP_ACT_TRAP or SCMP_ACT_ALLOW, as its arguments are"),
            format!("mount on {architecture}: SCMP_ACT_ERRNO (ENOENT, 2)"),
        ]
    );
    let unknown = ask(&c, "munt");
    assert!(
        unknown.stderr.contains("check --seccomp: there is no system call \"munt\""),
        "{}",
        unknown.stderr
    );
    assert_eq!(unknown.code, 1);
}
