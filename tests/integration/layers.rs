//! An overlay with the option `idmap`: its layers, which containers have in common, belong to each one's own root.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::sandbox::{HOST_ROOT, Sandbox, copy, program};
use crate::{needs, tests};

tests![
    layers_belong_to_the_containers_root,
    what_is_written_belongs_to_the_containers_users_on_the_host,
    what_is_copied_up_keeps_its_owner,
    containers_with_other_mappings_share_layers,
    file_capabilities_hold_and_are_copied_up,
    whiteouts_and_opaque_directories_hide_what_is_below,
    directories_are_renamed_and_removed,
    layers_are_named_in_every_way,
    layers_need_no_directory_in_common,
    a_layer_may_be_a_mount_but_not_have_mounts_below,
    data_only_layers_are_mapped,
    an_overlay_below_the_root_is_mapped,
    an_overlay_has_mappings_of_its_own,
    a_joined_user_namespace_maps_the_layers,
    the_layers_are_nowhere_to_be_seen_in_the_container,
    layers_are_mapped_without_pivot_root,
    exec_sees_the_mapped_layers,
    a_missing_layer_is_named,
    a_layer_that_cannot_be_mapped_is_named,
    without_a_user_namespace_no_layer_is_mapped,
    in_a_joined_mount_namespace_layers_are_mapped,
];

/// An image in two layers, `base` below `top`, all of it the host's root's but /etc/file, and what a container needs to
/// have a writable layer of its own.
fn image() -> Sandbox {
    let c = Sandbox::new();
    c.busybox();
    c.write("/etc/file", "base\n");
    chown(c.rootfs().join("etc/file"), Some(7), Some(8)).unwrap();
    let base = c.host_dir("layers/base").join("fs");
    fs::rename(c.rootfs(), &base).unwrap();
    fs::create_dir_all(layer(&c, "top").join("etc")).unwrap();
    fs::write(layer(&c, "top").join("etc/top"), "top\n").unwrap();
    writable_layer(&c, HOST_ROOT);
    fs::create_dir(c.rootfs()).unwrap();
    c
}

fn layer(c: &Sandbox, name: &str) -> PathBuf {
    c.host_dir(&format!("layers/{name}")).join("fs")
}

fn writable_layer(c: &Sandbox, root: u32) {
    for name in ["upper", "work"] {
        fs::create_dir(c.bundle().join(name)).unwrap();
    }
    chown(c.bundle().join("upper"), Some(root), Some(root)).unwrap();
}

fn lower(path: &Path) -> String {
    format!("lowerdir+={}", path.display())
}

/// A container of that image in a user namespace.
fn container() -> Sandbox {
    let mut c = image();
    let layers = ["top", "base"].map(|name| lower(&layer(&c, name)));
    over(&mut c, &[&layers[0], &layers[1], "upperdir=upper", "workdir=work", "idmap"]);
    map(&mut c, HOST_ROOT);
    c
}

fn over(c: &mut Sandbox, options: &[&str]) {
    let overlay = json!({"destination": "/", "type": "overlay", "source": "overlay", "options": options});
    c.config["mounts"].as_array_mut().unwrap().insert(0, overlay);
}

fn mapping(host: u32) -> Value {
    json!([{"containerID": 0, "hostID": host, "size": 65536}])
}

fn map(c: &mut Sandbox, host: u32) {
    c.set("/linux/namespaces/-", json!({"type": "user"}));
    c.set("/linux/uidMappings", mapping(host)).set("/linux/gidMappings", mapping(host));
    for capability in ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"] {
        for set in ["bounding", "effective", "permitted"] {
            c.set(&format!("/process/capabilities/{set}/-"), capability);
        }
    }
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let stat =
        fs::symlink_metadata(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()));
    (stat.uid(), stat.gid())
}

fn upper(c: &Sandbox, path: &str) -> PathBuf {
    c.bundle().join("upper").join(path)
}

