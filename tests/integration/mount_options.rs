//! /mounts/*/options: every option of the spec's table, as mountinfo shows it.

use std::fs;

use nix::mount::{MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    each_flag_shows_on_a_new_mount,
    each_flag_shows_on_a_bind,
    the_last_of_two_opposites_counts,
    options_without_an_effect_are_accepted,
    a_bind_keeps_the_sources_flags_and_clears_what_is_named,
    recursive_flags_reach_the_mounts_below,
    plain_flags_stay_on_the_top_mount,
    each_propagation_shows_on_its_mount,
    a_bind_does_not_leak_mounts_back_to_a_shared_source,
    remount_changes_a_mount_that_is_there,
    file_system_options_on_a_bind_are_refused,
    an_option_that_is_no_string_is_refused,
    recursive_flags_are_cleared_below,
    a_version_counter_leaves_the_other_flags_as_they_are,
];

fn at(report: &Value, point: &str) -> Value {
    let mounts = report["mounts"].as_array().unwrap();
    mounts
        .iter()
        .rfind(|m| m["at"] == point)
        .unwrap_or_else(|| panic!("no mount at {point}: {report:#}"))
        .clone()
}

/// What mountinfo says for each option of a tmpfs: the mount's options, then the super block's first.
const FLAGS: [(&str, &str, &str); 15] = [
    ("defaults", "rw,relatime", "rw"),
    ("ro", "ro,relatime", "ro"),
    ("nosuid", "rw,nosuid,relatime", "rw"),
    ("nodev", "rw,nodev,relatime", "rw"),
    ("noexec", "rw,noexec,relatime", "rw"),
    ("nosymfollow", "rw,relatime,nosymfollow", "rw"),
    ("noatime", "rw,noatime", "rw"),
    ("strictatime", "rw", "rw"),
    ("relatime", "rw,relatime", "rw"),
    ("nodiratime", "rw,nodiratime,relatime", "rw"),
    ("norelatime", "rw,relatime", "rw"),
    ("nostrictatime", "rw,relatime", "rw"),
    ("sync", "rw,relatime", "rw,sync"),
    ("dirsync", "rw,relatime", "rw,dirsync"),
    ("lazytime", "rw,relatime", "rw,lazytime"),
];

fn each_flag_shows_on_a_new_mount() {
    needs!(keel());
    let mut c = Sandbox::new();
    for (option, ..) in FLAGS {
        let options = [option, "size=4k"];
        c.mount(
            json!({"destination": format!("/{option}"), "type": "tmpfs", "source": "t", "options": options}),
        );
    }
    let seen = c.report();
    for (option, flags, of_super) in FLAGS {
        let mount = at(&seen, &format!("/{option}"));
        assert_eq!(mount["options"], json!(flags.split(',').collect::<Vec<_>>()), "{option}");
        for flag in of_super.split(',') {
            // A read-only tmpfs is so by its mount or by its super block.
            assert!(
                flag == "ro" || mount["super"].as_array().unwrap().contains(&json!(flag)),
                "{option}: {mount}"
            );
        }
    }
}

