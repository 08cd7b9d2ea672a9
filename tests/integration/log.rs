//! --log, --log-format, --log-level and --debug: runc's, since callers read them.

use std::fs;

use serde_json::Value;

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    an_error_is_the_last_record_of_a_json_log,
    a_json_log_holds_json_lines_only,
    a_text_log_has_level_and_message,
    success_leaves_no_record,
    debug_lines_come_only_if_asked,
    the_log_is_appended_to,
    an_unknown_format_is_refused,
    a_log_that_cannot_be_opened_is_an_error,
    the_error_is_on_stderr_as_well,
    errors_of_init_arrive_in_the_log,
];

/// Runs with a log; gives its records.
fn records(c: &Sandbox, flags: &[&str], command: &[&str]) -> Vec<Value> {
    let log = c.dir.join("log.json");
    let log = log.to_str().unwrap();
    c.keel(&[&["--log", log, "--log-format", "json"], flags, command].concat());
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn an_error_is_the_last_record_of_a_json_log() {
    let c = Sandbox::new();
    let records = records(&c, &[], &["state", "nonesuch"]);
    let last = records.last().expect("a record");
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("does not exist"), "{last}");
    assert!(last["time"].as_str().unwrap().contains('T'), "{last}");
}

fn a_json_log_holds_json_lines_only() {
    let mut c = Sandbox::new();
    c.set("/process/cwd", "a\n\"b\"").write_config();
    let records = records(&c, &["--debug"], &["create", &c.id]);
    assert!(records.iter().all(|r| r["level"].is_string() && r["msg"].is_string() && r["time"].is_string()));
    assert_eq!(records.iter().filter(|r| r["level"] == "error").count(), 1);
}

fn a_text_log_has_level_and_message() {
    let c = Sandbox::new();
    let log = c.dir.join("log");
    c.keel(&["--log", log.to_str().unwrap(), "state", "nonesuch"]).fails();
    let text = fs::read_to_string(log).unwrap();
    assert!(text.contains("level=error msg=\"") && text.contains("does not exist"), "{text}");
}

fn success_leaves_no_record() {
    let mut c = Sandbox::new();
    c.acts("exit 0").write_config();
    assert!(records(&c, &[], &["run", &c.id]).is_empty());
}

fn debug_lines_come_only_if_asked() {
    needs!(keel());
    for flags in [&["--debug"][..], &["--log-level", "debug"]] {
        let mut c = Sandbox::new();
        c.set("/unknown", 1).acts("exit 0").write_config();
        let records = records(&c, flags, &["run", &c.id]);
        assert!(
            records.iter().any(|r| r["level"] == "debug" && r["msg"].as_str().unwrap().contains("/unknown"))
        );
    }
}

fn the_log_is_appended_to() {
    let c = Sandbox::new();
    records(&c, &[], &["state", "one"]);
    assert_eq!(records(&c, &[], &["state", "two"]).len(), 2);
}

fn an_unknown_format_is_refused() {
    let output = Sandbox::new().keel(&["--log-format", "xml", "list"]);
    assert!(output.code != 0 && output.stderr.contains("xml"), "{output:#?}");
}

fn a_log_that_cannot_be_opened_is_an_error() {
    let error = Sandbox::new().keel(&["--log", "/nonexistent/log", "list"]).fails();
    assert!(error.contains("/nonexistent/log"), "{error}");
}

fn the_error_is_on_stderr_as_well() {
    needs!(keel());
    let c = Sandbox::new();
    let log = c.dir.join("log");
    let error = c.keel(&["--log", log.to_str().unwrap(), "state", "nonesuch"]).fails();
    assert!(error.contains("does not exist"), "{error}");
}

fn errors_of_init_arrive_in_the_log() {
    let mut c = Sandbox::new();
    c.args(&["/no/such/program"]).write_config();
    let records = records(&c, &[], &["run", &c.id]);
    let last = records.last().expect("a record");
    assert!(last["msg"].as_str().unwrap().to_lowercase().contains("no such file or directory"), "{last}");
}
