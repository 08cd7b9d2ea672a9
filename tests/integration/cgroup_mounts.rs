//! What a container sees of the cgroup hierarchy, and what it can change there.

use std::fs;

use serde_json::json;

use crate::sandbox::{Sandbox, cgroup_root, keel};
use crate::{needs, tests};

tests![
    with_a_namespace_the_own_cgroup_is_the_top,
    a_read_only_hierarchy_cannot_be_changed,
    a_writable_hierarchy_is_the_containers_own,
    the_top_of_a_namespace_keeps_its_limits_where_the_host_delegates,
    without_a_namespace_the_own_cgroup_alone_is_mounted,
    without_a_namespace_the_cgroups_of_others_are_out_of_reach,
    a_joined_namespace_is_seen_as_it_is,
];

fn with_mount(options: &[&str], namespace: bool) -> Sandbox {
    let mut c = Sandbox::new();
    c.without_mount("/sys/fs/cgroup");
    c.mount(
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}),
    );
    if !namespace {
        c.without_namespace("cgroup");
    }
    c
}

/// Root of the mount, and where the payload is, as it sees it.
fn seen(c: &mut Sandbox) -> (String, String) {
    let report = c.report();
    let mounts = report["mounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["at"] == "/sys/fs/cgroup").unwrap();
    assert_eq!(mount["type"], "cgroup2");
    let own = report["cgroup"].as_str().unwrap().lines().find_map(|line| line.strip_prefix("0::"));
    (mount["root"].as_str().unwrap().to_owned(), own.unwrap().to_owned())
}

fn with_a_namespace_the_own_cgroup_is_the_top() {
    for options in [&["ro"][..], &["rw"]] {
        assert_eq!(seen(&mut with_mount(options, true)), ("/".into(), "/".into()));
    }
}

fn a_read_only_hierarchy_cannot_be_changed() {
    for namespace in [true, false] {
        let mut c = with_mount(&["ro"], namespace);
        let acts =
            "mkdir /sys/fs/cgroup/a ; open w /sys/fs/cgroup/cgroup.procs ; open w /sys/fs/cgroup/cgroup.kill";
        assert_eq!(c.does(acts), ["EROFS", "EROFS", "EROFS"], "namespace: {namespace}");
    }
}

fn a_writable_hierarchy_is_the_containers_own() {
    for namespace in [true, false] {
        let mut c = with_mount(&[], namespace);
        c.acts("mkdir /sys/fs/cgroup/mine ; write /sys/fs/cgroup/mine/cgroup.procs 0 ; pause").created();
        c.start().ok();
        c.wait_printed("ok\nok");
        let procs = fs::read_to_string(c.cgroup().join("mine/cgroup.procs")).unwrap();
        assert_eq!(procs.trim_end(), c.pid().to_string());
    }
}

/// Whether the host's hierarchy is mounted so that the top of a cgroup namespace is a border (cgroups(7)).
fn nsdelegate() -> Result<(), String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let delegates = mounts.lines().any(|line| line.contains(" - cgroup2 ") && line.contains("nsdelegate"));
    delegates.then_some(()).ok_or("needs a cgroup2 mount with nsdelegate".into())
}

fn the_top_of_a_namespace_keeps_its_limits_where_the_host_delegates() {
    needs!(nsdelegate());
    let mut c = with_mount(&[], true);
    let acts = "write /sys/fs/cgroup/cgroup.max.depth 1 ; write /sys/fs/cgroup/cgroup.freeze 1 ; \
                mkdir /sys/fs/cgroup/a ; write /sys/fs/cgroup/a/cgroup.max.depth 1";
    assert_eq!(c.does(acts), ["EPERM", "EPERM", "ok", "ok"]);
}

fn without_a_namespace_the_own_cgroup_alone_is_mounted() {
    needs!(keel());
    for options in [&["ro"][..], &["rw"]] {
        let mut c = with_mount(options, false);
        let own = c.cgroup_name();
        assert_eq!(seen(&mut c), (own.clone(), own));
    }
}

/// CVE-2023-25809: the host's hierarchy itself was bound in, and writable.
fn without_a_namespace_the_cgroups_of_others_are_out_of_reach() {
    needs!(keel());
    let mut c = with_mount(&[], false);
    let other = cgroup_root().unwrap().join(format!("{}-other", c.id));
    fs::create_dir(&other).unwrap();
    let name = other.file_name().unwrap().to_str().unwrap();
    let seen = c.does(&format!(
        "stat /sys/fs/cgroup/{name} ; stat /sys/fs/cgroup/../{name} ; ls /sys/fs/cgroup ; mkdir /sys/fs/cgroup/../{name}/a ; \
         open w /sys/fs/cgroup/../cgroup.procs"
    ));
    let empty = fs::read_dir(&other).unwrap().flatten().all(|entry| !entry.path().is_dir());
    fs::remove_dir(&other).unwrap();
    assert!(empty);
    assert_eq!(seen[..2], [r#"{"error":"ENOENT"}"#; 2]);
    assert!(!seen[2].contains("slice") && !seen[2].contains("keel-test"), "{seen:?}");
    assert_eq!(seen[3..], ["ENOENT", "ENOENT"]);
}

fn a_joined_namespace_is_seen_as_it_is() {
    needs!(keel());
    let mut c = with_mount(&["ro"], true);
    c.without_namespace("cgroup");
    c.set(
        "/linux/namespaces/-",
        json!({"type": "cgroup", "path": format!("/proc/{}/ns/cgroup", std::process::id())}),
    );
    // It is the runtime's own: the container's cgroup is bound, as without one.
    let own = c.cgroup_name();
    let (root, path) = seen(&mut c);
    assert_eq!(path, own);
    assert_eq!(root, "/", "a mount of its own, of the namespace that was joined");
}
