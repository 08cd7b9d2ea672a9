//! A cgroup that the container manages itself: who owns it, what the container can do in it, and that everything which
//! acts on a container acts on what it made there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::sandbox::{Output, Sandbox, cgroup_root, controller, eventually, keel, link, processes_of};
use crate::{needs, tests};

tests![
    the_user_of_a_writable_hierarchy_owns_what_the_kernel_lists,
    without_a_writable_hierarchy_nothing_changes_its_owner,
    an_owner_moves_its_processes_but_not_its_limits,
    a_leaf_takes_the_first_process_and_frees_the_controllers,
    a_leaf_may_lie_deep_and_belongs_to_the_user,
    a_leaf_is_made_without_a_namespace_too,
    an_empty_leaf_is_none,
    a_leaf_outside_is_refused,
    a_create_that_fails_takes_its_leaf_along,
    a_keel_in_a_container_limits_its_own,
    all_commands_act_on_what_a_container_made_below,
];

const LEAF: &str = "run.oci.delegate-cgroup";

/// A sandbox with a writable hierarchy.
fn writable() -> Sandbox {
    let mut c = Sandbox::new();
    c.without_mount("/sys/fs/cgroup");
    c.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
    c
}

fn with_leaf(leaf: &str) -> Sandbox {
    let mut c = writable();
    c.set("/annotations", json!({ LEAF: leaf }));
    c
}

/// The names of a directory of the container's cgroup that this user owns.
fn owned(directory: &Path, uid: u32) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let own = entries.filter(|entry| entry.metadata().unwrap().uid() == uid);
    let mut names: Vec<_> = own.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn delegated(directory: &Path) -> Vec<String> {
    let list = fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap();
    let mut names: Vec<_> =
        list.lines().filter(|name| directory.join(name).exists()).map(str::to_owned).collect();
    names.sort();
    names
}

fn the_user_of_a_writable_hierarchy_owns_what_the_kernel_lists() {
    let mut c = writable();
    c.set("/process/user", json!({"uid": 1234, "gid": 5}));
    c.created();
    let cgroup = fs::metadata(c.cgroup()).unwrap();
    assert_eq!((cgroup.uid(), cgroup.gid()), (1234, 0));
    assert_eq!(owned(&c.cgroup(), 1234), delegated(&c.cgroup()));
    assert!(owned(&c.cgroup(), 0).contains(&"cgroup.freeze".to_owned()));
}

fn without_a_writable_hierarchy_nothing_changes_its_owner() {
    let at = |destination: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": "cgroup", "source": source, "options": options});
    for (mount, namespace) in [
        (at("/sys/fs/cgroup", "cgroup", &["ro"]), true),
        (at("/sys/fs/cgroup", "cgroup", &[]), false),
        (at("/cgroup", "cgroup", &[]), true),
        (at("/sys/fs/cgroup", "other", &[]), true),
    ] {
        let mut c = Sandbox::new();
        c.without_mount("/sys/fs/cgroup").mount(mount.clone()).set("/process/user/uid", 1234);
        if !namespace {
            c.without_namespace("cgroup");
        }
        c.created();
        assert_eq!(fs::metadata(c.cgroup()).unwrap().uid(), 0, "{mount}");
        assert_eq!(owned(&c.cgroup(), 1234), [""; 0], "{mount}");
    }
}

fn an_owner_moves_its_processes_but_not_its_limits() {
    let mut c = writable();
    c.set("/process/user", json!({"uid": 1234, "gid": 1234}));
    let seen = c.does(
        "mkdir /sys/fs/cgroup/a ; write /sys/fs/cgroup/a/cgroup.procs 0 ; \
         write /sys/fs/cgroup/a/cgroup.max.depth 1 ; write /sys/fs/cgroup/cgroup.max.depth 1 ; \
         write /sys/fs/cgroup/cgroup.freeze 1 ; cat /proc/self/cgroup",
    );
    assert_eq!(seen[..5], ["ok", "ok", "ok", "EACCES", "EACCES"]);
    assert!(seen.contains(&"0::/a".to_owned()), "{seen:?}");
}

