//! keel called by a user without privileges. What that has to do with cgroups is in rootless_cgroup.rs, containers in
//! containers are in nested.rs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::sandbox::{SUBIDS, Sandbox, USER, USER_NAME, copy, keel, program};
use crate::swap::{swaps, while_swapped};
use crate::{needs, terminal, tests};

tests![
    a_user_runs_a_container_with_its_own_id,
    subordinate_ids_are_mapped_by_newuidmap,
    what_the_container_makes_belongs_to_the_user_and_its_subordinate_ids,
    what_the_host_makes_is_seen_with_the_ids_of_the_container,
    every_command_works_in_the_users_runtime_directory,
    without_a_runtime_directory_the_way_out_is_told,
    the_config_of_spec_runs,
    without_a_user_namespace_nothing_runs,
    groups_that_cannot_be_set_are_refused,
    ids_that_are_not_the_users_are_refused,
    without_newuidmap_the_package_is_named,
    a_newuidmap_without_privileges_is_explained,
    no_new_privs_on_the_caller_is_explained,
    exec_joins_as_root_and_as_a_user,
    exec_waits_for_the_start,
    exec_has_a_score_and_a_terminal,
    the_hosts_devices_are_bound,
    a_device_that_the_host_has_otherwise_is_refused,
    sources_are_reached_with_the_rights_of_the_user,
    a_flag_of_the_hosts_mount_cannot_be_taken_off,
    an_id_mapped_mount_is_refused,
    file_systems_of_foreign_namespaces_are_explained,
    masked_and_read_only_paths_are_covered,
    an_overlay_as_root_hides_what_was_removed,
    a_tmpfs_as_root_belongs_to_the_container,
    names_sysctls_and_the_network_are_the_containers,
    hooks_enter_the_network_namespace,
    scores_and_limits_go_as_far_as_a_user_may,
    a_terminal_goes_to_the_console_socket,
    standard_streams_stay_usable,
    a_seccomp_agent_of_the_user_is_told,
    clocks_have_offsets,
    a_user_namespace_is_joined,
    a_namespace_of_somebody_else_is_refused,
    new_joined_and_absent_namespaces_combine,
    the_runtime_cannot_be_overwritten,
    a_swapped_volume_never_reaches_the_host,
    checkpoints_take_root,
    a_failed_create_leaves_nothing,
];

pub fn with_own_id() -> Sandbox {
    let mut c = Sandbox::new();
    c.rootless();
    c
}

fn with_subids() -> Sandbox {
    let mut c = Sandbox::new();
    c.rootless_with_subids();
    c
}

