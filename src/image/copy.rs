//! `keel-image copy`, `push` and `save`: an image from one place to another, byte for byte, so that its digest stays.
//!
//! A docker-archive cannot keep it: what is written to one loses its manifest, and what is read from one gets a new one,
//! with its layers compressed.

use std::collections::HashSet;
use std::io::{self, Read, Write};

use serde_json::json;

use crate::error::{Context, Error, Kind, Result};
use crate::image::cli::{CopyOptions, Format, Global, PushOptions, SaveOptions, Which};
use crate::image::compression::Compression;
use crate::image::destination::{self, Destination, tar_file};
use crate::image::digest::{Algorithm, Digest, Hasher};
use crate::image::limits::{DocumentLimits, Limits};
use crate::image::manifest::{Descriptor, MOST_INDEXES, OCI_MANIFEST, Parts, Received};
use crate::image::pack::compress::{Compressor, Method};
use crate::image::platform::Platform;
use crate::image::reference::{Named, Reference};
use crate::image::registry::push::Pushed;
use crate::image::scratch;
use crate::image::section::Section;
use crate::image::source::{Image, Source};
use crate::image::unpack::LayerLimits;
use crate::image::unpack::decoder::inflate;
use crate::image::write::docker_archive::DockerArchiveWriter;
use crate::image::write::layout::LayoutWriter;

pub fn copy(global: &Global, options: &CopyOptions) -> Result<Vec<u8>> {
    let from = global.reference(&options.source)?;
    let to = destination::find(&options.destination)?;
    let limits = Limits::new(&options.which.limits)?;
    let source = Source::open(&from, &limits.documents, || global.client())?;
    let tag = match &from {
        Reference::Registry(named) => Some(named),
        _ => None,
    };
    transfer(global, &source, &to, tag, &options.which, &limits)
}

/// The source is the store's if it is a name.
pub fn push(global: &Global, options: &PushOptions) -> Result<Vec<u8>> {
    let to = global.named(&options.destination)?;
    let limits = Limits::new(&options.which.limits)?;
    let store;
    let source = match global.reference(&options.source)? {
        Reference::Registry(named) => {
            store = global.store()?;
            Source::Store { store: &store, name: named.to_string() }
        }
        other => Source::open(&other, &limits.documents, || global.client())?,
    };
    transfer(global, &source, &Reference::Registry(to), None, &options.which, &limits)
}

pub fn save(global: &Global, options: &SaveOptions) -> Result<Vec<u8>> {
    let named = global.named(&options.reference)?;
    let limits = Limits::new(&options.which.limits)?;
    let store = global.store()?;
    let name = named.to_string();
    let source = Source::Store { store: &store, name: name.clone() };
    let digest = match options.format {
        Format::Docker => {
            to_docker(global, &source, tar_file(&options.file)?, Some(&named), &options.which, &limits)?
        }
        Format::Oci => {
            // Before a file is begun.
            source.top(&limits.documents)?;
            let writer = LayoutWriter::archive(tar_file(&options.file)?)?;
            let names = (Some(name.clone()), Some(name));
            let to = Destination::Layout { writer, name: names.0, image_name: names.1 };
            copy_to(global, &source, to, &options.which, &limits)?
        }
    };
    // Where the archive itself goes to stdout nothing else does.
    if options.file.as_os_str() == "-" { Ok(Vec::new()) } else { result(global, &digest) }
}

fn transfer(
    global: &Global,
    source: &Source<'_>,
    to: &Reference,
    named: Option<&Named>,
    which: &Which,
    limits: &Limits,
) -> Result<Vec<u8>> {
    let digest = match to {
        Reference::DockerArchive { path, name } => {
            let tag = name.as_deref().map(Named::parse).transpose()?;
            let tar = tar_file(path)?;
            to_docker(global, source, tar, tag.as_ref().or(named), which, limits)?
        }
        to => {
            // What is not there leaves no trace of a destination.
            source.top(&limits.documents)?;
            copy_to(global, source, Destination::open(to, || global.client())?, which, limits)?
        }
    };
    result(global, &digest)
}

/// The digest is that of what the name stands for now.
fn result(global: &Global, digest: &Digest) -> Result<Vec<u8>> {
    Ok(match global.json {
        true => format!("{:#}\n", json!({"digest": digest.to_string()})).into_bytes(),
        false => format!("{digest}\n").into_bytes(),
    })
}

fn copy_to(
    global: &Global,
    source: &Source<'_>,
    mut to: Destination,
    which: &Which,
    limits: &Limits,
) -> Result<Digest> {
    let from_docker = matches!(source, Source::DockerArchive(_));
    let method = which.compression.or_else(|| from_docker.then_some(Method::GZIP));
    let top = match method {
        Some(_) if which.all => {
            return Err(Error::new("--all copies images as they are, and not with another compression")
                .with_way_out("Copy one platform at a time, and leave --all out."));
        }
        Some(method) => recompressed(global, source, &mut to, &which.platform(), method, limits)?,
        None if which.all => source.top(&limits.documents)?,
        None => {
            let found = source.image(&which.platform(), &limits.documents)?.found;
            Received { digest: found.digest, media_type: Some(found.media_type), bytes: found.bytes }
        }
    };
    if method.is_none() {
        parts(global, source, &top, &mut to, &mut HashSet::new(), 0, &limits.documents)?;
    }
    to.finish(&top)?;
    Ok(top.digest)
}

