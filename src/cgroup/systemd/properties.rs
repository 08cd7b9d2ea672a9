//! Limits as properties of a unit.
//!
//! systemd writes the files that it has properties for again whenever it likes, as after `systemctl daemon-reload`:
//! what it has not been told would be lost then. Files that it has none for (io.max, hugetlb, cpu.max.burst ...) and
//! the device filter, a program of keel's own, it leaves alone.
//!
//! `systemd.resource-control(5)`, `org.freedesktop.systemd1(5)`

use std::fmt;

use super::message::{Value, Writer};
use crate::cgroup::limits::Limit;
use crate::error::Field;
use crate::spec::{Report, id_mask};

/// One property, and what of the config asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    pub name: &'static str,
    pub value: Value,
    pub field: Field,
    /// The first release of systemd that has it. An older one does not write that file.
    pub since: u32,
}

/// `a(sv)`
pub fn write<'p>(properties: impl Iterator<Item = (&'p str, &'p Value)>, body: &mut Writer) {
    body.structures(properties, |body, (name, value)| {
        body.text(name);
        body.variant(value);
    });
}

/// What keel is sure that systemd has; Linux 5.14 came after it.
pub const OLDEST: u32 = 249;

/// The properties that hold what the limits do. A limit that systemd would round is rounded here, so that the file says
/// what systemd would write.
pub fn of_limits(limits: &mut [Limit], report: &Report) -> Vec<Property> {
    let mut properties: Vec<Property> = Vec::new();
    for limit in limits {
        let found = match of_limit(limit) {
            Ok(found) => found,
            Err(wrong) => {
                report.problem(limit.field.clone(), wrong);
                continue;
            }
        };
        for (name, value) in found {
            // As with files, the last one counts.
            properties.retain(|property| property.name != name);
            let since = since(name, &value);
            properties.push(Property { name, value, field: limit.field.clone(), since });
        }
    }
    properties
}

/// What systemd takes for "no limit", and for the default of a weight.
const INFINITY: u64 = u64::MAX;

/// The weight of what runs only when nobody else does.
const IDLE: u64 = 0;

fn since(name: &str, value: &Value) -> u32 {
    match (name, value) {
        ("CPUWeight", Value::U64(IDLE)) => 252,
        ("MemoryZSwapMax" | "OOMPolicy", _) => 253,
        _ => OLDEST,
    }
}

