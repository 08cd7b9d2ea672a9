//! `--systemd-cgroup`: limits that systemd keeps, and what of them can be changed and watched.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, eventually, keel, systemd};
use crate::{needs, tests};

tests![
    each_limit_is_written_and_known_to_systemd,
    limits_and_device_rules_outlive_a_reload,
    a_quota_is_what_systemd_can_keep,
    a_refused_property_names_its_field,
    a_value_that_systemd_cannot_read_is_refused,
    a_limit_that_not_even_init_fits_into_is_named,
    an_update_that_ends_the_container_is_no_error,
    an_update_is_known_to_systemd,
    the_period_of_no_quota_is_not_lost,
    how_the_killer_kills_is_decided_at_create,
    a_signal_ends_the_wait_for_systemd,
    an_update_that_is_refused_changes_nothing,
    annotations_set_properties,
    annotations_that_would_reach_the_host_are_refused,
    all_commands_act_on_a_scope,
];

fn with_resources(resources: Value) -> Sandbox {
    let mut c = Sandbox::with_resources(resources);
    c.scope();
    c
}

/// A property of the container's unit.
#[track_caller]
fn property(c: &Sandbox, name: &str) -> String {
    let output = Command::new("systemctl").args(["show", "-P", name, &c.unit()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn manager(command: &str) {
    assert!(Command::new("systemctl").arg(command).status().unwrap().success(), "systemctl {command}");
}

/// Limits, the file that holds each, and what systemctl says of it.
fn limits() -> Vec<(Value, &'static str, &'static str, &'static str, &'static str)> {
    let memory = |key: &str, value: i64| json!({"memory": {"limit": 64 << 20, key: value}});
    let unified = |file: &str, value: &str| json!({"unified": {file: value}});
    vec![
        (json!({"memory": {"limit": 64 << 20}}), "memory.max", "67108864", "MemoryMax", "67108864"),
        (memory("reservation", 4096), "memory.low", "4096", "MemoryLow", "4096"),
        (memory("swap", 65 << 20), "memory.swap.max", "1048576", "MemorySwapMax", "1048576"),
        (memory("swap", -1), "memory.swap.max", "max", "MemorySwapMax", "infinity"),
        (json!({"cpu": {"shares": 2048}}), "cpu.weight", "174", "CPUWeight", "174"),
        (json!({"cpu": {"idle": 1}}), "cpu.idle", "1", "CPUWeight", "idle"),
        (json!({"cpu": {"quota": 20000}}), "cpu.max", "20000 100000", "CPUQuotaPerSecUSec", "200ms"),
        (json!({"cpu": {"period": 50000}}), "cpu.max", "max 50000", "CPUQuotaPeriodUSec", "50ms"),
        (json!({"cpu": {"cpus": "1"}}), "cpuset.cpus", "1", "AllowedCPUs", "1"),
        (json!({"cpu": {"mems": "0"}}), "cpuset.mems", "0", "AllowedMemoryNodes", "0"),
        (json!({"pids": {"limit": 7}}), "pids.max", "7", "TasksMax", "7"),
        (json!({"pids": {"limit": -1}}), "pids.max", "max", "TasksMax", "infinity"),
        (json!({"blockIO": {"weight": 200}}), "io.bfq.weight", "default 200", "IOWeight", "1200"),
        (unified("memory.high", "8388608"), "memory.high", "8388608", "MemoryHigh", "8388608"),
        (unified("memory.min", "4096"), "memory.min", "4096", "MemoryMin", "4096"),
        (unified("memory.oom.group", "1"), "memory.oom.group", "1", "OOMPolicy", "kill"),
        (unified("cpu.weight", "33"), "cpu.weight", "33", "CPUWeight", "33"),
        (unified("cpuset.cpus", "0-1"), "cpuset.cpus", "0-1", "AllowedCPUs", "0-1"),
    ]
}

fn each_limit_is_written_and_known_to_systemd() {
    needs!(keel(), systemd());
    for (resources, file, value, name, shown) in limits() {
        let c = with_resources(resources.clone());
        c.created();
        assert_eq!((&*c.limit(file), &*property(&c, name)), (value, shown), "{resources}");
    }
}

/// systemd writes its properties again then, and no others: what it has none for must not be lost either.
fn limits_and_device_rules_outlive_a_reload() {
    needs!(keel(), systemd());
    let mut c = with_resources(json!({
        "memory": {"limit": 64 << 20, "swap": 65 << 20, "reservation": 4096},
        "cpu": {"shares": 2048, "quota": 12345, "period": 50000, "burst": 1000, "cpus": "1", "mems": "0"},
        "pids": {"limit": 0},
        "blockIO": {
            "weight": 200,
            "throttleReadBpsDevice": [{"major": 254, "minor": 16, "rate": 4096}],
        },
        "unified": {"memory.high": "33554432", "memory.oom.group": "1"},
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}],
    }));
    c.running();
    let files = [
        "memory.max",
        "memory.swap.max",
        "memory.low",
        "memory.high",
        "memory.oom.group",
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
        "cpuset.cpus",
        "cpuset.mems",
        "io.bfq.weight",
        "io.max",
    ];
    let held = || files.map(|file| format!("{file} {}", c.limit(file)));
    let before = held();
    assert!(before.contains(&"cpu.max 12500 50000".into()), "{before:?}");
    let filters = || {
        let output = Command::new("bpftool").args(["cgroup", "show"]).arg(c.cgroup()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let filter = filters();
    assert_eq!(filter.matches("cgroup_device").count(), 1, "{filter}");
    manager("daemon-reload");
    // It writes all again in its own time; a change that it is asked for comes after that.
    for weight in ["175", "174"] {
        let change = ["set-property", "--runtime", &c.unit(), &format!("CPUWeight={weight}")];
        assert!(Command::new("systemctl").args(change).status().unwrap().success());
        eventually("systemd has written the weight", || c.limit("cpu.weight") == weight);
    }
    assert_eq!((held(), filters()), (before, filter));
    // Of no process that may be made, systemd knows one that is.
    assert!(["0", "1"].contains(&&*c.limit("pids.max")));
}

fn a_quota_is_what_systemd_can_keep() {
    needs!(keel(), systemd());
    let c = with_resources(json!({"cpu": {"quota": 12345}}));
    c.created();
    assert_eq!((&*c.limit("cpu.max"), &*property(&c, "CPUQuotaPerSecUSec")), ("13000 100000", "130ms"));
}

fn a_refused_property_names_its_field() {
    needs!(keel(), systemd());
    let error = with_resources(json!({"memory": {"limit": 64 << 20}, "unified": {"cpu.weight": "20000"}}))
        .refused("/linux/resources/unified/cpu.weight");
    assert!(error.contains("CPUWeight"), "{error}");
    // systemd does not say which.
    with_resources(json!({"cpu": {"cpus": "65535"}})).refused("/linux/resources/cpu/cpus");
}

fn a_value_that_systemd_cannot_read_is_refused() {
    needs!(keel());
    let error = with_resources(json!({"unified": {"memory.max": "1G"}}))
        .refused("/linux/resources/unified/memory.max");
    assert!(error.contains("must be a whole number or \"max\" for systemd, not \"1G\""), "{error}");
}

/// The cgroup, which could tell why init was killed, is gone by then.
fn a_limit_that_not_even_init_fits_into_is_named() {
    needs!(keel(), systemd());
    let error = with_resources(json!({"memory": {"limit": 4096}})).refused("/linux/resources/memory/limit");
    assert!(error.contains("killed"), "{error}");
}

fn an_update_that_ends_the_container_is_no_error() {
    needs!(keel(), systemd());
    let mut c = with_resources(json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}}));
    c.running();
    c.update(&json!({"memory": {"limit": 4096, "swap": 4096}}));
    c.wait_stopped();
    c.delete().ok();
}

