//! `oci:PATH`: a directory with index.json and blobs. What is read from it is held to its digests, as from a registry.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::{Digest, Verified};
use crate::image::manifest::{Descriptor, Document, Limits, Received};

pub struct Layout {
    path: PathBuf,
}

impl Layout {
    pub fn open(path: &Path) -> Result<Self> {
        let version = path.join("oci-layout");
        let what = || format!("open image layout {}", path.display());
        let bytes = read_file(&version, 4096).context(what)?;
        let version: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        let version = version.as_ref().and_then(|value| value["imageLayoutVersion"].as_str());
        match version {
            Some("1.0.0") => Ok(Self { path: path.to_owned() }),
            version => {
                let found = version.unwrap_or("none");
                Err(Error::new(format!("{}: the layout's version must be 1.0.0, not {found:?}", what())))
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest or index of a name, or the only one.
    pub fn manifest(&self, name: Option<&str>, limits: &Limits) -> Result<Received> {
        let what = format!("image layout {}", self.path.display());
        let bytes = read_file(&self.path.join("index.json"), limits.manifest).context(|| what.clone())?;
        let index = match Document::parse(&bytes, None, limits, &format!("{what}: index.json"))? {
            Document::Index(index) => index,
            Document::Manifest(_) => {
                return Err(Error::of_kind(Kind::Integrity, format!("{what}: index.json is no index")));
            }
        };
        let fits = |descriptor: &&Descriptor| name.is_none() || descriptor.ref_name.as_deref() == name;
        let found: Vec<_> = index.iter().filter(fits).collect();
        let names: Vec<_> = index.iter().filter_map(|descriptor| descriptor.ref_name.as_deref()).collect();
        match (found[..].first(), found.len(), name) {
            (Some(descriptor), 1, _) => Ok(Received {
                digest: descriptor.digest.clone(),
                media_type: Some(descriptor.media_type.clone()),
                bytes: self.document(descriptor, limits)?,
            }),
            (Some(_), count, None) => {
                let (path, names) = (self.path.display(), names.join(", "));
                Err(Error::new(format!("{what}: there are {count} images"))
                    .with_way_out(format!("Name one, as oci:{path}:TAG, of: {names}.")))
            }
            (Some(_), _, Some(name)) => {
                Err(Error::new(format!("{what}: there is more than one image {name:?}")))
            }
            (None, _, name) => {
                let name = name.map_or(String::new(), |name| format!(" {name:?}"));
                let message = format!("{what}: there is no image{name}");
                Err(Error::of_kind(Kind::NotFound, message)
                    .with_way_out(format!("There are: {}.", names.join(", "))))
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
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Verified<File>> {
        let path = self.blob_path(&descriptor.digest);
        let what = || format!("open blob {}", path.display());
        let file = open_regular(&path).context(what)?;
        Ok(Verified::new(file, &descriptor.digest, descriptor.size, format!("blob {}", path.display())))
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs").join(digest.algorithm().name()).join(digest.hex())
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

fn read_file(path: &Path, most: u64) -> Result<Vec<u8>> {
    let what = || format!("read {}", path.display());
    let mut bytes = Vec::new();
    open_regular(path).context(what)?.take(most + 1).read_to_end(&mut bytes).context(what)?;
    if bytes.len() as u64 > most {
        return Err(Error::of_kind(Kind::Limit, format!("{}: it is larger than {most} bytes", what())));
    }
    Ok(bytes)
}