/// Copies all that a manifest or an index refers to.
fn parts(
    global: &Global,
    source: &Source<'_>,
    document: &Received,
    to: &mut Destination,
    done: &mut HashSet<Digest>,
    depth: usize,
    limits: &DocumentLimits,
) -> Result<()> {
    if depth > MOST_INDEXES {
        let message = format!("the image lies deeper than in {MOST_INDEXES} indexes");
        return Err(Error::of_kind(Kind::Limit, message));
    }
    let name = format!("manifest {}", document.digest);
    let parts_of = Parts::of(&document.bytes, document.media_type.as_deref(), limits, &name)?;
    for blob in parts_of.blobs {
        if done.insert(blob.digest.clone()) {
            tell(global, &blob, to.blob(&blob, source)?);
        }
    }
    for child in parts_of.manifests {
        if !done.insert(child.digest.clone()) {
            continue;
        }
        let bytes = source.document(&child, limits).map_err(|error| match error.kind() {
            Kind::NotFound => error.with_way_out(
                "Not all platforms are there. Without --all, or with --platform, one is copied.",
            ),
            _ => error,
        })?;
        let child = Received { digest: child.digest, media_type: Some(child.media_type), bytes };
        parts(global, source, &child, to, done, depth + 1, limits)?;
        to.manifest(&child)?;
    }
    Ok(())
}

/// Copies one image with its layers compressed anew; the manifest that it has now.
fn recompressed(
    global: &Global,
    source: &Source<'_>,
    to: &mut Destination,
    platform: &Platform,
    method: Method,
    limits: &Limits,
) -> Result<Received> {
    let image = source.image(platform, &limits.documents)?;
    let mut layers = Vec::new();
    for (layer, diff_id) in image.found.manifest.layers.iter().zip(&image.config.diff_ids) {
        let descriptor = &layer.descriptor;
        if layer.compression == method.compression {
            tell(global, descriptor, to.blob(descriptor, source)?);
            layers.push(descriptor.clone());
            continue;
        }
        let blob = source.blob(descriptor)?;
        let (made, section) =
            compress(blob, descriptor.size, layer.compression, diff_id, method, &limits.unpack)
                .context(|| format!("layer {}", descriptor.digest))?;
        tell(global, &made, to.made(&made, &section)?);
        layers.push(made);
    }
    let config = &image.found.manifest.config;
    let mut file = scratch::unnamed(&scratch::directory())?;
    io::copy(&mut image.config_bytes.as_slice(), &mut file).context(|| "write the config")?;
    to.made(config, &Section::whole(file)?)?;
    let entry = |descriptor: &Descriptor, media_type: &str| json!({"mediaType": media_type, "digest": descriptor.digest.to_string(), "size": descriptor.size});
    let layers: Vec<_> = layers.iter().map(|layer| entry(layer, method.compression.media_type())).collect();
    let config = entry(config, crate::image::manifest::OCI_CONFIG);
    let document = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    let bytes = document.to_string().into_bytes();
    Ok(Received { digest: Digest::of(&bytes), media_type: Some(OCI_MANIFEST.to_owned()), bytes })
}

/// A layer's blob with another compression, in a file without a name, if it is what its diff_id says.
fn compress(
    blob: impl Read,
    size: u64,
    compression: Compression,
    diff_id: &Digest,
    method: Method,
    limits: &LayerLimits,
) -> Result<(Descriptor, Section)> {
    let out =
        Hashed { file: scratch::unnamed(&scratch::directory())?, hasher: Hasher::new(Algorithm::Sha256) };
    let mut compressor = Compressor::new(out, method)?;
    inflate(blob, size, compression, limits, |bytes| Ok(compressor.write_all(bytes)?))?;
    let (found, Hashed { file, hasher }) = compressor.finish()?;
    if found != *diff_id {
        return Err(Error::of_kind(Kind::Integrity, format!("the diff_id is {found}, not {diff_id}")));
    }
    let section = Section::whole(file)?;
    let descriptor = Descriptor::new(method.compression.media_type(), hasher.finish(), section.size());
    Ok((descriptor, section))
}

struct Hashed {
    file: std::fs::File,
    hasher: Hasher,
}

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn to_docker(
    global: &Global,
    source: &Source<'_>,
    tar: crate::image::write::tar_file::TarFile,
    tag: Option<&Named>,
    which: &Which,
    limits: &Limits,
) -> Result<Digest> {
    if which.all || which.compression.is_some() {
        return Err(Error::new("a docker-archive holds one platform's image, with plain layers")
            .with_way_out("Leave --all and --compression out, or write an oci-archive."));
    }
    let Image { found, config, config_bytes, .. } = source.image(&which.platform(), &limits.documents)?;
    let mut writer = DockerArchiveWriter::new(tar);
    for (layer, diff_id) in found.manifest.layers.iter().zip(&config.diff_ids) {
        if !writer.has(diff_id) {
            let blob = source.blob(&layer.descriptor)?;
            writer.layer(&layer.descriptor, layer.compression, diff_id, blob, &limits.unpack)?;
            tell(global, &layer.descriptor, Pushed::Sent);
        }
    }
    // A tag names it; a digest cannot, for the archive has no manifest.
    let tag =
        tag.filter(|tag| tag.tag.is_some()).map(|tag| Named { digest: None, ..tag.clone() }.to_string());
    writer.finish(&config_bytes, &config.diff_ids, tag.as_deref())?;
    global.say("a docker-archive keeps no manifest: read back, the image has another digest");
    Ok(found.digest)
}

fn tell(global: &Global, blob: &Descriptor, how: Pushed) {
    let how = match how {
        Pushed::Present => "is there",
        Pushed::Mounted => "mounted from another repository",
        Pushed::Sent => "written",
    };
    global.say(&format!("blob {}, {} bytes: {how}", blob.digest, blob.size));
}
