//! `keel features`: what this runtime supports, whatever the host has. Engines ask once, before there is a container.
//!
//! Names come from the tables by which config.json is read, so that what is said is what is accepted.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/features.md>,
//! <https://github.com/opencontainers/runtime-spec/blob/main/features-linux.md>

use std::collections::HashMap;

use oci_spec::runtime::{
    Apparmor, Cgroup, Features, IDMap, IntelRdt, LinuxFeature, MemoryPolicy, MountExtensions, NetDevices,
    Seccomp, Selinux,
};

use crate::cgroup::{delegate, systemd};
use crate::checkpoint;
use crate::container::OCI_VERSION;
use crate::error::{Context, Result};
use crate::linux::{capabilities, hooks, memory_policy, mount_options, namespaces, seccomp};

/// All of 1.x is one format.
const OLDEST_OCI_VERSION: &str = "1.0.0";

/// runc's name for that there are `checkpoint` and `restore`, which the spec has no place for.
const CHECKPOINT: (&str, &str) = ("org.opencontainers.runc.checkpoint.enabled", "true");

pub fn features() -> Result<String> {
    let json = serde_json::to_string_pretty(&all()).map_err(std::io::Error::from);
    Ok(json.context(|| "print the features")? + "\n")
}

fn all() -> Features {
    let (name, enabled) = CHECKPOINT;
    let mut features = Features::default();
    features
        .set_oci_version_min(OLDEST_OCI_VERSION.into())
        .set_oci_version_max(OCI_VERSION.into())
        .set_hooks(Some(texts(hooks::NAMES)))
        .set_mount_options(Some(mount_options::names()))
        .set_linux(Some(linux()))
        .set_annotations(Some(HashMap::from([(name.into(), enabled.into())])))
        .set_potentially_unsafe_config_annotations(Some(texts([
            delegate::ANNOTATION,
            systemd::ANNOTATIONS,
            checkpoint::CONFIG_ANNOTATION,
        ])));
    features
}

fn linux() -> LinuxFeature {
    let mut linux = LinuxFeature::default();
    let mut cgroup = Cgroup::default();
    cgroup
        .set_v1(Some(false))
        .set_v2(Some(true))
        .set_systemd(Some(true))
        .set_systemd_user(Some(true))
        .set_rdma(Some(true));
    let mut intel_rdt = IntelRdt::default();
    intel_rdt.set_enabled(Some(true)).set_schemata(Some(true)).set_monitoring(Some(true));
    let mut memory_policy = MemoryPolicy::default();
    memory_policy
        .set_modes(Some(texts(memory_policy::MODES.map(|(name, _)| name))))
        .set_flags(Some(texts(memory_policy::FLAGS.map(|(name, _)| name))));
    let mut idmap = IDMap::default();
    idmap.set_enabled(Some(true));
    linux
        .set_namespaces(Some(named(namespaces::names())))
        .set_capabilities(Some(capabilities::known()))
        .set_cgroup(Some(cgroup))
        .set_seccomp(Some(seccomp()))
        .set_apparmor(Some(Apparmor::default().set_enabled(Some(true)).clone()))
        .set_selinux(Some(Selinux::default().set_enabled(Some(true)).clone()))
        .set_intel_rdt(Some(intel_rdt))
        .set_memory_policy(Some(memory_policy))
        .set_mount_extensions(Some(MountExtensions::default().set_idmap(Some(idmap)).clone()))
        .set_net_devices(Some(NetDevices::default().set_enabled(Some(true)).clone()));
    linux
}

fn seccomp() -> Seccomp {
    let mut seccomp = Seccomp::default();
    seccomp
        .set_enabled(Some(true))
        .set_actions(Some(named(seccomp::ACTIONS.map(|(name, _)| name))))
        .set_operators(Some(texts(seccomp::OPERATORS.map(|(name, _)| name))))
        .set_archs(Some(named(seccomp::arch::KNOWN)))
        .set_known_flags(Some(texts(seccomp::FLAGS.map(|(name, _)| name))))
        .set_supported_flags(Some(texts(seccomp::supported_flags())));
    seccomp
}

fn texts<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// The same where the crate has a type for them; a test holds that it has each.
fn named<'a, T: TryFrom<&'a str>>(names: impl IntoIterator<Item = &'a str>) -> Vec<T> {
    names.into_iter().filter_map(|name| T::try_from(name).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn printed() -> Value {
        serde_json::from_str(&features().unwrap()).unwrap()
    }

    #[test]
    fn no_name_of_the_tables_is_lost() {
        let printed = printed();
        let linux = &printed["linux"];
        for (list, names) in [
            (&linux["namespaces"], namespaces::names()),
            (&linux["seccomp"]["archs"], seccomp::arch::KNOWN.to_vec()),
            (&linux["seccomp"]["actions"], seccomp::ACTIONS.map(|(name, _)| name).to_vec()),
        ] {
            assert_eq!(*list, json!(names));
        }
    }

    #[test]
    fn nothing_is_left_unsaid() {
        fn nulls(at: &str, value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Null => found.push(at.to_owned()),
                Value::Object(map) => {
                    map.iter().for_each(|(key, value)| nulls(&format!("{at}/{key}"), value, found))
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        nulls("", &printed(), &mut found);
        assert_eq!(found, Vec::<String>::new());
    }
}
