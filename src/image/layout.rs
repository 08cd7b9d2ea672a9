//! `oci:PATH` and `oci-archive:FILE`: index.json and blobs, in a directory or in a tar file. What is read from it is
//! held to its digests, as from a registry.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::error::{Context, Error, Kind, Result};
use crate::image::archive::Archive;
use crate::image::digest::{Digest, Verified};
use crate::image::limits::DocumentLimits;
use crate::image::manifest::{Descriptor, Document, Received};
use crate::image::section::{Reader, Section};

#[derive(Clone)]
pub struct Layout {
    /// What it is called in errors.
    name: String,
    files: Arc<Files>,
    /// Of all that is in index.json, only this counts.
    only: Option<Digest>,
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
            Some("1.0.0") => Ok(Self { name, files: Arc::new(files), only: None }),
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
    pub fn index(&self, limits: &DocumentLimits) -> Result<Vec<Descriptor>> {
        let what = &self.name;
        let bytes = self.files.read("index.json", limits.manifest).context(|| what.clone())?;
        match Document::parse(&bytes, None, limits, &format!("{what}: index.json"))? {
            Document::Index(mut index) => {
                index.retain(|descriptor| self.only.as_ref().is_none_or(|only| *only == descriptor.digest));
                Ok(index)
            }
            Document::Manifest(_) => {
                Err(Error::of_kind(Kind::Integrity, format!("{what}: index.json is no index")))
            }
        }
    }

    /// The same layout as if it held nothing but one image.
    pub fn only(&self, digest: &Digest) -> Self {
        Self { only: Some(digest.clone()), ..self.clone() }
    }

    /// Of each image what it is called in full, as far as it is: containerd and Docker have an annotation for that,
    /// others put it where a tag should be.
    pub fn names(&self, limits: &DocumentLimits) -> Result<Vec<(Digest, Option<String>)>> {
        let bytes = self.files.read("index.json", limits.manifest).context(|| self.name.clone())?;
        let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let full = |digest: &Digest| {
            let entries = document["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
            let digest = digest.to_string();
            let entries = entries.iter().filter(move |entry| entry["digest"] == *digest);
            entries.filter_map(|entry| entry["annotations"]["io.containerd.image.name"].as_str())
        };
        let mut names = Vec::new();
        for Descriptor { digest, ref_name, .. } in self.index(limits)? {
            let before = names.len();
            names.extend(full(&digest).map(|name| (digest.clone(), Some(name.to_owned()))));
            if names.len() == before {
                let name = ref_name.filter(|name| name.contains([':', '/']));
                names.push((digest, name));
            }
        }
        // An image of two names is listed twice.
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The manifest or index of a name, or the only one.
    pub fn manifest(&self, name: Option<&str>, limits: &DocumentLimits) -> Result<Received> {
        let what = &self.name;
        let index = self.index(limits)?;
        let fits = |descriptor: &&Descriptor| name.is_none() || descriptor.ref_name.as_deref() == name;
        let mut found: Vec<_> = index.iter().filter(fits).collect();
        // One image of several names.
        found.dedup_by(|a, b| a.digest == b.digest);
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
    pub fn document(&self, descriptor: &Descriptor, limits: &DocumentLimits) -> Result<Vec<u8>> {
        limits.read(descriptor, || self.blob(descriptor))
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
