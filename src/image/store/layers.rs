//! `layers/<name>/`: a layer's files, as overlayfs takes them (`fs`), what they lack on their own (`lacks`), and on
//! whose word they are whole (`ok`).
//!
//! A layer is made under another name and then renamed, but its files reach the disk when the kernel likes. Waiting for
//! that takes longer than unpacking, so nobody does: `ok` says in which boot of which machine the layer was made, where
//! it can be read for sure, and an upkeep after the disk has it says so. After a crash a layer that nobody has said this
//! of is made again from its blob. The new one takes the old one's place at once (RENAME_EXCHANGE), since a container
//! may have been started on that meanwhile.
//!
//! A layer's name is the hexadecimal part of its diff_id, that of a fix-up layer `chain-` and of the image's chain id;
//! what was unpacked in another way has that as a suffix.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::{Value, json};

use super::Store;
use super::tmp::Entry;
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;
use crate::image::unpack::Lacks;

/// What is between two paths in `lacks`; no path holds one.
const NUL: u8 = 0;

/// A layer that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub name: String,
    path: PathBuf,
}

impl Layer {
    /// Its files; absent if a fix-up layer has nothing to put right.
    pub fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// What it cannot have on its own.
    pub fn lacks(&self) -> Result<Lacks> {
        let path = self.path.join("lacks");
        let bytes = fs::read(&path).context(|| format!("read {}", path.display()))?;
        decode(&bytes).ok_or_else(|| {
            Error::new(format!("read {}: it is malformed", path.display()))
                .with_way_out(format!("Remove {}: what it holds is made again.", self.path.display()))
        })
    }
}

/// A layer in the making.
pub struct NewLayer {
    entry: Entry,
}

impl NewLayer {
    /// Where its files go.
    pub fn fs(&self) -> PathBuf {
        self.entry.path().join("layer/fs")
    }
}

pub fn layer_name(diff_id: &Digest, variant: &str) -> String {
    format!("{}{variant}", diff_id.hex())
}

/// The name of the fix-up layer of these layers, the lowest first. The chain id is that of the image spec's
/// `config.md`.
pub fn chain_name(diff_ids: &[Digest], variant: &str) -> String {
    let mut ids = diff_ids.iter();
    let Some(first) = ids.next() else { return format!("chain-empty{variant}") };
    let chain = ids.fold(first.clone(), |chain, diff_id| Digest::of(format!("{chain} {diff_id}").as_bytes()));
    format!("chain-{}{variant}", chain.hex())
}

impl Store {
    /// The layer, if it is whole on the word of this boot or of an upkeep.
    pub fn layer(&self, name: &str) -> Result<Option<Layer>> {
        let layer = self.layer_at(name);
        let Some(ok) = self.get_record("layers", &format!("{name}/ok"))? else { return Ok(None) };
        let trusted = ok["synced"] == true || self.is_of_this_boot(&ok);
        Ok(trusted.then_some(layer))
    }

    pub(super) fn layer_at(&self, name: &str) -> Layer {
        Layer { name: name.to_owned(), path: self.path.join("layers").join(name) }
    }

    /// Whether a layer was made in this boot and nobody has said that the disk has it.
    pub(super) fn waits_for_sync(&self, name: &str) -> Result<bool> {
        let ok = self.get_record("layers", &format!("{name}/ok"))?;
        Ok(ok.is_some_and(|ok| ok["synced"] != true && self.is_of_this_boot(&ok)))
    }

    pub(super) fn mark_synced(&self, name: &str) -> Result<()> {
        self.put_record("layers", &format!("{name}/ok"), &self.ok(true))
    }

    fn ok(&self, synced: bool) -> Value {
        json!({"boot": self.boot.boot, "machine": self.boot.machine, "synced": synced})
    }

    fn is_of_this_boot(&self, ok: &Value) -> bool {
        ok["boot"] == *self.boot.boot && ok["machine"] == *self.boot.machine
    }

