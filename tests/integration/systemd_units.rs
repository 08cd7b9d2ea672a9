//! `--systemd-cgroup`: the unit that a container lives in, from its making to its end.

use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::sandbox::{Sandbox, cgroup_root, eventually, keel, systemd};
use crate::{needs, tests};

tests![
    without_systemd_there_is_an_error_with_a_way_out,
    without_a_bus_systemd_itself_is_asked,
    the_path_says_slice_and_name,
    a_path_without_slice_and_name_is_refused,
    init_is_in_the_scope_before_it_makes_namespaces_and_mounts,
    a_user_namespace_does_not_mind,
    a_leaf_is_made_in_the_scope,
    an_owner_of_the_scope_is_given_it,
    a_unit_of_somebody_else_is_left_alone,
    a_scope_of_the_same_name_is_another_containers,
    a_failed_unit_of_the_same_name_is_no_obstacle,
    a_container_that_ends_takes_its_scope_along,
    a_unit_that_failed_is_deleted_with_the_container,
    a_config_that_is_refused_late_leaves_no_unit,
    a_create_killed_anywhere_leaves_no_unit,
    many_in_a_row_leave_nothing,
    the_same_name_can_be_had_at_once,
];

fn scope() -> Sandbox {
    let mut c = Sandbox::new();
    c.scope();
    c
}

/// keel with nothing, or an empty directory, in place of these.
fn hiding(script: &str) -> [&str; 6] {
    ["unshare", "--mount", "sh", "-c", script, "sh"]
}

fn without_systemd_there_is_an_error_with_a_way_out() {
    needs!(keel());
    let mut c = scope();
    c.acts("pause").write_config();
    let script =
        "for d in /run/dbus /run/systemd; do [ ! -d $d ] || mount -t tmpfs none $d; done; exec \"$@\"";
    let output = c.behind(&hiding(script), &["create", &c.id]);
    assert_eq!(output.code, 1);
    for text in [
        "error: create container ",
        "reach systemd by D-Bus (without systemd and dbus.socket leave out --systemd-cgroup): ",
        "connect to /run/dbus/system_bus_socket: No such file or directory (2)",
    ] {
        assert!(output.stderr.contains(text), "{output:#?}");
    }
    assert_eq!(c.left(), Vec::<String>::new());
}

