//! The container's root and the sources of its mounts, as mounts that are attached nowhere yet. Who opens them depends
//! on who may: the parent before the clone; with a user namespace the parent in init's mount namespace, which sends
//! them; and for a user without privileges init itself, while it still is that user.

use std::os::fd::{AsFd, OwnedFd};

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::host::Host;
use crate::linux::mounts::{self, Users};
use crate::plan::Plan;
use crate::sync::{CreateEnd, InitEnd};
use crate::sys::process::exit_now;

pub struct Trees {
    /// None: a new file system, which init makes once it is the container's root.
    pub root: Option<OwnedFd>,
    /// The sources of /mounts, in their order.
    pub sources: Vec<Option<OwnedFd>>,
}

impl Trees {
    /// Opens the root and the sources of all mounts. `inside`: in the mount namespace of init, where the file of the
    /// cgroup is another.
    pub fn open(
        plan: &Plan,
        host: &Host,
        cgroup: Option<&Cgroup>,
        inside: bool,
        users: &Users,
    ) -> Result<Self> {
        let callers = cgroup.is_none() && plan.mounts.binds_cgroup();
        let callers = callers.then(|| Cgroup::of_caller(host)).transpose()?;
        let again = cgroup.filter(|_| inside && plan.mounts.binds_cgroup());
        let again = again.map(|cgroup| Cgroup::open(cgroup.path())).transpose()?.flatten();
        let cgroup = again.as_ref().or(cgroup).or(callers.as_ref());
        Ok(Self {
            root: match &plan.mounts.root {
                Some(mount) if plan.rights.is_user() && mount.is_new() => None,
                Some(mount) => Some(mounts::open_root(mount, users)?),
                None => Some(plan.rootfs.open()?),
            },
            sources: mounts::open_sources(&plan.mounts, cgroup.map(Cgroup::as_fd), users)?,
        })
    }

    /// Sends them to init.
    pub fn send(&self, create: &CreateEnd) -> Result<()> {
        self.root.iter().chain(self.sources.iter().flatten()).try_for_each(|fd| create.mount(fd.as_fd()))
    }

    pub fn receive(plan: &Plan, create: &InitEnd) -> Result<Self> {
        let next = || match create.receive_mount()? {
            Some(mount) => Ok(mount),
            // Create is dead, and has told nobody of this process.
            None => exit_now(1),
        };
        let root = Some(next()?);
        let sources =
            plan.mounts.have_sources().map(|has| has.then(next).transpose()).collect::<Result<_>>()?;
        Ok(Self { root, sources })
    }
}
