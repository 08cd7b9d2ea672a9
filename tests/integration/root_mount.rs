//! A mount on `/` in /mounts, which takes the place of /root/path.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    what_is_written_to_an_overlay_goes_to_its_upper_directory,
    the_directories_of_an_overlay_are_relative_to_the_bundle,
    an_overlay_without_a_writable_layer_is_read_only,
    a_file_that_an_overlay_deletes_stays_below,
    an_overlay_without_a_workdir_is_refused,
    an_overlay_with_a_missing_layer_is_refused,
    a_tmpfs_as_root_is_empty_but_for_what_is_mounted,
    a_bound_root_shows_its_source,
    a_read_only_root_mount_still_gets_its_mount_points,
    a_root_mount_that_is_not_the_first_is_refused,
    a_root_mount_leaves_nothing_on_the_host,
    hooks_find_a_root_mount_at_the_root_path,
    no_pivot_works_with_a_root_mount,
    the_writable_layer_is_one_containers_at_a_time,
];

fn overlay(options: &[&str]) -> Value {
    json!({"destination": "/", "type": "overlay", "source": "overlay", "options": options})
}

/// Puts a mount before all others.
fn first(c: &mut Sandbox, mount: Value) {
    c.config["mounts"].as_array_mut().unwrap().insert(0, mount);
}

/// A bundle whose /root/path is empty and whose image is the directory `lower`.
fn layered(options: &[&str]) -> Sandbox {
    let mut c = Sandbox::new();
    c.write("/etc/file", "lower\n");
    fs::rename(c.rootfs(), c.bundle().join("lower")).unwrap();
    for name in ["rootfs", "upper", "work"] {
        fs::create_dir(c.bundle().join(name)).unwrap();
    }
    first(&mut c, overlay(options));
    c
}

fn lower_of(c: &Sandbox) -> PathBuf {
    c.bundle().join("lower")
}

const RELATIVE: [&str; 3] = ["lowerdir=lower", "upperdir=upper", "workdir=work"];

fn what_is_written_to_an_overlay_goes_to_its_upper_directory() {
    let mut c = layered(&[]);
    let bundle = c.bundle();
    let of = |key: &str, name: &str| format!("{key}={}", bundle.join(name).display());
    let options = [of("lowerdir", "lower"), of("upperdir", "upper"), of("workdir", "work")];
    c.set("/mounts/0/options", json!(options));
    let seen = c.does("cat /etc/file ; write /etc/file changed ; create /new text ; cat /etc/file");
    // The payload's write does not shorten the file.
    assert_eq!(seen, ["lower", "ok", "ok", "changed"]);
    assert_eq!(fs::read_to_string(lower_of(&c).join("etc/file")).unwrap(), "lower\n");
    assert!(!lower_of(&c).join("new").exists());
    assert_eq!(fs::read_to_string(bundle.join("upper/new")).unwrap(), "text");
    assert_eq!(fs::read_dir(c.rootfs()).unwrap().count(), 0);
}

fn the_directories_of_an_overlay_are_relative_to_the_bundle() {
    let mut c = layered(&RELATIVE);
    c.acts("create /new text").write_config();
    let mut command = c.command(&["run", "--bundle", c.bundle().to_str().unwrap(), &c.id]);
    command.current_dir("/");
    assert_eq!(c.execute(command).ok().lines(), ["ok"]);
    assert_eq!(fs::read_to_string(c.bundle().join("upper/new")).unwrap(), "text");
}

fn an_overlay_without_a_writable_layer_is_read_only() {
    let mut c = layered(&["lowerdir=lower:rootfs"]);
    assert_eq!(c.does("cat /etc/file ; create /new text"), ["lower", "EROFS"]);
}

fn a_file_that_an_overlay_deletes_stays_below() {
    let mut c = layered(&RELATIVE);
    c.write("/unused", "");
    link_busybox(&c);
    assert_eq!(c.args(&["/busybox", "rm", "/etc/file"]).run().ok().lines(), [""; 0]);
    assert!(lower_of(&c).join("etc/file").exists());
    assert_eq!(c.stat("/etc/file"), json!({"error": "ENOENT"}));
}

fn link_busybox(c: &Sandbox) {
    crate::sandbox::link("/bin/busybox".as_ref(), &lower_of(c).join("busybox"));
}

fn an_overlay_without_a_workdir_is_refused() {
    let error = layered(&RELATIVE[..2]).refused("/mounts/0/options/1");
    assert!(error.contains("an upperdir needs a workdir beside it"), "{error}");
    layered(&RELATIVE[1..]).refused("/mounts/0/options");
}

