//! `events`: what a container uses, line by line, and who is killed for lack of memory.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::sandbox::{Running, Sandbox, cgroupfs, controller, eventually, keel, path};
use crate::{needs, tests};

tests![
    stats_are_one_line_in_the_shape_of_runc,
    what_no_controller_counts_is_left_out,
    limits_and_usage_are_those_of_the_cgroup,
    huge_pages_are_told_by_size,
    stalls_are_told,
    a_paused_or_created_container_has_stats,
    a_container_without_intel_rdt_has_an_empty_section,
    a_line_comes_every_interval,
    a_kill_for_lack_of_memory_is_told_at_once,
    the_kill_of_the_container_itself_is_told,
    the_memory_controller_may_be_taken_away,
    it_ends_when_the_container_stops,
    it_ends_when_the_container_is_deleted,
    it_goes_on_while_others_live_in_a_shared_pid_namespace,
    it_ends_when_nobody_reads,
    it_waits_without_work,
    a_stopped_container_is_refused,
    an_unknown_container_is_refused,
    an_interval_that_is_none_is_refused,
];

fn running() -> Sandbox {
    let mut c = Sandbox::new();
    c.running();
    c
}

fn stats(c: &Sandbox) -> Value {
    let output = c.keel(&["events", "--stats", &c.id]).ok();
    assert_eq!(output.lines().len(), 1, "{output:?}");
    let mut event = output.json();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(c.id)));
    event["data"].take()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The lines of an `events` in the background.
fn follow(c: &Sandbox, interval: &str) -> Running {
    c.spawn(c.command(&["events", "--interval", interval, &c.id]))
}

/// The types of its lines so far.
fn types(output: &str) -> Vec<String> {
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|event| Some(event.get("type")?.as_str()?.to_owned())).collect()
}

fn stats_are_one_line_in_the_shape_of_runc() {
    let c = running();
    let data = stats(&c);
    let sections = ["blkio", "cpu", "cpuset", "hugetlb", "intel_rdt", "memory", "network_interfaces", "pids"];
    assert_eq!(keys(&data), sections);
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 100_000, "{data}");
    assert_eq!(data["pids"]["current"], 1);
    assert_eq!(data["network_interfaces"], Value::Null);
    assert_eq!(data["cpuset"]["sched_relax_domain_level"], 0);
}

fn what_no_controller_counts_is_left_out() {
    needs!(cgroupfs(), keel());
    let c = running();
    let data = stats(&c);
    if !c.cgroup().join("memory.stat").exists() {
        assert_eq!(data["memory"]["usage"], json!({"limit": 0, "failcnt": 0}));
        assert_eq!(data["memory"].get("raw"), None);
    }
    if !c.cgroup().join("io.stat").exists() {
        assert_eq!(data["blkio"].get("ioServicedRecursive"), None);
    }
    assert_eq!(data["pids"].get("limit"), None);
}

fn limits_and_usage_are_those_of_the_cgroup() {
    needs!(controller("memory"), controller("pids"), controller("cpu"), controller("io"));
    let mut c = Sandbox::new();
    let weight = json!({"weight": 100});
    c.set("/linux/resources/memory", json!({"limit": 64 << 20, "swap": 96 << 20}));
    c.set("/linux/resources/pids", json!({"limit": 20}));
    c.set("/linux/resources/cpu", json!({"quota": 5000, "period": 100_000}));
    c.set("/linux/resources/blockIO", weight);
    c.acts("memory 8 ; spawn 2 ; pause").created().start().ok();
    c.wait_printed("ok\nok");
    let data = stats(&c);
    assert_eq!(data["pids"], json!({"current": 3, "limit": 20}));
    let memory = &data["memory"];
    assert_eq!(keys(memory), ["cache", "kernel", "kernelTCP", "psi", "raw", "swap", "usage"]);
    assert_eq!(memory["usage"]["limit"], 64 << 20);
    let swap = if c.cgroup().join("memory.swap.max").exists() { 96 << 20 } else { 64 << 20 };
    assert_eq!(memory["swap"]["limit"], swap);
    assert!(memory["usage"]["usage"].as_u64().unwrap() > 8 << 20, "{memory}");
    assert!(memory["usage"]["max"].as_u64() >= memory["usage"]["usage"].as_u64(), "{memory}");
    assert!(memory["raw"]["anon"].as_u64().unwrap() > 8 << 20, "{memory}");
    assert_eq!(memory["cache"], memory["raw"]["file"]);
    let cpu = &data["cpu"];
    assert!(cpu["throttling"]["periods"].as_u64().unwrap() > 0, "{cpu}");
    let usage = |key: &str| cpu["usage"][key].as_u64().unwrap();
    assert!(usage("total") >= usage("user").max(usage("kernel")), "{cpu}");
}

