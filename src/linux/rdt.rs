//! /linux/intelRdt: the class of service (how much cache and memory bandwidth) that init is put into, and its
//! monitoring group, as directories of the host's resctrl file system.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#intelrdt>,
//! <https://docs.kernel.org/filesystems/resctrl.html>.

mod stats;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use procfs::{FromBufRead, MountEntry};
use serde::{Deserialize, Serialize};

use crate::error::{At, Context, Error, Field, Result};
use crate::log;
use crate::proc::Proc;
use crate::spec::Node;

pub use stats::Stats;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rdt {
    /// None: a class of the container's own, named after it.
    class: Option<String>,
    /// Lines of `schemata` that a class which exists already must have.
    compared: Vec<(String, Field)>,
    /// Lines that it need not have.
    other: Vec<(String, Field)>,
    monitoring: bool,
    field: Field,
}

/// Where a container has been put; kept in its state.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    resctrl: PathBuf,
    class: PathBuf,
    monitoring: Option<PathBuf>,
    /// The directories to be removed with the container.
    made: Vec<PathBuf>,
}

/// The class that is the root of the file system.
const DEFAULT_CLASS: &str = "/";

pub fn plan(linux: &Node) -> Option<Rdt> {
    let rdt = linux.object("intelRdt")?;
    rdt.expect_keys(&[
        "closID",
        "l3CacheSchema",
        "memBwSchema",
        "schemata",
        "enableMonitoring",
        "enableCMT",
        "enableMBM",
    ]);
    let class = rdt.string("closID").filter(|class| !class.is_empty());
    if let Some(reason) = class.and_then(class_fault) {
        rdt.problem("closID", reason);
    }
    let line = |key: &str| {
        let line = rdt.string(key).filter(|line| !line.is_empty())?;
        if line.contains('\n') {
            rdt.problem(key, "must be one line");
        }
        Some((line.to_owned(), rdt.at(key)))
    };
    let (l3, bandwidth) = (line("l3CacheSchema"), line("memBwSchema"));
    if l3.as_ref().is_some_and(|(line, _)| !line.starts_with("L3:")) {
        rdt.warning("l3CacheSchema", "should start with L3:");
    }
    if bandwidth.as_ref().is_some_and(|(line, _)| !line.starts_with("MB:")) {
        rdt.problem("memBwSchema", "must start with MB:");
    }
    let mut other = Vec::new();
    for (line, field) in rdt.strings("schemata") {
        if line.contains('\n') {
            rdt.report().problem(field.clone(), "must be one line");
        }
        other.push((line.to_owned(), field));
    }
    for old in ["enableCMT", "enableMBM"] {
        if rdt.boolean(old) {
            rdt.warning(old, "has no effect; the spec replaced it by enableMonitoring");
        }
    }
    Some(Rdt {
        class: class.map(str::to_owned),
        compared: l3.into_iter().chain(bandwidth).collect(),
        other,
        monitoring: rdt.boolean("enableMonitoring"),
        field: rdt.field().clone(),
    })
}

fn class_fault(class: &str) -> Option<&'static str> {
    match class {
        DEFAULT_CLASS => None,
        "." | ".." => Some("is not the name of a directory"),
        "info" | "mon_groups" | "mon_data" => Some("is not a class, but a part of the resctrl file system"),
        _ if class.contains(['/', '\n']) => Some("is not the name of a directory"),
        _ => None,
    }
}

impl Rdt {
    /// By the parent, before init starts any process, which would stay in the class of the runtime.
    pub fn apply(&self, proc: &Proc, id: &str, init: Pid) -> Result<Assigned> {
        self.apply_in(&self.root(proc)?, id, init)
    }

    fn root(&self, proc: &Proc) -> Result<PathBuf> {
        let mounts = proc.read("self/mounts")?;
        mount_point(&mounts)
            .ok_or_else(|| Error::new("find the resctrl file system: none is mounted"))
            .at(&self.field)
    }

