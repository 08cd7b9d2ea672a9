//! The devices of a container in a user namespace, where nobody can make one: the parent makes those of /dev on the tmpfs
//! that is mounted there, if there is one, and the others on a tmpfs of its own, from where init binds each where it
//! belongs.
//!
//! Where the parent cannot make any either, they are the host's own, each from its path there. That is the last resort:
//! theirs are the host's owners and modes, which whoever is in the container could change or
//! could not use, and the config may put a device where the host has none.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, mknodat};
use nix::unistd::{Gid, Uid, fchdir, fchownat};

use super::{Device, Devices, From, Inode, check};
use crate::error::{At, Context, Error, Result};
use crate::linux::idmap::IdMap;
use crate::log;
use crate::root::Root;
use crate::sys::fs::{Resolve, openat2};
use crate::sys::mount::{attr, fsconfig_create, fsmount, fsopen, move_mount, open_tree_clone};

impl Devices {
    /// Those that [`shelf`] has, and the names that they have there.
    fn on_shelf(&self) -> impl Iterator<Item = (String, &Device)> {
        let here = |device: &&Device| !device.is_fifo() && !self.is_brought(device);
        self.listed
            .iter()
            .enumerate()
            .filter(move |(_, device)| here(device))
            .map(|(i, d)| (i.to_string(), d))
    }

    /// Whether it lies in a /dev that the caller brings.
    pub(super) fn is_brought(&self, device: &Device) -> bool {
        self.bound && device.path.starts_with("/dev")
    }

    pub(super) fn defaults(&self) -> &[(&'static str, Inode)] {
        if self.bound { &[] } else { &self.defaults }
    }
}

impl Device {
    /// Anybody can make a FIFO.
    pub(super) fn is_fifo(&self) -> bool {
        self.inode.kind == SFlag::S_IFIFO
    }
}

/// A tmpfs, attached nowhere, with all devices of a container that has a user namespace: those of the list have their
/// index as name. `dev` says that there are those that [`fill_dev`] makes. For the parent, before the clone; `map` says who
/// their owners are.
pub fn shelf(devices: &Devices, map: &IdMap, dev: bool) -> Result<Option<OwnedFd>> {
    let listed = || devices.on_shelf().filter(|(_, device)| !dev || device.name_in_dev().is_none());
    let defaults = || devices.defaults().iter().filter(|_| !dev);
    if devices.from != From::Shelf || listed().next().is_none() && defaults().next().is_none() {
        return Ok(None);
    }
    let fs = fsopen("tmpfs").context(|| "open file system tmpfs")?;
    fsconfig_create(&fs).context(|| "create a tmpfs")?;
    let shelf = fsmount(&fs, attr::NOSUID | attr::NOEXEC).context(|| "mount a tmpfs")?;
    listed().try_for_each(|(name, device)| device.put(&shelf, name.as_ref(), map))?;
    defaults().try_for_each(|default| put_default(&shelf, default, map, devices))?;
    Ok(Some(shelf))
}

/// Makes the devices of /dev on the new file system that will be mounted there. For the parent.
pub fn fill_dev(devices: &Devices, map: &IdMap, dev: BorrowedFd<'_>) -> Result<()> {
    for (_, device) in devices.on_shelf() {
        device.name_in_dev().map_or(Ok(()), |name| device.put(dev, name, map))?;
    }
    devices.defaults().iter().try_for_each(|default| put_default(dev, default, map, devices))
}

impl Device {
    /// Its name if it lies in /dev and in no directory there.
    fn name_in_dev(&self) -> Option<&OsStr> {
        self.path.file_name().filter(|_| self.path.parent() == Some(Path::new("/dev")))
    }