fn an_update_is_known_to_systemd() {
    needs!(keel(), systemd());
    let mut c =
        with_resources(json!({"memory": {"limit": 64 << 20}, "cpu": {"quota": 20000, "period": 50000}}));
    c.running();
    for (resources, file, value, name, shown) in [
        (json!({"memory": {"limit": 32 << 20}}), "memory.max", "33554432", "MemoryMax", "33554432"),
        (json!({"cpu": {"quota": 10001}}), "cpu.max", "10500 50000", "CPUQuotaPerSecUSec", "210ms"),
        (json!({"cpu": {"period": 25000}}), "cpu.max", "10500 25000", "CPUQuotaPeriodUSec", "25ms"),
        (json!({"cpu": {"idle": 1}}), "cpu.idle", "1", "CPUWeight", "idle"),
        (json!({"cpu": {"idle": 0}}), "cpu.idle", "0", "CPUWeight", "[not set]"),
        (json!({"pids": {"limit": 9}}), "pids.max", "9", "TasksMax", "9"),
    ] {
        c.update(&resources).ok();
        assert_eq!((&*c.limit(file), &*property(&c, name)), (value, shown), "{resources}");
    }
    manager("daemon-reload");
    assert_eq!((&*c.limit("memory.max"), &*c.limit("cpu.max")), ("33554432", "10500 25000"));
    // Nothing of it is kept for the next unit of this name.
    assert!(!fs::exists(format!("/etc/systemd/system.control/{}.d", c.unit())).unwrap());
}

