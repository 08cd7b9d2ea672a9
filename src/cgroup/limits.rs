//! `/linux/resources`: what the config asks of the controllers, as values for the cgroup's files.
//!
//! Each controller's file plans its own section into a list of [`Limit`]s; here they are written. A controller is
//! at work in a cgroup only if every cgroup above names it in its cgroup.subtree_control, from the top down.
//!
//! Kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html#controlling-controllers>

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::Write;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{Cgroup, cpu, hugetlb, io, memory, pids, rdma, unified};
use crate::error::{At, Context, Error, Field, Result};
use crate::host::Cgroup2;
use crate::log;
use crate::spec::Node;

/// A value for one file of the cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Files with the value that each takes; the first that this kernel has is written.
    pub files: Vec<(String, String)>,
    /// Whether it is as good not to have the file: the value says what holds without it.
    pub may_lack: bool,
    pub field: Field,
}

impl Limit {
    pub fn new(file: impl Into<String>, value: impl ToString, field: Field) -> Self {
        Self { files: vec![(file.into(), value.to_string())], may_lack: false, field }
    }

    /// Whether it asks for no limit, which holds without a cgroup too.
    pub fn is_none(&self) -> bool {
        self.files.iter().all(|(_, value)| value == "max")
    }

    /// The file that is written if this kernel has it.
    pub fn file(&self) -> &str {
        self.files.first().map_or("", |(file, _)| file)
    }

    /// The controller that its file belongs to; `cgroup` is none, but the core.
    fn controller(&self) -> Option<&str> {
        self.file().split('.').next().filter(|name| *name != "cgroup")
    }
}

/// Reads `/linux/resources`, but for the devices.
pub fn plan(resources: &Node) -> Vec<Limit> {
    resources.expect_keys(&[
        "devices",
        "memory",
        "cpu",
        "pids",
        "blockIO",
        "hugepageLimits",
        "network",
        "rdma",
        "unified",
    ]);
    if let Some(network) = resources.object("network") {
        for key in ["classID", "priorities"].into_iter().filter(|key| network.has(key)) {
            network.problem(key, "cgroup v2 has no network controller");
        }
    }
    let mut limits = Vec::new();
    memory::plan(resources, &mut limits);
    cpu::plan(resources, &mut limits);
    io::plan(resources, &mut limits);
    pids::plan(resources, &mut limits);
    hugetlb::plan(resources, &mut limits);
    rdma::plan(resources, &mut limits);
    // The last word: it names the very files.
    unified::plan(resources, &mut limits);
    limits
}

