//! /linux/cgroupsPath: where the cgroup is, and what is there already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::json;

use crate::sandbox::{Sandbox, cgroup_root, cgroupfs, controller, eventually, keel, program};
use crate::{needs, tests};

tests![
    an_empty_cgroup_that_exists_is_taken,
    a_populated_cgroup_is_refused_and_unharmed,
    a_frozen_cgroup_is_refused,
    a_cgroup_below_a_frozen_one_is_refused,
    a_path_without_a_slash_is_beside_the_callers_cgroup,
    without_a_path_the_id_is_the_name,
    a_path_that_climbs_is_refused,
    a_refused_create_removes_the_parents_that_it_made,
    cgroups_of_the_container_go_with_it_although_frozen,
    a_read_only_cgroup_mount_of_the_host_is_an_error,
    a_border_to_the_number_of_cgroups_is_named,
    a_cgroup_that_passes_controllers_on_is_told_from_one_in_use,
    the_affinity_is_that_of_the_cgroup_and_not_the_callers,
];

/// A cgroup of the test's own; it goes at the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(path: &Path) -> Self {
        fs::create_dir(path).unwrap();
        Self(path.to_owned())
    }

    fn freeze(&self) {
        fs::write(self.0.join("cgroup.freeze"), "1").unwrap();
        eventually("it is frozen", || {
            fs::read_to_string(self.0.join("cgroup.events")).unwrap().contains("frozen 1")
        });
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // ENOENT: the container took it along.
        let _ = fs::remove_dir(&self.0);
    }
}

fn sleeper(cgroup: &Cgroup) -> Child {
    let child = Command::new("sleep").arg("100").spawn().unwrap();
    fs::write(cgroup.0.join("cgroup.procs"), child.id().to_string()).unwrap();
    child
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn an_empty_cgroup_that_exists_is_taken() {
    let mut c = Sandbox::new();
    let _cgroup = Cgroup::new(&c.cgroup());
    assert_eq!(c.does("echo up"), ["up"]);
}

fn a_populated_cgroup_is_refused_and_unharmed() {
    needs!(cgroupfs(), keel());
    let c = Sandbox::new();
    let cgroup = Cgroup::new(&c.cgroup());
    let child = sleeper(&cgroup);
    c.write_config();
    let error = c.keel(&["create", &c.id]).fails();
    assert!(error.contains(&format!("it holds the processes {}", child.id())), "{error}");
    assert!(error.contains("/linux/cgroupsPath"), "{error}");
    assert_eq!(fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap(), format!("{}\n", child.id()));
    end(child);
}

fn a_frozen_cgroup_is_refused() {
    needs!(cgroupfs(), keel());
    let c = Sandbox::new();
    let cgroup = Cgroup::new(&c.cgroup());
    cgroup.freeze();
    c.write_config();
    let error = c.keel(&["create", &c.id]).fails();
    assert!(error.contains("frozen") && error.contains("/linux/cgroupsPath"), "{error}");
    assert!(cgroup.0.exists());
}

fn a_cgroup_below_a_frozen_one_is_refused() {
    needs!(keel());
    let mut c = Sandbox::new();
    let cgroup = Cgroup::new(&c.cgroup());
    cgroup.freeze();
    c.set("/linux/cgroupsPath", format!("/{}/a/b", c.id)).write_config();
    let error = c.keel(&["create", &c.id]).fails();
    assert!(error.contains("frozen"), "{error}");
    assert!(!cgroup.0.join("a").exists());
}

fn own_parent() -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
    cgroup_root().unwrap().join(Path::new(&own).parent().unwrap_or(Path::new("")))
}

fn a_path_without_a_slash_is_beside_the_callers_cgroup() {
    needs!(cgroupfs(), keel());
    let mut c = Sandbox::new();
    let name = format!("{}-beside", c.id);
    c.set("/linux/cgroupsPath", name.as_str()).running();
    assert!(own_parent().join(&name).is_dir());
    c.delete_force().ok();
    assert!(!own_parent().join(&name).exists());
}

