//! What resctrl tells of a container's class, in the shape in which `runc events` prints it.
//!
//! Shape: <https://github.com/opencontainers/runc/blob/main/types/events.go> (IntelRdt)

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

use super::Assigned;
use crate::error::{Context, Error, Result};

/// Empty for a container without a class, and where the processor lacks what a part is about.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_info: Option<CacheInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_info: Option<BandwidthInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_schema: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    schemata: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mbm_stats: Option<Vec<BandwidthUse>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmt_stats: Option<Vec<CacheUse>>,
}

#[derive(Debug, Serialize)]
struct CacheInfo {
    cbm_mask: String,
    min_cbm_bits: u64,
    num_closids: u64,
}

#[derive(Debug, Serialize)]
struct BandwidthInfo {
    bandwidth_gran: u64, // percent
    delay_linear: u64,
    min_bandwidth: u64, // percent
    num_closids: u64,
}

/// Of one memory node.
#[derive(Debug, Serialize)]
struct BandwidthUse {
    mbm_total_bytes: u64,
    mbm_local_bytes: u64,
}

/// Of one cache.
#[derive(Debug, Serialize)]
struct CacheUse {
    llc_occupancy: u64, // bytes
}

impl Assigned {
    pub fn stats(&self) -> Result<Stats> {
        let info = self.resctrl.join("info");
        let [all, own] = [&self.resctrl, &self.class].map(|class| text(&class.join("schemata")));
        let (all, own) = (all?, own?);
        let mut stats = Stats { schemata: own.lines().map(str::to_owned).collect(), ..Stats::default() };
        let cache = info.join("L3");
        if cache.exists() {
            stats.l3_cache_info = Some(CacheInfo {
                cbm_mask: text(&cache.join("cbm_mask"))?,
                min_cbm_bits: number(&cache.join("min_cbm_bits"))?,
                num_closids: number(&cache.join("num_closids"))?,
            });
            (stats.l3_cache_schema_root, stats.l3_cache_schema) = (line(&all, "L3:"), line(&own, "L3:"));
        }
        let bandwidth = info.join("MB");
        if bandwidth.exists() {
            stats.mem_bw_info = Some(BandwidthInfo {
                bandwidth_gran: number(&bandwidth.join("bandwidth_gran"))?,
                delay_linear: number(&bandwidth.join("delay_linear"))?,
                min_bandwidth: number(&bandwidth.join("min_bandwidth"))?,
                num_closids: number(&bandwidth.join("num_closids"))?,
            });
            (stats.mem_bw_schema_root, stats.mem_bw_schema) = (line(&all, "MB:"), line(&own, "MB:"));
        }
        self.monitored(&info, &mut stats)?;
        Ok(stats)
    }

    /// Without a monitoring group of its own, what the whole class uses.
    fn monitored(&self, info: &Path, stats: &mut Stats) -> Result<()> {
        let path = info.join("L3_MON/mon_features");
        let features = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            features => features.context(|| format!("read {}", path.display()))?,
        };
        let has = |feature: &str| features.lines().any(|line| line == feature);
        let data = self.monitoring.as_ref().unwrap_or(&self.class).join("mon_data");
        let what = || format!("list {}", data.display());
        let mut domains = Vec::new();
        for entry in fs::read_dir(&data).context(what)? {
            domains.push(entry.context(what)?.path());
        }
        // Those of caches; other resources may have theirs beside them.
        domains.retain(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"mon_L3_")));
        domains.sort();
        if has("mbm_total_bytes") || has("mbm_local_bytes") {
            let count =
                |domain: &Path, feature| if has(feature) { number(&domain.join(feature)) } else { Ok(0) };
            let uses = domains.iter().map(|domain| {
                let (total, local) = (count(domain, "mbm_total_bytes")?, count(domain, "mbm_local_bytes")?);
                Ok(BandwidthUse { mbm_total_bytes: total, mbm_local_bytes: local })
            });
            stats.mbm_stats = Some(uses.collect::<Result<_>>()?);
        }
        if has("llc_occupancy") {
            let uses = domains.iter().map(|domain| {
                number(&domain.join("llc_occupancy")).map(|llc_occupancy| CacheUse { llc_occupancy })
            });
            stats.cmt_stats = Some(uses.collect::<Result<_>>()?);
        }
        Ok(())
    }
}

fn text(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).context(|| format!("read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// 0 for what the hardware has no figure for at the moment: it then says so in words.
fn number(path: &Path) -> Result<u64> {
    let text = text(path)?;
    if matches!(text.as_str(), "Unavailable" | "Error" | "Unassigned") {
        return Ok(0);
    }
    text.parse().map_err(|_| Error::new(format!("read {}: {text:?} is not a number", path.display())))
}

fn line(schemata: &str, resource: &str) -> Option<String> {
    schemata.lines().map(str::trim).find(|line| line.starts_with(resource)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_stats_are_those_of_the_class_and_its_monitoring_group() {
        let root = std::env::temp_dir().join(format!("keel-rdt-stats-{}", std::process::id()));
        for (file, text) in [
            ("schemata", "    MB:0=100\n    L3:0=7ff\n"),
            ("c/schemata", "    MB:0= 20\n    L3:0=00f\n"),
            ("info/L3/cbm_mask", "7ff\n"),
            ("info/L3/min_cbm_bits", "1\n"),
            ("info/L3/num_closids", "16\n"),
            ("info/MB/bandwidth_gran", "10\n"),
            ("info/MB/delay_linear", "1\n"),
            ("info/MB/min_bandwidth", "10\n"),
            ("info/MB/num_closids", "8\n"),
            ("info/L3_MON/mon_features", "llc_occupancy\nmbm_total_bytes\n"),
            ("c/mon_data/mon_L3_00/llc_occupancy", "1\n"),
            ("c/mon_groups/id/mon_data/mon_L3_00/llc_occupancy", "4096\n"),
            ("c/mon_groups/id/mon_data/mon_L3_00/mbm_total_bytes", "7\n"),
            ("c/mon_groups/id/mon_data/mon_L3_01/llc_occupancy", "Unavailable\n"),
            ("c/mon_groups/id/mon_data/mon_L3_01/mbm_total_bytes", "8\n"),
            ("c/mon_groups/id/mon_data/mon_OTHER_00/energy", "9\n"),
        ] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), text).unwrap();
        }
        let assigned = Assigned {
            resctrl: root.clone(),
            class: root.join("c"),
            monitoring: Some(root.join("c/mon_groups/id")),
            ..Assigned::default()
        };
        let stats = assigned.stats().map(|stats| serde_json::to_value(stats).unwrap());
        fs::remove_dir_all(&root).unwrap();
        let expected = json!({
            "l3_cache_info": {"cbm_mask": "7ff", "min_cbm_bits": 1, "num_closids": 16},
            "l3_cache_schema_root": "L3:0=7ff",
            "l3_cache_schema": "L3:0=00f",
            "mem_bw_info": {"bandwidth_gran": 10, "delay_linear": 1, "min_bandwidth": 10, "num_closids": 8},
            "mem_bw_schema_root": "MB:0=100",
            "mem_bw_schema": "MB:0= 20",
            "schemata": ["MB:0= 20", "    L3:0=00f"],
            "mbm_stats": [
                {"mbm_total_bytes": 7, "mbm_local_bytes": 0}, {"mbm_total_bytes": 8, "mbm_local_bytes": 0},
            ],
            "cmt_stats": [{"llc_occupancy": 4096}, {"llc_occupancy": 0}],
        });
        assert_eq!(stats.unwrap(), expected);
    }
}