pub fn newuidmap() -> Result<(), String> {
    program("newuidmap").and_then(|()| program("newgidmap"))
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let stat = fs::metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

/// A directory of the host in the container, at /v.
fn volume(c: &mut Sandbox, uid: u32) -> PathBuf {
    let volume = c.host_dir("volume");
    c.mount(json!({"destination": "/v", "type": "none", "source": volume, "options": ["bind"]}));
    c.give_to_user(&c.dir.join("host"));
    chown(&volume, Some(uid), Some(uid)).unwrap();
    volume
}

fn with_capability(c: &mut Sandbox, capability: &str) {
    for set in ["bounding", "effective", "permitted"] {
        c.set(&format!("/process/capabilities/{set}/-"), capability);
    }
}

fn namespace(pid: impl std::fmt::Display, file: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap().display().to_string()
}

fn words(lines: &[String]) -> Vec<u32> {
    lines.iter().flat_map(|line| line.split_whitespace()).map(|word| word.parse().unwrap()).collect()
}

fn a_user_runs_a_container_with_its_own_id() {
    let mut c = with_own_id();
    let seen = c.report();
    assert_eq!((&seen["uid"], &seen["gid"]), (&json!([0, 0, 0, 0]), &json!([0, 0, 0, 0])));
    assert_eq!((&seen["pid"], &seen["uname"]["hostname"]), (&json!(1), &json!("sandbox")));
    assert_eq!(c.does("cat /proc/self/setgroups"), ["deny"]);
    assert_eq!(words(&c.does("cat /proc/self/uid_map")), [0, USER, 1]);
    assert_eq!(words(&c.does("cat /proc/self/gid_map")), [0, USER, 1]);
    // Whoever it is inside.
    c.set("/linux/uidMappings/0/containerID", 1000).set("/process/user/uid", 1000);
    assert_eq!(c.report()["uid"], json!([1000, 1000, 1000, 1000]));
}

fn subordinate_ids_are_mapped_by_newuidmap() {
    needs!(newuidmap());
    let mut c = with_subids();
    c.set("/process/user", json!({"uid": 7, "gid": 8, "additionalGids": [9, 10]}));
    let seen = c.report();
    assert_eq!((&seen["uid"][0], &seen["gid"][0], &seen["groups"]), (&json!(7), &json!(8), &json!([9, 10])));
    assert_eq!(c.does("cat /proc/self/setgroups"), ["allow"]);
    assert_eq!(words(&c.does("cat /proc/self/uid_map")), [0, USER, 1, 1, SUBIDS.0, SUBIDS.1]);
    // One kind alone; and the user not at all.
    c.set("/process/user", json!({"uid": 7, "gid": 0})).set("/linux/gidMappings", one(0, USER));
    assert_eq!(c.does("cat /proc/self/setgroups"), ["deny"]);
    c.set("/linux/uidMappings", one(0, SUBIDS.0)).set("/linux/gidMappings", one(0, SUBIDS.0));
    // Its way to the bundle is closed to others, and so is the program in it.
    c.set("/process/user", json!({"uid": 0, "gid": 0}));
    assert_eq!(words(&c.does("cat /proc/self/uid_map")), [0, SUBIDS.0, 1]);
}

fn one(inside: u32, outside: u32) -> Value {
    json!([{"containerID": inside, "hostID": outside, "size": 1}])
}

fn what_the_container_makes_belongs_to_the_user_and_its_subordinate_ids() {
    needs!(newuidmap());
    for (uid, outside) in [(0, USER), (7, SUBIDS.0 + 6)] {
        let mut c = with_subids();
        let volume = volume(&mut c, outside);
        c.set("/process/user", json!({"uid": uid, "gid": uid}));
        assert_eq!(c.does("create /v/file x"), ["ok"]);
        assert_eq!(owner(volume.join("file")), (outside, outside));
        let stat = c.stat("/v/file");
        assert_eq!((&stat["uid"], &stat["gid"]), (&json!(uid), &json!(uid)));
    }
}

fn what_the_host_makes_is_seen_with_the_ids_of_the_container() {
    needs!(newuidmap());
    let mut c = with_subids();
    let volume = volume(&mut c, USER);
    for (name, uid, seen) in [("root", 0, 65534), ("user", USER, 0), ("sub", SUBIDS.0 + 99, 100)] {
        fs::write(volume.join(name), "").unwrap();
        chown(volume.join(name), Some(uid), Some(uid)).unwrap();
        assert_eq!(c.stat(&format!("/v/{name}"))["uid"], seen, "{name}");
    }
}

/// keel as the user, without --root.
fn call(c: &Sandbox, runtime_dir: Option<&Path>, args: &[&str]) -> Command {
    let mut command = c.command(args);
    let inherited: Vec<_> = command.get_args().skip(2).map(|arg| arg.to_owned()).collect();
    let mut bare = Command::new(&c.runtime);
    bare.args(inherited)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("SANDBOX", &c.id)
        .current_dir(c.bundle());
    std::os::unix::process::CommandExt::uid(&mut bare, USER);
    std::os::unix::process::CommandExt::gid(&mut bare, USER);
    if let Some(dir) = runtime_dir {
        bare.env("XDG_RUNTIME_DIR", dir);
    }
    command = bare;
    command
}

fn every_command_works_in_the_users_runtime_directory() {
    needs!(keel());
    let mut c = with_own_id();
    let dir = c.dir.join("run");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(USER), Some(USER)).unwrap();
    c.acts("await TERM").write_config();
    let call = |words: &[&str]| c.execute(call(&c, Some(&dir), words)).ok().stdout;
    call(&["create", &c.id]);
    let stat = fs::metadata(dir.join("keel")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid()), (0o1700, USER));
    let state: Value = serde_json::from_str(&call(&["state", &c.id])).unwrap();
    assert_eq!((&state["status"], &state["owner"]), (&json!("created"), &json!(USER_NAME)));
    assert!(call(&["list"]).contains(&c.id));
    call(&["start", &c.id]);
    c.wait_printed("waiting");
    assert_eq!(call(&["exec", &c.id, "/payload", "echo", "in"]), "in\n");
    call(&["kill", &c.id, "TERM"]);
    c.wait_printed("TERM");
    while call(&["state", &c.id]).contains("\"running\"") {}
    call(&["delete", &c.id]);
    assert_eq!(call(&["list", "-q"]), "");
}

fn without_a_runtime_directory_the_way_out_is_told() {
    needs!(keel());
    let c = with_own_id();
    let error = c.execute(call(&c, None, &["list"])).fails();
    assert!(error.contains("XDG_RUNTIME_DIR is not set") && error.contains("--root"), "{error}");
    c.execute(call(&c, None, &["features"])).ok();
}

