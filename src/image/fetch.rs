//! From a source into the store, in one pass: a layer's blob is received, hashed, kept, inflated, hashed and unpacked at
//! once, and several layers at the same time.
//!
//! A layer that is in the making by another process is waited for. One whose blob on the disk has turned bad is fetched
//! anew and unpacked again, but for a plain directory: that has files of the bad one already, and is an error.

use std::fs::{File, remove_file};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::Digest;
use crate::image::limits::Limits;
use crate::image::manifest::{self, Descriptor, Found};
use crate::image::progress::{Counted, Progress, Task};
use crate::image::rootless::Rootless;
use crate::image::source::{Image, Source};
use crate::image::store::Store;
use crate::image::store::blobs::Insert;
use crate::image::store::images;
use crate::image::store::layers::layer_name;
use crate::image::unpack::{LayerSpec, Mode, Options, Owners, Unpacked, unpack};

pub struct Fetch<'a> {
    pub store: &'a Store,
    pub source: &'a Source<'a>,
    pub limits: &'a Limits,
    pub jobs: usize,
    pub progress: &'a Progress,
    /// Make device nodes.
    pub devices: bool,
    /// The user namespace that this is done in.
    pub rootless: Option<&'a Rootless>,
}

impl Fetch<'_> {
    /// What the name of a layer has behind its diff_id.
    pub fn variant(&self) -> &'static str {
        match self.rootless {
            Some(rootless) => rootless.variant(),
            None if self.devices => "-devices",
            None => "",
        }
    }

    /// Everything of an image into the store, its layers unpacked.
    pub fn into_store(&self, image: &Image) -> Result<()> {
        self.documents(image)?;
        let layers = specs(image);
        self.progress
            .expect(layers.len(), layers.iter().map(|l| l.descriptor.size).fold(0, u64::saturating_add));
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.layer(layer) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    // The others end with the layer that they are at.
                    next.store(layers.len(), Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| -> Result<()> {
            for _ in 1..self.jobs.min(layers.len()) {
                let started = std::thread::Builder::new().spawn_scoped(scope, work);
                started.context(|| "start a thread")?;
            }
            work();
            Ok(())
        })?;
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => self.record(image),
        }
    }

    /// The same into one directory, one layer over the other; the store has only the blobs then.
    pub fn into_root(&self, image: &Image, root: &OwnedFd, owners: Owners) -> Result<()> {
        self.documents(image)?;
        let layers = specs(image);
        self.progress
            .expect(layers.len(), layers.iter().map(|l| l.descriptor.size).fold(0, u64::saturating_add));
        // The first that nobody fetches yet.
        let next = AtomicUsize::new(0);
        let claim = || layers.get(next.fetch_add(1, Ordering::Relaxed));
        std::thread::scope(|scope| -> Result<()> {
            let fetch = || {
                while let Some(layer) = claim() {
                    // Whoever applies it meets the same error, or a better source.
                    if self.blob(layer).is_err() {
                        return;
                    }
                }
            };
            let ahead = self.jobs.min(layers.len()).saturating_sub(1);
            let first = claim();
            for _ in 0..ahead {
                std::thread::Builder::new().spawn_scoped(scope, fetch).context(|| "start a thread")?;
            }
            for layer in first.into_iter().chain(layers.iter().skip(1)) {
                let options = self.options(Mode::Apply, owners.clone());
                let applied = self.apply(layer, &options, || Ok(root.try_clone()?));
                if applied.is_err() {
                    next.store(layers.len(), Ordering::Relaxed);
                }
                applied?;
            }
            Ok(())
        })?;
        self.record(image)
    }

    fn options(&self, mode: Mode, owners: Owners) -> Options {
        Options { mode, limits: self.limits.unpack.clone(), owners, devices: self.devices }
    }

    /// Manifests and config; the image counts when its layers are here, too.
    fn documents(&self, image: &Image) -> Result<()> {
        let Image { top, found, config_bytes, .. } = image;
        let config = &found.manifest.config.digest;
        for (digest, bytes) in
            [(&top.digest, &top.bytes), (&found.digest, &found.bytes), (config, config_bytes)]
        {
            let path = self.store.blob_path(digest);
            if std::fs::read(&path).ok().as_ref() != Some(bytes) {
                self.store.put_verified(digest, bytes)?;
            }
        }
        Ok(())
    }

    fn record(&self, image: &Image) -> Result<()> {
        if self.store.has_image(&image.found.digest)? {
            return Ok(());
        }
        let layers = &image.found.manifest.layers;
        let size = layers.iter().map(|layer| layer.descriptor.size).fold(0, u64::saturating_add);
        self.store.put_image(&images::Image {
            manifest: manifest_descriptor(&image.found),
            platform: image.config.platform.to_string(),
            size: size.saturating_add(image.found.manifest.config.size),
            created: image.config.created.clone().unwrap_or_default(),
        })
    }

    /// A layer with all that belongs to it.
    fn layer(&self, layer: &Layer<'_>) -> Result<()> {
        let name = layer_name(&layer.diff_id, self.variant());
        let there = || Ok::<_, Error>(self.store.layer(&name)?.is_some());
        if there()? && self.store.has_blob(layer.descriptor) {
            self.task(layer).end("cached");
            return Ok(());
        }
        let _lock = self.store.lock(layer.diff_id.hex())?;
        if there()? {
            return self.blob(layer);
        }
        let owners = match self.rootless {
            Some(rootless) if rootless.is_single() => Owners::Squashed,
            _ => Owners::Kept,
        };
        let options = self.options(Mode::Overlay { user_xattr: self.rootless.is_some() }, owners);
        let mut new = None;
        let unpacked = self.apply(layer, &options, || {
            // A second time: the files of a bad blob are not the layer's.
            let made = new.insert(self.store.new_layer()?);
            Ok(File::open(made.fs())?.into())
        })?;
        let new = new.ok_or_else(|| Error::new(format!("{layer}: nothing was unpacked")))?;
        self.store.put_layer(&new, &name, &unpacked.lacks).map(drop)
    }

    /// Unpacks a layer into what `target` gives, from its blob here or else from the source, which is kept.
    fn apply(
        &self,
        layer: &Layer<'_>,
        options: &Options,
        mut target: impl FnMut() -> Result<OwnedFd>,
    ) -> Result<Unpacked> {
        let mut task = self.task(layer);
        let _lock = self.store.lock(&format!("blob-{}", layer.descriptor.digest.hex()))?;
        if self.store.has_blob(layer.descriptor) {
            task.begin("unpacking");
            let stream = self.store.blob(layer.descriptor)?.into_inner();
            let stream = Counted { inner: stream, task: &mut task };
            match unpack(stream, &layer.spec, target()?, options) {
                Err(error) if error.kind() == Kind::Integrity && self.can_repair(options, layer)? => {
                    self.progress.say(&format!("{error}; it is fetched again"));
                    task.restart();
                }
                unpacked => return self.unpacked(layer, task, unpacked?),
            }
        }
        task.begin("fetching");
        let stream = self.source.blob(layer.descriptor).context(|| layer.to_string())?.into_inner();
        let mut insert = self.store.insert_unhashed(layer.descriptor)?;
        let stream = Tee { stream: Counted { inner: stream, task: &mut task }, insert: &mut insert };
        let unpacked = unpack(stream, &layer.spec, target()?, options)?;
        // Its digest is right, or there would be an error.
        insert.finish()?;
        self.unpacked(layer, task, unpacked)
    }

    /// Whether a blob in the store that is not what it should be can be had elsewhere; it is removed then. A tree of
    /// several layers is spoilt by the first files of it.
    fn can_repair(&self, options: &Options, layer: &Layer<'_>) -> Result<bool> {
        if matches!(self.source, Source::Store { .. })
            || io::copy(&mut self.store.blob(layer.descriptor)?, &mut io::sink()).is_ok()
        {
            return Ok(false);
        }
        remove_file(self.store.blob_path(&layer.descriptor.digest)).context(|| "remove a damaged blob")?;
        Ok(options.mode != Mode::Apply)
    }

    fn unpacked(&self, layer: &Layer<'_>, task: Task<'_>, unpacked: Unpacked) -> Result<Unpacked> {
        task.end("done");
        for warning in &unpacked.warnings {
            self.progress.say(&format!("{layer}: {warning}"));
        }
        if unpacked.devices_skipped > 0 {
            let count = unpacked.devices_skipped;
            self.progress.say(&format!("{layer}: {count} device nodes are left out; --devices makes them"));
        }
        Ok(unpacked)
    }

    /// A layer's blob alone.
    fn blob(&self, layer: &Layer<'_>) -> Result<()> {
        let mut task = self.task(layer);
        let _lock = self.store.lock(&format!("blob-{}", layer.descriptor.digest.hex()))?;
        if self.store.has_blob(layer.descriptor) {
            task.end("fetched");
            return Ok(());
        }
        task.begin("fetching");
        let stream = self.source.blob(layer.descriptor).context(|| layer.to_string())?;
        let mut insert = self.store.insert_unhashed(layer.descriptor)?;
        io::copy(&mut Counted { inner: stream, task: &mut task }, &mut insert)
            .context(|| layer.to_string())?;
        insert.finish()?;
        task.end("fetched");
        Ok(())
    }

    fn task(&self, layer: &Layer<'_>) -> Task<'_> {
        self.progress.layer(&layer.descriptor.digest, layer.descriptor.size)
    }
}

