//! What the controllers count, in the shape in which `runc events` prints it: names and layout are those of cgroup v1,
//! and figures that v2 does not have are 0 or left out. A controller that the cgroup lacks counts nothing. (Objects
//! are there although all in them is 0, as with runc before 1.4: no reader has to look for them first.)
//!
//! Shape: <https://github.com/opencontainers/runc/blob/main/types/events.go>,
//! kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html>

mod memory;

use std::collections::BTreeMap;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::Serialize;

use super::Cgroup;
use crate::error::{Context, Error, Result};

#[derive(Debug, Default, Serialize)]
pub struct Stats {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: memory::Memory,
    pids: Pids,
    blkio: Io,
    /// By the size of a page, as the kernel writes it: 2MB.
    hugetlb: BTreeMap<String, HugePages>,
}

#[derive(Debug, Default, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64, // ns
    kernel: u64, // ns
    user: u64,   // ns
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64, // ns
}

/// Flags that only cgroup v1 has.
#[derive(Debug, Default, Serialize)]
struct CpuSet {
    cpu_exclusive: u64,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Default, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    /// 0: no limit.
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Io {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<IoEntry>, // bytes
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<IoEntry>, // requests
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Serialize)]
struct IoEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Debug, Default, Serialize)]
struct HugePages {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64, // bytes
    failcnt: u64,
}

/// What waiting for a resource has cost: `some` of the processes, or all of them (`full`).
#[derive(Debug, Default, Serialize)]
struct Pressure {
    some: Stall,
    full: Stall,
}

#[derive(Debug, Default, Serialize)]
struct Stall {
    avg10: f64,  // percent, over 10 s
    avg60: f64,  // percent, over 60 s
    avg300: f64, // percent, over 300 s
    total: u64,  // us
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Cgroup {
    /// What has been counted for it and all below it.
    pub fn stats(&self) -> Result<Stats> {
        let files = Files(|file: &str| match self.value(file) {
            // Files of pressure on a kernel that was started with psi=0.
            Err(e) if e.errno() == Some(Errno::EOPNOTSUPP) => Ok(None),
            value => value,
        });
        let mut stats = files.stats(&self.page_sizes()?)?;
        if files.number("pids.current")?.is_none() {
            stats.pids.current = self.pids()?.len() as u64;
        }
        Ok(stats)
    }

    /// The sizes of huge pages that are counted.
    fn page_sizes(&self) -> Result<Vec<String>> {
        let list = || -> Result<Vec<String>, Errno> {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let mut dir = Dir::openat(self, c".", flags, Mode::empty())?;
            let mut sizes = Vec::new();
            for entry in dir.iter() {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy();
                let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(".events"));
                sizes.extend(size.map(str::to_owned));
            }
            Ok(sizes)
        };
        list().context(|| format!("list the files of {}", self.path.display()))
    }
}

/// The cgroup's files by name; None is a file that it lacks.
struct Files<F>(F);

impl<F: Fn(&str) -> Result<Option<String>>> Files<F> {
    fn stats(&self, page_sizes: &[String]) -> Result<Stats> {
        let mut hugetlb = BTreeMap::new();
        for size in page_sizes {
            // Reservations count too: who maps the pages and touches none keeps them from others.
            let usage = self.number(&format!("hugetlb.{size}.rsvd.current"))?.unwrap_or_default();
            let events = self.keyed(&format!("hugetlb.{size}.events"))?;
            hugetlb.insert(size.clone(), HugePages { usage, failcnt: get(&events, "max") });
        }
        Ok(Stats {
            cpu: self.cpu()?,
            cpuset: CpuSet::default(),
            memory: self.memory()?,
            pids: self.pids()?,
            blkio: self.io()?,
            hugetlb,
        })
    }

    fn cpu(&self) -> Result<Cpu> {
        let stat = self.keyed("cpu.stat")?;
        let ns = |key| get(&stat, key).saturating_mul(1000);
        Ok(Cpu {
            usage: CpuUsage { total: ns("usage_usec"), kernel: ns("system_usec"), user: ns("user_usec") },
            throttling: Throttling {
                periods: get(&stat, "nr_periods"),
                throttled_periods: get(&stat, "nr_throttled"),
                throttled_time: ns("throttled_usec"),
            },
            psi: self.pressure("cpu.pressure")?,
        })
    }