    fn apply_in(&self, resctrl: &Path, id: &str, init: Pid) -> Result<Assigned> {
        let class = directory(resctrl, self.class.as_deref().unwrap_or(id));
        let monitoring = self.monitoring.then(|| class.join("mon_groups").join(id));
        let mut assigned = Assigned { resctrl: resctrl.into(), class, monitoring, made: Vec::new() };
        let result = self.assign(&mut assigned, init).map_err(|error| reason(error, resctrl));
        if let Err(error) = result {
            if let Err(left) = assigned.remove() {
                log::warning(left);
            }
            return Err(error).at(&self.field);
        }
        if self.class.is_some() {
            // A class that was asked for by name may be shared by now, and outlives the container.
            assigned.made.retain(|path| *path != assigned.class);
        }
        Ok(assigned)
    }

    fn assign(&self, assigned: &mut Assigned, init: Pid) -> Result<()> {
        let Assigned { class, monitoring, made, .. } = assigned;
        let lines = || self.compared.iter().chain(&self.other);
        if self.class.is_none() || lines().next().is_some() {
            match fs::create_dir(&class) {
                Ok(()) => made.push(class.clone()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => self.compare(class)?,
                Err(error) => return Err(error).context(|| format!("create {}", class.display())),
            }
        } else if !class.is_dir() {
            let class = class.display();
            return Err(Error::new(format!("find {class}: there is none, and no schemata to make it from")));
        }
        for (line, field) in lines() {
            write(&class.join("schemata"), line).at(field)?;
        }
        if let Some(group) = monitoring {
            fs::create_dir(&group).context(|| format!("create {}", group.display()))?;
            made.push(group.clone());
        }
        assigned.add(init)
    }

    /// New values for the class that a container is in, all or none: the kernel takes the lines of one write together.
    pub fn replace(&self, assigned: &Assigned) -> Result<()> {
        let lines: Vec<&str> = self.compared.iter().map(|(line, _)| line.as_str()).collect();
        write(&assigned.class.join("schemata"), &lines.join("\n"))
            .map_err(|error| reason(error, &assigned.resctrl))
            .at(&self.field)
    }

    /// A named class that exists is not ours to change.
    fn compare(&self, class: &Path) -> Result<()> {
        if self.class.is_none() || self.compared.is_empty() {
            return Ok(());
        }
        let path = class.join("schemata");
        let schemata = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
        match self.compared.iter().find(|(line, _)| !holds(&schemata, line)) {
            Some((line, field)) => {
                let schemata = schemata.split_whitespace().collect::<Vec<_>>().join(" ");
                Err(Error::new(format!("compare {line} with {}: it holds {schemata}", path.display())))
                    .at(field)
            }
            None => Ok(()),
        }
    }
}

impl Assigned {
    /// Puts one more process where the container's first is.
    pub fn add(&self, pid: Pid) -> Result<()> {
        let groups = [&self.class].into_iter().chain(&self.monitoring);
        groups.into_iter().try_for_each(|group| write(&group.join("tasks"), &pid.to_string()))
    }