/// systemd writes the kernel's own period then.
fn the_period_of_no_quota_is_not_lost() {
    needs!(keel(), systemd());
    let mut c = with_resources(json!({"cpu": {"period": 50000}}));
    c.running();
    manager("daemon-reload");
    c.update(&json!({"cpu": {"shares": 2048}})).ok();
    eventually("systemd has written it", || c.limit("cpu.max") == "max 100000");
    c.update(&json!({"cpu": {"quota": 10000}})).ok();
    assert_eq!((&*c.limit("cpu.max"), &*property(&c, "CPUQuotaPerSecUSec")), ("10000 50000", "200ms"));
    let mut c = with_resources(json!({}));
    c.running();
    c.update(&json!({"cpu": {"quota": 10000}})).ok();
    assert_eq!(c.limit("cpu.max"), "10000 100000");
}

/// systemd takes an OOMPolicy for a new scope only.
fn how_the_killer_kills_is_decided_at_create() {
    needs!(keel(), systemd());
    let mut c = with_resources(json!({"unified": {"memory.oom.group": "1"}}));
    c.running();
    let error = c.update(&json!({"unified": {"memory.oom.group": "0"}})).fails();
    assert!(error.contains("/unified/memory.oom.group"), "{error}");
    assert_eq!(c.limit("memory.oom.group"), "1");
}

