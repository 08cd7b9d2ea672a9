//! The layers of an overlay, by the way in which this kernel takes them: since Linux 6.5 an option for each. Before, one
//! string has them all, and fsconfig(2) has room for 255 bytes; so they are the numbers of descriptors, which are names
//! in `/proc/self/fd`, the working directory for as long as the kernel looks them up.
//!
//! <https://docs.kernel.org/filesystems/overlayfs.html#multiple-lower-layers>

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::utsname::uname;
use nix::unistd::{chdir, fchdir};

use crate::error::{Error, Result};
use crate::host::kernel_version;
use crate::sys::mount::{LONGEST_OPTION, Value, fsconfig_create, fsconfig_set};

/// Whether there is the option `lowerdir+`.
pub fn are_options() -> bool {
    uname().is_ok_and(|name| kernel_version(&name.release().to_string_lossy()) >= (6, 5))
}

/// The one string, the topmost layer first.
pub fn in_one(layers: &[OwnedFd]) -> Result<String> {
    let numbers: Vec<_> = layers.iter().map(|layer| layer.as_raw_fd().to_string()).collect();
    let names = numbers.join(":");
    if names.len() <= LONGEST_OPTION {
        return Ok(names);
    }
    let count = layers.len();
    Err(Error::new(format!("an overlay of {count} layers is more than a kernel before Linux 6.5 takes here")))
}

/// Makes the overlay that has all other options already. The working directory moves for a moment.
pub fn create_over(fs: &OwnedFd, in_one: &str) -> Result<(), Errno> {
    let here = open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    chdir("/proc/self/fd")?;
    let set = fsconfig_set(fs, "lowerdir", Value::String(in_one));
    let created = set.and_then(|()| fsconfig_create(fs));
    fchdir(here)?;
    created
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_layers_for_one_string_are_an_error() {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        let few: Vec<OwnedFd> = (0..40).map(|_| null()).collect();
        assert_eq!(in_one(&few).unwrap().split(':').count(), 40);
        let many: Vec<OwnedFd> = (0..200).map(|_| null()).collect();
        assert!(in_one(&many).unwrap_err().to_string().contains("200 layers"));
    }
}
