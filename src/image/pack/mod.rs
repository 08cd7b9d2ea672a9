//! A tree becomes a tar archive: a layer of what a container has written, or a whole root file system.
//!
//! | file | what |
//! |---|---|
//! | [`header`] | an entry's header, ustar, and PAX for what does not fit in |
//! | [`walk`] | the tree, or what overlayfs would show of several: by descriptors, in the order of the names |
//! | [`attributes`] | extended attributes: what an image may say, and what makes a tree of overlayfs unreadable |
//! | [`compress`] | from the archive to a blob |
//!
//! What a container has written is hostile: no path is followed, and each name is looked up in a directory that is held
//! open. The same tree gives the same bytes.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/layer.md>

pub mod attributes;
pub mod compress;
pub mod header;
pub mod walk;

use std::io::Write;
use std::os::fd::OwnedFd;

use crate::error::{Context, Result};
use crate::image::unpack::{LayerLimits, Owners};

use self::walk::Walk;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory as it is.
    Plain,
    /// What overlayfs shows of several directories, the highest of them first.
    Merged { user_xattr: bool },
    /// One upper directory of overlayfs alone, as the layer that it is above the others.
    Upper { user_xattr: bool },
}

/// A directory to be packed.
pub struct Top {
    pub directory: OwnedFd,
    /// Whose its files are on the disk; the archive has the ids of the inside.
    pub owners: Owners,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Packed {
    pub entries: u64,
    pub warnings: Vec<String>,
}

/// Writes the archive of `tops`, of which there are several only with [`Kind::Merged`]. A file is written whole, and
/// holes become zeroes: what a container has cost nothing could be without end, so that the limit `bytes` counts here, too.
pub fn pack(tops: Vec<Top>, kind: Kind, limits: &LayerLimits, out: impl Write) -> Result<Packed> {
    let (directories, owners) = tops.into_iter().map(|top| (top.directory, top.owners)).unzip();
    let mut walk = Walk::new(kind, owners, limits.bytes, out);
    walk.top(directories)?;
    let (packed, mut out) = walk.finish();
    out.write_all(&[0; 2 * header::BLOCK])
        .and_then(|()| out.flush())
        .context(|| "write the archive's end")?;
    Ok(packed)
}
