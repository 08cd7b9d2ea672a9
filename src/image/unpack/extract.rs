//! An entry becomes a file: made with its final mode, written, then owner, attributes and time, through one
//! descriptor.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    Mode as Permissions, SFlag, UtimensatFlags, fchmod, futimens, makedev, mknodat, utimensat,
};
use nix::unistd::{Gid, Uid, fchown, fchownat, ftruncate, getegid, geteuid, symlinkat};

use super::link::{components, in_root};
use super::tar::{Archive, Entry, Type};
use super::tree::{self, Missing, Tree, open_directory};
use super::whiteout::{Special, Whiteouts, special};
use super::xattr::{Warnings, Xattrs, set_opaque};
use super::{Mode, Options, Unpacked, limit, malformed, owner};
use crate::error::{Context, Error, Result};

const LONGEST_NAME: usize = 255;

pub struct Layer<'o> {
    pub options: &'o Options,
    pub top: OwnedFd,
    pub tree: Tree,
    /// Whose a file is when it is made.
    me: (u32, u32),
    pub unpacked: Unpacked,
    warnings: Warnings,
    whiteouts: Whiteouts,
    /// Paths of the devices left out.
    pub skipped: HashSet<Vec<u8>>,
}

/// Unpacks all entries; an error comes with the entry's name, if it is one's.
pub fn extract(
    plain: impl BufRead,
    target: OwnedFd,
    options: &Options,
) -> Result<Unpacked, (Option<String>, Error)> {
    let mut layer = Layer::new(target, options).map_err(|error| (None, error))?;
    let mut archive = Archive::new(plain, &options.limits);
    while let Some(entry) = archive.next_entry().map_err(|error| (None, error))? {
        let placed = layer.place(&entry, &mut archive);
        placed.map_err(|error| (Some(String::from_utf8_lossy(&entry.path).into_owned()), error))?;
    }
    archive.drain().and_then(|()| layer.finish()).map_err(|error| (None, error))
}

impl<'o> Layer<'o> {
    fn new(target: OwnedFd, options: &'o Options) -> Result<Self> {
        let top = target.try_clone()?;
        let tree = Tree::new(target, options.mode == Mode::Apply, &options.limits)?;
        Ok(Self {
            options,
            top,
            tree,
            me: (geteuid().as_raw(), getegid().as_raw()),
            unpacked: Unpacked::default(),
            warnings: Warnings::default(),
            whiteouts: Whiteouts::default(),
            skipped: HashSet::new(),
        })
    }

    fn place(&mut self, entry: &Entry, archive: &mut Archive<'_, impl BufRead>) -> Result<()> {
        self.tree.spent.entry()?;
        owner::check(entry.uid, entry.gid)?;
        let path =
            components(&entry.path).ok_or_else(|| malformed("its name leads out of the layer (..)"))?;
        let Some((&name, parents)) = path.split_last() else {
            if entry.kind != Type::Directory {
                return Err(malformed("the root must be a directory"));
            }
            self.tree.enter(std::iter::empty(), Missing::Make)?;
            return self.set_directory(entry, true);
        };
        let special = special(parents, name)?;
        // A whiteout takes away a name that may be as long as any, without its prefix.
        let name_made = if let Special::Whiteout(name) = special { name } else { name };
        if let Some(name) = parents.iter().chain([&name_made]).find(|name| name.len() > LONGEST_NAME) {
            return Err(limit("path", format!("a name of {} bytes, more than {LONGEST_NAME}", name.len())));
        }
        match special {
            Special::No => {}
            Special::Whiteout(name) => return self.whiteout(parents, name),
            Special::Opaque => return self.opaque(parents),
            Special::Aufs => {
                self.warnings.add("entries of AUFS are left out", &entry.path);
                return Ok(());
            }
        }
        if entry.kind == Type::Character && entry.device == (0, 0) {
            return Err(malformed(
                "a character device 0:0 is a whiteout of overlayfs, which a layer may not bring",
            ));
        }
        // mknod(2) drops what is beyond these bits, which would make a whiteout of 4096:0.
        if entry.device.0 >= 1 << 12 || entry.device.1 >= 1 << 20 {
            return Err(malformed(format!("device {}:{} is out of range", entry.device.0, entry.device.1)));
        }
        if matches!(entry.kind, Type::Character | Type::Block) && !self.options.devices {
            self.unpacked.devices_skipped += 1;
            let path = path.join(&b'/');
            self.tree.spent.remember(path.len())?;
            self.skipped.insert(path);
            return Ok(());
        }
        self.tree.enter(parents.iter().copied(), Missing::Make)?;
        match entry.kind {
            Type::File => self.file(entry, name, archive),
            Type::Directory => self.directory(entry, name),
            Type::Symlink => self.symlink(entry, name),
            Type::HardLink => self.hard_link(entry, &path),
            Type::Character => self.node(entry, name, SFlag::S_IFCHR),
            Type::Block => self.node(entry, name, SFlag::S_IFBLK),
            Type::Fifo => self.node(entry, name, SFlag::S_IFIFO),
        }
    }

