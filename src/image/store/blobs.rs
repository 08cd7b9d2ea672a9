//! `blobs/sha256/<hex>`: as in an image layout. A blob's digest is looked at on every use, not only when it comes in:
//! what the disk has made of it since is not known.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::Store;
use super::tmp::Entry;
use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::{Algorithm, Digest, Hasher, Verified};
use crate::image::limits::DocumentLimits;
use crate::image::manifest::Descriptor;

impl Store {
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Whether there is a blob of this name and size; whether it is what it should be shows when it is read.
    pub fn has_blob(&self, descriptor: &Descriptor) -> bool {
        fs::metadata(self.blob_path(&descriptor.digest)).is_ok_and(|meta| meta.len() == descriptor.size)
    }

    /// None if it is not here.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(meta) => Ok(Some(meta.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(|| format!("stat {}", path.display())),
        }
    }

    /// A blob's bytes; see [`Verified`]. Kind::NotFound if it is not here.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Verified<File>> {
        let path = self.blob_path(&descriptor.digest);
        let what = || format!("blob {}", path.display());
        let file = File::open(&path).map_err(|error| {
            let kind = if error.kind() == io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Other };
            Error::from(error).with_kind(kind).because(what())
        })?;
        Ok(Verified::new(file, &descriptor.digest, descriptor.size, what()))
    }

    /// A manifest, index or config, verified.
    pub fn document(&self, descriptor: &Descriptor, limits: &DocumentLimits) -> Result<Vec<u8>> {
        limits.read(descriptor, || self.blob(descriptor))
    }

    /// Every blob's name, and its size.
    pub fn blobs(&self) -> Result<Vec<(Digest, u64)>> {
        let mut found = Vec::new();
        for algorithm in self.names("blobs")? {
            for hex in self.names(&format!("blobs/{algorithm}"))? {
                // What is no digest is not ours.
                let Ok(digest) = Digest::parse(&format!("{algorithm}:{hex}")) else { continue };
                let path = self.blob_path(&digest);
                let meta = fs::metadata(&path).context(|| format!("stat {}", path.display()))?;
                found.push((digest, meta.len()));
            }
        }
        Ok(found)
    }

    /// A blob that is coming in and has to become what the descriptor says.
    pub fn insert(&self, descriptor: &Descriptor) -> Result<Insert<'_>> {
        let hasher = Some(Hasher::new(descriptor.digest.algorithm()));
        self.insert_as(Some((descriptor.digest.clone(), descriptor.size)), hasher)
    }

    /// The same for who looks at the digest himself before he calls [`Insert::finish`].
    pub fn insert_unhashed(&self, descriptor: &Descriptor) -> Result<Insert<'_>> {
        self.insert_as(Some((descriptor.digest.clone(), descriptor.size)), None)
    }

    /// A blob that is made here: whatever comes in is right.
    pub fn insert_new(&self) -> Result<Insert<'_>> {
        self.insert_as(None, Some(Hasher::new(Algorithm::Sha256)))
    }

    /// A whole blob, under a digest that was verified, which may be of another algorithm.
    pub fn put_verified(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let mut insert = self.insert_as(Some((digest.clone(), bytes.len() as u64)), None)?;
        insert.write_all(bytes).context(|| "write a blob")?;
        insert.finish().map(drop)
    }

    fn insert_as(&self, expected: Option<(Digest, u64)>, hasher: Option<Hasher>) -> Result<Insert<'_>> {
        let entry = self.entry()?;
        let path = entry.path().join("blob");
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.context(|| format!("create {}", path.display()))?;
        Ok(Insert { store: self, entry, file, hasher, size: 0, expected })
    }
}

/// A blob on its way in. It is there once it is finished, and not at all otherwise.
pub struct Insert<'s> {
    store: &'s Store,
    entry: Entry,
    file: File,
    hasher: Option<Hasher>,
    size: u64, // bytes
    expected: Option<(Digest, u64)>,
}

impl Insert<'_> {
    /// Its digest and size.
    pub fn finish(self) -> Result<(Digest, u64)> {
        let found = self.hasher.map(Hasher::finish);
        let malformed = |what: String| Err(Error::of_kind(Kind::Integrity, what));
        let digest = match (self.expected, found) {
            (Some((digest, size)), _) if size != self.size => {
                return malformed(format!("blob {digest}: it has {} bytes, not {size}", self.size));
            }
            (Some((digest, _)), Some(found)) if found != digest => {
                return malformed(format!("blob {digest}: the digest is {found}"));
            }
            (Some((digest, _)), _) | (None, Some(digest)) => digest,
            (None, None) => return malformed("a blob without a digest".to_owned()),
        };
        let path = self.store.blob_path(&digest);
        let what = || format!("put blob {}", path.display());
        if digest.algorithm() != Algorithm::Sha256 {
            // Few images have any.
            fs::create_dir_all(path.parent().unwrap_or(self.store.path())).context(what)?;
        }
        fs::rename(self.entry.path().join("blob"), &path).context(what)?;
        Ok((digest, self.size))
    }
}

impl Write for Insert<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..written]);
        }
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
