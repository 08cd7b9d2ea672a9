//! `keel-image umount`: takes the mount of `bundle --rootfs=mount` away. The bundle's files stay.

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use serde_json::json;

use crate::error::{Context, Error, Result};
use crate::image::bundle::find;
use crate::image::cli::{Global, UmountOptions};

pub fn umount(global: &Global, options: &UmountOptions) -> Result<Vec<u8>> {
    let store = global.store()?;
    let mut bundle = find(&store, &options.bundle)?;
    let rootfs = bundle.path.join("rootfs");
    let what = || format!("unmount {}", rootfs.display());
    if !bundle.mounted {
        return Err(Error::new(format!("{}: it was not mounted by bundle --rootfs=mount", what())));
    }
    match umount2(&rootfs, MntFlags::UMOUNT_NOFOLLOW) {
        // A machine that was started again has no mount.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(Errno::EBUSY) => {
            return Err(Error::from(Errno::EBUSY).because(what()).with_way_out("End what runs in it first."));
        }
        Err(errno) => return Err(errno).context(what),
    }
    bundle.mounted = false;
    store.put_bundle(&bundle)?;
    let path = &bundle.path;
    let text = json!({"bundle": path});
    Ok(if global.json { format!("{text:#}\n") } else { format!("{}\n", path.display()) }.into_bytes())
}
