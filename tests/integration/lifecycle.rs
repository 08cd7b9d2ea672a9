//! create, start, kill, delete: the statuses between them, and what each leaves.

use std::fs;

use serde_json::json;

use crate::sandbox::{Sandbox, cgroupfs, is_keel, keel};
use crate::{needs, tests};

tests![
    run_gives_the_payloads_exit_code,
    run_gives_128_plus_the_signal,
    a_container_goes_through_created_running_stopped,
    create_does_not_run_the_program,
    a_second_start_is_refused,
    start_of_a_stopped_container_is_refused,
    start_without_process_is_refused,
    an_id_in_use_is_refused_and_the_container_unharmed,
    an_id_is_free_again_after_delete,
    ids_that_are_not_names_are_refused,
    a_config_changed_after_create_has_no_effect,
    a_short_program_does_not_hang_start,
    run_detached_leaves_a_running_container,
    run_with_keep_leaves_a_stopped_container,
    run_passes_signals_on,
    a_missing_bundle_is_refused,
    a_cgroup_in_use_is_refused_and_its_processes_live,
    the_default_root_is_run_keel,
    an_empty_cgroup_is_taken_and_a_frozen_one_refused,
    the_config_is_kept_as_it_was_at_create,
    run_reaps_the_orphans_of_the_container,
];

fn run_gives_the_payloads_exit_code() {
    assert_eq!(Sandbox::new().acts("exit 42").run().code, 42);
}

fn run_gives_128_plus_the_signal() {
    let mut c = Sandbox::new();
    let run = c.acts("echo up ; pause").run_in_background();
    c.wait_printed("up");
    c.kill("KILL").ok();
    assert_eq!(run.wait().code, 137);
}

