//! `docker-archive:FILE[:tag]`: what `docker save` writes, a tar file with manifest.json, configs and layers.
//!
//! There is no manifest of a registry in it, so that one is made here, always the same of the same archive: the config
//! as it is, the layers as they lie in the archive. A plain layer's digest is its diff_id, which the config has.
//!
//! Docker before 25 has a directory for each layer, with links where a layer is there already; from 25 on the archive
//! is an image layout besides. In both, manifest.json says what is where.
//! <https://github.com/moby/moby/blob/master/image/spec/spec.md>

use std::collections::HashMap;
use std::io::Read;

use serde::de::IgnoredAny;
use serde_json::json;

use crate::error::{Context, Error, Kind, Result};
use crate::image::archive::Archive;
use crate::image::compression::Compression;
use crate::image::digest::{Algorithm, Digest, Hasher};
use crate::image::limits::DocumentLimits;
use crate::image::manifest::{self, OCI_CONFIG, OCI_MANIFEST, Received};
use crate::image::reference::Named;
use crate::image::section::Section;

pub const MANIFEST: &str = "manifest.json";

/// One image of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As in the archive: `alpine:3.20`.
    pub tags: Vec<String>,
    config: String,
    layers: Vec<String>,
}

/// An image as a registry would have it.
pub struct DockerArchive {
    name: String,
    manifest: Received,
    config: Vec<u8>,
    layers: HashMap<Digest, Section>,
}

/// What manifest.json lists.
pub fn images(archive: &Archive, limits: &DocumentLimits) -> Result<Vec<Image>> {
    let name = format!("{}: {MANIFEST}", archive.name());
    let bytes = archive.find(MANIFEST).and_then(|section| section.read(limits.manifest));
    let bytes = bytes.context(|| format!("read {name}"))?;
    let is_json = serde_json::from_slice::<IgnoredAny>(&bytes);
    is_json.map_err(|error| Error::of_kind(Kind::Integrity, format!("{name}: {error}")))?;
    // A list has no pointers that begin at an object.
    let wrapped = [br#"{"manifest.json":"#.as_slice(), &bytes, b"}"].concat();
    let images = manifest::read(&wrapped, archive.name(), |root| {
        let images = root.objects(MANIFEST).into_iter().map(|image| {
            let strings = |key| image.strings(key).into_iter().map(|(text, _)| text.to_owned()).collect();
            let config = image.required_string("Config").unwrap_or_default().to_owned();
            Image { tags: strings("RepoTags"), config, layers: strings("Layers") }
        });
        Ok(Some(images.collect::<Vec<_>>()))
    })?;
    let most = images.iter().map(|image| image.layers.len()).max().unwrap_or_default();
    if most > limits.layers {
        let message = format!("{name}: {most} layers are more than the {} that are let pass", limits.layers);
        return Err(Error::of_kind(Kind::Limit, message));
    }
    Ok(images)
}

/// The image with a tag, or the only one.
pub fn select<'a>(archive: &Archive, images: &'a [Image], tag: Option<&str>) -> Result<&'a Image> {
    let full = |tag: &str| Named::parse(tag).map(|named| named.to_string()).ok();
    let same = |theirs: &String| {
        tag.is_some_and(|tag| theirs == tag || full(tag).is_some_and(|tag| full(theirs) == Some(tag)))
    };
    let mut found = images.iter().filter(|image| tag.is_none() || image.tags.iter().any(same));
    let there: Vec<_> = images.iter().flat_map(|image| &image.tags).map(String::as_str).collect();
    let way_out = format!("There are: {}.", there.join(", "));
    match (found.next(), found.next(), tag) {
        (Some(image), None, _) => Ok(image),
        (Some(_), Some(_), _) => {
            let message = format!("{}: there are {} images", archive.name(), images.len());
            Err(Error::new(message).with_way_out(format!("Name one, as FILE:TAG. {way_out}")))
        }
        (None, _, tag) => {
            let tag = tag.map_or(String::new(), |tag| format!(" {tag:?}"));
            let message = format!("{}: there is no image{tag}", archive.name());
            Err(Error::of_kind(Kind::NotFound, message).with_way_out(way_out))
        }
    }
}

impl DockerArchive {
    pub fn open(archive: &Archive, tag: Option<&str>, limits: &DocumentLimits) -> Result<Self> {
        let images = images(archive, limits)?;
        Self::new(archive, select(archive, &images, tag)?, limits)
    }

    pub fn new(archive: &Archive, image: &Image, limits: &DocumentLimits) -> Result<Self> {
        let name = archive.name().to_owned();
        let config = archive.find(&image.config).and_then(|section| section.read(limits.config));
        let config = config.context(|| format!("read config of {name}"))?;
        let digest = Digest::of(&config);
        let diff_ids = diff_ids(&config, image.layers.len(), &format!("{name}: config {}", image.config))?;
        let mut layers = HashMap::new();
        let mut described = Vec::new();
        for (path, diff_id) in image.layers.iter().zip(diff_ids) {
            let section = archive.find(path).context(|| format!("read layer of {name}"))?;
            let mut start = [0; 4];
            let read = section.reader().read(&mut start).context(|| format!("read {path} of {name}"))?;
            let compression = Compression::of_blob(&start[..read]);
            let (suffix, digest) = match compression {
                Compression::None => ("", diff_id),
                Compression::Gzip => ("+gzip", hash(section.reader())?),
                Compression::Zstd => ("+zstd", hash(section.reader())?),
            };
            described.push(json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                "digest": digest.to_string(),
                "size": section.size(),
            }));
            layers.insert(digest, section);
        }
        let document = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest.to_string(), "size": config.len()},
            "layers": described,
        });
        let bytes = document.to_string().into_bytes();
        let media_type = Some(OCI_MANIFEST.to_owned());
        let manifest = Received { digest: Digest::of(&bytes), media_type, bytes };
        Ok(Self { name, manifest, config, layers })
    }

    /// What it is called in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The manifest as it is made of the archive.
    pub fn manifest(&self) -> &Received {
        &self.manifest
    }

    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// Where a layer is; nothing about it is verified.
    pub fn section(&self, digest: &Digest) -> Result<Section> {
        let missing = || Error::of_kind(Kind::NotFound, format!("{}: there is no layer {digest}", self.name));
        self.layers.get(digest).cloned().ok_or_else(missing)
    }
}

fn diff_ids(config: &[u8], layers: usize, name: &str) -> Result<Vec<Digest>> {
    manifest::read(config, name, |root| {
        let rootfs = root.object_or_empty("rootfs");
        let ids = rootfs.strings("diff_ids");
        if ids.len() != layers {
            let found = ids.len();
            rootfs.problem("diff_ids", format_args!("must be as many as layers, {layers}, and are {found}"));
        }
        let parsed = ids.into_iter().filter_map(|(text, field)| {
            Digest::parse(text).map_err(|why| rootfs.report().problem(field, why)).ok()
        });
        Ok(Some(parsed.collect()))
    })
}

fn hash(mut reader: impl Read) -> Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}
