//! Where an image is written to: a registry, or an image layout in a directory or in a tar file. Blobs come first, then
//! the manifests that name them, and then the name of the whole.

use std::io::{Read, copy};
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::image::digest::Verified;
use crate::image::manifest::{Descriptor, OCI_MANIFEST, Received};
use crate::image::reference::{Named, Reference};
use crate::image::registry::Client;
use crate::image::registry::push::Pushed;
use crate::image::scratch;
use crate::image::section::Section;
use crate::image::source::Source;
use crate::image::write::layout::LayoutWriter;
use crate::image::write::tar_file::TarFile;

pub enum Destination {
    Registry { client: Box<Client>, named: Named },
    Layout { writer: LayoutWriter, name: Option<String>, image_name: Option<String> },
}

/// Where a new file goes; `-` is stdout.
pub fn tar_file(path: &Path) -> Result<TarFile> {
    if path.as_os_str() == "-" {
        if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            return Err(Error::new("write the archive to stdout: it is a terminal")
                .with_way_out("Name a file, or redirect it."));
        }
        return TarFile::for_stdout();
    }
    TarFile::at(path)
}

/// What the user wrote. A path that is there is known by what it is.
pub fn find(text: &str) -> Result<Reference> {
    let is_path = text.starts_with(['/', '.']) || text == "-";
    if !is_path {
        return Reference::parse(text);
    }
    Reference::find(text).map_err(|_| {
        Error::new(format!("write to {text}: as what is not said"))
            .with_way_out(format!("Say oci:{text}, oci-archive:{text} or docker-archive:{text}."))
    })
}

impl Destination {
    /// Docker archives have one of their own, [`crate::image::write::docker_archive`].
    pub fn open(reference: &Reference, client: impl FnOnce() -> Result<Client>) -> Result<Self> {
        match reference {
            Reference::Registry(named) => {
                Ok(Self::Registry { client: Box::new(client()?), named: named.clone() })
            }
            Reference::Layout { path, name } => {
                let writer = LayoutWriter::directory(path)?;
                Ok(Self::Layout { writer, name: name.clone(), image_name: None })
            }
            Reference::OciArchive { path, name } => {
                let writer = LayoutWriter::archive(tar_file(path)?)?;
                Ok(Self::Layout { writer, name: name.clone(), image_name: None })
            }
            Reference::DockerArchive { .. } => {
                Err(Error::new(format!("write {reference}: it holds one image, and no manifest")))
            }
        }
    }

    /// Puts a blob of `source` there. What is there already is not read.
    pub fn blob(&mut self, descriptor: &Descriptor, source: &Source<'_>) -> Result<Pushed> {
        match self {
            Self::Registry { client, named } => {
                let mount_from = match source {
                    Source::Registry { named: from, .. } if from.repository != named.repository => Some(from),
                    _ => None,
                };
                client.push_blob(named, &descriptor.digest, mount_from, || local(descriptor, source))
            }
            Self::Layout { writer, .. } if writer.has(descriptor) => Ok(Pushed::Present),
            Self::Layout { writer, .. } => match &descriptor.data {
                Some(data) => writer.blob(descriptor, verified(descriptor, data.as_slice())),
                None => writer.blob(descriptor, source.blob(descriptor)?),
            }
            .map(|()| Pushed::Sent),
        }
    }

    /// The same with a blob that was made here.
    pub fn made(&mut self, descriptor: &Descriptor, section: &Section) -> Result<Pushed> {
        match self {
            Self::Registry { client, named } => {
                client.push_blob(named, &descriptor.digest, None, || Ok(section.clone()))
            }
            Self::Layout { writer, .. } if writer.has(descriptor) => Ok(Pushed::Present),
            Self::Layout { writer, .. } => {
                writer.blob(descriptor, verified(descriptor, section.reader())).map(|()| Pushed::Sent)
            }
        }
    }

    /// Puts a manifest there that others refer to.
    pub fn manifest(&mut self, manifest: &Received) -> Result<()> {
        match self {
            Self::Registry { client, named } => {
                let named = Named { tag: None, digest: Some(manifest.digest.clone()), ..named.clone() };
                client.push_manifest(&named, media_type(manifest), &manifest.bytes).map(drop)
            }
            Self::Layout { writer, .. } => {
                let descriptor = descriptor(manifest);
                match writer.has(&descriptor) {
                    true => Ok(()),
                    false => writer.blob(&descriptor, verified(&descriptor, manifest.bytes.as_slice())),
                }
            }
        }
    }

    /// Puts the manifest there that the name stands for: now the image exists.
    pub fn finish(mut self, top: &Received) -> Result<()> {
        if let Self::Layout { .. } = &self {
            self.manifest(top)?;
        }
        match self {
            Self::Registry { client, named } => {
                client.push_manifest(&named, media_type(top), &top.bytes).map(drop)
            }
            Self::Layout { writer, name, image_name } => {
                writer.finish(&descriptor(top), name.as_deref(), image_name.as_deref())
            }
        }
    }
}

/// A blob in a file on this machine, verified: an upload may have to begin again.
fn local(descriptor: &Descriptor, source: &Source<'_>) -> Result<Section> {
    if descriptor.data.is_none()
        && let Some(section) = source.section(&descriptor.digest)?
    {
        // The registry would refuse what is damaged, but not say which of the two it is.
        copy(&mut verified(descriptor, section.reader()), &mut std::io::sink())
            .context(|| source.to_string())?;
        return Ok(section);
    }
    let mut file = scratch::unnamed(&scratch::directory())?;
    match &descriptor.data {
        Some(data) => copy(&mut data.as_slice(), &mut file),
        None => copy(&mut source.blob(descriptor)?, &mut file),
    }
    .context(|| format!("fetch blob {}", descriptor.digest))?;
    Section::whole(file)
}

fn verified<R: Read>(descriptor: &Descriptor, from: R) -> Verified<R> {
    Verified::new(from, &descriptor.digest, descriptor.size, format!("blob {}", descriptor.digest))
}

fn media_type(manifest: &Received) -> &str {
    manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST)
}

pub fn descriptor(manifest: &Received) -> Descriptor {
    Descriptor::new(media_type(manifest), manifest.digest.clone(), manifest.bytes.len() as u64)
}
