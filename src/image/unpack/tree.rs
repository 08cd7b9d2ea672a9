//! The tree that grows: the chain of open directories from its top to the one at work, and what this layer has put
//! where.
//!
//! Nothing is ever reached by a path of more than one name, nor by `..`: each name is looked up in a directory that
//! is held open, never through a link; links among a name's parents are read, and followed inside of the tree. So
//! what other processes rename in it meanwhile leads nowhere else.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{LayerLimits, Spent, limit, malformed};
use crate::error::{Context, Error, Result};

/// As many as the kernel follows.
const MAX_LINKS: u32 = 40;
/// What a tree that we made can have; more was made meanwhile by somebody else.
const MAX_REMOVED_DEPTH: usize = 1024;

pub type Id = usize;
pub const TOP: Id = 0;

/// A directory that this layer has to do with.
#[derive(Debug, Default)]
pub struct Node {
    parent: Id,
    name: Box<[u8]>,
    children: HashMap<Box<[u8]>, Child>,
    /// To be set whenever the directory is left: making files in it changes it.
    mtime: Option<TimeSpec>,
    /// The group that new files get here, if the directory has the setgid bit.
    pub group: Option<u32>,
    /// Made because something is in it; the layer has not said how it is to be.
    pub implied: bool,
    pub opaque: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Child {
    Directory(Id),
    /// Anything else; known only where lower layers are in the tree.
    File,
}

struct Level {
    fd: OwnedFd,
    node: Id,
    changed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Make,
    Leave,
}

pub struct Tree {
    way: Vec<Level>,
    nodes: Vec<Node>,
    most_levels: usize,
    pub spent: Spent,
    /// The tree holds what other layers have made.
    pub has_lower: bool,
}

impl Tree {
    pub fn new(top: OwnedFd, has_lower: bool, limits: &LayerLimits) -> Result<Self> {
        let spent = Spent::new(limits, top.try_clone()?)?;
        let mut node = Node { implied: true, ..Node::default() };
        adopt(&mut node, &top).context(|| "stat the directory to unpack into")?;
        // As with the others that are new: the time at which they are made.
        node.mtime = node.mtime.filter(|_| has_lower);
        let way = vec![Level { fd: top, node: TOP, changed: false }];
        Ok(Self { way, nodes: vec![node], most_levels: limits.depth, spent, has_lower })
    }

    /// The directory at work.
    pub fn here(&self) -> BorrowedFd<'_> {
        self.way[self.way.len() - 1].fd.as_fd()
    }

    pub fn here_id(&self) -> Id {
        self.way[self.way.len() - 1].node
    }

