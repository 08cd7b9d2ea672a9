//! What `docker load` reads: configs, plain layers, and manifest.json. The format has no place for the manifest of a
//! registry, nor for a compressed layer's digest: what comes back from it has another one.

use std::collections::HashMap;
use std::io::{Read, Write};

use serde_json::json;

use super::tar_file::TarFile;
use crate::error::{Context, Error, Kind, Result};
use crate::image::compression::Compression;
use crate::image::digest::{Digest, Hasher, Verified};
use crate::image::docker_archive::MANIFEST;
use crate::image::manifest::Descriptor;
use crate::image::unpack::LayerLimits;
use crate::image::unpack::decoder::inflate;

pub struct DockerArchiveWriter {
    tar: TarFile,
    /// Where a layer is.
    there: HashMap<Digest, String>,
}

impl DockerArchiveWriter {
    pub fn new(tar: TarFile) -> Self {
        Self { tar, there: HashMap::new() }
    }

    pub fn has(&self, diff_id: &Digest) -> bool {
        self.there.contains_key(diff_id)
    }

    /// Stores what the blob holds, if it is what the config says.
    pub fn layer(
        &mut self,
        descriptor: &Descriptor,
        compression: Compression,
        diff_id: &Digest,
        blob: Verified<impl Read>,
        limits: &LayerLimits,
    ) -> Result<()> {
        let what = || format!("layer {}", descriptor.digest);
        let malformed = |why: String| Error::of_kind(Kind::Integrity, why).because(what());
        let mut hasher = Hasher::new(diff_id.algorithm());
        let mut body = self.tar.body();
        inflate(blob, descriptor.size, compression, limits, |bytes| {
            hasher.update(bytes);
            Ok(body.write_all(bytes)?)
        })
        .context(what)?;
        let found = hasher.finish();
        if found != *diff_id {
            return Err(malformed(format!("the diff_id is {found}, not {diff_id}")));
        }
        let path = format!("{}.tar", diff_id.hex());
        if path.len() > 100 {
            return Err(malformed("an archive has sha256 only".to_owned()));
        }
        body.finish(&path)?;
        self.there.insert(diff_id.clone(), path);
        Ok(())
    }

    /// Makes an image of a config and its layers, all of which are there.
    pub fn finish(mut self, config: &[u8], diff_ids: &[Digest], tag: Option<&str>) -> Result<()> {
        let path = format!("{}.json", Digest::of(config).hex());
        self.tar.file(&path, config)?;
        let layers: Vec<_> = diff_ids.iter().filter_map(|diff_id| self.there.get(diff_id)).collect();
        let tags: Vec<_> = tag.into_iter().collect();
        let manifest = json!([{"Config": path, "RepoTags": tags, "Layers": layers}]);
        self.tar.file(MANIFEST, manifest.to_string().as_bytes())?;
        self.tar.finish()
    }
}
