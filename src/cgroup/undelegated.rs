//! A caller who may not make cgroups everywhere: a user, or the root of a user namespace. It has those that were
//! delegated to it, usually by systemd, and what asks for no more than processes together does without.
//!
//! The same rules as runc's: without a cgroupsPath and without limits a container has no cgroup where none can be made;
//! with either that is an error.
//!
//! Kernel: <https://docs.kernel.org/admin-guide/cgroup-v2.html#delegation>

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, Uid, faccessat};

use super::delegate::{self, Leaf};
use super::{Cgroup, Place, Plan, devices};
use crate::error::{At, Error, Result};
use crate::host::Host;
use crate::log;
use crate::rights::Rights;

/// What can be done about it.
const WAY_OUT: &str = "systemd delegates one: systemd-run --user --scope -p Delegate=yes keel ...";

impl Plan {
    /// The cgroup's absolute path on this host, if it is `optional` where the caller may make one: beside its own, or
    /// else below. None where it may not and nothing of the config needs one.
    pub fn permitted_path(&self, host: &Host, optional: bool) -> Result<Option<PathBuf>> {
        let name = match &self.place {
            Place::Sibling(name) if optional => name,
            _ => return self.path(host).map(Some),
        };
        let what = match places(host) {
            Ok(places) => match places.iter().find(|place| is_delegated(place)) {
                Some(place) => return Ok(Some(place.join(name))),
                None => {
                    let [beside, own] = places.each_ref().map(|place| place.display());
                    format!("none may be made in {beside} or {own}, which are not delegated to this user")
                }
            },
            Err(error) => error.to_string(),
        };
        let limit = self.limits.iter().find(|limit| !limit.is_none()).map(|limit| &limit.field);
        let asks = limit.or(self.leaf.as_ref().map(|leaf| &leaf.field));
        match asks.or(self.is_named.then_some(&self.field)) {
            Some(field) => Err(Error::new(format!("it needs a cgroup, and {what} ({WAY_OUT})"))).at(field),
            None => Ok(None),
        }
    }
}

/// Has the cgroup obey the device filter. Without the host's capabilities none can be loaded, and little is lost: nobody
/// in the container can make a device.
pub fn apply_devices(filter: &devices::Filter, cgroup: &Cgroup, rights: Rights) -> Result<()> {
    match devices::apply(filter, cgroup) {
        Err(error) if rights != Rights::Root && error.errno() == Some(Errno::EPERM) => {
            log::debug(format_args!("the device rules are not in effect: {error}"));
            Ok(())
        }
        applied => applied,
    }
}

/// Gives the cgroup to the user of the container whom the spec wants it to belong to. A user can give nothing to
/// another, not even to a subordinate one.
pub fn give(cgroup: &Cgroup, leaf: Option<&Leaf>, uid: Uid, rights: Rights) -> Result<()> {
    match delegate::give(cgroup, leaf, uid) {
        Err(error) if rights != Rights::Root && error.errno() == Some(Errno::EPERM) => {
            log::warning(format_args!("the container does not own its cgroup: {error}"));
            Ok(())
        }
        given => given,
    }
}

/// Whether the caller may have a process born in this one: whoever does has to be allowed to write to the file of the
/// first cgroup that is above both.
pub fn may_enter(cgroup: &Cgroup, host: &Host) -> bool {
    let common =
        |own: PathBuf| own.ancestors().find(|above| cgroup.path().starts_with(above)).map(Path::to_owned);
    let own = host.own_cgroup().and_then(|own| host.locate_cgroup(&own));
    own.ok().and_then(common).is_some_and(|common| is_writable(&common.join("cgroup.procs")))
}

/// The parent of the caller's cgroup, whose children can have limits, and the caller's cgroup itself, where they can
/// only once it has passed controllers on.
fn places(host: &Host) -> Result<[PathBuf; 2]> {
    let own = host.own_cgroup()?;
    Ok([host.locate_cgroup(own.parent().unwrap_or(&own))?, host.locate_cgroup(&own)?])
}

/// Whether the caller may make a cgroup in this one, and have a process born there: whoever moves one has to be
/// allowed to write to the file of the first cgroup that is above the old and the new one.
fn is_delegated(cgroup: &Path) -> bool {
    is_writable(cgroup) && is_writable(&cgroup.join("cgroup.procs"))
}

fn is_writable(path: &Path) -> bool {
    faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
}
