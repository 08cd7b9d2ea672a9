//! `exec`: its command line, and what becomes of the process that it adds.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::json;

use crate::sandbox::{Sandbox, eventually, keel};
use crate::terminal::receive;
use crate::{needs, tests};

tests![
    a_command_runs_in_the_container_and_gives_its_code,
    a_signal_that_ends_it_is_128_and_its_number,
    standard_streams_are_the_callers,
    options_are_taken_before_and_after_the_id,
    what_comes_after_the_command_belongs_to_the_command,
    two_dashes_end_the_options,
    a_variable_is_added_or_replaced,
    a_working_directory_is_given,
    new_privileges_are_barred_or_not,
    detached_it_returns_at_once_and_the_process_runs_on,
    a_detached_process_that_ends_at_once_is_no_error,
    the_pid_file_holds_the_pid_and_no_more,
    the_pidfd_names_the_process,
    preserved_descriptors_arrive_in_their_places,
    no_other_descriptor_arrives,
    a_signal_to_exec_reaches_the_process,
    it_runs_in_the_containers_cgroup,
    a_cgroup_below_the_containers_is_taken,
    a_cgroup_that_is_not_below_the_containers_is_refused,
    a_cgroup_that_passes_controllers_on_is_left_for_inits,
    a_cgroup_that_is_gone_is_not_replaced_by_the_callers,
    a_created_container_takes_processes,
    the_command_is_listed_and_killed_with_the_container,
];

/// A container whose payload pauses.
pub fn running() -> Sandbox {
    let mut c = Sandbox::new();
    c.running();
    c
}

fn a_command_runs_in_the_container_and_gives_its_code() {
    let c = running();
    assert_eq!(c.exec(&[], "sethostname x ; echo up ; exit 42").code, 42);
    let seen = c.exec_report(&[]);
    assert_eq!((&seen["uname"]["hostname"], &seen["ppid"]), (&json!("sandbox"), &json!(0)));
    assert!(seen["pid"].as_i64().unwrap() > 1, "{seen}");
    assert_eq!((&seen["sid"], &seen["pgrp"], &seen["threads"]), (&seen["pid"], &seen["pid"], &json!("1")));
    // 255 and 1 are the program's too.
    for code in [0, 1, 255] {
        assert_eq!(c.exec(&[], &format!("exit {code}")).code, code);
    }
}

fn a_signal_that_ends_it_is_128_and_its_number() {
    let c = running();
    c.busybox();
    for signal in [9, 15, 34] {
        let output = c.keel(&["exec", &c.id, "/bin/sh", "-c", &format!("kill -{signal} $$")]);
        assert_eq!((output.code, output.stderr), (128 + signal, String::new()));
    }
}

fn standard_streams_are_the_callers() {
    let c = running();
    let output =
        c.behind(&["sh", "-c", "echo typed | \"$@\"", "sh"], &["exec", &c.id, "/payload", "line", ";", "x"]);
    assert_eq!((output.code, output.stdout.as_str()), (99, "typed\n"));
    assert_eq!(output.stderr, "payload: unknown act [\"x\"]\n");
}

fn options_are_taken_before_and_after_the_id() {
    needs!(keel());
    let c = running();
    let (env, report): (&[&str], &[&str]) = (&["--env", "A=1", "-u", "5:6"], &["/payload", "env", "A"]);
    for args in [[&["exec"], env, &[&c.id], report].concat(), [&["exec", &c.id], env, report].concat()] {
        assert_eq!(c.keel(&args).ok().stdout, "1\n", "{args:?}");
    }
    let seen = c.keel(&["exec", "-u5:6", &c.id, "-e=A=2", "-e", "B=3", "/payload", "report"]).ok().json();
    assert_eq!((&seen["uid"][1], &seen["gid"][1], &seen["env"]["B"]), (&json!(5), &json!(6), &json!("3")));
}

/// What a program behind these arguments to keel gets as its own.
fn arguments(c: &Sandbox, before: &[&str], own: &[&str]) -> Vec<String> {
    let output = c.keel(&[&["exec"], before, &["/bin/busybox", "printf", "%s|"], own].concat()).ok();
    output.stdout.split_terminator('|').map(str::to_owned).collect()
}

