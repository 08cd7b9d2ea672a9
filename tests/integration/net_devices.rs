//! /linux/netDevices: moving interfaces into the container. All in a network namespace of the test's own.

use std::process::Command;

use serde_json::{Value, json};

use crate::sandbox::{Output, Sandbox, keel, program};
use crate::{needs, tests};

tests![
    a_device_is_moved_and_renamed_and_up,
    addresses_are_kept,
    a_name_template_is_filled_by_the_kernel,
    a_missing_device_is_refused,
    a_taken_name_is_refused,
    a_device_without_a_network_namespace_is_refused,
    names_that_the_kernel_does_not_allow_are_refused,
    a_device_stays_where_it_is_if_another_is_missing,
    the_device_of_a_failed_create_comes_back_as_it_was,
];

const VETH: &str = "ip link add kt0 type veth peer name kt1";

/// Runs a container where `setup` was run, in a new network namespace; `after` runs there at the end.
fn run(c: &mut Sandbox, setup: &str, after: &str) -> Output {
    c.write_config();
    let keel = c.command(&["run", &c.id]);
    let mut shell = Command::new("unshare");
    let text = format!("{setup} || exit 77; \"$@\"; code=$?; {after} exit $code");
    shell.args(["--net", "sh", "-c", &text, "sh"]).arg(keel.get_program()).args(keel.get_args());
    c.execute({
        shell.current_dir(c.bundle());
        shell
    })
}

fn with(devices: Value) -> Sandbox {
    let mut c = Sandbox::new();
    c.set("/linux/netDevices", devices);
    c
}

fn interfaces(c: &mut Sandbox, setup: &str) -> Value {
    c.acts("report");
    run(c, setup, "").ok().json()["interfaces"].take()
}

fn a_device_is_moved_and_renamed_and_up() {
    needs!(keel(), program("ip"));
    let mut c = with(json!({"kt0": {"name": "eth0"}}));
    assert_eq!(interfaces(&mut c, VETH), json!(["eth0", "lo"]));
    c.acts("cat /sys/class/net/eth0/flags");
    let flags = run(&mut c, VETH, "").ok().stdout;
    assert_eq!(
        u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap() & 1,
        1,
        "IFF_UP in {flags}"
    );
    assert_eq!(interfaces(&mut with(json!({"kt0": {}})), VETH), json!(["kt0", "lo"]));
}

fn addresses_are_kept() {
    needs!(keel(), program("ip"));
    let mut c = with(json!({"kt0": {}}));
    let setup = format!("{VETH}; ip addr add 10.7.0.1/24 dev kt0; ip addr add fd07::1/64 dev kt0 nodad");
    c.acts("cat /proc/net/fib_trie ; cat /proc/net/if_inet6");
    let seen = run(&mut c, &setup, "").ok().stdout;
    assert!(seen.contains("10.7.0.1") && seen.contains("fd070000000000000000000000000001"), "{seen}");
}

fn a_name_template_is_filled_by_the_kernel() {
    needs!(keel(), program("ip"));
    let mut c = with(json!({"kt0": {"name": "port%d"}, "kt1": {"name": "port%d"}}));
    assert_eq!(interfaces(&mut c, VETH), json!(["lo", "port0", "port1"]));
}

fn a_missing_device_is_refused() {
    needs!(keel());
    with(json!({"nonesuch0": {}})).refused("/linux/netDevices/nonesuch0");
}

fn a_taken_name_is_refused() {
    needs!(keel(), program("ip"));
    let mut c = with(json!({"kt0": {"name": "lo"}}));
    let output = run(&mut c, VETH, "");
    assert!(output.code == 1 && output.stderr.contains("/linux/netDevices/kt0"), "{output:#?}");
}

fn a_device_without_a_network_namespace_is_refused() {
    needs!(keel());
    with(json!({"kt0": {}})).without_namespace("network").refused("/linux/netDevices");
}

fn names_that_the_kernel_does_not_allow_are_refused() {
    needs!(keel());
    for name in ["a/b", "sixteencharacter", "a b", ".", "..", "a%s", "%d%d"] {
        with(json!({"kt0": {"name": name}})).refused("/linux/netDevices/kt0/name");
    }
}

/// A veth pair that has moved would die with the container's namespace.
fn the_device_of_a_failed_create_comes_back_as_it_was() {
    needs!(keel(), program("ip"));
    let mut c = with(json!({"kt0": {"name": "eth0"}}));
    let hook = c.script("hook", "exit 1");
    c.set("/hooks/createRuntime", json!([{"path": hook}]));
    let setup = format!("{VETH} && ip addr add 192.0.2.7/24 dev kt0 && ip link set kt0 up");
    let after = "ip -o addr show kt0 | grep -q 192.0.2.7/24 && ip -o link show kt0 | grep -q UP || exit 78;";
    let output = run(&mut c, &setup, after);
    assert!(output.code == 1 && output.stderr.contains("/hooks/createRuntime/0"), "{output:#?}");
}

/// All are looked up before the first one moves.
fn a_device_stays_where_it_is_if_another_is_missing() {
    needs!(keel(), program("ip"));
    let mut c = with(json!({"kt0": {"name": "eth0"}, "nonesuch0": {}}));
    let output = run(&mut c, VETH, "ip -o link show kt0 >/dev/null || exit 78;");
    assert!(output.code == 1 && output.stderr.contains("/linux/netDevices/nonesuch0"), "{output:#?}");
}
