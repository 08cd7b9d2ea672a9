//! A user namespace of the container's own: /linux/namespaces of type user, /linux/uidMappings and gidMappings.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::sandbox::{HOST_ROOT, Sandbox};
use crate::swap::{swaps, while_swapped};
use crate::{needs, tests};

tests![
    the_containers_root_is_a_user_of_the_host,
    every_namespace_belongs_to_the_user_namespace,
    what_the_container_makes_belongs_to_its_host_user,
    the_user_of_the_process_is_mapped,
    without_a_root_the_user_makes_the_container,
    several_ranges_are_mapped_in_order,
    a_volume_in_a_directory_of_the_hosts_root_is_reached,
    devices_have_their_numbers_modes_and_owners,
    a_device_works_and_cannot_be_made,
    devices_are_bound_on_a_read_only_or_used_rootfs,
    the_parent_makes_a_tmpfs_on_dev_with_its_devices,
    a_device_that_is_there_already_is_taken,
    a_planted_device_path_is_refused,
    standard_streams_belong_to_the_mapped_user,
    a_terminal_belongs_to_the_mapped_user,
    hard_limits_are_raised,
    real_time_and_io_priorities_are_set,
    masked_and_read_only_paths_are_covered,
    sysctls_of_the_containers_namespaces_are_set,
    the_cgroup_belongs_to_the_mapped_user,
    a_root_mount_is_the_containers,
    exec_joins_as_the_containers_root_and_as_a_user,
    exec_with_an_unmapped_user_is_refused,
    exec_has_the_keyring_of_the_container,
    a_user_namespace_is_joined_by_path,
    a_pod_shares_user_and_network_namespaces,
    a_joined_namespace_with_other_mappings_is_refused,
    the_runtimes_own_user_namespace_is_not_joined,
    a_new_user_namespace_without_mappings_is_refused,
    mappings_without_a_user_namespace_are_refused,
    unmapped_ids_are_refused,
    a_file_system_of_a_foreign_namespace_is_explained,
    the_container_cannot_reach_what_is_the_hosts,
    the_kernel_says_what_it_does_not_map,
    a_flag_of_the_hosts_mount_cannot_be_taken_off,
    a_flag_of_the_hosts_mount_stays_in_a_joined_mount_namespace,
    a_mount_namespace_of_another_user_namespace_is_refused,
    a_bind_without_the_mounts_below_it_is_explained,
    without_a_cgroup_namespace_no_cgroup_can_be_changed,
    new_joined_and_absent_namespaces_combine,
    a_swapped_volume_never_reaches_the_host,
];

fn sandbox() -> Sandbox {
    let mut c = Sandbox::new();
    c.user_namespace();
    c
}

fn owner(path: impl AsRef<std::path::Path>) -> (u32, u32) {
    let stat = fs::metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

fn mapping(ranges: &[(u32, u32, u32)]) -> Value {
    let range = |&(inside, outside, size)| json!({"containerID": inside, "hostID": outside, "size": size});
    ranges.iter().map(range).collect()
}

/// A volume that belongs to a user of the host.
fn volume(c: &mut Sandbox, host: u32) -> std::path::PathBuf {
    let volume = c.host_dir("volume");
    chown(&volume, Some(host), Some(host)).unwrap();
    c.mount(json!({"destination": "/v", "type": "none", "source": volume, "options": ["bind"]}));
    volume
}

fn with_capability(c: &mut Sandbox, capability: &str) {
    for set in ["bounding", "effective", "permitted"] {
        c.set(&format!("/process/capabilities/{set}/-"), capability);
    }
}

fn own(file: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{file}")).unwrap().display().to_string()
}

fn the_containers_root_is_a_user_of_the_host() {
    let mut c = sandbox();
    c.running();
    let status = fs::read_to_string(format!("/proc/{}/status", c.pid())).unwrap();
    assert!(
        status.contains(&format!("Uid:\t{HOST_ROOT}\t{HOST_ROOT}\t{HOST_ROOT}\t{HOST_ROOT}\n")),
        "{status}"
    );
    assert!(status.contains(&format!("Gid:\t{HOST_ROOT}\t")) && status.contains("Groups:\t \n"), "{status}");
    let seen = c.exec_report(&[]);
    assert_eq!((&seen["uid"], &seen["gid"]), (&json!([0, 0, 0, 0]), &json!([0, 0, 0, 0])));
    assert_eq!(seen["groups"], json!([]));
}

fn every_namespace_belongs_to_the_user_namespace() {
    let mut c = sandbox();
    c.set("/linux/namespaces/-", json!({"type": "time"}));
    c.set("/linux/timeOffsets", json!({"boottime": {"secs": 77}}));
    let seen = c.report();
    for file in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "time", "user"] {
        assert_ne!(seen["namespaces"][file], own(file), "{file}");
    }
    assert_eq!((&seen["uname"]["hostname"], &seen["pid"]), (&json!("sandbox"), &json!(1)));
    assert!(seen["timeOffsets"].as_str().unwrap().contains("77"));
    with_capability(&mut c, "CAP_SYS_ADMIN");
    assert_eq!(c.does("sethostname other"), ["ok"]);
}

