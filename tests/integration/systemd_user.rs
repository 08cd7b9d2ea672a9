//! `--systemd-cgroup` of a user: its own systemd makes the cgroup.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::rootless::newuidmap;
use crate::sandbox::{
    Running, SESSION_SUBIDS, SESSION_USER, Sandbox, controller, eventually, keel, program, session,
};
use crate::systemd::commands_act_on;
use crate::{needs, tests};

tests![
    all_commands_act_on_a_users_scope,
    a_users_container_runs_to_its_end,
    the_users_systemd_keeps_the_limits,
    a_user_changes_limits,
    a_controller_that_the_user_lacks_is_named,
    exec_is_brought_to_the_scope_from_a_session_beside_it,
    exec_goes_where_the_first_process_is_if_it_must,
    exec_is_born_in_the_scope_by_one_of_the_users_own_cgroups,
    subordinate_users_live_in_the_scope,
    a_root_of_a_user_namespace_has_the_users_systemd,
    without_a_session_the_way_out_is_told,
    a_users_program_that_takes_too_much_memory_is_killed,
    a_users_create_killed_anywhere_leaves_no_unit,
];

fn users() -> Sandbox {
    let mut c = Sandbox::new();
    c.users_scope();
    c
}

fn users_with(resources: Value) -> Sandbox {
    let mut c = users();
    c.set("/linux/resources", resources);
    c
}

/// As the user, with what finds its systemd.
fn as_user(program: impl AsRef<std::ffi::OsStr>) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.uid(SESSION_USER).gid(SESSION_USER).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("XDG_RUNTIME_DIR", crate::sandbox::session_dir());
    command
}

#[track_caller]
fn systemctl(arguments: &[&str]) -> String {
    let output = as_user("systemctl").arg("--user").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn property(c: &Sandbox, name: &str) -> String {
    systemctl(&["show", "-P", name, &c.unit()])
}

fn cgroup_of(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().trim().to_owned()
}

/// As /proc/PID/cgroup has it.
fn scope_of(c: &Sandbox) -> String {
    let root = crate::sandbox::cgroup_root().unwrap();
    format!("0::/{}", c.cgroup().strip_prefix(root).unwrap().display())
}

/// A process that `exec` has left in the container.
#[track_caller]
fn exec_detached(c: &Sandbox, options: &[&str]) -> String {
    let file = c.dir.join("io/exec.pid");
    let options = [&["--detach", "--pid-file", file.to_str().unwrap()], options].concat();
    c.exec(&options, "pause").ok();
    fs::read_to_string(file).unwrap()
}

fn all_commands_act_on_a_users_scope() {
    needs!(keel(), session());
    let mut c = users_with(json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 20}}));
    c.running();
    assert_eq!(cgroup_of(&c.pid().to_string()), scope_of(&c));
    commands_act_on(&c);
}

fn a_users_container_runs_to_its_end() {
    needs!(keel(), session());
    let mut c = users();
    assert_eq!(c.does("cat /proc/self/cgroup ; cat /sys/fs/cgroup/cgroup.procs"), ["0::/", "1"]);
    c.without_namespace("cgroup");
    assert_eq!(c.does("cat /proc/self/cgroup ; cat /sys/fs/cgroup/cgroup.procs"), [scope_of(&c), "1".into()]);
    // Without a path it is beside them.
    c.unset("/linux/cgroupsPath");
    let own = scope_of(&c).replace(&c.unit(), &format!("keel-{}.scope", c.id));
    assert_eq!(c.does("cat /proc/self/cgroup"), [own]);
}

fn the_users_systemd_keeps_the_limits() {
    needs!(keel(), session());
    let mut c = users_with(json!({
        "memory": {"limit": 64 << 20, "reservation": 4096},
        "cpu": {"shares": 2048, "quota": 12345, "period": 50000, "cpus": "1", "mems": "0"},
        "pids": {"limit": 9},
        "blockIO": {"weight": 200},
        "unified": {"memory.high": "33554432"},
    }));
    c.running();
    let held = || {
        [
            "memory.max",
            "memory.low",
            "memory.high",
            "cpu.weight",
            "cpu.max",
            "cpuset.cpus",
            "cpuset.mems",
            "pids.max",
            "io.bfq.weight",
        ]
        .map(|file| c.limit(file))
    };
    let limits = ["67108864", "4096", "33554432", "174", "12500 50000", "1", "0", "9", "default 200"]
        .map(String::from);
    assert_eq!(held(), limits);
    let known = ["MemoryMax", "CPUQuotaPerSecUSec", "AllowedCPUs", "TasksMax", "IOWeight", "Slice"];
    assert_eq!(known.map(|name| property(&c, name)), ["67108864", "250ms", "1", "9", "1200", "user.slice"]);
    systemctl(&["daemon-reload"]);
    systemctl(&["set-property", "--runtime", &c.unit(), "CPUWeight=175"]);
    eventually("systemd has written the weight", || c.limit("cpu.weight") == "175");
    assert_eq!(held()[4..], limits[4..]);
    assert_eq!(held()[..3], limits[..3]);
}

