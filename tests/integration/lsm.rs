//! /process/apparmorProfile, /process/selinuxLabel and /linux/mountLabel.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::skip;
use crate::sandbox::{Sandbox, keel, path, program};
use crate::{needs, tests};

tests![
    a_profile_without_apparmor_is_refused,
    a_label_without_selinux_is_refused,
    a_mount_label_without_selinux_is_refused,
    empty_labels_are_none,
    an_apparmor_profile_is_in_effect,
    exec_enters_the_containers_profile_or_its_own,
    an_unknown_apparmor_profile_is_refused,
    a_file_over_attr_exec_is_refused,
];

const APPARMOR: &str = "/sys/kernel/security/apparmor";
const SELINUX: &str = "/sys/fs/selinux/enforce";

fn a_profile_without_apparmor_is_refused() {
    if Path::new(APPARMOR).exists() {
        return skip("needs a kernel without AppArmor".into());
    }
    Sandbox::new().set("/process/apparmorProfile", "some").refused("/process/apparmorProfile");
}

fn a_label_without_selinux_is_refused() {
    needs!(keel());
    if Path::new(SELINUX).exists() {
        return skip("needs a kernel without SELinux".into());
    }
    Sandbox::new().set("/process/selinuxLabel", "u:r:t:s0").refused("/process/selinuxLabel");
}

fn a_mount_label_without_selinux_is_refused() {
    needs!(keel());
    if Path::new(SELINUX).exists() {
        return skip("needs a kernel without SELinux".into());
    }
    Sandbox::new().set("/linux/mountLabel", "u:r:t:s0").refused("/linux/mountLabel");
}

fn empty_labels_are_none() {
    let mut c = Sandbox::new();
    c.set("/process/apparmorProfile", "").set("/process/selinuxLabel", "").set("/linux/mountLabel", "");
    assert_eq!(c.does("echo up"), ["up"]);
}

fn an_apparmor_profile_is_in_effect() {
    needs!(path(APPARMOR));
    for user_namespace in [false, true] {
        let mut c = Sandbox::new();
        if user_namespace {
            c.user_namespace();
        }
        c.set("/process/apparmorProfile", "unconfined");
        assert_eq!(c.report()["label"], "unconfined");
        c.running();
        assert_eq!(c.exec_report(&[])["label"], "unconfined");
    }
}

/// Loads a profile that forbids nothing but to write to /forbidden, and unloads it.
struct Profile(String);

impl Profile {
    fn load(c: &Sandbox) -> Self {
        let name = format!("{}-profile", c.id);
        let profile =
            Self(format!("profile {name} {{\n  file,\n  capability,\n  signal,\n  deny /forbidden w,\n}}\n"));
        profile.give("--replace");
        profile
    }

    fn name(&self) -> &str {
        self.0.split(' ').nth(1).unwrap()
    }

    fn give(&self, how: &str) {
        let mut parser =
            Command::new("apparmor_parser").arg(how).stdin(Stdio::piped()).spawn().expect("apparmor_parser");
        parser.stdin.take().unwrap().write_all(self.0.as_bytes()).unwrap();
        assert!(parser.wait().unwrap().success());
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.give("--remove");
    }
}

fn exec_enters_the_containers_profile_or_its_own() {
    needs!(path(APPARMOR), program("apparmor_parser"));
    for no_new_privileges in [false, true] {
        let mut c = Sandbox::new();
        let profile = Profile::load(&c);
        let label = format!("{} (enforce)", profile.name());
        c.write("/forbidden", "kept");
        c.set("/process/noNewPrivileges", no_new_privileges);
        c.set("/process/apparmorProfile", profile.name());
        assert_eq!(c.report()["label"], label);
        assert_eq!(c.does("write /forbidden x"), ["EACCES"]);
        c.running();
        assert_eq!(c.exec_report(&[])["label"], label);
        c.delete_force().ok();
        c.unset("/process/apparmorProfile").running();
        assert_eq!(c.exec_report(&["--apparmor", profile.name()])["label"], label);
        assert_ne!(c.exec_report(&[])["label"], label);
        c.delete_force().ok();
    }
}

fn an_unknown_apparmor_profile_is_refused() {
    needs!(path(APPARMOR));
    Sandbox::new().set("/process/apparmorProfile", "unconfined_nonesuch").refused("/process/apparmorProfile");
}

/// CVE-2019-16884, CVE-2025-52881: the label would be written to a file of the image's choice.
fn a_file_over_attr_exec_is_refused() {
    needs!(keel());
    let mut c = Sandbox::new();
    let file = c.host_file("file", "");
    for path in ["/proc/self/attr/exec", "/proc/thread-self/attr/exec", "/proc/1/attr/exec"] {
        let mut c = Sandbox::new();
        c.mount(json!({"destination": path, "source": file, "options": ["bind"]})).refused("/mounts/7");
    }
    c.acts("exit 0").run();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "");
}