/// The manifest as a descriptor of itself.
pub fn manifest_descriptor(found: &Found) -> Descriptor {
    Descriptor::new(&found.media_type, found.digest.clone(), found.bytes.len() as u64)
}

struct Layer<'i> {
    descriptor: &'i Descriptor,
    diff_id: Digest,
    spec: LayerSpec,
}

impl std::fmt::Display for Layer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (number, of) = self.spec.number;
        write!(
            f,
            "layer {number}/{of} ({}:{}...)",
            self.descriptor.digest.algorithm().name(),
            &self.descriptor.digest.hex()[..12]
        )
    }
}

/// The layers, the lowest first.
fn specs<'i>(image: &'i Image) -> Vec<Layer<'i>> {
    let layers = &image.found.manifest.layers;
    let both = layers.iter().zip(&image.config.diff_ids).enumerate();
    let layer = |(i, (layer, diff_id)): (usize, (&'i manifest::Layer, &Digest))| Layer {
        descriptor: &layer.descriptor,
        diff_id: diff_id.clone(),
        spec: LayerSpec {
            number: (i + 1, layers.len()),
            digest: layer.descriptor.digest.to_string(),
            size: layer.descriptor.size,
            diff_id: diff_id.to_string(),
            compression: layer.compression,
        },
    };
    both.map(layer).collect()
}

/// What is read is kept.
struct Tee<'i, 's, R> {
    stream: R,
    insert: &'i mut Insert<'s>,
}

impl<R: Read> Read for Tee<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.insert.write_all(&buffer[..read])?;
        Ok(read)
    }
}
