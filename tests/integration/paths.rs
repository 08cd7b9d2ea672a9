//! /linux/maskedPaths and /linux/readonlyPaths.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use serde_json::json;

use crate::sandbox::Sandbox;
use crate::swap::{swaps, while_swapped};
use crate::tests;

tests![
    a_masked_file_reads_as_empty,
    a_masked_directory_is_empty_and_read_only,
    a_missing_masked_path_is_ignored,
    a_masked_path_below_a_file_is_ignored,
    a_masked_path_cannot_be_uncovered,
    masked_files_of_proc_hide_the_host,
    a_readonly_path_is_read_only_and_readable,
    a_readonly_path_takes_its_submounts_along,
    a_missing_readonly_path_is_ignored,
    proc_sys_is_read_only,
    relative_paths_are_refused,
    a_masked_symlink_masks_its_target_inside,
    the_same_path_may_be_masked_twice,
    masks_stay_on_a_proc_that_somebody_renames,
    a_null_that_is_no_device_masks_nothing,
    a_null_that_somebody_exchanges_masks_nothing_else,
    masked_directories_share_one_file_system,
];

fn a_masked_file_reads_as_empty() {
    let mut c = Sandbox::new();
    c.write("/etc/secret", "secret");
    c.set("/linux/maskedPaths", json!(["/etc/secret"]));
    assert_eq!(c.does("cat /etc/secret"), Vec::<String>::new());
    assert_eq!(c.stat("/etc/secret")["rdev"], "1:3");
    assert_eq!(fs::read_to_string(c.rootfs().join("etc/secret")).unwrap(), "secret");
}

fn a_masked_directory_is_empty_and_read_only() {
    let mut c = Sandbox::new();
    c.write("/etc/deep/secret", "secret");
    c.set("/linux/maskedPaths", json!(["/etc/deep"]));
    assert_eq!(c.does("ls /etc/deep ; create /etc/deep/file x"), ["", "EROFS"]);
}

fn a_missing_masked_path_is_ignored() {
    let mut c = Sandbox::new();
    c.set("/linux/maskedPaths", json!(["/nowhere", "/proc/nothing", "/nowhere/deep"]));
    assert_eq!(c.report()["root"], json!(["dev", "payload", "proc", "sys", "tmp"]));
}

fn a_masked_path_below_a_file_is_ignored() {
    let mut c = Sandbox::new();
    c.set("/linux/maskedPaths", json!(["/payload/below"]));
    assert_eq!(c.does("echo up"), ["up"]);
}

fn a_masked_path_cannot_be_uncovered() {
    let mut c = Sandbox::new();
    c.write("/secret", "secret");
    c.set("/linux/maskedPaths", json!(["/secret", "/proc/keys"]));
    assert_eq!(c.does("remount-rw /secret ; bind /secret /tmp"), ["EPERM", "EPERM"]);
}