    fn pids(&self) -> Result<Pids> {
        let current = self.number("pids.current")?.unwrap_or_default();
        let limit = self.number("pids.max")?.filter(|&limit| limit != u64::MAX).unwrap_or_default();
        Ok(Pids { current, limit })
    }

    fn io(&self) -> Result<Io> {
        let mut io = Io { psi: self.pressure("io.pressure")?, ..Io::default() };
        let text = (self.0)("io.stat")?.unwrap_or_default();
        for line in text.lines() {
            io.add(line).context(|| format!("read io.stat: {line:?}"))?;
        }
        Ok(io)
    }

    fn pressure(&self, file: &str) -> Result<Option<Pressure>> {
        let Some(text) = (self.0)(file)? else { return Ok(None) };
        parse_pressure(&text).context(|| format!("read {file}: {text:?}")).map(Some)
    }

    fn number(&self, file: &str) -> Result<Option<u64>> {
        let Some(text) = (self.0)(file)? else { return Ok(None) };
        parse_number(&text).context(|| format!("read {file}")).map(Some)
    }

    /// A file with a line `KEY NUMBER` for each figure.
    fn keyed(&self, file: &str) -> Result<BTreeMap<String, u64>> {
        let text = (self.0)(file)?.unwrap_or_default();
        let parse = |line: &str| {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            parse_number(value).map(|value| (key.to_owned(), value))
        };
        text.lines().map(|line| parse(line).context(|| format!("read {file}: {line:?}"))).collect()
    }
}

fn get(figures: &BTreeMap<String, u64>, key: &str) -> u64 {
    figures.get(key).copied().unwrap_or_default()
}

/// `max` is the greatest number, as in cgroup v1. The kernel adds up figures of several processors without a lock,
/// and some sums come out below 0.
fn parse_number(text: &str) -> Result<u64> {
    match text.parse::<i128>() {
        Ok(number) => Ok(number.clamp(0, u64::MAX.into()) as u64),
        Err(_) if text == "max" => Ok(u64::MAX),
        Err(_) => Err(Error::new(format!("{text:?} is not a number"))),
    }
}

impl Io {
    /// `8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`; cgroup v1 does not tell of discards (dbytes).
    fn add(&mut self, line: &str) -> Result<()> {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            return Ok(());
        };
        let (major, minor) = (parse_number(major)?, parse_number(minor)?);
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut self.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut self.io_service_bytes_recursive, "Write"),
                "rios" => (&mut self.io_serviced_recursive, "Read"),
                "wios" => (&mut self.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(IoEntry { major, minor, op, value: parse_number(value)? });
        }
        Ok(())
    }
}

