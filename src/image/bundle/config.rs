//! config.json for a bundle: what the image says, and around it what Docker gives a container by default.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md>

use std::path::Path;

use serde_json::{Value, json};

use super::convert::Converted;
use super::seccomp;
use super::user::User;
use crate::image::overlay::OPTIONS;
use crate::image::unpack::Range;

/// Nothing newer is in it, and crun up to 1.8 takes no 1.1.
const OCI_VERSION: &str = "1.0.2";
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// The group of terminals.
const TTY: u32 = 5;

/// What is mounted at `/`, by the runtime or not at all.
pub struct Overlay {
    /// The store that the layers are in.
    pub store: String,
    /// Absolute, or relative to the bundle; the topmost first.
    pub lowers: Vec<String>,
    pub writable: bool,
}

pub struct Bind {
    pub source: String,
    pub destination: String,
    pub options: Vec<String>,
}

pub struct Parts<'a> {
    pub converted: &'a Converted,
    pub user: &'a User,
    pub architecture: &'a str,
    pub hostname: &'a str,
    pub overlay: Option<Overlay>,
    pub read_only: bool,
    pub binds: Vec<Bind>,
    /// Of a user namespace; empty without one.
    pub uids: &'a [Range],
    pub gids: &'a [Range],
    /// A user's, who has no cgroup to limit.
    pub rootless: bool,
}