fn each_flag_shows_on_a_bind() {
    let mut c = Sandbox::new();
    let volume = c.host_dir("volume");
    // The sandbox may lie on a file system with flags of its own.
    mount(Some("x"), &volume, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let flags =
        FLAGS.iter().filter(|(option, _, of_super)| *of_super != "rw,sync" && !option.contains("sync"));
    let flags: Vec<_> = flags.filter(|(option, ..)| *option != "lazytime").collect();
    for (option, ..) in &flags {
        c.mount(json!({"destination": format!("/{option}"), "source": volume, "options": ["bind", option]}));
    }
    c.acts("report").write_config();
    let seen = c.keel(&["run", &c.id]).ok().json();
    for (option, expected, _) in flags {
        let mount = at(&seen, &format!("/{option}"));
        assert_eq!(mount["options"], json!(expected.split(',').collect::<Vec<_>>()), "{option}");
    }
    umount2(&volume, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn the_last_of_two_opposites_counts() {
    let mut c = Sandbox::new();
    let options = ["ro", "rw", "nosuid", "suid", "nodev", "dev", "exec", "noexec", "noatime", "strictatime"];
    c.mount(json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": options}));
    assert_eq!(at(&c.report(), "/t")["options"], json!(["rw", "noexec"]));
}

fn options_without_an_effect_are_accepted() {
    let mut c = Sandbox::new();
    let options = [
        "async",
        "atime",
        "dev",
        "diratime",
        "exec",
        "loud",
        "silent",
        "nolazytime",
        "noiversion",
        "suid",
        "symfollow",
        "rw",
    ];
    c.mount(json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": options}));
    assert_eq!(at(&c.report(), "/t")["options"], json!(["rw", "relatime"]));
}

fn a_bind_keeps_the_sources_flags_and_clears_what_is_named() {
    let mut c = Sandbox::new();
    let volume = c.host_dir("volume");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    mount(Some("x"), &volume, Some("tmpfs"), flags, None::<&str>).unwrap();
    for (destination, options) in [
        ("/kept", vec!["bind"]),
        ("/cleared", vec!["bind", "suid", "dev", "exec", "strictatime"]),
        ("/one", vec!["bind", "exec"]),
    ] {
        c.mount(json!({"destination": destination, "source": volume, "options": options}));
    }
    c.acts("report").write_config();
    let seen = c.keel(&["run", &c.id]).ok().json();
    assert_eq!(at(&seen, "/kept")["options"], json!(["rw", "nosuid", "nodev", "noexec", "noatime"]));
    assert_eq!(at(&seen, "/cleared")["options"], json!(["rw"]));
    assert_eq!(at(&seen, "/one")["options"], json!(["rw", "nosuid", "nodev", "noatime"]));
    umount2(&volume, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

/// A directory that is a tmpfs with another tmpfs below it; gives what to unmount at the end.
fn tree(c: &Sandbox) -> std::path::PathBuf {
    let top = c.host_dir("tree");
    for directory in [top.clone(), top.join("sub")] {
        fs::create_dir_all(&directory).unwrap();
        mount(Some("x"), &directory, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    top
}

fn recursive_flags_reach_the_mounts_below() {
    let mut c = Sandbox::new();
    let top = tree(&c);
    let flags = [
        ("rro", "ro,relatime"),
        ("rnosuid", "rw,nosuid,relatime"),
        ("rnodev", "rw,nodev,relatime"),
        ("rnoexec", "rw,noexec,relatime"),
        ("rnoatime", "rw,noatime"),
        ("rnodiratime", "rw,nodiratime,relatime"),
        ("rstrictatime", "rw"),
        ("rrelatime", "rw,relatime"),
        ("rnosymfollow", "rw,relatime,nosymfollow"),
        ("rrw", "rw,relatime"),
    ];
    for (option, _) in flags {
        c.mount(json!({"destination": format!("/{option}"), "source": top, "options": ["rbind", option]}));
    }
    c.acts("report").write_config();
    let seen = c.keel(&["run", &c.id]).ok().json();
    for (option, expected) in flags {
        for point in [format!("/{option}"), format!("/{option}/sub")] {
            assert_eq!(
                at(&seen, &point)["options"],
                json!(expected.split(',').collect::<Vec<_>>()),
                "{point}"
            );
        }
    }
    umount2(&top, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn plain_flags_stay_on_the_top_mount() {
    let mut c = Sandbox::new();
    let top = tree(&c);
    c.mount(json!({"destination": "/t", "source": top, "options": ["rbind", "ro"]}));
    c.acts("create /t/file x ; create /t/sub/file x").write_config();
    assert_eq!(c.keel(&["run", &c.id]).ok().lines(), ["EROFS", "ok"]);
    umount2(&top, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn each_propagation_shows_on_its_mount() {
    let mut c = Sandbox::new();
    let kinds = [("shared", "shared:"), ("private", ""), ("unbindable", "unbindable"), ("rprivate", "")];
    for (option, _) in kinds {
        c.mount(
            json!({"destination": format!("/{option}"), "type": "tmpfs", "source": "t", "options": [option]}),
        );
    }
    let volume = c.host_dir("volume");
    mount(Some("x"), &volume, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    mount(None::<&str>, &volume, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    c.mount(json!({"destination": "/slave", "source": volume, "options": ["rbind", "rslave"]}));
    c.acts("report").write_config();
    let seen = c.keel(&["run", &c.id]).ok().json();
    for (option, begins) in kinds.into_iter().chain([("slave", "master:")]) {
        let propagation = at(&seen, &format!("/{option}"))["propagation"].as_str().unwrap().to_owned();
        assert!(propagation.starts_with(begins), "{option}: {propagation:?}");
        assert_eq!(propagation.is_empty(), begins.is_empty(), "{option}: {propagation:?}");
    }
    umount2(&volume, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn a_bind_does_not_leak_mounts_back_to_a_shared_source() {
    let mut c = Sandbox::new();
    let volume = c.host_dir("volume");
    mount(Some("x"), &volume, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    mount(None::<&str>, &volume, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    c.mount(json!({"destination": "/v", "source": volume, "options": ["rbind"]}));
    c.mount(json!({"destination": "/v/inside", "type": "tmpfs", "source": "t"}));
    c.running();
    assert_eq!(c.host_mounts(), [volume.to_str().unwrap()]);
    c.delete_force().ok();
    umount2(&volume, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn remount_changes_a_mount_that_is_there() {
    let mut c = Sandbox::new();
    c.mount(json!({"destination": "/t", "type": "tmpfs", "source": "t"}));
    c.mount(
        json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["remount", "ro", "nosuid"]}),
    );
    let seen = c.report();
    assert_eq!(seen["mounts"].as_array().unwrap().iter().filter(|m| m["at"] == "/t").count(), 1);
    assert_eq!(at(&seen, "/t")["options"], json!(["ro", "nosuid", "relatime"]));
}

fn file_system_options_on_a_bind_are_refused() {
    needs!(keel());
    let mut c = Sandbox::new();
    let volume = c.host_dir("volume");
    c.mount(json!({"destination": "/v", "source": volume, "options": ["bind", "size=1k"]}))
        .refused("/mounts/7/options");
}

fn an_option_that_is_no_string_is_refused() {
    let mut c = Sandbox::new();
    c.mount(json!({"destination": "/v", "type": "tmpfs", "options": ["ro", 5]}))
        .refused("/mounts/7/options/1");
}

fn recursive_flags_are_cleared_below() {
    let mut c = Sandbox::new();
    let top = tree(&c);
    let set = ["rbind", "rro", "rnosuid", "rnodev", "rnoexec", "rnodiratime", "rnoatime", "rnosymfollow"];
    let clear = ["rrw", "rsuid", "rdev", "rexec", "rdiratime", "ratime", "rsymfollow"];
    c.mount(
        json!({"destination": "/v", "source": top, "options": set.iter().chain(&clear).collect::<Vec<_>>()}),
    );
    c.acts("report").write_config();
    let seen = c.keel(&["run", &c.id]).ok().json();
    for point in ["/v", "/v/sub"] {
        assert_eq!(at(&seen, point)["options"], json!(["rw", "relatime"]), "{point}");
    }
    umount2(&top, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn a_version_counter_leaves_the_other_flags_as_they_are() {
    let mut c = Sandbox::new();
    let options = ["iversion", "ro", "nosuid", "nodev", "noatime", "size=8k"];
    c.mount(json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": options}));
    let mount = at(&c.report(), "/t");
    assert_eq!(mount["options"], json!(["ro", "nosuid", "nodev", "noatime"]));
    assert!(mount["super"].as_array().unwrap().contains(&json!("size=8k")), "{mount}");
}
