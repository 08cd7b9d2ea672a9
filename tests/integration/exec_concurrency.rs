//! `exec` beside other commands and other `exec`s, and on a paused container. EXECS=10000 runs that many of each.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::exec::{pids, running};
use crate::sandbox::{Output, Running, Sandbox, eventually, keel, processes_of};
use crate::{needs, tests};

tests![
    of_many_at_once_none_is_lost,
    a_process_that_ends_at_once_never_hangs_exec,
    exec_against_delete_force,
    exec_against_kill,
    exec_against_pause_and_resume,
    exec_against_start,
    a_process_of_a_paused_container_goes_on_with_it,
    a_process_of_a_paused_container_is_given_up_on_a_signal,
    a_process_of_a_paused_container_is_killed_with_it,
    an_exec_that_is_killed_leaves_no_process_that_nobody_knows_of,
    a_process_ends_with_an_exec_that_was_killed_before_it_had_said_all,
];

/// How many, if not as many as $EXECS says.
fn rounds(few: usize) -> usize {
    std::env::var("EXECS").ok().and_then(|count| count.parse().ok()).unwrap_or(few)
}

fn of_many_at_once_none_is_lost() {
    let c = running();
    let (init, state) = (c.pid(), c.dir.join("state").join(&c.id));
    let count = |path: String| fs::read_dir(path).unwrap().count();
    let fds = || count(format!("/proc/{init}/fd"));
    let files = || count(state.display().to_string());
    let before = (fds(), files());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= rounds(200) {
                        break;
                    }
                    let output = c.exec(&[], &format!("echo {number} ; exit {}", number % 200));
                    assert_eq!((output.code, output.stdout), ((number % 200) as i32, format!("{number}\n")));
                }
            });
        }
    });
    assert_eq!((fds(), files()), before);
    assert_eq!(pids(&c), [init.to_string()]);
    let inside = c.exec(&[], "ls /proc").ok().stdout;
    let processes = inside.split_whitespace().filter(|name| name.parse::<u32>().is_ok()).count();
    // Init, and who has just looked: no zombie.
    assert_eq!(processes, 2, "{inside}");
}

fn a_process_that_ends_at_once_never_hangs_exec() {
    let c = running();
    for number in 0..rounds(200) {
        let options: &[&str] = if number % 2 == 0 { &["--detach"] } else { &[] };
        c.exec(options, "exit 0").ok();
    }
    eventually("all have ended", || pids(&c).len() == 1);
}

/// Whatever comes first: the process ran, or was killed, or never was; and what is said fits.
#[track_caller]
fn made_sense(output: Output) {
    match output.code {
        0 => assert!(output.stdout == "ran\n" && output.stderr.is_empty(), "{output:#?}"),
        137 => assert_eq!(output.stderr, ""),
        _ => {
            let error = output.exec_fails();
            let expected = [
                "the container ended",
                "cannot exec in a stopped container",
                "does not exist",
                "cannot exec in a paused container",
                // Before the container's first process was.
                "was killed by SIGKILL during set-up",
            ];
            assert!(expected.iter().any(|text| error.contains(text)), "{error}");
        }
    }
}

/// Spins rather than sleeps, which would be too coarse to meet every step of another process.
fn spin(micros: usize) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_micros(micros as u64) {
        thread::yield_now();
    }
}

/// Starts `exec` and, a little later in each round, the command that ends its process.
fn race(shared_pids: bool, against: &[&str]) {
    let mut c = Sandbox::new();
    if shared_pids {
        c.without_namespace("pid");
    }
    for round in 0..rounds(25) {
        c.running();
        let options: &[&str] = if round % 4 == 3 { &["-t"] } else { &[] };
        let execs = [0, 1].map(|_| c.spawn(c.exec_command(options, "echo ran ; pause")));
        spin(600 * (round % 25));
        c.keel(&[&against[..1], &[&*c.id], &against[1..]].concat()).ok();
        if shared_pids {
            // In a pid namespace that goes on, a process that came just after the kill and before its effect lives.
            c.delete_force().ok();
        }
        execs.into_iter().for_each(|exec| made_sense(exec.wait()));
        c.delete_force().ok();
        eventually("nothing is left", || c.left().is_empty());
    }
}

fn exec_against_delete_force() {
    needs!(keel());
    [false, true].into_iter().for_each(|shared_pids| race(shared_pids, &["delete", "--force"]));
}

fn exec_against_kill() {
    needs!(keel());
    [false, true].into_iter().for_each(|shared_pids| race(shared_pids, &["kill", "KILL", "--all"]));
}

