//! What `create` finds out, opens and does on the host for init.

use super::{Mode, Passed};
use crate::cgroup::Cgroup;
use crate::cli::CreateOptions;
use crate::container::Container;
use crate::error::Result;
use crate::host::Host;
use crate::init::Inherited;
use crate::linux::devices;
use crate::linux::idmap::IdMap;
use crate::linux::mounts::Users;
use crate::linux::namespaces::{Joined, Kind, in_locked_mount_namespace};
use crate::linux::sysctl::{self, Private};
use crate::plan::Plan;
use crate::proc::Proc;
use crate::socket;
use crate::spawn::Spawned;
use crate::trees::Trees;

/// What the plan could not know: which of the namespaces that are joined by path are the runtime's own after all.
pub fn check_private(plan: &Plan, joined: &Joined) -> Result<()> {
    let has = |kind| !joined.is_own(kind);
    let private = Private {
        ipc: has(Kind::Ipc),
        network: has(Kind::Network),
        uts: has(Kind::Uts),
        user: has(Kind::User),
    };
    // pivot_root(2) would take every process of the host along into the container's root, and its names would be
    // the host's.
    if joined.is_own(Kind::Mount) || joined.is_own(Kind::Uts) && !plan.names.is_empty() {
        let kind = if joined.is_own(Kind::Mount) { Kind::Mount } else { Kind::Uts };
        return Err(plan.namespaces.refuse_own(kind));
    }
    if plan.rights.is_user() {
        if joined.is_own(Kind::User) {
            return Err(plan.namespaces.refuse_own(Kind::User));
        }
        joined.refuse_as_user()?;
    }
    sysctl::check(&plan.sysctls, private)
}

/// The mappings of the container's user namespace; None if that is the runtime's own.
pub(super) fn user_namespace(plan: &Plan, joined: &Joined, proc: &Proc) -> Result<Option<IdMap>> {
    match &joined.user {
        Some(user) => {
            let found = IdMap::of_namespace(proc, &user.there)?;
            plan.id_map.as_ref().map_or(Ok(()), |wanted| wanted.expect(&found))?;
            Ok(Some(found))
        }
        None => Ok(plan.id_map.clone().filter(|_| plan.namespaces.is_new(Kind::User))),
    }
}

/// What only the host's side can do for an init in a user namespace.
pub(super) fn map_ids(plan: &Plan, map: &IdMap, proc: &Proc, spawned: &Spawned) -> Result<()> {
    if plan.namespaces.is_new(Kind::User) {
        map.write(proc, spawned.pid, plan.rights)?;
    }
    if let Some(process) = &plan.process {
        process.rlimits.allow(spawned.pid)?;
        if process.terminal.is_none() {
            process.user.own_stdio(map)?;
        }
    }
    Ok(())
}

/// Whether init would be able to take the host's flags off what is opened before it has a mount namespace. A user's
/// init opens everything itself.
pub(super) fn opens_late(plan: &Plan, users: &Users) -> bool {
    users.is_inside() && plan.namespaces.is_new(Kind::Mount) && !plan.rights.is_user()
}

/// All of it, where it does not have to be late.
pub(super) fn open_early(
    plan: &Plan,
    host: &Host,
    cgroup: Option<&Cgroup>,
    proc: &Proc,
    users: &Users,
) -> Result<Trees> {
    let open = || {
        let mut trees = Trees::open(plan, host, cgroup, users)?;
        make_dev(plan, &mut trees, users)?;
        Ok(trees)
    };
    // In a joined mount namespace it would take them off, too.
    if users.is_inside() { in_locked_mount_namespace(proc, open) } else { open() }
}

/// Makes the file system on /dev and the devices there, if that is the parent's part.
pub(super) fn make_dev(plan: &Plan, trees: &mut Trees, users: &Users) -> Result<()> {
    match (plan.mounts.make_dev(&mut trees.sources, users)?, users.container()) {
        (Some(dev), Some(map)) => devices::fill_dev(&plan.devices, map, dev),
        _ => Ok(()),
    }
}

/// Opens what init needs of the host, while the host's files are in reach.
#[expect(clippy::too_many_arguments, reason = "what is known by then")]
pub(super) fn open_for_init(
    options: &CreateOptions,
    plan: &Plan,
    container: &Container,
    passed: Passed,
    mode: Mode,
    cgroup: Option<&Cgroup>,
    trees: Option<Trees>,
    users: &Users,
) -> Result<Inherited> {
    let waits = mode == Mode::Create;
    let leaf = plan.cgroup.leaf.as_ref().zip(cgroup);
    Ok(Inherited {
        trees,
        devices: users
            .container()
            .map_or(Ok(None), |map| devices::shelf(&plan.devices, map, plan.mounts.have_dev()))?,
        mapped: users.container().map(|map| {
            let user =
                plan.process.as_ref().map(|process| &process.user).map(|user| (user.uid(), user.gid()));
            (map.clone(), map.maker(user))
        }),
        scope_follows: plan.cgroup.scope().is_some(),
        cgroup_leaf: leaf.map(|(leaf, cgroup)| leaf.make(cgroup)).transpose()?,
        console_socket: options.console_socket.as_deref().map(socket::connect).transpose()?,
        gate: waits.then(|| container.bind_start_socket()).transpose()?,
        created_lock: waits.then(|| container.created_lock()).transpose()?,
        first_private_fd: passed.first_private(),
        new_keyring: !options.no_new_keyring,
    })
}
