//! Which descriptors the payload starts with: 0 to 2, LISTEN_FDS, --preserve-fds, and nothing else.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::sandbox::{Output, Sandbox, keel, root};
use crate::{needs, tests};

tests![
    the_payload_has_three_descriptors,
    a_created_container_has_three_descriptors,
    stdin_and_stdout_are_the_callers,
    stderr_is_the_callers,
    a_closed_stdin_does_no_harm,
    the_hosts_null_makes_way_for_the_containers,
    exec_puts_the_containers_null_in_the_place_of_the_hosts,
    a_null_that_is_none_does_not_become_a_stream,
    preserved_descriptors_arrive_in_their_places,
    a_preserved_descriptor_that_is_missing_is_refused,
    listen_fds_arrive_with_their_variables,
    listen_fds_come_before_preserved_ones,
    no_listen_variables_without_listen_fds,
    listen_fds_for_another_process_are_not_passed_on,
];

/// keel behind a shell that opens descriptors first.
fn run(c: &Sandbox, opens: &str, env: &[(&str, &str)], flags: &[&str]) -> Output {
    c.write_config();
    behind(c, opens, env, &[&["run"], flags, &[&*c.id]].concat())
}

fn behind(c: &Sandbox, opens: &str, env: &[(&str, &str)], args: &[&str]) -> Output {
    let keel = c.command(args);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{opens} \"$@\""), "sh"]).arg(keel.get_program()).args(keel.get_args());
    shell.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("SANDBOX", &c.id);
    shell.envs(env.iter().copied()).current_dir(c.bundle());
    c.execute(shell)
}

fn numbers(report: &Value) -> Vec<&str> {
    report["fds"].as_object().unwrap().keys().map(String::as_str).collect()
}

fn the_payload_has_three_descriptors() {
    assert_eq!(numbers(&Sandbox::new().report()), ["0", "1", "2"]);
}

fn a_created_container_has_three_descriptors() {
    let mut c = Sandbox::new();
    c.acts("report").created().start().ok();
    c.wait_printed("}\n");
    let seen: Value = serde_json::from_str(&c.printed()).unwrap();
    assert_eq!(numbers(&seen), ["0", "1", "2"]);
}

fn stdin_and_stdout_are_the_callers() {
    let mut c = Sandbox::new();
    c.acts("line ; line");
    assert_eq!(run(&c, "printf 'one\\ntwo\\n' |", &[], &[]).ok().stdout, "one\ntwo\n");
}

fn stderr_is_the_callers() {
    let mut c = Sandbox::new();
    c.acts("nonsense");
    let output = run(&c, "", &[], &[]);
    assert_eq!((output.code, output.stderr.as_str()), (99, "payload: unknown act [\"nonsense\"]\n"));
}

fn a_closed_stdin_does_no_harm() {
    let mut c = Sandbox::new();
    c.acts("report");
    let seen = run(&c, "exec <&-;", &[], &[]).ok().json();
    let fds = numbers(&seen);
    assert!(fds == ["0", "1", "2"] || fds == ["1", "2"], "{fds:?}");
}