    fn file(&mut self, entry: &Entry, name: &[u8], archive: &mut Archive<'_, impl BufRead>) -> Result<()> {
        self.tree.spent.file(entry.sparse.as_ref().map_or(entry.stored, |sparse| sparse.size))?;
        let xattrs = self.xattrs(entry)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = permissions(entry);
        let file = File::from(self.make(name, |here, name| openat(here, name, flags, mode))?);
        match &entry.sparse {
            None => archive.with_body(entry.stored, |data| {
                (&file).write_all(data).context(|| "write")?;
                self.tree.spent.written(data.len() as u64)
            })?,
            Some(sparse) => {
                for piece in &sparse.pieces {
                    let mut at = piece.offset;
                    archive.with_body(piece.length, |data| {
                        file.write_all_at(data, at).context(|| "write")?;
                        at += data.len() as u64;
                        self.tree.spent.written(data.len() as u64)
                    })?;
                }
                ftruncate(&file, sparse.size as i64).context(|| format!("grow to {} bytes", sparse.size))?;
            }
        }
        if let Some((uid, gid)) = self.new_owner(entry)? {
            fchown(&file, Some(uid), Some(gid)).context(|| format!("chown to {uid}:{gid}"))?;
            if entry.mode & 0o6000 != 0 {
                // The kernel took these bits away with the owner.
                fchmod(&file, mode).context(|| format!("chmod to {:o}", entry.mode))?;
            }
        }
        // After the owner and the body: either change takes file capabilities away.
        xattrs.apply(&file, &entry.path, &mut self.warnings)?;
        futimens(&file, &entry.mtime, &entry.mtime).context(|| "set the time")
    }

