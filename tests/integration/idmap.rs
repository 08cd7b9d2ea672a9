//! /mounts/N/uidMappings, gidMappings and the options idmap and ridmap, with and without a user namespace.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::sandbox::{HOST_ROOT, Sandbox};
use crate::tests;

tests![
    files_have_other_owners_without_a_user_namespace,
    files_of_the_hosts_root_are_the_containers_roots,
    the_mappings_of_the_container_are_the_default,
    the_mappings_of_a_joined_user_namespace_are_the_default,
    mappings_without_the_option_are_applied,
    a_file_is_mapped_too,
    the_recursive_option_maps_what_is_below,
    a_new_tmpfs_is_mapped,
    two_mounts_have_two_mappings,
    a_root_mount_is_mapped,
    an_idmap_without_mappings_or_a_user_namespace_is_refused,
    one_mapping_without_the_other_is_refused,
    a_remount_cannot_map,
    a_file_system_that_cannot_be_mapped_is_named,
    no_new_file_system_stays_unmapped,
    several_ranges_are_mapped,
    what_is_below_must_be_mapped_too_or_is_named,
    what_is_mounted_on_a_mapped_mount_stays_in_the_container,
    flags_and_mappings_go_together,
];

/// Ids on the file system from 0 on are those of the host from `host` on.
fn mapping(host: u32) -> Value {
    json!([{"containerID": 0, "hostID": host, "size": 65536}])
}

fn mapped(source: &Path, host: u32, options: &[&str]) -> Value {
    json!({"destination": "/v", "type": "none", "source": source, "options": options,
        "uidMappings": mapping(host), "gidMappings": mapping(host)})
}

/// A directory with a file of the host's user 7, group 8.
fn volume(c: &Sandbox) -> PathBuf {
    let file = c.host_file("volume/file", "x");
    chown(&file, Some(7), Some(8)).unwrap();
    file.parent().unwrap().to_owned()
}