#[track_caller]
fn shell(c: &mut Sandbox, script: &str) -> String {
    c.args(&["/bin/sh", "-ec", &script.replace('@', "/bin/busybox ")]).run().ok().stdout
}

fn ids(c: &mut Sandbox, path: &str) -> (u64, u64) {
    let stat = c.stat(path);
    (stat["uid"].as_u64().unwrap_or(u64::MAX), stat["gid"].as_u64().unwrap_or(u64::MAX))
}

fn layers_belong_to_the_containers_root() {
    let mut c = container();
    assert_eq!(["/", "/payload", "/etc/top"].map(|path| ids(&mut c, path)), [(0, 0); 3]);
    assert_eq!(ids(&mut c, "/etc/file"), (7, 8));
    assert_eq!(c.does("cat /etc/file ; cat /etc/top"), ["base", "top"]);
    // The control: without it they are nobody's.
    c.config["mounts"][0]["options"].as_array_mut().unwrap().pop();
    assert_eq!(ids(&mut c, "/etc/top"), (65534, 65534));
}

fn what_is_written_belongs_to_the_containers_users_on_the_host() {
    let mut c = container();
    shell(&mut c, "echo x >/new; @mkdir /dir; @chown 5:6 /new; echo y >>/etc/file");
    assert_eq!(owner(upper(&c, "new")), (HOST_ROOT + 5, HOST_ROOT + 6));
    assert_eq!(owner(upper(&c, "dir")), (HOST_ROOT, HOST_ROOT));
    assert_eq!(owner(upper(&c, "etc/file")), (HOST_ROOT + 7, HOST_ROOT + 8));
    assert_eq!(owner(upper(&c, "etc")), (HOST_ROOT, HOST_ROOT));
    assert_eq!(owner(layer(&c, "base").join("etc/file")), (7, 8));
    assert_eq!(fs::read_to_string(layer(&c, "base").join("etc/file")).unwrap(), "base\n");
    assert_eq!(["/new", "/dir", "/etc/file"].map(|path| ids(&mut c, path)), [(5, 6), (0, 0), (7, 8)]);
}

fn what_is_copied_up_keeps_its_owner() {
    let mut c = container();
    let printed = shell(&mut c, "@chmod 600 /etc/file; @chown 9 /etc/file; @stat -c %u:%g:%a /etc/file");
    assert_eq!(printed, "9:8:600\n");
    assert_eq!(owner(upper(&c, "etc/file")), (HOST_ROOT + 9, HOST_ROOT + 8));
    // With all its names that are made up here.
    let printed = shell(&mut c, "@ln /etc/top /etc/hard; @chown 3 /etc/hard; @stat -c %u:%h /etc/top");
    assert_eq!((printed.as_str(), owner(upper(&c, "etc/top")).0), ("3:2\n", HOST_ROOT + 3));
    // A user who is not the owner may change neither.
    c.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    assert_eq!(c.does("open w /etc/top ; create /etc/new x ; open r /etc/file"), ["EACCES"; 3]);
}

fn containers_with_other_mappings_share_layers() {
    let mut one = container();
    let layers = ["top", "base"].map(|name| lower(&layer(&one, name)));
    let mut two = Sandbox::new();
    writable_layer(&two, 500_000);
    over(&mut two, &[&layers[0], &layers[1], "upperdir=upper", "workdir=work", "idmap"]);
    map(&mut two, 500_000);
    one.running();
    two.running();
    for (c, host) in [(&one, HOST_ROOT), (&two, 500_000)] {
        let stat: Value = c.exec(&[], "stat /etc/file").ok().json();
        assert_eq!((&stat["uid"], &stat["gid"]), (&json!(7), &json!(8)));
        assert_eq!(c.exec(&[], "write /etc/file mine").ok().stdout, "ok\n");
        assert_eq!(owner(upper(c, "etc/file")), (host + 7, host + 8));
    }
    assert_eq!(fs::read_to_string(layer(&one, "base").join("etc/file")).unwrap(), "base\n");
}