/// A bus on which nobody answers.
fn a_signal_ends_the_wait_for_systemd() {
    needs!(keel());
    for words in [&["create"][..], &["run"], &["run", "--detach"]] {
        let c = with_resources(json!({}));
        c.write_config();
        let bus = c.host_dir("").join("bus");
        let listener = std::os::unix::net::UnixListener::bind(&bus).unwrap();
        let mut command = c.command(&[words, &[&*c.id]].concat());
        command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", bus.display()));
        let running = c.spawn(command);
        let (mut stream, _) = listener.accept().unwrap();
        // It has greeted, and will wait for an answer.
        std::io::Read::read_exact(&mut stream, &mut [0; 1]).unwrap();
        let pid = nix::unistd::Pid::from_raw(running.pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let error = running.wait().fails();
        assert!(error.contains("interrupted by a signal"), "{error}");
        assert_eq!(c.left(), Vec::<String>::new());
    }
}

fn an_update_that_is_refused_changes_nothing() {
    needs!(keel(), systemd());
    let mut c = with_resources(json!({"memory": {"limit": 64 << 20}}));
    c.running();
    let refused =
        c.update(&json!({"memory": {"limit": 32 << 20}, "unified": {"cgroup.max.depth": "x"}})).fails();
    assert!(refused.contains("/unified/cgroup.max.depth"), "{refused}");
    assert_eq!((&*c.limit("memory.max"), &*property(&c, "MemoryMax")), ("67108864", "67108864"));
}

fn annotations_set_properties() {
    needs!(keel(), systemd());
    for (name, text, shown) in [
        ("After", "['basic.target', 'dbus.socket']", "dbus.socket basic.target system.slice"),
        ("Before", "['shutdown.target']", "shutdown.target"),
        ("CollectMode", "'inactive-or-failed'", "inactive-or-failed"),
        ("DefaultDependencies", "true", "yes"),
        ("Documentation", "['man:a(1)']", "\"man:a(1)\""),
        ("FinalKillSignal", "int32 6", "6"),
        ("IgnoreOnIsolate", "false", "no"),
        ("IPAccounting", "true", "yes"),
        ("KillMode", "'mixed'", "mixed"),
        ("KillSignal", "37", "37"),
        ("ManagedOOMMemoryPressure", "'kill'", "kill"),
        ("ManagedOOMPreference", "'omit'", "omit"),
        ("ManagedOOMSwap", "'kill'", "kill"),
        ("MemoryPressureThresholdSec", "1", "1s"),
        ("MemoryPressureWatch", "'skip'", "skip"),
        ("OOMPolicy", "'kill'", "kill"),
        ("PartOf", "['a.service']", "a.service"),
        ("RestartKillSignal", "int32 5", "5"),
        ("RuntimeMaxSec", "uint64 90", "1min 30s"),
        ("RuntimeRandomizedExtraUSec", "uint64 1", "1us"),
        ("SendSIGHUP", "true", "yes"),
        ("SendSIGKILL", "false", "no"),
        ("TimeoutStopSec", "7", "7s"),
        ("TimeoutStopUSec", "uint64 7000", "7ms"),
    ] {
        let mut c = with_resources(json!({}));
        c.set(&format!("/annotations/org.systemd.property.{name}"), text).created();
        let name = name
            .strip_suffix("Sec")
            .filter(|stem| !stem.ends_with('U'))
            .map_or(name.into(), |stem| format!("{stem}USec"));
        let (mut seen, mut expected): (Vec<_>, Vec<_>) =
            (property(&c, &name).split(' ').map(str::to_owned).collect(), shown.split(' ').collect());
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected, "{name}={text}");
    }
}

fn annotations_that_would_reach_the_host_are_refused() {
    needs!(keel());
    for name in ["SuccessAction", "Wants", "Delegate"] {
        let mut c = with_resources(json!({}));
        c.set(&format!("/annotations/org.systemd.property.{name}"), "'reboot'");
        let error = c.refused(&format!("/annotations/org.systemd.property.{name}"));
        assert!(error.contains("cannot be set by an annotation: only After, "), "{error}");
    }
}

fn all_commands_act_on_a_scope() {
    needs!(keel(), systemd());
    let mut c = with_resources(json!({"memory": {"limit": 64 << 20}}));
    c.running();
    commands_act_on(&c);
}

/// A running container with a limit of 64 MiB, which they end.
#[track_caller]
pub fn commands_act_on(c: &Sandbox) {
    assert_eq!(c.exec(&[], "cat /proc/self/cgroup").ok().stdout, "0::/\n");
    let pids = c.keel(&["ps", "--format", "json", &c.id]).ok().json();
    assert_eq!(pids, json!([c.pid()]));
    let events = c.keel(&["events", "--stats", &c.id]).ok().json();
    assert_eq!(events["data"]["memory"]["usage"]["limit"], 64 << 20);
    c.keel(&["pause", &c.id]).ok();
    assert_eq!((c.status(), c.count("cgroup.events", "frozen")), ("paused".into(), 1));
    c.keel(&["resume", &c.id]).ok();
    c.kill("KILL").ok();
    c.wait_stopped();
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}