fn masked_files_of_proc_hide_the_host() {
    let mut c = Sandbox::new();
    let seen = c.does("stat /proc/keys ; stat /proc/timer_list ; ls /sys/firmware");
    for line in seen {
        assert!(line.contains(r#""rdev":"1:3""#) || line.is_empty() || line.contains("ENOENT"), "{line}");
    }
}

fn a_readonly_path_is_read_only_and_readable() {
    let mut c = Sandbox::new();
    c.write("/etc/conf", "text\n");
    c.write("/single", "");
    c.set("/linux/readonlyPaths", json!(["/etc", "/single"]));
    assert_eq!(c.does("cat /etc/conf ; write /etc/conf x ; create /etc/new x"), ["text", "EROFS", "EROFS"]);
    assert_eq!(c.does("open w /single ; create /other x"), ["EROFS", "ok"]);
}

fn a_readonly_path_takes_its_submounts_along() {
    let mut c = Sandbox::new();
    c.mount(json!({"destination": "/data/sub", "type": "tmpfs", "source": "t", "options": ["nosuid"]}));
    c.set("/linux/readonlyPaths", json!(["/data"]));
    assert_eq!(c.does("create /data/file x ; create /data/sub/file x"), ["EROFS", "EROFS"]);
    let seen = c.report();
    let sub = seen["mounts"].as_array().unwrap().iter().rfind(|mount| mount["at"] == "/data/sub").unwrap();
    assert_eq!(sub["options"], json!(["ro", "nosuid", "relatime"]));
}

fn a_missing_readonly_path_is_ignored() {
    let mut c = Sandbox::new();
    c.set("/linux/readonlyPaths", json!(["/nowhere", "/proc/nothing"]));
    assert_eq!(c.does("echo up"), ["up"]);
}

fn proc_sys_is_read_only() {
    let mut c = Sandbox::new();
    let seen = c.does("write /proc/sys/kernel/domainname x ; write /proc/irq/default_smp_affinity 1");
    assert_eq!(seen, ["EROFS", "EROFS"]);
}

fn relative_paths_are_refused() {
    Sandbox::new().set("/linux/maskedPaths", json!(["proc/kcore"])).refused("/linux/maskedPaths/0");
    Sandbox::new().set("/linux/readonlyPaths", json!(["/proc", "sys"])).refused("/linux/readonlyPaths/1");
}

fn a_masked_symlink_masks_its_target_inside() {
    let mut c = Sandbox::new();
    let outside = c.host_file("secret", "host");
    c.symlink(outside.to_str().unwrap(), "/link");
    c.write(outside.to_str().unwrap(), "inside");
    c.set("/linux/maskedPaths", json!(["/link"]));
    assert_eq!(c.stat(outside.to_str().unwrap())["rdev"], "1:3");
    assert_eq!(fs::read_to_string(outside).unwrap(), "host");
}

fn the_same_path_may_be_masked_twice() {
    let mut c = Sandbox::new();
    c.write("/secret", "secret");
    c.set("/linux/maskedPaths", json!(["/secret", "/secret", "/proc/acpi", "/proc/acpi"]));
    assert_eq!(c.stat("/secret")["rdev"], "1:3");
}

/// Whoever else has the image's directory can rename the mount point below the mount: the kernel lets the mount follow.
/// What is missing is not masked, and so nothing would be.
fn masks_stay_on_a_proc_that_somebody_renames() {
    let mut c = Sandbox::new();
    let (proc, other) = (c.rootfs().join("proc"), c.rootfs().join("other"));
    fs::create_dir(&other).unwrap();
    c.set("/linux/maskedPaths", json!(["/proc/keys"])).set("/linux/readonlyPaths", json!(["/proc/sys"]));
    let [keys, sys] =
        ["keys", "sys/kernel/domainname"].map(|file| ["/proc", "/other"].map(|d| format!("{d}/{file}")));
    c.acts(&format!("stat {} ; stat {} ; open w {} ; open w {}", keys[0], keys[1], sys[0], sys[1]))
        .write_config();
    while_swapped(&proc, &other, || {
        // Some of them fail: their mount point is gone.
        let runs: Vec<_> =
            (0..swaps(40)).map(|_| c.keel(&["run", &c.id])).filter(|output| output.code == 0).collect();
        let bad: Vec<_> = runs
            .iter()
            .filter(|output| {
                let lines = output.lines();
                let bare =
                    |line: &&str| line.starts_with('{') && !line.contains("1:3") && !line.contains("ENOENT");
                // The mount may move between two looks; it is never to be seen unmasked.
                lines.iter().take(2).any(bare) || lines.iter().skip(2).any(|line| *line == "ok")
            })
            .collect();
        assert!(!runs.is_empty());
        assert!(bad.is_empty(), "{} of {}: {:#?}", bad.len(), runs.len(), bad[0]);
    });
}

/// CVE-2025-31133, where /dev is a volume and so nobody else has looked at its null.
fn a_null_that_is_no_device_masks_nothing() {
    let mut c = Sandbox::new();
    let planted = c.host_file("dev/null", "planted");
    for destination in ["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
        c.without_mount(destination);
    }
    c.mount(json!({"destination": "/dev", "source": planted.parent().unwrap(), "options": ["bind"]}));
    c.write("/secret", "");
    c.set("/linux/maskedPaths", json!(["/secret"])).refused("/linux/maskedPaths/0");
    fs::remove_file(&planted).unwrap();
    std::os::unix::fs::symlink("/secret", planted).unwrap();
    c.refused("/linux/maskedPaths/0");
}

/// CVE-2025-31133, raced: what is bound over a masked file must be the null device, not what a link of its name says.
fn a_null_that_somebody_exchanges_masks_nothing_else() {
    let mut c = Sandbox::new();
    for destination in ["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
        c.without_mount(destination);
    }
    let volume = c.host_dir("volume");
    mknod(&volume.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    symlink("/proc/sys/kernel/domainname", volume.join("other")).unwrap();
    c.mount(json!({"destination": "/dev", "source": volume, "options": ["rbind"]}));
    c.write("/secret", "secret");
    c.set("/linux/maskedPaths", json!(["/secret"])).acts("stat /secret").write_config();
    let mut ran = 0;
    while_swapped(&volume.join("null"), &volume.join("other"), || {
        for _ in 0..swaps(100) {
            let output = c.keel(&["run", &c.id]);
            if output.code == 0 {
                ran += 1;
                assert!(output.stdout.contains(r#""rdev":"1:3""#), "{output:#?}");
            }
        }
    });
    assert!(ran > 0);
}

fn masked_directories_share_one_file_system() {
    let mut c = Sandbox::new();
    let paths = ["/a", "/b", "/c/d"];
    paths.iter().for_each(|path| fs::create_dir_all(c.rootfs().join(&path[1..])).unwrap());
    c.set("/linux/maskedPaths", json!(paths));
    let seen = c.report();
    let masks =
        seen["mounts"].as_array().unwrap().iter().filter(|m| paths.iter().any(|path| m["at"] == *path));
    let devices: Vec<_> = masks.map(|mount| &mount["device"]).collect();
    assert_eq!(devices, [devices[0]; 3]);
}