fn ids(stat: &Value) -> (u64, u64) {
    (stat["uid"].as_u64().unwrap(), stat["gid"].as_u64().unwrap())
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let stat = fs::metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

fn files_have_other_owners_without_a_user_namespace() {
    let mut c = Sandbox::new();
    let volume = volume(&c);
    c.mount(mapped(&volume, 5000, &["bind", "idmap"]));
    assert_eq!(ids(&c.stat("/v/file")), (5007, 5008));
    // What somebody makes is theirs on the file system too; who is not mapped can make nothing.
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    c.set("/process/user", json!({"uid": 5001, "gid": 5002}));
    assert_eq!(c.does("create /v/new x"), ["ok"]);
    assert_eq!(owner(volume.join("new")), (1, 2));
    c.set("/process/user", json!({"uid": 1, "gid": 1}));
    assert_eq!(c.does("create /v/other x"), ["EOVERFLOW"]);
}

fn files_of_the_hosts_root_are_the_containers_roots() {
    let mut c = Sandbox::new();
    c.user_namespace();
    let volume = volume(&c);
    c.mount(mapped(&volume, HOST_ROOT, &["bind", "idmap"]));
    assert_eq!((ids(&c.stat("/v/file")), ids(&c.stat("/v"))), ((7, 8), (0, 0)));
    assert_eq!(c.does("create /v/new x"), ["ok"]);
    assert_eq!((owner(volume.join("new")), owner(volume.join("file"))), ((0, 0), (7, 8)));
}

fn the_mappings_of_the_container_are_the_default() {
    for option in ["idmap", "ridmap"] {
        let mut c = Sandbox::new();
        c.user_namespace();
        let volume = volume(&c);
        c.mount(json!({"destination": "/v", "type": "none", "source": volume, "options": ["rbind", option]}));
        assert_eq!(ids(&c.stat("/v/file")), (7, 8));
    }
}

fn the_mappings_of_a_joined_user_namespace_are_the_default() {
    let mut first = Sandbox::new();
    let pid = first.user_namespace().running().pid();
    let mut c = Sandbox::new();
    c.user_namespace().without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
    c.set("/linux/namespaces/-", json!({"type": "user", "path": format!("/proc/{pid}/ns/user")}));
    let volume = volume(&c);
    c.mount(json!({"destination": "/v", "type": "none", "source": volume, "options": ["bind", "idmap"]}));
    assert_eq!(ids(&c.stat("/v/file")), (7, 8));
}

fn mappings_without_the_option_are_applied() {
    let mut c = Sandbox::new();
    let volume = volume(&c);
    c.mount(mapped(&volume, 5000, &["bind"]));
    assert_eq!(ids(&c.stat("/v/file")), (5007, 5008));
}

fn a_file_is_mapped_too() {
    let mut c = Sandbox::new();
    let volume = volume(&c);
    c.mount(mapped(&volume.join("file"), 5000, &["bind", "idmap", "ro"]));
    c.set("/process/user", json!({"uid": 5007, "gid": 5008}));
    assert_eq!((ids(&c.stat("/v")), c.does("open w /v")), ((5007, 5008), vec!["EROFS".to_owned()]));
}

fn the_recursive_option_maps_what_is_below() {
    for (option, below) in [("idmap", (7, 8)), ("ridmap", (5007, 5008))] {
        let mut c = Sandbox::new();
        let volume = volume(&c);
        let sub = c.host_dir("volume/sub");
        mount(Some("tmpfs"), &sub, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(sub.join("file"), "y").unwrap();
        chown(sub.join("file"), Some(7), Some(8)).unwrap();
        c.mount(mapped(&volume, 5000, &["rbind", option]));
        c.acts("stat /v/file ; stat /v/sub/file").write_config();
        let output = c.keel(&["run", &c.id]);
        umount2(&sub, MntFlags::MNT_DETACH).unwrap();
        let stats: Vec<Value> =
            output.ok().lines().iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((ids(&stats[0]), ids(&stats[1])), ((5007, 5008), below), "{option}");
    }
}

fn a_new_tmpfs_is_mapped() {
    let mut c = Sandbox::new();
    c.mount(
        json!({"destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["idmap", "mode=700"],
        "uidMappings": mapping(5000), "gidMappings": mapping(5000)}),
    );
    c.set("/process/user", json!({"uid": 5000, "gid": 5000}));
    assert_eq!((ids(&c.stat("/v")), c.does("create /v/x y")), ((5000, 5000), vec!["ok".to_owned()]));
    let mut c = Sandbox::new();
    c.user_namespace();
    c.mount(
        json!({"destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["idmap", "mode=700"]}),
    );
    assert_eq!((ids(&c.stat("/v")), c.does("create /v/x y")), ((0, 0), vec!["ok".to_owned()]));
}

fn two_mounts_have_two_mappings() {
    let mut c = Sandbox::new();
    let volume = volume(&c);
    for (i, (at, host)) in [("/v", 5000), ("/w", 5000), ("/x", 6000)].into_iter().enumerate() {
        c.mount(mapped(&volume, host, &["bind", "idmap"])).set(&format!("/mounts/{}/destination", i + 7), at);
    }
    let seen = ["/v/file", "/w/file", "/x/file"].map(|path| ids(&c.stat(path)));
    assert_eq!(seen, [(5007, 5008), (5007, 5008), (6007, 6008)]);
}

fn a_root_mount_is_mapped() {
    let mut c = Sandbox::new();
    // The image belongs to the host's root as it is.
    let image = c.dir.join("image");
    fs::rename(c.rootfs(), &image).unwrap();
    fs::create_dir(c.rootfs()).unwrap();
    c.user_namespace();
    let mut root = mapped(&image, HOST_ROOT, &["rbind", "idmap"]);
    root["destination"] = json!("/");
    c.config["mounts"].as_array_mut().unwrap().insert(0, root);
    assert_eq!((ids(&c.stat("/tmp")), c.does("create /new x")), ((0, 0), vec!["ok".to_owned()]));
    assert_eq!(owner(image.join("new")), (0, 0));
}

fn an_idmap_without_mappings_or_a_user_namespace_is_refused() {
    let mut c = Sandbox::new();
    c.mount(json!({"destination": "/v", "type": "none", "source": "/", "options": ["bind", "ridmap"]}));
    c.refused("/mounts/7/options/1");
}

fn one_mapping_without_the_other_is_refused() {
    let mut c = Sandbox::new();
    c.mount(mapped(Path::new("/"), 0, &["bind", "idmap"])).unset("/mounts/7/gidMappings");
    c.refused("/mounts/7/gidMappings");
    c.set("/mounts/7/gidMappings", json!([{"containerID": 0, "hostID": 0, "size": 0}]));
    c.refused("/mounts/7/gidMappings/0/size");
}

fn a_remount_cannot_map() {
    let mut c = Sandbox::new();
    c.mount(mapped(Path::new("x"), 5000, &["remount", "bind"]));
    c.refused("/mounts/7/uidMappings");
}

fn a_file_system_that_cannot_be_mapped_is_named() {
    let mut c = Sandbox::new();
    c.mount(mapped(Path::new("/proc/self"), 5000, &["bind", "ro", "idmap"]));
    let error = c.refused("/mounts/7/options/2");
    assert!(error.contains("does not support id-mapped mounts"), "{error}");
}

/// What the option is on has its ids mapped, or there is no container.
fn no_new_file_system_stays_unmapped() {
    for (kind, at, mapped) in [
        ("tmpfs", "/v", true),
        ("ramfs", "/v", false),
        ("proc", "/proc", false),
        ("sysfs", "/v", false),
        ("mqueue", "/v", false),
        ("devpts", "/v", false),
        ("cgroup", "/v", false),
    ] {
        for user_namespace in [false, true] {
            let mut c = Sandbox::new();
            if user_namespace {
                c.user_namespace();
            }
            if at == "/proc" {
                c.without_mount("/proc");
            }
            c.mount(json!({"destination": at, "type": kind, "source": kind, "options": ["idmap"],
                "uidMappings": mapping(HOST_ROOT), "gidMappings": mapping(HOST_ROOT)}));
            let last = c.config["mounts"].as_array().unwrap().len() - 1;
            if mapped {
                let root = if user_namespace { 0 } else { u64::from(HOST_ROOT) };
                assert_eq!(ids(&c.stat(at)), (root, root), "{kind} {user_namespace}");
            } else {
                let error = c.refused(&format!("/mounts/{last}/options/0"));
                assert!(error.contains("does not support id-mapped mounts"), "{kind}: {error}");
            }
        }
    }
    // An overlay of the host's.
    let mut c = Sandbox::new();
    let at = c.host_dir("overlay");
    let options = format!("lowerdir={}:{}", volume(&c).display(), c.host_dir("empty").display());
    mount(Some("overlay"), &at, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    c.mount(mapped(&at, 5000, &["bind", "idmap"])).write_config();
    let output = c.keel(&["create", &c.id]);
    umount2(&at, MntFlags::MNT_DETACH).unwrap();
    let error = output.fails();
    assert!(error.contains("[config.json /mounts/7/options/1]"), "{error}");
}

fn several_ranges_are_mapped() {
    let mut c = Sandbox::new();
    let volume = volume(&c);
    for (name, id) in [("first", 0), ("one", 100), ("none", 50)] {
        fs::write(volume.join(name), "").unwrap();
        chown(volume.join(name), Some(id), Some(id)).unwrap();
    }
    let ranges = json!([
        {"containerID": 100, "hostID": 40, "size": 1},
        {"containerID": 0, "hostID": 5000, "size": 10},
    ]);
    c.mount(mapped(&volume, 0, &["bind", "idmap"]));
    c.set("/mounts/7/uidMappings", ranges.clone()).set("/mounts/7/gidMappings", ranges);
    let seen = ["first", "file", "one", "none"].map(|name| ids(&c.stat(&format!("/v/{name}"))));
    assert_eq!(seen, [(5000, 5000), (5007, 5008), (40, 40), (65534, 65534)]);
}

fn what_is_below_must_be_mapped_too_or_is_named() {
    let mut c = Sandbox::new();
    let volume = volume(&c);
    let sub = c.host_dir("volume/sub");
    mount(Some("proc"), &sub, Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
    let mut create = |option: &str| {
        c.config["mounts"].as_array_mut().unwrap().truncate(7);
        c.mount(mapped(&volume, 5000, &["rbind", option])).acts("stat /v/file").write_config();
        c.keel(&["run", &c.id])
    };
    let (recursive, single) = (create("ridmap"), create("idmap"));
    umount2(&sub, MntFlags::MNT_DETACH).unwrap();
    let error = recursive.fails();
    assert!(error.contains("or one below") && error.contains("[config.json /mounts/7/options/1]"), "{error}");
    assert_eq!(ids(&single.ok().json()), (5007, 5008));
}

/// The clone leaves the peer group of its source before it is mapped.
fn what_is_mounted_on_a_mapped_mount_stays_in_the_container() {
    for user_namespace in [false, true] {
        let mut c = Sandbox::new();
        let volume = c.host_dir("volume");
        mount(Some("tmpfs"), &volume, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        mount(None::<&str>, &volume, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        fs::create_dir(volume.join("sub")).unwrap();
        if user_namespace {
            c.user_namespace();
        }
        for set in ["bounding", "effective", "permitted"] {
            c.set(&format!("/process/capabilities/{set}/-"), "CAP_SYS_ADMIN");
        }
        let host = if user_namespace { HOST_ROOT } else { 0 };
        c.mount(mapped(&volume, host, &["rbind", "idmap", "rshared"]));
        c.mount(json!({"destination": "/v/sub", "type": "tmpfs", "source": "t"}));
        c.acts("bind /dev /v/sub ; ls /v/sub/shm ; create /v/sub/shm/x y ; stat /v/sub/null").write_config();
        let output = c.keel(&["run", &c.id]);
        let host_mounts = c.host_mounts();
        umount2(&volume, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(output.ok().lines()[0], "ok");
        assert_eq!(host_mounts.len(), 1, "{host_mounts:?}");
    }
}

fn flags_and_mappings_go_together() {
    let mut c = Sandbox::new();
    c.user_namespace();
    let volume = volume(&c);
    c.mount(mapped(&volume, HOST_ROOT, &["rbind", "idmap", "ro", "nosuid", "noexec", "nodev", "rprivate"]));
    let seen = c.report();
    let mount = seen["mounts"].as_array().unwrap().iter().find(|mount| mount["at"] == "/v").unwrap().clone();
    let options = &mount["options"];
    for option in ["ro", "nosuid", "nodev", "noexec", "idmapped"] {
        assert!(options.as_array().unwrap().contains(&json!(option)), "{option}: {options}");
    }
    assert_eq!(c.does("create /v/new x"), ["EROFS"]);
}
