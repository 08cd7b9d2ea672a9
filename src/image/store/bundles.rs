//! `bundles/`: the bundles that were made from the store, so that a prune leaves them what they stand on. A file is
//! called by the SHA-256 of the bundle's path.
//!
//! A bundle is gone when its path is, unless that lies on a file system which is not mounted now.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Store;
use super::refs::{from_json, to_json};
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Absolute, without links.
    pub path: PathBuf,
    /// Where its file system was mounted.
    pub(super) mount_point: PathBuf,
    /// What it was made from, in full.
    pub reference: String,
    pub manifest: Descriptor,
    /// Of the store's layers, the topmost first; empty if it has its files for itself.
    pub layers: Vec<String>,
    /// Its root is mounted on the host.
    pub mounted: bool,
}

impl Bundle {
    /// For the directory `path`, which exists.
    pub fn new(path: &Path, reference: String, manifest: Descriptor) -> Result<Self> {
        let what = || format!("find bundle {}", path.display());
        let path = path.canonicalize().context(what)?;
        if path.to_str().is_none() {
            return Err(Error::new(format!("{}: the path must be UTF-8", what())));
        }
        let mount_point = mount_point(&path).context(what)?;
        Ok(Self { path, mount_point, reference, manifest, layers: Vec::new(), mounted: false })
    }

    /// The same under another name in its directory.
    pub fn named(&self, path: &Path) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// Whether it is no more. A path that cannot be looked at, on a disk with an error for one, may be a bundle's.
    pub fn is_gone(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            _ => return false,
        }
        let ancestor = self.path.ancestors().find(|path| path.exists());
        ancestor.and_then(|path| mount_point(path).ok()).is_some_and(|found| found == self.mount_point)
    }
}

impl Store {
    pub fn put_bundle(&self, bundle: &Bundle) -> Result<()> {
        let Bundle { path, mount_point, reference, manifest, layers, mounted } = bundle;
        let record = json!({"path": path, "mountPoint": mount_point, "reference": reference,
            "manifest": to_json(manifest), "layers": layers, "mounted": mounted});
        self.put_record("bundles", &file(path), &record)
    }

    /// The record of the bundle at a path without links.
    pub fn get_bundle(&self, path: &Path) -> Result<Option<Bundle>> {
        Ok(self.get_record("bundles", &file(path))?.and_then(|record| read(&record)))
    }

    /// All of them; one that cannot be read is an error, since nobody knows what it needs.
    pub fn bundles(&self) -> Result<Vec<Bundle>> {
        let mut bundles = Vec::new();
        for file in self.names("bundles")? {
            let bundle = self.get_record("bundles", &file)?.and_then(|record| read(&record));
            bundles.push(bundle.ok_or_else(|| {
                let path = self.path.join("bundles").join(&file);
                Error::new(format!("read {}: it is no record of a bundle", path.display()))
                    .with_way_out("After a crash that is possible: make the bundle anew, or remove the file.")
            })?);
        }
        bundles.sort_by(|a: &Bundle, b| a.path.cmp(&b.path));
        Ok(bundles)
    }

    /// Whether it was there.
    pub fn remove_bundle(&self, path: &Path) -> Result<bool> {
        self.remove_record("bundles", &file(path))
    }
}

fn file(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    Digest::of(path.as_os_str().as_bytes()).hex().to_owned()
}

fn read(record: &Value) -> Option<Bundle> {
    let text = |key: &str| Some(record[key].as_str()?.to_owned());
    let layers = record["layers"].as_array()?.iter().map(|name| Some(name.as_str()?.to_owned()));
    Some(Bundle {
        path: text("path")?.into(),
        mount_point: text("mountPoint")?.into(),
        reference: text("reference")?,
        manifest: from_json(&record["manifest"])?,
        layers: layers.collect::<Option<_>>()?,
        mounted: record["mounted"].as_bool()?,
    })
}

/// The highest directory on the way up from `path` that lies on its device.
fn mount_point(path: &Path) -> std::io::Result<PathBuf> {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    let own = device(path)?;
    let mut top = path;
    for ancestor in path.ancestors() {
        if device(ancestor)? != own {
            break;
        }
        top = ancestor;
    }
    Ok(top.to_owned())
}
