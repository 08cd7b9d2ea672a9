//! `--systemd-cgroup`: systemd makes the container's cgroup, as that of a transient scope.
//!
//! A scope is made around processes. Init is cloned in the cgroup of this process, and systemd moves it and says where
//! to; init waits for that before it does what shows its cgroup or takes memory to speak of. The limits are told to
//! systemd together with that, so that it keeps them (see `properties.rs`), and then written like those of any other
//! cgroup, so that one that systemd ignores, since the controller is missing, is an error as it is there. The scope ends
//! when its last process has; `delete` waits for that.
//!
//! cgroupsPath is `slice:prefix:name`, as with runc.
//!
//! <https://github.com/opencontainers/runc/blob/main/docs/systemd.md>, <https://systemd.io/CGROUP_DELEGATION/>,
//! `systemd.scope(5)`

mod annotations;
mod attach;
mod bus;
mod message;
mod properties;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

pub use annotations::PREFIX as ANNOTATIONS;
pub use attach::Attach;
pub use bus::{Bus, Instance};

use self::bus::Refused;
use self::message::Value;
use self::properties::Property;
use super::limits::{self, Limit};
use super::{Cgroup, Place, Plan};
use crate::error::{At, Context, Error, Field, Result};
use crate::host::Host;
use crate::spec::{Node, Report};

/// A scope to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub name: String,
    /// Where it is; slices nest by the dashes in their names.
    slice: String,
    /// Those of the limits, and then of annotations.
    properties: Vec<Property>,
}

/// Reads `/linux/cgroupsPath` and `/annotations` of the whole `config`. Rounds limits that systemd would.
pub fn plan(
    config: &Node,
    linux: Option<&Node>,
    limits: &mut [Limit],
    id: &str,
    instance: Instance,
) -> Scope {
    // Callers write an empty string for "none".
    let path = linux.and_then(|linux| linux.string("cgroupsPath")).filter(|path| !path.is_empty());
    // The one character of ids that names of units do not have.
    let (mut slice, mut name) = ("", format!("keel-{}.scope", id.replace('+', "\\x2b")));
    if let (Some(path), Some(linux)) = (path, linux) {
        match path.split(':').collect::<Vec<_>>()[..] {
            [given, prefix, last] if !last.ends_with(".slice") => {
                (slice, name) = (given, format!("{prefix}-{last}.scope"));
                check_names(linux, slice, &name);
            }
            [_, _, last] => {
                let what = format_args!("must not name the slice {last:?}: a slice can have no processes");
                linux.problem("cgroupsPath", what);
            }
            _ => {
                let what = format_args!("must be slice:prefix:name for systemd, not {path:?}");
                linux.problem("cgroupsPath", what);
            }
        }
    }
    let slice = match (slice, instance) {
        ("", Instance::System) => "system.slice",
        ("", Instance::User) => "user.slice",
        ("-", _) => "-.slice",
        (slice, _) => slice,
    };
    let mut properties = properties::of_limits(limits, config.report());
    properties.extend(annotations::plan(config));
    Scope { name, slice: slice.into(), properties }
}

fn check_names(linux: &Node, slice: &str, name: &str) {
    const LONGEST: usize = 255; // bytes
    let is_valid = |name: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.\\".contains(c);
        name.len() <= LONGEST && name.chars().all(known)
    };
    if !is_valid(name) {
        let what = format_args!("must make the name of a unit (see systemd.unit(5)), and {name:?} is none");
        linux.problem("cgroupsPath", what);
    }
    let parts = slice.strip_suffix(".slice").map(|stem| stem.split('-').all(|part| !part.is_empty()));
    if !matches!(slice, "" | "-" | "-.slice") && (parts != Some(true) || !is_valid(slice)) {
        let what =
            format_args!("must begin with the name of a slice, such as a-b.slice, and {slice:?} is none");
        linux.problem("cgroupsPath", what);
    }
}

impl Scope {
    /// Has systemd make the scope around a process that waits for it; gives the path of its cgroup. `description`: no
    /// other unit's.
    ///
    /// # Errors
    /// There may be a scope then, or somebody else's; [`stop`] can tell.
    pub fn start(
        &self,
        bus: &mut Bus<'_>,
        description: &str,
        plan: &Plan,
        pid: Pid,
        host: &Host,
    ) -> Result<PathBuf> {
        let what = || format!("start the systemd unit {}", self.name);
        let properties = supported(&self.properties, bus).context(what)?;
        let answer = match self.ask_to_start(bus, description, &properties, pid).context(what)? {
            Err(refused) if refused.is("UnitExists") => {
                // One that has failed stays until somebody takes note of it; any other is in use.
                bus.tell("ResetFailedUnit", "s", |body| body.text(&self.name));
                self.ask_to_start(bus, description, &properties, pid).context(what)?
            }
            answer => answer,
        };
        let result =
            answer.map_err(|refused| name_field(refused, &self.properties, &plan.field)).context(what)?;
        if result != "done" {
            return Err(Error::new(format!("its job ended with {result:?}"))).context(what).at(&plan.field);
        }
        let path = host.cgroup_of(pid)?;
        // Some names get a `_` before them.
        if !path.as_os_str().as_bytes().ends_with(self.name.as_bytes()) {
            let elsewhere = format!("process {pid} is in {} after that", path.display());
            return Err(Error::new(elsewhere)).context(what).at(&plan.field);
        }
        host.locate_cgroup(&path)
    }

