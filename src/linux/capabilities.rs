//! `/process/capabilities` and `/process/noNewPrivileges`: which of root's powers the program has, and whether it
//! can gain others by running a setuid file.
//!
//! A capability that does not exist or that this process does not have itself is left out with a warning, as the
//! spec wants. A config without `capabilities` gives none, as each absent array in it does: that is what crun does,
//! while runc leaves such a program all that the runtime has.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#linux-process>,
//! [capabilities(7)](https://man7.org/linux/man-pages/man7/capabilities.7.html)

use std::str::FromStr;

use caps::Capability;
use nix::errno::Errno;
use nix::sys::prctl;

use crate::error::{At, Context, Field, Result};
use crate::log;
use crate::spec::Node;
use crate::sys::process::{
    Caps, cap_ambient_clear_all, cap_ambient_raise, capbset_drop, capbset_read, capget, capset,
};

/// The five sets, a bit for each capability. Effective is within permitted, inheritable within bounding, ambient
/// within permitted and inheritable: the kernel refuses anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
    field: Field,
}

/// The sets without what this process cannot grant; the bounding set is in force already.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Granted {
    caps: Caps,
    ambient: u64,
    /// CAP_SYS_ADMIN, if this process has it.
    sys_admin: u64,
    field: Field,
}

impl Capabilities {
    pub fn plan(process: &Node) -> Self {
        let Some(node) = process.object("capabilities") else {
            return Self { field: process.at("capabilities"), ..Self::default() };
        };
        node.expect_keys(&["bounding", "effective", "permitted", "inheritable", "ambient"]);
        let bounding = plan_set(&node, "bounding");
        let permitted = plan_set(&node, "permitted");
        let within = |key, allowed: u64, why| {
            let set = plan_set(&node, key);
            if set & !allowed != 0 {
                node.warning(key, format_args!("{} left out: not {why}", names(set & !allowed)));
            }
            set & allowed
        };
        let effective = within("effective", permitted, "permitted");
        let inheritable = within("inheritable", bounding, "in the bounding set");
        let ambient = within("ambient", permitted & inheritable, "both permitted and inheritable");
        Self { bounding, effective, permitted, inheritable, ambient, field: node.field().clone() }
    }

    /// Whether the bounding set keeps a capability.
    pub fn bounds(&self, capability: Capability) -> bool {
        self.bounding & capability.bitmask() != 0
    }

    /// What takes root's powers: drops from the bounding set what the config does not keep, for good, and makes the
    /// permitted set outlive the change of user, which otherwise empties it.
    pub fn before_setuid(&self) -> Result<Granted> {
        let ours = capget().context(|| "get capabilities").at(&self.field)?;
        // The execve that started us permitted only what is bounding or inheritable.
        let known = ours.permitted & !ours.inheritable;
        let bounding = self.drop_bounding(known).at(&self.field.child("bounding"))?;
        prctl::set_keepcaps(true).context(|| "keep capabilities over setuid").at(&self.field)?;
        let granted = self.narrow(bounding, ours.permitted);
        let Caps { effective, permitted, inheritable } = granted.caps;
        let missing = (self.bounding & !bounding)
            | (self.effective & !effective)
            | (self.permitted & !permitted)
            | (self.inheritable & !inheritable)
            | (self.ambient & !granted.ambient);
        if missing != 0 {
            log::warning(format_args!(
                "capabilities that cannot be granted here are left out: {}",
                names(missing)
            ));
        }
        Ok(granted)
    }

    /// Drops all that the config does not keep, those that this program has no name for too; gives what is left.
    /// `known` need not be asked for.
    fn drop_bounding(&self, known: u64) -> Result<u64> {
        let mut left = self.bounding & known;
        for cap in (0..u64::BITS).filter(|cap| self.bounding & known & 1 << cap == 0) {
            let wanted = self.bounding & 1 << cap != 0;
            let has = match if wanted { capbset_read(cap) } else { capbset_drop(cap).map(|()| false) } {
                // Beyond the kernel's last.
                Err(Errno::EINVAL) => break,
                // Without CAP_SETPCAP nothing can be dropped; nor need it be, if it was not there.
                Err(Errno::EPERM) if capbset_read(cap) == Ok(false) => false,
                result => result.context(|| format!("drop {} from the bounding set", names(1 << cap)))?,
            };
            left |= u64::from(has) << cap;
        }
        Ok(left)
    }

