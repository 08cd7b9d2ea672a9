//! `images/`: the manifests whose image is here, with its config and all of its layers. One that no name stands for any
//! more stays until a prune.

use serde_json::json;

use super::Store;
use super::refs::{from_json, to_json};
use crate::error::{Context, Result};
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub manifest: Descriptor,
    /// `linux/amd64`.
    pub platform: String,
    /// Of config and layers as they came, in bytes.
    pub size: u64,
    /// When the config says that it was made; empty if it does not.
    pub created: String,
}

impl Store {
    /// Its blobs are here before.
    pub fn put_image(&self, image: &Image) -> Result<()> {
        let Image { manifest, platform, size, created } = image;
        let record =
            json!({"manifest": to_json(manifest), "platform": platform, "size": size, "created": created});
        self.put_record("images", &file(&manifest.digest), &record)
    }

    pub fn has_image(&self, manifest: &Digest) -> Result<bool> {
        let path = self.path.join("images").join(file(manifest));
        path.try_exists().context(|| format!("stat {}", path.display()))
    }

    pub fn images(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for file in self.names("images")? {
            let Some(record) = self.get_record("images", &file)? else { continue };
            let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            if let Some(manifest) = from_json(&record["manifest"]) {
                let size = record["size"].as_u64().unwrap_or(0);
                images.push(Image { manifest, platform: text("platform"), size, created: text("created") });
            }
        }
        Ok(images)
    }

    /// Whether it was there.
    pub fn remove_image(&self, manifest: &Digest) -> Result<bool> {
        self.remove_record("images", &file(manifest))
    }
}

fn file(manifest: &Digest) -> String {
    manifest.hex().to_owned()
}
