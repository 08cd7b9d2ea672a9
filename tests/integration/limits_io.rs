//! /linux/resources/blockIO on a host whose cgroups have the controller: what is written, and that it holds.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, controller, disk, keel};
use crate::{needs, tests};

tests![
    a_weight_is_that_of_the_scheduler,
    a_device_has_a_weight_of_its_own,
    rates_are_lines_of_their_device,
    a_rate_slows_the_disk_down,
    an_updated_rate_leaves_the_others,
    a_device_that_does_not_exist_is_refused,
];

/// Adds the disk's number to each entry; the container has the disk at /dev/disk.
fn io(mut section: Value) -> (Sandbox, String) {
    let device = fs::metadata(disk().unwrap()).unwrap().rdev();
    let number = (major(device), minor(device));
    let entries = section.as_object_mut().unwrap().values_mut().filter_map(Value::as_array_mut).flatten();
    for entry in entries {
        (entry["major"], entry["minor"]) = (json!(number.0), json!(number.1));
    }
    let node = json!({"type": "b", "path": "/dev/disk", "major": number.0, "minor": number.1});
    let rule = json!({"allow": true, "type": "b", "major": number.0, "minor": number.1, "access": "rw"});
    let mut c = Sandbox::with_resources(json!({"blockIO": section, "devices": [rule]}));
    c.set("/linux/devices", json!([node]));
    (c, format!("{}:{}", number.0, number.1))
}

fn a_weight_is_that_of_the_scheduler() {
    needs!(controller("io"), disk());
    for (weight, bfq, other) in
        [(10, "10", "1"), (100, "100", "910"), (500, "500", "4950"), (1000, "1000", "10000")]
    {
        let (c, _) = io(json!({"weight": weight}));
        c.created();
        if c.cgroup().join("io.bfq.weight").exists() {
            assert_eq!(c.limit("io.bfq.weight"), format!("default {bfq}"));
        } else {
            assert_eq!(c.limit("io.weight"), format!("default {other}"));
        }
    }
}

fn a_device_has_a_weight_of_its_own() {
    needs!(controller("io"), disk());
    let (c, device) = io(json!({"weight": 300, "weightDevice": [{"weight": 500}]}));
    c.created();
    assert_eq!(c.limit("io.bfq.weight"), format!("default 300\n{device} 500"));
}

fn rates_are_lines_of_their_device() {
    needs!(controller("io"), disk());
    let (c, device) = io(json!({
        "throttleReadBpsDevice": [{"rate": 1_048_576}], "throttleWriteBpsDevice": [{"rate": 2_097_152}],
        "throttleReadIOPSDevice": [{"rate": 300}], "throttleWriteIOPSDevice": [{"rate": 400}],
    }));
    c.created();
    assert_eq!(c.limit("io.max"), format!("{device} rbps=1048576 wbps=2097152 riops=300 wiops=400"));
}

/// Two seconds' worth of each; without the rate it takes a fraction of that.
fn a_rate_slows_the_disk_down() {
    needs!(controller("io"), disk());
    let took = |section: Value, act: &str| -> u64 {
        let (mut c, _) = io(section);
        c.does(act)[0].parse().expect("milliseconds")
    };
    for (section, rate, access, size, times) in [
        ("throttleReadBpsDevice", 1 << 20, "r", 65536, 32),
        ("throttleWriteBpsDevice", 1 << 20, "w", 65536, 32),
        ("throttleReadIOPSDevice", 20, "r", 4096, 40),
        ("throttleWriteIOPSDevice", 20, "w", 4096, 40),
    ] {
        let act = format!("disk {access} /dev/disk {size} {times}");
        let free = took(json!({}), &act);
        let slow = took(json!({section: [{"rate": rate}]}), &act);
        // The kernel lets the first tenths of a second through at once.
        assert!(slow >= 1500 && free < 1000, "{section}: {slow} ms, without it {free} ms");
    }
}

fn an_updated_rate_leaves_the_others() {
    needs!(keel(), controller("io"), disk());
    let (mut c, device) = io(json!({"throttleReadBpsDevice": [{"rate": 1000}], "weight": 200}));
    c.running();
    let (number, _) = device.split_once(':').unwrap();
    let mut entry = json!([{"major": number.parse::<u32>().unwrap(), "rate": 7}]);
    entry[0]["minor"] = json!(device.split_once(':').unwrap().1.parse::<u32>().unwrap());
    let mut section = json!({"throttleWriteIOPSDevice": entry, "weight": 400});
    let refused = json!({"blockIO": section, "unified": {"cgroup.max.depth": "x"}});
    c.update(&refused).fails();
    assert_eq!(c.limit("io.max"), format!("{device} rbps=1000 wbps=max riops=max wiops=max"));
    c.update(&json!({"blockIO": section})).ok();
    assert_eq!(c.limit("io.max"), format!("{device} rbps=1000 wbps=max riops=max wiops=7"));
    // 0 takes a rate away.
    section["throttleWriteIOPSDevice"][0]["rate"] = json!(0);
    c.update(&json!({"blockIO": section})).ok();
    assert_eq!(c.limit("io.max"), format!("{device} rbps=1000 wbps=max riops=max wiops=max"));
}

fn a_device_that_does_not_exist_is_refused() {
    needs!(keel(), controller("io"));
    for (section, key) in [
        ("throttleReadBpsDevice", "rate"),
        ("throttleWriteBpsDevice", "rate"),
        ("throttleReadIOPSDevice", "rate"),
        ("throttleWriteIOPSDevice", "rate"),
        ("weightDevice", "weight"),
    ] {
        let entry = json!({"major": 4000, "minor": 7, key: 100});
        let error = Sandbox::with_resources(json!({"blockIO": {section: [entry]}}))
            .refused(&format!("/linux/resources/blockIO/{section}/0/{key}"));
        assert!(error.contains("No such device"), "{error}");
    }
}
