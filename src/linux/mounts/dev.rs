//! The new tmpfs on /dev of a container with a user namespace: made by the parent, it can have devices in it, which init
//! could only bind there, one by one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::{Mounts, Own, Users, What};
use crate::error::Result;
use crate::linux::file_system::FileSystem;
use crate::linux::idmap::IdMap;
use crate::linux::mount_options::Options;
use crate::rights::Rights;
use crate::sys::mount::attr;

/// Whether the parent can make it as init would.
pub(super) fn takes_devices(
    destination: &Path,
    file_system: &FileSystem,
    options: &Options,
    own: Own<'_>,
) -> bool {
    let is_plain = file_system.kind == "tmpfs" && options.copy_up.is_none();
    let nodev = (options.attributes.set | options.recursive.set) & attr::NODEV != 0;
    // The mode would be that of the directory below it, and the ids are those of the container.
    let as_named = file_system.has("mode") && !file_system.names_owners();
    let by_parent = own.rights == Rights::Root && destination == Path::new("/dev");
    by_parent && is_plain && !nodev && as_named && own.map.is_some_and(IdMap::has_root)
}

impl Mounts {
    /// Which of the list it is, if what the container has at /dev in the end is that.
    fn dev(&self) -> Option<usize> {
        let last = self.list.iter().rposition(|mount| mount.destination == Path::new("/dev"))?;
        let mount = &self.list[last];
        let What::New { file_system, by_parent: true, .. } = &mount.what else { return None };
        (file_system.kind == "tmpfs" && mount.ids.is_none()).then_some(last)
    }

    pub fn have_dev(&self) -> bool {
        self.dev().is_some()
    }

    pub(super) fn is_dev(&self, index: usize) -> bool {
        self.dev() == Some(index)
    }

    /// Makes it, and puts it among the sources, where [`super::open_sources`] has left it out: it may come later than
    /// those, which are found by their paths.
    pub fn make_dev<'a>(
        &self,
        sources: &'a mut [Option<OwnedFd>],
        users: &Users,
    ) -> Result<Option<BorrowedFd<'a>>> {
        let Some(index) = self.dev() else { return Ok(None) };
        sources[index] = self.list[index].open(None, users)?;
        Ok(sources[index].as_ref().map(AsFd::as_fd))
    }
}