fn what_the_container_makes_belongs_to_its_host_user() {
    let mut c = sandbox();
    let volume = volume(&mut c, HOST_ROOT + 7);
    c.set("/process/user", json!({"uid": 7, "gid": 8}));
    assert_eq!(c.does("create /v/file x"), ["ok"]);
    assert_eq!(owner(volume.join("file")), (HOST_ROOT + 7, HOST_ROOT + 8));
    let stat = c.stat("/v/file");
    assert_eq!((&stat["uid"], &stat["gid"]), (&json!(7), &json!(8)));
}

fn the_user_of_the_process_is_mapped() {
    let mut c = sandbox();
    c.set("/process/user", json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 65535], "umask": 0o27}));
    let seen = c.report();
    assert_eq!(seen["uid"], json!([1000, 1000, 1000, 1000]));
    assert_eq!((&seen["groups"], &seen["umask"]), (&json!([5, 65535]), &json!("0027")));
    assert_eq!(seen["capabilities"]["effective"], json!([]));
}

fn without_a_root_the_user_makes_the_container() {
    let mut c = sandbox();
    let one = mapping(&[(1000, HOST_ROOT, 1)]);
    c.set("/linux/uidMappings", one.clone()).set("/linux/gidMappings", one);
    c.set("/process/user", json!({"uid": 1000, "gid": 1000})).without_mount("/dev/pts");
    let seen = c.report();
    assert_eq!(seen["uid"], json!([1000, 1000, 1000, 1000]));
    assert_eq!((&seen["dev"]["null"]["rdev"], &seen["dev"]["null"]["mode"]), (&json!("1:3"), &json!("0666")));
}

fn several_ranges_are_mapped_in_order() {
    let mut c = sandbox();
    let ranges = mapping(&[(1000, 300_000, 1), (0, HOST_ROOT, 1000), (1001, 400_000, 64536)]);
    c.set("/linux/uidMappings", ranges.clone()).set("/linux/gidMappings", ranges);
    let volume = volume(&mut c, 300_000);
    c.set("/process/user", json!({"uid": 1000, "gid": 1001}));
    assert_eq!(c.does("create /v/file x"), ["ok"]);
    assert_eq!(owner(volume.join("file")), (300_000, 400_000));
}

/// The sandbox itself is 0700 and root's: nobody in the user namespace could walk there.
fn a_volume_in_a_directory_of_the_hosts_root_is_reached() {
    let mut c = sandbox();
    let volume = volume(&mut c, HOST_ROOT);
    fs::write(volume.join("secret"), "from the host").unwrap();
    fs::set_permissions(volume.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(c.does("cat /v/secret"), ["from the host"]);
}

fn devices_have_their_numbers_modes_and_owners() {
    let mut c = sandbox();
    c.set(
        "/linux/devices",
        json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 7, "gid": 8},
            {"path": "/deep/er/disk", "type": "b", "major": 7, "minor": 99},
            {"path": "/dev/pipe", "type": "p", "uid": 9},
        ]),
    );
    c.symlink("../etc", "tmp/link");
    c.set("/linux/devices/-", json!({"path": "/tmp/link/odd", "type": "c", "major": 1, "minor": 5}));
    c.give_rootfs();
    let fuse = json!({"type": "c", "mode": "0640", "uid": 7, "gid": 8, "rdev": "10:229"});
    assert_eq!(c.stat("/dev/fuse"), fuse);
    assert_eq!(c.stat("/deep/er/disk")["rdev"], "7:99");
    assert_eq!((&c.stat("/dev/pipe")["type"], &c.stat("/dev/pipe")["uid"]), (&json!("p"), &json!(9)));
    assert_eq!(c.stat("/etc/odd")["rdev"], "1:5");
    let full = json!({"type": "c", "mode": "0666", "uid": 0, "gid": 0, "rdev": "1:7"});
    assert_eq!(c.stat("/dev/full"), full);
}