    /// Takes from the sets what a process with these bounding and permitted sets cannot grant.
    fn narrow(&self, bounding: u64, ours: u64) -> Granted {
        let permitted = self.permitted & ours;
        let inheritable = self.inheritable & bounding & ours;
        Granted {
            caps: Caps { effective: self.effective & permitted, permitted, inheritable },
            ambient: self.ambient & permitted & inheritable,
            sys_admin: ours & Capability::CAP_SYS_ADMIN.bitmask(),
            field: self.field.clone(),
        }
    }
}

impl Granted {
    /// Leaves the process with these sets and no more. The flag that kept capabilities over setuid ends at execve.
    pub fn apply(&self) -> Result<()> {
        self.apply_with(0)
    }

    /// As `apply`, but keeps CAP_SYS_ADMIN, without which no seccomp filter can be loaded where noNewPrivileges is
    /// false. It goes at execve, which makes the sets anew from the bounding, inheritable and ambient ones, or earlier
    /// by `drop_sys_admin`.
    pub fn apply_before_filter(&self) -> Result<()> {
        self.apply_with(self.sys_admin)
    }

    /// Takes back what `apply_before_filter` kept: one capset, which the filter must allow.
    pub fn drop_sys_admin(&self) -> Result<()> {
        self.set(self.caps)
    }

    fn apply_with(&self, kept: u64) -> Result<()> {
        let mut caps = self.caps;
        caps.permitted |= kept;
        caps.effective |= kept;
        self.set(caps)?;
        let field = self.field.child("ambient");
        cap_ambient_clear_all().context(|| "clear the ambient capabilities").at(&field)?;
        for cap in (0..u64::BITS).filter(|cap| self.ambient & 1 << cap != 0) {
            match cap_ambient_raise(cap) {
                // The securebit SECBIT_NO_CAP_AMBIENT_RAISE is set on us.
                Err(Errno::EPERM) => log::warning(format_args!(
                    "capabilities that cannot be granted here are left out: ambient {}",
                    names(1 << cap)
                )),
                result => result.context(|| format!("raise ambient {}", names(1 << cap))).at(&field)?,
            }
        }
        Ok(())
    }

    fn set(&self, caps: Caps) -> Result<()> {
        let Caps { effective, permitted, inheritable } = caps;
        capset(caps)
            .context(|| {
                format!("set capabilities effective {effective:#x}, permitted {permitted:#x}, inheritable {inheritable:#x}")
            })
            .at(&self.field)
    }
}

/// No execve from now on gives new privileges: setuid bits and file capabilities have no effect.
pub fn set_no_new_privileges() -> Result<()> {
    prctl::set_no_new_privs()
        .context(|| "set no_new_privs")
        .at(&Field::root().child("process").child("noNewPrivileges"))
}

/// The capabilities of an array, without those that have no number.
fn plan_set(node: &Node, key: &str) -> u64 {
    let mut set = 0;
    for (name, field) in node.strings(key) {
        match Capability::from_str(name) {
            Ok(capability) => set |= capability.bitmask(),
            Err(_) => node.report().warning(field, format_args!("unknown capability {name:?} left out")),
        }
    }
    set
}

/// All that this program knows, in the kernel's order.
pub fn known() -> Vec<String> {
    let mut known: Vec<Capability> = caps::all().into_iter().collect();
    known.sort_unstable_by_key(Capability::index);
    known.iter().map(ToString::to_string).collect()
}

