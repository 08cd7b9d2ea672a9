//! `/mounts/N/uidMappings` and `gidMappings`, and the options `idmap` and `ridmap`: a mount that shows its files with
//! other owners.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#linux-mount-options>,
//! <https://man7.org/linux/man-pages/man2/mount_setattr.2.html#NOTES>

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::error::{At, Context, Error, Field, Result};
use crate::linux::idmap::{self, IdMap};
use crate::linux::mount_options::{Options, Way};
use crate::proc::Proc;
use crate::rights::Rights;
use crate::spec::Node;
use crate::sys::mount::mount_setattr_idmap;

/// What the mounts need to know of the container's namespaces: which are its own.
#[derive(Clone, Copy, Default)]
pub struct Own<'a> {
    pub mount: bool,
    pub cgroup: bool,
    pub user: bool,
    /// Of the caller.
    pub rights: Rights,
    /// The mappings of the user namespace, if the config has them.
    pub map: Option<&'a IdMap>,
}

#[derive(Debug, PartialEq)]
pub struct IdMapped {
    /// None: those of the container's user namespace.
    map: Option<IdMap>,
    recursive: bool,
    field: Field,
}

impl IdMapped {
    pub fn plan(mount: &Node, options: &Options, own: Own<'_>) -> Option<Self> {
        let map = idmap::plan(mount);
        let option = options.id_map.clone();
        match (&map, &option) {
            (None, Some((_, field))) if !own.user && !matches!(options.way, Way::Remount { .. }) => {
                let reason = "needs mappings, the mount's own or those of a user namespace";
                mount.report().problem(field.clone(), reason);
            }
            (None, None) => return None,
            (Some(_), _) if matches!(options.way, Way::Remount { .. }) => {
                mount.problem("uidMappings", "the ids of what is mounted already cannot be mapped");
            }
            _ => {}
        }
        if own.rights.is_user() {
            let field = option.as_ref().map_or_else(|| mount.at("uidMappings"), |(_, field)| field.clone());
            mount.report().problem(field, "only the host's root can map the ids of a mount");
        }
        // Mappings alone ask for it too: the option is there for runtimes that do not know of them.
        let (recursive, field) = option.unwrap_or_else(|| (false, mount.at("uidMappings")));
        Some(Self { map, recursive, field })
    }

    pub fn field(&self) -> &Field {
        &self.field
    }

    /// Maps the ids of a mount that is attached nowhere. For the parent: the file system is the host's.
    pub fn apply(&self, mount: &OwnedFd, users: &Users) -> Result<()> {
        let map = || {
            let map = self.map.as_ref().or(users.container);
            users.with(map.ok_or_else(|| Error::new("the container has no user namespace"))?, |user| {
                match mount_setattr_idmap(mount, self.recursive, user) {
                    // What else could be invalid is not: it is attached nowhere, and the namespace is one.
                    Err(Errno::EINVAL) => {
                        Err(Error::new("its file system, or one below, does not support id-mapped mounts"))
                    }
                    Err(Errno::EPERM) => Err(Errno::EPERM)
                        .context(|| "it is mapped already, or its file system is not the host's"),
                    result => Ok(result?),
                }
            })
        };
        map().context(|| "map its ids").at(&self.field)
    }
}

/// The user namespaces whose mappings mounts have, each made when it is first asked for: a Kubernetes pod has the same
/// for all of its volumes.
pub struct Users<'a> {
    proc: &'a Proc,
    container: Option<&'a IdMap>,
    made: RefCell<Vec<(IdMap, OwnedFd)>>,
    inside: bool,
}

impl<'a> Users<'a> {
    /// `container`: the mappings of the container's user namespace. `inside`: the sources of mounts are opened in a
    /// mount namespace that belongs to a user namespace, and is the container's, or gone soon.
    pub fn new(proc: &'a Proc, container: Option<&'a IdMap>, inside: bool) -> Self {
        Self { proc, container, made: RefCell::default(), inside }
    }

    pub fn is_inside(&self) -> bool {
        self.inside
    }

    /// The mappings of the container's user namespace, if it has one of its own.
    pub fn container(&self) -> Option<&IdMap> {
        self.container
    }

    fn with(&self, map: &IdMap, work: impl FnOnce(&OwnedFd) -> Result<()>) -> Result<()> {
        let mut made = self.made.borrow_mut();
        let found = made.iter().position(|(other, _)| other == map);
        let index = match found {
            Some(index) => index,
            None => {
                made.push((map.clone(), map.namespace(self.proc)?));
                made.len() - 1
            }
        };
        work(&made[index].1)
    }
}