fn what_comes_after_the_command_belongs_to_the_command() {
    needs!(keel());
    let c = running();
    c.busybox();
    for own in [
        &["-l", "--all"][..],
        &["--", "-d", "--"],
        &["-t", "--detach", "--pid-file", "/x", "--user", "nobody"],
        &["-log", "--root=/x", "--help", "-h", "--version", ""],
    ] {
        assert_eq!(arguments(&c, &[&c.id], own), own);
        assert_eq!(arguments(&c, &["--env", "A=1", &c.id, "-u0"], own), own);
    }
}

fn two_dashes_end_the_options() {
    needs!(keel());
    let c = running();
    c.busybox();
    for before in [&["--", &*c.id][..], &[&c.id, "--"], &["-e", "A=1", &c.id, "-u", "1", "--"]] {
        assert_eq!(arguments(&c, before, &["-e", "--env"]), ["-e", "--env"]);
    }
    let error = c.keel(&["exec", &c.id, "--", "--env", "A=1"]).exec_fails();
    assert!(error.contains("exec: \"--env\": executable file not found"), "{error}");
    let error = c.keel(&["exec", &c.id, "--nonesuch", "true"]).exec_fails();
    assert!(error.contains("unexpected argument '--nonesuch'"), "{error}");
}

fn a_variable_is_added_or_replaced() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/process/env", json!(["PATH=/", "A=of the container", "B=kept", "HOME=/h"])).running();
    let seen = c.exec_report(&["-e", "A=1", "--env", "NEW=x=y z", "-e", "A=2", "-e", "EMPTY="]);
    assert_eq!(seen["environ"], json!(["PATH=/", "B=kept", "HOME=/h", "NEW=x=y z", "A=2", "EMPTY="]));
    // And a program is looked up in the PATH that it is given.
    fs::create_dir(c.rootfs().join("opt")).unwrap();
    fs::rename(c.rootfs().join("payload"), c.rootfs().join("opt/payload")).unwrap();
    let path = ["exec", "-e", "PATH=/nowhere:/opt", &c.id, "payload", "echo", "found"];
    assert_eq!(c.keel(&path).ok().stdout, "found\n");
    c.keel(&["exec", &c.id, "payload", "echo", "found"]).exec_fails();
}

fn a_working_directory_is_given() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/process/cwd", "/tmp").running();
    assert_eq!(c.exec_report(&[])["cwd"], "/tmp");
    assert_eq!(c.exec_report(&["--cwd", "/dev/pts"])["cwd"], "/dev/pts");
    for (cwd, why) in [("/none", "(2)"), ("relative", "/cwd"), ("/payload", "(20)"), ("", "/cwd")] {
        let error = c.exec(&["--cwd", cwd], "report").exec_fails();
        assert!(error.contains(why) && error.contains("/cwd"), "{error}");
    }
    assert!(!c.rootfs().join("none").exists());
}

fn new_privileges_are_barred_or_not() {
    needs!(keel());
    for own in [true, false] {
        let mut c = Sandbox::new();
        c.set("/process/noNewPrivileges", own).running();
        assert_eq!(c.exec_report(&[])["noNewPrivileges"], own);
        for (flag, barred) in
            [("--no-new-privs", true), ("--no-new-privs=true", true), ("--no-new-privs=false", false)]
        {
            assert_eq!(c.exec_report(&[flag])["noNewPrivileges"], barred, "{own} {flag}");
        }
    }
}

fn detached_it_returns_at_once_and_the_process_runs_on() {
    let c = running();
    c.exec(&["--detach"], "echo up ; await TERM ; echo down").ok();
    c.wait_printed("waiting");
    assert_eq!(fs::read_to_string(c.cgroup().join("cgroup.procs")).unwrap().lines().count(), 2);
    c.kill("TERM").ok();
    assert_eq!(c.status(), "running");
}

fn a_detached_process_that_ends_at_once_is_no_error() {
    let c = running();
    for _ in 0..20 {
        c.exec(&["-d"], "exit 3").ok();
    }
    eventually("all have ended", || pids(&c).len() == 1);
}

/// The processes of the container.
pub fn pids(c: &Sandbox) -> Vec<String> {
    let pids = fs::read_to_string(c.cgroup().join("cgroup.procs")).unwrap();
    pids.lines().map(str::to_owned).collect()
}

