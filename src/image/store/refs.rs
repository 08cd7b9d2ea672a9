//! `refs/`: what a name stands for, a manifest or an index. A file is called by the name's SHA-256, since a name may be
//! longer than a file's can be; the name itself is in it.

use serde_json::{Value, json};

use super::Store;
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ref {
    /// In full, `docker.io/library/alpine:latest`.
    pub name: String,
    pub manifest: Descriptor,
}

impl Store {
    /// Its blobs are here before.
    pub fn put_ref(&self, name: &str, manifest: &Descriptor) -> Result<()> {
        self.put_record("refs", &file(name), &json!({"name": name, "manifest": to_json(manifest)}))
    }

    /// The same for an image that is nowhere else: once this is back, the disk has all of it. The name comes after what
    /// it stands for, so that a crash does not take away what had it before.
    pub fn put_ref_durably(&self, name: &str, manifest: &Descriptor) -> Result<()> {
        self.sync_all()?;
        self.put_ref(name, manifest)?;
        self.sync_all()
    }

    pub fn get_ref(&self, name: &str) -> Result<Option<Descriptor>> {
        Ok(self.get_record("refs", &file(name))?.and_then(|record| from_json(&record["manifest"])))
    }

    /// By their names; one that cannot be read is an error, since nobody knows what it stands for.
    pub fn refs(&self) -> Result<Vec<Ref>> {
        let mut refs = Vec::new();
        for file in self.names("refs")? {
            let read = self.get_record("refs", &file)?.and_then(|record| {
                let name = record["name"].as_str()?.to_owned();
                Some(Ref { name, manifest: from_json(&record["manifest"])? })
            });
            refs.push(read.ok_or_else(|| {
                let path = self.path.join("refs").join(&file);
                Error::new(format!("read {}: it is no name of an image", path.display())).with_way_out(
                    "After a crash that is possible: pull the image that is missing again, or remove the file.",
                )
            })?);
        }
        refs.sort_by(|a: &Ref, b| a.name.cmp(&b.name));
        Ok(refs)
    }

    /// Whether it was there.
    pub fn remove_ref(&self, name: &str) -> Result<bool> {
        self.remove_record("refs", &file(name))
    }
}

fn file(name: &str) -> String {
    Digest::of(name.as_bytes()).hex().to_owned()
}

pub(super) fn to_json(descriptor: &Descriptor) -> Value {
    let Descriptor { media_type, digest, size, .. } = descriptor;
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

pub(super) fn from_json(value: &Value) -> Option<Descriptor> {
    Some(Descriptor::new(
        value["mediaType"].as_str()?,
        Digest::parse(value["digest"].as_str()?).ok()?,
        value["size"].as_u64()?,
    ))
}