    fn ask_to_start(
        &self,
        bus: &mut Bus<'_>,
        description: &str,
        properties: &[&Property],
        pid: Pid,
    ) -> Result<Result<String, Refused>> {
        let own = [
            ("Description", Value::Text(description.into())),
            ("Slice", Value::Text(self.slice.clone())),
            ("PIDs", Value::U32s(vec![pid.as_raw() as u32])),
            // What is in the cgroup and below it is not systemd's.
            ("Delegate", Value::Bool(true)),
            // Else one whose process dies before it is moved would stay, as failed.
            ("CollectMode", Value::Text("inactive-or-failed".into())),
            // Else it would be stopped before the engine at shutdown.
            ("DefaultDependencies", Value::Bool(false)),
            // For systemctl status and systemd-cgtop.
            ("CPUAccounting", Value::Bool(true)),
            ("IOAccounting", Value::Bool(true)),
            ("MemoryAccounting", Value::Bool(true)),
            ("TasksAccounting", Value::Bool(true)),
        ];
        let own = own.iter().map(|(name, value)| (*name, value));
        bus.ask_for_job("StartTransientUnit", "ssa(sv)a(sa(sv))", |body| {
            body.text(&self.name);
            body.text("fail");
            properties::write(own.chain(named(properties)), body);
            // No units besides.
            body.structures::<()>([], |_, ()| ());
        })
    }
}

fn named<'p>(properties: &[&'p Property]) -> impl Iterator<Item = (&'p str, &'p Value)> {
    properties.iter().map(|property| (property.name, &property.value))
}

/// Those that this systemd has.
fn supported<'p>(properties: &'p [Property], bus: &mut Bus<'_>) -> Result<Vec<&'p Property>> {
    let is_new = properties.iter().any(|property| property.since > properties::OLDEST);
    let version = if is_new { bus.version()? } else { properties::OLDEST };
    Ok(properties.iter().filter(|property| property.since <= version).collect())
}

impl Plan {
    /// What systemd is asked for; None if keel makes the cgroup.
    pub fn scope(&self) -> Option<&Scope> {
        match &self.place {
            Place::Scope(scope) => Some(scope),
            Place::Absolute(_) | Place::Sibling(_) => None,
        }
    }
}

impl Cgroup {
    /// Opens the one that systemd has made, with a process in it that waits.
    pub fn of_scope(plan: &Plan, path: &Path, host: &Host) -> Result<Self> {
        let open = || -> Result<Self> {
            let Some(cgroup) = Self::open(path)? else {
                return Err(Error::new(format!("open cgroup {}: it is gone", path.display())));
            };
            if cgroup.events()?.frozen {
                return Err(Error::new(format!("use cgroup {}: one above it is frozen", path.display())));
            }
            limits::enable(&plan.limits, &cgroup, host.cgroup2()?)?;
            Ok(cgroup)
        };
        open().at(&plan.field)
    }
}

/// The period of the quota that the scope would have: of no quota, systemd writes 100 ms into cpu.max again, whatever the
/// period that it has been told.
pub fn quota_period_us(unit: &str, instance: Instance) -> Result<Option<u64>> {
    let what = || format!("ask for the quota of the systemd unit {unit}");
    let period = Bus::connect(instance, None)
        .and_then(|mut bus| bus.scope_number(unit, "CPUQuotaPeriodUSec"))
        .context(what)?;
    // As long as it has been told none.
    Ok(period.filter(|&period| period != u64::MAX))
}

/// New limits of a scope, which hold as long as it does.
pub struct Update {
    unit: String,
    instance: Instance,
    properties: Vec<Property>,
}

impl Update {
    /// Rounds limits that systemd would.
    pub fn plan(unit: &str, instance: Instance, limits: &mut [Limit], report: &Report) -> Self {
        Self { unit: unit.into(), instance, properties: properties::of_limits(limits, report) }
    }

    pub fn apply(self) -> Result<()> {
        if self.properties.is_empty() {
            return Ok(());
        }
        let what = || format!("change the systemd unit {}", self.unit);
        let mut bus = Bus::connect(self.instance, None).context(what)?;
        let properties = supported(&self.properties, &mut bus).context(what)?;
        let answer = bus.ask("SetUnitProperties", "sba(sv)", |body| {
            // Not those of the next unit with this name.
            body.text(&self.unit);
            body.u32(true.into());
            properties::write(named(&properties), body);
        });
        let resources = Field::root().child("linux").child("resources");
        match answer.context(what)? {
            // The container has just ended; perhaps these limits have ended it.
            Err(refused) if refused.is("NoSuchUnit") => Ok(()),
            Err(refused) => Err(name_field(refused, &self.properties, &resources)).context(what),
            Ok(_) => Ok(()),
        }
    }
}