fn a_device_works_and_cannot_be_made() {
    let mut c = sandbox();
    c.unset("/linux/resources");
    with_capability(&mut c, "CAP_MKNOD");
    assert_eq!(
        c.does("write /dev/null x ; write /dev/full x ; open r /dev/zero ; mknod c /dev/mem 1 1"),
        ["ok", "ENOSPC", "ok", "EPERM"]
    );
}

fn devices_are_bound_on_a_read_only_or_used_rootfs() {
    let mut c = sandbox();
    c.without_mount("/dev").without_mount("/dev/pts").without_mount("/dev/shm").without_mount("/dev/mqueue");
    c.set("/root/readonly", true);
    for _ in 0..2 {
        assert_eq!(c.stat("/dev/null")["rdev"], "1:3");
    }
}

/// Where it cannot, each is bound.
fn the_parent_makes_a_tmpfs_on_dev_with_its_devices() {
    for (options, bound) in [
        (&["nosuid", "strictatime", "mode=755", "size=65536k"][..], false),
        (&["nosuid", "mode=755", "ro"], false),
        (&["nosuid", "mode=755", "nodev"], true),
        (&["nosuid", "mode=755", "uid=7"], true),
        (&["nosuid"], true),
    ] {
        let mut c = sandbox();
        c.set("/mounts/1/options", json!(options));
        c.set(
            "/linux/devices",
            json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "uid": 7}]),
        );
        let seen = c.report();
        let mounts = seen["mounts"].as_array().unwrap().iter();
        let points: Vec<&str> = mounts.map(|mount| mount["at"].as_str().unwrap()).collect();
        for device in ["/dev/null", "/dev/fuse"] {
            assert_eq!(points.contains(&device), bound, "{options:?}: {points:?}");
        }
        assert_eq!(
            seen["dev"]["null"],
            json!({"type": "c", "mode": "0666", "uid": 0, "gid": 0, "rdev": "1:3"})
        );
        assert_eq!(
            (&seen["dev"]["fuse"]["rdev"], &seen["dev"]["fuse"]["uid"]),
            (&json!("10:229"), &json!(7))
        );
        let top = c.stat("/dev");
        let owner = if options.contains(&"uid=7") { 7 } else { 0 };
        assert_eq!((&top["uid"], &top["mode"]), (&json!(owner), &json!("0755")), "{options:?}");
        let (made, written) = if options.contains(&"ro") { ("EROFS", "ok") } else { ("ok", "ok") };
        let made = if owner == 7 { "EACCES" } else { made };
        assert_eq!(c.does("create /dev/file x ; write /dev/null x"), [made, written], "{options:?}");
    }
}

fn a_device_that_is_there_already_is_taken() {
    let c = Sandbox::new();
    let made =
        std::process::Command::new("mknod").arg(c.rootfs().join("dev/null")).args(["c", "1", "3"]).status();
    assert!(made.unwrap().success());
    let mut c = c;
    c.user_namespace().without_mount("/dev").without_mount("/dev/pts").without_mount("/dev/shm");
    c.without_mount("/dev/mqueue");
    let seen = c.report();
    let points: Vec<&str> =
        seen["mounts"].as_array().unwrap().iter().map(|mount| mount["at"].as_str().unwrap()).collect();
    assert!(!points.contains(&"/dev/null") && points.contains(&"/dev/zero"), "{points:?}");
    assert_eq!(seen["dev"]["null"]["rdev"], "1:3");
}

fn a_planted_device_path_is_refused() {
    let mut c = Sandbox::new();
    c.without_mount("/dev").without_mount("/dev/pts").without_mount("/dev/shm").without_mount("/dev/mqueue");
    c.symlink("/proc/sysrq-trigger", "dev/null");
    c.user_namespace();
    let error = c.refused("/linux/devices");
    assert!(error.contains("/dev/null (c 1:3)"), "{error}");
    fs::remove_file(c.rootfs().join("dev/null")).unwrap();
    c.write("dev/null", "not empty");
    c.give_rootfs();
    assert!(c.refused("/linux/devices").contains("a regular file is already there"));
}

