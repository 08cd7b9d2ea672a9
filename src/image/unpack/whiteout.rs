//! What a layer takes away from those below it: `.wh.NAME` one name, `.wh..wh..opq` all that is in its directory.
//!
//! Neither touches what the layer itself brings, in whatever order they come. So for overlayfs the whiteouts are
//! made last, where nothing else is; and where the layer brings a directory, that one is opaque.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts>

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknodat};

use super::malformed;
use super::tree::{Id, Missing, TOP, Tree, open_directory};
use super::xattr::set_opaque;
use crate::error::{Context, Result};

const PREFIX: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

#[derive(Debug, PartialEq, Eq)]
pub enum Special<'a> {
    /// An ordinary entry.
    No,
    Whiteout(&'a [u8]),
    Opaque,
    /// What AUFS keeps for itself.
    Aufs,
}

/// What the names of an entry's path make of it.
pub fn special<'a>(parents: &[&[u8]], name: &'a [u8]) -> Result<Special<'a>> {
    if parents.iter().any(|parent| parent.starts_with(META)) {
        return Ok(Special::Aufs);
    }
    if parents.iter().any(|parent| parent.starts_with(PREFIX)) {
        return Err(malformed("it is in a directory named like a whiteout"));
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Special::No),
        Some(b"" | b"." | b"..") => Err(malformed("a whiteout of no name")),
        Some(_) if name == OPAQUE => Ok(Special::Opaque),
        Some(_) if name.starts_with(META) => Ok(Special::Aufs),
        Some(name) => Ok(Special::Whiteout(name)),
    }
}

/// The whiteouts of a layer for overlayfs, to be made when all else is.
#[derive(Default)]
pub struct Whiteouts(Vec<(Id, Box<[u8]>)>);

impl Whiteouts {
    pub fn add(&mut self, directory: Id, name: &[u8]) {
        self.0.push((directory, name.into()));
    }

    /// The paths where there is a whiteout now.
    pub fn make(self, tree: &mut Tree, user_xattr: bool) -> Result<Vec<Vec<u8>>> {
        let mut made = Vec::new();
        for (id, name) in self.0 {
            // Gone, or everything below is hidden anyway.
            let Some(path) = tree.path_of(id).filter(|_| !tree.node(id).opaque || id == TOP) else {
                continue;
            };
            if !tree.enter(path.iter().map(|name| &**name), Missing::Leave)? {
                continue;
            }
            let whiting = || format!("make a whiteout of {:?}", String::from_utf8_lossy(&name));
            match mknodat(tree.here(), OsStr::from_bytes(&name), SFlag::S_IFCHR, Mode::empty(), 0) {
                Ok(()) => {
                    tree.changed();
                    made.push([&path[..], &[name]].concat().join(&b'/'));
                }
                // Twice the same whiteout, or a file of this layer.
                Err(Errno::EEXIST) => match open_directory(tree.here(), &name) {
                    Ok(directory) => set_opaque(directory, user_xattr)?,
                    Err(Errno::ENOTDIR | Errno::ELOOP) => {}
                    Err(errno) => return Err(errno).context(whiting),
                },
                Err(errno) => return Err(errno).context(whiting),
            }
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_whiteouts() {
        type Row<'a> = (&'a [&'a [u8]], &'a [u8], Option<Special<'a>>);
        let table: &[Row<'_>] = &[
            (&[], b"a", Some(Special::No)),
            (&[b"a"], b".wh", Some(Special::No)),
            (&[b"a"], b".wh.b", Some(Special::Whiteout(b"b"))),
            (&[], b".wh..b", Some(Special::Whiteout(b".b"))),
            (&[], b".wh.", None),
            (&[], b".wh..", None),
            (&[], b".wh...", None),
            (&[], b".wh....", Some(Special::Whiteout(b"..."))),
            (&[], b".wh..wh..opq", Some(Special::Opaque)),
            (&[], b".wh..wh.plnk", Some(Special::Aufs)),
            (&[b".wh..wh.plnk"], b"1.2", Some(Special::Aufs)),
            (&[b".wh.a"], b"b", None),
        ];
        for (parents, name, expected) in table {
            assert_eq!(special(parents, name).ok(), *expected, "{}", String::from_utf8_lossy(name));
        }
    }
}