fn the_config_of_spec_runs() {
    let mut c = with_own_id();
    c.keel(&["spec", "--rootless"]).ok();
    c.config = serde_json::from_slice(&fs::read(c.bundle().join("config.json")).unwrap()).unwrap();
    c.set("/process/terminal", false);
    let seen = c.args(&["/payload", "report"]).run().ok().json();
    assert_eq!((&seen["pid"], &seen["uid"][0]), (&json!(1), &json!(0)));
    assert_eq!(seen["namespaces"]["net"], namespace("self", "net"));
    c.keel(&["check"]).ok();
}

fn without_a_user_namespace_nothing_runs() {
    let mut c = with_own_id();
    c.unset("/linux/uidMappings").unset("/linux/gidMappings");
    let error = c.without_namespace("user").refused("/linux/namespaces");
    assert!(keel().is_err() || error.contains("spec --rootless"), "{error}");
    c.set("/linux/namespaces/-", json!({"type": "user", "path": "/proc/self/ns/user"}));
    c.refused("/linux/namespaces/6/path");
}

fn groups_that_cannot_be_set_are_refused() {
    needs!(keel());
    let mut c = with_own_id();
    c.set("/process/user/additionalGids", json!([0])).refused("/process/user/additionalGids");
    c.unset("/process/user/additionalGids").running();
    let error = c.exec(&["--additional-gids", "0"], "report").exec_fails();
    assert!(error.contains("[process /user/additionalGids]") && error.contains("newgidmap"), "{error}");
    assert_eq!(c.exec(&[], "echo in").ok().stdout, "in\n");
}

