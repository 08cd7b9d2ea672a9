//! /linux/devices and the default devices and links of /dev.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    the_default_devices_are_there_for_everyone,
    the_default_links_are_there,
    without_a_terminal_there_is_no_console,
    a_device_has_its_numbers_mode_and_owner,
    a_device_without_mode_is_readable_and_writable_by_its_owner_only_if_asked,
    block_unbuffered_and_fifo_devices_are_made,
    a_device_may_lie_outside_of_dev,
    the_callers_umask_does_not_narrow_a_device,
    a_device_that_is_there_already_is_accepted,
    another_file_in_a_devices_place_is_refused,
    a_mount_on_a_default_device_takes_its_place,
    a_device_with_an_owner_keeps_its_setuid_bit,
    a_device_without_numbers_is_refused,
    a_device_of_unknown_type_is_refused,
    a_device_with_a_relative_path_is_refused,
    a_mode_beyond_the_permission_bits_is_refused,
    a_planted_null_never_redirects_to_the_host,
    a_device_below_a_planted_link_stays_inside,
    nothing_that_is_made_follows_a_planted_link,
    the_default_devices_without_a_tmpfs_are_made_in_the_image,
    a_read_only_dev_has_its_devices,
    a_dev_that_is_a_link_inside_is_refused,
];

fn device(path: &str, kind: &str, major: u32, minor: u32) -> Value {
    json!({"path": path, "type": kind, "major": major, "minor": minor})
}

fn the_default_devices_are_there_for_everyone() {
    let seen = Sandbox::new().report();
    for (name, rdev) in [
        ("null", "1:3"),
        ("zero", "1:5"),
        ("full", "1:7"),
        ("random", "1:8"),
        ("urandom", "1:9"),
        ("tty", "5:0"),
    ] {
        let expected = json!({"type": "c", "mode": "0666", "uid": 0, "gid": 0, "rdev": rdev});
        assert_eq!(seen["dev"][name], expected, "{name}");
    }
}

fn the_default_links_are_there() {
    let seen = Sandbox::new().report();
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        assert_eq!(seen["dev"][name]["target"], target, "{name}");
    }
}

fn without_a_terminal_there_is_no_console() {
    assert_eq!(Sandbox::new().report()["dev"]["console"], Value::Null);
}

fn a_device_has_its_numbers_mode_and_owner() {
    let mut c = Sandbox::new();
    let mut fuse = device("/dev/fuse", "c", 10, 229);
    fuse["fileMode"] = json!(0o640);
    fuse["uid"] = json!(7);
    fuse["gid"] = json!(8);
    c.set("/linux/devices", json!([fuse]));
    assert_eq!(
        c.stat("/dev/fuse"),
        json!({"type": "c", "mode": "0640", "uid": 7, "gid": 8, "rdev": "10:229"})
    );
}

fn a_device_without_mode_is_readable_and_writable_by_its_owner_only_if_asked() {
    let mut c = Sandbox::new();
    c.set("/linux/devices", json!([device("/dev/fuse", "c", 10, 229)]));
    let seen = c.stat("/dev/fuse");
    assert_eq!((&seen["uid"], &seen["gid"], &seen["rdev"]), (&json!(0), &json!(0), &json!("10:229")));
}

fn block_unbuffered_and_fifo_devices_are_made() {
    let mut c = Sandbox::new();
    let fifo = json!({"path": "/dev/fifo", "type": "p"});
    c.set("/linux/devices", json!([device("/dev/disk", "b", 7, 99), device("/dev/raw", "u", 10, 200), fifo]));
    let seen = c.report();
    assert_eq!((&seen["dev"]["disk"]["type"], &seen["dev"]["disk"]["rdev"]), (&json!("b"), &json!("7:99")));
    assert_eq!((&seen["dev"]["raw"]["type"], &seen["dev"]["raw"]["rdev"]), (&json!("c"), &json!("10:200")));
    assert_eq!(seen["dev"]["fifo"]["type"], "p");
}

