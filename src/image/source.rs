//! Where an image is read from: one way to its documents and to its blobs, whatever it lies in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use crate::error::{Context, Error, Kind, Result};
use crate::image::archive::Archive;
use crate::image::digest::{Digest, Verified};
use crate::image::docker_archive::DockerArchive;
use crate::image::layout::Layout;
use crate::image::limits::DocumentLimits;
use crate::image::manifest::{Config, Descriptor, Found, Received, resolve};
use crate::image::platform::Platform;
use crate::image::reference::{Named, Reference};
use crate::image::registry::Client;
use crate::image::registry::blob::Blob;
use crate::image::scratch;
use crate::image::section::{Reader, Section};
use crate::image::store::Store;

pub enum Source<'s> {
    Registry {
        client: Box<Client>,
        named: Named,
    },
    /// In a directory, or in a tar file.
    Layout {
        layout: Layout,
        name: Option<String>,
    },
    DockerArchive(Box<DockerArchive>),
    Store {
        store: &'s Store,
        name: String,
    },
}

/// An image for one platform: all of it but its layers.
#[derive(Debug)]
pub struct Image {
    /// What the name stands for: the manifest itself, or an index above it.
    pub top: Received,
    pub found: Found,
    /// As it came.
    pub config_bytes: Vec<u8>,
    pub config: Config,
}

impl Source<'_> {
    /// Where `reference` says; the client is made for a registry's only.
    pub fn open(
        reference: &Reference,
        limits: &DocumentLimits,
        client: impl FnOnce() -> Result<Client>,
    ) -> Result<Self> {
        match reference {
            Reference::Registry(named) => {
                Ok(Self::Registry { client: Box::new(client()?), named: named.clone() })
            }
            Reference::Layout { path, name } => {
                Ok(Self::Layout { layout: Layout::open(path)?, name: name.clone() })
            }
            Reference::OciArchive { path, name } => {
                let layout = Layout::of_archive(Archive::open(path, &scratch::directory())?)?;
                Ok(Self::Layout { layout, name: name.clone() })
            }
            Reference::DockerArchive { path, name } => {
                let image = DockerArchive::open(
                    &Archive::open(path, &scratch::directory())?,
                    name.as_deref(),
                    limits,
                )?;
                Ok(Self::DockerArchive(Box::new(image)))
            }
        }
    }

    /// The manifest or index that the name stands for.
    pub fn top(&self, limits: &DocumentLimits) -> Result<Received> {
        match self {
            Self::Registry { client, named } => client.manifest(named, limits),
            Self::Layout { layout, name } => layout.manifest(name.as_deref(), limits),
            Self::DockerArchive(image) => Ok(image.manifest().clone()),
            Self::Store { store, name } => {
                let Some(descriptor) = store.get_ref(name)? else {
                    let store = store.path().display();
                    return Err(Error::of_kind(
                        Kind::NotFound,
                        format!("{name}: store {store} has no such image"),
                    )
                    .with_way_out(format!("Fetch it: keel-image pull {name}")));
                };
                let bytes = store.document(&descriptor, limits).context(|| name.clone())?;
                Ok(Received { digest: descriptor.digest, media_type: Some(descriptor.media_type), bytes })
            }
        }
    }

    /// A manifest, index or config, verified.
    pub fn document(&self, descriptor: &Descriptor, limits: &DocumentLimits) -> Result<Vec<u8>> {
        if let Some(data) = &descriptor.data {
            return Ok(data.clone());
        }
        match self {
            Self::Registry { client, named } => {
                let named = Named { digest: Some(descriptor.digest.clone()), ..named.clone() };
                let received = client.manifest(&named, limits)?;
                if received.bytes.len() as u64 != descriptor.size {
                    let (length, size) = (received.bytes.len(), descriptor.size);
                    let message =
                        format!("manifest {}: it has {length} bytes, not {size}", descriptor.digest);
                    return Err(Error::of_kind(Kind::Integrity, message));
                }
                Ok(received.bytes)
            }
            Self::Layout { layout, .. } => layout.document(descriptor, limits),
            Self::DockerArchive(image) => Ok(image.config().to_vec()),
            Self::Store { store, .. } => store.document(descriptor, limits),
        }
    }

    /// The image for a platform, with its config.
    pub fn image(&self, platform: &Platform, limits: &DocumentLimits) -> Result<Image> {
        let top = self.top(limits)?;
        let found = resolve(top.clone(), platform, limits, |descriptor| self.document(descriptor, limits))
            .context(|| self.to_string())?;
        let descriptor = &found.manifest.config;
        let config_bytes = match self {
            // Its registry has it among the blobs, not among the manifests.
            Self::Registry { client, named } => client.config(named, &found.manifest, limits)?,
            _ if descriptor.size > limits.config => {
                let message =
                    format!("config {}: it is larger than {} bytes", descriptor.digest, limits.config);
                return Err(Error::of_kind(Kind::Limit, message));
            }
            _ => self.document(descriptor, limits)?,
        };
        let config = Config::parse(&config_bytes, &found.manifest).context(|| self.to_string())?;
        Ok(Image { top, found, config_bytes, config })
    }

    /// A blob's bytes, which count when the stream has come to its end. [`Verified::into_inner`] is for who looks at
    /// size and digest himself.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Verified<Stream<'_>>> {
        let stream = match self {
            Self::Registry { client, named } => {
                Stream::Registry(Box::new(client.blob(named, descriptor)?.into_inner()))
            }
            Self::Layout { layout, .. } => Stream::Part(layout.section(&descriptor.digest)?.reader()),
            Self::DockerArchive(image) => Stream::Part(image.section(&descriptor.digest)?.reader()),
            Self::Store { store, .. } => Stream::File(store.blob(descriptor)?.into_inner()),
        };
        Ok(Verified::new(stream, &descriptor.digest, descriptor.size, format!("blob {}", descriptor.digest)))
    }

    /// Where a blob is on this machine; None if it is not. Nothing about it is verified.
    pub fn section(&self, digest: &Digest) -> Result<Option<Section>> {
        match self {
            Self::Registry { .. } => Ok(None),
            Self::Layout { layout, .. } => layout.section(digest).map(Some),
            Self::DockerArchive(image) => image.section(digest).map(Some),
            Self::Store { store, .. } => {
                let path = store.blob_path(digest);
                let file = File::open(&path).context(|| format!("open blob {}", path.display()))?;
                Section::whole(file).map(Some)
            }
        }
    }
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { named, .. } => named.fmt(f),
            Self::Layout { layout, .. } => f.write_str(&layout.reference()),
            Self::DockerArchive(image) => f.write_str(image.name()),
            Self::Store { name, .. } => f.write_str(name),
        }
    }
}

/// Bytes on their way in.
pub enum Stream<'a> {
    Registry(Box<Blob<'a>>),
    File(File),
    Part(Reader),
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Registry(blob) => blob.read(buffer),
            Self::File(file) => file.read(buffer),
            Self::Part(part) => part.read(buffer),
        }
    }
}