fn standard_streams_belong_to_the_mapped_user() {
    let mut c = sandbox();
    c.busybox();
    c.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    c.args(&["/bin/sh", "-c", "echo reopened >/dev/stdout"]).write_config();
    let output = c.behind(&["sh", "-c", "\"$@\" | cat", "sh"], &["run", &c.id]).ok();
    assert_eq!(output.stdout, "reopened\n");
    c.running();
    let args = ["exec", "--user", "1001", &c.id, "/bin/sh", "-c", "echo again >/dev/stdout"];
    assert_eq!(c.behind(&["sh", "-c", "\"$@\" | cat", "sh"], &args).ok().stdout, "again\n");
}

fn a_terminal_belongs_to_the_mapped_user() {
    needs!(crate::sandbox::program("script"));
    let mut c = sandbox();
    c.set("/process/terminal", true).set("/process/user", json!({"uid": 1000, "gid": 1000}));
    c.acts("stat /dev/console").write_config();
    let output = c.behind(&["sh", "-c", "script -qec \"$*\" /dev/null", "sh"], &["run", &c.id]);
    // script(1) echoes the end of its own input.
    let line = output.stdout.trim_matches(|c: char| c != '{' && c != '}');
    let console: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert_eq!((&console["uid"], &console["gid"], &console["type"]), (&json!(1000), &json!(5), &json!("c")));
}

fn hard_limits_are_raised() {
    let mut c = sandbox();
    c.set("/process/rlimits", json!([{"type": "RLIMIT_CORE", "soft": 50, "hard": 100}]));
    c.acts("report").write_config();
    let report = c.behind(&["prlimit", "--core=10:10"], &["run", &c.id]);
    if report.stderr.contains("CAP_SYS_RESOURCE") {
        // Not even the host's root may.
        return;
    }
    assert_eq!(report.ok().json()["rlimits"]["RLIMIT_CORE"], json!([50, 100]));
}

fn real_time_and_io_priorities_are_set() {
    let mut c = sandbox();
    c.set("/process/scheduler", json!({"policy": "SCHED_OTHER", "nice": -5}));
    c.set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_RT", "priority": 3}));
    let seen = c.report();
    assert_eq!((&seen["scheduler"]["nice"], &seen["ioPriority"]), (&json!(-5), &json!([1, 3])));
    c.running();
    let mut process = c.process("report");
    process["scheduler"]["nice"] = json!(-6);
    assert_eq!(c.exec_process(&process).ok().json()["scheduler"]["nice"], -6);
}

fn masked_and_read_only_paths_are_covered() {
    let mut c = sandbox();
    c.write("secret", "x");
    c.give_rootfs();
    c.set("/linux/maskedPaths/-", "/secret").set("/linux/readonlyPaths/-", "/tmp");
    assert_eq!(c.does("cat /secret ; ls /sys/firmware ; create /tmp/x y"), ["", "EROFS"]);
}

fn sysctls_of_the_containers_namespaces_are_set() {
    let mut c = sandbox();
    c.set(
        "/linux/sysctl",
        json!({"net.core.somaxconn": "77", "kernel.domainname": "d", "kernel.msgmax": "8000",
            "user.max_net_namespaces": "3"}),
    );
    assert_eq!(
        c.does("cat /proc/sys/net/core/somaxconn ; cat /proc/sys/kernel/msgmax ; cat /proc/sys/user/max_net_namespaces"),
        ["77", "8000", "3"]
    );
    assert_eq!(c.report()["uname"]["domainname"], "d");
    c.without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
    c.refused("/linux/sysctl/user.max_net_namespaces");
}