fn words(text: &str) -> Vec<String> {
    let mut words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
    words.sort();
    words
}

fn a_leaf_takes_the_first_process_and_frees_the_controllers() {
    needs!(keel());
    let mut c = with_leaf("init");
    let seen = c.does(
        "mkdir /sys/fs/cgroup/b ; cat /proc/self/cgroup ; echo has ; cat /sys/fs/cgroup/b/cgroup.controllers",
    );
    assert!(seen[0] == "ok" && seen.contains(&"0::/init".to_owned()), "{seen:?}");
    c.created();
    let list = |name: &str| words(&fs::read_to_string(c.cgroup().join(name)).unwrap());
    assert_eq!((list("cgroup.procs"), list("init/cgroup.procs")), (vec![], vec![c.pid().to_string()]));
    assert_eq!(list("cgroup.subtree_control"), list("cgroup.controllers"));
    let below = seen.split(|line| line == "has").next_back().unwrap();
    assert_eq!(words(&below.concat()), list("cgroup.controllers"));
}

fn a_leaf_may_lie_deep_and_belongs_to_the_user() {
    needs!(keel());
    let mut c = with_leaf("a/b");
    c.set("/process/user/uid", 1234);
    c.created();
    let list = |name: &str| words(&fs::read_to_string(c.cgroup().join(name)).unwrap());
    assert_eq!(list("a/b/cgroup.procs"), [c.pid().to_string()]);
    for (below, inside) in [("", Some("a")), ("a", Some("b")), ("a/b", None)] {
        let directory = c.cgroup().join(below);
        let mut expected = delegated(&directory);
        expected.extend(inside.map(str::to_owned));
        expected.sort();
        assert_eq!(owned(&directory, 1234), expected, "{below}");
    }
    assert_eq!(list("a/cgroup.subtree_control"), list("cgroup.controllers"));
}

fn a_leaf_is_made_without_a_namespace_too() {
    needs!(keel());
    let mut c = with_leaf("init");
    c.without_namespace("cgroup");
    let seen = c.does("cat /proc/self/cgroup ; ls /sys/fs/cgroup/init");
    assert!(seen.contains(&format!("0::{}/init", c.cgroup_name())), "{seen:?}");
    assert!(seen.last().unwrap().contains("cgroup.procs"), "{seen:?}");
}

fn an_empty_leaf_is_none() {
    let seen = with_leaf("").does("cat /proc/self/cgroup");
    assert!(seen.contains(&"0::/".to_owned()), "{seen:?}");
}

fn a_leaf_outside_is_refused() {
    needs!(keel());
    for leaf in ["..", "a/../../b", "/a", "a//b", "a/.", "a/"] {
        with_leaf(leaf).refused(&format!("/annotations/{LEAF}"));
    }
}

fn a_create_that_fails_takes_its_leaf_along() {
    needs!(keel());
    let mut c = with_leaf("a/b");
    c.set("/process/cwd", "/payload").refused("/process/cwd");
    // Also when the cgroup was there before.
    fs::create_dir(c.cgroup()).unwrap();
    c.refused("/process/cwd");
}

/// A container with a keel in it, and the bundle `/inner` for that to run.
fn with_keel(leaf: &str, inner: &Sandbox) -> Sandbox {
    let mut c = with_leaf(leaf);
    let all = json!([
        "CAP_SYS_ADMIN",
        "CAP_BPF",
        "CAP_NET_ADMIN",
        "CAP_MKNOD",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
        "CAP_NET_BIND_SERVICE"
    ]);
    for set in ["bounding", "effective", "permitted"] {
        c.set(&format!("/process/capabilities/{set}"), all.clone());
    }
    c.unset("/linux/maskedPaths").unset("/linux/readonlyPaths");
    link(&c.runtime, &c.rootfs().join("keel"));
    c.write("/inner/config.json", &inner.config.to_string());
    for name in ["proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(c.rootfs().join("inner/rootfs").join(name)).unwrap();
    }
    link(&std::env::current_exe().unwrap(), &c.rootfs().join("inner/rootfs/payload"));
    fs::create_dir_all(c.rootfs().join("run")).unwrap();
    c.acts("run /keel --root /run/keel run --bundle /inner inner");
    c
}