type Named = (&'static str, Value);
type Found = Result<Vec<Named>, String>;

fn of_limit(limit: &mut Limit) -> Found {
    let Some((file, value)) = limit.files.first().map(|(file, value)| (file.as_str(), value.as_str())) else {
        return Ok(Vec::new());
    };
    let one = |name, value: Result<u64, String>| Ok(vec![(name, Value::U64(value?))]);
    match file {
        "memory.min" => one("MemoryMin", amount(value)),
        "memory.low" => one("MemoryLow", amount(value)),
        "memory.high" => one("MemoryHigh", amount(value)),
        "memory.max" => one("MemoryMax", amount(value)),
        "memory.swap.max" => one("MemorySwapMax", amount(value)),
        "memory.zswap.max" => one("MemoryZSwapMax", amount(value)),
        "memory.oom.group" => {
            Ok(vec![("OOMPolicy", Value::Text(if value == "1" { "kill" } else { "continue" }.into()))])
        }
        // No process may be made: systemd takes no 0, and there is one.
        "pids.max" => one("TasksMax", amount(value).map(|limit| limit.max(1))),
        "cpu.idle" => one("CPUWeight", Ok(if value == "1" { IDLE } else { INFINITY })),
        "cpu.weight" => one("CPUWeight", number(value)),
        "cpuset.cpus" => mask("AllowedCPUs", value),
        "cpuset.mems" => mask("AllowedMemoryNodes", value),
        "cpu.max" => {
            let (value, found) = cpu_max(value)?;
            limit.files[0].1 = value;
            Ok(found)
        }
        "io.bfq.weight" | "io.weight" => io_weight(limit),
        _ => Ok(Vec::new()),
    }
}

fn wrong(value: &str, expected: impl fmt::Display) -> String {
    format!("must be {expected} for systemd, not {value:?}")
}

fn number(value: &str) -> Result<u64, String> {
    value.trim().parse().map_err(|_| wrong(value, "a whole number"))
}

fn amount(value: &str) -> Result<u64, String> {
    match value.trim() {
        "max" => Ok(INFINITY),
        value => value.parse().map_err(|_| wrong(value, "a whole number or \"max\"")),
    }
}

/// Eight to a byte, the lowest first.
fn mask(name: &'static str, list: &str) -> Found {
    let words = id_mask(list.trim()).ok_or_else(|| wrong(list, "a list such as 0-3,7"))?;
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
    Ok(vec![(name, Value::Bytes(bytes))])
}

const SECOND_US: u64 = 1_000_000;
/// One percent of a CPU, which systemd does not divide.
const PERCENT_US: u64 = SECOND_US / 100;
/// The kernel's own, and systemd's.
const PERIOD_US: u64 = 100_000;

/// `QUOTA [PERIOD]`, as it is written, and the properties.
fn cpu_max(value: &str) -> Result<(String, Vec<Named>), String> {
    let mut words = value.split_whitespace();
    let quota = amount(words.next().unwrap_or_default())?;
    let period = words.next().map(number).transpose()?;
    let mut found = Vec::new();
    found.extend(period.map(|period| ("CPUQuotaPeriodUSec", Value::U64(period))));
    let (mut value, mut per_second) = (value.to_owned(), INFINITY);
    if quota != INFINITY {
        let period = u128::from(period.filter(|&period| period != 0).unwrap_or(PERIOD_US));
        let exact = (u128::from(quota) * u128::from(SECOND_US)).div_ceil(period);
        let rounded = exact.next_multiple_of(PERCENT_US.into());
        per_second = u64::try_from(rounded).unwrap_or(INFINITY);
        value = format!("{} {period}", rounded * period / u128::from(SECOND_US));
    }
    found.push(("CPUQuotaPerSecUSec", Value::U64(per_second)));
    Ok((value, found))
}

/// systemd has one weight, from 1 to 10,000, for both files, and a scale of its own for that of BFQ (1 to 1,000), in
/// which 100 is the default of both.
fn io_weight(limit: &mut Limit) -> Found {
    let mut found = Vec::new();
    let is_bfq = limit.file() == "io.bfq.weight";
    for (file, value) in &mut limit.files {
        let weight = value.trim().trim_start_matches("default").trim_start();
        if weight.contains(':') {
            // Of a device: systemd leaves those alone that it has no weight for.
            return Ok(Vec::new());
        }
        match found.first() {
            None => {
                let weight = number(weight)?;
                let scaled = 100 + weight.saturating_sub(100).saturating_mul(11);
                found.push(("IOWeight", if is_bfq && weight > 100 { scaled } else { weight }));
            }
            Some((_, weight)) if file == "io.weight" => *value = weight.to_string(),
            Some(_) => {}
        }
    }
    Ok(found.into_iter().map(|(name, weight)| (name, Value::U64(weight))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::limits;
    use crate::spec::planned;

    /// `name=value` of each property, then `file=value` of the limits; or the problems.
    fn settled(resources: &str) -> (Vec<String>, Vec<String>) {
        let (planned, problems) = planned(resources, |node| {
            let mut limits = limits::plan(node);
            let properties = of_limits(&mut limits, node.report());
            let shown = |property: Property| match property.value {
                Value::U64(INFINITY) => format!("{}=infinity", property.name),
                Value::U64(number) => format!("{}={number}", property.name),
                Value::Bytes(bytes) => format!("{}={bytes:?}", property.name),
                other => format!("{}={other:?}", property.name),
            };
            let files = limits.into_iter().flat_map(|limit| limit.files);
            let files = files.map(|(file, value)| format!("{file}={value}")).collect();
            (properties.into_iter().map(shown).collect(), files)
        });
        if problems.is_empty() { planned } else { (problems, Vec::new()) }
    }

    #[test]
    fn each_limit_that_systemd_knows_is_a_property() {
        for (resources, properties) in [
            (
                r#"{"memory": {"limit": 100, "swap": 300, "reservation": 50}}"#,
                &["MemorySwapMax=200", "MemoryMax=100", "MemoryLow=50"][..],
            ),
            (r#"{"memory": {"limit": -1}}"#, &["MemorySwapMax=infinity", "MemoryMax=infinity"]),
            (r#"{"pids": {"limit": 7}}"#, &["TasksMax=7"]),
            (r#"{"pids": {"limit": 0}}"#, &["TasksMax=1"]),
            (r#"{"pids": {"limit": -1}}"#, &["TasksMax=infinity"]),
            (r#"{"cpu": {"shares": 1024}}"#, &["CPUWeight=100"]),
            (r#"{"cpu": {"idle": 1, "shares": 1024}}"#, &["CPUWeight=0"]),
            (r#"{"cpu": {"idle": 0}}"#, &["CPUWeight=infinity"]),
            (r#"{"cpu": {"cpus": "0,9", "mems": "1"}}"#, &["AllowedCPUs=[1, 2]", "AllowedMemoryNodes=[2]"]),
            (r#"{"blockIO": {"weight": 10}}"#, &["IOWeight=10"]),
            (r#"{"blockIO": {"weight": 1000}}"#, &["IOWeight=10000"]),
            (
                r#"{"unified": {"memory.high": "max", "memory.min": "5", "memory.zswap.max": "6"}}"#,
                &["MemoryHigh=infinity", "MemoryMin=5", "MemoryZSwapMax=6"],
            ),
            (r#"{"memory": {"limit": 100}, "unified": {"memory.max": "7"}}"#, &["MemoryMax=7"]),
            (
                r#"{"unified": {"io.weight": "default 7", "cpu.weight": " 3\n"}}"#,
                &["CPUWeight=3", "IOWeight=7"],
            ),
            (r#"{"unified": {"cpuset.cpus": "1-3", "io.weight": "8:0 7"}}"#, &["AllowedCPUs=[14]"]),
            (
                r#"{"cpu": {"burst": 5}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
                    "unified": {"misc.max": "res_a 1"}}"#,
                &[],
            ),
            (r#"{"unified": {"memory.oom.group": "1"}}"#, &["OOMPolicy=Text(\"kill\")"]),
        ] {
            assert_eq!(settled(resources).0, properties, "{resources}");
        }
    }

    #[test]
    fn a_quota_is_rounded_up_to_a_percent_in_the_file_too() {
        for (cpu, properties, file) in [
            (r#"{"quota": 50000}"#, &["CPUQuotaPerSecUSec=500000"][..], "cpu.max=50000 100000"),
            (
                r#"{"quota": 12345, "period": 100000}"#,
                &["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=130000"],
                "cpu.max=13000 100000",
            ),
            (
                r#"{"quota": 1000, "period": 33333}"#,
                &["CPUQuotaPeriodUSec=33333", "CPUQuotaPerSecUSec=40000"],
                "cpu.max=1333 33333",
            ),
            (r#"{"quota": -1}"#, &["CPUQuotaPerSecUSec=infinity"], "cpu.max=max"),
            (
                r#"{"period": 50000}"#,
                &["CPUQuotaPeriodUSec=50000", "CPUQuotaPerSecUSec=infinity"],
                "cpu.max=max 50000",
            ),
            (r#"{"quota": 9223372036854775807}"#, &["CPUQuotaPerSecUSec=infinity"], ""),
        ] {
            let (found, files) = settled(&format!(r#"{{"cpu": {cpu}}}"#));
            assert_eq!(found, properties, "{cpu}");
            assert!(file.is_empty() || files == [file], "{files:?}");
        }
    }

    #[test]
    fn both_files_of_a_weight_say_what_systemd_would_write() {
        let (_, files) = settled(r#"{"blockIO": {"weight": 200}}"#);
        assert_eq!(files, ["io.bfq.weight=200", "io.weight=1200"]);
    }

    #[test]
    fn what_systemd_could_not_read_is_a_problem() {
        let not = |field: &str, expected: &str, value: &str| {
            vec![format!("/unified/{field}: must be {expected} for systemd, not {value:?}")]
        };
        for (file, value, expected) in [
            ("memory.max", "1G", "a whole number or \"max\""),
            ("cpu.max", "1000 x", "a whole number"),
            ("cpu.weight", "max", "a whole number"),
            ("cpuset.cpus", "3-1", "a list such as 0-3,7"),
        ] {
            let quoted = value.split(' ').next_back().unwrap();
            let problems = settled(&format!(r#"{{"unified": {{"{file}": "{value}"}}}}"#)).0;
            assert_eq!(problems, not(file, expected, quoted), "{file}");
        }
    }
}
