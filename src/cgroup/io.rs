//! `/linux/resources/blockIO`: io.weight (or io.bfq.weight) and io.max.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#block-io>,
//! kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html#io>

use super::limits::Limit;
use crate::spec::Node;

/// The sections of rates, and what io.max calls them.
const RATES: [(&str, &str); 4] = [
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
];

pub fn plan(resources: &Node, limits: &mut Vec<Limit>) {
    let Some(io) = resources.object("blockIO") else { return };
    let mut known = vec!["weight", "leafWeight", "weightDevice"];
    known.extend(RATES.map(|(section, _)| section));
    io.expect_keys(&known);
    refuse_leaf_weight(&io);
    if let Some(weight) = read_weight(&io) {
        limits.push(weights("", weight, &io));
    }
    for entry in io.objects("weightDevice") {
        entry.expect_keys(&["major", "minor", "weight", "leafWeight"]);
        refuse_leaf_weight(&entry);
        let Some(device) = read_device(&entry) else { continue };
        if let Some(weight) = read_weight(&entry) {
            limits.push(weights(&format!("{device} "), weight, &entry));
        } else if !entry.has("weight") {
            entry.problem("weight", "is required");
        }
    }
    for (section, name) in RATES {
        for entry in io.objects(section) {
            entry.expect_keys(&["major", "minor", "rate"]);
            let (Some(device), Some(rate)) = (read_device(&entry), entry.required_u64("rate")) else {
                continue;
            };
            // 0 was "no limit" in cgroup v1; the kernel refuses it now.
            let rate = if rate == 0 { "max".to_owned() } else { rate.to_string() };
            limits.push(Limit::new("io.max", format!("{device} {name}={rate}"), entry.at("rate")));
        }
    }
}

fn refuse_leaf_weight(node: &Node) {
    if node.u64("leafWeight").is_some_and(|weight| weight != 0) {
        node.problem("leafWeight", "cgroup v2 has no leaf weight");
    }
}

/// 10 to 1,000; 0 is not set.
fn read_weight(node: &Node) -> Option<u64> {
    let weight = node.u64("weight").filter(|&weight| weight != 0)?;
    if !(10..=1000).contains(&weight) {
        node.problem("weight", format_args!("must be from 10 to 1000, not {weight}"));
        return None;
    }
    Some(weight)
}

fn read_device(entry: &Node) -> Option<String> {
    for key in ["major", "minor"].into_iter().filter(|key| !entry.has(key)) {
        entry.problem(key, "is required");
    }
    Some(format!("{}:{}", entry.u32("major")?, entry.u32("minor")?))
}

/// The BFQ scheduler has a file and a scale of its own, the config's; io.weight goes from 1 to 10,000.
fn weights(device: &str, weight: u64, node: &Node) -> Limit {
    let converted = 1 + (weight - 10) * 9999 / 990;
    let files = vec![
        ("io.bfq.weight".to_owned(), format!("{device}{weight}")),
        ("io.weight".to_owned(), format!("{device}{converted}")),
    ];
    Limit { files, may_lack: false, field: node.at("weight") }
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::planned_limits;
    use super::*;

    fn io(section: &str) -> Vec<String> {
        planned_limits(&format!(r#"{{"blockIO": {section}}}"#), plan)
    }

    #[test]
    fn a_weight_is_for_the_file_that_the_kernel_has() {
        assert_eq!(io(r#"{"weight": 10}"#), ["io.bfq.weight=10 or io.weight=1"]);
        assert_eq!(io(r#"{"weight": 1000, "leafWeight": 0}"#), ["io.bfq.weight=1000 or io.weight=10000"]);
        assert_eq!(
            io(r#"{"weight": 0, "weightDevice": [{"major": 8, "minor": 0, "weight": 500}]}"#),
            ["io.bfq.weight=8:0 500 or io.weight=8:0 4950"]
        );
    }

    #[test]
    fn each_rate_is_a_line_of_io_max() {
        for (section, name) in RATES {
            let planned = io(&format!(r#"{{"{section}": [{{"major": 8, "minor": 16, "rate": 300}}]}}"#));
            assert_eq!(planned, [format!("io.max=8:16 {name}=300")]);
        }
        assert_eq!(
            io(r#"{"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 0}]}"#),
            ["io.max=8:0 rbps=max"]
        );
    }

    #[test]
    fn what_cannot_be_is_a_problem() {
        assert_eq!(
            io(r#"{"weight": 9, "leafWeight": 5, "weightDevice": [{"major": 8, "minor": 0}],
                "throttleWriteIOPSDevice": [{"minor": 0}]}"#),
            [
                "/blockIO/leafWeight: cgroup v2 has no leaf weight",
                "/blockIO/weight: must be from 10 to 1000, not 9",
                "/blockIO/weightDevice/0/weight: is required",
                "/blockIO/throttleWriteIOPSDevice/0/major: is required",
                "/blockIO/throttleWriteIOPSDevice/0/rate: is required",
            ]
        );
    }
}
