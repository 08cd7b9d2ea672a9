//! Overlays of layers, mounted nowhere: to look at an image as its container will, and for `--rootfs=mount`.
//!
//! <https://docs.kernel.org/filesystems/overlayfs.html>

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Context, Error, Kind, Result};
use crate::sys::mount::{LONGEST_OPTION, Value, fs_messages, fsconfig_create, fsconfig_set, fsmount, fsopen};

/// OVL_MAX_STACK of the kernel.
pub const MOST_LAYERS: usize = 500;

/// The options besides the directories. A redirect that an image brings could show any file of the layers below.
pub const OPTIONS: [(&str, &str); 2] = [("redirect_dir", "nofollow"), ("metacopy", "off")];

pub fn check_depth(layers: usize) -> Result<()> {
    if layers <= MOST_LAYERS {
        return Ok(());
    }
    let message = format!("{layers} layers are more than the {MOST_LAYERS} that an overlay can have");
    Err(Error::of_kind(Kind::Limit, message).with_way_out("Take --rootfs=copy."))
}

/// The topmost layer first; `upper` comes with its work directory, `user_xattr` is for a mount by a user.
pub fn mount(
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    attributes: u64,
    user_xattr: bool,
) -> Result<OwnedFd> {
    let what = || "mount an overlay";
    let fs = fsopen("overlay").context(what)?;
    for lower in lowers {
        set_directory(&fs, "lowerdir+", lower).context(what)?;
    }
    if let Some((upper, work)) = upper {
        set_directory(&fs, "upperdir", upper).context(what)?;
        set_directory(&fs, "workdir", work).context(what)?;
    }
    for (key, value) in OPTIONS {
        told(&fs, fsconfig_set(&fs, key, Value::String(value)))
            .context(|| format!("set {key}={value}"))
            .context(what)?;
    }
    if user_xattr {
        told(&fs, fsconfig_set(&fs, "userxattr", Value::Flag)).context(|| "set userxattr").context(what)?;
    }
    told(&fs, fsconfig_create(&fs)).context(what)?;
    fsmount(&fs, attributes).context(what)
}

fn set_directory(fs: &OwnedFd, key: &str, path: &Path) -> Result<()> {
    let what = || format!("set {key}={}", path.display());
    match path.to_str().filter(|text| text.len() <= LONGEST_OPTION) {
        Some(text) => match fsconfig_set(fs, key, Value::String(text)) {
            Err(Errno::EINVAL) if key == "lowerdir+" => Err(Error::from(Errno::EINVAL)
                .because("an option of Linux 6.5 is missing".to_owned())
                .with_way_out("Take --rootfs=copy on this kernel.")
                .because(what())),
            set => told(fs, set).context(what),
        },
        None => {
            let directory = File::open(path).context(what)?;
            told(fs, fsconfig_set(fs, key, Value::Fd(directory.as_fd()))).context(what)
        }
    }
}

/// Adds the kernel's own words.
fn told(fs: &OwnedFd, result: Result<(), Errno>) -> Result<()> {
    result.map_err(|errno| fs_messages(fs).into_iter().fold(errno.into(), Error::because))
}