fn the_cgroup_belongs_to_the_mapped_user() {
    let mut c = sandbox();
    c.without_mount("/sys/fs/cgroup").mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "rw"]
    }));
    c.set("/process/user", json!({"uid": 33, "gid": 33}));
    c.running();
    for (file, uid) in [("", HOST_ROOT + 33), ("cgroup.procs", HOST_ROOT + 33), ("cgroup.freeze", 0)] {
        assert_eq!(owner(c.cgroup().join(file)).0, uid, "{file}");
    }
    assert_eq!(
        c.exec(&[], "mkdir /sys/fs/cgroup/own ; write /sys/fs/cgroup/cgroup.freeze 1").ok().lines(),
        ["ok", "EACCES"]
    );
}

fn a_root_mount_is_the_containers() {
    let mut c = sandbox();
    let lower = c.rootfs();
    for name in ["upper", "work"] {
        let dir = c.bundle().join(name);
        fs::create_dir(&dir).unwrap();
        chown(&dir, Some(HOST_ROOT), Some(HOST_ROOT)).unwrap();
    }
    let lower = format!("lowerdir={}", lower.display());
    let overlay = json!({"destination": "/", "type": "overlay", "source": "overlay",
        "options": [lower, "upperdir=upper", "workdir=work"]});
    let mounts = c.config["mounts"].as_array_mut().unwrap();
    mounts.insert(0, overlay);
    assert_eq!(c.does("create /new x ; cat /new"), ["ok", "x"]);
    assert_eq!(owner(c.bundle().join("upper/new")), (HOST_ROOT, HOST_ROOT));
    assert!(!c.rootfs().join("new").exists());
    c.config["mounts"][0] = json!({"destination": "/", "type": "tmpfs", "source": "tmpfs"});
    let payload = c.rootfs().join("payload");
    c.mount(json!({"destination": "/payload", "type": "none", "source": payload, "options": ["bind"]}));
    assert_eq!(c.does("create /new x"), ["ok"]);
    c.config["mounts"][0]["options"] = json!(["uid=5"]);
    c.refused("/mounts/0/options");
}

fn exec_joins_as_the_containers_root_and_as_a_user() {
    let mut c = sandbox();
    let volume = volume(&mut c, HOST_ROOT);
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    let init = c.running().pid();
    for (user, uid, gid) in [("0", 0, 0), ("7:8", 7, 8)] {
        let seen = c.exec_report(&["--user", user]);
        assert_eq!((&seen["uid"][0], &seen["gid"][0]), (&json!(uid), &json!(gid)));
        for file in ["user", "mnt", "pid", "net"] {
            let there = fs::read_link(format!("/proc/{init}/ns/{file}")).unwrap().display().to_string();
            assert_eq!(seen["namespaces"][file], there, "{file}");
        }
        assert_eq!(c.exec(&["--user", user], &format!("create /v/{uid} x")).ok().stdout, "ok\n");
        assert_eq!(owner(volume.join(uid.to_string())), (HOST_ROOT + uid, HOST_ROOT + gid));
    }
}

fn exec_with_an_unmapped_user_is_refused() {
    let mut c = sandbox();
    c.running();
    let error = c.exec(&["--user", "70000:5"], "report").exec_fails();
    assert!(
        error.contains("set uid 70000: it is not mapped") && error.contains("[process /user/uid]"),
        "{error}"
    );
}

fn exec_has_the_keyring_of_the_container() {
    let mut c = sandbox();
    c.set("/linux/maskedPaths", json!([]));
    c.running();
    let name = format!("_ses.{}", c.id);
    assert!(c.exec_report(&[])["keyring"].as_str().unwrap().ends_with(&name));
    let keys = c.exec(&[], "cat /proc/keys").ok().stdout;
    assert_eq!(keys.lines().filter(|line| line.contains(&name)).count(), 1, "{keys}");
}

/// Puts the user namespace of another container in place of a new one.
fn join_user(c: &mut Sandbox, pid: i32) {
    c.without_namespace("user");
    c.set("/linux/namespaces/-", json!({"type": "user", "path": format!("/proc/{pid}/ns/user")}));
}

