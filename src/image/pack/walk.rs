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
use super::{Kind, Options, Packed, attributes};
use crate::error::{Context, Error, Kind as ErrorClass, Result};
use crate::image::unpack::tree::{names, open_directory};
use crate::image::unpack::xattr::{Warnings, is_opaque};

/// What unpack lets pass.
const MOST_DEPTH: usize = 256;
const MOST_OF_PATH: usize = 4096; // bytes
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const PIECE: usize = 256 << 10; // bytes

pub struct Walk<'o, W> {
    options: &'o Options,
    out: W,
    /// Of the entry at work; a directory's ends with a slash, and the top's is empty.
    path: Vec<u8>,
    /// The first name of a file that has several.
    first_names: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    entries: u64,
    warnings: Warnings,
}

impl<'o, W: Write> Walk<'o, W> {
    pub fn new(options: &'o Options, out: W) -> Self {
        let (path, first_names, buffer) = (Vec::new(), HashMap::new(), vec![0; PIECE]);
        Self { options, out, path, first_names, buffer, entries: 0, warnings: Warnings::default() }
    }

    pub fn top(&mut self, tops: Vec<OwnedFd>) -> Result<()> {
        self.directory(&tops, 0).map_err(|error| {
            let path = String::from_utf8_lossy(&self.path);
            error.because(format!("pack {:?}", if path.is_empty() { "." } else { &path }))
        })
    }

    pub fn finish(self) -> (Packed, W) {
        (Packed { entries: self.entries, warnings: self.warnings.into_list() }, self.out)
    }

    /// One directory, which may lie in several layers, the highest first.
    fn directory(&mut self, stack: &[OwnedFd], depth: usize) -> Result<()> {
        let Some(highest) = stack.first() else { return Ok(()) };
        if depth > MOST_DEPTH {
            let message = format!("more than {MOST_DEPTH} directories inside of each other");
            return Err(Error::of_kind(ErrorClass::Limit, message));
        }
        let stat = fstat(highest)?;
        let path = if self.path.is_empty() { b"./".to_vec() } else { self.path.clone() };
        self.entry(Type::Directory, &path, &stat, Some(highest.as_fd()), b"")?;
        if self.is_opaque(highest) && matches!(self.options.kind, Kind::Upper { .. }) {
            // Before all that is in the directory: some readers would take it away again.
            self.whiteout(OPAQUE, &stat)?;
        }
        let mut found = BTreeMap::new();
        for (layer, directory) in stack.iter().enumerate() {
            let (_, names) = names(open_directory(directory.as_fd(), b".")?)?;
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
    fn name(&mut self, stack: &[OwnedFd], name: &[u8], depth: usize) -> Result<()> {
        let here = stack[0].as_fd();
        let stat = match fstatat(here, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            // Removed since the directory was read.
            Err(Errno::ENOENT) => return Ok(()),
            stat => stat?,
        };
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFCHR && stat.st_rdev == 0 {
            match self.options.kind {
                Kind::Merged { .. } => {}
                Kind::Upper { .. } => self.whiteout(&[WHITEOUT, name].concat(), &stat)?,
                Kind::Plain => self.warn("character devices 0:0, which are whiteouts, are left out"),
            }
            return Ok(());
        }
        if name.starts_with(WHITEOUT) && matches!(self.options.kind, Kind::Upper { .. }) {
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
                return self.entry(Type::HardLink, &path, &stat, None, &first);
            }
            self.first_names.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        match kind {
            SFlag::S_IFREG => self.file(here, name, &path),
            SFlag::S_IFLNK => {
                let target = readlinkat(here, OsStr::from_bytes(name))?.into_vec();
                self.entry(Type::Symlink, &path, &stat, None, &target)
            }
            SFlag::S_IFIFO => self.entry(Type::Fifo, &path, &stat, None, b""),
            SFlag::S_IFCHR => self.entry(Type::Character, &path, &stat, None, b""),
            SFlag::S_IFBLK => self.entry(Type::Block, &path, &stat, None, b""),
            other => Err(Error::new(format!("files of type {:o} are not known", other.bits()))),
        }
    }

    /// The directories that `name` is in, down to where one hides the others.
    fn descend(&self, stack: &[OwnedFd], name: &[u8]) -> Result<Vec<OwnedFd>> {
        let mut below = vec![open_directory(stack[0].as_fd(), name)?];
        for directory in &stack[1..] {
            if self.is_opaque(&below[below.len() - 1]) {
                break;
            }
            match open_directory(directory.as_fd(), name) {
                Ok(directory) => below.push(directory),
                Err(Errno::ENOENT) => {}
                // A whiteout, or another file in the place of the directories further down.
                Err(Errno::ENOTDIR | Errno::ELOOP) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(below)
    }

    fn is_opaque(&self, directory: &OwnedFd) -> bool {
        match self.options.kind {
            Kind::Plain => false,
            Kind::Merged { user_xattr } | Kind::Upper { user_xattr } => is_opaque(directory, user_xattr),
        }
    }

    fn file(&mut self, here: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        // O_NONBLOCK: should it be a FIFO by now, nobody waits.
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::from(openat(here, OsStr::from_bytes(name), flags, Mode::empty())?);
        let stat = fstat(&file)?;
        if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
            return Err(Error::new("it became another kind of file meanwhile"));
        }
        self.entry(Type::File, path, &stat, Some(file.as_fd()), b"")?;
        self.body(&file, stat.st_size as u64)
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
    fn entry(
        &mut self,
        kind: Type,
        path: &[u8],
        stat: &FileStat,
        file: Option<BorrowedFd<'_>>,
        link: &[u8],
    ) -> Result<()> {
        let (uid, gid) = self.options.owners.inside(stat.st_uid, stat.st_gid)?;
        let in_overlay = self.options.kind != Kind::Plain;
        let xattrs = match file {
            Some(file) => attributes::read(file, path, &self.options.owners, in_overlay, &mut self.warnings)?,
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
