//! `keel spec`: writes a config.json to begin with, the one that runc writes.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use nix::unistd::{getegid, geteuid};

use crate::error::{Context, Error, Result};

const CONFIG: &str = r#"{
	"ociVersion": "1.3.0",
	"process": {
		"terminal": true,
		"user": {"uid": 0, "gid": 0},
		"args": ["sh"],
		"env": [
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"TERM=xterm"
		],
		"cwd": "/",
		"capabilities": {
			"bounding": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
			"effective": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
			"permitted": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
		},
		"rlimits": [
			{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}
		],
		"noNewPrivileges": true
	},
	"root": {"path": "rootfs", "readonly": true},
	"hostname": "keel",
	"mounts": [
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
			"options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
		{"destination": "/dev/pts", "type": "devpts", "source": "devpts",
			"options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
		{"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
			"options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
		{"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
			"options": ["nosuid", "noexec", "nodev"]},
		{"destination": "/sys", "type": "sysfs", "source": "sysfs",
			"options": ["nosuid", "noexec", "nodev", "ro"]},
		{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
			"options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
	],
	"linux": {
		"resources": {
			"devices": [{"allow": false, "access": "rwm"}]
		},
		"namespaces": [
			{"type": "pid"},
			{"type": "network"},
			{"type": "ipc"},
			{"type": "uts"},
			{"type": "mount"},
			{"type": "cgroup"}
		],
		"maskedPaths": [
			"/proc/acpi",
			"/proc/asound",
			"/proc/kcore",
			"/proc/keys",
			"/proc/latency_stats",
			"/proc/timer_list",
			"/proc/timer_stats",
			"/proc/sched_debug",
			"/sys/firmware",
			"/proc/scsi"
		],
		"readonlyPaths": [
			"/proc/bus",
			"/proc/fs",
			"/proc/irq",
			"/proc/sys",
			"/proc/sysrq-trigger"
		]
	}
}
"#;

/// What a user without privileges cannot have, and what takes its place; UID and GID are the caller's.
const ROOTLESS: [(&str, &str); 5] = [
    // Only the caller's group is mapped, so there is no group 5 for terminals.
    (r#", "gid=5"]"#, "]"),
    // A new sysfs takes a network namespace of one's own; without one the host's is shown. With all below it read-only:
    // there are the cgroups, of which the user has some (CVE-2023-25809).
    (
        "\"type\": \"sysfs\", \"source\": \"sysfs\",\n\t\t\t\"options\": [",
        "\"type\": \"none\", \"source\": \"/sys\",\n\t\t\t\"options\": [\"rbind\", \"rro\", ",
    ),
    ("\t\t\t{\"type\": \"network\"},\n", ""),
    ("{\"type\": \"cgroup\"}", "{\"type\": \"cgroup\"},\n\t\t\t{\"type\": \"user\"}"),
    (
        "\"resources\": {\n\t\t\t\"devices\": [{\"allow\": false, \"access\": \"rwm\"}]\n\t\t},",
        "\"uidMappings\": [{\"containerID\": 0, \"hostID\": UID, \"size\": 1}],\n\
         \t\t\"gidMappings\": [{\"containerID\": 0, \"hostID\": GID, \"size\": 1}],",
    ),
];

/// Writes config.json in `dir`, which must have none yet.
pub fn spec(dir: &Path, rootless: bool) -> Result<()> {
    let path = dir.join("config.json");
    let text = if rootless { rootless_config(geteuid().as_raw(), getegid().as_raw()) } else { CONFIG.into() };
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(Error::new("it exists, remove it first")),
        file => file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(Error::from),
    }
    .context(|| format!("write {}", path.display()))
}

fn rootless_config(uid: u32, gid: u32) -> String {
    let config = ROOTLESS.iter().fold(CONFIG.to_string(), |text, (from, to)| text.replace(from, to));
    config.replace("UID", &uid.to_string()).replace("GID", &gid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_config_is_json_for_the_spec_that_is_followed() {
        let config: Value = serde_json::from_str(CONFIG).unwrap();
        assert_eq!(config["ociVersion"], crate::container::OCI_VERSION);
        serde_json::from_str::<oci_spec::runtime::Spec>(CONFIG).unwrap();
    }

    #[test]
    fn without_privileges_the_caller_is_mapped_and_nothing_is_asked_for_that_takes_more() {
        let mut expected: Value = serde_json::from_str(CONFIG).unwrap();
        expected["mounts"][2]["options"].as_array_mut().unwrap().pop();
        expected["mounts"][5] = json!({"destination": "/sys", "type": "none", "source": "/sys",
            "options": ["rbind", "rro", "nosuid", "noexec", "nodev", "ro"]});
        let linux = expected["linux"].as_object_mut().unwrap();
        linux.remove("resources");
        linux.insert("uidMappings".into(), json!([{"containerID": 0, "hostID": 1000, "size": 1}]));
        linux.insert("gidMappings".into(), json!([{"containerID": 0, "hostID": 100, "size": 1}]));
        let kinds = ["pid", "ipc", "uts", "mount", "cgroup", "user"].map(|kind| json!({"type": kind}));
        linux.insert("namespaces".into(), json!(kinds));
        assert_eq!(serde_json::from_str::<Value>(&rootless_config(1000, 100)).unwrap(), expected);
    }
}
