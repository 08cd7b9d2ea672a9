//! `keel-image commit`: what a container has written becomes a layer above those of its image.
//!
//! Nobody may write meanwhile. A bundle that a container uses is refused, unless the user says which container that is:
//! then the runtime is asked to pause it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::{Context, Error, Kind, Result};
use crate::image::cli::{CommitOptions, Global};
use crate::image::container_root::ContainerRoot;
use crate::image::limits::{DocumentLimits, Limits};
use crate::image::make;
use crate::image::manifest::{Descriptor, Document};
use crate::image::pack::pack;
use crate::image::store::Store;
use crate::image::store::bundles::Bundle;

pub fn commit(global: &Global, options: &CommitOptions) -> Result<Vec<u8>> {
    let name = global.named(&options.reference)?.to_string();
    let limits = Limits::new(&options.limits)?;
    let what = || format!("commit {}", options.bundle.display());
    let bundle = options.bundle.canonicalize().map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        Error::from(error).with_kind(if missing { Kind::NotFound } else { Kind::Other })
    });
    let bundle = bundle.context(what)?;
    let store = global.store()?;
    let (record, mut layers, mut config) = base(&store, &bundle, &limits.documents).context(what)?;
    let mut root = ContainerRoot::read(&bundle).context(what)?;
    if !record.layers.is_empty() && bundle.join("upper").is_dir() {
        // As --rootfs=mount has it.
        root = root.with_upper(bundle.join("upper"));
    }
    let (tops, kind) = root.changes().context(what)?;
    let paused = match &options.container {
        Some(id) => Some(Paused::new(options, id, &bundle)?),
        None if root.is_in_use()? => {
            return Err(Error::new(format!("{}: a container is using it", what())).with_way_out(
                "Stop it (and umount the bundle), or have it paused meanwhile: --container ID.",
            ));
        }
        None => None,
    };
    let (layer, diff_id, packed) =
        make::layer(&store, options.compression, |out| pack(tops, kind, &limits.unpack, out))
            .context(what)?;
    if let Some(paused) = paused {
        paused.resume()?;
    }
    packed.warnings.iter().for_each(|warning| global.say(warning));
    layers.push(layer);
    make::add_layer(&mut config, &diff_id, "keel-image commit", options.message.as_deref())?;
    if let Some(author) = &options.author {
        config["author"] = author.as_str().into();
    }
    options.config.apply(&mut config);
    let image = make::image(global, &store, &name, &config, &layers, &limits).context(what)?;
    Ok(make::result(global, &name, &image))
}

/// The bundle's record, and the layers and the config of the image that it was made from.
fn base(store: &Store, bundle: &Path, limits: &DocumentLimits) -> Result<(Bundle, Vec<Descriptor>, Value)> {
    let record = store.get_bundle(bundle)?.ok_or_else(|| {
        let message = format!("store {} has not made this bundle", store.path().display());
        Error::of_kind(Kind::NotFound, message).with_way_out("Name the store that has with --store.")
    })?;
    let bytes = store.document(&record.manifest, limits)?;
    let name = format!("manifest {}", record.manifest.digest);
    let Document::Manifest(manifest) = Document::parse(&bytes, None, limits, &name)? else {
        return Err(Error::of_kind(Kind::Integrity, format!("{name} is an index")));
    };
    let config = store.document(&manifest.config, limits)?;
    let config = serde_json::from_slice(&config)
        .map_err(|error| Error::of_kind(Kind::Integrity, format!("the image's config: {error}")))?;
    // The new manifest is OCI's, and so are the names of its layers.
    let layers = manifest.layers.into_iter();
    let layers = layers.map(|layer| Descriptor {
        media_type: layer.compression.media_type().to_owned(),
        ..layer.descriptor
    });
    Ok((record, layers.collect(), config))
}

/// A container that does nothing until this is dropped.
struct Paused<'o> {
    options: &'o CommitOptions,
    id: &'o str,
    is_paused: bool,
}

impl<'o> Paused<'o> {
    fn new(options: &'o CommitOptions, id: &'o str, bundle: &Path) -> Result<Self> {
        let mut paused = Self { options, id, is_paused: false };
        let state: Value = serde_json::from_slice(&paused.runtime("state")?)
            .map_err(|error| Error::new(format!("state of container {id}: {error}")))?;
        let theirs = state["bundle"].as_str().map(PathBuf::from).and_then(|path| path.canonicalize().ok());
        if theirs.as_deref() != Some(bundle) {
            let theirs = state["bundle"].as_str().unwrap_or_default();
            return Err(Error::new(format!("container {id} is that of bundle {theirs}")));
        }
        match state["status"].as_str() {
            Some("running") => {
                paused.runtime("pause")?;
                paused.is_paused = true;
            }
            // It does nothing anyway.
            Some("created" | "paused" | "stopped") => {}
            status => return Err(Error::new(format!("container {id} is {}", status.unwrap_or("unknown")))),
        }
        Ok(paused)
    }

    fn resume(mut self) -> Result<()> {
        if std::mem::take(&mut self.is_paused) {
            self.runtime("resume")?;
        }
        Ok(())
    }

    fn runtime(&self, operation: &str) -> Result<Vec<u8>> {
        let what = || format!("{operation} container {}", self.id);
        let mut command = Command::new(&self.options.runtime);
        if let Some(root) = &self.options.runtime_root {
            command.arg("--root").arg(root);
        }
        let run = command.args([operation, self.id]).stdin(Stdio::null()).output();
        let run = run.context(|| format!("run {}", self.options.runtime.display())).context(what)?;
        if run.status.success() {
            return Ok(run.stdout);
        }
        let said = String::from_utf8_lossy(&run.stderr);
        Err(Error::new(said.lines().last().unwrap_or_default()).because(what()))
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if self.is_paused {
            // The error that brought us here is the one to be told.
            let _ = self.runtime("resume");
        }
    }
}