fn the_pid_file_holds_the_pid_and_no_more() {
    needs!(keel());
    let c = running();
    let path = c.host_file("pid", "of an earlier one, longer than any pid");
    let before = fs::File::open(&path).unwrap();
    c.exec(&["--detach", "--pid-file", path.to_str().unwrap()], "await TERM").ok();
    let pid = fs::read_to_string(&path).unwrap();
    assert!(pid.bytes().all(|b| b.is_ascii_digit()) && pids(&c).contains(&pid), "{pid}");
    assert_ne!(pid, c.pid().to_string());
    // Atomic: a new file in place of the old one, which is as it was.
    assert!(std::io::read_to_string(before).unwrap().starts_with("of an earlier one"));
    assert_eq!(fs::read_dir(c.host_dir("")).unwrap().count(), 1);
    // In the foreground it is there before the program runs.
    let file = c.host_dir("").join("fg");
    c.exec(&["--pid-file", file.to_str().unwrap()], "exit 0").ok();
    assert!(fs::read_to_string(file).unwrap().parse::<u32>().is_ok());
}

/// The pid in our pid namespace of the process that a pidfd names.
fn pid_of(pidfd: &OwnedFd) -> String {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:\t")).expect("a pidfd").to_owned()
}

fn the_pidfd_names_the_process() {
    needs!(keel());
    let c = running();
    let (socket, pid_file) = (c.dir.join("pidfd.sock"), c.dir.join("pid"));
    let listener = UnixListener::bind(&socket).unwrap();
    let options =
        ["-d", "--pidfd-socket", socket.to_str().unwrap(), "--pid-file", pid_file.to_str().unwrap()];
    c.exec(&options, "await TERM").ok();
    let fds = receive(&listener);
    assert_eq!(fds.len(), 1);
    assert_eq!(pid_of(&fds[0]), fs::read_to_string(pid_file).unwrap());
}

/// exec behind a shell that opens descriptors first.
fn with_open(c: &Sandbox, opens: &str, options: &[&str], acts: &str) -> crate::sandbox::Output {
    let words: Vec<&str> = acts.split_whitespace().collect();
    let args = [&["exec"], options, &[&c.id, "/payload"], &words].concat();
    c.behind(&["sh", "-c", &format!("{opens} exec \"$@\""), "sh"], &args)
}

fn preserved_descriptors_arrive_in_their_places() {
    needs!(keel());
    let c = running();
    let (a, b) = (c.host_file("a", "first\n"), c.host_file("b", "second\n"));
    let opens = format!("exec 3<{} 4<{} 5</dev/zero;", a.display(), b.display());
    let output =
        with_open(&c, &opens, &["--preserve-fds", "2"], "cat /proc/self/fd/3 ; cat /proc/self/fd/4 ; report");
    let lines = output.lines();
    assert_eq!(lines[..2], ["first", "second"]);
    let seen: serde_json::Value = serde_json::from_str(lines[2]).unwrap();
    assert_eq!(seen["fds"].as_object().unwrap().len(), 5);
    let error = with_open(&c, "exec 3</dev/null;", &["--preserve-fds=2"], "exit 0").exec_fails();
    assert!(error.contains("descriptor 4"), "{error}");
}

fn no_other_descriptor_arrives() {
    needs!(keel());
    let c = running();
    let log = c.dir.join("log");
    let opens: String = (3..10).map(|fd| format!("exec {fd}</;")).collect();
    let seen = with_open(&c, &opens, &["--log", log.to_str().unwrap()], "report").ok().json();
    assert_eq!(seen["fds"].as_object().unwrap().keys().collect::<Vec<_>>(), ["0", "1", "2"]);
    // LISTEN_FDS is for a container's first process.
    let opens = "exec 3</; export LISTEN_FDS=1 LISTEN_PID=$$;";
    let seen = with_open(&c, opens, &[], "report").ok().json();
    assert_eq!((seen["fds"].as_object().unwrap().len(), &seen["env"]["LISTEN_FDS"]), (3, &json!(null)));
}

fn a_signal_to_exec_reaches_the_process() {
    let c = running();
    for (signal, name) in
        [(nix::libc::SIGTERM, "TERM"), (nix::libc::SIGUSR1, "USR1"), (nix::libc::SIGHUP, "HUP")]
    {
        let exec = c.spawn(c.exec_command(&[], &format!("echo for-{name} ; await {name}")));
        c.wait_printed(&format!("for-{name}\nwaiting"));
        let signal = nix::sys::signal::Signal::try_from(signal).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(exec.pid() as i32), signal).unwrap();
        assert_eq!(exec.wait().ok().stdout, format!("for-{name}\nwaiting\n{name}\n"));
    }
}