    pub fn remove(&self) -> Result<()> {
        for path in self.made.iter().rev() {
            match fs::remove_dir(path) {
                // Removed by somebody else, or with its file system.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result.context(|| format!("remove {}", path.display()))?,
            }
        }
        Ok(())
    }
}

fn directory(resctrl: &Path, class: &str) -> PathBuf {
    match class {
        DEFAULT_CLASS => resctrl.to_owned(),
        class => resctrl.join(class),
    }
}

/// One `write(2)`, which the kernel takes as a whole.
fn write(path: &Path, line: &str) -> Result<()> {
    let write = || File::options().write(true).open(path)?.write_all(format!("{line}\n").as_bytes());
    write().context(|| format!("write {} to {}", line.replace('\n', ", "), path.display()))
}

/// The error with what the file system says about its last command, if that went wrong.
fn reason(error: Error, resctrl: &Path) -> Error {
    match fs::read_to_string(resctrl.join("info/last_cmd_status")) {
        Ok(status) if status.trim() != "ok" => error.because(format!("resctrl says {:?}", status.trim())),
        _ => error,
    }
}

/// Whether a class has the values of a line, for each cache that it names.
fn holds(schemata: &str, wanted: &str) -> bool {
    let Some((resource, wanted)) = parse(wanted) else { return false };
    let found = schemata.lines().filter_map(parse).find(|(name, _)| *name == resource);
    found.is_some_and(|(_, found)| wanted.iter().all(|(cache, value)| found.get(cache) == Some(value)))
}

/// `L3:0=7f0;1=1f`: the resource, and its value for each cache. Masks are hexadecimal; other numbers are equal or
/// not just the same if read so.
fn parse(line: &str) -> Option<(&str, HashMap<u32, u64>)> {
    let (resource, values) = line.trim().split_once(':')?;
    let values = values.split(';').filter(|value| !value.trim().is_empty()).map(|value| {
        let (cache, value) = value.split_once('=')?;
        Some((cache.trim().parse().ok()?, u64::from_str_radix(value.trim(), 16).ok()?))
    });
    Some((resource, values.collect::<Option<_>>()?))
}

/// Where resctrl is mounted; see `proc_pid_mounts(5)`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    let mounts = Vec::<MountEntry>::from_buf_read(mounts.as_bytes()).ok()?;
    mounts.into_iter().find(|mount| mount.fs_vfstype == "resctrl").map(|mount| mount.fs_file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::planned;

    fn rdt(config: &str) -> (Option<Rdt>, Vec<String>) {
        planned(&format!(r#"{{"intelRdt": {config}}}"#), plan)
    }

    /// A directory in place of resctrl, with a class `c` in it; nothing appears by itself in a new class there.
    struct Resctrl(PathBuf);

    impl Resctrl {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("keel-rdt-{}-{name}", std::process::id()));
            for directory in ["info", "c/mon_groups"] {
                fs::create_dir_all(root.join(directory)).unwrap();
            }
            fs::write(root.join("c/schemata"), "    L3:0=7ff;1=01f\n    MB:0= 20;1= 70\n").unwrap();
            fs::write(root.join("c/tasks"), "").unwrap();
            Self(root)
        }

        fn apply(&self, config: &str) -> Result<Assigned, String> {
            let error = |e: Error| e.to_string().replace(self.0.to_str().unwrap(), "R");
            rdt(config).0.unwrap().apply_in(&self.0, "id", Pid::from_raw(7)).map_err(error)
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).unwrap()
        }
    }

