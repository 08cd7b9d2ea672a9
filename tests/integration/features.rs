//! `features`: what engines read before they make a container.

use std::process::Command;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keel, program};
use crate::{needs, tests};

tests![
    the_features_are_json_that_needs_no_other_option,
    what_is_listed_is_what_runc_lists,
    every_listed_name_is_accepted,
    the_flags_that_are_supported_can_be_loaded,
];

fn features(c: &Sandbox) -> Value {
    c.keel(&["features"]).ok().json()
}

fn the_features_are_json_that_needs_no_other_option() {
    needs!(keel());
    let c = Sandbox::new();
    let output = Command::new(&c.runtime).arg("features").env_clear().output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen, features(&c));
    assert_eq!((&seen["ociVersionMin"], &seen["ociVersionMax"]), (&json!("1.0.0"), &json!("1.3.0")));
    assert_eq!(
        seen["potentiallyUnsafeConfigAnnotations"],
        json!(["run.oci.delegate-cgroup", "org.systemd.property.", "org.criu.config"])
    );
    let cgroup = json!({"v1": false, "v2": true, "systemd": true, "systemdUser": true, "rdma": true});
    assert_eq!(seen["linux"]["cgroup"], cgroup);
    assert_eq!(seen["linux"]["mountExtensions"], json!({"idmap": {"enabled": true}}));
    assert!(!c.dir.join("state").exists(), "nothing is made");
}

/// Every array of runc's is there, with all its names but those for which there is a reason; every other value has its
/// type.
fn what_is_listed_is_what_runc_lists() {
    needs!(program("runc"));
    let runc = Command::new("runc").arg("features").output().unwrap();
    let (runc, ours): (Value, _) = (serde_json::from_slice(&runc.stdout).unwrap(), features(&Sandbox::new()));
    let mut missing = Vec::new();
    compare("", &runc, &ours, &mut missing);
    // The versions are runc's and its libraries'; acl and noacl are passed on to the file system, like all that keel does
    // not know; no annotation changes what keel does to the bundle.
    missing.retain(|name| {
        let known = [
            "/annotations/org.opencontainers.runc.commit",
            "/annotations/org.opencontainers.runc.version",
            "/annotations/io.github.seccomp.libseccomp.version",
            "/annotations/com.cyphar.pathrs.libpathrs.version",
            "/mountOptions acl",
            "/mountOptions noacl",
            "/potentiallyUnsafeConfigAnnotations bundle",
        ];
        !known.contains(&name.as_str())
    });
    assert_eq!(missing, Vec::<String>::new());
}

fn compare(at: &str, theirs: &Value, ours: &Value, missing: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (key, value) in theirs {
                compare(&format!("{at}/{key}"), value, ours.get(key).unwrap_or(&Value::Null), missing);
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            let names = theirs.iter().filter(|name| !ours.contains(name));
            missing.extend(names.map(|name| format!("{at} {}", name.as_str().unwrap_or_default())));
        }
        (Value::Bool(_), Value::Bool(_)) | (Value::String(_), Value::String(_)) => {}
        _ => missing.push(at.to_owned()),
    }
}

fn names(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().expect("an array").iter().filter_map(Value::as_str)
}

/// What `check` says of a config that uses all of them.
fn every_listed_name_is_accepted() {
    needs!(keel());
    let mut c = Sandbox::new();
    let features = features(&c);
    let linux = &features["linux"];
    let check = |c: &Sandbox, what: &str| {
        c.write_config();
        let output = c.keel(&["check"]);
        assert!(output.code == 0 && output.stdout.is_empty(), "{what}: {output:#?}");
    };
    for hook in names(&features["hooks"]) {
        c.set(&format!("/hooks/{hook}"), json!([{"path": "/bin/true"}]));
    }
    c.set(
        "/linux/namespaces",
        names(&linux["namespaces"]).map(|name| json!({"type": name})).collect::<Vec<_>>(),
    );
    for key in ["uidMappings", "gidMappings"] {
        c.set(&format!("/linux/{key}"), json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]));
    }
    for (i, policy) in names(&linux["memoryPolicy"]["modes"]).enumerate() {
        let takes_nodes = policy != "MPOL_DEFAULT" && policy != "MPOL_LOCAL";
        c.set("/linux/memoryPolicy", json!({"mode": policy}));
        if takes_nodes {
            c.set("/linux/memoryPolicy/nodes", "0");
            let flags: Vec<&str> = names(&linux["memoryPolicy"]["flags"]).collect();
            // They exclude each other, and the first of them is for one mode only.
            let flag = if policy == "MPOL_BIND" { flags[0] } else { flags[1 + i % 2] };
            c.set("/linux/memoryPolicy/flags", json!([flag]));
        }
        check(&c, policy);
    }
    let seccomp = &linux["seccomp"];
    for (i, action) in names(&seccomp["actions"]).enumerate() {
        let operator = names(&seccomp["operators"]).nth(i % 7);
        c.set(
            "/linux/seccomp",
            json!({
                "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "architectures": seccomp["archs"],
                "flags": seccomp["knownFlags"],
                "syscalls": [
                    {"names": ["mount"], "action": action,
                     "args": [{"index": 0, "value": 1, "op": operator}]},
                    {"names": ["umount2"], "action": "SCMP_ACT_NOTIFY"},
                ],
            }),
        );
        check(&c, action);
    }
    c.unset("/linux/seccomp");
    for option in names(&features["mountOptions"]) {
        let way = match option {
            "bind" | "rbind" | "remount" => json!([option]),
            // Of new file systems.
            "sync" | "dirsync" | "lazytime" | "iversion" | "noiversion" | "tmpcopyup" => json!([option]),
            _ => json!(["bind", option]),
        };
        let kind = if way[0] == "bind" || way[0] == "rbind" { "none" } else { "tmpfs" };
        let last = json!({"destination": "/tmp", "type": kind, "source": "/tmp", "options": way});
        c.mount(last);
        c.write_config();
        let output = c.keel(&["check"]);
        // A warning is no refusal: mand has no effect any more.
        assert!(output.code == 0 && !output.stdout.contains("must"), "{option}: {output:#?}");
        let mounts = c.config["mounts"].as_array_mut().unwrap();
        mounts.pop();
    }
}

fn the_flags_that_are_supported_can_be_loaded() {
    needs!(keel());
    let mut c = Sandbox::new();
    let flags = features(&c)["linux"]["seccomp"]["supportedFlags"].clone();
    // One of them takes an agent.
    let flags: Vec<&str> = names(&flags).filter(|flag| !flag.ends_with("WAIT_KILLABLE_RECV")).collect();
    assert!(!flags.is_empty());
    c.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}));
    assert_eq!(c.report()["seccomp"], "2");
}
