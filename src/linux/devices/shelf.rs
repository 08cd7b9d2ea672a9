//! The devices of a container in a user namespace, where nobody can make one: the parent makes those of /dev on the tmpfs
//! that is mounted there, if there is one, and the others on a tmpfs of its own, from where init binds each where it
//! belongs.
//!
//! Not the host's nodes: theirs are the host's owners and modes, which whoever is in the container could change or
//! could not use, and the config may put a device where the host has none.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, mknodat};
use nix::unistd::{Gid, Uid, fchdir, fchownat};

use super::{Device, Devices, Inode, check};
use crate::error::{At, Context, Error, Result};
use crate::linux::idmap::IdMap;
use crate::root::Root;
use crate::sys::fs::{Resolve, openat2};
use crate::sys::mount::{attr, fsconfig_create, fsmount, fsopen, move_mount, open_tree_clone};

impl Devices {
    /// Those that [`shelf`] has, and the names that they have there.
    fn on_shelf(&self) -> impl Iterator<Item = (String, &Device)> {
        let here = |device: &&Device| device.inode.kind != SFlag::S_IFIFO && !self.is_brought(device);
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
    pub(super) fn is_on_shelf(&self) -> bool {
        self.inode.kind != SFlag::S_IFIFO
    }
}

/// A tmpfs, attached nowhere, with all devices of a container that has a user namespace: those of the list have their
/// index as name. `dev` says that there are those that [`fill_dev`] makes. For the parent, before the clone; `map` says who
/// their owners are.
pub fn shelf(devices: &Devices, map: &IdMap, dev: bool) -> Result<Option<OwnedFd>> {
    let listed = || devices.on_shelf().filter(|(_, device)| !dev || device.name_in_dev().is_none());
    let defaults = || devices.defaults().iter().filter(|_| !dev);
    if !devices.shelved || listed().next().is_none() && defaults().next().is_none() {
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

/// Binds them all where they belong. For init, as [`super::apply`]; `dev` is /dev, unless the caller brings that.
pub(super) fn bind_all(devices: &Devices, shelf: &OwnedFd, root: &Root, dev: Option<&OwnedFd>) -> Result<()> {
    let mut places = Vec::new();
    for (name, device) in devices.on_shelf() {
        let find = || {
            let (dir, last) = root.create_parent(&device.path)?;
            place(&dir, last, device.inode)
        };
        let what = || format!("create device {} ({:?})", device.path.display(), device.inode);
        let place = find().context(what).at(&device.field)?;
        places.extend(place.map(|place| (name, place)));
    }
    for (dev, (name, inode)) in
        dev.into_iter().flat_map(|dev| devices.defaults().iter().map(move |d| (dev, d)))
    {
        let place = place(dev, name.as_ref(), *inode)
            .context(|| format!("create device /dev/{name} ({inode:?})"))
            .at(&devices.field)?;
        places.extend(place.map(|place| ((*name).to_owned(), place)));
    }
    let bind = || -> Result<(), Errno> {
        // Before Linux 6.15 only an attached mount can be cloned. It lies over the root for this long, when all
        // look-ups are done.
        move_mount(shelf, root)?;
        for (name, place) in places {
            move_mount(open_tree_clone(shelf, Path::new(&name), 0)?, place)?;
        }
        fchdir(shelf)?;
        umount2(".", MntFlags::MNT_DETACH)
    };
    bind().context(|| "bind the devices").at(&devices.field)
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