/// One more node of the null device: a runtime that leaves it to a container must not harm the host's /dev/null.
fn hosts_null(c: &Sandbox) -> PathBuf {
    let null = c.dir.join("null");
    mknod(&null, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    std::fs::set_permissions(&null, PermissionsExt::from_mode(0o666)).unwrap();
    null
}

const CLOSE_IT: &[&str] = &["/bin/busybox", "chmod", "600", "/proc/self/fd/0", "/proc/self/fd/2"];

fn the_hosts_null_makes_way_for_the_containers() {
    needs!(root());
    let mut c = Sandbox::new();
    c.busybox();
    let null = hosts_null(&c);
    run(c.args(CLOSE_IT), &format!("exec <{0} 2>{0};", null.display()), &[], &[]).ok();
    assert_eq!(null.metadata().unwrap().permissions().mode() & 0o777, 0o666);
}

fn exec_puts_the_containers_null_in_the_place_of_the_hosts() {
    // runc leaves it.
    needs!(keel(), root());
    let mut c = Sandbox::new();
    c.busybox();
    let null = hosts_null(&c);
    let opens = format!("exec <{0} 2>{0};", null.display());
    c.running();
    behind(&c, &opens, &[], &[&["exec", &*c.id], CLOSE_IT].concat()).ok();
    assert_eq!(null.metadata().unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(c.exec(&[], "stat /dev/null").ok().json()["mode"], "0600");
}

fn a_null_that_is_none_does_not_become_a_stream() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.busybox();
    c.running();
    let shell = |script| c.keel(&["exec", &c.id, "/bin/busybox", "sh", "-c", script]);
    shell("rm /dev/null && echo kept >/tmp-kept && ln -s /tmp-kept /dev/null").ok();
    for (expected, next) in [
        ("open /dev/null in the rootfs: Too many symbolic links encountered (40)", "rm /dev/null"),
        ("open /dev/null in the rootfs: No such file or directory (2)", "echo kept >/dev/null"),
        ("use /dev/null in the rootfs: it is not the null device", ""),
    ] {
        let output = c.exec(&[], "report");
        let place = "replace the host's /dev/null as file descriptor 0";
        assert_eq!(output.code, 255);
        assert!(output.stderr.contains(&format!("{place}: {expected}")), "{output:#?}");
        // With streams of its own it runs.
        behind(&c, "exec <&1;", &[], &["exec", &c.id, "/bin/busybox", "sh", "-c", next]).ok();
    }
}

fn preserved_descriptors_arrive_in_their_places() {
    let mut c = Sandbox::new();
    let (a, b) = (c.host_file("a", "first\n"), c.host_file("b", "second\n"));
    c.acts("cat /proc/self/fd/3 ; cat /proc/self/fd/4");
    let opens = format!("exec 3<{} 4<{} 5</dev/zero;", a.display(), b.display());
    let flags = ["--preserve-fds", "2"];
    assert_eq!(run(&c, &opens, &[], &flags).ok().stdout, "first\nsecond\n");
    c.acts("report");
    assert_eq!(numbers(&run(&c, &opens, &[], &flags).ok().json()), ["0", "1", "2", "3", "4"]);
}

fn a_preserved_descriptor_that_is_missing_is_refused() {
    let mut c = Sandbox::new();
    c.acts("exit 0");
    let error = run(&c, "exec 3</dev/null;", &[], &["--preserve-fds", "2"]).fails();
    assert!(!crate::sandbox::is_keel() || error.contains('4'), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn listen_fds_arrive_with_their_variables() {
    let mut c = Sandbox::new();
    let file = c.host_file("socket", "listening\n");
    let opens = format!("exec 3<{} 4</dev/zero; LISTEN_PID=$$; export LISTEN_PID;", file.display());
    c.acts("cat /proc/self/fd/3 ; env LISTEN_FDS ; env LISTEN_PID");
    assert_eq!(
        run(&c, &format!("{opens} exec"), &[("LISTEN_FDS", "1")], &[]).ok().stdout,
        "listening\n1\n1\n"
    );
    c.acts("report");
    let seen = run(&c, &format!("{opens} exec"), &[("LISTEN_FDS", "1")], &[]).ok().json();
    assert_eq!(numbers(&seen), ["0", "1", "2", "3"]);
}

fn listen_fds_come_before_preserved_ones() {
    let mut c = Sandbox::new();
    let (a, b) = (c.host_file("a", "listen\n"), c.host_file("b", "preserved\n"));
    c.acts("cat /proc/self/fd/3 ; cat /proc/self/fd/4 ; env LISTEN_FDS");
    let opens = format!("exec 3<{} 4<{}; LISTEN_PID=$$; export LISTEN_PID; exec", a.display(), b.display());
    let output = run(&c, &opens, &[("LISTEN_FDS", "1")], &["--preserve-fds", "1"]);
    assert_eq!(output.ok().stdout, "listen\npreserved\n1\n");
}

fn no_listen_variables_without_listen_fds() {
    let seen = Sandbox::new().report();
    assert_eq!((&seen["env"]["LISTEN_FDS"], &seen["env"]["LISTEN_PID"]), (&json!(null), &json!(null)));
}

fn listen_fds_for_another_process_are_not_passed_on() {
    let mut c = Sandbox::new();
    for pid in [&[("LISTEN_FDS", "1"), ("LISTEN_PID", "1")][..], &[("LISTEN_FDS", "1")]] {
        let seen = run(c.acts("report"), "exec 3</dev/zero;", pid, &[]).ok().json();
        assert_eq!((numbers(&seen), &seen["env"]["LISTEN_FDS"]), (vec!["0", "1", "2"], &json!(null)));
    }
}
