//! `/process/apparmorProfile`, `/process/selinuxLabel`, `/linux/mountLabel`: what a security module holds the program
//! to.
//!
//! The program's label is written to a file of procfs and comes into force at the next execve. A volume over /proc
//! once sent such writes elsewhere (CVE-2019-16884, CVE-2025-52881), so they go through [`Proc`] only.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#linux-process>,
//! [proc_pid_attr(5)](https://man7.org/linux/man-pages/man5/proc_pid_attr.5.html)

use nix::errno::Errno;
use nix::sys::statfs::{SELINUX_MAGIC, statfs};
use nix::sys::statvfs::FsFlags;

use crate::error::{At, Context, Error, Field, Result};
use crate::proc::Proc;
use crate::spec::{Node, Report};

/// The labels that the config sets; an empty string counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    apparmor: Option<Label>,
    selinux: Option<Label>,
    /// Checked here; the file systems that are mounted take it (`file_system.rs`).
    mount: Option<Label>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Label {
    text: String,
    field: Field,
}

impl Labels {
    pub fn of_process(process: &Node) -> Self {
        let (apparmor, selinux) = (label(process, "apparmorProfile"), label(process, "selinuxLabel"));
        Self { apparmor, selinux, mount: None }
    }

    pub fn are_set(&self) -> bool {
        *self != Self::default()
    }

    pub fn of_mounts(linux: &Node) -> Self {
        Self { mount: label(linux, "mountLabel"), ..Self::default() }
    }

    /// In the parent, before anything exists: a label for a module that is off is a problem, since the container
    /// would run without what the config counts on. Asks the host only what the config needs to know.
    pub fn check(&self, report: &Report) {
        self.check_on(report, apparmor_is_on, selinux_is_on);
    }

    fn check_on(&self, report: &Report, apparmor: impl Fn() -> bool, selinux: impl Fn() -> bool) {
        if let Some(label) = self.apparmor.as_ref().filter(|_| !apparmor()) {
            report.problem(label.field.clone(), "AppArmor is not enabled on this host");
        }
        if (self.selinux.is_some() || self.mount.is_some()) && !selinux() {
            for label in self.selinux.iter().chain(&self.mount) {
                report.problem(label.field.clone(), "SELinux is not enabled on this host");
            }
        }
    }

    /// Labels what the next execve runs, also that of a child. So after the createContainer hooks, which are the
    /// host's; before the startContainer hooks, which may be the image's.
    pub fn apply(&self, proc: &Proc, no_new_privileges: bool) -> Result<()> {
        if let Some(label) = &self.apparmor {
            apply_apparmor(proc, &label.text, no_new_privileges)
                .context(|| format!("apply AppArmor profile {:?}", label.text))
                .at(&label.field)?;
        }
        if let Some(label) = &self.selinux {
            proc.write("thread-self/attr/exec", &label.text)
                .context(|| format!("set SELinux label {:?}", label.text))
                .at(&label.field)?;
        }
        Ok(())
    }

    /// Runs `join`, which makes a keyring, with the program's SELinux label for new keys; else the program could not
    /// use its own keyring.
    pub fn with_key_label(&self, proc: &Proc, join: impl FnOnce() -> Result<()>) -> Result<()> {
        const KEYCREATE: &str = "thread-self/attr/keycreate";
        let Some(label) = &self.selinux else { return join() };
        match proc.write(KEYCREATE, &label.text) {
            // A kernel that does not label keys.
            Err(error) if error.errno() == Some(Errno::ENOENT) => return join(),
            written => {
                written.context(|| format!("set SELinux key label {:?}", label.text)).at(&label.field)?
            }
        }
        join()?;
        proc.write(KEYCREATE, "").context(|| "clear SELinux key label").at(&label.field)
    }
}

fn label(node: &Node, key: &str) -> Option<Label> {
    let text = node.string(key).filter(|text| !text.is_empty())?;
    Some(Label { text: text.to_owned(), field: node.at(key) })
}

fn apply_apparmor(proc: &Proc, profile: &str, no_new_privileges: bool) -> Result<()> {
    // Under no_new_privs a confined process (keel in a container) may only narrow its profile, by stacking another.
    let stacks = no_new_privileges && is_confined(&proc.read("thread-self/attr/apparmor/current")?);
    let command = format!("{} {profile}", if stacks { "stack" } else { "exec" });
    // AppArmor's own directory, there since Linux 5.8: attr/exec would be that of the first module that is on.
    let written = proc.write("thread-self/attr/apparmor/exec", &command);
    match written.as_ref().err().and_then(Error::errno) {
        // Not with the errno: callers take "no such file or directory" for a missing program.
        Some(Errno::ENOENT) => Err(Error::new("no such profile is loaded")),
        _ => written,
    }
}

/// `unconfined`, or `unconfined (mode)`; a profile named `unconfined_foo` confines.
fn is_confined(current: &str) -> bool {
    current.split_ascii_whitespace().next() != Some("unconfined")
}

fn apparmor_is_on() -> bool {
    // No such file: not in this kernel.
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// As libselinux decides: selinuxfs is mounted, and not read-only as containers have it.
fn selinux_is_on() -> bool {
    statfs("/sys/fs/selinux")
        .is_ok_and(|fs| fs.filesystem_type() == SELINUX_MAGIC && !fs.flags().contains(FsFlags::ST_RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    fn plan(json: &str) -> Labels {
        let report = Report::default();
        let value = parse(json.as_bytes(), &report).unwrap();
        let node = Node::root(&value, &report);
        let labels = Labels {
            mount: Labels::of_mounts(&node.object_or_empty("linux")).mount,
            ..Labels::of_process(&node.object_or_empty("process"))
        };
        assert!(report.finish().is_ok());
        labels
    }

    const ALL: &str =
        r#"{"process": {"apparmorProfile": "p", "selinuxLabel": "l"}, "linux": {"mountLabel": "m"}}"#;

    #[test]
    fn an_empty_label_is_none() {
        assert_eq!(plan(r#"{"process": {"apparmorProfile": "", "selinuxLabel": ""}}"#), Labels::default());
    }

    #[test]
    fn a_label_for_a_module_that_is_off_is_a_problem() {
        let apparmor = "/process/apparmorProfile: AppArmor is not enabled on this host".to_owned();
        let selinux = ["/process/selinuxLabel", "/linux/mountLabel"]
            .map(|field| format!("{field}: SELinux is not enabled on this host"));
        for (on, expected) in [
            ((true, true), vec![]),
            ((false, true), vec![apparmor.clone()]),
            ((true, false), selinux.to_vec()),
            ((false, false), [&[apparmor][..], &selinux[..]].concat()),
        ] {
            let report = Report::default();
            plan(ALL).check_on(&report, || on.0, || on.1);
            let found = report
                .finish()
                .err()
                .map_or(vec![], |e| e.problems().iter().map(|p| p.to_string()).collect());
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_config_without_labels_asks_the_host_nothing() {
        Labels::default().check_on(&Report::default(), || unreachable!(), || unreachable!());
    }

    #[test]
    fn only_unconfined_is_unconfined() {
        for (current, confined) in [
            ("unconfined\n", false),
            ("unconfined", false),
            ("unconfined (enforce)\n", false),
            ("unconfined_foo (enforce)\n", true),
            ("docker-default (enforce)\n", true),
            ("", true),
        ] {
            assert_eq!(is_confined(current), confined, "{current:?}");
        }
    }
}
