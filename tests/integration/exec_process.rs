//! What `create` sets on a container's first process, `exec` sets on others: from the config as it was then.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::skip;
use crate::sandbox::{Sandbox, keel, program};
use crate::{needs, tests};

tests![
    it_is_in_every_namespace_of_init,
    it_is_in_namespaces_that_were_joined,
    a_container_without_namespaces_takes_processes,
    it_sees_the_mounts_and_the_root_of_init,
    what_is_set_on_init_is_set_on_it,
    the_config_as_created_counts,
    it_has_the_keyring_of_the_container,
    without_a_new_keyring_it_keeps_the_callers,
    home_is_of_the_containers_passwd,
    without_a_umask_the_callers_is_kept,
    capabilities_are_as_at_create,
    the_oom_score_is_set,
    the_callers_cpu_affinity_is_not_inherited,
    exec_affinity_is_set_before_and_after,
    exec_affinity_that_no_cpu_fits_is_refused,
    signals_are_neither_ignored_nor_blocked,
    the_terminal_of_the_config_is_not_the_commands,
];

/// A container whose first process reports and then pauses, with what it reported.
fn reported(c: &mut Sandbox) -> Value {
    c.acts("report ; pause").created();
    c.start().ok();
    c.wait_printed("}\n");
    serde_json::from_str(c.printed().lines().find(|line| line.starts_with('{')).unwrap()).unwrap()
}

fn it_is_in_every_namespace_of_init() {
    let mut c = Sandbox::new();
    c.set("/linux/namespaces/-", json!({"type": "time"}))
        .set("/linux/timeOffsets", json!({"boottime": {"secs": 5}}));
    let of_init = reported(&mut c);
    assert_eq!(c.exec_report(&[])["namespaces"], of_init["namespaces"]);
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(of_init["namespaces"][kind], own.to_str().unwrap(), "{kind}");
    }
    assert_eq!(c.exec_report(&[])["timeOffsets"], of_init["timeOffsets"]);
}

fn it_is_in_namespaces_that_were_joined() {
    let mut holder = Sandbox::new();
    holder.set("/linux/namespaces/-", json!({"type": "time"})).running();
    let pid = holder.pid();
    let mut c = Sandbox::new();
    for (kind, file) in
        [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")]
    {
        c.without_namespace(kind);
        c.set("/linux/namespaces/-", json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
    }
    c.set("/linux/namespaces/-", json!({"type": "time", "path": format!("/proc/{pid}/ns/time")}))
        .unset("/hostname");
    let of_init = reported(&mut c);
    assert_eq!(of_init["namespaces"]["net"], holder.exec_report(&[])["namespaces"]["net"]);
    assert_eq!(c.exec_report(&[])["namespaces"], of_init["namespaces"]);
}

/// As with `podman run --net host --pid host ...`; and one without a mount namespace has but its root.
fn a_container_without_namespaces_takes_processes() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/linux/namespaces", json!([{"type": "mount"}])).unset("/hostname");
    let of_init = reported(&mut c);
    assert_eq!(c.exec_report(&[])["namespaces"], of_init["namespaces"]);

    let mut c = Sandbox::new();
    c.set("/linux/namespaces", json!([])).set("/mounts", json!([])).unset("/hostname");
    c.unset("/linux/maskedPaths").unset("/linux/readonlyPaths").running();
    assert_eq!(c.exec_report(&[])["root"], json!(["dev", "payload", "proc", "sys", "tmp"]));
    assert_eq!(
        c.exec(&["--cwd", "/tmp"], "ls .. ; ls ../..").ok().stdout,
        "dev payload proc sys tmp\n".repeat(2)
    );
}

fn it_sees_the_mounts_and_the_root_of_init() {
    let mut c = Sandbox::new();
    c.set("/root/readonly", true);
    let of_init = reported(&mut c);
    let seen = c.exec_report(&[]);
    for what in ["mounts", "root", "cgroup", "dev", "interfaces", "uname"] {
        assert_eq!(seen[what], of_init[what], "{what}");
    }
}

/// All of a report that does not tell one process from another.
fn what_is_set_on_init_is_set_on_it() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/process/user", json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027}))
        .set("/process/rlimits", json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 1},
        ]))
        .set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 3}))
        .set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 6}))
        .set("/process/oomScoreAdj", 321)
        .set("/linux/personality", json!({"domain": "LINUX32"}))
        .set("/linux/memoryPolicy", json!({"mode": "MPOL_PREFERRED", "nodes": "0"}))
        .set("/process/cwd", "/tmp");
    let kill = json!(["CAP_KILL"]);
    for set in ["inheritable", "ambient"] {
        c.set(&format!("/process/capabilities/{set}"), kill.clone());
    }
    if !Path::new("/proc/self/numa_maps").exists() {
        c.unset("/linux/memoryPolicy");
    }
    let mut of_init = reported(&mut c);
    let mut seen = c.exec_report(&[]);
    assert_eq!(
        (&seen["oomScoreAdj"], &seen["scheduler"]["nice"], &seen["personality"]),
        (&json!("321"), &json!(3), &json!("00000008"))
    );
    for own in ["pid", "sid", "pgrp", "fds", "argv"] {
        (of_init[own], seen[own]) = (json!(null), json!(null));
    }
    assert_eq!(seen, of_init);
}