/// `CAP_CHOWN, CAP_KILL`; a number for what is newer than this program.
fn names(set: u64) -> String {
    let known = caps::all();
    let name = |number: u32| {
        let named = known.iter().find(|capability| u32::from(capability.index()) == number);
        named.map_or_else(|| format!("capability {number}"), ToString::to_string)
    };
    let names: Vec<_> = (0..u64::BITS).filter(|number| set & 1 << number != 0).map(name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    const CHOWN: u64 = 1;
    const KILL: u64 = 1 << 5;

    fn plan(json: &str) -> (Capabilities, Vec<String>) {
        let report = Report::default();
        let value = parse(json.as_bytes(), &report).unwrap();
        let capabilities = Capabilities::plan(&Node::root(&value, &report));
        (capabilities, report.finish().unwrap().iter().map(|p| p.to_string()).collect())
    }

    fn sets(c: &Capabilities) -> [u64; 5] {
        [c.bounding, c.effective, c.permitted, c.inheritable, c.ambient]
    }

    #[test]
    fn each_array_is_one_set() {
        let all = r#"["CAP_CHOWN", "CAP_KILL"]"#;
        let (caps, warnings) = plan(&format!(
            r#"{{"capabilities": {{"bounding": {all}, "effective": ["CAP_KILL"], "permitted": {all},
                "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]}}}}"#
        ));
        assert_eq!(sets(&caps), [CHOWN | KILL, KILL, CHOWN | KILL, CHOWN, CHOWN]);
        assert!(warnings.is_empty());
    }

    #[test]
    fn without_capabilities_the_program_has_none() {
        assert_eq!(sets(&plan("{}").0), [0; 5]);
        assert_eq!(sets(&plan(r#"{"capabilities": {}}"#).0), [0; 5]);
    }

    #[test]
    fn an_unknown_capability_is_a_warning_and_left_out() {
        let (caps, warnings) = plan(r#"{"capabilities": {"bounding": ["CAP_X", "CAP_CHOWN", "cap_kill"]}}"#);
        assert_eq!(sets(&caps), [CHOWN, 0, 0, 0, 0]);
        assert_eq!(
            warnings,
            [
                "/capabilities/bounding/0: unknown capability \"CAP_X\" left out",
                "/capabilities/bounding/2: unknown capability \"cap_kill\" left out",
            ]
        );
    }

    #[test]
    fn what_the_kernel_would_refuse_is_a_warning_and_left_out() {
        let kill = r#"["CAP_KILL"]"#;
        for (json, expected) in [
            (
                format!(r#"{{"effective": {kill}}}"#),
                "/capabilities/effective: CAP_KILL left out: not permitted",
            ),
            (
                format!(r#"{{"inheritable": {kill}}}"#),
                "/capabilities/inheritable: CAP_KILL left out: not in the bounding set",
            ),
            (
                format!(r#"{{"permitted": {kill}, "bounding": {kill}, "ambient": {kill}}}"#),
                "/capabilities/ambient: CAP_KILL left out: not both permitted and inheritable",
            ),
        ] {
            let (caps, warnings) = plan(&format!(r#"{{"capabilities": {json}}}"#));
            assert_eq!(warnings, [expected]);
            assert_eq!((caps.effective, caps.inheritable, caps.ambient), (0, 0, 0));
        }
    }

    #[test]
    fn what_we_do_not_have_is_not_granted() {
        let both = CHOWN | KILL;
        let all = Capabilities {
            bounding: both,
            effective: both,
            permitted: both,
            inheritable: both,
            ambient: both,
            field: Field::root(),
        };
        for (bounding, ours, caps, ambient) in [
            (both, both, [both, both, both], both),
            (both, CHOWN, [CHOWN, CHOWN, CHOWN], CHOWN),
            // Not in the bounding set: permitted it may be, inherited it may not.
            (KILL, both, [both, both, KILL], KILL),
        ] {
            let [effective, permitted, inheritable] = caps;
            let granted = all.narrow(bounding, ours);
            assert_eq!(granted.caps, Caps { effective, permitted, inheritable });
            assert_eq!(granted.ambient, ambient);
        }
    }

    #[test]
    fn a_capability_newer_than_this_program_is_named_by_number() {
        assert_eq!(names(CHOWN | 1 << 63), "CAP_CHOWN, capability 63");
    }
}
