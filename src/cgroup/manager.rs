//! `--cgroup-manager`: who makes the container's cgroup, and what is asked for in vain when nobody does.

use serde::{Deserialize, Serialize};

use super::Plan;
use super::systemd::Instance;
use crate::error::Field;
use crate::spec::Node;

/// Who makes the container's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manager {
    /// keel, as a directory of the cgroup2 mount.
    #[default]
    Cgroupfs,
    /// The host's systemd, as a scope.
    Systemd,
    /// The user's own systemd.
    SystemdUser,
    /// Nobody: the container's processes stay in the caller's, and none is looked for or touched.
    Disabled,
    /// Nobody either, because the caller may not and the config asks for nothing that needs one.
    Undelegated,
}

impl Manager {
    /// What is said to those who want something of the cgroup of a container that has none.
    pub fn lacks(self) -> Option<&'static str> {
        match self {
            Self::Cgroupfs | Self::Systemd | Self::SystemdUser => None,
            Self::Disabled => {
                Some("the container has no cgroup, as it was made with --cgroup-manager disabled")
            }
            Self::Undelegated => {
                Some("the container has no cgroup, as none was delegated to the user who made it")
            }
        }
    }

    pub fn systemd(self) -> Option<Instance> {
        match self {
            Self::Systemd => Some(Instance::System),
            Self::SystemdUser => Some(Instance::User),
            Self::Cgroupfs | Self::Disabled | Self::Undelegated => None,
        }
    }
}

/// What a message says of [`Manager::Disabled`].
const NO_CGROUP: &str = "and --cgroup-manager disabled makes none";

impl Plan {
    /// What of the config asks for a cgroup when [`Manager::Disabled`] makes none. Limits that nobody would enforce
    /// are problems. So are device rules if the container could make the devices that they forbid; else a warning,
    /// since every engine's config has such rules.
    pub fn refuse_without_cgroup(&self, linux: &Node, makes_devices: bool) {
        let report = linux.report();
        let mut fields: Vec<&Field> = self.limits.iter().filter(|l| !l.is_none()).map(|l| &l.field).collect();
        fields.extend(self.leaf.as_ref().map(|leaf| &leaf.field));
        fields.extend(linux.value("cgroupsPath").is_some_and(|path| path != "").then_some(&self.field));
        for field in fields {
            report.problem(field.clone(), format_args!("needs a cgroup, {NO_CGROUP}"));
        }
        let field = linux.field().child("resources").child("devices");
        match (self.devices.denies_any(), makes_devices) {
            (true, true) => {
                let way_out = "drop CAP_MKNOD from /process/capabilities/bounding, or allow all devices";
                report.problem(field, format_args!("a device filter needs a cgroup, {NO_CGROUP}: {way_out}"));
            }
            (true, false) => {
                report.warning(
                    field,
                    format_args!("a device filter needs a cgroup, {NO_CGROUP}: not in effect"),
                );
            }
            (false, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::plan;
    use crate::spec::{Report, parse};

    /// The problems and the number of warnings of a config without a cgroup.
    fn refused(config: &str, makes_devices: bool) -> (Vec<String>, usize) {
        let report = Report::default();
        let map = parse(config.as_bytes(), &report).unwrap();
        let config = Node::root(&map, &report);
        let linux = config.object_or_empty("linux");
        plan(&config, Some(&linux), "c1", Manager::Disabled).refuse_without_cgroup(&linux, makes_devices);
        match report.finish() {
            Ok(warnings) => (Vec::new(), warnings.len()),
            Err(e) => (e.problems().iter().map(ToString::to_string).collect(), 0),
        }
    }

    #[test]
    fn whatever_needs_a_cgroup_is_a_problem() {
        let (problems, _) = refused(
            r#"{"annotations": {"run.oci.delegate-cgroup": "x"}, "linux": {"cgroupsPath": "/a", "resources":
                {"memory": {"limit": 5}, "pids": {"limit": 3}, "devices": [{"allow": true}]}}}"#,
            true,
        );
        let needs =
            |field: &str| format!("{field}: needs a cgroup, and --cgroup-manager disabled makes none");
        let expected = [
            needs("/linux/resources/memory/limit"),
            needs("/linux/resources/pids/limit"),
            needs("/annotations/run.oci.delegate-cgroup"),
            needs("/linux/cgroupsPath"),
        ];
        assert_eq!(problems, expected);
    }

    #[test]
    fn no_limit_is_as_good_without_a_cgroup() {
        let unlimited = r#"{"linux": {"cgroupsPath": "", "resources": {"memory": {"limit": -1}, "pids": {"limit": -1},
            "devices": [{"allow": true}]}}}"#;
        assert_eq!(refused(unlimited, true), (vec![], 0));
    }

    #[test]
    fn rules_for_devices_hold_only_as_far_as_none_can_be_made() {
        for config in [r#"{"linux": {"resources": {"devices": [{"allow": false}]}}}"#, "{}"] {
            assert_eq!(refused(config, false), (vec![], 1));
            assert!(refused(config, true).0[0].contains("drop CAP_MKNOD"));
        }
    }
}
