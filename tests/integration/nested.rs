//! keel in a container of keel: of a user, with and without a user namespace of its own, and of root.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::rootless::with_own_id;
use crate::sandbox::{Output, Sandbox, copy, keel, link};
use crate::{needs, tests};

tests![
    a_user_runs_containers_in_containers,
    the_root_of_a_user_namespace_makes_no_second_one,
    a_device_cannot_be_made_in_a_user_namespace,
    an_overlay_works_in_a_user_namespace,
    every_command_works_in_a_container,
    the_state_root_follows_the_user,
    a_privileged_container_runs_containers,
];

const CAPABILITIES: [&str; 15] = [
    "CAP_SYS_ADMIN",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SYS_CHROOT",
    "CAP_NET_ADMIN",
    "CAP_DAC_OVERRIDE",
    "CAP_CHOWN",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_SYS_PTRACE",
    "CAP_NET_BIND_SERVICE",
    "CAP_AUDIT_WRITE",
    // To map root itself.
    "CAP_SETFCAP",
];

/// A container that pauses, with keel, a bundle and room for state in /v, and what runs in it.
struct Outer {
    c: Sandbox,
    dir: PathBuf,
    inner: Sandbox,
}

impl Outer {
    fn new(c: Sandbox) -> Self {
        let dir = c.host_dir("inner");
        let rootfs = dir.join("bundle/rootfs");
        for name in ["proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        link(&c.rootfs().join("payload"), &rootfs.join("payload"));
        copy(&c.runtime, &dir.join("keel"));
        let mut outer = Self { c, dir, inner: Sandbox::new() };
        let inner = &mut outer.inner;
        inner.unset("/linux/cgroupsPath").set("/linux/namespaces/-", json!({"type": "user"}));
        let itself = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
        inner.set("/linux/uidMappings", itself.clone()).set("/linux/gidMappings", itself);
        inner.set("/mounts/2/options", json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666"]));
        inner.acts("report");
        let c = &mut outer.c;
        c.mount(json!({"destination": "/v", "type": "none", "source": outer.dir, "options": ["bind"]}));
        // A proc or sysfs that is covered in parts cannot be mounted again by a user namespace.
        c.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
        c.set("/mounts/5/options", json!(["nosuid", "noexec", "nodev"]));
        for set in ["bounding", "effective", "permitted"] {
            c.set(&format!("/process/capabilities/{set}"), json!(CAPABILITIES));
        }
        c.set("/process/rlimits", json!([]));
        outer
    }

    fn start(mut self) -> Self {
        if self.c.user.is_some() {
            self.c.give_to_user(&self.c.dir.join("host"));
        }
        self.c.running();
        self
    }

    fn write_config(&self) {
        fs::write(self.dir.join("bundle/config.json"), self.inner.config.to_string()).unwrap();
    }

    /// `keel WORDS inner` in the container.
    fn keel(&self, words: &[&str]) -> Output {
        self.write_config();
        let mut args = vec!["exec", "--cwd", "/v/bundle", &*self.c.id, "/v/keel", "--root", "/v/state"];
        args.extend(words);
        self.c.keel(&args)
    }

    fn report(&self) -> Value {
        self.keel(&["run", "inner"]).ok().json()
    }
}

fn a_user_runs_containers_in_containers() {
    needs!(keel());
    let mut outer = Outer::new(with_own_id()).start();
    let seen = outer.report();
    assert_eq!(
        (&seen["pid"], &seen["uid"][0], &seen["uname"]["hostname"]),
        (&json!(1), &json!(0), &json!("sandbox"))
    );
    let user = fs::read_link(format!("/proc/{}/ns/user", outer.c.pid())).unwrap().display().to_string();
    assert_ne!(seen["namespaces"]["user"], user);
    outer.inner.acts("write /dev/null x ; mknod c /tmp/x 1 3 ; create /tmp/y z");
    assert_eq!(outer.keel(&["run", "inner"]).ok().lines(), ["ok", "EPERM", "ok"]);
}

fn the_root_of_a_user_namespace_makes_no_second_one() {
    needs!(keel());
    let mut outer = Outer::new(with_own_id()).start();
    outer.inner.without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
    let seen = outer.report();
    let user = fs::read_link(format!("/proc/{}/ns/user", outer.c.pid())).unwrap().display().to_string();
    assert_eq!((&seen["pid"], &seen["namespaces"]["user"]), (&json!(1), &json!(user)));
    assert_eq!(seen["groups"], json!([]));
}

fn a_device_cannot_be_made_in_a_user_namespace() {
    needs!(keel());
    let mut outer = Outer::new(with_own_id()).start();
    for user in [true, false] {
        if !user {
            outer.inner.without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
        }
        outer
            .inner
            .set("/linux/devices", json!([{"path": "/dev/full", "type": "c", "major": 1, "minor": 7}]));
        outer.inner.acts("write /dev/full x ; open r /dev/zero");
        assert_eq!(outer.keel(&["run", "inner"]).ok().lines(), ["ENOSPC", "ok"]);
        outer.inner.set("/linux/devices/0", json!({"path": "/dev/x", "type": "b", "major": 7, "minor": 0}));
        let error = outer.keel(&["run", "inner"]).stderr;
        assert!(error.contains("use the host's device /dev/x (b 7:0)"), "{error}");
    }
}

fn an_overlay_works_in_a_user_namespace() {
    needs!(keel());
    let mut outer = Outer::new(with_own_id()).start();
    for user in [true, false] {
        if !user {
            outer.inner.without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
        }
        for name in ["upper", "work"] {
            fs::create_dir_all(outer.dir.join("bundle").join(name)).unwrap();
        }
        outer.c.give_to_user(&outer.dir);
        let overlay = json!({"destination": "/", "type": "overlay", "source": "overlay",
            "options": ["lowerdir=rootfs", "upperdir=upper", "workdir=work"]});
        let mut mounts = outer.inner.config["mounts"].clone();
        mounts.as_array_mut().unwrap().insert(0, overlay);
        let before = outer.inner.config["mounts"].clone();
        outer.inner.set("/mounts", mounts).acts("create /new x ; cat /new");
        assert_eq!(outer.keel(&["run", "inner"]).ok().lines(), ["ok", "x"]);
        assert!(!outer.dir.join("bundle/rootfs/new").exists());
        outer.inner.set("/mounts", before);
    }
}

fn every_command_works_in_a_container() {
    needs!(keel());
    let mut outer = Outer::new(with_own_id()).start();
    outer.inner.acts("pause");
    outer.keel(&["create", "inner"]).ok();
    outer.keel(&["start", "inner"]).ok();
    assert_eq!(outer.keel(&["exec", "inner", "/payload", "echo", "in"]).ok().stdout, "in\n");
    assert_eq!(outer.keel(&["state", "inner"]).ok().json()["status"], "running");
    assert_eq!(outer.keel(&["list", "-q"]).ok().stdout, "inner\n");
    outer.keel(&["kill", "inner", "KILL"]).ok();
    outer.keel(&["delete", "--force", "inner"]).ok();
    assert_eq!(outer.keel(&["list", "-q"]).ok().stdout, "");
}

/// As with runc: root of a user namespace has the runtime directory of a user, unless it says that it is root.
fn the_state_root_follows_the_user() {
    needs!(keel());
    let outer = Outer::new(with_own_id()).start();
    outer.write_config();
    for (user, found) in [("root", false), ("somebody", true)] {
        let (dir, name) = ("XDG_RUNTIME_DIR=/v/run", format!("USER={user}"));
        let args = [
            "exec",
            "--cwd",
            "/v/bundle",
            "-e",
            dir,
            "-e",
            &*name,
            &*outer.c.id,
            "/v/keel",
            "create",
            "inner",
        ];
        fs::create_dir_all(outer.dir.join("run")).unwrap();
        outer.c.give_to_user(&outer.dir);
        outer.c.keel(&args).ok();
        assert_eq!(outer.dir.join("run/keel").exists(), found, "{user}");
        let args = ["exec", "-e", dir, "-e", &*name, &*outer.c.id, "/v/keel", "delete", "--force", "inner"];
        outer.c.keel(&args);
    }
}

fn a_privileged_container_runs_containers() {
    needs!(keel());
    for namespace in [true, false] {
        let mut outer = Outer::new(Sandbox::new());
        outer.c.set("/mounts/6/options", json!(["nosuid", "noexec", "nodev"]));
        outer.c.set("/linux/resources", json!({"devices": [{"allow": true, "access": "rwm"}]}));
        if !namespace {
            outer.c.without_namespace("cgroup");
        }
        let mut outer = outer.start();
        for user in [true, false] {
            if !user {
                outer.inner.without_namespace("user").unset("/linux/uidMappings").unset("/linux/gidMappings");
            }
            let seen = outer.report();
            assert_eq!(
                (&seen["pid"], &seen["uid"][0]),
                (&json!(1), &json!(0)),
                "cgroup namespace: {namespace}"
            );
            outer.inner.acts("pause");
            outer.keel(&["create", "inner"]).ok();
            // Beside that of its maker, which without a namespace is the top of all that it sees.
            let state = fs::read_to_string(outer.dir.join("state/inner/state.json")).unwrap();
            let state: Value = serde_json::from_str(&state).unwrap();
            assert_eq!(state["cgroup"], "/sys/fs/cgroup/inner", "cgroup namespace: {namespace}");
            outer.keel(&["start", "inner"]).ok();
            outer.keel(&["exec", "inner", "/payload", "echo", "in"]).ok();
            outer.keel(&["pause", "inner"]).ok();
            outer.keel(&["resume", "inner"]).ok();
            assert_eq!(outer.keel(&["ps", "-f", "json", "inner"]).ok().json().as_array().unwrap().len(), 1);
            outer.keel(&["delete", "--force", "inner"]).ok();
            outer.inner.acts("report");
        }
        outer.c.delete_force().ok();
        assert_eq!(outer.c.left(), Vec::<String>::new());
    }
}