fn exec_against_pause_and_resume() {
    needs!(keel());
    let c = running();
    for round in 0..rounds(150) {
        let exec = c.spawn(c.exec_command(&[], "echo ran"));
        spin(200 * (round % 50));
        c.keel(&["pause", &c.id]).ok();
        c.keel(&["resume", &c.id]).ok();
        let output = exec.wait();
        assert_ne!(output.code, 137);
        made_sense(output);
    }
    assert_eq!(pids(&c).len(), 1);
}

fn exec_against_start() {
    for _ in 0..rounds(30) {
        let mut c = Sandbox::new();
        c.acts("pause").created();
        let execs = [0, 1].map(|_| c.spawn(c.exec_command(&[], "echo ran")));
        c.start().ok();
        for exec in execs {
            assert_eq!(exec.wait().ok().stdout, "ran\n");
        }
        assert_eq!(c.status(), "running");
    }
}

/// An exec into a paused container that waits for it, in the state that its process is in before its first act.
fn waiting(c: &Sandbox, options: &[&str]) -> Running {
    c.keel(&["pause", &c.id]).ok();
    let exec = c.spawn(c.exec_command(&[&["--ignore-paused"], options].concat(), "echo ran"));
    eventually("there are two", || pids(c).len() == 2);
    exec
}

fn a_process_of_a_paused_container_goes_on_with_it() {
    needs!(keel());
    let c = running();
    for (before, options) in [&[][..], &["--detach"], &["--tty"]].into_iter().enumerate() {
        let exec = waiting(&c, options);
        assert_eq!((c.status(), c.printed().matches("ran").count()), ("paused".into(), before));
        c.keel(&["resume", &c.id]).ok();
        exec.wait().ok();
        eventually("it has run", || pids(&c).len() == 1);
        assert_eq!(c.printed().matches("ran").count(), before + 1);
    }
}

fn a_process_of_a_paused_container_is_given_up_on_a_signal() {
    needs!(keel());
    let c = running();
    let pid_file = c.dir.join("pid");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let exec = waiting(&c, &["--pid-file", pid_file.to_str().unwrap()]);
        kill(Pid::from_raw(exec.pid() as i32), signal).unwrap();
        let error = exec.wait().exec_fails();
        assert!(error.contains("interrupted by a signal") && !pid_file.exists(), "{error}");
        assert_eq!((pids(&c).len(), c.status()), (1, "paused".into()));
        c.keel(&["resume", &c.id]).ok();
    }
}

fn a_process_of_a_paused_container_is_killed_with_it() {
    needs!(keel());
    let c = running();
    let exec = waiting(&c, &[]);
    c.delete_force().ok();
    let error = exec.wait().exec_fails();
    assert!(error.contains("the container ended"), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
}

/// Killed while its process is being set up: that one ends by itself, frozen or not.
fn an_exec_that_is_killed_leaves_no_process_that_nobody_knows_of() {
    needs!(keel());
    let c = running();
    for round in 0..rounds(60) {
        let exec = c.spawn(c.exec_command(&[], "pause"));
        spin(200 * (round % 60));
        kill(Pid::from_raw(exec.pid() as i32), Signal::SIGKILL).unwrap();
        assert_eq!(exec.wait().code, 137);
        // Either it pauses as the program, or it is gone.
        eventually("its process executes or ends", || {
            processes_of(&c.id).iter().all(|process| process.contains("/payload pause"))
        });
        for pid in pids(&c).iter().filter(|pid| **pid != c.pid().to_string()) {
            kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
        }
        eventually("one is left", || pids(&c).len() == 1);
    }
    let exec = waiting(&c, &[]);
    kill(Pid::from_raw(exec.pid() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(exec.wait().code, 137);
    c.keel(&["resume", &c.id]).ok();
    eventually("it ends", || pids(&c).len() == 1);
    assert!(!c.printed().contains("ran"));
}

/// A pid file that is a pipe holds exec up, while its process has done all and waits for the word.
fn a_process_ends_with_an_exec_that_was_killed_before_it_had_said_all() {
    needs!(keel());
    let c = running();
    mkfifo(&c.dir.join(".pid"), Mode::S_IRWXU).unwrap();
    let exec = c.spawn(c.exec_command(&["--pid-file", c.dir.join("pid").to_str().unwrap()], "echo ran"));
    eventually("its process waits", || {
        let newcomer = pids(&c).into_iter().find(|pid| *pid != c.pid().to_string());
        let call = newcomer.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/syscall")).ok());
        call.is_some_and(|call| call.starts_with(&format!("{} ", nix::libc::SYS_recvmsg)))
    });
    kill(Pid::from_raw(exec.pid() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(exec.wait().code, 137);
    eventually("one is left", || pids(&c).len() == 1);
    assert!(!c.printed().contains("ran"));
}