/// Ends a scope that has no processes any more. It would end by itself, but in its own time, and a new one can have its
/// name only after that. `description`: only if it has this one, since it may be somebody else's.
pub fn stop(unit: &str, instance: Instance, description: Option<&str>) -> Result<()> {
    if !is_known(unit, instance) {
        return Ok(());
    }
    let what = || format!("stop the systemd unit {unit}");
    let mut bus = Bus::connect(instance, None).context(what)?;
    if let Some(description) = description
        && bus.description(unit).context(what)? != description
    {
        return Ok(());
    }
    // One that has failed stays, if an annotation says so.
    bus.tell("ResetFailedUnit", "s", |body| body.text(unit));
    let answer = bus.ask_for_job("StopUnit", "ss", |body| {
        body.text(unit);
        body.text("replace");
    });
    match answer.context(what)? {
        // It has ended by itself.
        Err(refused) if refused.is("NoSuchUnit") => Ok(()),
        answer => answer.map(drop).map_err(Error::from).context(what),
    }
}

/// Whether there is a unit of this name that has another description, by the file that systemd has of it.
pub fn is_anothers(unit: &str, instance: Instance, description: &str) -> bool {
    let file = instance.directory().map(|directory| directory.join("systemd/transient").join(unit));
    let described = |line: &str| line.strip_prefix("Description=").is_some_and(|said| said != description);
    file.and_then(|file| fs::read_to_string(file).ok()).is_some_and(|text| text.lines().any(described))
}

/// Whether systemd has a transient unit of this name, as the file of that says, which goes when the name is free; or
/// whether that cannot be told from here.
fn is_known(unit: &str, instance: Instance) -> bool {
    let Some(files) = instance.directory().map(|directory| directory.join("systemd/transient")) else {
        return true;
    };
    files.join(unit).exists() || !files.exists()
}

/// The field that asked for the property that systemd's message names. It names none when a mask is too long.
fn name_field(refused: Refused, properties: &[Property], otherwise: &Field) -> Error {
    let named = properties.iter().rfind(|property| refused.text.contains(property.name));
    let mask = || properties.iter().find(|property| matches!(property.value, Value::Bytes(_)));
    let too_long = || mask().filter(|_| refused.name == "System.Error.ERANGE");
    let field = named.or_else(too_long).map_or(otherwise, |property| &property.field);
    Error::from(refused).field(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Manager, plan};
    use crate::spec::planned;

    /// The slice and the name of the scope, or the problems.
    fn placed(path: &str, manager: Manager) -> Result<(String, String), Vec<String>> {
        let config = format!(r#"{{"linux": {{"cgroupsPath": {path:?}}}}}"#);
        let (plan, problems) =
            planned(&config, |config| plan(config, config.object("linux").as_ref(), "c+1", manager));
        match plan.scope() {
            Some(scope) if problems.is_empty() => Ok((scope.slice.clone(), scope.name.clone())),
            _ => Err(problems),
        }
    }

    #[test]
    fn a_path_names_a_slice_and_a_scope() {
        for (path, slice, name) in [
            ("", "system.slice", r"keel-c\x2b1.scope"),
            ("a-b.slice:docker:1", "a-b.slice", "docker-1.scope"),
            ("::1", "system.slice", "-1.scope"),
            (":p:", "system.slice", "p-.scope"),
            ("-:p:1", "-.slice", "p-1.scope"),
            ("-.slice:p:1", "-.slice", "p-1.scope"),
        ] {
            assert_eq!(placed(path, Manager::Systemd), Ok((slice.into(), name.into())), "{path:?}");
        }
        assert_eq!(placed(":p:1", Manager::SystemdUser).unwrap().0, "user.slice");
    }

    #[test]
    fn a_path_of_another_form_is_a_problem() {
        let long = format!("a.slice:p:{}", "n".repeat(250));
        for (path, reason) in [
            ("/a/b", "must be slice:prefix:name for systemd, not \"/a/b\""),
            ("a.slice:b", "must be slice:prefix:name for systemd, not \"a.slice:b\""),
            ("a.slice:b:c:d", "must be slice:prefix:name for systemd, not \"a.slice:b:c:d\""),
            ("a.slice:b:c.slice", "must not name the slice \"c.slice\": a slice can have no processes"),
            ("a:b:c", "must begin with the name of a slice, such as a-b.slice, and \"a\" is none"),
            (
                "a--b.slice:b:c",
                "must begin with the name of a slice, such as a-b.slice, and \"a--b.slice\" is none",
            ),
            (
                "a/b.slice:b:c",
                "must begin with the name of a slice, such as a-b.slice, and \"a/b.slice\" is none",
            ),
            (
                "a.slice:b/c:d",
                "must make the name of a unit (see systemd.unit(5)), and \"b/c-d.scope\" is none",
            ),
            (&long, "must make the name of a unit (see systemd.unit(5)), and \"p-nnn"),
        ] {
            let problems = placed(path, Manager::Systemd).unwrap_err();
            assert!(problems[0].starts_with(&format!("/linux/cgroupsPath: {reason}")), "{problems:?}");
        }
    }
}