    pub fn new_layer(&self) -> Result<NewLayer> {
        let entry = self.entry()?;
        let make = |name: &str, mode| DirBuilder::new().mode(mode).create(entry.path().join(name));
        // What an image does not say of its root is what a directory usually is.
        make("layer", 0o700).and_then(|()| make("layer/fs", 0o755)).context(|| "make a layer")?;
        Ok(NewLayer { entry })
    }

    /// Gives a layer, whose files are complete and verified, its name. Under the lock of that name.
    pub fn put_layer(&self, new: &NewLayer, name: &str, lacks: &Lacks) -> Result<Layer> {
        let layer = self.layer_at(name);
        let what = || format!("put layer {}", layer.path.display());
        let made = new.entry.path().join("layer");
        fs::write(made.join("lacks"), encode(lacks)).context(what)?;
        fs::write(made.join("ok"), format!("{:#}\n", self.ok(false))).context(what)?;
        match fs::rename(&made, &layer.path).map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
            Ok(()) => return Ok(layer),
            // One of before the last crash.
            Err(Some(Errno::ENOTEMPTY | Errno::EEXIST)) => {}
            Err(errno) => return Err(Error::from(errno.unwrap_or(Errno::EIO))).context(what),
        }
        renameat2(AT_FDCWD, &made, AT_FDCWD, &layer.path, RenameFlags::RENAME_EXCHANGE).context(what)?;
        self.throw_away(&made, name)?;
        Ok(layer)
    }

    pub fn layers(&self) -> Result<Vec<String>> {
        self.names("layers")
    }

    /// Takes a layer's name away at once; its files go when nobody has them mounted any more.
    pub fn remove_layer(&self, name: &str) -> Result<()> {
        self.throw_away(&self.path.join("layers").join(name), name)
    }
}

fn encode(lacks: &Lacks) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut record = |kind: u8, paths: &[&Path]| {
        bytes.push(kind);
        for path in paths {
            bytes.extend(path.as_os_str().as_bytes());
            bytes.push(NUL);
        }
    };
    lacks.implied.iter().for_each(|path| record(b'd', &[path]));
    lacks.links.iter().for_each(|(link, target)| record(b'l', &[link, target]));
    lacks.whiteouts.iter().for_each(|path| record(b'w', &[path]));
    if lacks.opaque {
        record(b'o', &[]);
    }
    // The end, without which it is not whole.
    record(b'.', &[]);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Lacks> {
    let mut lacks = Lacks::default();
    let mut rest = bytes;
    loop {
        let (&kind, tail) = rest.split_first()?;
        rest = tail;
        let mut path = || {
            let end = rest.iter().position(|&byte| byte == NUL)?;
            let path = PathBuf::from(OsString::from_vec(rest[..end].to_vec()));
            rest = &rest[end + 1..];
            Some(path)
        };
        match kind {
            b'd' => lacks.implied.push(path()?),
            b'l' => lacks.links.push((path()?, path()?)),
            b'w' => lacks.whiteouts.push(path()?),
            b'o' => lacks.opaque = true,
            b'.' => return rest.is_empty().then_some(lacks),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_layer_lacks_is_read_as_it_was_written() {
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        let lacks = Lacks {
            implied: vec![path(b""), path(b"a/\xff\nb")],
            links: vec![(path(b"l"), path(b"t"))],
            whiteouts: vec![path(b"w")],
            opaque: true,
        };
        let bytes = encode(&lacks);
        assert_eq!(decode(&bytes), Some(lacks));
        assert_eq!(decode(&encode(&Lacks::default())), Some(Lacks::default()));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_chain_id_is_that_of_the_image_spec() {
        let ids = ["a", "b"].map(|text| Digest::of(text.as_bytes()));
        let chain = Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes());
        assert_eq!(chain_name(&ids, "-x"), format!("chain-{}-x", chain.hex()));
        assert_eq!(chain_name(&ids[..1], ""), format!("chain-{}", ids[0].hex()));
    }
}
