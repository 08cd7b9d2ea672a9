//! `exec --process`: the file, and how it is refused.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::exec::{pids, running};
use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    a_process_file_says_it_all,
    flags_override_the_process_file,
    a_process_file_that_cannot_be_read,
    a_process_file_that_is_not_json,
    a_process_file_names_the_place_of_each_problem,
    a_process_file_and_a_command_are_one_too_many,
];

fn a_process_file_says_it_all() {
    needs!(keel());
    let c = running();
    let mut process = c.process("report");
    process["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9], "umask": 0o27});
    process["env"] = json!(["PATH=/", "ONLY=this", "HOME=/h"]);
    process["cwd"] = json!("/tmp");
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}]);
    process["noNewPrivileges"] = json!(false);
    process["capabilities"] = json!({"bounding": ["CAP_KILL"]});
    let seen = c.exec_process(&process).ok().json();
    assert_eq!((&seen["uid"][1], &seen["gid"][1], &seen["groups"]), (&json!(7), &json!(8), &json!([9])));
    assert_eq!(seen["environ"], process["env"]);
    assert_eq!((&seen["cwd"], &seen["umask"]), (&json!("/tmp"), &json!("0027")));
    assert_eq!(seen["rlimits"]["RLIMIT_NOFILE"], json!([50, 60]));
    assert_eq!(seen["noNewPrivileges"], false);
    assert_eq!(seen["capabilities"]["bounding"], json!(["CAP_KILL"]));
    // By a path that is relative to the caller's directory, too.
    fs::copy(c.dir.join("host/process.json"), c.bundle().join("p")).unwrap();
    assert_eq!(c.keel(&["exec", "-p", "p", &c.id]).ok().json()["uid"][1], 7);
}

fn flags_override_the_process_file() {
    needs!(keel());
    let c = running();
    let path = c.host_file("p", &c.process("report").to_string());
    let flags = [
        "--cwd",
        "/tmp",
        "--env",
        "TERM=dumb",
        "--user",
        "3:4",
        "-g",
        "5",
        "-c",
        "CAP_CHOWN",
        "--no-new-privs=false",
    ];
    let args = [&["exec", "--process", path.to_str().unwrap()], &flags[..], &[&*c.id]].concat();
    let seen = c.keel(&args).ok().json();
    assert_eq!((&seen["cwd"], &seen["env"]["TERM"]), (&json!("/tmp"), &json!("dumb")));
    assert_eq!((&seen["uid"][1], &seen["gid"][1], &seen["groups"]), (&json!(3), &json!(4), &json!([5])));
    assert_eq!(seen["noNewPrivileges"], false);
    assert!(seen["capabilities"]["bounding"].as_array().unwrap().contains(&json!("CAP_CHOWN")));
}

fn file(c: &Sandbox, text: impl AsRef<[u8]>) -> PathBuf {
    let path = c.host_dir("").join("process");
    fs::write(&path, text).unwrap();
    path
}

#[track_caller]
pub fn refused(c: &Sandbox, text: impl AsRef<[u8]>) -> String {
    let path = file(c, text);
    let error = c.keel(&["exec", "--process", path.to_str().unwrap(), &c.id]).exec_fails();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    error
}

fn a_process_file_that_cannot_be_read() {
    needs!(keel());
    let c = running();
    for (path, why) in [("/no/such", "No such file or directory (2)"), ("/tmp", "Is a directory (21)")] {
        let error = c.keel(&["exec", "--process", path, &c.id]).exec_fails();
        assert!(error.contains(&format!("read process {path}: {why}")), "{error}");
    }
    let large = fs::File::create(c.host_dir("").join("large")).unwrap();
    large.set_len(1 << 40).unwrap();
    let error = c.keel(&["exec", "-p", c.dir.join("host/large").to_str().unwrap(), &c.id]).exec_fails();
    assert!(error.contains("it is larger than 16 MiB"), "{error}");
}

fn a_process_file_that_is_not_json() {
    needs!(keel());
    let c = running();
    for (text, why) in [
        (&b""[..], "EOF while parsing a value at line 1 column 0"),
        (b"{", "EOF while parsing an object at line 1 column 1"),
        (b"{} {}", "trailing characters at line 1 column 4"),
        (b"[]", "it must be a JSON object"),
        (b"null", "it must be a JSON object"),
        (b"\"args\"", "it must be a JSON object"),
        (b"{\"cwd\": \"\xff\"}", "invalid unicode"),
        (&[b'['; 100_000][..], "recursion limit exceeded"),
    ] {
        let error = refused(&c, text);
        assert!(error.contains(why), "{error}");
    }
}

fn a_process_file_names_the_place_of_each_problem() {
    needs!(keel());
    let c = running();
    let good = c.process("report");
    for (pointer, value) in [
        ("/args", json!(null)),
        ("/args", json!([])),
        ("/args/0", json!("")),
        ("/args/1", json!(5)),
        ("/args/1", json!("a\0b")),
        ("/args", json!("ls")),
        ("/cwd", json!(null)),
        ("/cwd", json!("tmp")),
        ("/cwd", json!(1)),
        ("/env", json!({"A": "1"})),
        ("/env/0", json!("A")),
        ("/env/0", json!("=1")),
        ("/user", json!(null)),
        ("/user", json!("root")),
        ("/user/uid", json!(null)),
        ("/user/uid", json!(-1)),
        ("/user/uid", json!("0")),
        ("/user/uid", json!(1.0)),
        ("/user/gid", json!(u32::MAX)),
        ("/user/umask", json!(0o1000)),
        ("/terminal", json!("yes")),
        ("/noNewPrivileges", json!(1)),
        ("/oomScoreAdj", json!(2000)),
        ("/rlimits", json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}])),
        ("/capabilities", json!([])),
        ("/capabilities/bounding", json!("CAP_KILL")),
        ("/scheduler", json!({"policy": "X"})),
        ("/ioPriority", json!({"class": "X", "priority": 1})),
        ("/execCPUAffinity", json!({"final": "x"})),
    ] {
        let mut process = good.clone();
        *place(&mut process, pointer) = value.clone();
        let error = refused(&c, process.to_string());
        assert!(error.contains(&format!("process: {pointer}")), "{pointer} {value}: {error}");
        assert!(!error.contains("config.json"), "{error}");
    }
    // All of them at once, and a key twice.
    let error = refused(&c, r#"{"args": [], "cwd": "x", "cwd": "y", "user": {"uid": 0}}"#);
    for place in [
        "/cwd: stands twice",
        "/args: is required",
        "/cwd: must be an absolute path",
        "/user/gid: is required",
    ] {
        assert!(error.contains(place), "{place}: {error}");
    }
    assert_eq!(pids(&c).len(), 1);
}

fn place<'v>(value: &'v mut Value, pointer: &str) -> &'v mut Value {
    pointer.split('/').skip(1).fold(value, |at, key| match at {
        Value::Array(array) => &mut array[key.parse::<usize>().unwrap()],
        object => &mut object[key],
    })
}

fn a_process_file_and_a_command_are_one_too_many() {
    needs!(keel());
    let c = running();
    let path = file(&c, c.process("report").to_string());
    let error = c.keel(&["exec", "-p", path.to_str().unwrap(), &c.id, "/payload"]).exec_fails();
    assert!(error.contains("give --process or a command, not both"), "{error}");
    let error = c.keel(&["exec", &c.id]).exec_fails();
    assert!(error.contains("there is no command to run: give one, or --process"), "{error}");
}
