//! keel killed with SIGKILL at any system call: `delete --force` then leaves nothing.
//!
//! A first run under strace lists the system calls of the command; then it is killed at one of them at a time, by
//! strace's injection. CRASH=all tries every call instead of a sample, CRASH=10 some ten.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use crate::sandbox::{Output, Sandbox, eventually, keel, processes_of, program};
use crate::{needs, tests};

tests![
    a_create_killed_anywhere_leaves_nothing_after_delete,
    a_start_killed_anywhere_leaves_nothing_after_delete,
    a_delete_killed_anywhere_can_be_repeated,
    a_run_killed_anywhere_leaves_nothing_after_delete,
    an_exec_killed_anywhere_leaves_the_container_as_it_was,
    init_ends_with_a_create_that_was_killed_before_it_had_said_all,
];

/// The command under strace; the container's own processes are not traced.
fn traced(c: &Sandbox, options: &[&str], args: &[&str]) -> Output {
    let keel = c.command(args);
    let mut strace = Command::new("strace");
    strace.args(options).arg("--").arg(keel.get_program()).args(keel.get_args()).current_dir(c.bundle());
    strace.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("SANDBOX", &c.id);
    c.execute(strace)
}

/// Each system call of a command as strace's injection counts it: its name, and the how manieth of that name.
fn calls(c: &Sandbox, args: &[&str]) -> Vec<(String, u32)> {
    let trace = c.dir.join("trace");
    traced(c, &["-o", trace.to_str().unwrap()], args).ok();
    let (mut counts, mut calls) = (HashMap::new(), Vec::new());
    for line in fs::read_to_string(trace).unwrap().lines() {
        let Some((name, _)) = line.split_once('(') else { continue };
        if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let count = counts.entry(name.to_owned()).or_insert(0);
            *count += 1;
            calls.push((name.to_owned(), *count));
        }
    }
    // The last one ends the process anyway.
    calls.retain(|(name, _)| name != "exit_group");
    assert!(calls.len() > 20, "strace saw {calls:?}");
    calls
}

/// Some of the calls, spread evenly, and always those that the kernel's objects come from.
fn sample(calls: Vec<(String, u32)>) -> Vec<(String, u32)> {
    let some = match std::env::var("CRASH").as_deref() {
        Ok("all") => return calls,
        Ok(number) => number.parse().unwrap_or(40),
        Err(_) => 40,
    };
    let step = calls.len().div_ceil(some);
    let telling = [
        "clone3", "mkdirat", "mkdir", "renameat", "rename", "sendmsg", "sendto", "recvmsg", "recvfrom",
        "rmdir",
    ];
    let keep = |(i, (name, _)): &(usize, (String, u32))| i % step == 0 || telling.contains(&name.as_str());
    calls.into_iter().enumerate().filter(keep).map(|(_, call)| call).collect()
}

/// Kills the command at each of its calls, in a new sandbox each time.
fn killed_at_each(prepare: fn(&mut Sandbox), args: fn(&Sandbox) -> Vec<String>, after: fn(&Sandbox)) {
    let trial = |inject: Option<&(String, u32)>| {
        let mut c = Sandbox::new();
        prepare(&mut c);
        let words = args(&c);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Some((name, count)) = inject else { return calls(&c, &words) };
        let inject = format!("inject={name}:signal=SIGKILL:when={count}");
        let output = traced(&c, &["-o", "/dev/null", "-e", &format!("trace={name}"), "-e", &inject], &words);
        let killed = output.code == 137;
        after(&c);
        c.delete_force().ok();
        // What init inherited, it gives up as soon as it sees that its parent is gone.
        eventually(
            &format!("nothing is left after a kill at {name} {count} ({killed}): {:?}", c.left()),
            || c.left().is_empty(),
        );
        Vec::new()
    };
    for call in sample(trial(None)) {
        trial(Some(&call));
    }
}

fn a_create_killed_anywhere_leaves_nothing_after_delete() {
    needs!(keel(), program("strace"));
    let prepare = |c: &mut Sandbox| c.acts("pause").write_config();
    killed_at_each(prepare, |c| vec!["create".into(), c.id.clone()], |_| ());
}

fn a_start_killed_anywhere_leaves_nothing_after_delete() {
    needs!(keel(), program("strace"));
    let prepare = |c: &mut Sandbox| {
        c.acts("pause").created();
    };
    killed_at_each(
        prepare,
        |c| vec!["start".into(), c.id.clone()],
        |c| {
            // Whether it was started or not, it is one of the two, and says so at once.
            assert!(["created", "running"].contains(&c.status().as_str()));
        },
    );
}

fn a_delete_killed_anywhere_can_be_repeated() {
    needs!(keel(), program("strace"));
    killed_at_each(
        |c: &mut Sandbox| {
            c.running();
        },
        |c| vec!["delete".into(), "--force".into(), c.id.clone()],
        |_| (),
    );
}

fn a_run_killed_anywhere_leaves_nothing_after_delete() {
    needs!(keel(), program("strace"));
    let prepare = |c: &mut Sandbox| c.acts("exit 0").write_config();
    killed_at_each(prepare, |c| vec!["run".into(), c.id.clone()], |_| ());
}

/// But for the program, if it had come so far.
fn an_exec_killed_anywhere_leaves_the_container_as_it_was() {
    needs!(keel(), program("strace"));
    let prepare = |c: &mut Sandbox| {
        c.running();
    };
    let args = |c: &Sandbox| ["exec", "--detach", &c.id, "/payload", "pause"].map(String::from).to_vec();
    killed_at_each(prepare, args, |c| {
        let runs = || processes_of(&c.id).iter().all(|process| process.contains("/payload pause"));
        eventually("its process executes or ends", runs);
        assert_eq!(c.status(), "running");
    });
}

/// The pid file is a pipe that nobody reads, so that create stays where it is about to tell init that all is done.
fn init_ends_with_a_create_that_was_killed_before_it_had_said_all() {
    needs!(keel());
    let mut c = Sandbox::new();
    nix::unistd::mkfifo(&c.dir.join(".pid"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    c.acts("pause").write_config();
    let create = c.spawn(c.command(&["create", "--pid-file", c.dir.join("pid").to_str().unwrap(), &c.id]));
    let call = format!("/proc/{}/syscall", create.pid());
    let open = format!("{} ", nix::libc::SYS_openat);
    let made = || c.cgroup().is_dir() && fs::read_to_string(&call).unwrap().starts_with(&open);
    eventually("it waits for a reader", || made() && c.status() == "created");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(create.pid() as i32), nix::sys::signal::SIGKILL)
        .unwrap();
    assert_eq!(create.wait().code, 137);
    eventually("init ends", || processes_of(&c.id).is_empty());
    c.delete_force().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}