fn a_user_namespace_is_joined_by_path() {
    let mut first = sandbox();
    let pid = first.running().pid();
    for mappings in [true, false] {
        let mut c = sandbox();
        join_user(&mut c, pid);
        if !mappings {
            c.unset("/linux/uidMappings").unset("/linux/gidMappings");
        }
        let volume = volume(&mut c, HOST_ROOT);
        c.set("/linux/namespaces/-", json!({"type": "time"}));
        c.set("/linux/timeOffsets", json!({"monotonic": {"secs": 5}}));
        let seen = c.report();
        let user = fs::read_link(format!("/proc/{pid}/ns/user")).unwrap().display().to_string();
        assert_eq!(
            (&seen["namespaces"]["user"], &seen["pid"], &seen["uid"][0]),
            (&json!(user), &json!(1), &json!(0))
        );
        assert_eq!(c.does("create /v/x y ; write /dev/null x"), ["ok", "ok"]);
        assert_eq!(owner(volume.join("x")), (HOST_ROOT, HOST_ROOT));
        c.running();
        assert_eq!(c.exec_report(&["--user", "9"])["uid"][0], 9);
    }
}

/// As Kubernetes does it; with the pid namespace of another container too, as a debug container has it.
fn a_pod_shares_user_and_network_namespaces() {
    let mut pod = sandbox();
    let pid = pod.running().pid();
    for shared in [&["network", "ipc", "uts"][..], &["network", "ipc", "uts", "pid"], &["cgroup"]] {
        let mut c = sandbox();
        join_user(&mut c, pid);
        c.unset("/hostname");
        for kind in shared {
            let file = if *kind == "network" { "net" } else { kind };
            c.without_namespace(kind);
            c.set("/linux/namespaces/-", json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
        }
        let seen = c.report();
        for kind in shared {
            let file = if *kind == "network" { "net" } else { kind };
            let there = fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap().display().to_string();
            assert_eq!(seen["namespaces"][file], there, "{file}");
        }
        c.running();
        assert_eq!(c.kill("KILL").ok().stdout, "");
        c.wait_stopped();
        c.delete().ok();
    }
}

fn a_joined_namespace_with_other_mappings_is_refused() {
    let mut first = sandbox();
    let pid = first.running().pid();
    let mut c = sandbox();
    join_user(&mut c, pid);
    let error = c
        .set("/linux/gidMappings/0/size", 10)
        .unset("/process/user/gid")
        .set("/process/user/gid", 0)
        .without_mount("/dev/pts")
        .refused("/linux/gidMappings");
    assert!(error.contains("another mapping: 0 100000 65536"), "{error}");
}

fn the_runtimes_own_user_namespace_is_not_joined() {
    let mut c = Sandbox::new();
    c.set("/linux/namespaces/-", json!({"type": "user", "path": "/proc/self/ns/user"}));
    assert_eq!(c.report()["namespaces"]["user"], own("user"));
    assert_eq!(c.running().exec_report(&[])["namespaces"]["user"], own("user"));
}

fn a_new_user_namespace_without_mappings_is_refused() {
    let mut c = sandbox();
    c.unset("/linux/uidMappings").refused("/linux/uidMappings");
    c.unset("/linux/gidMappings").refused("/linux/uidMappings");
    c.set("/linux/uidMappings", json!([])).set("/linux/gidMappings", json!([])).refused("/linux/uidMappings");
}

fn mappings_without_a_user_namespace_are_refused() {
    sandbox().without_namespace("user").refused("/linux/uidMappings");
}

fn unmapped_ids_are_refused() {
    for (pointer, value) in [
        ("/process/user/uid", json!(65536)),
        ("/process/user/gid", json!(70000)),
        ("/process/user/additionalGids", json!([65536])),
        ("/linux/devices", json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "uid": 65536}])),
        ("/mounts/2/options/5", json!("gid=65536")),
        ("/linux/uidMappings/1", json!({"containerID": 5, "hostID": 1, "size": 1})),
        ("/linux/uidMappings/0/size", json!(0)),
    ] {
        sandbox().set(pointer, value).refused(pointer);
    }
}

fn a_file_system_of_a_foreign_namespace_is_explained() {
    for (kind, mount) in [("pid", 0), ("network", 5), ("ipc", 4)] {
        let mut c = sandbox();
        c.without_namespace(kind);
        let error = c.refused(&format!("/mounts/{mount}"));
        assert!(error.contains(&format!("needs a {kind} namespace of its own")), "{error}");
    }
}

