//! /root and /linux/rootfsPropagation: which tree is `/`, and that there is no way out of it.

use std::fs;
use std::os::unix::fs::symlink;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    the_root_is_the_bundles_rootfs,
    an_absolute_root_path_is_taken_as_it_is,
    the_root_has_nothing_above_it,
    only_the_configured_mounts_are_seen,
    a_root_is_writable_by_default,
    a_readonly_root_is_read_only_and_its_mounts_are_not,
    a_missing_root_is_refused,
    a_root_that_is_a_file_is_refused,
    a_root_without_a_path_is_refused,
    a_config_without_root_is_refused,
    the_root_mount_has_the_configured_propagation,
    a_slave_root_receives_the_hosts_mounts,
    nothing_mounted_inside_a_shared_root_reaches_the_host,
    an_unknown_propagation_is_refused,
    no_pivot_hides_the_host_as_well,
    a_root_with_blanks_and_commas_in_its_path_works,
    a_root_behind_a_symlink_works,
    a_root_keeps_the_attributes_of_its_mount,
    a_bundle_on_a_read_only_file_system_works_if_the_image_has_what_it_needs,
    a_host_whose_mounts_are_shared_gets_none_of_the_containers,
    no_pivot_leaves_no_proc_without_masks,
];

fn the_root_is_the_bundles_rootfs() {
    let mut c = Sandbox::new();
    c.write("/only/here", "inside");
    assert_eq!(c.report()["root"], json!(["dev", "only", "payload", "proc", "sys", "tmp"]));
    assert_eq!(c.does("cat /only/here"), ["inside"]);
}

fn an_absolute_root_path_is_taken_as_it_is() {
    let mut c = Sandbox::new();
    let elsewhere = c.dir.join("elsewhere");
    fs::rename(c.rootfs(), &elsewhere).unwrap();
    c.set("/root/path", elsewhere.to_str().unwrap());
    assert_eq!(c.report()["root"], json!(["dev", "payload", "proc", "sys", "tmp"]));
}

fn the_root_has_nothing_above_it() {
    let mut c = Sandbox::new();
    let [root, above, init] = c.does("ls / ; ls /../../.. ; ls /proc/1/root/..").try_into().unwrap();
    assert_eq!((root.as_str(), above.as_str(), init.as_str()), ("dev payload proc sys tmp", &*root, &*root));
}

fn only_the_configured_mounts_are_seen() {
    let mut c = Sandbox::new();
    c.unset("/linux/maskedPaths").unset("/linux/readonlyPaths");
    let seen = c.report();
    let points: Vec<&str> =
        seen["mounts"].as_array().unwrap().iter().map(|m| m["at"].as_str().unwrap()).collect();
    let all = ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
    assert_eq!(points, all);
}

fn a_root_is_writable_by_default() {
    let mut c = Sandbox::new();
    assert_eq!(c.does("create /file text"), ["ok"]);
    assert_eq!(fs::read_to_string(c.rootfs().join("file")).unwrap(), "text");
}

fn a_readonly_root_is_read_only_and_its_mounts_are_not() {
    let mut c = Sandbox::new();
    c.set("/root/readonly", true);
    assert_eq!(c.does("create /file x ; create /dev/file x ; create /dev/shm/file x"), ["EROFS", "ok", "ok"]);
    assert!(!c.rootfs().join("file").exists());
}

fn a_missing_root_is_refused() {
    let mut c = Sandbox::new();
    let error = c.set("/root/path", "nowhere").refused("/root/path");
    assert!(error.contains("nowhere"), "{error}");
}

fn a_root_that_is_a_file_is_refused() {
    let mut c = Sandbox::new();
    fs::write(c.bundle().join("file"), "").unwrap();
    c.set("/root/path", "file").refused("/root/path");
}

fn a_root_without_a_path_is_refused() {
    Sandbox::new().set("/root", json!({})).refused("/root/path");
}