fn ids_that_are_not_the_users_are_refused() {
    needs!(keel(), newuidmap());
    let allowed = format!("allows {USER_NAME} only {}-{}", SUBIDS.0, SUBIDS.0 + SUBIDS.1 - 1);
    for (field, file, way_out) in [
        ("/linux/uidMappings", "/etc/subuid", "usermod --add-subuids 1-10 keel-tester"),
        ("/linux/gidMappings", "/etc/subgid", "usermod --add-subgids 1-10 keel-tester"),
    ] {
        let mut c = with_subids();
        c.set(&format!("{field}/1"), json!({"containerID": 1, "hostID": 1, "size": 10}));
        let error = c.refused(field);
        for part in [file, &allowed, way_out] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    // A number is as good as a name, and no line at all is said.
    let mut c = with_subids();
    c.user = Some(USER + 1);
    Sandbox::give(&c.dir, USER + 1);
    c.write_config();
    let error = c.keel(&["run", &c.id]).fails();
    assert!(error.contains("newuidmap") && error.contains("[config.json /linux/uidMappings]"), "{error}");
}

fn without_newuidmap_the_package_is_named() {
    needs!(keel());
    let c = with_subids();
    c.write_config();
    let mut command = c.command(&["run", &c.id]);
    let error = c.execute({
        command.env("PATH", "/nonexistent");
        command
    });
    let error = error.fails();
    for part in ["newuidmap", "not on PATH", "package uidmap", "[config.json /linux/uidMappings]"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_newuidmap_without_privileges_is_explained() {
    needs!(keel(), newuidmap());
    let c = with_subids();
    let dir = c.host_dir("bin");
    for tool in ["newuidmap", "newgidmap"] {
        copy(&Path::new("/usr/bin").join(tool), &dir.join(tool));
        fs::set_permissions(dir.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(c.dir.join("host"), fs::Permissions::from_mode(0o755)).unwrap();
    c.write_config();
    let mut command = c.command(&["run", &c.id]);
    command.env("PATH", &dir);
    let error = c.execute(command).fails();
    assert!(error.contains("is neither setuid root nor has file capabilities"), "{error}");
}

fn no_new_privs_on_the_caller_is_explained() {
    needs!(keel(), newuidmap());
    let mut c = with_subids();
    c.write_config();
    c.user = None;
    let (uid, gid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
    let wrapper = ["setpriv", &uid, &gid, "--clear-groups", "--no-new-privs"];
    let error = c.behind(&wrapper, &["run", &c.id]).fails();
    assert!(error.contains("no_new_privs is set"), "{error}");
}

fn exec_joins_as_root_and_as_a_user() {
    needs!(newuidmap());
    let mut c = with_subids();
    let volume = volume(&mut c, USER);
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    let init = c.running().pid();
    for (user, uid, outside) in [("0", 0, USER), ("7:7", 7, SUBIDS.0 + 6)] {
        let seen = c.exec_report(&["--user", user]);
        assert_eq!((&seen["uid"][0], &seen["gid"][0]), (&json!(uid), &json!(uid)));
        for file in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            assert_eq!(seen["namespaces"][file], namespace(init, file), "{file}");
        }
        assert_eq!(c.exec(&["--user", user], &format!("create /v/{uid} x")).ok().stdout, "ok\n");
        assert_eq!(owner(volume.join(uid.to_string())), (outside, outside));
    }
    assert!(c.exec(&["--user", "70000"], "report").exec_fails().contains("not mapped"));
}

fn exec_waits_for_the_start() {
    needs!(keel());
    let mut c = with_own_id();
    c.acts("pause").created();
    assert!(c.exec(&[], "report").exec_fails().contains("start it first"));
    c.start().ok();
    c.exec(&[], "report").ok();
}

fn exec_has_a_score_and_a_terminal() {
    let mut c = with_own_id();
    c.running();
    let mut process = c.process("cat /proc/self/oom_score_adj");
    process["oomScoreAdj"] = json!(321);
    assert_eq!(c.exec_process(&process).ok().stdout, "321\n");
    let path = c.dir.join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    chown(&path, Some(USER), None).unwrap();
    let socket = path.to_str().unwrap();
    let exec = c.spawn(c.exec_command(&["-t", "-d", "--console-socket", socket], "echo in"));
    assert_eq!(terminal::receive(&listener).len(), 1);
    exec.wait().ok();
}

fn the_hosts_devices_are_bound() {
    let mut c = with_own_id();
    with_capability(&mut c, "CAP_MKNOD");
    c.set(
        "/linux/devices",
        json!([{"path": "/dev/full", "type": "c", "major": 1, "minor": 7},
        {"path": "/dev/fifo", "type": "p", "fileMode": 0o600}]),
    );
    let acts = "write /dev/null x ; open r /dev/zero ; write /dev/full x ; mknod c /dev/x 1 3 ; ls /dev";
    let listed = "fd fifo full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    let mut done = c.does(acts);
    // Not every kernel has a /proc/kcore.
    let names = done.pop().unwrap().replace("core ", "");
    assert_eq!((done, &*names), (["ok", "ok", "ENOSPC", "EPERM"].map(String::from).to_vec(), listed));
    let stat = c.stat("/dev/null");
    assert_eq!((&stat["type"], &stat["rdev"], &stat["uid"]), (&json!("c"), &json!("1:3"), &json!(65534)));
}

fn a_device_that_the_host_has_otherwise_is_refused() {
    needs!(keel());
    for (path, minor, reason) in
        [("/dev/null", 5, "c 1:3 is already there"), ("/dev/keel-none", 3, "No such file")]
    {
        let mut c = with_own_id();
        c.set("/linux/devices", json!([{"path": path, "type": "c", "major": 1, "minor": minor}]));
        let error = c.refused("/linux/devices/0");
        assert!(error.contains(reason) && error.contains("the host's device"), "{error}");
    }
}

fn sources_are_reached_with_the_rights_of_the_user() {
    needs!(newuidmap());
    let mut c = with_subids();
    // Closed to all but the user, who is nobody in there.
    let all = json!([{"containerID": 0, "hostID": SUBIDS.0, "size": 1000}]);
    c.set("/linux/uidMappings", all.clone()).set("/linux/gidMappings", all);
    let file = c.host_file("closed/open", "x");
    c.write("/v", "");
    with_capability(&mut c, "CAP_DAC_OVERRIDE");
    c.mount(json!({"destination": "/v", "type": "none", "source": file, "options": ["bind", "ro"]}));
    c.give_to_user(&c.dir.join("host"));
    chown(&file, Some(SUBIDS.0), Some(SUBIDS.0)).unwrap();
    fs::set_permissions(c.dir.join("host/closed"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(c.does("cat /v ; open w /v"), ["xEROFS"]);
    // A group of the user's own opens it as well as the user.
    chown(c.dir.join("host/closed"), Some(0), Some(USER)).unwrap();
    fs::set_permissions(c.dir.join("host/closed"), fs::Permissions::from_mode(0o070)).unwrap();
    assert_eq!(c.does("cat /v ; open w /v"), ["xEROFS"]);
    fs::set_permissions(c.dir.join("host/closed"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(c.refused("/mounts/7/source").contains("Permission denied"));
}

/// A user namespace is no way to write to what the host has mounted read-only.
fn a_flag_of_the_hosts_mount_cannot_be_taken_off() {
    let mut c = with_own_id();
    with_capability(&mut c, "CAP_SYS_ADMIN");
    let volume = volume(&mut c, USER);
    let options = format!("uid={USER}");
    mount(Some("tmpfs"), &volume, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, &volume, None::<&str>, remount | flags, None::<&str>).unwrap();
    c.acts("remount-rw /v ; create /v/x y").write_config();
    let output = c.keel(&["run", &c.id]);
    let cleared: Vec<_> = ["rw", "suid", "dev", "exec"]
        .map(|option| {
            c.set("/mounts/7/options/1", option).write_config();
            (option, c.keel(&["run", &c.id]))
        })
        .into();
    umount2(&volume, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(output.ok().lines(), ["EPERM", "EROFS"]);
    for (option, output) in cleared {
        let error = output.fails();
        assert!(error.contains("cannot take a flag off") && error.contains("/mounts/7"), "{option}: {error}");
    }
}

fn an_id_mapped_mount_is_refused() {
    needs!(keel());
    let mut c = with_own_id();
    volume(&mut c, USER);
    c.set("/mounts/7/options/1", "idmap").refused("/mounts/7/options/1");
    c.set("/mounts/7/options", json!(["bind"])).set("/mounts/7/uidMappings", one(0, 5));
    c.set("/mounts/7/gidMappings", one(0, 5)).refused("/mounts/7/uidMappings");
}

fn file_systems_of_foreign_namespaces_are_explained() {
    needs!(keel());
    for (kind, mount) in [("pid", 0), ("network", 5), ("ipc", 4)] {
        let mut c = with_own_id();
        let error = c.without_namespace(kind).refused(&format!("/mounts/{mount}"));
        assert!(error.contains(&format!("needs a {kind} namespace of its own")), "{error}");
    }
}

fn masked_and_read_only_paths_are_covered() {
    let mut c = with_own_id();
    c.write("/secret", "x");
    c.write("/closed/file", "x");
    with_capability(&mut c, "CAP_NET_ADMIN");
    c.set("/linux/maskedPaths", json!(["/secret", "/closed", "/proc/keys"]));
    c.set("/linux/readonlyPaths", json!(["/proc/sys", "/tmp"])).set("/root/readonly", false);
    let acts =
        "cat /secret ; ls /closed ; cat /proc/keys ; create /tmp/x y ; open w /proc/sys/net/ipv4/ip_forward";
    assert_eq!(c.does(acts), ["", "EROFS", "EROFS"]);
}

fn an_overlay_as_root_hides_what_was_removed() {
    needs!(keel(), newuidmap());
    for subids in [false, true] {
        let mut c = if subids { with_subids() } else { with_own_id() };
        c.busybox();
        c.write("/dir/file", "lower");
        c.write("/gone", "lower");
        for name in ["upper", "work"] {
            fs::create_dir(c.bundle().join(name)).unwrap();
        }
        let lower = format!("lowerdir={}", c.rootfs().display());
        let mounts = c.config["mounts"].as_array_mut().unwrap();
        mounts.insert(
            0,
            json!({"destination": "/", "type": "overlay", "source": "overlay",
            "options": [lower, "upperdir=upper", "workdir=work"]}),
        );
        let script = "rm -r /dir /gone && mkdir /dir && echo new >/dir/new && rm -r /dir && mkdir /dir && ls /dir / \
                      && rm -r /dir && echo x >/kept && echo done";
        c.symlink("busybox", "bin/rm");
        c.symlink("busybox", "bin/mkdir");
        c.symlink("busybox", "bin/ls");
        c.args(&["/bin/sh", "-c", script]);
        let output = c.run().ok();
        assert!(output.stdout.ends_with("done\n") && !output.stdout.contains("gone"), "{output:#?}");
        assert!(c.rootfs().join("dir/file").exists() && c.rootfs().join("gone").exists());
        assert_eq!(owner(c.bundle().join("upper/kept")), (USER, USER));
        // Its next run finds the same.
        assert!(!c.does("ls /")[0].contains("gone"));
    }
}

fn a_tmpfs_as_root_belongs_to_the_container() {
    needs!(keel(), newuidmap());
    let mut c = with_subids();
    let mounts = c.config["mounts"].as_array_mut().unwrap();
    mounts.insert(0, json!({"destination": "/", "type": "tmpfs", "source": "tmpfs"}));
    let payload = c.rootfs().join("payload");
    c.mount(json!({"destination": "/payload", "type": "none", "source": payload, "options": ["bind"]}));
    assert_eq!(c.does("create /new x"), ["ok"]);
    assert_eq!(c.stat("/")["uid"], 0);
}

fn names_sysctls_and_the_network_are_the_containers() {
    let mut c = with_own_id();
    c.set("/hostname", "inner").set("/domainname", "example.org");
    c.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1", "net.ipv4.ping_group_range": "0 0"}));
    let seen = c.report();
    assert_eq!(seen["uname"]["hostname"], "inner");
    assert_eq!(
        c.does("cat /proc/sys/net/ipv4/ip_forward ; cat /proc/sys/kernel/domainname"),
        ["1", "example.org"]
    );
    assert_ne!(seen["namespaces"]["net"], namespace("self", "net"));
    // The host's, with the sysfs that spec --rootless gives.
    c.without_namespace("network").unset("/linux/sysctl");
    c.set(
        "/mounts/5",
        json!({"destination": "/sys", "type": "none", "source": "/sys",
        "options": ["rbind", "rro", "nosuid", "noexec", "nodev"]}),
    );
    assert_eq!(c.report()["namespaces"]["net"], namespace("self", "net"));
    c.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})).refused("/linux/sysctl");
}

/// What gives a container its network does so from the host: pasta or slirp4netns, say.
fn hooks_enter_the_network_namespace() {
    needs!(program("nsenter"), newuidmap());
    for subids in [false, true] {
        let mut c = if subids { with_subids() } else { with_own_id() };
        let enter = "P=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
                     nsenter --preserve-credentials -t $P -U -n sh -c 'readlink /proc/self/ns/net; id -u' >$D/io/hook";
        let hook = c.script("enter", enter);
        let inner = c.script("inner", "readlink /proc/self/ns/net >$D/io/inner");
        c.give_to_user(&c.dir.join("host"));
        fs::set_permissions(c.dir.join("io"), fs::Permissions::from_mode(0o777)).unwrap();
        c.set(
            "/hooks",
            json!({
                "createRuntime": [{"path": hook, "env": ["PATH=/usr/bin:/bin"]}],
                "createContainer": [{"path": inner, "env": ["PATH=/usr/bin:/bin"]}],
            }),
        );
        let net = c.report()["namespaces"]["net"].as_str().unwrap().to_owned();
        assert_eq!(fs::read_to_string(c.dir.join("io/hook")).unwrap(), format!("{net}\n0\n"));
        assert_eq!(fs::read_to_string(c.dir.join("io/inner")).unwrap(), format!("{net}\n"));
    }
}

fn scores_and_limits_go_as_far_as_a_user_may() {
    needs!(keel());
    let mut c = with_own_id();
    c.set("/process/oomScoreAdj", 123);
    assert_eq!(c.does("cat /proc/self/oom_score_adj"), ["123"]);
    let error = c.set("/process/oomScoreAdj", -500).refused("/process/oomScoreAdj");
    assert!(error.contains("takes CAP_SYS_RESOURCE"), "{error}");
    c.unset("/process/oomScoreAdj");
    c.set("/process/rlimits", json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]));
    assert_eq!(c.report()["rlimits"]["RLIMIT_CORE"], json!([0, 0]));
    c.set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 99_999_999}]));
    c.refused("/process/rlimits/0");
    c.set("/process/rlimits", json!([]))
        .set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 5}));
    assert!(c.does("cat /proc/self/stat")[0].contains(" 25 5 "));
    c.set("/process/scheduler", json!({"policy": "SCHED_FIFO", "priority": 5})).refused("/process/scheduler");
}