fn file_capabilities_hold_and_are_copied_up() {
    needs!(program("setcap"));
    let mut c = container();
    let file = layer(&c, "base").join("capped/payload");
    fs::create_dir(file.parent().unwrap()).unwrap();
    copy(&layer(&c, "base").join("payload"), &file);
    let set = Command::new("setcap").arg("cap_net_bind_service+ep").arg(&file).status();
    assert!(set.unwrap().success());
    c.set("/process/noNewPrivileges", false).set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let effective = |c: &mut Sandbox| {
        c.acts("run /capped/payload report").run().ok().json()["capabilities"]["effective"].clone()
    };
    assert_eq!(effective(&mut c), json!(["CAP_NET_BIND_SERVICE"]));
    c.set("/process/user", json!({"uid": 0, "gid": 0}));
    shell(&mut c, "@touch /capped/payload");
    assert!(upper(&c, "capped/payload").exists());
    c.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    assert_eq!(effective(&mut c), json!(["CAP_NET_BIND_SERVICE"]));
    // On the host they are those of the container's root, and nothing for anybody else.
    let shown = Command::new("getcap").arg("-n").arg(upper(&c, "capped/payload")).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&format!("cap_net_bind_service=ep [rootid={HOST_ROOT}]")), "{shown}");
}

fn whiteouts_and_opaque_directories_hide_what_is_below() {
    needs!(program("setfattr"));
    let mut c = container();
    for name in ["gone", "dir/below", "dir/sub/below"] {
        let path = layer(&c, "base").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    let top = layer(&c, "top");
    fs::create_dir(top.join("dir")).unwrap();
    fs::write(top.join("dir/above"), "").unwrap();
    assert!(Command::new("mknod").arg(top.join("gone")).args(["c", "0", "0"]).status().unwrap().success());
    let opaque = ["-n", "trusted.overlay.opaque", "-v", "y"];
    assert!(Command::new("setfattr").args(opaque).arg(top.join("dir")).status().unwrap().success());
    assert_eq!(c.does("ls /dir ; open r /gone"), ["above", "ENOENT"]);
    // Those that the container makes: it may not set the attribute itself.
    shell(&mut c, "@rm -r /dir /etc/file; @mkdir /dir; echo x >/dir/new");
    assert_eq!(c.does("ls /dir ; open r /etc/file"), ["new", "ENOENT"]);
    assert!(layer(&c, "base").join("etc/file").exists() && top.join("dir/above").exists());
}

fn directories_are_renamed_and_removed() {
    let mut c = container();
    // Of the lower layers: mv copies it, as redirects are not followed.
    shell(&mut c, "@mv /etc /moved; @mv /moved/file /file; @rmdir /tmp");
    assert_eq!(
        c.does("ls /moved ; cat /file ; open r /etc ; open r /tmp"),
        ["top", "base", "ENOENT", "ENOENT"]
    );
    assert_eq!(owner(upper(&c, "file")), (HOST_ROOT + 7, HOST_ROOT + 8));
    // Of the container's own layer.
    shell(&mut c, "@mkdir /a; echo x >/a/x; @mv /a /b");
    assert_eq!(c.does("ls /b"), ["x"]);
}

fn layers_are_named_in_every_way() {
    for named in ["absolute", "relative", "escaped", "long"] {
        let mut c = image();
        let (mut top, base) = (layer(&c, "top"), layer(&c, "base"));
        let options = match named {
            "absolute" => format!("lowerdir={}:{}", top.display(), base.display()),
            "relative" => "lowerdir=../host/layers/top/fs:../host/layers/base/fs".to_owned(),
            "escaped" => {
                let odd = c.host_dir("layers").join("o:d,d");
                fs::rename(&top, &odd).unwrap();
                top = odd;
                format!("lowerdir={}:{}", top.display().to_string().replace(':', "\\:"), base.display())
            }
            _ => {
                let long = c.host_dir(&format!("layers/{0}/{0}", "x".repeat(200))).join("fs");
                fs::rename(&top, &long).unwrap();
                top = long;
                format!("lowerdir={}:{}", top.display(), base.display())
            }
        };
        over(&mut c, &[&options, "upperdir=upper", "workdir=work", "ridmap"]);
        map(&mut c, HOST_ROOT);
        assert_eq!(ids(&mut c, "/etc/top"), (0, 0), "{named}");
        assert_eq!(c.does("write /etc/top x ; cat /etc/file"), ["ok", "base"], "{named}");
        assert_eq!(owner(top.join("etc/top")), (0, 0));
        assert_eq!(owner(upper(&c, "etc/top")), (HOST_ROOT, HOST_ROOT));
    }
}

fn layers_need_no_directory_in_common() {
    let mut c = image();
    // A link that leads out of the directory that they seem to be in.
    let elsewhere = c.host_dir("elsewhere").join("top");
    fs::rename(layer(&c, "top"), &elsewhere).unwrap();
    symlink(&elsewhere, layer(&c, "top")).unwrap();
    let layers = ["top", "base"].map(|name| lower(&layer(&c, name)));
    over(&mut c, &[&layers[0], &layers[1], "upperdir=upper", "workdir=work", "idmap"]);
    map(&mut c, HOST_ROOT);
    assert_eq!(ids(&mut c, "/etc/top"), (0, 0));
    // A single one, and no layer to write to: the other one is empty.
    let (base, empty) = (lower(&layer(&c, "base")), lower(&c.host_dir("empty")));
    c.set("/mounts/0/options", json!([base, "upperdir=upper", "workdir=work", "idmap"]));
    assert_eq!(ids(&mut c, "/etc/file"), (7, 8));
    c.set("/mounts/0/options", json!([empty, base, "idmap"]));
    assert_eq!(c.does("create /new x ; cat /etc/file"), ["EROFS", "base"]);
}

fn a_layer_may_be_a_mount_but_not_have_mounts_below() {
    let mut c = container();
    let (top, below) = (layer(&c, "top"), layer(&c, "base").join("tmp"));
    let mut run = |at: &Path, options: &str| {
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        fs::write(at.join("mounted"), "").unwrap();
        c.acts("ls /etc ; stat /mounted").write_config();
        let output = c.keel(&["run", &c.id]);
        umount2(at, MntFlags::MNT_DETACH).unwrap();
        output
    };
    let output = run(&top, "mode=755").ok();
    let stat: Value = serde_json::from_str(output.lines()[1]).unwrap();
    assert_eq!((output.lines()[0], &stat["uid"]), ("file", &json!(0)));
    let error = run(&below, "").fails();
    assert!(
        error.contains("something is mounted below it") && error.contains("/mounts/0/options/1"),
        "{error}"
    );
}

fn data_only_layers_are_mapped() {
    let mut c = image();
    let data = c.host_dir("data");
    let option = format!(
        "lowerdir={}:{}::{}",
        layer(&c, "top").display(),
        layer(&c, "base").display(),
        data.display()
    );
    over(&mut c, &[&option, "upperdir=upper", "workdir=work", "idmap", "metacopy=on"]);
    map(&mut c, HOST_ROOT);
    assert_eq!((ids(&mut c, "/etc/file"), c.does("cat /etc/file")), ((7, 8), vec!["base".to_owned()]));
}

fn an_overlay_below_the_root_is_mapped() {
    let mut c = Sandbox::new();
    let layers = ["a", "b"].map(|name| c.host_dir(name));
    fs::write(layers[0].join("file"), "x").unwrap();
    writable_layer(&c, HOST_ROOT);
    let layers = layers.each_ref().map(|path| lower(path));
    c.mount(json!({"destination": "/v", "type": "overlay", "source": "overlay",
        "options": [layers[0], layers[1], "upperdir=upper", "workdir=work", "idmap", "nosuid"]}));
    map(&mut c, HOST_ROOT);
    c.give_rootfs();
    assert_eq!((ids(&mut c, "/v/file"), c.does("write /v/file y")), ((0, 0), vec!["ok".to_owned()]));
    assert_eq!(owner(upper(&c, "file")), (HOST_ROOT, HOST_ROOT));
}

fn an_overlay_has_mappings_of_its_own() {
    let mut c = container();
    // The layers' users from 0 on are the container's from 1000 on.
    c.set("/mounts/0/uidMappings", mapping(HOST_ROOT + 1000));
    c.set("/mounts/0/gidMappings", mapping(HOST_ROOT + 1000));
    assert_eq!((ids(&mut c, "/etc/top"), ids(&mut c, "/etc/file")), ((1000, 1000), (1007, 1008)));
}

fn a_joined_user_namespace_maps_the_layers() {
    let mut first = Sandbox::new();
    let pid = first.user_namespace().running().pid();
    let mut c = container();
    c.without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
    c.set("/linux/namespaces/-", json!({"type": "user", "path": format!("/proc/{pid}/ns/user")}));
    assert_eq!(ids(&mut c, "/etc/file"), (7, 8));
}

fn the_layers_are_nowhere_to_be_seen_in_the_container() {
    let mut c = container();
    let seen = c.report();
    let mounts = seen["mounts"].as_array().unwrap().iter();
    let roots: Vec<_> = mounts.filter(|mount| mount["at"] == "/").map(|mount| &mount["type"]).collect();
    assert_eq!(roots, ["overlay"]);
    c.running();
    assert_eq!(c.host_mounts(), [""; 0]);
}

fn layers_are_mapped_without_pivot_root() {
    let mut c = container();
    c.acts("stat /etc/file ; create /new x").write_config();
    let output = c.keel(&["run", "--no-pivot", &c.id]).ok();
    assert!(output.lines()[0].contains("\"uid\":7") && output.lines()[1] == "ok", "{output:?}");
}

fn exec_sees_the_mapped_layers() {
    let mut c = container();
    c.running();
    let stat: Value = c.exec(&["--user", "7"], "stat /etc/file").ok().json();
    assert_eq!((&stat["uid"], &stat["gid"]), (&json!(7), &json!(8)));
    assert_eq!(c.exec(&["--user", "7:8"], "write /etc/file x").ok().stdout, "ok\n");
}

fn a_missing_layer_is_named() {
    let mut c = container();
    c.set("/mounts/0/options/1", "lowerdir+=/nowhere/at/all");
    assert!(c.refused("/mounts/0/options/1").contains("open layer /nowhere/at/all"));
}

fn a_layer_that_cannot_be_mapped_is_named() {
    let mut c = container();
    c.set("/mounts/0/options/1", "lowerdir+=/proc/self/task");
    let error = c.refused("/mounts/0/options/4");
    assert!(
        error.contains("layer /proc/self/task") && error.contains("does not support id-mapped"),
        "{error}"
    );
}

fn without_a_user_namespace_no_layer_is_mapped() {
    let mut c = container();
    c.without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
    c.refused("/mounts/0/options/4");
    c.set("/mounts/0/uidMappings", mapping(5000)).set("/mounts/0/gidMappings", mapping(5000));
    assert!(c.refused("/mounts/0/options/4").contains("only for a container with a user namespace"));
}

fn in_a_joined_mount_namespace_layers_are_mapped() {
    let mut first = Sandbox::new();
    let pid = first.user_namespace().running().pid();
    let mut c = container();
    for (kind, file) in [("user", "user"), ("mount", "mnt")] {
        c.without_namespace(kind);
        c.set("/linux/namespaces/-", json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
    }
    assert_eq!(ids(&mut c, "/etc/file"), (7, 8));
}