fn a_config_without_root_is_refused() {
    Sandbox::new().unset("/root").refused("/root");
}

fn propagation_of_root(c: &mut Sandbox) -> String {
    c.report()["mounts"][0]["propagation"].as_str().unwrap().to_owned()
}

fn the_root_mount_has_the_configured_propagation() {
    for (propagation, begins) in [("shared", "shared:"), ("private", ""), ("unbindable", "unbindable")] {
        let mut c = Sandbox::new();
        let seen = propagation_of_root(c.set("/linux/rootfsPropagation", propagation));
        assert!(seen.starts_with(begins) && seen.is_empty() == begins.is_empty(), "{propagation}: {seen:?}");
    }
    assert_eq!(propagation_of_root(&mut Sandbox::new()), "");
}

/// Makes the rootfs a mount of its own, shared with the host.
fn share_rootfs(c: &Sandbox) {
    let none = None::<&str>;
    mount(Some(&c.rootfs()), &c.rootfs(), none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &c.rootfs(), none, MsFlags::MS_SHARED, none).unwrap();
}

fn unshare_rootfs(c: &Sandbox) {
    while nix::mount::umount2(&c.rootfs(), nix::mount::MntFlags::MNT_DETACH).is_ok() {}
}

fn a_slave_root_receives_the_hosts_mounts() {
    let mut c = Sandbox::new();
    share_rootfs(&c);
    c.set("/linux/rootfsPropagation", "slave").acts("await USR1 ; ls /tmp").created().start().ok();
    c.wait_printed("waiting");
    let host = c.host_dir("volume");
    fs::write(host.join("late"), "").unwrap();
    mount(Some(&host), &c.rootfs().join("tmp"), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    c.kill("USR1").ok();
    c.wait_printed("late");
    c.delete_force().ok();
    nix::mount::umount(&c.rootfs().join("tmp")).unwrap();
    unshare_rootfs(&c);
}

fn nothing_mounted_inside_a_shared_root_reaches_the_host() {
    for propagation in [Value::Null, json!("private"), json!("slave"), json!("shared")] {
        let mut c = Sandbox::new();
        share_rootfs(&c);
        c.set("/linux/rootfsPropagation", propagation.clone()).running();
        let mounts = c.host_mounts();
        assert_eq!(mounts, [c.rootfs().to_str().unwrap()], "{propagation}");
        c.delete_force().ok();
        unshare_rootfs(&c);
    }
}

fn an_unknown_propagation_is_refused() {
    for value in [json!("public"), json!(1)] {
        Sandbox::new().set("/linux/rootfsPropagation", value).refused("/linux/rootfsPropagation");
    }
}

fn no_pivot_hides_the_host_as_well() {
    let mut c = Sandbox::new();
    c.acts("ls / ; ls /../../.. ; ls /proc/1/root/..").write_config();
    let run = c.keel(&["run", "--no-pivot", &c.id]).ok();
    assert_eq!(run.lines(), ["dev payload proc sys tmp"; 3]);
}

fn a_root_with_blanks_and_commas_in_its_path_works() {
    let mut c = Sandbox::new();
    let odd = c.bundle().join("a b,c\\d:e\nf");
    symlink("rootfs", c.bundle().join("unused")).unwrap();
    fs::rename(c.rootfs(), &odd).unwrap();
    c.set("/root/path", odd.to_str().unwrap());
    assert_eq!(c.does("echo here"), ["here"]);
    assert!(c.host_mounts().is_empty());
}

fn a_root_behind_a_symlink_works() {
    let mut c = Sandbox::new();
    fs::rename(c.rootfs(), c.dir.join("elsewhere")).unwrap();
    symlink("../elsewhere", c.bundle().join("rootfs")).unwrap();
    c.set("/linux/readonlyPaths", json!(["/tmp"]));
    assert_eq!(c.does("create /file text ; create /tmp/file text"), ["ok", "EROFS"]);
    assert!(c.dir.join("elsewhere/file").exists());
    fs::rename(c.dir.join("elsewhere"), c.dir.join("gone")).unwrap();
    c.refused("/root/path");
}

/// Binds the bundle on itself with these attributes.
fn remount_bundle(c: &Sandbox, flags: MsFlags) {
    let none = None::<&str>;
    mount(Some(&c.bundle()), &c.bundle(), none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &c.bundle(), none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none).unwrap();
}

fn a_root_keeps_the_attributes_of_its_mount() {
    let mut c = Sandbox::new();
    c.acts("report").write_config();
    remount_bundle(&c, MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
    let seen = c.keel(&["run", &c.id]).ok().json();
    assert_eq!(seen["mounts"][0]["options"], json!(["rw", "nosuid", "nodev", "relatime"]));
    nix::mount::umount(&c.bundle()).unwrap();
}

fn a_bundle_on_a_read_only_file_system_works_if_the_image_has_what_it_needs() {
    let mut c = Sandbox::new();
    c.set("/linux/readonlyPaths", json!(["/tmp", "/dev/shm", "/sys/fs"]));
    c.acts("create /file text ; create /dev/shm/file text").write_config();
    remount_bundle(&c, MsFlags::MS_RDONLY);
    assert_eq!(c.keel(&["run", &c.id]).ok().lines(), ["EROFS", "EROFS"]);
    nix::mount::umount(&c.bundle()).unwrap();
    c.mount(json!({"destination": "/missing", "type": "tmpfs", "source": "t"})).write_config();
    remount_bundle(&c, MsFlags::MS_RDONLY);
    let error = c.keel(&["run", &c.id]).fails();
    assert!(error.contains("create directory /missing in the rootfs: Read-only file system"), "{error}");
    nix::mount::umount(&c.bundle()).unwrap();
}

/// As systemd leaves every host. keel has such a host of its own here, to harm no other test.
fn a_host_whose_mounts_are_shared_gets_none_of_the_containers() {
    for (flags, hooks) in [
        (&["run"][..], false),
        (&["run"], true),
        (&["run", "--no-pivot"], false),
        (&["run", "--no-pivot"], true),
    ] {
        let mut c = Sandbox::new();
        if hooks {
            c.set("/hooks/createRuntime", json!([{"path": "/bin/true"}]));
        }
        // Not those of other tests, which go everywhere when their directory is removed.
        let mounts = format!("awk '!/keel-test-/ || /{}/' /proc/self/mountinfo", c.id);
        let script = format!("mount --make-rshared /; {mounts} >$D/before; \"$@\"; {mounts} >$D/after")
            .replace("$D", c.dir.to_str().unwrap());
        c.acts("ls / ; ls /proc/1/root/..").write_config();
        let host = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
        assert_eq!(
            c.behind(&host, &[flags, &[&*c.id]].concat()).ok().lines(),
            ["dev payload proc sys tmp"; 2]
        );
        let read = |name| fs::read_to_string(c.dir.join(name)).unwrap();
        assert_eq!(read("before"), read("after"), "{flags:?} {hooks}");
    }
}

/// A user namespace may mount a new proc where a whole one is in the mount namespace, seen or not.
fn no_pivot_leaves_no_proc_without_masks() {
    for masked in [true, false] {
        let mut c = Sandbox::new();
        c.set("/process/user", json!({"uid": 1000, "gid": 1000})).busybox();
        if !masked {
            c.unset("/linux/maskedPaths").unset("/linux/readonlyPaths");
        }
        let unshare =
            ["/bin/busybox", "unshare", "-Urmpf", "/bin/busybox", "mount", "-t", "proc", "proc", "/tmp"];
        c.args(&unshare).write_config();
        for flags in [&["run"][..], &["run", "--no-pivot"]] {
            let output = c.keel(&[flags, &[&*c.id]].concat());
            assert_eq!(output.code != 0, masked, "{flags:?} {output:#?}");
        }
    }
}
