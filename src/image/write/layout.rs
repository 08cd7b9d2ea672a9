//! An image layout, in a directory or in a tar file. Blobs come first, each whole under its name; index.json, which
//! makes an image of them, comes last and at once.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use super::tar_file::TarFile;
use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::{Digest, Verified};
use crate::image::layout::{Layout, blob_path};
use crate::image::manifest::{Descriptor, OCI_INDEX};
use crate::image::scratch::Unfinished;

const VERSION: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Where containerd and Docker look for the name with its registry.
const IMAGE_NAME: &str = "io.containerd.image.name";

pub enum LayoutWriter {
    Directory(PathBuf),
    Archive { tar: Box<TarFile>, there: HashSet<Digest> },
}

impl LayoutWriter {
    /// A directory that is a layout, or that is to become one.
    pub fn directory(path: &Path) -> Result<Self> {
        let what = || format!("write image layout {}", path.display());
        let empty = match fs::read_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            entries => {
                entries.context(what)?.filter_map(Result::ok).all(|entry| is_leftover(&entry.file_name()))
            }
        };
        if empty {
            fs::create_dir_all(path).context(what)?;
            put(&path.join("oci-layout"), VERSION.as_bytes())?;
        } else {
            // Another directory must not be filled with blobs.
            Layout::open(path).map_err(|error| {
                error.with_way_out("Name a directory that is empty, or not there, or an image layout.")
            })?;
        }
        fs::create_dir_all(path.join("blobs/sha256")).context(what)?;
        Ok(Self::Directory(path.to_owned()))
    }

    pub fn archive(mut tar: TarFile) -> Result<Self> {
        // Some readers know the archive by its first entry.
        tar.file("oci-layout", VERSION.as_bytes())?;
        tar.directory("blobs/")?;
        tar.directory("blobs/sha256/")?;
        Ok(Self::Archive { tar: Box::new(tar), there: HashSet::new() })
    }

    pub fn has(&self, descriptor: &Descriptor) -> bool {
        match self {
            Self::Directory(path) => {
                let meta = fs::symlink_metadata(path.join(blob_path(&descriptor.digest)));
                meta.is_ok_and(|meta| meta.is_file() && meta.len() == descriptor.size)
            }
            Self::Archive { there, .. } => there.contains(&descriptor.digest),
        }
    }

    pub fn blob(&mut self, descriptor: &Descriptor, mut blob: Verified<impl Read>) -> Result<()> {
        let path = blob_path(&descriptor.digest);
        let what = || format!("write {path}");
        match self {
            Self::Directory(directory) => {
                let path = directory.join(&path);
                // Few images have sha512.
                fs::create_dir_all(path.parent().unwrap_or(directory)).context(what)?;
                // Not among the blobs, where nothing has a name but by its digest.
                let mut file = Unfinished::by_way_of(directory, &path)?;
                std::io::copy(&mut blob, &mut file.file).context(what)?;
                file.finish()
            }
            Self::Archive { tar, there } => {
                let mut body = tar.body();
                std::io::copy(&mut blob, &mut body).context(what)?;
                if path.len() > 100 {
                    let message = format!("{}: an archive has sha256 only", descriptor.digest);
                    return Err(Error::new(message));
                }
                body.finish(&path)?;
                there.insert(descriptor.digest.clone());
                Ok(())
            }
        }
    }

    /// Makes an image of what is there. `name` is its ref.name; another image of that name loses it.
    pub fn finish(self, top: &Descriptor, name: Option<&str>, image_name: Option<&str>) -> Result<()> {
        let mut entry =
            json!({"mediaType": top.media_type, "digest": top.digest.to_string(), "size": top.size});
        if let Some(name) = name {
            entry["annotations"][REF_NAME] = json!(name);
        }
        if let Some(name) = image_name {
            entry["annotations"][IMAGE_NAME] = json!(name);
        }
        let empty = || json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
        match self {
            Self::Directory(path) => {
                let what = || format!("write image layout {}", path.display());
                // Two that add an image at once must not lose one.
                let directory = File::open(&path).context(what)?;
                let lock = Flock::lock(directory, FlockArg::LockExclusive);
                let _lock = lock.map_err(|(_, errno)| errno).context(what)?;
                let index = path.join("index.json");
                let mut content = match fs::read(&index) {
                    Err(error) if error.kind() == ErrorKind::NotFound => empty(),
                    content => {
                        let content = serde_json::from_slice(&content.context(what)?);
                        content.map_err(|error| malformed(&index, &error.to_string()))?
                    }
                };
                let manifests = content["manifests"].as_array_mut();
                let manifests =
                    manifests.ok_or_else(|| malformed(&index, "there is no list of manifests"))?;
                manifests.retain(|old| !is_replaced(old, &entry));
                manifests.push(entry);
                put(&index, content.to_string().as_bytes())
            }
            Self::Archive { mut tar, .. } => {
                let mut content = empty();
                content["manifests"] = json!([entry]);
                tar.file("index.json", content.to_string().as_bytes())?;
                tar.finish()
            }
        }
    }
}

/// What a process leaves that is killed before it has made the first file.
fn is_leftover(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".oci-layout.") && name.ends_with(b".tmp")
}

/// One that has the new one's name, or is the same without any name.
fn is_replaced(old: &Value, new: &Value) -> bool {
    let name = |entry: &Value| entry["annotations"][REF_NAME].as_str().map(str::to_owned);
    match (name(old), name(new)) {
        (None, None) => old["digest"] == new["digest"],
        (old, new) => old == new,
    }
}

fn malformed(path: &Path, why: &str) -> Error {
    Error::of_kind(Kind::Integrity, format!("read {}: {why}", path.display()))
}

fn put(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = Unfinished::new(path)?;
    file.file.write_all(content).context(|| format!("write {}", path.display()))?;
    file.finish()
}
