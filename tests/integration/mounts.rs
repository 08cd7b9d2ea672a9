//! /mounts: order, sources, destinations, and the ways in which an image tries to lead them astray.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::swap::{swaps, while_swapped};
use crate::tests;

tests![
    the_default_mounts_have_their_types,
    a_bind_shows_the_hosts_directory,
    a_bind_source_is_relative_to_the_bundle,
    a_file_is_bound_over_a_missing_or_existing_file,
    a_missing_destination_is_made_with_its_parents,
    bind_takes_one_mount_and_rbind_the_tree,
    a_type_is_no_bind_without_the_option,
    later_mounts_cover_earlier_ones,
    a_relative_destination_is_below_the_root,
    a_tmpfs_takes_its_options,
    a_tmpfs_takes_mode_and_owner_of_the_directory_it_covers,
    tmpcopyup_fills_a_tmpfs_with_what_it_covers,
    the_cgroup_mount_shows_the_containers_cgroup,
    the_hosts_root_can_be_bound,
    a_missing_bind_source_is_refused,
    a_mount_without_destination_is_refused,
    an_unknown_file_system_is_refused,
    a_bad_file_system_option_is_refused,
    a_directory_over_a_file_is_refused,
    a_destination_with_a_symlink_stays_inside,
    a_dangling_symlink_stays_inside,
    a_file_is_bound_where_a_dangling_symlink_leads,
    a_file_is_bound_through_var_run,
    a_socket_a_fifo_and_a_device_are_bound,
    a_symlinked_proc_or_sys_is_refused,
    a_symlinked_dev_never_reaches_the_host,
    a_destination_with_dotdot_stays_inside,
    mounts_into_a_volume_stay_in_the_volume,
    a_volume_over_proc_is_refused,
    a_swapped_volume_never_reaches_the_host,
    without_a_cgroup_namespace_only_the_own_cgroup_is_seen,
    a_link_into_proc_is_no_destination,
];

fn points(report: &Value) -> Vec<(String, String)> {
    let mounts = report["mounts"].as_array().unwrap().iter();
    mounts.map(|m| (m["at"].as_str().unwrap().to_owned(), m["type"].as_str().unwrap().to_owned())).collect()
}

fn bind(source: &Path, destination: &str) -> Value {
    json!({"destination": destination, "type": "none", "source": source, "options": ["bind"]})
}

fn tmpfs(destination: &str) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"})
}

fn the_default_mounts_have_their_types() {
    let mut c = Sandbox::new();
    let seen = c.report();
    for (at, kind) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
    ] {
        assert!(points(&seen).contains(&(at.into(), kind.into())), "{at} {kind}: {seen:#}");
    }
}

fn a_bind_shows_the_hosts_directory() {
    let mut c = Sandbox::new();
    let file = c.host_file("volume/file", "from the host\n");
    c.mount(bind(file.parent().unwrap(), "/volume"));
    assert_eq!(c.does("cat /volume/file ; create /volume/new inside"), ["from the host", "ok"]);
    assert_eq!(fs::read_to_string(file.with_file_name("new")).unwrap(), "inside");
}

fn a_bind_source_is_relative_to_the_bundle() {
    let mut c = Sandbox::new();
    fs::create_dir(c.bundle().join("volume")).unwrap();
    fs::write(c.bundle().join("volume/file"), "relative").unwrap();
    c.mount(bind(Path::new("volume"), "/volume"));
    assert_eq!(c.does("cat /volume/file"), ["relative"]);
}

fn a_file_is_bound_over_a_missing_or_existing_file() {
    let mut c = Sandbox::new();
    let file = c.host_file("file", "host\n");
    c.write("/there", "image\n");
    c.mount(bind(&file, "/there")).mount(bind(&file, "/etc/made/file"));
    assert_eq!(c.does("cat /there ; cat /etc/made/file"), ["host", "host"]);
    assert_eq!(fs::read_to_string(c.rootfs().join("there")).unwrap(), "image\n");
}

fn a_missing_destination_is_made_with_its_parents() {
    let mut c = Sandbox::new();
    c.mount(tmpfs("/a/b/c"));
    assert!(points(&c.report()).contains(&("/a/b/c".into(), "tmpfs".into())));
    assert_eq!(c.stat("/a/b")["mode"], "0755");
}

