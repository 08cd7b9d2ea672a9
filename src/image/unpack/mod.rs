//! A layer's blob becomes files: a directory of its own for overlayfs, or changes to the tree of the layers below.
//!
//! | file | what |
//! |---|---|
//! | [`pipe`] | threads that read, inflate and hash: nothing counts before both digests are right |
//! | [`decoder`] | gzip and zstd, as a stream |
//! | [`tar`], [`field`], [`pax`], [`sparse`] | the archive's headers |
//! | [`tree`] | the open directories, and what the layer has put where |
//! | [`extract`], [`link`] | an entry becomes a file, or another name of one |
//! | [`whiteout`] | what a layer takes away |
//! | [`owner`], [`xattr`] | whose it is, and what else hangs on it |
//! | [`limits`] | how much of all that is an attack |
//!
//! Layers are hostile. The process needs CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE over the tree: root, or root of
//! a user namespace.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/layer.md>

pub mod decoder;
pub mod extract;
pub mod field;
pub mod limits;
pub mod link;
pub mod owner;
pub mod pax;
pub mod pipe;
pub mod sparse;
pub mod tar;
pub mod tree;
pub mod whiteout;
pub mod xattr;

use std::fmt::Display;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::stat::{Mode as Permissions, umask};

use crate::error::{Error, Kind, Result};
use crate::image::compression::Compression;

pub use limits::{LayerLimits, Spent};
pub use owner::{Owners, Range};

/// What the manifest and the config say of a layer.
#[derive(Clone, Debug)]
pub struct LayerSpec {
    /// Which of how many, counted from one: for errors.
    pub number: (usize, usize),
    /// Of the blob, `sha256:...` or `sha512:...`.
    pub digest: String,
    /// Of the blob, in bytes.
    pub size: u64,
    /// Of the plain archive.
    pub diff_id: String,
    pub compression: Compression,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Into an empty directory that becomes a lower layer of overlayfs; with `user_xattr` for a mount by a user.
    Overlay { user_xattr: bool },
    /// Onto what the layers below have made.
    Apply,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub mode: Mode,
    pub limits: LayerLimits,
    pub owners: Owners,
    /// Make device nodes; they are left out otherwise.
    pub devices: bool,
}

/// What came of a layer.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// With the directories that were implied.
    pub entries: u64,
    /// Of all files together, holes included.
    pub bytes: u64,
    /// Device nodes left out.
    pub devices_skipped: u64,
    pub warnings: Vec<String>,
    pub lacks: Lacks,
}

/// What a layer on its own cannot have, for the fix-up layer above all of an image's; empty with [`Mode::Apply`]. All
/// paths are relative to the layer's top.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    /// Directories that had to be made for what is in them: mode and owner, or that it is a symbolic link, are known
    /// to a layer below, if at all. Empty is the top.
    pub implied: Vec<PathBuf>,
    /// Hard links whose target is not in this layer: the link, and its target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// What this layer takes away; where no layer below has it, it must not show.
    pub whiteouts: Vec<PathBuf>,
    /// The layers below do not count at all: overlayfs has no mark for that at the top.
    pub opaque: bool,
}

/// Unpacks the blob that `stream` gives into `target`, and checks its size and both of its digests. After an error,
/// what is in `target` is to be thrown away. Sets the process's umask to 0.
pub fn unpack(
    stream: impl Read + Send,
    layer: &LayerSpec,
    target: OwnedFd,
    options: &Options,
) -> Result<Unpacked> {
    // Files get their mode when they are made.
    umask(Permissions::empty());
    let abandoned = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let (threads, plain) =
            pipe::start(scope, stream, layer, &options.limits, &abandoned).map_err(|error| (None, error))?;
        let extracted = extract::extract(plain, target, options);
        if let Err((_, error)) = &extracted
            && error.kind() != Kind::Integrity
        {
            abandoned.store(true, Ordering::Relaxed);
        }
        threads.join().map_err(|error| (None, error))?;
        extracted
    });
    result.map_err(|(entry, error)| describe(layer, options.mode, entry, error))
}

fn describe(layer: &LayerSpec, mode: Mode, entry: Option<String>, mut error: Error) -> Error {
    if matches!(error.errno(), Some(Errno::ENOSPC | Errno::EDQUOT)) {
        error = error.with_kind(Kind::NoSpace);
    }
    let kept = match mode {
        Mode::Overlay { .. } => "Nothing was changed outside the store.",
        Mode::Apply => "Nothing was changed outside the root file system.",
    };
    error = match error.kind() {
        Kind::Integrity => error.with_way_out(format!("The image is malformed or hostile. {kept}")),
        Kind::NoSpace => error.with_way_out("Free some space, or put the store on another file system."),
        _ => error,
    };
    let (number, of) = layer.number;
    let entry = entry.map(|entry| format!(" entry {entry:?}")).unwrap_or_default();
    error.because(format!("layer {number}/{of} ({}){entry}", shortened(&layer.digest)))
}

/// As much of a digest as tells one from the others.
fn shortened(digest: &str) -> String {
    match digest.split_once(':') {
        Some((algorithm, hex)) if hex.len() > 12 && hex.is_ascii() => {
            format!("{algorithm}:{}...", &hex[..12])
        }
        _ => digest.into(),
    }
}

/// The archive is not as it has to be.
fn malformed(what: impl Into<String>) -> Error {
    Error::of_kind(Kind::Integrity, what)
}

/// The blob is not the one that was asked for.
fn integrity(what: impl Into<String>) -> Error {
    Error::of_kind(Kind::Integrity, what)
        .with_way_out("The blob is damaged, or another one. Nothing of it was kept; fetch it again.")
}

fn limit(key: &str, what: impl Display) -> Error {
    Error::of_kind(Kind::Limit, format!("{what} (limit {key})"))
        .with_way_out(format!("If you trust the image, raise it: --limits {key}=N"))
}
