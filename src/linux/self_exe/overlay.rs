//! The start from an overlay. It runs before the C library is set up, where it saves most of the cost of a start,
//! and so keeps to the rules of [`crate::sys::raw`]; and later, when it did not work and [`super`] says why.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::AT_FDCWD;

use super::Protection;
use crate::sys::entry::Start;
use crate::sys::fs::Resolve;
use crate::sys::mount::attr;
use crate::sys::raw::{self, Arguments, Buffer, Fd, Location, Stat};

const EXE: &CStr = c"/proc/self/exe";

/// What the path by which a program was executed begins with, when that was done by descriptor.
pub const BY_DESCRIPTOR: &[u8] = b"/dev/fd/";

/// What could not be done, and the number of the error.
pub struct Failure {
    pub doing: &'static str,
    pub errno: i32,
}

type Result<T> = std::result::Result<T, Failure>;

/// The program's first act. Goes on as if nothing had happened when a protected start is not needed, or impossible.
pub fn early(start: &Start) {
    // A word that is an option's value, say, costs a start.
    let enters = start.has_argument(c"create")
        || start.has_argument(c"run")
        || start.has_argument(c"exec")
        || start.has_argument(c"restore");
    // The second start, or what only looks like it: super tells them apart.
    let may_be_restarted = !matches!(start.exec_path_starts_with(BY_DESCRIPTOR), Some(false));
    if !enters || !start.is_root() || may_be_restarted {
        return;
    }
    let (Ok(exe), Ok(kind)) = (own_binary(), raw::statfs_type(EXE)) else { return };
    if protection(&exe, kind).is_some() {
        return;
    }
    // The failure shows again in super, which then tries another way.
    let _ = restart(&exe, start.arguments());
}

/// Which file runs.
#[inline(always)]
pub fn own_binary() -> raw::Result<Stat> {
    raw::statx(AT_FDCWD, EXE, 0)
}

/// Against whom a file like this is safe as it is, on such a file system.
#[inline(always)]
pub fn protection(file: &Stat, kind: u32) -> Option<Protection> {
    /// File systems without any code to write to them; others may be mounted read-only today.
    const EROFS: u32 = 0xe0f5_e1e2;
    const SQUASHFS: u32 = 0x7371_7368;
    if file.attributes & libc::STATX_ATTR_VERITY as u64 != 0 || kind == EROFS || kind == SQUASHFS {
        return Some(Protection::Everybody);
    }
    if file.attributes & libc::STATX_ATTR_IMMUTABLE as u64 != 0 {
        return Some(Protection::UnlessImmutableIsCleared);
    }
    None
}

/// Starts keel anew, seen through an overlay; returns only why that failed.
pub fn restart(exe: &Stat, arguments: Arguments<'_>) -> Failure {
    let mut buffer = Buffer::uninit();
    let (overlay, mut location) = match overlay(exe, &mut buffer) {
        Ok(made) => made,
        Err(failure) => return failure,
    };
    // By this path the second start knows itself; and the kernel names the process after it.
    let errno = raw::execveat(overlay.as_fd(), location.dot_name(), arguments, libc::AT_SYMLINK_NOFOLLOW);
    Failure { doing: "execute it", errno }
}

/// The directory of the running binary, seen through an overlay, and where that was.
#[inline(always)]
fn overlay<'a>(exe: &Stat, buffer: &'a mut Buffer) -> Result<(Fd, Location<'a>)> {
    let mut location = attempt("read the link /proc/self/exe", Location::read(EXE, buffer))?;
    let dir = attempt("open its directory", raw::open_dir(location.directory()))?;

    // The path may name another file by now, or for us, after a chroot, say; the overlay will not show a mount on
    // the file.
    let resolve = Resolve::BENEATH.bits() | Resolve::NO_SYMLINKS.bits() | Resolve::NO_XDEV.bits();
    let file = attempt("open it in its directory", raw::openat2(dir.as_fd(), location.name(), resolve))?;
    let found = attempt("stat it", raw::statx(file.as_fd(), c"", libc::AT_EMPTY_PATH))?;
    let is_same =
        found.device.0 == exe.device.0 && found.device.1 == exe.device.1 && found.inode == exe.inode;
    if !is_same {
        return Err(Failure { doing: "find the running program at its path", errno: libc::ESTALE });
    }

    let mut lower = LOWER;
    let overlay = attempt("open an overlay", raw::fsopen(c"overlay"))?;
    attempt("set its layers", raw::fsconfig_set(overlay.as_fd(), c"lowerdir", layers(&mut lower, &dir)))?;
    // Unused, and where it is the default, the kernel logs that it is in use.
    attempt("set its inode numbers", raw::fsconfig_set(overlay.as_fd(), c"xino", c"off"))?;
    attempt("make the overlay", raw::fsconfig_create(overlay.as_fd()))?;
    let attributes = attr::RDONLY | attr::NOSUID | attr::NODEV;
    Ok((attempt("mount the overlay", raw::fsmount(overlay.as_fd(), attributes))?, location))
}

/// The directory by its descriptor, because a path can have colons and more than the 255 bytes of an option. Without
/// an upper directory there must be two lower ones, neither inside the other; /proc cannot be one.
///
/// The number takes the place of the slashes before the colon from the right; those that stay say nothing.
const LOWER: [u8; 30] = *b"/proc/self/fd///////////:/sys\0";
const COLON: usize = 24;

#[inline(always)]
fn layers<'a>(lower: &'a mut [u8; 30], dir: &Fd) -> &'a CStr {
    let mut number = dir.as_fd().as_raw_fd() as u32;
    let mut at = COLON;
    while at > 0 {
        at -= 1;
        lower[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    CStr::from_bytes_until_nul(lower).unwrap_or_default()
}

#[inline(always)]
fn attempt<T>(doing: &'static str, result: raw::Result<T>) -> Result<T> {
    match result {
        Ok(done) => Ok(done),
        Err(errno) => Err(Failure { doing, errno }),
    }
}
