//! A copy of a directory of the image, for a volume: everything as it is, but for device nodes and sockets.
//!
//! The image is hostile, so each name is looked up in a directory that is held open, and no link is followed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};

use crate::error::{Context, Result};
use crate::image::unpack::Owners;
use crate::image::unpack::xattr::read_ours;
use crate::sys::fs::fsetxattr;

pub struct Copy<'o> {
    pub owners: &'o Owners,
    /// Where the first name of a file with several is, by inode.
    links: HashMap<(u64, u64), (OwnedFd, OsString)>,
}

impl<'o> Copy<'o> {
    pub fn new(owners: &'o Owners) -> Self {
        Self { owners, links: HashMap::new() }
    }

    /// All that is in `from`, and what it is itself.
    pub fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        let listed = openat(from, ".", directory_flags(), Mode::empty()).context(|| "open a directory")?;
        let mut listed = Dir::from_fd(listed).context(|| "list a directory")?;
        for entry in listed.iter() {
            let entry = entry.context(|| "list a directory")?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                self.entry(from, to, name).context(|| format!("copy {name:?}"))?;
            }
        }
        // Its time last: making files in it has changed it.
        self.attributes(from, to)
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let key = (stat.st_dev, stat.st_ino);
        if let Some((directory, first)) = self.links.get(&key) {
            return Ok(linkat(directory, first.as_os_str(), to, name, AtFlags::empty())?);
        }
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(to, name, Mode::S_IRWXU)?;
                let from = openat(from, name, directory_flags(), Mode::empty())?;
                let to = openat(to, name, directory_flags(), Mode::empty())?;
                return self.directory(from.as_fd(), to.as_fd());
            }
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let mut source = File::from(openat(from, name, flags, Mode::empty())?);
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let mut target = File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
                // In the kernel, and by reference where the file system can.
                io::copy(&mut source, &mut target)?;
                self.attributes(source.as_fd(), target.as_fd())?;
            }
            SFlag::S_IFLNK => {
                symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
                self.without_opening(&stat, to, name)?;
            }
            SFlag::S_IFIFO => {
                mknodat(to, name, kind, Mode::from_bits_truncate(stat.st_mode & 0o7777), 0)?;
                self.without_opening(&stat, to, name)?;
            }
            _ => return Ok(()),
        }
        if stat.st_nlink > 1 {
            self.links.insert(key, (to.try_clone_to_owned()?, name.to_owned()));
        }
        Ok(())
    }

    fn attributes(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        let stat = fstat(from)?;
        let (uid, gid) = self.owner(&stat)?;
        fchown(to, Some(uid), Some(gid))?;
        fchmod(to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
        for (name, value) in read_ours(from)? {
            match fsetxattr(to, &name, &value) {
                // A file system without them.
                Err(Errno::EOPNOTSUPP) => {}
                set => set?,
            }
        }
        let time = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        Ok(futimens(to, &time, &time)?)
    }

    fn without_opening(&self, stat: &FileStat, to: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let (uid, gid) = self.owner(stat)?;
        fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let time = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        Ok(utimensat(to, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
    }

    fn owner(&self, stat: &FileStat) -> Result<(Uid, Gid)> {
        let (uid, gid) = self.owners.of(stat.st_uid, stat.st_gid)?.unwrap_or((stat.st_uid, stat.st_gid));
        Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
    }
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}