fn the_config_as_created_counts() {
    let mut c = Sandbox::new();
    c.set("/process/env", json!(["PATH=/", "HOME=/", "A=created"])).running();
    c.set("/process/env", json!(["A=changed"])).set("/hostname", "changed").write_config();
    assert_eq!(c.exec(&[], "env A").ok().stdout, "created\n");
    fs::remove_file(c.bundle().join("config.json")).unwrap();
    assert_eq!(c.exec(&[], "env A").ok().stdout, "created\n");
    // Whatever becomes of the whole bundle, the container has its root.
    let (bundle, elsewhere) = (c.bundle(), c.dir.join("elsewhere"));
    fs::rename(&bundle, &elsewhere).unwrap();
    let mut exec = c.exec_command(&[], "env A");
    exec.current_dir("/");
    let output = c.execute(exec);
    fs::rename(elsewhere, bundle).unwrap();
    assert_eq!(output.ok().stdout, "created\n");
}

fn it_has_the_keyring_of_the_container() {
    needs!(keel());
    for uid in [0, 1000] {
        let mut c = Sandbox::new();
        c.set("/process/user/uid", uid);
        let of_init = reported(&mut c);
        assert!(of_init["keyring"].as_str().unwrap().ends_with(&format!(";_ses.{}", c.id)));
        assert_eq!(c.exec_report(&[])["keyring"], of_init["keyring"]);
        // The same one, not another of its name.
        let serial = |pid: &str| {
            let keys = fs::read_to_string("/proc/keys").unwrap();
            keys.lines().filter(|line| line.contains(pid)).count()
        };
        assert!(!Path::new("/proc/keys").exists() || serial(&format!("_ses.{}", c.id)) == 1);
    }
}

fn without_a_new_keyring_it_keeps_the_callers() {
    let mut c = Sandbox::new();
    c.acts("pause").write_config();
    c.keel(&["create", "--no-new-keyring", &c.id]).ok();
    let seen = c.exec_report(&[])["keyring"].take();
    assert!(!seen.as_str().unwrap_or("").contains(&c.id), "{seen}");
}

fn home_is_of_the_containers_passwd() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n");
    c.running();
    for (user, home) in [("0", "/root"), ("1000", "/home/user"), ("1234:5", "/")] {
        assert_eq!(c.exec(&["-u", user], "env HOME").ok().stdout, format!("{home}\n"));
    }
    for (env, home) in [("HOME=/mine", "/mine"), ("HOME=", "/root")] {
        assert_eq!(c.exec(&["-e", env], "env HOME").ok().stdout, format!("{home}\n"));
    }
}

fn without_a_umask_the_callers_is_kept() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.running();
    let seen =
        c.behind(&["sh", "-c", "umask 035; exec \"$@\"", "sh"], &["exec", &c.id, "/payload", "report"]);
    assert_eq!(seen.ok().json()["umask"], "0035");
    let mut c = Sandbox::new();
    c.set("/process/user/umask", 0o27).running();
    assert_eq!(c.exec_report(&[])["umask"], "0027");
}