fn a_terminal_goes_to_the_console_socket() {
    needs!(newuidmap());
    let mut c = with_subids();
    c.set("/process/terminal", true).set("/process/user", json!({"uid": 7, "gid": 7}));
    let path = c.dir.join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    chown(&path, Some(USER), None).unwrap();
    c.acts("stat /dev/pts/0").write_config();
    let create = c.spawn(c.command(&["create", "--console-socket", path.to_str().unwrap(), &c.id]));
    let mut fds = terminal::receive(&listener);
    create.wait().ok();
    c.start().ok();
    let mut text = String::new();
    let mut master = fs::File::from(fds.remove(0));
    // EIO at the end, when nobody has the other side any more.
    let _ = std::io::Read::read_to_string(&mut master, &mut text);
    assert_eq!(serde_json::from_str::<Value>(text.trim()).unwrap()["uid"], 7);
}

fn standard_streams_stay_usable() {
    needs!(newuidmap());
    // A file that belongs to root, whose owner no user can change.
    let mut c = with_subids();
    c.set("/process/user", json!({"uid": 7, "gid": 7}));
    assert_eq!(c.does("echo out"), ["out"]);
    // One of the user, which becomes the container's user's.
    let out = c.dir.join("io/mine");
    let file = fs::File::create(&out).unwrap();
    chown(&out, Some(USER), Some(USER)).unwrap();
    c.acts("echo out").write_config();
    c.spawn_to(c.command(&["run", &c.id]), file.into()).wait();
    assert_eq!(fs::read_to_string(&out).unwrap(), "out\n");
    assert_eq!(owner(&out).0, SUBIDS.0 + 6);
}