pub fn config(parts: &Parts<'_>) -> Value {
    let Parts { converted, user, .. } = parts;
    let mut process_user = json!({"uid": user.uid, "gid": user.gid});
    if !user.additional_gids.is_empty() {
        process_user["additionalGids"] = json!(user.additional_gids);
    }
    let capabilities =
        json!({"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES});
    let mut config = json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "user": process_user,
            "args": converted.args,
            "env": converted.env,
            "cwd": converted.cwd,
            "capabilities": capabilities,
        },
        "root": {"path": "rootfs", "readonly": parts.read_only},
        "hostname": parts.hostname,
        "mounts": mounts(parts),
        "linux": {
            "namespaces": namespaces(parts),
            // As Docker has it: in a network of its own a container's users may serve on any port.
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "seccomp": seccomp::profile(parts.architecture),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    if parts.rootless {
        config["linux"].as_object_mut().into_iter().for_each(|linux| drop(linux.remove("resources")));
    }
    if !converted.annotations.is_empty() {
        config["annotations"] = json!(converted.annotations);
    }
    if !parts.uids.is_empty() {
        config["linux"]["uidMappings"] = mappings(parts.uids);
        config["linux"]["gidMappings"] = mappings(parts.gids);
    }
    config
}

fn mounts(parts: &Parts<'_>) -> Vec<Value> {
    let mut mounts = Vec::new();
    if let Some(overlay) = &parts.overlay {
        let mut options: Vec<_> = overlay.lowers.iter().map(|lower| format!("lowerdir+={lower}")).collect();
        if overlay.writable {
            options.extend(["upperdir=upper".to_owned(), "workdir=work".to_owned()]);
        }
        options.extend(OPTIONS.iter().map(|(key, value)| format!("{key}={value}")));
        let mut source = "overlay";
        if !parts.uids.is_empty() && !parts.rootless {
            // The store's layers serve every mapping, with the image's own ids in them.
            options.push("idmap".to_owned());
            // mountinfo shows none of their names: this is how a sweep of another store knows that it is not meant.
            source = &overlay.store;
        }
        mounts.push(json!({"destination": "/", "type": "overlay", "source": source, "options": options}));
    }
    let mut mount = |destination: &str, kind: &str, options: &str| {
        let options: Vec<_> = options.split(',').collect();
        let source = if destination == "/dev/shm" { "shm" } else { kind };
        mounts.push(json!({"destination": destination, "type": kind, "source": source, "options": options}));
    };
    mount("/proc", "proc", "nosuid,noexec,nodev");
    mount("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k");
    let terminals = "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620";
    // A user namespace may not have the group.
    let has_tty =
        parts.gids.is_empty() || parts.gids.iter().any(|r| TTY >= r.inside && TTY - r.inside < r.count);
    match has_tty {
        true => mount("/dev/pts", "devpts", &format!("{terminals},gid={TTY}")),
        false => mount("/dev/pts", "devpts", terminals),
    }
    mount("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=65536k");
    mount("/dev/mqueue", "mqueue", "nosuid,noexec,nodev");
    mount("/sys", "sysfs", "nosuid,noexec,nodev,ro");
    mount("/sys/fs/cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro");
    for Bind { source, destination, options } in &parts.binds {
        let options: Vec<_> = ["rbind"].into_iter().chain(options.iter().map(String::as_str)).collect();
        mounts
            .push(json!({"destination": destination, "type": "bind", "source": source, "options": options}));
    }
    mounts
}

fn namespaces(parts: &Parts<'_>) -> Vec<Value> {
    let user = (!parts.uids.is_empty()).then_some("user");
    let kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"].into_iter().chain(user);
    kinds.map(|kind| json!({"type": kind})).collect()
}

fn mappings(ranges: &[Range]) -> Value {
    let mapping =
        |range: &Range| json!({"containerID": range.inside, "hostID": range.outside, "size": range.count});
    ranges.iter().map(mapping).collect()
}

/// The directories and files, absolute, that everything but the overlay is mounted on; the rest lies in these.
pub fn mount_points(binds: &[Bind]) -> impl Iterator<Item = &str> {
    ["/proc", "/dev", "/sys"].into_iter().chain(binds.iter().map(|bind| &*bind.destination))
}

/// The host's name inside: as the bundle is called, as far as a name can be like that.
pub fn hostname(bundle: &Path) -> String {
    const LONGEST: usize = 63; // bytes
    let name = bundle.file_name().unwrap_or_default().to_string_lossy();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(LONGEST).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "keel".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_called_as_its_bundle() {
        for (path, name) in [
            ("/a/web", "web"),
            ("/a/my_web.1", "my-web-1"),
            ("/a/..", "keel"),
            ("/a/-x-", "x"),
            ("/", "keel"),
        ] {
            assert_eq!(hostname(Path::new(path)), name);
        }
    }

    #[test]
    fn the_config_is_of_the_runtime_spec() {
        let converted = Converted { args: vec!["sh".into()], cwd: "/".into(), ..Converted::default() };
        let range = [Range { inside: 0, outside: 100_000, count: 5 }];
        let overlay =
            Overlay { store: "/s".into(), lowers: vec!["/s/a:b/fs".into(), "empty".into()], writable: true };
        let parts = Parts {
            converted: &converted,
            user: &User { uid: 1, gid: 2, additional_gids: vec![3] },
            architecture: "amd64",
            hostname: "web",
            overlay: Some(overlay),
            read_only: false,
            binds: vec![Bind {
                source: "volumes/0".into(),
                destination: "/data".into(),
                options: vec!["ro".into()],
            }],
            uids: &range,
            gids: &range,
            rootless: true,
        };
        let config = config(&parts);
        serde_json::from_value::<oci_spec::runtime::Spec>(config.clone()).unwrap();
        let options = [
            "lowerdir+=/s/a:b/fs",
            "lowerdir+=empty",
            "upperdir=upper",
            "workdir=work",
            "redirect_dir=nofollow",
            "metacopy=off",
        ];
        assert_eq!(config["mounts"][0]["options"], json!(options));
        assert!(!config["mounts"][3]["options"].to_string().contains("gid=5"));
        assert_eq!(config["mounts"][8]["options"], json!(["rbind", "ro"]));
        assert_eq!(config["linux"]["namespaces"][6]["type"], "user");
        assert!(config["linux"]["resources"].is_null());
        assert_eq!(config["process"]["user"], json!({"uid": 1, "gid": 2, "additionalGids": [3]}));
    }
}