fn a_container_goes_through_created_running_stopped() {
    let mut c = Sandbox::new();
    c.acts("await TERM").created();
    assert_eq!(c.status(), "created");
    c.start().ok();
    c.wait_printed("waiting");
    assert_eq!(c.status(), "running");
    c.kill("TERM").ok();
    c.wait_stopped();
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn create_does_not_run_the_program() {
    let mut c = Sandbox::new();
    c.acts("create /ran yes").created();
    assert!(!c.rootfs().join("ran").exists());
    c.start().ok();
    c.wait_stopped();
    assert_eq!(fs::read_to_string(c.rootfs().join("ran")).unwrap(), "yes");
}

fn a_second_start_is_refused() {
    let mut c = Sandbox::new();
    c.running();
    c.start().fails();
    assert_eq!(c.status(), "running");
}

fn start_of_a_stopped_container_is_refused() {
    let mut c = Sandbox::new();
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    c.start().fails();
    assert_eq!(c.status(), "stopped");
}

fn start_without_process_is_refused() {
    let mut c = Sandbox::new();
    c.unset("/process");
    let error = c.never_runs();
    assert!(!is_keel() || error.contains("process"), "{error}");
}

fn an_id_in_use_is_refused_and_the_container_unharmed() {
    let mut c = Sandbox::new();
    c.running();
    let pid = c.pid();
    assert!(c.create().fails().contains("exist"));
    assert_eq!((c.pid(), c.status().as_str()), (pid, "running"));
}

fn an_id_is_free_again_after_delete() {
    let mut c = Sandbox::new();
    for _ in 0..2 {
        assert_eq!(c.acts("echo again").run().ok().stdout, "again\n");
    }
}

fn ids_that_are_not_names_are_refused() {
    let c = Sandbox::new();
    c.write_config();
    for id in ["", ".", "..", "a/b", "a b", "../x", "ä", "a\nb"] {
        c.keel(&["create", id]).fails();
        assert_eq!(c.left(), Vec::<String>::new(), "id {id:?}");
    }
}

fn a_config_changed_after_create_has_no_effect() {
    let mut c = Sandbox::new();
    c.acts("echo before").created();
    c.acts("echo after").set("/hostname", "other").write_config();
    c.start().ok();
    c.wait_printed("before\n");
}

fn a_short_program_does_not_hang_start() {
    let mut c = Sandbox::new();
    for _ in 0..20 {
        c.acts("exit 0").created().start().ok();
        c.delete_force().ok();
    }
}

fn run_detached_leaves_a_running_container() {
    let mut c = Sandbox::new();
    c.acts("pause").write_config();
    c.keel(&["run", "--detach", &c.id]).ok();
    assert_eq!(c.status(), "running");
}

fn run_with_keep_leaves_a_stopped_container() {
    let mut c = Sandbox::new();
    c.acts("exit 3").write_config();
    assert_eq!(c.keel(&["run", "--keep", &c.id]).code, 3);
    assert_eq!(c.status(), "stopped");
    c.delete().ok();
}

fn run_passes_signals_on() {
    needs!(keel());
    let mut c = Sandbox::new();
    let run = c.acts("await USR1 TERM").run_in_background();
    c.wait_printed("waiting");
    let keel = nix::unistd::Pid::from_raw(run.pid() as i32);
    nix::sys::signal::kill(keel, nix::sys::signal::SIGUSR1).unwrap();
    assert_eq!(run.wait().stdout, "waiting\nUSR1\n");
}

fn a_missing_bundle_is_refused() {
    let mut c = Sandbox::new();
    c.set("/annotations", json!({}));
    let error = c.keel(&["create", "--bundle", "/nonexistent/bundle", &c.id]).fails();
    assert!(error.contains("/nonexistent/bundle"), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_cgroup_in_use_is_refused_and_its_processes_live() {
    needs!(keel());
    let (mut owner, mut c) = (Sandbox::new(), Sandbox::new());
    owner.running();
    c.set("/linux/cgroupsPath", format!("/{}", owner.id)).refused("/linux/cgroupsPath");
    c.delete_force().ok();
    assert_eq!(owner.status(), "running");
}

/// On a /run of its own: the host's may hold containers.
fn the_default_root_is_run_keel() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.acts("exit 0").write_config();
    let script = "mount -t tmpfs t /run && $0 list && $0 run --keep $1 && stat -c %a /run/keel /run/keel/$1 && $0 delete $1 && ls /run/keel";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&c.runtime).arg(&c.id).current_dir(c.bundle());
    let output = c.execute(command).ok();
    assert_eq!(output.lines()[1..], ["700", "700"]);
}

fn an_empty_cgroup_is_taken_and_a_frozen_one_refused() {
    needs!(cgroupfs(), keel());
    let mut c = Sandbox::new();
    c.acts("exit 0").write_config();
    fs::create_dir(c.cgroup()).unwrap();
    fs::write(c.cgroup().join("cgroup.freeze"), "1").unwrap();
    let error = c.keel(&["run", &c.id]).fails();
    assert!(error.contains("frozen [config.json /linux/cgroupsPath]"), "{error}");
    fs::write(c.cgroup().join("cgroup.freeze"), "0").unwrap();
    c.keel(&["run", &c.id]).ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn the_config_is_kept_as_it_was_at_create() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/unknown", "kept").created();
    let before = fs::read(c.bundle().join("config.json")).unwrap();
    c.set("/unknown", "changed").write_config();
    assert!(fs::read(c.dir.join("state").join(&c.id).join("config.json")).unwrap() == before);
}

/// Without a pid namespace they would be left to keel's caller, unless that does not want them reaped.
fn run_reaps_the_orphans_of_the_container() {
    needs!(keel());
    for (flags, reaped) in [(&["run"][..], true), (&["run", "--no-subreaper"], false)] {
        let mut c = Sandbox::new();
        c.busybox();
        let orphan = "(sleep 1000 & echo $! >/pid); echo up; exec sleep 1000";
        c.without_namespace("pid").args(&["/bin/sh", "-c", orphan]).write_config();
        let run = c.spawn(c.command(&[flags, &[&*c.id]].concat()));
        c.wait_printed("up");
        let pid: i32 = fs::read_to_string(c.rootfs().join("pid")).unwrap().trim().parse().unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert_eq!(status.contains(&format!("PPid:\t{}\n", run.pid())), reaped, "{flags:?}");
        c.kill("KILL").ok();
        assert_eq!(run.wait().code, 137);
        assert_eq!(c.left(), Vec::<String>::new());
    }
}