fn without_a_bus_systemd_itself_is_asked() {
    needs!(keel(), systemd());
    let mut c = scope();
    c.acts("pause").write_config();
    let no_bus = "mount -t tmpfs none /run/dbus && exec \"$@\"";
    c.behind(&hiding(no_bus), &["create", &c.id]).ok();
    assert!(c.cgroup().exists());
    c.behind(&hiding(no_bus), &["delete", &c.id]).ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn the_path_says_slice_and_name() {
    needs!(keel(), systemd());
    for (path, place) in [
        ("keeltest-a.slice:p:ID", "keeltest.slice/keeltest-a.slice/p-ID.scope"),
        ("-.slice:p:ID", "p-ID.scope"),
        (":p:ID", "system.slice/p-ID.scope"),
        ("", "system.slice/keel-ID.scope"),
    ] {
        let mut c = scope();
        let place = cgroup_root().unwrap().join(place.replace("ID", &c.id));
        let path = path.replace("ID", &c.id);
        c.acts("pause").set("/linux/cgroupsPath", path).created();
        assert_eq!(fs::read_to_string(place.join("cgroup.procs")).unwrap(), format!("{}\n", c.pid()));
        c.delete().ok();
        assert!(!place.exists());
    }
}

fn a_path_without_slice_and_name_is_refused() {
    needs!(keel());
    for path in ["/a/b", "a.slice:b", "a:b:c", "a.slice:b:c.slice"] {
        scope().set("/linux/cgroupsPath", path).refused("/linux/cgroupsPath");
    }
}

/// With a cgroup namespace the scope is its root; without one a bind of the scope alone is mounted.
fn init_is_in_the_scope_before_it_makes_namespaces_and_mounts() {
    needs!(keel(), systemd());
    for namespace in [true, false] {
        let mut c = scope();
        if !namespace {
            c.without_namespace("cgroup");
        }
        c.acts("cat /proc/self/cgroup ; cat /sys/fs/cgroup/cgroup.procs");
        let printed = c.run().ok().stdout;
        let own = if namespace { "/".into() } else { format!("/system.slice/{}", c.unit()) };
        assert_eq!(printed, format!("0::{own}\n1\n"));
    }
}

fn a_user_namespace_does_not_mind() {
    needs!(keel(), systemd());
    for namespace in [true, false] {
        let mut c = scope();
        c.user_namespace();
        if !namespace {
            c.without_namespace("cgroup");
        }
        assert_eq!(c.does("cat /sys/fs/cgroup/cgroup.procs"), ["1"], "namespace: {namespace}");
    }
}

fn a_leaf_is_made_in_the_scope() {
    needs!(keel(), systemd());
    let mut c = scope();
    c.set("/annotations", json!({"run.oci.delegate-cgroup": "leaf"})).running();
    assert_eq!(c.limit("leaf/cgroup.procs"), c.pid().to_string());
    assert!(c.limit("cgroup.subtree_control").contains("memory"));
}

fn an_owner_of_the_scope_is_given_it() {
    needs!(keel(), systemd());
    let mut c = scope();
    c.without_mount("/sys/fs/cgroup");
    c.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
    c.set("/process/user", json!({"uid": 1234, "gid": 0}));
    assert_eq!(c.does("mkdir /sys/fs/cgroup/a ; write /sys/fs/cgroup/memory.max 4096"), ["ok", "EACCES"]);
}

/// Another program's unit.
fn others(c: &Sandbox, options: &[&str]) -> crate::sandbox::Running {
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--scope", "--unit", &c.unit()]).args(options).args(["sleep", "1000"]);
    let running = crate::sandbox::Running::of(&mut command);
    eventually("the other unit is there", || c.cgroup().exists());
    running
}

fn a_unit_of_somebody_else_is_left_alone() {
    needs!(keel(), systemd());
    let c = scope();
    let other = others(&c, &[]);
    c.write_config();
    let error = c.keel(&["create", &c.id]).fails();
    assert!(error.contains("UnitExists") && error.contains("[config.json /linux/cgroupsPath]"), "{error}");
    assert!(c.containers().is_empty());
    c.delete_force().ok();
    assert_eq!(c.limit("cgroup.procs"), other.pid().to_string());
    Command::new("systemctl").args(["kill", "--signal", "KILL", &c.unit()]).status().unwrap();
    other.wait();
    eventually("the other unit ends", || c.left().is_empty());
}

/// The name is free as soon as the container has ended; another state root may have a container of this id.
fn a_scope_of_the_same_name_is_another_containers() {
    needs!(keel(), systemd());
    let mut c = scope();
    c.running();
    c.kill("KILL").ok();
    c.wait_stopped();
    eventually("the scope ends", || {
        !c.cgroup().exists() && !c.left().contains(&format!("unit {}", c.unit()))
    });
    let other = |args: &[&str]| {
        let mut keel = Command::new(&c.runtime);
        keel.arg("--root").arg(c.dir.join("other")).arg("--systemd-cgroup").args(args);
        keel.current_dir(c.bundle());
        c.execute(keel)
    };
    other(&["run", "--detach", &c.id]).ok();
    c.keel(&["kill", "--all", &c.id, "KILL"]);
    c.delete_force().ok();
    assert_eq!(other(&["state", &c.id]).ok().json()["status"], "running");
    assert!(c.cgroup().exists());
    other(&["delete", "--force", &c.id]).ok();
    eventually("nothing is left", || c.left().is_empty());
}

fn a_failed_unit_of_the_same_name_is_no_obstacle() {
    needs!(keel(), systemd());
    let mut c = scope();
    others(&c, &["--property", "RuntimeMaxSec=1"]).wait();
    eventually("it has failed", || c.left() == [format!("unit {}", c.unit())]);
    c.acts("pause").created();
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_container_that_ends_takes_its_scope_along() {
    needs!(keel(), systemd());
    let mut c = scope();
    c.running();
    c.kill("KILL").ok();
    c.wait_stopped();
    eventually("the scope ends", || !c.cgroup().exists());
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_unit_that_failed_is_deleted_with_the_container() {
    needs!(keel(), systemd());
    let mut c = scope();
    let property = |name: &str| format!("org.systemd.property.{name}");
    c.set(
        "/annotations",
        json!({property("RuntimeMaxSec"): "4", property("TimeoutStopSec"): "1", property("CollectMode"): "'inactive'"}),
    );
    c.running();
    c.wait_stopped();
    let failed =
        || Command::new("systemctl").args(["is-failed", "--quiet", &c.unit()]).status().unwrap().success();
    eventually("the unit has failed", failed);
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_config_that_is_refused_late_leaves_no_unit() {
    needs!(keel(), systemd());
    let mut c = scope();
    c.set("/linux/resources/unified", json!({"cgroup.max.depth": "x"}));
    c.refused("/linux/resources/unified/cgroup.max.depth");
    // The cgroup is gone with init, and still it is init that is heard.
    for _ in 0..5 {
        let mut c = scope();
        c.write("file", "");
        c.set("/process/cwd", "/file").refused("/process/cwd");
    }
}

fn a_create_killed_anywhere_leaves_no_unit() {
    needs!(keel(), systemd());
    for round in 0..20 {
        let mut c = scope();
        c.acts("pause").write_config();
        let create = c.spawn(c.command(&["create", &c.id]));
        thread::sleep(Duration::from_millis(round * 10));
        // ESRCH: it was faster.
        let _ = kill(Pid::from_raw(create.pid() as i32), Signal::SIGKILL);
        create.wait();
        c.delete_force().ok();
        eventually(&format!("nothing is left in round {round}: {:?}", c.left()), || c.left().is_empty());
    }
}

fn many_in_a_row_leave_nothing() {
    needs!(keel(), systemd());
    let units = || {
        let output = Command::new("systemctl")
            .args(["list-units", "--all", "--no-legend", "keel-*"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let mut c = scope();
    for _ in 0..50 {
        assert_eq!(c.acts("exit 0").run().code, 0);
    }
    assert!(!units().contains(&c.id), "{}", units());
}

fn the_same_name_can_be_had_at_once() {
    needs!(keel(), systemd());
    let mut c = scope();
    for _ in 0..5 {
        c.running();
        c.delete_force().ok();
    }
}
