//! The mount option `tmpcopyup`: a new tmpfs starts with a copy of the directory that it covers.
//!
//! Copied are directories, regular files, symbolic links and FIFOs with owner, mode, times and extended attributes;
//! device nodes and sockets are left out. The source is a directory of the image, which is hostile: every name is
//! opened in its own directory and never through a link. The target is a tmpfs that nobody else can see yet.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#linux-mount-options>

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::stat::{fchmod, fstat, fstatat, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

use crate::error::{Context, Error, Result};
use crate::sys::fs::{fgetxattr, flistxattr, fsetxattr};

/// Each level holds two descriptors and a stack frame; an image that needs more levels is an attack.
const DEEPEST: usize = 256;

/// Copies what the directory `from` holds into the directory `to`, which gets its owner too if `owner` says so.
/// Both may be O_PATH descriptors.
pub fn copy_up(from: impl AsFd, to: impl AsFd, owner: bool) -> Result<()> {
    let from = open_in(&from, c".", OFlag::O_DIRECTORY).context(|| "open the directory to copy")?;
    let to = open_in(&to, c".", OFlag::O_DIRECTORY).context(|| "open the new tmpfs")?;
    if owner {
        let stat = fstat(&from).context(|| "stat the directory to copy")?;
        fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
            .context(|| "set the owner of the copy")?;
    }
    copy_directory(from, &to, Path::new(""), DEEPEST)?;
    Ok(())
}

/// Gives `from` back for its attributes; `path` is for errors only.
fn copy_directory(from: OwnedFd, to: &OwnedFd, path: &Path, levels: usize) -> Result<Dir> {
    let Some(levels) = levels.checked_sub(1) else {
        return Err(Error::new(format!("copy a directory that is more than {DEEPEST} levels deep")));
    };
    let reading = || format!("read directory {}", path.display());
    let mut dir = Dir::from_fd(from).context(reading)?;
    let names = dir
        .iter()
        .map(|entry| Ok(entry?.file_name().to_owned()))
        .collect::<Result<Vec<CString>, Errno>>()
        .context(reading)?;
    for name in names.iter().filter(|name| ![c".", c".."].contains(&name.as_c_str())) {
        let path = path.join(OsStr::from_bytes(name.to_bytes()));
        let copying = || format!("copy {}", path.display());
        let stat = fstatat(&dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).context(copying)?;
        if kind(&stat) == SFlag::S_IFDIR {
            let (source, target) = make_directory(&dir, to, name).context(copying)?;
            let source = copy_directory(source, &target, &path, levels)?;
            copy_attributes(&source, &target).context(copying)?;
        } else {
            copy_file(&dir, to, name, &stat).context(copying)?;
        }
    }
    Ok(dir)
}

fn make_directory(from: &Dir, to: &OwnedFd, name: &CStr) -> Result<(OwnedFd, OwnedFd), Errno> {
    let source = open_in(from, name, OFlag::O_DIRECTORY)?;
    mkdirat(to, name, Mode::S_IRWXU)?;
    Ok((source, open_in(to, name, OFlag::O_DIRECTORY)?))
}

/// Copies what is no directory.
fn copy_file(from: &Dir, to: &OwnedFd, name: &CStr, stat: &FileStat) -> Result<()> {
    match kind(stat) {
        SFlag::S_IFREG => {
            // Not to wait for a writer, should a FIFO have taken the file's place since the look.
            let source = File::from(open_in(from, name, OFlag::O_NONBLOCK)?);
            if kind(&fstat(&source)?) != SFlag::S_IFREG {
                return Err(Error::new("it was replaced while it was copied"));
            }
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let target = File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            std::io::copy(&mut &source, &mut &target)?;
            copy_attributes(&source, &target)
        }
        SFlag::S_IFLNK => {
            symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
            copy_owner_and_times(stat, to, name)
        }
        SFlag::S_IFIFO => {
            mknodat(to, name, SFlag::S_IFIFO, mode(stat), 0)?;
            copy_owner_and_times(stat, to, name)
        }
        _ => {
            crate::log::debug(format_args!(
                "tmpcopyup: {} is a device or socket, left out",
                name.to_string_lossy()
            ));
            Ok(())
        }
    }
}

fn open_in(dir: impl AsFd, name: &CStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn mode(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode)
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
}

/// For what cannot be opened without an effect.
fn copy_owner_and_times(stat: &FileStat, dir: &OwnedFd, name: &CStr) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let (atime, mtime) = times(stat);
    utimensat(dir, name, &atime, &mtime, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

fn copy_attributes(from: impl AsFd, to: impl AsFd) -> Result<()> {
    let stat = fstat(&from)?;
    fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    // After the owner: a change of owner clears setuid bits and file capabilities.
    fchmod(&to, mode(&stat))?;
    copy_xattrs(&from, &to)?;
    let (atime, mtime) = times(&stat);
    futimens(&to, &atime, &mtime)?;
    Ok(())
}

fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> Result<()> {
    let size = match flistxattr(&from, &mut []) {
        Ok(0) | Err(Errno::EOPNOTSUPP) => return Ok(()),
        size => size?,
    };
    let mut list = vec![0; size];
    let size = flistxattr(&from, &mut list)?;
    for name in list[..size].split_inclusive(|byte| *byte == 0) {
        // The new file system has a security context of its own.
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if name == c"security.selinux" {
            continue;
        }
        let mut value = vec![0; fgetxattr(&from, name, &mut [])?];
        let size = fgetxattr(&from, name, &mut value)?;
        match fsetxattr(&to, name, &value[..size]) {
            // tmpfs has user attributes since Linux 6.6 only.
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => {
                return Err(errno).context(|| format!("set attribute {}", name.to_string_lossy()));
            }
        }
    }
    Ok(())
}