fn a_device_may_lie_outside_of_dev() {
    let mut c = Sandbox::new();
    c.set("/linux/devices", json!([device("/opt/deep/null", "c", 1, 3)]));
    assert_eq!(c.stat("/opt/deep/null")["rdev"], "1:3");
}

fn the_callers_umask_does_not_narrow_a_device() {
    let mut c = Sandbox::new();
    let mut fuse = device("/dev/fuse", "c", 10, 229);
    fuse["fileMode"] = json!(0o666);
    c.set("/linux/devices", json!([fuse])).acts("report").write_config();
    let mut shell = std::process::Command::new("sh");
    let keel = c.command(&["run", &c.id]);
    shell.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(keel.get_program()).args(keel.get_args());
    let seen = c
        .execute({
            shell.current_dir(c.bundle());
            shell
        })
        .ok()
        .json();
    assert_eq!(
        (&seen["dev"]["fuse"]["mode"], &seen["dev"]["null"]["mode"]),
        (&json!("0666"), &json!("0666"))
    );
    assert_eq!(seen["umask"], "0077");
}

fn a_device_that_is_there_already_is_accepted() {
    let mut c = Sandbox::new();
    let path = c.rootfs().join("null");
    mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    c.set("/linux/devices", json!([device("/null", "c", 1, 3)]));
    assert_eq!(c.stat("/null")["rdev"], "1:3");
}

fn another_file_in_a_devices_place_is_refused() {
    let mut c = Sandbox::new();
    c.write("/thing", "kept");
    c.set("/linux/devices", json!([device("/thing", "c", 10, 229)])).refused("/linux/devices/0");
    assert_eq!(fs::read_to_string(c.rootfs().join("thing")).unwrap(), "kept");
}

/// `docker run -v /dev/urandom:/dev/random`.
fn a_mount_on_a_default_device_takes_its_place() {
    let mut c = Sandbox::new();
    c.mount(json!({"destination": "/dev/random", "source": "/dev/urandom", "options": ["bind"]}));
    assert_eq!(c.stat("/dev/random")["rdev"], "1:9");
    assert_eq!(c.stat("/dev/urandom")["rdev"], "1:9");
}

/// chown(2) takes the bit away.
fn a_device_with_an_owner_keeps_its_setuid_bit() {
    let mut c = Sandbox::new();
    let mut node = device("/opt/null", "c", 1, 3);
    node["fileMode"] = json!(0o4640);
    node["uid"] = json!(7);
    c.set("/linux/devices", json!([node]));
    assert_eq!(c.stat("/opt/null"), json!({"type": "c", "mode": "4640", "uid": 7, "gid": 0, "rdev": "1:3"}));
}

fn a_device_without_numbers_is_refused() {
    Sandbox::new()
        .set("/linux/devices", json!([{"path": "/dev/x", "type": "c", "minor": 1}]))
        .refused("/linux/devices/0/major");
    Sandbox::new()
        .set("/linux/devices", json!([{"path": "/dev/x", "type": "c", "major": 1}]))
        .refused("/linux/devices/0/minor");
}

fn a_device_of_unknown_type_is_refused() {
    Sandbox::new()
        .set("/linux/devices", json!([device("/dev/x", "x", 1, 3)]))
        .refused("/linux/devices/0/type");
}

fn a_device_with_a_relative_path_is_refused() {
    Sandbox::new()
        .set("/linux/devices", json!([device("dev/x", "c", 1, 3)]))
        .refused("/linux/devices/0/path");
}

fn a_mode_beyond_the_permission_bits_is_refused() {
    let mut c = Sandbox::new();
    let mut node = device("/dev/x", "c", 1, 3);
    node["fileMode"] = json!(0o200000);
    c.set("/linux/devices", json!([node])).refused("/linux/devices/0/fileMode");
}

fn without_dev(c: &mut Sandbox) {
    for destination in ["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
        c.without_mount(destination);
    }
}

