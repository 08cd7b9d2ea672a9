//! `keel update`: new limits for a container, all of them or none.
//!
//! The limits are planned as `create` plans them. Before each is written its old value is read, and if the kernel
//! refuses one, those written before it are put back.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cgroup::{Cgroup, devices, limits, systemd};
use crate::cli::UpdateOptions;
use crate::container::Container;
use crate::error::{Context, Error, Field, Kind, Problem, Result};
use crate::host::Host;
use crate::linux::rdt;
use crate::log;
use crate::spec::{Node, Report, parse};

pub fn update(root: &Path, options: &UpdateOptions) -> Result<()> {
    let document = document(options);
    change(root, options)
        // There are no problems of both.
        .map_err(|error| {
            error.in_document(document.clone(), RESOURCES).in_document(document, "/linux/intelRdt")
        })
        .context(|| format!("update container {}", options.id))
}

const RESOURCES: &str = "/linux/resources";

/// What an error calls where the limits are from.
fn document(options: &UpdateOptions) -> String {
    options.resources.as_ref().map_or_else(|| "flags".into(), |path| path.display().to_string())
}

fn change(root: &Path, options: &UpdateOptions) -> Result<()> {
    let report = Report::default();
    let mut resources = match &options.resources {
        Some(path) => {
            let written = Report::default();
            let resources = parse(&read(path)?, &written).context(|| format!("read {}", path.display()))?;
            written.finish().map_err(|error| error.in_document(document(options), ""))?;
            resources
        }
        None => Map::new(),
    };
    let (flags, linux) = (from_flags(options), rdt_from_flags(options));
    match (&options.resources, flags.is_empty() && linux.is_empty()) {
        (Some(_), false) => return Err(Error::new("give the limits in --resources or as flags, not both")),
        (None, true) => return Err(Error::new("nothing to change: give a limit or --resources")),
        (None, false) => resources = flags,
        (Some(_), true) => {}
    }
    let mut container = Container::open(root, &options.id)?;
    container.lock()?;
    let state = container.state()?;
    let cgroup = state
        .need_cgroup()?
        .ok_or_else(|| Error::of_kind(Kind::WrongStatus, "container not running: its cgroup is gone"))?;
    let unit = state.unit.as_deref().zip(state.cgroup_manager.systemd());
    complete(&mut resources, &cgroup, unit)?;
    let field = Field::root().child("linux").child("resources");
    let node = Node::at_field(&resources, field, &report);
    let mut limits = limits::plan(&node);
    let unit = unit.map(|(unit, instance)| systemd::Update::plan(unit, instance, &mut limits, &report));
    let rdt = rdt::plan(&Node::at_field(&linux, Field::root().child("linux"), &report));
    let filter = node.has("devices").then(|| devices::plan(Some(&node)));
    check_usage(&node, &cgroup)?;
    for Problem { field, reason } in report.finish()? {
        let field = field.as_str();
        let place = field.strip_prefix(RESOURCES).unwrap_or(field);
        log::warning(format_args!("{}: {place}: {reason}", document(options)));
    }
    if rdt.is_some() && state.rdt.is_none() {
        let what = "--l3-cache-schema and --mem-bw-schema need a container that was created with intelRdt";
        return Err(Error::new(what));
    }
    // `create` had those of its own limits only, and above it there may be none of them.
    limits::enable(&limits, &cgroup, Host::new()?.cgroup2()?)?;
    let old = limits::replace(&limits, &cgroup)?;
    // There is one of the two at most: a filter comes from a file, schemata from flags.
    let last = || {
        filter.map_or(Ok(()), |filter| devices::apply(&filter, &cgroup))?;
        unit.map_or(Ok(()), systemd::Update::apply)?;
        rdt.zip(state.rdt).map_or(Ok(()), |(rdt, assigned)| rdt.replace(&assigned))
    };
    last().inspect_err(|_| limits::put_back(&old, &cgroup))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    const MOST: u64 = 16 << 20; // bytes
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MOST).read_to_end(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut text))
    };
    read.map(|_| text).context(|| format!("read {}", path.display()))
}