fn without_a_path_the_id_is_the_name() {
    needs!(cgroupfs(), keel());
    let mut c = Sandbox::new();
    c.unset("/linux/cgroupsPath").running();
    assert!(own_parent().join(&c.id).is_dir());
    c.delete_force().ok();
}

fn a_path_that_climbs_is_refused() {
    for path in ["/", "/../x", "a/../../x", "/a//b", "/./a"] {
        Sandbox::new().set("/linux/cgroupsPath", path).refused("/linux/cgroupsPath");
    }
}

fn a_refused_create_removes_the_parents_that_it_made() {
    let mut c = Sandbox::new();
    c.set("/linux/cgroupsPath", format!("/{}/a/b", c.id));
    c.mount(json!({"destination": "/v", "source": "/nonexistent", "options": ["bind"]}));
    c.refused("/mounts/7");
}

fn cgroups_of_the_container_go_with_it_although_frozen() {
    let mut c = Sandbox::new();
    c.running();
    let nested = c.cgroup().join("a/b");
    fs::create_dir_all(&nested).unwrap();
    let child = Command::new("sleep").arg("100").spawn().unwrap();
    fs::write(nested.join("cgroup.procs"), child.id().to_string()).unwrap();
    fs::write(c.cgroup().join("a/cgroup.freeze"), "1").unwrap();
    let output = c.delete_force();
    let mut child = child;
    child.wait().unwrap();
    output.ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_read_only_cgroup_mount_of_the_host_is_an_error() {
    needs!(cgroupfs(), keel());
    let c = Sandbox::new();
    c.write_config();
    let script = format!("mount -o remount,bind,ro {} && exec \"$@\"", cgroup_root().unwrap().display());
    let keel = c.command(&["create", &c.id]);
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script, "sh"]);
    command.arg(keel.get_program()).args(keel.get_args()).current_dir(c.bundle());
    let error = c.execute(command).fails();
    assert!(error.contains("Read-only file system"), "{error}");
    assert!(error.contains("/linux/cgroupsPath"), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_border_to_the_number_of_cgroups_is_named() {
    needs!(keel());
    let mut c = Sandbox::new();
    let _cgroup = Cgroup::new(&c.cgroup());
    fs::write(c.cgroup().join("cgroup.max.descendants"), "0").unwrap();
    c.set("/linux/cgroupsPath", format!("/{}/a", c.id)).write_config();
    let error = c.keel(&["create", &c.id]).fails();
    assert!(error.contains("cgroup.max.descendants") && error.contains("/linux/cgroupsPath"), "{error}");
}

/// The kernel has no process in a cgroup that passes controllers on.
fn a_cgroup_that_passes_controllers_on_is_told_from_one_in_use() {
    needs!(cgroupfs(), keel(), controller("hugetlb"));
    let c = Sandbox::new();
    let cgroup = Cgroup::new(&c.cgroup());
    for passing in [&cgroup_root().unwrap(), &cgroup.0] {
        fs::write(passing.join("cgroup.subtree_control"), "+hugetlb").unwrap();
    }
    c.write_config();
    let error = c.keel(&["create", &c.id]).fails();
    assert!(error.contains("passes controllers on"), "{error}");
    assert!(c.containers().is_empty());
}

fn two_cpus() -> Result<(), String> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    (online.trim_end() == "0-1").then_some(()).ok_or("needs exactly two CPUs".into())
}

fn the_affinity_is_that_of_the_cgroup_and_not_the_callers() {
    needs!(keel(), controller("cpuset"), program("taskset"), two_cpus());
    let mut c = Sandbox::new();
    c.acts("report").write_config();
    let cpus = |c: &Sandbox| c.behind(&["taskset", "-c", "1"], &["run", &c.id]).ok().json()["cpus"].clone();
    assert_eq!(cpus(&c), "0-1");
    c.set("/linux/resources/cpu", json!({"cpus": "0"})).write_config();
    assert_eq!(cpus(&c), "0");
}