fn huge_pages_are_told_by_size() {
    needs!(controller("hugetlb"), path("/sys/kernel/mm/hugepages/hugepages-2048kB"));
    let mut c = Sandbox::new();
    c.set("/linux/resources/hugepageLimits", json!([{"pageSize": "2MB", "limit": 0}]));
    c.running();
    assert_eq!(stats(&c)["hugetlb"]["2MB"], json!({"failcnt": 0}));
}

fn stalls_are_told() {
    needs!(keel(), path("/proc/pressure/cpu"));
    let c = running();
    let data = stats(&c);
    for section in ["cpu", "memory", "blkio"] {
        let psi = &data[section]["psi"];
        assert_eq!(keys(psi), ["full", "some"], "{section}");
        for line in ["some", "full"] {
            assert_eq!(keys(&psi[line]), ["avg10", "avg300", "avg60", "total"]);
            assert!(psi[line]["avg10"].is_f64() && psi[line]["total"].is_u64(), "{psi}");
        }
    }
}

fn a_paused_or_created_container_has_stats() {
    let mut c = Sandbox::new();
    c.acts("pause").created();
    assert_eq!(stats(&c)["pids"]["current"], 1);
    c.start().ok();
    c.keel(&["pause", &c.id]).ok();
    assert_eq!(stats(&c)["pids"]["current"], 1);
}

fn a_container_without_intel_rdt_has_an_empty_section() {
    assert_eq!(stats(&running())["intel_rdt"], json!({}));
}

fn a_line_comes_every_interval() {
    let c = running();
    let begin = Instant::now();
    let _events = follow(&c, "100ms");
    eventually("four lines", || types(&c.printed()).len() >= 4);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(400), "{took:?}");
    assert!(types(&c.printed()).iter().all(|kind| kind == "stats"));
}

fn a_kill_for_lack_of_memory_is_told_at_once() {
    needs!(controller("memory"));
    let mut c = Sandbox::new();
    c.set("/linux/resources/memory", json!({"limit": 32 << 20, "swap": 32 << 20}));
    c.acts("await USR1 ; child memory 64 ; await USR2 ; child memory 64 ; pause").created().start().ok();
    c.wait_printed("waiting");
    // With an interval of an hour, nothing but the kills makes it write.
    let events = follow(&c, "1h");
    let oom = format!("{{\"type\":\"oom\",\"id\":\"{}\"}}\n", c.id);
    eventually("it watches", || events.polls());
    c.kill("USR1").ok();
    c.wait_printed("SIG9");
    c.wait_printed(&oom);
    c.kill("USR2").ok();
    eventually("the second", || c.printed().matches(&oom).count() == 2);
    c.kill("KILL").ok();
    assert_eq!(events.wait().ok().stdout, oom.repeat(2));
}