fn the_container_cannot_reach_what_is_the_hosts() {
    let mut c = sandbox();
    for capability in ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_CHOWN"] {
        with_capability(&mut c, capability);
    }
    let secret = c.host_file("volume/secret", "x");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    c.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
    c.mount(json!({"destination": "/v", "type": "none", "source": secret.parent(), "options": ["bind"]}));
    c.set("/linux/resources", json!({"devices": [{"allow": true, "access": "rwm"}]}));
    assert_eq!(
        c.does("open r /v/secret ; open w /proc/sys/kernel/core_pattern ; open w /proc/1/oom_score_adj"),
        ["EACCES", "EACCES", "ok"]
    );
}

/// 340 ranges are the kernel's limit, and a page of text.
fn the_kernel_says_what_it_does_not_map() {
    let mut c = sandbox();
    let ranges: Vec<_> = (0..340).map(|n| (n, HOST_ROOT + n, 1)).collect();
    let few: Vec<_> = (0..200).map(|n| (n, HOST_ROOT + n, 1)).collect();
    c.set("/linux/uidMappings", mapping(&ranges)).refused("/linux/uidMappings");
    c.set("/linux/uidMappings", mapping(&few)).set("/linux/gidMappings", mapping(&few));
    assert_eq!(c.set("/process/user/uid", 199).report()["uid"][0], 199);
}