fn bind_takes_one_mount_and_rbind_the_tree() {
    let mut c = Sandbox::new();
    let volume = c.host_dir("volume/sub");
    mount(Some("x"), &volume, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(volume.join("deep"), "").unwrap();
    let tree = volume.parent().unwrap();
    c.mount(bind(tree, "/one")).mount(json!({"destination": "/all", "source": tree, "options": ["rbind"]}));
    c.acts("ls /one/sub ; ls /all/sub").write_config();
    assert_eq!(c.keel(&["run", &c.id]).ok().lines(), ["", "deep"]);
    nix::mount::umount(&volume).unwrap();
}

fn a_type_is_no_bind_without_the_option() {
    let mut c = Sandbox::new();
    let volume = c.host_dir("volume");
    c.mount(json!({"destination": "/volume", "type": "bind", "source": volume})).refused("/mounts/7");
}

fn later_mounts_cover_earlier_ones() {
    let mut c = Sandbox::new();
    let (first, second) = (c.host_file("1/file", "first"), c.host_file("2/file", "second"));
    c.mount(bind(first.parent().unwrap(), "/x")).mount(bind(second.parent().unwrap(), "/x"));
    assert_eq!(c.does("cat /x/file"), ["second"]);
}

fn a_relative_destination_is_below_the_root() {
    let mut c = Sandbox::new();
    c.mount(tmpfs("relative/place")).acts("report");
    c.write_config();
    // Deprecated by the spec: that it warns is right.
    let output = c.keel(&["--log", "/dev/null", "run", &c.id]).ok();
    assert!(points(&output.json()).contains(&("/relative/place".into(), "tmpfs".into())));
}

fn a_tmpfs_takes_its_options() {
    let mut c = Sandbox::new();
    let options = ["nosuid", "noexec", "mode=1750", "size=64k", "uid=5", "gid=6"];
    c.mount(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": options}));
    let stat = c.stat("/t");
    assert_eq!(stat, json!({"type": "directory", "mode": "1750", "uid": 5, "gid": 6}));
    let seen = c.report();
    let mount = seen["mounts"].as_array().unwrap().iter().find(|m| m["at"] == "/t").unwrap();
    assert_eq!(mount["options"], json!(["rw", "nosuid", "noexec", "relatime"]));
    assert!(mount["super"].as_array().unwrap().contains(&json!("size=64k")), "{mount}");
}

fn a_tmpfs_takes_mode_and_owner_of_the_directory_it_covers() {
    let mut c = Sandbox::new();
    fs::create_dir(c.rootfs().join("covered")).unwrap();
    fs::set_permissions(c.rootfs().join("covered"), std::os::unix::fs::PermissionsExt::from_mode(0o1711))
        .unwrap();
    c.mount(tmpfs("/covered"));
    assert_eq!(c.stat("/covered")["mode"], "1711");
}

fn tmpcopyup_fills_a_tmpfs_with_what_it_covers() {
    let mut c = Sandbox::new();
    c.write("/data/deep/file", "kept\n");
    c.symlink("deep/file", "/data/link");
    c.mount(json!({"destination": "/data", "type": "tmpfs", "source": "x", "options": ["tmpcopyup"]}));
    assert_eq!(c.does("cat /data/deep/file ; cat /data/link ; create /data/new x"), ["kept", "kept", "ok"]);
    assert!(!c.rootfs().join("data/new").exists());
}

fn the_cgroup_mount_shows_the_containers_cgroup() {
    let mut c = Sandbox::new();
    let seen = c.does("open r /sys/fs/cgroup/cgroup.procs ; mkdir /sys/fs/cgroup/mine");
    assert_eq!(seen, ["ok", "EROFS"]);
    assert!(points(&c.report()).contains(&("/sys/fs/cgroup".into(), "cgroup2".into())));
    assert_eq!(c.report()["cgroup"].as_str().unwrap().lines().last(), Some("0::/"));
}

/// In crun 1.23 this bound the container's own root: the source was looked up after the mounts had begun.
fn the_hosts_root_can_be_bound() {
    let mut c = Sandbox::new();
    c.mount(json!({"destination": "/host", "source": "/", "options": ["rbind", "ro"]}));
    let config = format!("/host{}", c.bundle().join("config.json").display());
    assert_eq!(c.stat(&config)["type"], "file");
}

fn a_missing_bind_source_is_refused() {
    let mut c = Sandbox::new();
    let error = c.mount(bind(Path::new("/nonexistent/volume"), "/v")).refused("/mounts/7");
    assert!(error.contains("/nonexistent/volume"), "{error}");
    assert!(!c.rootfs().join("v").exists(), "a refused mount leaves no directory in the image");
}

fn a_mount_without_destination_is_refused() {
    Sandbox::new().mount(json!({"type": "tmpfs"})).refused("/mounts/7/destination");
}

fn an_unknown_file_system_is_refused() {
    let mut c = Sandbox::new();
    let error =
        c.mount(json!({"destination": "/x", "type": "nonesuchfs", "source": "x"})).refused("/mounts/7");
    assert!(error.contains("nonesuchfs"), "{error}");
}

fn a_bad_file_system_option_is_refused() {
    let mut c = Sandbox::new();
    c.mount(json!({"destination": "/x", "type": "tmpfs", "source": "x", "options": ["nr_blocks=many"]}));
    // Which of a dozen options it is only the kernel can say, and it does so through the descriptor.
    let error = c.refused("/mounts/7");
    assert!(error.contains("Bad value for 'nr_blocks'"), "{error}");
}

fn a_directory_over_a_file_is_refused() {
    let mut c = Sandbox::new();
    c.write("/file", "");
    c.mount(tmpfs("/file")).refused("/mounts/7");
}

/// The host's directory that an image tries to reach, with one file in it.
fn decoy(c: &Sandbox) -> std::path::PathBuf {
    c.host_file("decoy/secret", "secret");
    c.dir.join("host/decoy")
}

#[track_caller]
fn assert_untouched(decoy: &Path) {
    let names: Vec<_> = fs::read_dir(decoy).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
    assert_eq!(fs::read_to_string(decoy.join("secret")).unwrap(), "secret");
}

/// CVE-2021-30465 without the race: the link is simply there.
fn a_destination_with_a_symlink_stays_inside() {
    let mut c = Sandbox::new();
    let decoy = decoy(&c);
    c.symlink(decoy.to_str().unwrap(), "/link");
    c.symlink(&format!("../../../../../../../..{}", decoy.display()), "/climb");
    // Where the links lead inside.
    fs::create_dir_all(c.rootfs().join(decoy.strip_prefix("/").unwrap())).unwrap();
    c.mount(tmpfs("/link/made")).mount(tmpfs("/climb/also"));
    let seen = points(&c.report());
    for name in ["made", "also"] {
        assert!(seen.contains(&(format!("{}/{name}", decoy.display()), "tmpfs".into())), "{seen:?}");
    }
    assert_untouched(&decoy);
}

fn a_dangling_symlink_stays_inside() {
    let mut c = Sandbox::new();
    let (decoy, file) = (decoy(&c), c.host_file("file", "bound"));
    c.symlink(decoy.join("planted").to_str().unwrap(), "/dangling");
    c.mount(bind(&file, "/dangling")).acts("cat /dangling");
    assert_eq!(c.run().ok().stdout, "bound");
    assert_untouched(&decoy);
}

/// Images with systemd have /etc/resolv.conf -> ../run/systemd/resolve/stub-resolv.conf, and no /run to speak of.
fn a_file_is_bound_where_a_dangling_symlink_leads() {
    for target in ["../run/systemd/stub", "/run/systemd/stub", "../../../../run/systemd/../systemd/stub"] {
        let mut c = Sandbox::new();
        let file = c.host_file("file", "bound\n");
        c.symlink(target, "/etc/resolv.conf");
        c.mount(bind(&file, "/etc/resolv.conf"));
        assert_eq!(c.does("cat /etc/resolv.conf ; cat /run/systemd/stub"), ["bound", "bound"], "{target}");
        assert_eq!(fs::read_to_string(c.rootfs().join("run/systemd/stub")).unwrap(), "");
    }
    let mut c = Sandbox::new();
    let file = c.host_file("file", "bound");
    c.symlink("loop", "/loop");
    let error = c.mount(bind(&file, "/loop")).refused("/mounts/7");
    assert!(error.contains("(40)"), "{error}");
}

fn a_file_is_bound_through_var_run() {
    for make_run in [true, false] {
        let mut c = Sandbox::new();
        let file = c.host_file("file", "bound\n");
        c.symlink("/run", "/var/run");
        if make_run {
            fs::create_dir(c.rootfs().join("run")).unwrap();
        }
        c.mount(bind(&file, "/var/run/docker.sock"));
        assert_eq!(c.does("cat /run/docker.sock"), ["bound"]);
    }
}

fn a_socket_a_fifo_and_a_device_are_bound() {
    let mut c = Sandbox::new();
    let host = c.host_dir("special");
    drop(std::os::unix::net::UnixListener::bind(host.join("socket")).unwrap());
    nix::unistd::mkfifo(&host.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    c.mount(bind(&host.join("socket"), "/socket")).mount(bind(&host.join("fifo"), "/dev/fifo"));
    c.mount(bind(Path::new("/dev/full"), "/opt/full"));
    assert_eq!(c.stat("/socket")["type"], "socket");
    assert_eq!(c.stat("/dev/fifo")["type"], "p");
    assert_eq!(c.stat("/opt/full")["rdev"], "1:7");
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-54867.
fn a_symlinked_proc_or_sys_is_refused() {
    for (index, path) in [(0, "/proc"), (5, "/sys")] {
        for target in ["/tmp", "tmp", "/nowhere"] {
            let c = Sandbox::new();
            c.symlink(target, path);
            c.refused(&format!("/mounts/{index}"));
            assert_eq!(fs::read_dir(c.rootfs().join("tmp")).unwrap().count(), 0, "{path} -> {target}");
        }
    }
}

/// CVE-2026-41579, CVE-2026-47766: refused, or all of it inside.
fn a_symlinked_dev_never_reaches_the_host() {
    for with_tmpfs in [true, false] {
        for climb in ["", "../../../../../../../.."] {
            let mut c = Sandbox::new();
            let decoy = decoy(&c);
            if !with_tmpfs {
                for destination in ["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
                    c.without_mount(destination);
                }
            }
            c.symlink(&format!("{climb}{}", decoy.display()), "/dev");
            let error = c.refused("/linux/devices");
            assert!(error.contains("/dev"), "{error}");
            assert_untouched(&decoy);
        }
    }
}

fn a_destination_with_dotdot_stays_inside() {
    let mut c = Sandbox::new();
    let decoy = decoy(&c);
    c.mount(tmpfs(&format!("/../../../../../../../..{}", decoy.display())));
    assert!(points(&c.report()).contains(&(decoy.display().to_string(), "tmpfs".into())));
    assert_untouched(&decoy);
}

/// A link in a volume that another container wrote.
fn mounts_into_a_volume_stay_in_the_volume() {
    let mut c = Sandbox::new();
    let (decoy, volume) = (decoy(&c), c.host_dir("volume"));
    symlink(&decoy, volume.join("link")).unwrap();
    c.mount(bind(&volume, "/volume")).mount(tmpfs("/volume/link"));
    // The link leads to the path of that name inside.
    assert!(points(&c.report()).contains(&(decoy.display().to_string(), "tmpfs".into())));
    assert_untouched(&decoy);
    assert_eq!(fs::read_link(volume.join("link")).unwrap(), decoy);
}

/// CVE-2019-16884: writes to /proc/self/attr would go elsewhere.
fn a_volume_over_proc_is_refused() {
    let mut c = Sandbox::new();
    let volume = c.host_dir("volume");
    c.mount(bind(&volume, "/proc")).refused("/mounts/7");
    let mut c = Sandbox::new();
    c.without_mount("/proc").mount(tmpfs("/proc")).refused("/mounts/6");
    let mut c = Sandbox::new();
    c.mount(tmpfs("/proc/self")).refused("/mounts/7");
}

/// CVE-2021-30465, CVE-2024-45310: a directory of a shared volume becomes a link between look-up and mount.
/// SWAPS=10000 is the long variant.
fn a_swapped_volume_never_reaches_the_host() {
    let creates = swaps(300);
    let mut c = Sandbox::new();
    let (decoy, volume) = (decoy(&c), c.host_dir("volume"));
    fs::create_dir(volume.join("a")).unwrap();
    symlink(&decoy, volume.join("b")).unwrap();
    c.mount(bind(&volume, "/volume")).mount(tmpfs("/volume/a/made")).mount(tmpfs("/volume/b/made"));
    c.mount(bind(&volume, "/volume/a")).acts("exit 0").write_config();
    let mut ran = 0;
    while_swapped(&volume.join("a"), &volume.join("b"), || {
        for _ in 0..creates {
            // Any outcome is right, but for one that reaches out of the volume.
            ran += usize::from(c.keel(&["run", &c.id]).code == 0);
            if c.left() != Vec::<String>::new() || fs::read_dir(&decoy).unwrap().count() != 1 {
                break;
            }
        }
    });
    assert_untouched(&decoy);
    assert_eq!(c.left(), Vec::<String>::new());
    assert!(ran > 0);
}

/// CVE-2023-25809: the hierarchy of the host would be writable.
fn without_a_cgroup_namespace_only_the_own_cgroup_is_seen() {
    let mut c = Sandbox::new();
    c.without_namespace("cgroup").without_mount("/sys/fs/cgroup");
    c.mount(
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}),
    );
    let seen = c.report();
    let mount = seen["mounts"].as_array().unwrap().iter().find(|m| m["at"] == "/sys/fs/cgroup").unwrap();
    assert_eq!((&mount["type"], &mount["root"]), (&json!("cgroup2"), &json!(c.cgroup_name())));
    assert_eq!(c.stat(&format!("/sys/fs/cgroup/{}", c.id))["error"], "ENOENT");
}

/// CVE-2019-16884 by a link in the image.
fn a_link_into_proc_is_no_destination() {
    for (link, destination) in [("/proc/self/attr", "/link/exec"), ("/proc/sys/kernel/domainname", "/link")] {
        let mut c = Sandbox::new();
        let file = c.host_file("file", "");
        c.symlink(link, "/link");
        c.mount(bind(&file, destination)).refused("/mounts/7");
    }
}
