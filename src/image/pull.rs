//! `keel-image pull`: images into the store, ready for a bundle; and for other commands, an image from wherever it is.

use clap::ValueEnum;
use nix::errno::Errno;
use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::image::cli::{Global, Jobs, PullOptions};
use crate::image::digest::Digest;
use crate::image::fetch::{Fetch, manifest_descriptor};
use crate::image::limits::Limits;
use crate::image::manifest::{Descriptor, OCI_INDEX};
use crate::image::platform::Platform;
use crate::image::progress::Progress;
use crate::image::reference::Reference;
use crate::image::rootless::Rootless;
use crate::image::source::{Image, Source};
use crate::image::store::{Store, upkeep};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Ask the registry only for what is not in the store
    Missing,
    /// Ask the registry what the name stands for now
    Always,
    /// Do with what is in the store
    Never,
}

/// What is wanted of an image.
pub struct Wanted<'a> {
    pub reference: &'a Reference,
    /// The user's; otherwise this machine's.
    pub platform: Option<&'a Platform>,
    pub policy: Policy,
    pub expect_digest: Option<&'a Digest>,
    pub limits: &'a Limits,
    pub devices: bool,
    pub jobs: Jobs,
}

pub fn pull(global: &Global, options: &PullOptions) -> Result<Vec<u8>> {
    let store = global.store()?;
    upkeep::start(&store)?;
    let limits = Limits::new(&options.limits)?;
    let references = options.references.iter().map(|text| global.reference(text));
    let references = references.collect::<Result<Vec<_>>>()?;
    let progress = global.progress();
    let mut pulled = Vec::new();
    for reference in references {
        let wanted = Wanted {
            reference: &reference,
            platform: options.platform.as_ref(),
            policy: options.pull,
            expect_digest: None,
            limits: &limits,
            devices: options.devices,
            jobs: options.jobs,
        };
        let image = obtain(global, &store, &progress, &wanted, |fetch, image| fetch.into_store(image))?;
        let name = store_name(&reference)?;
        store.put_ref(&name, &top_descriptor(&image))?;
        pulled.push((name, image));
    }
    drop(progress);
    if global.json {
        let text = pulled.iter().map(|(name, image)| {
            json!({"name": name, "digest": image.top.digest.to_string(),
                "manifestDigest": image.found.digest.to_string(),
                "platform": image.config.platform.to_string()})
        });
        return Ok(format!("{:#}\n", text.collect::<serde_json::Value>()).into_bytes());
    }
    let line = |(name, image): &(String, Image)| match name.contains('@') {
        true => format!("{name}\n"),
        false => format!("{name}@{}\n", image.top.digest),
    };
    Ok(pulled.iter().map(line).collect::<String>().into_bytes())
}

/// An image, and with it what `take` makes of its layers. One that the store has and cannot give is fetched anew.
pub fn obtain(
    global: &Global,
    store: &Store,
    progress: &Progress,
    wanted: &Wanted<'_>,
    mut take: impl FnMut(&Fetch<'_>, &Image) -> Result<()>,
) -> Result<Image> {
    let mut from = |source: &Source<'_>| {
        let image = choose(source, progress, wanted)?;
        let Wanted { limits, devices, .. } = *wanted;
        let rootless = global.rootless.as_ref();
        let fetch = Fetch { store, source, limits, jobs: wanted.jobs.count(), progress, devices, rootless };
        take(&fetch, &image).map_err(|error| match (error.errno(), rootless) {
            // chown(2) to what is not mapped.
            (Some(Errno::EINVAL), Some(_)) => error.with_way_out(
                "The image has ids that you have not: more of them in /etc/subuid and /etc/subgid.",
            ),
            _ => error,
        })?;
        Ok(image)
    };
    if wanted.devices && global.rootless.is_some() {
        return Err(Error::new("--devices: only root can make device nodes"));
    }
    if global.rootless.as_ref().is_some_and(Rootless::is_single) {
        progress.say(
            "you have one id only, and all files will belong to it: for more, newuidmap and lines in /etc/subuid and /etc/subgid",
        );
    }
    if let Reference::Registry(named) = wanted.reference
        && wanted.policy != Policy::Always
    {
        let source = Source::Store { store, name: named.to_string() };
        match from(&source) {
            Err(error) if wanted.policy == Policy::Missing && is_for_lack_of_it(&error) => {}
            done => return done,
        }
    }
    from(&Source::open(wanted.reference, &wanted.limits.documents, || global.client())?)
}

/// Whether it is the store that is to blame: it has not all of the image, or something has changed it.
fn is_for_lack_of_it(error: &Error) -> bool {
    matches!(error.kind(), Kind::NotFound | Kind::Integrity)
}

/// The image that is meant, if it is one that runs here.
fn choose(source: &Source<'_>, progress: &Progress, wanted: &Wanted<'_>) -> Result<Image> {
    let host = Platform::host();
    let platform = wanted.platform.unwrap_or(&host);
    let image = source.image(platform, &wanted.limits.documents)?;
    if let Some(expected) = wanted.expect_digest
        && ![&image.top.digest, &image.found.digest].contains(&expected)
    {
        let message = format!("{source}: its digest is {}, not {expected}", image.top.digest);
        return Err(Error::of_kind(Kind::Integrity, message)
            .with_way_out("The name stands for another image now. Take it by name@digest to keep to one."));
    }
    let theirs = &image.config.platform;
    if platform.distance(theirs).is_none() {
        let message = format!("{source}: the image is for {theirs}, not {platform}");
        if wanted.platform.is_some() || theirs.os != "linux" {
            return Err(Error::of_kind(Kind::NotFound, message));
        }
        progress.say(&format!("{message}: its programs need an emulator"));
    }
    Ok(image)
}

/// What an image is called in the store.
pub fn store_name(reference: &Reference) -> Result<String> {
    let absolute = |path: &std::path::Path| std::path::absolute(path).map_err(Error::from);
    let reference = match reference.clone() {
        Reference::Registry(named) => Reference::Registry(named),
        Reference::Layout { path, name } => Reference::Layout { path: absolute(&path)?, name },
        Reference::OciArchive { path, name } => Reference::OciArchive { path: absolute(&path)?, name },
        Reference::DockerArchive { path, name } => Reference::DockerArchive { path: absolute(&path)?, name },
    };
    Ok(reference.to_string())
}

/// What the image's name stands for, as a descriptor.
pub fn top_descriptor(image: &Image) -> Descriptor {
    let manifest = manifest_descriptor(&image.found);
    if image.top.digest == manifest.digest {
        return manifest;
    }
    let media_type = image.top.media_type.clone().unwrap_or_else(|| OCI_INDEX.to_owned());
    let (digest, size) = (image.top.digest.clone(), image.top.bytes.len() as u64);
    Descriptor { media_type, digest, size, ..manifest }
}
