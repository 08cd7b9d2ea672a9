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
    /// Opens the root and the sources of all mounts but the one that `Mounts::make_dev` makes.
    pub fn open(plan: &Plan, host: &Host, cgroup: Option<&Cgroup>, users: &Users) -> Result<Self> {
        let callers = cgroup.is_none() && plan.mounts.binds_cgroup();
        let callers = callers.then(|| Cgroup::of_caller(host)).transpose()?;
        // In another mount namespace it is another file.
        let again = cgroup.filter(|_| users.is_inside() && plan.mounts.binds_cgroup());
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

    /// Sends it to init, which goes on with the root.
    pub fn send_root(&self, create: &CreateEnd) -> Result<()> {
        self.root.iter().try_for_each(|root| create.mount(root.as_fd()))
    }

    pub fn send_sources(&self, create: &CreateEnd) -> Result<()> {
        self.sources.iter().flatten().try_for_each(|source| create.mount(source.as_fd()))
    }
}

/// One of them, for init.
pub fn receive(create: &InitEnd) -> Result<OwnedFd> {
    match create.receive_mount()? {
        Some(mount) => Ok(mount),
        // Create is dead, and has told nobody of this process.
        None => exit_now(1),
    }
}