fn it_runs_in_the_containers_cgroup() {
    let c = running();
    let of_init = fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
    c.exec(&["-d"], "await TERM").ok();
    let pids = pids(&c);
    assert_eq!(pids.len(), 2);
    for pid in pids {
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap(), of_init);
    }
    // It sees it as its own root, as init does.
    assert_eq!(c.exec_report(&[])["cgroup"].as_str().unwrap().lines().last().unwrap(), "0::/");
}

fn a_cgroup_below_the_containers_is_taken() {
    needs!(keel());
    let c = running();
    fs::create_dir_all(c.cgroup().join("a/b")).unwrap();
    for (path, expected) in [("a", "a"), ("/a/b", "a/b"), ("a/b/", "a/b"), ("/", ""), ("./a", "a")] {
        c.exec(&["-d", "--cgroup", path], "await TERM").ok();
        let procs = c.cgroup().join(expected).join("cgroup.procs");
        let read = || fs::read_to_string(&procs).unwrap();
        let found =
            read().lines().filter(|pid| **pid != c.pid().to_string()).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(found.len(), 1, "{path}");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(found[0].parse().unwrap()),
            nix::sys::signal::SIGKILL,
        )
        .unwrap();
        eventually("it ends", || !read().contains(&found[0]));
    }
    c.delete_force().ok();
}

fn a_cgroup_that_is_not_below_the_containers_is_refused() {
    needs!(keel());
    let c = running();
    let beside = c.cgroup().with_file_name(format!("{}-beside", c.id));
    fs::create_dir(&beside).unwrap();
    let out = format!("../{}", beside.file_name().unwrap().to_str().unwrap());
    let tried =
        [&*out, &format!("/{out}"), "a/../..", "..", "nonesuch", "cpu:a", "memory,cpu:/a", "cgroup.procs"]
            .map(|path| (path.to_owned(), c.exec(&["--cgroup", path], "exit 0")));
    fs::remove_dir(&beside).unwrap();
    for (path, output) in tried {
        let error = output.exec_fails();
        assert!(error.contains(path.trim_start_matches('/')), "{path}: {error}");
    }
    assert_eq!(pids(&c).len(), 1);
}

/// The rule of cgroup v2 against inner processes: the kernel says EBUSY.
fn a_cgroup_that_passes_controllers_on_is_left_for_inits() {
    needs!(keel());
    let c = running();
    let available = fs::read_to_string(c.cgroup().join("cgroup.controllers")).unwrap();
    let Some(controller) =
        available.split_whitespace().find(|name| !["cpu", "cpuset", "pids", "perf_event"].contains(name))
    else {
        return crate::harness::skip(format!(
            "needs a controller of domains in the container's cgroup, not only {available:?}"
        ));
    };
    let own = c.cgroup().join("init");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("cgroup.procs"), c.pid().to_string()).unwrap();
    fs::write(c.cgroup().join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let read = |path: &Path| fs::read_to_string(path.join("cgroup.procs")).unwrap().lines().count();
    c.exec(&["-d"], "await TERM").ok();
    assert_eq!(read(&own), 2);
    // Asked for by name there is no way out.
    let error = c.exec(&["--cgroup", "/"], "exit 0").exec_fails();
    assert!(error.contains("(16)"), "{error}");
    c.delete_force().ok();
}

fn a_cgroup_that_is_gone_is_not_replaced_by_the_callers() {
    needs!(keel());
    let c = running();
    let elsewhere = c.cgroup().with_file_name(format!("{}-elsewhere", c.id));
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("cgroup.procs"), c.pid().to_string()).unwrap();
    fs::remove_dir(c.cgroup()).unwrap();
    let output = c.exec(&["-d"], "await TERM");
    let pids = fs::read_to_string(elsewhere.join("cgroup.procs")).unwrap();
    c.delete_force().ok();
    eventually("it is empty", || fs::remove_dir(&elsewhere).is_ok());
    output.ok();
    assert_eq!(pids.lines().count(), 2);
}

fn a_created_container_takes_processes() {
    let mut c = Sandbox::new();
    c.acts("pause").created();
    assert_eq!(c.exec_report(&[])["uname"]["hostname"], "sandbox");
    assert_eq!(c.status(), "created");
    c.start().ok();
    assert_eq!(c.status(), "running");
}

fn the_command_is_listed_and_killed_with_the_container() {
    let c = running();
    c.exec(&["-d"], "await TERM").ok();
    let listed = c.keel(&["ps", "--format", "json", &c.id]).ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    c.delete_force().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}
