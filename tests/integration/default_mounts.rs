//! The mounts that Docker, containerd and Podman ask for by default, in a read-only root whose image has none of the
//! mount points. crun 1.27 shows the same (and nosymfollow where a cgroup mount says relatime).

use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::tests;

tests![the_mounts_of_docker, the_mounts_of_containerd, the_mounts_of_podman];

fn mount(destination: &str, kind: &str, source: &str, options: &str) -> Value {
    let options: Vec<&str> = options.split(' ').collect();
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// One line for each mount: its point, type, attributes and those of the file system that an option set.
fn seen(mounts: Vec<Value>) -> Vec<String> {
    let mut c = Sandbox::new();
    for name in ["resolv.conf", "hostname", "hosts", "containerenv"] {
        c.host_file(name, "");
    }
    c.host_dir("shm");
    c.host_dir("secrets");
    let host = c.dir.join("host");
    let mounts: Vec<Value> = mounts
        .into_iter()
        .map(|mut mount| {
            if let Some(file) = mount["source"].as_str().and_then(|source| source.strip_prefix("HOST/")) {
                mount["source"] = json!(host.join(file));
            }
            mount
        })
        .collect();
    c.set("/mounts", mounts).unset("/linux/maskedPaths").unset("/linux/readonlyPaths");
    c.set("/root/readonly", true);
    let report = c.report();
    let words = |mount: &Value, key: &str| {
        let words = mount[key].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned());
        words.collect::<Vec<_>>()
    };
    let ours = ["mode=", "gid=", "ptmxmode=", "size="];
    let line = |mount: &Value| {
        let mut options = words(mount, "options");
        options.extend(
            words(mount, "super").into_iter().filter(|word| ours.iter().any(|key| word.starts_with(key))),
        );
        let propagation = mount["propagation"].as_str().unwrap().split(':').next().unwrap().to_owned();
        let kind = mount["type"].as_str().unwrap();
        let bound = mount["root"].as_str().unwrap().contains("/host/") || mount["at"] == "/";
        let kind = if bound { "bind" } else { kind };
        format!("{} {kind} {} {propagation}", mount["at"].as_str().unwrap(), options.join(","))
            .trim_end()
            .to_owned()
    };
    let mut lines: Vec<String> = report["mounts"].as_array().unwrap().iter().map(line).collect();
    // The kernel lists them by age, and binds are the oldest.
    lines.sort();
    lines
}

fn the_mounts_of_docker() {
    let lines = seen(vec![
        mount("/proc", "proc", "proc", "nosuid noexec nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
        mount("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro nosuid noexec nodev"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
        mount("/dev/shm", "tmpfs", "shm", "nosuid noexec nodev mode=1777 size=67108864"),
        mount("/etc/resolv.conf", "bind", "HOST/resolv.conf", "rbind rprivate"),
        mount("/etc/hostname", "bind", "HOST/hostname", "rbind rprivate"),
        mount("/etc/hosts", "bind", "HOST/hosts", "rbind rprivate"),
    ]);
    assert_eq!(
        lines,
        [
            "/ bind ro,relatime",
            "/dev tmpfs rw,nosuid,size=65536k,mode=755",
            "/dev/mqueue mqueue rw,nosuid,nodev,noexec,relatime",
            "/dev/pts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666",
            "/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k",
            "/etc/hostname bind rw,relatime",
            "/etc/hosts bind rw,relatime",
            "/etc/resolv.conf bind rw,relatime",
            "/proc proc rw,nosuid,nodev,noexec,relatime",
            "/sys sysfs ro,nosuid,nodev,noexec,relatime",
            "/sys/fs/cgroup cgroup2 ro,nosuid,nodev,noexec,relatime",
        ]
    );
}

fn the_mounts_of_containerd() {
    let lines = seen(vec![
        mount("/proc", "proc", "proc", "nosuid noexec nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid noexec nodev relatime ro"),
        mount("/etc/hosts", "bind", "HOST/hosts", "rbind rprivate ro"),
        mount("/etc/hostname", "bind", "HOST/hostname", "rbind rprivate ro"),
        mount("/etc/resolv.conf", "bind", "HOST/resolv.conf", "rbind rprivate ro"),
        mount("/dev/shm", "bind", "HOST/shm", "rbind rprivate rw"),
        mount("/var/run/secrets/kubernetes.io/serviceaccount", "bind", "HOST/secrets", "rbind rprivate ro"),
        mount("/run", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
    ]);
    assert_eq!(
        lines,
        [
            "/ bind ro,relatime",
            "/dev tmpfs rw,nosuid,size=65536k,mode=755",
            "/dev/mqueue mqueue rw,nosuid,nodev,noexec,relatime",
            "/dev/pts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666",
            "/dev/shm bind rw,relatime",
            "/etc/hostname bind ro,relatime",
            "/etc/hosts bind ro,relatime",
            "/etc/resolv.conf bind ro,relatime",
            "/proc proc rw,nosuid,nodev,noexec,relatime",
            "/run tmpfs rw,nosuid,size=65536k,mode=755",
            "/sys sysfs ro,nosuid,nodev,noexec,relatime",
            "/sys/fs/cgroup cgroup2 ro,nosuid,nodev,noexec,relatime",
            "/var/run/secrets/kubernetes.io/serviceaccount bind ro,relatime",
        ]
    );
}

fn the_mounts_of_podman() {
    let lines = seen(vec![
        mount("/proc", "proc", "proc", "nosuid noexec nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid noexec strictatime mode=755 size=65536k"),
        mount("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
        mount("/dev/pts", "devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
        mount("/etc/hosts", "bind", "HOST/hosts", "bind rprivate"),
        mount("/dev/shm", "bind", "HOST/shm", "bind rprivate nosuid noexec nodev"),
        mount("/run/.containerenv", "bind", "HOST/containerenv", "bind rprivate"),
        mount("/etc/resolv.conf", "bind", "HOST/resolv.conf", "bind rprivate"),
        mount("/etc/hostname", "bind", "HOST/hostname", "bind rprivate"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "rprivate nosuid noexec nodev relatime ro"),
    ]);
    assert_eq!(
        lines,
        [
            "/ bind ro,relatime",
            "/dev tmpfs rw,nosuid,noexec,size=65536k,mode=755",
            "/dev/mqueue mqueue rw,nosuid,nodev,noexec,relatime",
            "/dev/pts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666",
            "/dev/shm bind rw,nosuid,nodev,noexec,relatime",
            "/etc/hostname bind rw,relatime",
            "/etc/hosts bind rw,relatime",
            "/etc/resolv.conf bind rw,relatime",
            "/proc proc rw,nosuid,nodev,noexec,relatime",
            "/run/.containerenv bind rw,relatime",
            "/sys sysfs ro,nosuid,nodev,noexec,relatime",
            "/sys/fs/cgroup cgroup2 ro,nosuid,nodev,noexec,relatime",
        ]
    );
}