/// `some avg10=0.00 avg60=0.12 avg300=0.05 total=1234`, and the same for `full`.
fn parse_pressure(text: &str) -> Result<Pressure> {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let average = match key {
                "avg10" => &mut stall.avg10,
                "avg60" => &mut stall.avg60,
                "avg300" => &mut stall.avg300,
                "total" => {
                    stall.total = parse_number(value)?;
                    continue;
                }
                _ => continue,
            };
            *average = value.parse().map_err(|_| Error::new(format!("{value:?} is not a number")))?;
        }
    }
    Ok(pressure)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The stats of a cgroup with these files.
    pub fn stats(files: &[(&str, &str)]) -> Result<Value> {
        let read = |name: &str| {
            let file = files.iter().find(|(file, _)| *file == name);
            Ok(file.map(|(_, text)| text.trim_end().to_owned()))
        };
        let sizes: Vec<String> = files
            .iter()
            .filter_map(|(name, _)| name.strip_prefix("hugetlb.")?.strip_suffix(".events"))
            .map(str::to_owned)
            .collect();
        Ok(serde_json::to_value(Files(read).stats(&sizes)?).unwrap())
    }

    const STALLS: &str = "some avg10=1.50 avg60=0.25 avg300=0.01 total=4321\n\
                          full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";

    fn stalls() -> Value {
        json!({
            "some": {"avg10": 1.5, "avg60": 0.25, "avg300": 0.01, "total": 4321},
            "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 7},
        })
    }

    #[test]
    fn a_cgroup_without_controllers_counts_nothing() {
        let none = json!({"limit": 0, "failcnt": 0});
        let expected = json!({
            "cpu": {"usage": {"kernel": 0, "user": 0}, "throttling": {}},
            "cpuset": {"cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0,
                "memory_spread_page": 0, "memory_spread_slab": 0, "memory_pressure": 0,
                "sched_load_balance": 0, "sched_relax_domain_level": 0},
            "memory": {"usage": none, "swap": none, "kernel": none, "kernelTCP": none},
            "pids": {},
            "blkio": {},
            "hugetlb": {},
        });
        assert_eq!(stats(&[]).unwrap(), expected);
    }

    #[test]
    fn each_figure_comes_from_its_file() {
        let cpu = "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnice_usec 1\nnr_periods 9\nnr_throttled 4\n\
                   throttled_usec 6\nnr_bursts 1\nburst_usec 1\n";
        let io = "8:16 rbytes=1 wbytes=2 rios=3 wios=0 dbytes=5 dios=6\n253:0\n0:7 rbytes=8 cost.usage=9\n";
        type Files<'f> = &'f [(&'f str, &'f str)];
        let table: &[(&str, Files, Value)] = &[
            ("/cpu/usage", &[("cpu.stat", cpu)], json!({"total": 5000, "kernel": 2000, "user": 3000})),
            (
                "/cpu/throttling",
                &[("cpu.stat", cpu)],
                json!({"periods": 9, "throttledPeriods": 4, "throttledTime": 6000}),
            ),
            ("/cpu/psi", &[("cpu.pressure", STALLS)], stalls()),
            ("/pids", &[("pids.current", "3\n"), ("pids.max", "max\n")], json!({"current": 3})),
            ("/pids", &[("pids.current", "3\n"), ("pids.max", "9\n")], json!({"current": 3, "limit": 9})),
            (
                "/blkio",
                &[("io.stat", io), ("io.pressure", STALLS)],
                json!({
                    "ioServiceBytesRecursive": [
                        {"major": 8, "minor": 16, "op": "Read", "value": 1},
                        {"major": 8, "minor": 16, "op": "Write", "value": 2},
                        {"minor": 7, "op": "Read", "value": 8},
                    ],
                    "ioServicedRecursive": [
                        {"major": 8, "minor": 16, "op": "Read", "value": 3},
                        {"major": 8, "minor": 16, "op": "Write"},
                    ],
                    "psi": stalls(),
                }),
            ),
            (
                "/hugetlb",
                &[
                    ("hugetlb.2MB.current", "1\n"),
                    ("hugetlb.2MB.rsvd.current", "4194304\n"),
                    ("hugetlb.2MB.events", "max 2\n"),
                    ("hugetlb.1GB.rsvd.current", "0\n"),
                    ("hugetlb.1GB.events", "max 0\n"),
                ],
                json!({"2MB": {"usage": 4194304, "failcnt": 2}, "1GB": {"failcnt": 0}}),
            ),
        ];
        for (pointer, files, expected) in table {
            assert_eq!(stats(files).unwrap().pointer(pointer).unwrap(), expected, "{files:?}");
        }
    }

    #[test]
    fn a_number_is_what_the_kernel_writes() {
        for (text, number) in [
            ("0", 0),
            ("-1", 0),
            ("max", u64::MAX),
            ("18446744073709551615", u64::MAX),
            ("18446744073709551616", u64::MAX),
        ] {
            assert_eq!(parse_number(text).unwrap(), number);
        }
    }

    #[test]
    fn what_is_not_a_number_is_an_error_with_its_place() {
        for (file, text, error) in [
            (
                "cpu.stat",
                "usage_usec 1\nuser_usec x",
                "read cpu.stat: \"user_usec x\": \"x\" is not a number",
            ),
            ("cpu.stat", "usage_usec", "read cpu.stat: \"usage_usec\": \"\" is not a number"),
            ("pids.max", "many", "read pids.max: \"many\" is not a number"),
            ("io.stat", "8:0 rbytes=y", "read io.stat: \"8:0 rbytes=y\": \"y\" is not a number"),
            ("io.pressure", "some avg10=z", "read io.pressure: \"some avg10=z\": \"z\" is not a number"),
        ] {
            assert_eq!(stats(&[(file, text)]).unwrap_err().to_string(), error);
        }
    }
}
