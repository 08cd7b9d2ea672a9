//! The tree, from its top down, names in the order of their bytes: a directory before what is in it.
//!
//! With several directories the walk sees what overlayfs would: the highest that has a name counts, directories are
//! one, unless a higher one is opaque, and a whiteout hides a name. See the kernel's
//! `Documentation/filesystems/overlayfs.rst`.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};
use nix::sys::time::TimeSpec;

use super::header::{Header, Type, pad};
use super::{Kind, Packed, attributes};
use crate::error::{Context, Error, Kind as ErrorClass, Result};
use crate::image::unpack::Owners;
use crate::image::unpack::tree::{names, open_directory};
use crate::image::unpack::xattr::{Warnings, is_opaque};

/// What unpack lets pass.
const MOST_DEPTH: usize = 256;
const MOST_OF_PATH: usize = 4096; // bytes
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// A directory as one of the tops has it.
struct Level {
    fd: OwnedFd,
    top: usize,
}

/// What lies under a name.
struct Found<'a> {
    kind: Type,
    path: &'a [u8],
    stat: &'a FileStat,
    /// Which of the tops has it.
    top: usize,
    link: &'a [u8],
}

const PIECE: usize = 256 << 10; // bytes

pub struct Walk<W> {
    kind: Kind,
    /// Of the files of each top.
    owners: Vec<Owners>,
    out: W,
    /// Of the entry at work; a directory's ends with a slash, and the top's is empty.
    path: Vec<u8>,
    /// The first name of a file that has several.
    first_names: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    entries: u64,
    /// That the files not written yet may have.
    bytes_left: u64,
    warnings: Warnings,
}

impl<W: Write> Walk<W> {
    pub fn new(kind: Kind, owners: Vec<Owners>, most_bytes: u64, out: W) -> Self {
        let (path, first_names, buffer) = (Vec::new(), HashMap::new(), vec![0; PIECE]);
        let (entries, warnings) = (0, Warnings::default());
        Self { kind, owners, out, path, first_names, buffer, entries, bytes_left: most_bytes, warnings }
    }

    pub fn top(&mut self, tops: Vec<OwnedFd>) -> Result<()> {
        let stack = tops.into_iter().enumerate().map(|(top, fd)| Level { fd, top }).collect::<Vec<_>>();
        self.directory(&stack, 0).map_err(|error| {
            let path = String::from_utf8_lossy(&self.path);
            error.because(format!("pack {:?}", if path.is_empty() { "." } else { &path }))
        })
    }

    pub fn finish(self) -> (Packed, W) {
        (Packed { entries: self.entries, warnings: self.warnings.into_list() }, self.out)
    }

