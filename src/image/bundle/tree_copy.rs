//! A copy of a directory of the image, for a volume: everything as it is, but for device nodes and sockets.
//!
//! The image is hostile, so each name is looked up in a directory that is held open, no link is followed, holes stay
//! holes, and no directory is copied twice, however many volumes it lies in.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchown, fchownat, linkat, lseek, symlinkat};

use crate::error::{Context, Result};
use crate::image::unpack::limits::SPACE_BYTES;
use crate::image::unpack::tree::{open_below, open_directory};
use crate::image::unpack::xattr::read_ours;
use crate::image::unpack::{LayerLimits, Owners, Spent};
use crate::sys::fs::fsetxattr;

/// Device and inode.
type Key = (u64, u64);

pub struct Copy<'o> {
    owners: &'o Owners,
    /// By all volumes together.
    spent: Spent,
    /// The directories that some volume has.
    copied: HashSet<Key>,
    /// The volume at work.
    top: OwnedFd,
    /// Where in it the first name of a file with several is.
    links: HashMap<Key, PathBuf>,
}

impl<'o> Copy<'o> {
    /// `place` is a directory on the file system that the copies go to.
    pub fn new(owners: &'o Owners, limits: &LayerLimits, place: OwnedFd) -> Result<Self> {
        let spent = Spent::new(limits, place.try_clone()?)?;
        Ok(Self { owners, spent, copied: HashSet::new(), top: place, links: HashMap::new() })
    }

    /// Fills the volume `to` with all that is in `from` and in no volume before, and makes it what that is itself.
    pub fn volume(&mut self, from: OwnedFd, to: OwnedFd) -> Result<()> {
        self.top = to.try_clone()?;
        self.links.clear();
        self.directory(from.as_fd(), to.as_fd(), Path::new(""))
    }

    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> Result<()> {
        let stat = fstat(from)?;
        if self.copied.insert((stat.st_dev, stat.st_ino)) {
            let listed = open_directory(from, b".").context(|| "open a directory")?;
            let mut listed = Dir::from_fd(listed).context(|| "list a directory")?;
            for entry in listed.iter() {
                let entry = entry.context(|| "list a directory")?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name != "." && name != ".." {
                    self.entry(from, to, &path.join(name), name).context(|| format!("copy {name:?}"))?;
                }
            }
        }
        // Its time last: making files in it has changed it.
        self.attributes(from, to)
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path, name: &OsStr) -> Result<()> {
        self.spent.entry()?;
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&key)
            && let (Some(directory), Some(first)) = (first.parent(), first.file_name())
        {
            let directory = open_below(self.top.as_fd(), directory)?;
            return Ok(linkat(directory, first, to, name, AtFlags::empty())?);
        }
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(to, name, Mode::S_IRWXU)?;
                let from = open_directory(from, name.as_bytes())?;
                let to = open_directory(to, name.as_bytes())?;
                return self.directory(from.as_fd(), to.as_fd(), path);
            }
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let source = File::from(openat(from, name, flags, Mode::empty())?);
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let target = File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
                self.body(&source, &target)?;
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
            self.links.insert(key, path.to_owned());
        }
        Ok(())
    }

    /// Only the data: a hole of a terabyte costs an image a few bytes.
    fn body(&mut self, mut source: &File, mut target: &File) -> Result<()> {
        let size = source.metadata()?.len();
        self.spent.file(size)?;
        let mut at = 0;
        while at < size {
            let start = match lseek(source, at as i64, Whence::SeekData) {
                // There is a hole up to the end.
                Err(Errno::ENXIO) => break,
                start => start? as u64,
            };
            let end = (lseek(source, start as i64, Whence::SeekHole)? as u64).min(start + SPACE_BYTES);
            source.seek(SeekFrom::Start(start))?;
            target.seek(SeekFrom::Start(start))?;
            // In the kernel, and by reference where the file system can.
            let copied = io::copy(&mut source.take(end - start), &mut target)?;
            self.spent.written(copied)?;
            at = end;
        }
        Ok(target.set_len(size)?)
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
