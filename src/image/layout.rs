//! `oci:PATH` and `oci-archive:FILE`: index.json and blobs, in a directory or in a tar file. What is read from it is
//! held to its digests, as from a registry.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result};
use crate::image::archive::Archive;
use crate::image::digest::{Digest, Verified};
use crate::image::manifest::{Descriptor, Document, Limits, Received};
use crate::image::section::{Reader, Section};

pub struct Layout {
    /// What it is called in errors.
    name: String,
    files: Files,
}

enum Files {
    Directory(PathBuf),
    Archive(Archive),
}

impl Layout {
    pub fn open(path: &Path) -> Result<Self> {
        let name = format!("image layout {}", path.display());
        Self::of(name, Files::Directory(path.to_owned()))
    }

    pub fn of_archive(archive: Archive) -> Result<Self> {
        Self::of(archive.name().to_owned(), Files::Archive(archive))
    }

    fn of(name: String, files: Files) -> Result<Self> {
        let what = || format!("open {name}");
        let bytes = files.read("oci-layout", 4096).context(what)?;
        let version: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        let version = version.as_ref().and_then(|value| value["imageLayoutVersion"].as_str());
        match version {
            Some("1.0.0") => Ok(Self { name, files }),
            version => {
                let found = version.unwrap_or("none");
                Err(Error::new(format!("{}: the layout's version must be 1.0.0, not {found:?}", what())))
            }
        }
    }

    /// As users write it.
    pub fn reference(&self) -> String {
        self.files.reference()
    }

    /// All that is in index.json.
    pub fn index(&self, limits: &Limits) -> Result<Vec<Descriptor>> {
        let what = &self.name;
        let bytes = self.files.read("index.json", limits.manifest).context(|| what.clone())?;
        match Document::parse(&bytes, None, limits, &format!("{what}: index.json"))? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => {
                Err(Error::of_kind(Kind::Integrity, format!("{what}: index.json is no index")))
            }
        }
    }

    /// The manifest or index of a name, or the only one.
    pub fn manifest(&self, name: Option<&str>, limits: &Limits) -> Result<Received> {
        let what = &self.name;
        let index = self.index(limits)?;
        let fits = |descriptor: &&Descriptor| name.is_none() || descriptor.ref_name.as_deref() == name;
        let found: Vec<_> = index.iter().filter(fits).collect();
        let names: Vec<_> = index.iter().filter_map(|descriptor| descriptor.ref_name.as_deref()).collect();
        let there = names.join(", ");
        match (found[..].first(), found.len(), name) {
            (Some(descriptor), 1, _) => Ok(Received {
                digest: descriptor.digest.clone(),
                media_type: Some(descriptor.media_type.clone()),
                bytes: self.document(descriptor, limits)?,
            }),
            (Some(_), count, None) => Err(Error::new(format!("{what}: there are {count} images"))
                .with_way_out(format!("Name one, as {}:TAG, of: {there}.", self.files.reference()))),
            (Some(_), _, Some(name)) => {
                Err(Error::new(format!("{what}: there is more than one image {name:?}")))
            }
            (None, _, name) => {
                let name = name.map_or(String::new(), |name| format!(" {name:?}"));
                let message = format!("{what}: there is no image{name}");
                Err(Error::of_kind(Kind::NotFound, message).with_way_out(format!("There are: {there}.")))
            }
        }
    }

    /// A manifest, index or config, verified.
    pub fn document(&self, descriptor: &Descriptor, limits: &Limits) -> Result<Vec<u8>> {
        if let Some(data) = &descriptor.data {
            return Ok(data.clone());
        }
        let most = limits.manifest.max(limits.config);
        if descriptor.size > most {
            let message = format!("blob {}: it is larger than {most} bytes", descriptor.digest);
            return Err(Error::of_kind(Kind::Limit, message));
        }
        let mut bytes = Vec::new();
        self.blob(descriptor)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A blob's bytes; see [`Verified`].
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Verified<Reader>> {
        let what = format!("blob {} of {}", descriptor.digest, self.name);
        let section = self.section(&descriptor.digest)?;
        Ok(Verified::new(section.reader(), &descriptor.digest, descriptor.size, what))
    }

    /// Where a blob is; nothing about it is verified.
    pub fn section(&self, digest: &Digest) -> Result<Section> {
        let what = || format!("open blob {digest} of {}", self.name);
        self.files.find(&blob_path(digest)).context(what)
    }
}

/// Where a layout has a blob.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

impl Files {
    fn find(&self, path: &str) -> Result<Section> {
        match self {
            Self::Directory(directory) => open_regular(&directory.join(path)).and_then(Section::whole),
            Self::Archive(archive) => archive.find(path),
        }
    }

    fn read(&self, path: &str, most: u64) -> Result<Vec<u8>> {
        self.find(path).and_then(|section| section.read(most)).context(|| format!("read {path}"))
    }

    /// As users write it.
    fn reference(&self) -> String {
        match self {
            Self::Directory(path) => format!("oci:{}", path.display()),
            Self::Archive(archive) => format!("oci-{}", archive.name().replacen(' ', ":", 1)),
        }
    }
}

/// A pipe or a device in somebody's directory would keep us waiting.
fn open_regular(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| {
        let kind = if error.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Other };
        Error::from(error).with_kind(kind)
    })?;
    if !file.metadata()?.is_file() {
        return Err(Error::of_kind(Kind::Integrity, "it is no regular file"));
    }
    Ok(file)
}