/// CVE-2025-31133: /dev/null of the image leads to a file that the runtime then binds, or opens in place of a
/// standard stream. The targets are the container's own: a runtime that falls for it must not harm the host.
fn a_planted_null_never_redirects_to_the_host() {
    for target in ["/proc/sys/kernel/domainname", "/etc/passwd"] {
        let mut c = Sandbox::new();
        without_dev(&mut c);
        c.symlink(target, "/dev/null");
        c.write("/etc/passwd", "kept");
        c.write("/masked", "secret");
        c.set("/linux/maskedPaths", json!(["/masked"])).acts("write /masked x ; stat /masked ; cat /masked");
        c.write_config();
        let output = c.keel(&["run", &c.id]);
        let masked = output.lines() == ["ok", r#"{"gid":0,"mode":"0666","rdev":"1:3","type":"c","uid":0}"#];
        assert!(output.code != 0 || masked, "{target}: {output:#?}");
        assert_eq!(fs::read_to_string(c.rootfs().join("etc/passwd")).unwrap(), "kept");
        assert_eq!(c.left(), Vec::<String>::new());
    }
}

fn a_device_below_a_planted_link_stays_inside() {
    let mut c = Sandbox::new();
    let decoy = c.host_dir("decoy");
    symlink(format!("/../../../../..{}", decoy.display()), c.rootfs().join("link")).unwrap();
    symlink(decoy.join("file"), c.rootfs().join("file")).unwrap();
    c.set("/linux/devices", json!([device("/link/null", "c", 1, 3)]));
    assert_eq!(c.stat(&format!("{}/null", decoy.display()))["rdev"], "1:3");
    c.set("/linux/devices", json!([device("/file", "c", 1, 3)])).refused("/linux/devices/0");
    assert_eq!(fs::read_dir(decoy).unwrap().count(), 0);
}

fn the_default_devices_without_a_tmpfs_are_made_in_the_image() {
    let mut c = Sandbox::new();
    without_dev(&mut c);
    assert_eq!(c.stat("/dev/null")["rdev"], "1:3");
    // And again, where they are by now.
    assert_eq!(c.stat("/dev/null")["rdev"], "1:3");
}

fn a_read_only_dev_has_its_devices() {
    let mut c = Sandbox::new();
    c.set("/mounts/1/options", json!(["ro", "nosuid", "mode=755"]));
    c.set("/linux/devices", json!([device("/dev/deep/fuse", "c", 10, 229)]));
    assert_eq!(c.does("create /dev/new x ; write /dev/null x"), ["EROFS", "ok"]);
    assert_eq!(c.stat("/dev/deep/fuse")["rdev"], "10:229");
}

fn a_dev_that_is_a_link_inside_is_refused() {
    let mut c = Sandbox::new();
    without_dev(&mut c);
    c.symlink("tmp", "/dev");
    c.refused("/linux/devices");
    assert_eq!(fs::read_dir(c.rootfs().join("tmp")).unwrap().count(), 0);
}

/// CVE-2025-24965: each name at which keel makes something is there already, as a link to the host.
fn nothing_that_is_made_follows_a_planted_link() {
    let links = ["fd", "stdin", "stdout", "stderr", "core", "ptmx"];
    let nodes = ["null", "zero", "full", "random", "urandom", "tty"];
    for name in links.iter().chain(&nodes) {
        for climb in ["", "../../../../../../../.."] {
            let mut c = Sandbox::new();
            without_dev(&mut c);
            let decoy = c.host_file(&format!("decoy/{name}"), "kept");
            chown(&decoy, Some(4711), Some(4712)).unwrap();
            c.symlink(&format!("{climb}{}", decoy.display()), &format!("/dev/{name}"));
            if nodes.contains(name) {
                c.refused("/linux/devices");
            } else {
                // What the image has there stays, and is of use to nobody but the container.
                c.acts("echo up").write_config();
                assert_eq!(c.run().ok().stdout, "up\n");
            }
            let meta = fs::symlink_metadata(&decoy).unwrap();
            assert_eq!(
                (meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777),
                (4711, 4712, 0o644),
                "{name}"
            );
            assert_eq!(fs::read_to_string(&decoy).unwrap(), "kept", "{name}");
            assert_eq!(fs::read_dir(decoy.parent().unwrap()).unwrap().count(), 1, "{name}");
        }
    }
}