/// The flags as the file would have them.
fn from_flags(options: &UpdateOptions) -> Map<String, Value> {
    let mut resources = Map::new();
    let mut set = |section: &str, key: &str, value: Option<Value>| {
        if let Some(value) = value {
            let section = resources.entry(section).or_insert_with(|| json!({}));
            section[key] = value;
        }
    };
    set("memory", "limit", options.memory.map(Into::into));
    set("memory", "swap", options.memory_swap.map(Into::into));
    set("memory", "reservation", options.memory_reservation.map(Into::into));
    set("cpu", "quota", options.cpu_quota.map(Into::into));
    set("cpu", "period", options.cpu_period.map(Into::into));
    set("cpu", "burst", options.cpu_burst.map(Into::into));
    set("cpu", "shares", options.cpu_share.map(Into::into));
    set("cpu", "idle", options.cpu_idle.map(Into::into));
    set("cpu", "cpus", options.cpuset_cpus.clone().map(Into::into));
    set("cpu", "mems", options.cpuset_mems.clone().map(Into::into));
    set("pids", "limit", options.pids_limit.map(Into::into));
    set("blockIO", "weight", options.blkio_weight.map(Into::into));
    set("memory", "kernel", options.kernel_memory.map(Into::into));
    set("memory", "kernelTCP", options.kernel_memory_tcp.map(Into::into));
    set("cpu", "realtimePeriod", options.cpu_rt_period.map(Into::into));
    set("cpu", "realtimeRuntime", options.cpu_rt_runtime.map(Into::into));
    resources
}

/// `/linux` with the schemata that the flags give.
fn rdt_from_flags(options: &UpdateOptions) -> Map<String, Value> {
    let mut rdt = Map::new();
    for (key, schema) in
        [("l3CacheSchema", &options.l3_cache_schema), ("memBwSchema", &options.mem_bw_schema)]
    {
        // runc's callers write an empty one for "as it is".
        if let Some(schema) = schema.as_ref().filter(|schema| !schema.is_empty()) {
            rdt.insert(key.into(), schema.as_str().into());
        }
    }
    let mut linux = Map::new();
    if !rdt.is_empty() {
        linux.insert("intelRdt".into(), rdt.into());
    }
    linux
}

/// A limit of swap counts memory in, and a quota and a period come together: what the caller leaves out is as it is now.
fn complete(
    resources: &mut Map<String, Value>,
    cgroup: &Cgroup,
    unit: Option<(&str, systemd::Instance)>,
) -> Result<()> {
    let is_set = |section: &Map<String, Value>, key: &str| {
        section.get(key).is_some_and(|value| !value.is_null() && *value != 0)
    };
    if let Some(Value::Object(memory)) = resources.get_mut("memory")
        && is_set(memory, "swap")
        && !is_set(memory, "limit")
        && let Some(limit) = cgroup.value("memory.max")?
    {
        memory.insert("limit".into(), limit.parse::<i64>().unwrap_or(-1).into());
    }
    if let Some(Value::Object(cpu)) = resources.get_mut("cpu")
        && is_set(cpu, "period") != is_set(cpu, "quota")
        && let Some(max) = cgroup.value("cpu.max")?
        && let Some((quota, period)) = max.split_once(' ')
    {
        let (key, value) = if is_set(cpu, "period") { ("quota", quota) } else { ("period", period) };
        let mut number = value.parse::<i64>().unwrap_or(-1);
        if let (Some((unit, instance)), "period", "max") = (unit, key, quota)
            && let Some(period) = systemd::quota_period_us(unit, instance)?
        {
            number = period.try_into().unwrap_or(number);
        }
        cpu.insert(key.into(), number.into());
    }
    Ok(())
}

/// `checkBeforeUpdate`: cgroup v1 refused a limit below the usage, v2 kills until it holds.
fn check_usage(resources: &Node, cgroup: &Cgroup) -> Result<()> {
    let Some(memory) = resources.object("memory") else { return Ok(()) };
    let (true, Some(limit)) = (memory.boolean("checkBeforeUpdate"), memory.i64("limit")) else {
        return Ok(());
    };
    let usage: i64 = cgroup.value("memory.current")?.and_then(|usage| usage.parse().ok()).unwrap_or(0);
    // 0 is not set and -1 no limit.
    if limit > 0 && limit < usage {
        memory.problem("limit", format_args!("must not be below the current usage, {usage} bytes"));
    }
    Ok(())
}
