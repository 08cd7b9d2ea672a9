//! The figures of the memory controller.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Files, Pressure, get, is_zero};
use crate::error::Result;

#[derive(Debug, Default, Serialize)]
pub struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64, // bytes
    usage: Entry,
    /// Memory and swap together, as cgroup v1 counts.
    swap: Entry,
    /// Only cgroup v1 counts this and the next by themselves.
    kernel: Entry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: Entry,
    /// All of memory.stat.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, Serialize)]
struct Entry {
    limit: u64, // bytes
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64, // bytes
    #[serde(skip_serializing_if = "is_zero")]
    max: u64, // bytes, the most that the usage has been
    failcnt: u64,
}

impl<F: Fn(&str) -> Result<Option<String>>> Files<F> {
    pub(super) fn memory(&self) -> Result<Memory> {
        let raw = self.keyed("memory.stat")?;
        let usage = self.entry("memory")?;
        let swap = self.entry("memory.swap")?;
        Ok(Memory {
            cache: get(&raw, "file"),
            swap: Entry {
                limit: swap.limit.saturating_add(usage.limit),
                usage: swap.usage.saturating_add(usage.usage),
                // The two peaks need not have been at one time.
                max: 0,
                failcnt: 0,
            },
            usage,
            kernel: Entry::default(),
            kernel_tcp: Entry::default(),
            raw,
            psi: self.pressure("memory.pressure")?,
        })
    }

    fn entry(&self, of: &str) -> Result<Entry> {
        let number = |name: &str| self.number(&format!("{of}.{name}")).map(Option::unwrap_or_default);
        // The peak is there since Linux 5.19, that of swap since 6.5.
        Ok(Entry { limit: number("max")?, usage: number("current")?, max: number("peak")?, failcnt: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::stats;
    use serde_json::{Value, json};

    fn memory(files: &[(&str, &str)]) -> Value {
        stats(files).unwrap()["memory"].take()
    }

    #[test]
    fn each_figure_comes_from_its_file() {
        let found = memory(&[
            ("memory.stat", "anon 10\nfile 20\nworkingset_refault_anon -3\n"),
            ("memory.current", "100\n"),
            ("memory.max", "1000\n"),
            ("memory.peak", "700\n"),
            ("memory.swap.current", "5\n"),
            ("memory.swap.max", "50\n"),
            ("memory.swap.peak", "6\n"),
            ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"),
        ]);
        let none = json!({"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0});
        let expected = json!({
            "cache": 20,
            "usage": {"limit": 1000, "usage": 100, "max": 700, "failcnt": 0},
            "swap": {"limit": 1050, "usage": 105, "failcnt": 0},
            "kernel": {"limit": 0, "failcnt": 0},
            "kernelTCP": {"limit": 0, "failcnt": 0},
            "raw": {"anon": 10, "file": 20, "workingset_refault_anon": 0},
            "psi": {"some": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 1}, "full": none},
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn swap_counts_memory_in() {
        const MAX: u64 = u64::MAX;
        for (max, swap, expected) in [
            ("max", Some("max"), MAX),
            ("max", Some("50"), MAX),
            ("1000", Some("max"), MAX),
            ("1000", Some("0"), 1000),
            ("1000", None, 1000),
        ] {
            let files: Vec<_> = swap.into_iter().map(|swap| ("memory.swap.max", swap)).collect();
            let found = memory(&[&files[..], &[("memory.max", max)]].concat());
            assert_eq!(found["swap"]["limit"], expected, "{max} {swap:?}");
        }
    }
}
