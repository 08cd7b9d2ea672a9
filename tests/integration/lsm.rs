//! /process/apparmorProfile, /process/selinuxLabel and /linux/mountLabel.

use std::path::Path;

use serde_json::json;

use crate::harness::skip;
use crate::sandbox::{Sandbox, keel, path};
use crate::{needs, tests};

tests![
    a_profile_without_apparmor_is_refused,
    a_label_without_selinux_is_refused,
    a_mount_label_without_selinux_is_refused,
    empty_labels_are_none,
    an_apparmor_profile_is_in_effect,
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