    fn put(&self, dir: impl AsFd, name: &OsStr, map: &IdMap) -> Result<()> {
        let (uid, gid) = (self.uid, self.gid);
        let unmapped =
            || Error::new(format!("user {uid} or group {gid} is not mapped in the user namespace"));
        map.host_uid(uid)
            .zip(map.host_gid(gid))
            .ok_or_else(unmapped)
            .and_then(|owner| put(dir, name, self.inode, self.mode, Some(owner)))
            .context(|| format!("create device {} ({:?})", self.path.display(), self.inode))
            .at(&self.field)
    }
}

fn put_default(
    dir: impl AsFd,
    (name, inode): &(&'static str, Inode),
    map: &IdMap,
    devices: &Devices,
) -> Result<()> {
    // Without a root in the container they are nobody's, and for everybody all the same.
    let (uid, gid) = map.host_root();
    put(dir, name.as_ref(), *inode, Mode::from_bits_truncate(0o666), uid.zip(gid))
        .context(|| format!("create device /dev/{name} ({inode:?})"))
        .at(&devices.field)
}

fn put(dir: impl AsFd, name: &OsStr, inode: Inode, mode: Mode, owner: Option<(Uid, Gid)>) -> Result<()> {
    let dir = dir.as_fd();
    mknodat(dir, name, inode.kind, Mode::empty(), inode.number)?;
    if let Some((uid, gid)) = owner {
        fchownat(dir, name, Some(uid), Some(gid), AtFlags::empty())?;
    }
    // After the owner, whose change clears some bits; and whatever the umask of the caller.
    Ok(fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?)
}

/// The nodes that init is to bind.
pub enum Nodes {
    /// It makes them itself, or there are none.
    None,
    Shelf(OwnedFd),
    /// Mounts of the host's, attached nowhere: of the list, then of the defaults.
    Host(Vec<OwnedFd>),
}

impl Nodes {
    /// Opens the host's, unless there is the parent's `shelf`. For init, while it sees the host's files.
    pub fn open(devices: &Devices, shelf: Option<OwnedFd>) -> Result<Self> {
        if let Some(shelf) = shelf {
            return Ok(Self::Shelf(shelf));
        }
        if devices.from != From::Host {
            return Ok(Self::None);
        }
        let mut nodes = Vec::new();
        for (_, device) in devices.on_shelf() {
            let node = host_node(&device.path, device.inode, Some(device.mode)).at(&device.field)?;
            nodes.push(node);
        }
        for (name, inode) in devices.defaults() {
            nodes.push(host_node(&Path::new("/dev").join(name), *inode, None).at(&devices.field)?);
        }
        Ok(Self::Host(nodes))
    }
}

/// The host's own node at the path that the container is to have it at, looked up once and verified by what was found.
fn host_node(path: &Path, wanted: Inode, mode: Option<Mode>) -> Result<OwnedFd> {
    let open_node = || -> Result<OwnedFd> {
        let node = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let stat = fstat(&node)?;
        check(&stat, wanted)?;
        let has = Mode::from_bits_truncate(stat.st_mode);
        if mode.is_some_and(|mode| mode != has) {
            log::warning(format_args!("device {} is the host's, of mode {has:04o}", path.display()));
        }
        Ok(open_tree_clone(&node, Path::new(""), libc::AT_EMPTY_PATH)?)
    };
    open_node().context(|| {
        let why = "since without rights over the host no device can be made";
        format!("use the host's device {} ({wanted:?}), {why}", path.display())
    })
}

/// Binds them all where they belong. For init, as [`super::apply`]; `dev` is /dev, unless the caller brings that.
pub(super) fn bind_all(devices: &Devices, nodes: Nodes, root: &Root, dev: Option<&OwnedFd>) -> Result<()> {
    if matches!(nodes, Nodes::None) {
        return Ok(());
    }
    let mut places = Vec::new();
    for (name, device) in devices.on_shelf() {
        let find = || {
            let (dir, last) = root.create_parent(&device.path)?;
            place(&dir, last, device.inode)
        };
        let what = || format!("create device {} ({:?})", device.path.display(), device.inode);
        places.push((name, find().context(what).at(&device.field)?));
    }
    for (dev, (name, inode)) in
        dev.into_iter().flat_map(|dev| devices.defaults().iter().map(move |d| (dev, d)))
    {
        let place = place(dev, name.as_ref(), *inode)
            .context(|| format!("create device /dev/{name} ({inode:?})"))
            .at(&devices.field)?;
        places.push(((*name).to_owned(), place));
    }
    let bind = || match &nodes {
        Nodes::None => Ok(()),
        Nodes::Shelf(shelf) => bind_from_shelf(shelf, places, root),
        Nodes::Host(nodes) => {
            let mut pairs = nodes.iter().zip(places);
            pairs.try_for_each(|(node, (_, place))| place.map_or(Ok(()), |place| move_mount(node, place)))
        }
    };
    bind().context(|| "bind the devices").at(&devices.field)
}

/// None as place: that very device is there.
fn bind_from_shelf(
    shelf: &OwnedFd,
    places: Vec<(String, Option<OwnedFd>)>,
    root: &Root,
) -> Result<(), Errno> {
    // Before Linux 6.15 only an attached mount can be cloned. It lies over the root for this long, when all
    // look-ups are done.
    move_mount(shelf, root)?;
    for (name, place) in places {
        place.map_or(Ok(()), |place| move_mount(open_tree_clone(shelf, Path::new(&name), 0)?, place))?;
    }
    fchdir(shelf)?;
    umount2(".", MntFlags::MNT_DETACH)
}

/// The file that a device is bound on, made empty if missing. None if that very device is there; what an earlier run
/// on this rootfs has left is an empty file too.
fn place(dir: &OwnedFd, name: &OsStr, wanted: Inode) -> Result<Option<OwnedFd>> {
    let resolve = Resolve::BENEATH | Resolve::NO_SYMLINKS;
    let open = |flags, mode| openat2(dir, Path::new(name), flags | libc::O_NOFOLLOW, mode, resolve);
    let found = match open(libc::O_PATH, 0) {
        Err(Errno::ENOENT) => return Ok(Some(open(libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o644)?)),
        found => found?,
    };
    let stat = fstat(&found)?;
    let inode = Inode::of(&stat);
    if inode == wanted {
        return Ok(None);
    }
    if inode.kind != SFlag::S_IFREG || stat.st_size != 0 {
        check(&stat, wanted)?;
    }
    Ok(Some(found))
}
