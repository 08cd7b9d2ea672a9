//! `keel-image prune`: deletes what no name and no bundle stands on, once no other command works with the store. What is
//! needed is read first, all of it: whatever cannot be, for another reason than that it is gone or damaged, ends the
//! command before anything is deleted.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use indicatif::HumanBytes;
use serde_json::json;

use crate::error::{Context, Result};
use crate::image::cli::Global;
use crate::image::digest::Digest;
use crate::image::limits::DocumentLimits;
use crate::image::ls::{digests_below, is_no_use};
use crate::image::manifest::{Config, Descriptor, Document, Manifest, OCI_MANIFEST};
use crate::image::mounted::Mounted;
use crate::image::progress::Progress;
use crate::image::store::Store;
use crate::image::store::layers::{chain_name, layer_name};

/// What must stay.
#[derive(Default)]
struct Kept {
    manifests: HashSet<Digest>,
    blobs: HashSet<Digest>,
    /// Without what tells how they were unpacked.
    layers: HashSet<String>,
}

pub fn prune(global: &Global) -> Result<Vec<u8>> {
    let store = Store::open_alone(Some(&global.store_path()?))?;
    let progress = global.progress();
    let mut kept = Kept::default();
    let mut gone = Vec::new();
    for bundle in store.bundles()? {
        if bundle.is_gone() {
            gone.push(bundle.path);
            continue;
        }
        kept.layers.extend(bundle.layers.iter().map(|name| base(name).to_owned()));
        kept.image(&store, &bundle.manifest, &progress)?;
    }
    for name in store.refs()? {
        for digest in digests_below(&store, &name.manifest, 0)? {
            kept.blobs.insert(digest.clone());
            if store.has_image(&digest)? {
                // An index may lie about it, and the image be another name's.
                let size = store.blob_size(&digest)?.unwrap_or(0);
                kept.image(&store, &Descriptor::new(OCI_MANIFEST, digest, size), &progress)?;
            }
        }
    }
    let mounted = Mounted::read()?;
    let bundles = gone.len();
    gone.iter().try_for_each(|path| store.remove_bundle(path).map(drop))?;
    let (mut images, mut layers, mut blobs, mut bytes) = (0, 0, 0, 0);
    for image in store.images()? {
        if !kept.manifests.contains(&image.manifest.digest) {
            store.remove_image(&image.manifest.digest)?;
            images += 1;
        }
    }
    for name in store.layers()? {
        if !kept.layers.contains(base(&name)) && !store.is_mounted(&name, &mounted) {
            bytes += size_of_tree(&store.path().join("layers").join(&name)).unwrap_or(0);
            store.remove_layer(&name)?;
            layers += 1;
        }
    }
    for (digest, size) in store.blobs()? {
        if !kept.blobs.contains(&digest) {
            let path = store.blob_path(&digest);
            fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
            blobs += 1;
            bytes += size;
        }
    }
    store.sweep()?;
    if global.json {
        let text =
            json!({"images": images, "layers": layers, "blobs": blobs, "bundles": bundles, "bytes": bytes});
        return Ok(format!("{text:#}\n").into_bytes());
    }
    let bytes = HumanBytes(bytes);
    Ok(format!("{images} images, {layers} layers, {blobs} blobs, {bytes}\n").into_bytes())
}

impl Kept {
    /// What is gone or damaged needs nothing. All else that cannot be read may need anything.
    fn image(&mut self, store: &Store, descriptor: &Descriptor, progress: &Progress) -> Result<()> {
        if !self.manifests.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        self.blobs.insert(descriptor.digest.clone());
        let (manifest, config) = match read(store, descriptor) {
            Err(error) if is_no_use(&error) => {
                progress.say(&error.to_string());
                return Ok(());
            }
            read => read?,
        };
        self.blobs.insert(manifest.config.digest.clone());
        self.blobs.extend(manifest.layers.into_iter().map(|layer| layer.descriptor.digest));
        self.layers.extend(config.diff_ids.iter().map(|diff_id| layer_name(diff_id, "")));
        self.layers.insert(chain_name(&config.diff_ids, ""));
        Ok(())
    }
}

/// The manifest and the config of an image in the store.
pub fn read(store: &Store, descriptor: &Descriptor) -> Result<(Manifest, Config)> {
    let limits = DocumentLimits::NONE;
    let name = format!("manifest {}", descriptor.digest);
    let bytes = store.document(descriptor, &limits)?;
    let Document::Manifest(manifest) = Document::parse(&bytes, None, &limits, &name)? else {
        return Err(crate::error::Error::of_kind(
            crate::error::Kind::Integrity,
            format!("{name}: it is an index"),
        ));
    };
    let config = Config::parse(&store.document(&manifest.config, &limits)?, &manifest)?;
    Ok((*manifest, config))
}

/// A layer's name without the variant: `<hex>` or `chain-<hex>`.
fn base(name: &str) -> &str {
    let start = if name.starts_with("chain-") { "chain-".len() } else { 0 };
    name[start..].find('-').map_or(name, |at| &name[..start + at])
}

/// Bytes on the disk.
fn size_of_tree(path: &Path) -> std::io::Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    let mut sum = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            sum += size_of_tree(&entry?.path())?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_one_name_however_it_was_unpacked() {
        for (name, expected) in
            [("ab", "ab"), ("ab-devices", "ab"), ("chain-ab", "chain-ab"), ("chain-ab-devices", "chain-ab")]
        {
            assert_eq!(base(name), expected);
        }
    }
}