fn a_seccomp_agent_of_the_user_is_told() {
    needs!(keel());
    for no_new_privileges in [false, true] {
        let mut c = with_own_id();
        let path = c.dir.join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        chown(&path, Some(USER), None).unwrap();
        c.set("/process/noNewPrivileges", no_new_privileges);
        c.set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": ["getpriority"], "action": "SCMP_ACT_NOTIFY"}]}),
        );
        let told = thread::spawn(move || terminal::receive(&listener).len());
        assert_eq!(c.does("echo in"), ["in"]);
        assert_eq!(told.join().unwrap(), 1);
        c.set("/linux/seccomp/syscalls/0/names", json!(["sendmsg"])).refused("/linux/seccomp");
    }
}

fn clocks_have_offsets() {
    let mut c = with_own_id();
    c.set("/linux/namespaces/-", json!({"type": "time"}));
    c.set("/linux/timeOffsets", json!({"boottime": {"secs": 77}}));
    let seen = c.report();
    assert!(seen["timeOffsets"].as_str().unwrap().contains("77"), "{seen}");
    assert_ne!(seen["namespaces"]["time"], namespace("self", "time"));
}

/// Puts the namespaces of another container in place of new ones.
fn join(c: &mut Sandbox, pid: i32, kinds: &[(&str, &str)]) {
    for (kind, file) in kinds {
        c.without_namespace(kind);
        c.set("/linux/namespaces/-", json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
    }
}

fn a_user_namespace_is_joined() {
    needs!(newuidmap());
    let mut pod = with_subids();
    let pid = pod.running().pid();
    for mappings in [true, false] {
        let mut c = with_subids();
        join(&mut c, pid, &[("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")]);
        c.unset("/hostname");
        if !mappings {
            c.unset("/linux/uidMappings").unset("/linux/gidMappings");
        }
        c.set("/linux/namespaces/-", json!({"type": "time"}));
        c.set("/linux/timeOffsets", json!({"monotonic": {"secs": 5}})).set("/process/oomScoreAdj", 77);
        let volume = volume(&mut c, USER);
        let seen = c.report();
        for file in ["user", "net", "ipc", "uts"] {
            assert_eq!(seen["namespaces"][file], namespace(pid, file), "{file}");
        }
        assert_eq!((&seen["pid"], &seen["uid"][0]), (&json!(1), &json!(0)));
        assert_eq!(
            c.does("create /v/x y ; write /dev/null x ; cat /proc/self/oom_score_adj"),
            ["ok", "ok", "77"]
        );
        assert_eq!(owner(volume.join("x")), (USER, USER));
        c.running();
        assert_eq!(c.exec_report(&["--user", "9"])["uid"][0], 9);
    }
}

fn a_namespace_of_somebody_else_is_refused() {
    needs!(keel());
    let mut pod = with_own_id();
    let pid = pod.running().pid();
    let mut c = with_own_id();
    join(&mut c, pid, &[("network", "net")]);
    let error = c.refused("/linux/namespaces/6/path");
    assert!(error.contains("only with the user namespace that it belongs to"), "{error}");
    let mut c = with_own_id();
    join(&mut c, 1, &[("user", "user")]);
    assert!(c.refused("/linux/namespaces/6/path").contains("Permission denied"));
    let mut c = with_own_id();
    join(&mut c, pid, &[("user", "user"), ("mount", "mnt")]);
    c.refused("/linux/namespaces/6/path");
}

/// Each kind of namespace new, joined from another container, or the host's.
fn new_joined_and_absent_namespaces_combine() {
    const KINDS: [(&str, &str); 6] = [
        ("pid", "pid"),
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("cgroup", "cgroup"),
        ("time", "time"),
    ];
    let mut pod = with_own_id();
    pod.set("/linux/namespaces/-", json!({"type": "time"}));
    let pid = pod.running().pid();
    // n: new, j: joined, -: the host's; in the order of KINDS.
    let plain = [
        "nnnnnn", "-nnnnn", "n-nnnn", "nn-nnn", "nnn-nn", "nnnn-n", "nnnnn-", "------", "n-----", "-n----",
        "--n---", "---n--", "----n-", "-----n", "nn----", "--nn--",
    ];
    let joined =
        ["jjjjjj", "jnnnnn", "njnnnn", "nnjnnn", "nnnjnn", "nnnnjn", "nnnnnj", "njjjn-", "j-j-j-", "-j-j-j"];
    let rows = plain.iter().map(|row| ('n', *row));
    for (user, row) in rows.chain(plain.iter().chain(&joined).map(|row| ('j', *row))) {
        let mut c = with_own_id();
        c.set("/linux/namespaces/-", json!({"type": "time"}));
        if user == 'j' {
            join(&mut c, pid, &[("user", "user")]);
        }
        c.unset("/hostname").set("/mounts", json!([]));
        c.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
        // A proc that anybody may show.
        c.mount(json!({"destination": "/proc", "type": "none", "source": "/proc", "options": ["rbind"]}));
        for (kind, from) in KINDS.into_iter().zip(row.chars()) {
            match from {
                'j' => join(&mut c, pid, &[kind]),
                '-' => drop(c.without_namespace(kind.0)),
                _ => {}
            }
        }
        c.acts("pause").create().ok();
        c.start().ok();
        let init = c.pid();
        let all = KINDS.into_iter().zip(row.chars()).chain([(("user", "user"), user)]);
        for ((_, file), from) in all {
            let found = namespace(init, file);
            match from {
                'j' => assert_eq!(found, namespace(pid, file), "{user} {row} {file}"),
                '-' => assert_eq!(found, namespace("self", file), "{user} {row} {file}"),
                _ => assert!(
                    found != namespace("self", file) && found != namespace(pid, file),
                    "{user} {row} {file}"
                ),
            }
        }
        assert_eq!(c.exec(&[], "echo in").ok().stdout, "in\n", "{user} {row}");
        c.kill("KILL").ok();
        c.wait_stopped();
        c.execute(c.command(&["delete", &c.id]));
        assert_eq!(c.left(), Vec::<String>::new(), "{user} {row}");
    }
}

/// CVE-2019-5736, with a runtime that the user could write to, and one that is root's alone.
fn the_runtime_cannot_be_overwritten() {
    needs!(keel());
    for (uid, mode) in [(USER, 0o755), (0, 0o755), (0, 0o777)] {
        let mut c = with_own_id();
        for capability in ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE"] {
            with_capability(&mut c, capability);
        }
        let runtime = c.dir.join("keel");
        copy(&c.runtime, &runtime);
        chown(&runtime, Some(uid), Some(uid)).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(mode)).unwrap();
        c.runtime = runtime;
        let before = fs::read(&c.runtime).unwrap();
        let entry = c.write("/entry", "#!/proc/self/exe\n");
        fs::set_permissions(entry, fs::Permissions::from_mode(0o755)).unwrap();
        c.acts("hunt /tmp/end").created();
        // Whoever catches the process catches a copy, unless the file is one that no user can write to.
        let exe = fs::read_link(format!("/proc/{}/exe", c.pid())).unwrap();
        assert_eq!(exe == c.runtime, (uid, mode) == (0, 0o755), "{}", exe.display());
        c.start().ok();
        c.wait_printed("hunting");
        for program in ["/entry", "/proc/self/exe", "/payload"] {
            c.keel(&["exec", &c.id, program, "list"]);
        }
        fs::write(c.rootfs().join("tmp/end"), "").unwrap();
        c.wait_stopped();
        assert!(c.printed().contains(" wrote 0\n"), "{}", c.printed());
        assert!(fs::read(&c.runtime).unwrap() == before, "the runtime was overwritten");
    }
}