fn capabilities_are_as_at_create() {
    needs!(keel());
    for user in [0, 1000] {
        let mut c = Sandbox::new();
        let sets = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
            "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
        });
        c.set("/process/capabilities", sets).set("/process/user/uid", user);
        assert_eq!(reported(&mut c)["capabilities"], c.exec_report(&[])["capabilities"]);
    }
    let mut c = Sandbox::new();
    c.unset("/process/capabilities").running();
    assert_eq!(c.exec_report(&[])["capabilities"]["bounding"], json!([]));
}

fn the_oom_score_is_set() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.running();
    let mut process = c.process("report");
    process["oomScoreAdj"] = json!(700);
    assert_eq!(c.exec_process(&process).ok().json()["oomScoreAdj"], "700");
    process["oomScoreAdj"] = json!(1001);
    assert!(c.exec_process(&process).exec_fails().contains("/oomScoreAdj: "));
}

fn cpus() -> Result<(), String> {
    let count = std::thread::available_parallelism().map_or(1, |n| n.get());
    (count > 1).then_some(()).ok_or("needs two CPUs".into())
}

fn the_callers_cpu_affinity_is_not_inherited() {
    needs!(keel(), program("taskset"), cpus());
    let mut c = Sandbox::new();
    c.running();
    let all = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let seen = c.behind(&["taskset", "--cpu-list", "0"], &["exec", &c.id, "/payload", "report"]).ok().json();
    assert_eq!(seen["cpus"], all.trim());
}

fn exec_affinity_is_set_before_and_after() {
    needs!(keel(), cpus());
    let all = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    for (affinity, expected) in [
        (json!({"final": "1"}), "1"),
        (json!({"initial": "0", "final": "1"}), "1"),
        (json!({"initial": "1"}), "1"),
        (json!({"final": "0-1"}), "0-1"),
        (json!({}), all.trim()),
    ] {
        let mut c = Sandbox::new();
        c.set("/process/execCPUAffinity", affinity.clone());
        // It has no effect on the first process.
        assert_eq!(reported(&mut c)["cpus"], all.trim());
        assert_eq!(c.exec_report(&[])["cpus"], expected, "{affinity}");
        // A process file has its own.
        let mut process = c.process("report");
        process["execCPUAffinity"] = json!({"final": "0"});
        assert_eq!(c.exec_process(&process).ok().json()["cpus"], "0");
    }
}

fn exec_affinity_that_no_cpu_fits_is_refused() {
    needs!(keel());
    if fs::read_to_string("/sys/devices/system/cpu/possible").is_ok_and(|all| all.contains("4000")) {
        return skip("needs fewer CPUs".into());
    }
    for when in ["initial", "final"] {
        let mut c = Sandbox::new();
        c.running();
        let mut process = c.process("report");
        process["execCPUAffinity"] = json!({when: "4000"});
        let error = c.exec_process(&process).exec_fails();
        assert!(error.contains(&format!("process.json /execCPUAffinity/{when}]")), "{error}");
        process["execCPUAffinity"] = json!({when: "x"});
        let error = c.exec_process(&process).exec_fails();
        assert!(error.contains(&format!("/execCPUAffinity/{when}: ")), "{error}");
    }
}

fn signals_are_neither_ignored_nor_blocked() {
    let mut c = Sandbox::new();
    c.busybox();
    c.running();
    for detach in [false, true] {
        let out = c.dir.join("out");
        let args = ["exec", if detach { "-d" } else { "-e=A=1" }, &c.id, "/bin/cat", "/proc/self/status"];
        c.behind(&["sh", "-c", &format!("trap '' HUP PIPE; \"$@\" >{}", out.display()), "sh"], &args).ok();
        let text = || fs::read_to_string(&out).unwrap();
        crate::sandbox::eventually("all is printed", || text().contains("Cpus_allowed"));
        for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
            assert!(text().lines().any(|l| l == line), "{}", text());
        }
    }
}

fn the_terminal_of_the_config_is_not_the_commands() {
    let mut c = Sandbox::new();
    c.set("/process/terminal", true).acts("pause").write_config();
    let socket = c.dir.join("console.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let create = c.spawn(c.command(&["create", "--console-socket", socket.to_str().unwrap(), &c.id]));
    let _master = crate::terminal::receive(&listener);
    create.wait().ok();
    c.start().ok();
    let seen = c.exec_report(&[]);
    assert_eq!((&seen["tty"], &seen["controllingTty"]), (&json!([false, false, false]), &json!(false)));
    assert_eq!(seen["dev"]["console"]["rdev"], "136:0");
}