fn a_keel_in_a_container_limits_its_own() {
    needs!(keel(), controller("hugetlb"));
    let mut cases = BTreeMap::from([(
        "hugetlb.2MB.max",
        json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}),
    )]);
    if controller("memory").is_ok() {
        cases.insert("memory.max", json!({"memory": {"limit": 33554432}}));
    }
    for (file, resources) in cases {
        let value = if file == "memory.max" { "33554432" } else { "4194304" };
        let mut inner = Sandbox::new();
        inner.set("/linux/cgroupsPath", "/nested/inner").set("/linux/resources", resources.clone());
        inner.acts(&format!("cat /sys/fs/cgroup/{file} ; cat /proc/self/cgroup"));
        let mut c = with_keel("init", &inner);
        // The controller has to be the outer one's first.
        let mut unlimited = resources;
        set_numbers(&mut unlimited, 268435456);
        c.set("/linux/resources", unlimited);
        let output = c.run().ok();
        assert_eq!(output.lines()[0], value, "{output:?}");
        assert!(output.lines().contains(&"0::/"), "{output:?}");
        // Without the leaf the outer container's own process stands in the way, and the error says so.
        c.set("/annotations", json!({}));
        let error = c.run().fails();
        assert!(error.contains("it has processes of its own"), "{error}");
    }
}

fn set_numbers(value: &mut Value, to: u64) {
    match value {
        Value::Number(_) => *value = to.into(),
        Value::Array(items) => items.iter_mut().for_each(|item| set_numbers(item, to)),
        Value::Object(map) => map.values_mut().for_each(|item| set_numbers(item, to)),
        _ => {}
    }
}

fn all_commands_act_on_what_a_container_made_below() {
    needs!(keel());
    let mut inner = Sandbox::new();
    inner.set("/linux/cgroupsPath", "/nested/inner").acts("spawn 1 ; pause");
    let c = with_keel("init", &inner);
    c.created().start().ok();
    c.wait_printed("ok");
    // keel in the container, and the inner container's two.
    eventually("all three are there", || processes_of(&c.id).len() == 3);
    let ps: Output = c.keel(&["ps", "--format", "json", &c.id]).ok();
    assert_eq!(ps.json().as_array().unwrap().len(), 3);

    c.keel(&["pause", &c.id]).ok();
    let events = |below: &str| fs::read_to_string(c.cgroup().join(below).join("cgroup.events")).unwrap();
    assert!(events("nested/inner").contains("frozen 1") && events("init").contains("frozen 1"));
    c.keel(&["resume", &c.id]).ok();
    assert!(!events("nested/inner").contains("frozen 1"));

    let depth = json!({"unified": {"cgroup.max.depth": "9"}});
    let file = c.host_file("resources.json", &depth.to_string());
    c.keel(&["update", "--resources", file.to_str().unwrap(), &c.id]).ok();
    let depth = |below: &str| fs::read_to_string(c.cgroup().join(below).join("cgroup.max.depth")).unwrap();
    assert_eq!((depth("").as_str(), depth("nested").as_str()), ("9\n", "max\n"));

    c.keel(&["kill", "--all", &c.id, "KILL"]).ok();
    eventually("none is left", || processes_of(&c.id).is_empty());
    c.delete().ok();
    assert!(!cgroup_root().unwrap().join(&c.id).exists());
    assert_eq!(c.left(), Vec::<String>::new());
}