/// See the test of this name in mounts.rs, and CVE-2021-30465: what the user may not reach, and what it may.
fn a_swapped_volume_never_reaches_the_host() {
    let mut c = with_own_id();
    let volume = volume(&mut c, USER);
    let decoy = c.host_dir("decoy");
    chown(&decoy, Some(USER), Some(USER)).unwrap();
    fs::create_dir(volume.join("a")).unwrap();
    symlink(&decoy, volume.join("b")).unwrap();
    chown(volume.join("a"), Some(USER), Some(USER)).unwrap();
    c.mount(json!({"destination": "/v/a", "type": "tmpfs", "source": "tmpfs"}));
    c.set(
        "/linux/devices",
        json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/v/a/x/fifo", "type": "p"}]),
    );
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

fn checkpoints_take_root() {
    needs!(keel());
    let mut c = with_own_id();
    c.running();
    let images = c.dir.join("images");
    let error = c.keel(&["checkpoint", "--image-path", images.to_str().unwrap(), &c.id]).fails();
    assert!(error.contains("criu takes root"), "{error}");
    assert!(c.status() == "running" && !images.exists());
}

fn a_failed_create_leaves_nothing() {
    needs!(newuidmap());
    let mut c = with_subids();
    c.args(&["/none"]);
    assert!(c.never_runs().contains("/none"));
    let hook = c.script("fail", "exit 3");
    c.give_to_user(&c.dir.join("host"));
    c.set("/hooks", json!({"createRuntime": [{"path": hook}]})).refused("/hooks/createRuntime/0");
}