fn the_kill_of_the_container_itself_is_told() {
    needs!(controller("memory"));
    let mut c = Sandbox::new();
    c.set("/linux/resources/memory", json!({"limit": 32 << 20, "swap": 32 << 20}));
    c.acts("await USR1 ; memory 64").created().start().ok();
    c.wait_printed("waiting");
    let events = follow(&c, "1h");
    eventually("it watches", || events.polls());
    c.kill("USR1").ok();
    assert_eq!(types(&events.wait().ok().stdout), ["oom"]);
}

fn the_memory_controller_may_be_taken_away() {
    needs!(keel(), controller("memory"));
    let mut c = Sandbox::new();
    c.set("/linux/cgroupsPath", format!("/{}/inner", c.id));
    c.set("/linux/resources/memory", json!({"limit": 32 << 20})).running();
    let events = follow(&c, "1h");
    eventually("it watches", || events.polls());
    fs::write(c.cgroup().join("cgroup.subtree_control"), "-memory").unwrap();
    assert!(!c.cgroup().join("inner/memory.events").exists());
    // Which it sees, and looks again.
    c.keel(&["pause", &c.id]).ok();
    c.keel(&["resume", &c.id]).ok();
    stands_still(&events);
    c.delete_force().ok();
    events.wait().ok();
    fs::remove_dir(c.cgroup()).unwrap();
}

fn it_ends_when_the_container_stops() {
    let c = running();
    let events = follow(&c, "1h");
    eventually("it watches", || events.polls());
    c.kill("KILL").ok();
    assert_eq!(events.wait().ok().stdout, "");
}

fn it_ends_when_the_container_is_deleted() {
    let c = running();
    let events = follow(&c, "50ms");
    c.wait_printed("\"stats\"");
    c.delete_force().ok();
    let output = events.wait().ok().stdout;
    assert!(types(&output).len() == output.lines().count(), "{output}");
}

fn it_goes_on_while_others_live_in_a_shared_pid_namespace() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.without_namespace("pid");
    c.acts("spawn 1 ; await USR1").created().start().ok();
    c.wait_printed("waiting");
    let events = follow(&c, "1h");
    eventually("it watches", || events.polls());
    c.kill("USR1").ok();
    c.wait_stopped();
    stands_still(&events);
    c.keel(&["kill", "--all", &c.id, "KILL"]).ok();
    events.wait().ok();
}

fn it_ends_when_nobody_reads() {
    needs!(keel());
    let c = running();
    let mut command = c.command(&["events", "--interval", "1h", &c.id]);
    let (reader, writer) = std::io::pipe().unwrap();
    let events = Running::of(command.stdout(writer));
    // The command holds the writing end too.
    drop(command);
    drop(reader);
    assert_eq!(events.wait().code, 0);
}

fn it_waits_without_work() {
    needs!(keel());
    let c = running();
    let events = follow(&c, "1h");
    eventually("it watches", || events.polls());
    stands_still(&events);
}

/// It neither ends nor runs.
fn stands_still(events: &Running) {
    let cpu_time = || fs::read_to_string(format!("/proc/{}/schedstat", events.pid())).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let before = cpu_time();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(cpu_time(), before);
    assert!(events.polls());
}

fn a_stopped_container_is_refused() {
    let mut c = Sandbox::new();
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    for args in [&["events", "--stats", &c.id][..], &["events", &c.id]] {
        let error = c.keel(args).fails();
        assert!(error.contains(&format!("container with id {} is not running", c.id)), "{error}");
    }
}

fn an_unknown_container_is_refused() {
    let c = Sandbox::new();
    let error = c.keel(&["events", "--stats", &c.id]).fails();
    assert!(error.contains("does not exist"), "{error}");
}

fn an_interval_that_is_none_is_refused() {
    needs!(keel());
    let c = running();
    for interval in ["0", "0s", "-5s", "5", "soon", ""] {
        let error = c.keel(&["events", "--interval", interval, &c.id]).fails();
        assert!(error.contains("must be a duration greater than 0"), "{interval}: {error}");
    }
}