fn a_user_changes_limits() {
    needs!(keel(), session());
    let mut c = users_with(json!({"memory": {"limit": 64 << 20}}));
    c.running();
    for (resources, file, value, name, shown) in [
        (json!({"memory": {"limit": 32 << 20}}), "memory.max", "33554432", "MemoryMax", "33554432"),
        (json!({"cpu": {"quota": 10001}}), "cpu.max", "11000 100000", "CPUQuotaPerSecUSec", "110ms"),
        (json!({"cpu": {"cpus": "0"}}), "cpuset.cpus", "0", "AllowedCPUs", "0"),
        (json!({"pids": {"limit": 9}}), "pids.max", "9", "TasksMax", "9"),
    ] {
        c.update(&resources).ok();
        assert_eq!((&*c.limit(file), &*property(&c, name)), (value, shown), "{resources}");
    }
    let refused = c.update(&json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]})).fails();
    assert!(refused.contains("enable the cgroup controller hugetlb"), "{refused}");
    assert!(refused.contains("/hugepageLimits/0"), "{refused}");
    assert_eq!(c.limit("memory.max"), "33554432");
}

fn a_controller_that_the_user_lacks_is_named() {
    needs!(keel(), session(), controller("hugetlb"));
    let c = users_with(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}));
    let error = c.refused("/linux/resources/hugepageLimits/0");
    assert!(error.contains("enable the cgroup controller hugetlb in "), "{error}");
    assert!(error.contains("it is not delegated to this user"), "{error}");
}

/// The tests are in a cgroup of root's.
fn exec_is_brought_to_the_scope_from_a_session_beside_it() {
    needs!(keel(), session());
    let mut c = users();
    c.running();
    assert!(!cgroup_of("self").contains("user@"), "the tests are where they should not be");
    let pid = exec_detached(&c, &[]);
    assert_eq!(cgroup_of(&pid), scope_of(&c));
    // As the container's user, whoever that is outside.
    assert_eq!(c.exec(&["--user", "0:0"], "cat /proc/self/cgroup").ok().stdout, "0::/\n");
    // Its systemd is gone, as far as it sees: nothing is left, and nothing runs as the caller.
    let nowhere = "unix:path=/nonesuch";
    let mut exec = c.exec_command(&[], "write /tmp/ran 1");
    exec.env("DBUS_SESSION_BUS_ADDRESS", nowhere).env("XDG_RUNTIME_DIR", "/nonesuch");
    let error = c.execute(exec).exec_fails();
    assert!(error.contains("enable-linger"), "{error}");
    assert!(!c.rootfs().join("tmp/ran").exists());
    assert_eq!(c.keel(&["ps", "--format", "json", &c.id]).ok().json().as_array().unwrap().len(), 2);
}

/// A cgroup that passes controllers on can have no processes.
fn exec_goes_where_the_first_process_is_if_it_must() {
    needs!(keel(), session());
    let mut c = users();
    c.set("/annotations", json!({"run.oci.delegate-cgroup": "leaf"})).running();
    assert!(c.limit("cgroup.subtree_control").contains("memory"));
    let leaf = format!("{}/leaf", scope_of(&c));
    assert_eq!(cgroup_of(&c.pid().to_string()), leaf);
    assert_eq!(cgroup_of(&exec_detached(&c, &[])), leaf);
    assert_eq!(cgroup_of(&exec_detached(&c, &["--cgroup", "leaf"])), leaf);
    let error = c.exec(&["--cgroup", "/"], "pause").exec_fails();
    assert!(error.contains("bring process ") && error.contains(" to / of the systemd unit "), "{error}");
}

fn exec_is_born_in_the_scope_by_one_of_the_users_own_cgroups() {
    needs!(keel(), session(), program("systemd-run"));
    let mut c = users();
    c.running();
    let keel = c.command(&["exec", &c.id, "/payload", "cat", "/proc/self/cgroup"]);
    let mut command = as_user("systemd-run");
    command.args(["--user", "--scope", "--quiet", "--collect", "env", "XDG_RUNTIME_DIR=/nonesuch"]);
    command.arg(keel.get_program()).args(keel.get_args());
    assert_eq!(c.execute(command).ok().stdout, "0::/\n");
}