    fn directory(&mut self, entry: &Entry, name: &[u8]) -> Result<()> {
        let making = || format!("make directory {:?}", String::from_utf8_lossy(name));
        let mode = permissions(entry) & !(Permissions::S_ISUID | Permissions::S_ISGID);
        for _ in 0..2 {
            match self.tree.make_directory(name, mode) {
                Ok(()) => return self.set_directory(entry, false),
                Err(error) if error.errno() == Some(Errno::EEXIST) => {}
                Err(error) => return Err(error).context(making),
            }
            match open_directory(self.tree.here(), name) {
                Ok(directory) => {
                    self.tree.push(directory, name)?;
                    return self.set_directory(entry, true);
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => self.tree.clear(name)?,
                Err(errno) => return Err(errno).context(making),
            }
        }
        Err(Error::from(Errno::EEXIST)).context(making)
    }

    /// Gives the directory at work what its entry says.
    fn set_directory(&mut self, entry: &Entry, existed: bool) -> Result<()> {
        let xattrs = self.xattrs(entry)?;
        let wanted = self.options.owners.of(entry.uid, entry.gid)?;
        let owner = match existed {
            true => wanted.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))),
            // The group was the parent's, if that has the setgid bit.
            false if self.tree.parent_group().is_none() => self.new_owner_than(wanted, self.me),
            false => wanted.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))),
        };
        let here = self.tree.here();
        if let Some((uid, gid)) = owner {
            fchown(here, Some(uid), Some(gid)).context(|| format!("chown to {uid}:{gid}"))?;
        }
        if existed {
            Xattrs::clear(here)?;
        }
        if existed || entry.mode & 0o6000 != 0 {
            fchmod(here, permissions(entry)).context(|| format!("chmod to {:o}", entry.mode))?;
        }
        xattrs.apply(here, &entry.path, &mut self.warnings)?;
        let group = wanted.map_or(self.me.1, |(_, gid)| gid);
        let id = self.tree.here_id();
        let node = self.tree.node(id);
        node.implied = false;
        node.group = (entry.mode & libc::S_ISGID != 0).then_some(group);
        self.tree.set_time(entry.mtime);
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, name: &[u8]) -> Result<()> {
        if entry.link.is_empty() {
            return Err(malformed("a symbolic link to nothing"));
        }
        let target = OsStr::from_bytes(&entry.link);
        self.make(name, |here, name| symlinkat(target, here, name))?;
        self.set_without_opening(entry, name)
    }

    fn node(&mut self, entry: &Entry, name: &[u8], kind: SFlag) -> Result<()> {
        let device = makedev(u64::from(entry.device.0), u64::from(entry.device.1));
        let device = if kind == SFlag::S_IFIFO { 0 } else { device };
        let mode = permissions(entry);
        self.make(name, |here, name| mknodat(here, name, kind, mode, device))?;
        self.set_without_opening(entry, name)
    }

    /// Owner and time of what opening would follow, or have an effect on.
    fn set_without_opening(&mut self, entry: &Entry, name: &[u8]) -> Result<()> {
        if !entry.xattrs.is_empty() {
            self.warnings
                .add("extended attributes of what is neither file nor directory are left out", &entry.path);
        }
        let (here, name) = (self.tree.here(), OsStr::from_bytes(name));
        if let Some((uid, gid)) = self.new_owner(entry)? {
            fchownat(here, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                .context(|| format!("chown to {uid}:{gid}"))?;
        }
        utimensat(here, name, &entry.mtime, &entry.mtime, UtimensatFlags::NoFollowSymlink)
            .context(|| "set the time")
    }

    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        if self.tree.has_lower {
            return match self.tree.enter(parents.iter().copied(), Missing::Leave)? {
                true => self.tree.clear_lower(name),
                false => Ok(()),
            };
        }
        self.tree.enter(parents.iter().copied(), Missing::Make)?;
        self.tree.spent.remember(name.len())?;
        self.whiteouts.add(self.tree.here_id(), name);
        Ok(())
    }

    fn opaque(&mut self, parents: &[&[u8]]) -> Result<()> {
        let Mode::Overlay { user_xattr } = self.options.mode else {
            return match self.tree.enter(parents.iter().copied(), Missing::Leave)? {
                true => self.tree.clear_lower_here(),
                false => Ok(()),
            };
        };
        self.tree.enter(parents.iter().copied(), Missing::Make)?;
        let id = self.tree.here_id();
        self.tree.node(id).opaque = true;
        match id {
            tree::TOP => self.unpacked.lacks.opaque = true,
            _ => set_opaque(self.tree.here(), user_xattr)?,
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Unpacked> {
        if let Mode::Overlay { user_xattr } = self.options.mode {
            let made = std::mem::take(&mut self.whiteouts).make(&mut self.tree, user_xattr)?;
            let lacks = &mut self.unpacked.lacks;
            lacks.whiteouts = made.iter().map(|path| to_path(path)).collect();
            lacks.implied = self.tree.implied().map(|path| to_path(&path.join(&b'/'))).collect();
            // A later entry may have taken the link's place.
            let top = &self.top;
            lacks
                .links
                .retain(|(link, _)| in_root(top, link.as_os_str().as_bytes(), libc::O_NOFOLLOW).is_err());
        }
        self.tree.finish()?;
        (self.unpacked.entries, self.unpacked.bytes) = (self.tree.spent.entries, self.tree.spent.bytes);
        self.unpacked.warnings = self.warnings.into_list();
        Ok(self.unpacked)
    }

    /// Makes `name` here; what has the name already gives way.
    pub fn make<T>(
        &mut self,
        name: &[u8],
        how: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
    ) -> Result<T> {
        let made = match how(self.tree.here(), OsStr::from_bytes(name)) {
            Err(Errno::EEXIST) => {
                self.tree.clear(name)?;
                how(self.tree.here(), OsStr::from_bytes(name))
            }
            made => made,
        };
        self.tree.made(name);
        made.context(|| "make it")
    }

    /// The owner, if a file made here has another one.
    fn new_owner(&self, entry: &Entry) -> Result<Option<(Uid, Gid)>> {
        let has = (self.me.0, self.tree.group_here().unwrap_or(self.me.1));
        Ok(self.new_owner_than(self.options.owners.of(entry.uid, entry.gid)?, has))
    }

    fn new_owner_than(&self, wanted: Option<(u32, u32)>, has: (u32, u32)) -> Option<(Uid, Gid)> {
        wanted.filter(|wanted| *wanted != has).map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    fn xattrs(&mut self, entry: &Entry) -> Result<Xattrs> {
        Xattrs::plan(&entry.xattrs, &self.options.owners, &entry.path, &mut self.warnings)
    }
}

fn permissions(entry: &Entry) -> Permissions {
    Permissions::from_bits_truncate(entry.mode)
}

pub fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
}