    pub fn node(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id]
    }

    /// The group that a new file gets here, if not the process's own.
    pub fn group_here(&self) -> Option<u32> {
        self.nodes[self.here_id()].group
    }

    /// The group that the directory at work got from its parent, if not the process's own.
    pub fn parent_group(&self) -> Option<u32> {
        let parent = self.way.len().checked_sub(2)?;
        self.nodes[self.way[parent].node].group
    }

    /// Goes to the directory that `path` names; false when it is missing and shall be left so.
    pub fn enter<'p>(&mut self, path: impl Iterator<Item = &'p [u8]>, missing: Missing) -> Result<bool> {
        let mut path = path.peekable();
        let mut levels = 1;
        while let (Some(name), Some(level)) = (path.peek(), self.way.get(levels))
            && *self.nodes[level.node].name == **name
        {
            levels += 1;
            path.next();
        }
        self.leave_to(levels)?;
        let mut links = 0;
        for name in path {
            if !self.step(name, missing, &mut links)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn step(&mut self, name: &[u8], missing: Missing, links: &mut u32) -> Result<bool> {
        match name {
            b"" | b"." => return Ok(true),
            b".." => {
                self.leave_to((self.way.len() - 1).max(1))?;
                return Ok(true);
            }
            _ => {}
        }
        let shown = || format!("enter directory {:?}", String::from_utf8_lossy(name));
        match open_directory(self.here(), name) {
            Ok(fd) => self.push(fd, name).map(|()| true),
            Err(Errno::ENOENT) if missing == Missing::Leave => Ok(false),
            Err(Errno::ENOENT) => {
                // Two bytes of an entry's name make one.
                self.spent.entry()?;
                let above: usize = self.way.iter().map(|level| self.nodes[level.node].name.len() + 1).sum();
                self.spent.remember(above + name.len())?;
                self.make_directory(name, Mode::from_bits_truncate(0o755)).context(shown)?;
                let id = self.here_id();
                self.nodes[id].implied = true;
                Ok(true)
            }
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                let target = match readlinkat(self.here(), OsStr::from_bytes(name)) {
                    Err(Errno::EINVAL) => {
                        return Err(malformed(format!(
                            "{:?} among its parents is no directory",
                            String::from_utf8_lossy(name)
                        )));
                    }
                    target => target.context(shown)?.into_vec(),
                };
                *links += 1;
                if *links > MAX_LINKS {
                    return Err(malformed("too many symbolic links among its parents"));
                }
                if target.starts_with(b"/") {
                    self.leave_to(1)?;
                }
                for name in target.split(|&byte| byte == b'/') {
                    if !self.step(name, missing, links)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Err(errno) => Err(errno).context(shown),
        }
    }

    /// Makes a directory here and goes into it. EEXIST when the name is taken.
    pub fn make_directory(&mut self, name: &[u8], mode: Mode) -> Result<(), Error> {
        mkdirat(self.here(), OsStr::from_bytes(name), mode)?;
        self.changed();
        let fd = open_directory(self.here(), name)?;
        let inherited = self.group_here();
        self.push_new(fd, name)?;
        if inherited.is_some() {
            // mkdir(2) hands the setgid bit down.
            fchmod(self.here(), mode)?;
        }
        Ok(())
    }

    /// Goes into the directory `fd`, which was there before.
    pub fn push(&mut self, fd: OwnedFd, name: &[u8]) -> Result<()> {
        if let Some(&Child::Directory(node)) = self.nodes[self.here_id()].children.get(name) {
            return self.push_level(Level { fd, node, changed: false });
        }
        let mut node = Node::default();
        adopt(&mut node, &fd).context(|| "stat a directory")?;
        self.push_node(fd, name, node)
    }

    fn push_new(&mut self, fd: OwnedFd, name: &[u8]) -> Result<()> {
        self.push_node(fd, name, Node::default())
    }

    fn push_node(&mut self, fd: OwnedFd, name: &[u8], mut node: Node) -> Result<()> {
        (node.parent, node.name) = (self.here_id(), name.into());
        let id = self.nodes.len();
        self.nodes.push(node);
        let here = self.here_id();
        self.nodes[here].children.insert(name.into(), Child::Directory(id));
        self.push_level(Level { fd, node: id, changed: false })
    }

    fn push_level(&mut self, level: Level) -> Result<()> {
        if self.way.len() > self.most_levels {
            return Err(limit(
                "depth",
                format!("more than {} directories inside of each other", self.most_levels),
            ));
        }
        self.way.push(level);
        Ok(())
    }

    /// The directory's time must be set, or set back, once it is left.
    pub fn changed(&mut self) {
        let last = self.way.len() - 1;
        self.way[last].changed = true;
    }

    /// The time of the directory at work, as the layer wants it.
    pub fn set_time(&mut self, mtime: TimeSpec) {
        let id = self.here_id();
        self.nodes[id].mtime = Some(mtime);
        self.changed();
    }

    /// Leaves all directories but the first `levels`.
    pub fn leave_to(&mut self, levels: usize) -> Result<()> {
        while self.way.len() > levels {
            let Some(level) = self.way.pop() else { break };
            self.settle(&level)?;
        }
        Ok(())
    }

    /// Leaves all of them.
    pub fn finish(&mut self) -> Result<()> {
        self.leave_to(1)?;
        self.settle(&self.way[0])
    }

    fn settle(&self, level: &Level) -> Result<()> {
        match self.nodes[level.node].mtime {
            Some(mtime) if level.changed => {
                futimens(&level.fd, &mtime, &mtime).context(|| "set the time of a directory")
            }
            _ => Ok(()),
        }
    }

    /// Remembers that this layer has made `name` here, which no whiteout of it may touch.
    pub fn made(&mut self, name: &[u8]) {
        self.changed();
        if self.has_lower {
            let here = self.here_id();
            self.nodes[here].children.insert(name.into(), Child::File);
        }
    }

    /// Removes `name` here, whatever it is.
    pub fn clear(&mut self, name: &[u8]) -> Result<()> {
        self.changed();
        remove(self.here(), name, 0)?;
        let here = self.here_id();
        self.nodes[here].children.remove(name);
        Ok(())
    }

    /// Removes what lower layers have put at `name` here, and nothing that this one did.
    pub fn clear_lower(&mut self, name: &[u8]) -> Result<()> {
        match self.nodes[self.here_id()].children.get(name) {
            None => self.clear(name),
            Some(Child::File) => Ok(()),
            Some(&Child::Directory(id)) => {
                let directory = open_directory(self.here(), name).context(|| "open a directory")?;
                self.clear_lower_in(directory, id)
            }
        }
    }

    /// The same for all that is in the directory at work.
    pub fn clear_lower_here(&mut self) -> Result<()> {
        self.changed();
        let directory = open_directory(self.here(), b".").context(|| "open a directory")?;
        self.clear_lower_in(directory, self.here_id())
    }

    fn clear_lower_in(&self, directory: OwnedFd, id: Id) -> Result<()> {
        let (directory, names) = names(directory)?;
        for name in names {
            match self.nodes[id].children.get(&*name) {
                None => remove(directory.as_fd(), &name, 0)?,
                Some(Child::File) => {}
                Some(&Child::Directory(child)) => {
                    let below = open_directory(directory.as_fd(), &name).context(|| "open a directory")?;
                    self.clear_lower_in(below, child)?;
                }
            }
        }
        if let Some(mtime) = self.nodes[id].mtime {
            futimens(&directory, &mtime, &mtime).context(|| "set the time of a directory")?;
        }
        Ok(())
    }

    /// The names from the top to a node, if what it stands for is still there.
    pub fn path_of(&self, mut id: Id) -> Option<Vec<Box<[u8]>>> {
        let mut path = Vec::new();
        while id != TOP {
            let node = &self.nodes[id];
            if self.nodes[node.parent].children.get(&node.name) != Some(&Child::Directory(id)) {
                return None;
            }
            path.push(node.name.clone());
            id = node.parent;
        }
        path.reverse();
        Some(path)
    }

    /// The directories that the layer has made without a word about them.
    pub fn implied(&self) -> impl Iterator<Item = Vec<Box<[u8]>>> {
        (0..self.nodes.len()).filter(|&id| self.nodes[id].implied).filter_map(|id| self.path_of(id))
    }
}

/// What is to be known of a directory that was there before.
fn adopt(node: &mut Node, fd: &OwnedFd) -> Result<(), Errno> {
    let stat = fstat(fd)?;
    node.group = (stat.st_mode & libc::S_ISGID != 0).then_some(stat.st_gid);
    node.mtime = Some(TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    Ok(())
}

pub fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, OsStr::from_bytes(name), flags, Mode::empty())
}

/// The directory at `path` below `top`, name by name: no link is followed, and no path is too long.
pub fn open_below(top: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let mut names = path.iter().map(OsStr::as_bytes);
    names.try_fold(open_directory(top, b".")?, |directory, name| open_directory(directory.as_fd(), name))
}

/// What `name` is, itself.
pub fn kind(parent: BorrowedFd<'_>, name: &[u8]) -> Result<SFlag, Errno> {
    let stat = fstatat(parent, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

/// Removes a name with all that is below it; ENOENT is as good.
fn remove(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<()> {
    let removing = || format!("remove {:?}", String::from_utf8_lossy(name));
    let path = OsStr::from_bytes(name);
    match unlinkat(parent, path, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) if depth < MAX_REMOVED_DEPTH => {}
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno).context(removing),
    }
    let (directory, names) = names(open_directory(parent, name).context(removing)?)?;
    for name in names {
        remove(directory.as_fd(), &name, depth + 1)?;
    }
    unlinkat(parent, path, UnlinkatFlags::RemoveDir).context(removing)
}

pub fn names(directory: OwnedFd) -> Result<(Dir, Vec<Box<[u8]>>)> {
    let reading = || "read a directory";
    let mut directory = Dir::from_fd(directory).context(reading)?;
    let names = directory.iter().map(|entry| Ok(entry?.file_name().to_bytes().into()));
    let names = names.collect::<Result<Vec<Box<[u8]>>, Errno>>().context(reading)?;
    let names = names.into_iter().filter(|name| ![&b"."[..], b".."].contains(&&**name));
    Ok((directory, names.collect()))
}