fn an_overlay_with_a_missing_layer_is_refused() {
    let error =
        layered(&["lowerdir=nowhere", "upperdir=upper", "workdir=work"]).refused("/mounts/0/options/0");
    assert!(error.contains("nowhere"), "{error}");
}

fn a_tmpfs_as_root_is_empty_but_for_what_is_mounted() {
    let mut c = Sandbox::new();
    let payload = c.rootfs().join("payload");
    first(&mut c, json!({"destination": "/", "type": "tmpfs", "source": "root", "options": ["size=1m"]}));
    c.mount(json!({"destination": "/payload", "source": payload, "options": ["bind"]}));
    assert_eq!(c.report()["root"], json!(["dev", "payload", "proc", "sys"]));
    assert_eq!(c.stat("/")["mode"], "0755");
    assert_eq!(c.does("create /new text"), ["ok"]);
    assert!(!c.rootfs().join("new").exists());
}

fn a_bound_root_shows_its_source() {
    let mut c = layered(&[]);
    c.set("/mounts/0", json!({"destination": "/", "source": "lower", "options": ["rbind", "nosuid"]}));
    assert_eq!(c.report()["mounts"][0]["options"], json!(["rw", "nosuid", "relatime"]));
    assert_eq!(c.does("cat /etc/file"), ["lower"]);
}

fn a_read_only_root_mount_still_gets_its_mount_points() {
    for readonly in ["/root/readonly", "/mounts/0/options/-"] {
        let mut c = layered(&RELATIVE);
        c.set(readonly, if readonly.starts_with("/root") { json!(true) } else { json!("ro") });
        c.mount(json!({"destination": "/made/for/it", "type": "tmpfs", "source": "t"}));
        let seen = c.does("create /new text ; create /made/for/it/new text");
        assert_eq!(seen, ["EROFS", "ok"], "{readonly}");
    }
}

fn a_root_mount_that_is_not_the_first_is_refused() {
    let mut c = layered(&RELATIVE);
    c.config["mounts"].as_array_mut().unwrap().swap(0, 1);
    c.refused("/mounts/1/destination");
}

fn a_root_mount_leaves_nothing_on_the_host() {
    let mut c = layered(&RELATIVE);
    c.running();
    assert_eq!(c.host_mounts(), [""; 0]);
    c.delete_force().ok();
    // The kernel has let go of the directories: they can be used again.
    assert_eq!(c.does("cat /etc/file"), ["lower"]);
}

fn hooks_find_a_root_mount_at_the_root_path() {
    let mut c = layered(&RELATIVE);
    let hook = c.script("hook", "echo hook >$D/bundle/rootfs/etc/file");
    c.set("/hooks/createContainer", json!([{"path": hook}]));
    assert_eq!(c.does("cat /etc/file"), ["hook"]);
    assert_eq!(fs::read_to_string(c.bundle().join("upper/etc/file")).unwrap(), "hook\n");
}

fn no_pivot_works_with_a_root_mount() {
    let mut c = layered(&RELATIVE);
    c.acts("ls /").write_config();
    let run = c.keel(&["run", "--no-pivot", &c.id]).ok();
    assert_eq!(run.lines(), ["dev etc payload proc sys tmp"]);
}

fn the_writable_layer_is_one_containers_at_a_time() {
    needs!(keel());
    let mut c = layered(&RELATIVE);
    // Of the same name they would be in each other's way already.
    c.unset("/linux/cgroupsPath").acts("await TERM").write_config();
    c.keel(&["run", "--detach", &c.id]).ok();
    let root = c.dir.join("other");
    let other = |command: &[&str]| {
        let mut keel = Command::new(&c.runtime);
        keel.arg("--root").arg(&root).args(command).current_dir(c.bundle());
        c.execute(keel)
    };
    for _ in 0..2 {
        let error = other(&["create", "other"]).fails();
        assert!(error.contains(&format!("state/{}: each would change", c.id)), "{error}");
        assert!(
            error.contains("/work: it is in use") && error.contains("[config.json /mounts/0/options/2]"),
            "{error}"
        );
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }
    c.kill("KILL").ok();
    c.wait_stopped();
    // Its state is still there, but nothing of it lives.
    other(&["create", "other"]).ok();
    c.delete().ok();
    assert!(c.keel(&["run", &c.id]).fails().contains("other/other: each would change"));
    other(&["delete", "--force", "other"]).ok();
}