/// A user namespace is no way to write to what the host has mounted read-only.
fn a_flag_of_the_hosts_mount_cannot_be_taken_off() {
    let mut c = sandbox();
    with_capability(&mut c, "CAP_SYS_ADMIN");
    let volume = volume(&mut c, HOST_ROOT);
    let options = format!("uid={HOST_ROOT}");
    mount(Some("tmpfs"), &volume, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    mount(None::<&str>, &volume, None::<&str>, remount, None::<&str>).unwrap();
    c.acts("remount-rw /v ; create /v/x y").write_config();
    let output = c.keel(&["run", &c.id]);
    c.set("/mounts/7/options/1", "rw").write_config();
    let cleared = c.keel(&["run", &c.id]);
    umount2(&volume, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(output.ok().lines(), ["EPERM", "EROFS"]);
    let error = cleared.fails();
    assert!(error.contains("cannot take a flag off") && error.contains("[config.json /mounts/7]"), "{error}");
}

/// Nor is one that is joined together with a mount namespace.
fn a_flag_of_the_hosts_mount_stays_in_a_joined_mount_namespace() {
    let mut first = sandbox();
    let pid = first.running().pid();
    let mut c = sandbox();
    with_capability(&mut c, "CAP_SYS_ADMIN");
    join_user(&mut c, pid);
    c.without_namespace("mount");
    c.set("/linux/namespaces/-", json!({"type": "mount", "path": format!("/proc/{pid}/ns/mnt")}));
    let volume = volume(&mut c, HOST_ROOT);
    let options = format!("uid={HOST_ROOT}");
    mount(Some("tmpfs"), &volume, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    mount(None::<&str>, &volume, None::<&str>, remount, None::<&str>).unwrap();
    fs::write(c.rootfs().join("tmp/of-the-host"), "").unwrap();
    c.acts("remount-rw /v ; create /v/x y ; ls /tmp ; write /dev/null x").write_config();
    let output = c.keel(&["run", &c.id]);
    umount2(&volume, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(output.ok().lines(), ["EPERM", "EROFS", "of-the-host", "ok"]);
}

fn a_mount_namespace_of_another_user_namespace_is_refused() {
    let mut first = sandbox();
    let pid = first.running().pid();
    let path = json!({"type": "mount", "path": format!("/proc/{pid}/ns/mnt")});
    let mut c = sandbox();
    c.without_namespace("mount").set("/linux/namespaces/-", path.clone());
    let error = c.refused("/linux/namespaces/6/path");
    assert!(error.contains("a new user namespace has no rights in it"), "{error}");
    let mut other = sandbox();
    let pid = other.running().pid();
    let mut c = sandbox();
    join_user(&mut c, pid);
    c.without_namespace("mount").set("/linux/namespaces/-", path);
    let error = c.refused("/linux/namespaces/6/path");
    assert!(error.contains("belongs to another user namespace"), "{error}");
}

/// CVE-2023-25809, whose container could write to the cgroups of its host user.
fn without_a_cgroup_namespace_no_cgroup_can_be_changed() {
    let mut c = sandbox();
    with_capability(&mut c, "CAP_SYS_ADMIN");
    with_capability(&mut c, "CAP_DAC_OVERRIDE");
    c.without_namespace("cgroup").without_mount("/sys/fs/cgroup");
    c.mount(
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}),
    );
    let acts = "mkdir /sys/fs/cgroup/x ; write /sys/fs/cgroup/cgroup.procs 0 ; open r /sys/fs/cgroup/../cgroup.procs";
    assert_eq!(c.does(acts), ["EACCES", "EACCES", "ENOENT"]);
    c.running();
    // It is its own cgroup that it sees.
    assert_eq!(c.exec(&[], "cat /sys/fs/cgroup/cgroup.procs").ok().stdout.lines().next(), Some("1"));
}

fn a_bind_without_the_mounts_below_it_is_explained() {
    let mut c = sandbox();
    c.mount(json!({"destination": "/v", "type": "none", "source": "/", "options": ["bind"]}));
    assert!(c.refused("/mounts/7/source").contains("use rbind"));
}

/// Each kind of namespace new, joined from another container, or the runtime's own; as root, with a new user
/// namespace, with a joined one, and without.
fn new_joined_and_absent_namespaces_combine() {
    const KINDS: [(&str, &str); 5] =
        [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")];
    let mut pod = sandbox();
    let pid = pod.running().pid();
    let there = |file: &str| fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap().display().to_string();
    // n: new, j: joined, -: the runtime's own; in the order of KINDS.
    let table = ["nnnnn", "njjjn", "jjjjj", "njnjn", "jnnnn", "nnnnj", "-n-n-", "n----", "-----", "j-j-j"];
    for user in ["n", "j", "-"] {
        for row in table {
            let mut c = sandbox();
            match user {
                "j" => join_user(&mut c, pid),
                "-" => {
                    c.without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
                }
                _ => {}
            }
            c.unset("/hostname").set("/mounts", json!([])).set("/process/noNewPrivileges", true);
            c.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
            // A proc that anybody may show.
            c.mount(json!({"destination": "/proc", "type": "none", "source": "/proc", "options": ["rbind"]}));
            for ((kind, file), from) in KINDS.into_iter().zip(row.chars()) {
                if from != 'n' {
                    c.without_namespace(kind);
                }
                if from == 'j' {
                    c.set(
                        "/linux/namespaces/-",
                        json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}),
                    );
                }
            }
            c.acts("pause").create().ok();
            c.start().ok();
            let init = c.pid();
            let found =
                |file: &str| fs::read_link(format!("/proc/{init}/ns/{file}")).unwrap().display().to_string();
            for ((_, file), from) in
                KINDS.into_iter().zip(row.chars()).chain([(("", "user"), user.chars().next().unwrap())])
            {
                let found = found(file);
                match from {
                    'j' => assert_eq!(found, there(file), "{user} {row} {file}"),
                    '-' => assert_eq!(found, own(file), "{user} {row} {file}"),
                    _ => assert!(found != own(file) && found != there(file), "{user} {row} {file}"),
                }
            }
            assert_eq!(c.exec(&[], "echo in").ok().stdout, "in\n", "{user} {row}");
            c.delete_force().ok();
        }
    }
}

/// See the test of this name in mounts.rs, and CVE-2021-30465: with the rights of a user namespace.
fn a_swapped_volume_never_reaches_the_host() {
    let mut c = sandbox();
    let volume = volume(&mut c, HOST_ROOT);
    let decoy = c.host_dir("decoy");
    chown(&decoy, Some(HOST_ROOT), Some(HOST_ROOT)).unwrap();
    fs::create_dir(volume.join("a")).unwrap();
    symlink(&decoy, volume.join("b")).unwrap();
    c.mount(json!({"destination": "/v/a", "type": "tmpfs", "source": "tmpfs"}));
    c.set("/linux/devices", json!([{"path": "/v/a/x/null", "type": "c", "major": 1, "minor": 3}]));
    c.acts("exit 0").write_config();
    let mut ran = 0;
    while_swapped(&volume.join("a"), &volume.join("b"), || {
        for _ in 0..swaps(100) {
            // Whether it works depends on the moment.
            ran += usize::from(c.keel(&["run", &c.id]).code == 0);
        }
    });
    assert!(ran > 0);
    assert_eq!(fs::read_dir(&decoy).unwrap().count(), 0);
    assert_eq!(c.left(), Vec::<String>::new());
}