/// Puts the controllers to work that the limits need. Before the first process is in the cgroup: the kernel moves
/// the processes below when a controller comes to them, which takes milliseconds.
pub fn enable(limits: &[Limit], cgroup: &Cgroup, mount: &Cgroup2) -> Result<()> {
    let mut missing: Vec<&Limit> = limits.iter().filter(|limit| limit.controller().is_some()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let has = cgroup.controllers(".")?;
    missing.retain(|limit| limit.controller().is_some_and(|controller| !has.contains(controller)));
    let Some(above) = cgroup.path().parent().filter(|_| !missing.is_empty()) else { return Ok(()) };
    let below = above.strip_prefix(mount.path()).unwrap_or(above);
    let mut dir = mount.path().to_path_buf();
    enable_in(&dir, &missing)?;
    for name in below.components() {
        dir.push(name);
        enable_in(&dir, &missing)?;
    }
    Ok(())
}

/// Passes the controllers on to the children of a cgroup.
fn enable_in(dir: &Path, limits: &[&Limit]) -> Result<()> {
    let Some(cgroup) = Cgroup::open(dir)? else { return Err(Errno::ENOENT).context(|| "open a parent") };
    let passed = cgroup.controllers("subtree_control")?;
    let mut done = BTreeSet::new();
    for limit in limits {
        let controller = limit.controller().unwrap_or_default();
        if passed.contains(controller) || !done.insert(controller) {
            continue;
        }
        let enabled = cgroup.write("cgroup.subtree_control", &format!("+{controller}"));
        enabled.map_err(|errno| explain(errno, controller, dir)).at(&limit.field)?;
    }
    Ok(())
}

/// Passes on all that there is to pass, from the top of the hierarchy to the children of `last`: for a container
/// that manages cgroups of its own. A cgroup that cannot pass one on, as it has processes, is left as it is: then
/// the container does without that one, as all below this cgroup do.
pub fn enable_all(last: &Path, mount: &Cgroup2) -> Result<()> {
    let mut dir = mount.path().to_path_buf();
    let below = last.strip_prefix(mount.path()).unwrap_or(last);
    for name in std::iter::once(None).chain(below.components().map(Some)) {
        dir.extend(name);
        let Some(cgroup) = Cgroup::open(&dir)? else { return Err(Errno::ENOENT).context(|| "open a parent") };
        let passed = cgroup.controllers("subtree_control")?;
        for controller in cgroup.controllers(".")?.difference(&passed) {
            match cgroup.write("cgroup.subtree_control", &format!("+{controller}")) {
                // EINVAL: a process with a realtime policy keeps cpu back. EOPNOTSUPP: it is threaded. EACCES: it is not
                // delegated to this user.
                Ok(())
                | Err(Errno::EBUSY | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EACCES | Errno::EPERM) => {}
                Err(errno) => return Err(explain(errno, controller, &dir)),
            }
        }
    }
    Ok(())
}

fn explain(errno: Errno, controller: &str, dir: &Path) -> Error {
    let what = format!("enable the cgroup controller {controller} in {}", dir.display());
    match errno {
        // EINVAL: no such controller; ENOENT: not in cgroup.controllers.
        Errno::EINVAL | Errno::ENOENT => Error::new(format!("{what}: this host does not have it there")),
        Errno::EBUSY => Error::new(format!("{what}: it has processes of its own (see cgroups(7))")),
        Errno::EACCES | Errno::EPERM => Error::new(format!("{what}: it is not delegated to this user")),
        Errno::ENOMEM => Error::new(format!("{what}: no memory for it (memory.max there or above it)")),
        _ => Error::from(errno).because(what),
    }
}

/// Writes the limits.
pub fn apply(limits: &[Limit], cgroup: &Cgroup) -> Result<()> {
    limits.iter().try_for_each(|limit| limit.write(cgroup).at(&limit.field))
}

/// Writes the limits in place of others, and gives those; if the kernel refuses one, the old ones hold again.
pub fn replace(limits: &[Limit], cgroup: &Cgroup) -> Result<Vec<Limit>> {
    let mut old = Vec::new();
    let replaced = limits.iter().try_for_each(|limit| {
        old.extend(limit.lost_with(cgroup)?);
        old.extend(limit.current(cgroup)?);
        limit.write(cgroup).at(&limit.field)
    });
    match replaced {
        Ok(()) => Ok(old),
        Err(refused) => {
            put_back(&old, cgroup);
            Err(refused)
        }
    }
}

/// Writes the limits that [`replace`] has replaced.
pub fn put_back(old: &[Limit], cgroup: &Cgroup) {
    for limit in old.iter().rev() {
        limit.write(cgroup).unwrap_or_else(log::warning);
    }
}

impl Limit {
    /// What the kernel forgets when this is written: the weight of a cgroup that becomes idle.
    fn lost_with(&self, cgroup: &Cgroup) -> Result<Option<Self>> {
        if !self.files.iter().any(|(file, _)| file == "cpu.idle") {
            return Ok(None);
        }
        // An idle one has none, and takes none.
        if cgroup.value("cpu.idle")?.is_none_or(|idle| idle != "0") {
            return Ok(None);
        }
        Ok(cgroup.value("cpu.weight")?.map(|weight| Self::new("cpu.weight", weight, self.field.clone())))
    }

    /// The limit that holds now in the same place; None without such a file.
    fn current(&self, cgroup: &Cgroup) -> Result<Option<Self>> {
        for (file, value) in &self.files {
            if let Some(mut text) = cgroup.value(file)? {
                if text.is_empty() && file.starts_with("cpuset.") {
                    // All that the parent has; while there are processes, the kernel lets none of it be unset again.
                    text = cgroup.value(&format!("{file}.effective"))?.unwrap_or_default();
                }
                return Ok(Some(Self::new(file, current_value(file, &text, value), self.field.clone())));
            }
        }
        Ok(None)
    }

    fn write(&self, cgroup: &Cgroup) -> Result<()> {
        if self.write_to_first(cgroup)? {
            return Ok(());
        }
        // Another process may have a parent pass the controller on right now: that is announced before the files are.
        cgroup.settle()?;
        if self.write_to_first(cgroup)? || self.may_lack {
            return Ok(());
        }
        let (file, value) = self.files.first().map_or(("", ""), |(file, value)| (file, value));
        Err(Error::new(format!("write {value} to {file}: this kernel does not have it")))
    }

    /// Whether there is one of the files.
    fn write_to_first(&self, cgroup: &Cgroup) -> Result<bool> {
        for (file, value) in &self.files {
            match cgroup.write(file, value) {
                Err(Errno::ENOENT) => {}
                written => {
                    let what = || format!("write {value:?} to {}/{file}", cgroup.path().display());
                    return written.context(what).map(|()| true);
                }
            }
        }
        Ok(false)
    }
}

/// Of a file with a line for each device: that of the device which `new` is for, or what stands for none.
fn current_value(file: &str, text: &str, new: &str) -> String {
    let unset = match file {
        "io.max" => "rbps=max wbps=max riops=max wiops=max",
        "rdma.max" => "hca_handle=max hca_object=max",
        "io.weight" | "io.bfq.weight" => "default",
        // One value for the whole file.
        _ => return text.to_owned(),
    };
    let device = match new.split_once(' ') {
        Some((device, _)) => device,
        None => "default",
    };
    let of_device = |line: &&str| line.split(' ').next() == Some(device);
    text.lines().find(of_device).map_or_else(|| format!("{device} {unset}"), str::to_owned)
}

impl Cgroup {
    /// The names in one of its lists: `.` is what it has (cgroup.controllers), `subtree_control` what it passes on.
    fn controllers(&self, list: &str) -> Result<BTreeSet<String>> {
        let file = if list == "." { c"cgroup.controllers" } else { c"cgroup.subtree_control" };
        let read = || -> Result<String> {
            Ok(std::io::read_to_string(std::fs::File::from(self.open_file(file, OFlag::O_RDONLY)?))?)
        };
        let names = read().context(|| format!("read {}/{}", self.path.display(), file.to_string_lossy()))?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// Whether the cgroups below have controllers of it, so that it can have no processes itself.
    pub fn passes_on(&self) -> Result<bool> {
        Ok(!self.controllers("subtree_control")?.is_empty())
    }

    /// Waits for changes to the controllers of the hierarchy that are under way: a write that asks for no change takes
    /// the same lock.
    fn settle(&self) -> Result<()> {
        let what = || format!("write to {}/cgroup.subtree_control", self.path.display());
        self.write("cgroup.subtree_control", "\n").context(what)
    }

    /// What is in one of its files, without the last newline; None when there is no such file.
    pub fn value(&self, file: &str) -> Result<Option<String>> {
        let read = || -> Result<String> {
            let name = CString::new(file).map_err(|_| Errno::EINVAL)?;
            Ok(std::io::read_to_string(std::fs::File::from(self.open_file(&name, OFlag::O_RDONLY)?))?)
        };
        match read() {
            Err(e) if e.errno() == Some(Errno::ENOENT) => Ok(None),
            text => {
                Ok(Some(text.context(|| format!("read {}/{file}", self.path.display()))?.trim_end().into()))
            }
        }
    }

    /// One `write(2)`, as the kernel wants it.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let name = CString::new(file).map_err(|_| Errno::EINVAL)?;
        let mut file = std::fs::File::from(self.open_file(&name, OFlag::O_WRONLY)?);
        let written = file.write(value.as_bytes());
        written.map(drop).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::spec::planned;

    /// `file=value` of each limit of a section, or the problems.
    pub fn planned_limits(resources: &str, plan: impl Fn(&Node, &mut Vec<Limit>)) -> Vec<String> {
        let (limits, problems) = planned(resources, |node| {
            let mut limits = Vec::new();
            plan(node, &mut limits);
            limits
        });
        if !problems.is_empty() {
            return problems;
        }
        let text = |limit: Limit| {
            let files: Vec<String> =
                limit.files.iter().map(|(file, value)| format!("{file}={value}")).collect();
            files.join(" or ")
        };
        limits.into_iter().map(text).collect()
    }

    #[test]
    fn the_controller_is_the_first_part_of_a_files_name() {
        let limit = |file: &str| Limit::new(file, 1, Field::root());
        assert_eq!(limit("hugetlb.2MB.max").controller(), Some("hugetlb"));
        assert_eq!(limit("cgroup.max.depth").controller(), None);
    }

    #[test]
    fn what_holds_for_a_device_is_its_line() {
        let max = "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2 wbps=max riops=max wiops=max";
        assert_eq!(current_value("io.max", max, "8:16 wbps=5"), "8:16 rbps=2 wbps=max riops=max wiops=max");
        assert_eq!(current_value("io.max", max, "9:0 wbps=5"), "9:0 rbps=max wbps=max riops=max wiops=max");
        assert_eq!(current_value("io.weight", "default 100\n8:0 50", "70"), "default 100");
        assert_eq!(current_value("io.weight", "default 100", "8:0 70"), "8:0 default");
        assert_eq!(current_value("memory.max", "max", "5"), "max");
    }

    #[test]
    fn there_is_no_network_controller() {
        let (_, problems) = planned(r#"{"network": {"classID": 1}}"#, |node| drop(plan(node)));
        assert_eq!(problems, ["/network/classID: cgroup v2 has no network controller"]);
    }
}