    /// One directory, which may lie in several layers, the highest first.
    fn directory(&mut self, stack: &[Level], depth: usize) -> Result<()> {
        let Some(highest) = stack.first() else { return Ok(()) };
        if depth > MOST_DEPTH {
            let message = format!("more than {MOST_DEPTH} directories inside of each other");
            return Err(Error::of_kind(ErrorClass::Limit, message));
        }
        let stat = fstat(&highest.fd)?;
        let path = if self.path.is_empty() { b"./".to_vec() } else { self.path.clone() };
        let found = Found { kind: Type::Directory, path: &path, stat: &stat, top: highest.top, link: b"" };
        self.entry(&found, Some(highest.fd.as_fd()))?;
        if self.is_opaque(&highest.fd) && matches!(self.kind, Kind::Upper { .. }) {
            // Before all that is in the directory: some readers would take it away again.
            self.whiteout(OPAQUE, &stat)?;
        }
        let mut found = BTreeMap::new();
        for (layer, directory) in stack.iter().enumerate() {
            let (_, names) = names(open_directory(directory.fd.as_fd(), b".")?)?;
            for name in names {
                found.entry(name).or_insert(layer);
            }
        }
        let length = self.path.len();
        for (name, layer) in found {
            self.path.extend(&name);
            if self.path.len() > MOST_OF_PATH {
                let message = format!("a path of more than {MOST_OF_PATH} bytes");
                return Err(Error::of_kind(ErrorClass::Limit, message));
            }
            self.name(&stack[layer..], &name, depth)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    /// One name, which the first of these directories has.
    fn name(&mut self, stack: &[Level], name: &[u8], depth: usize) -> Result<()> {
        let (here, top) = (stack[0].fd.as_fd(), stack[0].top);
        let stat = match fstatat(here, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            // Removed since the directory was read.
            Err(Errno::ENOENT) => return Ok(()),
            stat => stat?,
        };
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFCHR && stat.st_rdev == 0 {
            match self.kind {
                Kind::Merged { .. } => {}
                Kind::Upper { .. } => self.whiteout(&[WHITEOUT, name].concat(), &stat)?,
                Kind::Plain => self.warn("character devices 0:0, which are whiteouts, are left out"),
            }
            return Ok(());
        }
        if name.starts_with(WHITEOUT) && matches!(self.kind, Kind::Upper { .. }) {
            return Err(Error::new("in a layer such a name would take another file away")
                .with_way_out("Rename or remove the file in the container."));
        }
        match kind {
            SFlag::S_IFDIR => {
                let stack = self.descend(stack, name)?;
                self.path.push(b'/');
                return self.directory(&stack, depth + 1);
            }
            SFlag::S_IFSOCK => {
                self.warn("sockets are left out");
                return Ok(());
            }
            _ => {}
        }
        let path = self.path.clone();
        if stat.st_nlink > 1 {
            let known = self.first_names.get(&(stat.st_dev, stat.st_ino)).cloned();
            if let Some(first) = known {
                let found = Found { kind: Type::HardLink, path: &path, stat: &stat, top, link: &first };
                return self.entry(&found, None);
            }
            self.first_names.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        let (kind, link) = match kind {
            SFlag::S_IFREG => return self.file(here, name, &path, top),
            SFlag::S_IFLNK => (Type::Symlink, readlinkat(here, OsStr::from_bytes(name))?.into_vec()),
            SFlag::S_IFIFO => (Type::Fifo, Vec::new()),
            SFlag::S_IFCHR => (Type::Character, Vec::new()),
            SFlag::S_IFBLK => (Type::Block, Vec::new()),
            other => return Err(Error::new(format!("files of type {:o} are not known", other.bits()))),
        };
        self.entry(&Found { kind, path: &path, stat: &stat, top, link: &link }, None)
    }

    /// The directories that `name` is in, down to where one hides the others.
    fn descend(&self, stack: &[Level], name: &[u8]) -> Result<Vec<Level>> {
        let open =
            |level: &Level| open_directory(level.fd.as_fd(), name).map(|fd| Level { fd, top: level.top });
        let mut below = vec![open(&stack[0])?];
        for level in &stack[1..] {
            if self.is_opaque(&below[below.len() - 1].fd) {
                break;
            }
            match open(level) {
                Ok(level) => below.push(level),
                Err(Errno::ENOENT) => {}
                // A whiteout, or another file in the place of the directories further down.
                Err(Errno::ENOTDIR | Errno::ELOOP) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(below)
    }

    fn is_opaque(&self, directory: &OwnedFd) -> bool {
        match self.kind {
            Kind::Plain => false,
            Kind::Merged { user_xattr } | Kind::Upper { user_xattr } => is_opaque(directory, user_xattr),
        }
    }

    fn file(&mut self, here: BorrowedFd<'_>, name: &[u8], path: &[u8], top: usize) -> Result<()> {
        // O_NONBLOCK: should it be a FIFO by now, nobody waits.
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::from(openat(here, OsStr::from_bytes(name), flags, Mode::empty())?);
        let stat = fstat(&file)?;
        if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
            return Err(Error::new("it became another kind of file meanwhile"));
        }
        let size = stat.st_size as u64;
        self.bytes_left = self.bytes_left.checked_sub(size).ok_or_else(|| {
            let message = format!("a file of {size} bytes is more than is left (limit bytes)");
            let way_out = "Holes count. Remove the file, or raise the limit: --limits bytes=N";
            Error::of_kind(ErrorClass::Limit, message).with_way_out(way_out)
        })?;
        self.entry(&Found { kind: Type::File, path, stat: &stat, top, link: b"" }, Some(file.as_fd()))?;
        self.body(&file, size)
    }

    /// So many bytes, whatever a process that writes to the file makes of it.
    fn body(&mut self, mut file: &File, size: u64) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = match file.read(&mut self.buffer[..most]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                n => n.context(|| "read it")?,
            };
            if n == 0 {
                self.warn("files that became shorter meanwhile are filled up with zeroes");
                let mut zeroes = io::repeat(0).take(left);
                io::copy(&mut zeroes, &mut self.out).context(|| "write to the archive")?;
                break;
            }
            self.out.write_all(&self.buffer[..n]).context(|| "write to the archive")?;
            left -= n as u64;
        }
        pad(&mut self.out, size).context(|| "write to the archive")
    }

    /// An empty file beside what is at work, whose name says what is taken away.
    fn whiteout(&mut self, name: &[u8], stat: &FileStat) -> Result<()> {
        let end = self.path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let path = [&self.path[..end], name].concat();
        self.entries += 1;
        let mtime = TimeSpec::new(stat.st_mtime, 0);
        let header = Header { mode: 0, mtime, ..Header::new(Type::File, &path) };
        header.write(&mut self.out).context(|| "write to the archive")
    }

    /// Writes the header; `file` is what its extended attributes are read from.
    fn entry(&mut self, found: &Found<'_>, file: Option<BorrowedFd<'_>>) -> Result<()> {
        let Found { kind, path, stat, top, link } = *found;
        let owners = &self.owners[top];
        let (uid, gid) = owners.inside(stat.st_uid, stat.st_gid)?;
        let in_overlay = self.kind != Kind::Plain;
        let xattrs = match file {
            Some(file) => attributes::read(file, path, owners, in_overlay, &mut self.warnings)?,
            None => Vec::new(),
        };
        self.entries += 1;
        let device = match kind {
            Type::Character | Type::Block => (major(stat.st_rdev) as u32, minor(stat.st_rdev) as u32),
            _ => (0, 0),
        };
        let header = Header {
            kind,
            path,
            link,
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            size: if kind == Type::File { stat.st_size as u64 } else { 0 },
            mtime: TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
            device,
            xattrs: &xattrs,
        };
        header.write(&mut self.out).context(|| "write to the archive")
    }

    fn warn(&mut self, what: &str) {
        self.warnings.add(what, &self.path);
    }
}