    impl Drop for Resctrl {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn what_the_spec_forbids_is_a_problem() {
        let table = [
            (r#"{"closID": ".."}"#, "/intelRdt/closID: is not the name of a directory"),
            (r#"{"closID": "a/b"}"#, "/intelRdt/closID: is not the name of a directory"),
            (
                r#"{"closID": "info"}"#,
                "/intelRdt/closID: is not a class, but a part of the resctrl file system",
            ),
            (r#"{"l3CacheSchema": "L3:0=f\nMB:0=9"}"#, "/intelRdt/l3CacheSchema: must be one line"),
            (r#"{"memBwSchema": "0=20"}"#, "/intelRdt/memBwSchema: must start with MB:"),
            (r#"{"memBwSchema": "MB:0=20\n"}"#, "/intelRdt/memBwSchema: must be one line"),
            (r#"{"schemata": ["L3:0=f", "L2:0=f\n"]}"#, "/intelRdt/schemata/1: must be one line"),
        ];
        for (config, problem) in table {
            assert_eq!(rdt(config).1, [problem]);
        }
        assert!(rdt(r#"{"closID": "/", "enableMonitoring": true}"#).1.is_empty());
    }

    #[test]
    fn a_class_that_exists_must_have_the_values_asked_for() {
        let resctrl = Resctrl::new("compare");
        let config = r#"{"closID": "c", "memBwSchema": "MB:1=70", "l3CacheSchema": "L3:0=0x"}"#;
        let config = |mask| config.replace("0x", mask);
        assert_eq!(
            resctrl.apply(&config("7f")).unwrap_err(),
            "compare L3:0=7f with R/c/schemata: it holds L3:0=7ff;1=01f MB:0= 20;1= 70 [config.json /intelRdt/l3CacheSchema]"
        );
        assert_eq!(resctrl.read("c/tasks"), "");
        assert_eq!(resctrl.apply(&config("07FF")).unwrap().made, [""; 0].map(PathBuf::from));
        assert_eq!(resctrl.read("c/tasks"), "7\n");
        // Both lines start at the file's beginning, and the bandwidth came last.
        assert!(resctrl.read("c/schemata").starts_with("MB:1=70\n"));
    }

    #[test]
    fn a_class_without_schemata_must_exist() {
        let resctrl = Resctrl::new("exist");
        assert_eq!(
            resctrl.apply(r#"{"closID": "d"}"#).unwrap_err(),
            "find R/d: there is none, and no schemata to make it from [config.json /intelRdt]"
        );
        assert!(resctrl.apply(r#"{"closID": "c"}"#).is_ok());
    }

    #[test]
    fn what_was_made_is_removed_after_an_error() {
        let resctrl = Resctrl::new("undo");
        fs::write(resctrl.0.join("info/last_cmd_status"), "no such mask\n").unwrap();
        assert_eq!(
            resctrl.apply(r#"{"schemata": ["L3:0=f"]}"#).unwrap_err(),
            "resctrl says \"no such mask\": write L3:0=f to R/id/schemata: No such file or directory (2) \
             [config.json /intelRdt/schemata/0]"
        );
        assert!(!resctrl.0.join("id").exists());
        assert!(resctrl.apply(r#"{"closID": "c", "enableMonitoring": true}"#).is_err());
        assert!(!resctrl.0.join("c/mon_groups/id").exists() && resctrl.0.join("c").exists());
    }

    #[test]
    fn new_values_go_to_the_class_in_one_write() {
        let resctrl = Resctrl::new("replace");
        let assigned = resctrl.apply(r#"{"closID": "c"}"#).unwrap();
        fs::write(resctrl.0.join("c/schemata"), "").unwrap();
        let new = rdt(r#"{"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20"}"#).0.unwrap();
        new.replace(&assigned).unwrap();
        assert_eq!(resctrl.read("c/schemata"), "L3:0=f\nMB:0=20\n");
        fs::remove_file(resctrl.0.join("c/schemata")).unwrap();
        let error = new.replace(&assigned).unwrap_err().to_string();
        assert!(error.starts_with("write L3:0=f, MB:0=20 to "), "{error}");
        assert!(
            error.ends_with("c/schemata: No such file or directory (2) [config.json /intelRdt]"),
            "{error}"
        );
    }

    #[test]
    fn directories_that_are_gone_already_are_removed() {
        let resctrl = Resctrl::new("remove");
        let group = resctrl.0.join("c/mon_groups/id");
        fs::create_dir(&group).unwrap();
        let assigned = Assigned { made: vec![group.clone()], ..Assigned::default() };
        assert!(assigned.remove().is_ok() && !group.exists() && assigned.remove().is_ok());
    }

    #[test]
    fn resctrl_is_found_by_its_type() {
        let mounts = "resctrl /sys sysfs rw 0 0\nresctrl /sys/fs/resctrl resctrl rw,nosuid,mba_MBps 0 0\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/resctrl".into()));
        assert_eq!(mount_point("resctrl /sys sysfs rw 0 0\n"), None);
    }
}