fn subordinate_users_live_in_the_scope() {
    needs!(keel(), session(), newuidmap());
    for user in [0, 7] {
        let mut c = users();
        c.subids(SESSION_SUBIDS).set("/process/user", json!({"uid": user, "gid": user}));
        c.set("/linux/resources", json!({"pids": {"limit": 5}})).running();
        assert_eq!((cgroup_of(&c.pid().to_string()), c.limit("pids.max")), (scope_of(&c), "5".into()));
        let seen = c.exec_report(&["--user", "9:9"]);
        assert_eq!(seen["uid"], json!([9, 9, 9, 9]));
        assert_eq!(c.exec(&["--user", "9:9"], "cat /proc/self/cgroup").ok().stdout, "0::/\n");
    }
}

/// Rootless Podman calls its runtime so.
fn a_root_of_a_user_namespace_has_the_users_systemd() {
    needs!(keel(), session(), newuidmap());
    let mut c = users();
    c.set("/linux/resources", json!({"pids": {"limit": 5}}));
    c.without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
    c.acts("pause");
    let mut holder = as_user("unshare");
    let holder = Running::of(holder.args([
        "--user",
        "--mount",
        "--net",
        "--map-auto",
        "--map-root-user",
        "sleep",
        "1000",
    ]));
    let namespace = holder.pid().to_string();
    // Podman's pods share it. The caller's own is the host's, and it could not come back to that.
    c.without_namespace("network");
    c.set("/linux/namespaces/-", json!({"type": "network", "path": format!("/proc/{namespace}/ns/net")}));
    c.write_config();
    let comm = format!("/proc/{namespace}/comm");
    eventually("the namespace is there", || fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n"));
    let call = |words: &[&str]| {
        let keel = c.command(words);
        let mut command = as_user("nsenter");
        command.args(["--user", "--mount", "--preserve-credentials", "--target", &namespace]);
        command.arg(format!("--wd={}", c.bundle().display()));
        command.arg(keel.get_program()).args(keel.get_args());
        command.current_dir(c.bundle()).env("SANDBOX", &c.id).env("USER", "tester");
        c.execute(command)
    };
    call(&["create", &c.id]).ok();
    call(&["start", &c.id]).ok();
    assert_eq!(c.limit("pids.max"), "5");
    assert_eq!(property(&c, "TasksMax"), "5");
    assert_eq!(call(&["exec", &c.id, "/payload", "cat", "/proc/self/cgroup"]).ok().stdout, "0::/\n");
    call(&["update", "--pids-limit", "6", &c.id]).ok();
    assert_eq!(property(&c, "TasksMax"), "6");
    call(&["delete", "--force", &c.id]).ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn without_a_session_the_way_out_is_told() {
    needs!(keel(), session());
    let c = users();
    c.write_config();
    let dead = c.host_dir("run");
    drop(std::os::unix::net::UnixListener::bind(dead.join("bus")).unwrap());
    c.give_to_user(&c.dir.join("host"));
    for (dir, reason) in [
        (Some(dead.as_path()), "bus: Connection refused (111)"),
        (Some(Path::new("/nonesuch")), "connect to /nonesuch/bus: No such file or directory (2)"),
        (None, "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"),
    ] {
        let mut create = c.command(&["create", &c.id]);
        match dir {
            Some(dir) => create.env("XDG_RUNTIME_DIR", dir),
            None => create.env_remove("XDG_RUNTIME_DIR"),
        };
        let error = c.execute(create).fails();
        let way_out = "it takes a session of the user, or `loginctl enable-linger`, and XDG_RUNTIME_DIR";
        assert!(error.contains(reason) && error.contains(way_out), "{error}");
        assert_eq!(c.left(), Vec::<String>::new());
    }
}

fn a_users_program_that_takes_too_much_memory_is_killed() {
    needs!(keel(), session());
    let mut c = users_with(json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}}));
    c.busybox();
    c.give_to_user(&c.rootfs());
    c.args(&["/bin/sh", "-c", "x=x; while :; do x=$x$x; done"]);
    assert_eq!(c.run().code, 137);
    let error = users_with(json!({"memory": {"limit": 4096}})).refused("/linux/resources/memory/limit");
    assert!(error.contains("killed"), "{error}");
}

fn a_users_create_killed_anywhere_leaves_no_unit() {
    needs!(keel(), session());
    for round in 0..8 {
        let mut c = users();
        c.acts("pause").write_config();
        let create = c.spawn(c.command(&["create", &c.id]));
        std::thread::sleep(std::time::Duration::from_millis(round * 30));
        let pid = nix::unistd::Pid::from_raw(create.pid() as i32);
        // ESRCH: it was faster.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        create.wait();
        c.delete_force().ok();
        eventually(&format!("nothing is left in round {round}: {:?}", c.left()), || c.left().is_empty());
    }
}
