//! /process/user: ids, groups, umask.

use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    all_four_ids_are_the_configured_ones,
    additional_groups_are_the_configured_ones,
    without_additional_groups_there_are_none,
    the_umask_is_the_configured_one,
    without_a_umask_the_callers_is_kept,
    the_largest_id_works,
    an_id_out_of_range_is_refused,
    a_missing_id_is_refused,
    a_umask_beyond_the_permission_bits_is_refused,
    standard_streams_belong_to_the_user,
    root_groups_of_the_caller_do_not_leak,
    a_standard_stream_that_cannot_be_given_away_is_no_error,
];

fn as_user(uid: u32, gid: u32) -> Sandbox {
    let mut c = Sandbox::new();
    c.set("/process/user", json!({"uid": uid, "gid": gid}));
    c
}

fn all_four_ids_are_the_configured_ones() {
    let seen = as_user(1000, 1001).report();
    assert_eq!(
        (&seen["uid"], &seen["gid"]),
        (&json!([1000, 1000, 1000, 1000]), &json!([1001, 1001, 1001, 1001]))
    );
}

fn additional_groups_are_the_configured_ones() {
    let mut c = as_user(1000, 1001);
    assert_eq!(
        c.set("/process/user/additionalGids", json!([5, 6, 65534])).report()["groups"],
        json!([5, 6, 65534])
    );
}

fn without_additional_groups_there_are_none() {
    assert_eq!(as_user(1000, 1001).report()["groups"], json!([]));
    assert_eq!(Sandbox::new().report()["groups"], json!([]));
}

fn the_umask_is_the_configured_one() {
    assert_eq!(as_user(0, 0).set("/process/user/umask", 0o027).report()["umask"], "0027");
    assert_eq!(as_user(0, 0).set("/process/user/umask", 0).report()["umask"], "0000");
}

fn without_a_umask_the_callers_is_kept() {
    let mut c = Sandbox::new();
    c.acts("report").write_config();
    let keel = c.command(&["run", &c.id]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "umask 035; exec \"$@\"", "sh"]).arg(keel.get_program()).args(keel.get_args());
    shell.current_dir(c.bundle());
    assert_eq!(c.execute(shell).ok().json()["umask"], "0035");
}

fn the_largest_id_works() {
    let seen = as_user(u32::MAX - 1, u32::MAX - 1).report();
    assert_eq!(seen["uid"][1], u32::MAX - 1);
}

fn an_id_out_of_range_is_refused() {
    for (key, value) in [
        ("uid", json!(-1)),
        ("uid", json!(4294967296u64)),
        ("uid", json!(u32::MAX)),
        ("gid", json!(-1)),
        ("gid", json!(u32::MAX)),
        ("uid", json!("root")),
        ("uid", json!(1.5)),
    ] {
        Sandbox::new().set(&format!("/process/user/{key}"), value).refused(&format!("/process/user/{key}"));
    }
    Sandbox::new()
        .set("/process/user/additionalGids", json!([1, -1]))
        .refused("/process/user/additionalGids/1");
}

fn a_missing_id_is_refused() {
    if crate::sandbox::is_keel() {
        Sandbox::new().unset("/process/user/uid").refused("/process/user/uid");
        Sandbox::new().unset("/process/user").refused("/process/user");
    }
}

fn a_umask_beyond_the_permission_bits_is_refused() {
    Sandbox::new().set("/process/user/umask", 0o1000).refused("/process/user/umask");
}

/// A pipe that belongs to the caller could not be reopened by /dev/stdout.
fn standard_streams_belong_to_the_user() {
    let mut c = as_user(1000, 1000);
    c.busybox();
    c.args(&["/bin/sh", "-c", "echo reopened >/dev/stdout"]).write_config();
    let keel = c.command(&["run", &c.id]);
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", "\"$@\" | cat", "sh"])
        .arg(keel.get_program())
        .args(keel.get_args())
        .current_dir(c.bundle());
    assert_eq!(c.execute(shell).ok().stdout, "reopened\n");
}

fn root_groups_of_the_caller_do_not_leak() {
    let mut c = as_user(1000, 1001);
    c.acts("report").write_config();
    let keel = c.command(&["run", &c.id]);
    let mut other = std::process::Command::new("setpriv");
    other.args(["--groups", "4,27"]).arg(keel.get_program()).args(keel.get_args()).current_dir(c.bundle());
    let groups: Value = c.execute(other).ok().json()["groups"].take();
    assert_eq!(groups, json!([]));
}

fn a_standard_stream_that_cannot_be_given_away_is_no_error() {
    let mut c = as_user(1000, 1000);
    c.acts("line").write_config();
    let output = c.behind(&["sh", "-c", "exec \"$@\" </proc/sys/kernel/ostype", "sh"], &["run", &c.id]).ok();
    assert_eq!(output.stdout, "Linux\n");
}
