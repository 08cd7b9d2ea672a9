//! `keel-image load`: the images of an archive into the store, under the names that the archive has for them.

use std::io::{IsTerminal, stdin};

use serde_json::json;

use crate::error::{Error, Result};
use crate::image::archive::Archive;
use crate::image::cli::{Global, LoadOptions};
use crate::image::docker_archive::{self, DockerArchive};
use crate::image::fetch::Fetch;
use crate::image::layout::Layout;
use crate::image::limits::Limits;
use crate::image::platform::Platform;
use crate::image::pull::top_descriptor;
use crate::image::reference::Named;
use crate::image::source::{Image, Source};

pub fn load(global: &Global, options: &LoadOptions) -> Result<Vec<u8>> {
    let store = global.store()?;
    let tmp = store.path().join("tmp");
    let archive = match options.file.as_os_str() == "-" {
        true if stdin().is_terminal() => {
            return Err(Error::new("read an archive from stdin: it is a terminal")
                .with_way_out("Name a file, or redirect one."));
        }
        true => Archive::read(stdin().lock(), "archive from stdin".to_owned(), &tmp)?,
        false => Archive::open(&options.file, &tmp)?,
    };
    let (host, limits) = (Platform::host(), Limits::new(&options.limits)?);
    let platform = options.platform.as_ref().unwrap_or(&host);
    let name = options.name.as_deref().map(|name| global.named(name)).transpose()?;
    let mut images = sources(archive, &limits)?;
    match (&name, &mut images[..]) {
        (Some(name), [(_, names)]) => *names = vec![name.to_string()],
        (None, _) => {}
        (Some(_), images) => {
            let message = format!("the archive has {} images, and --name is for one", images.len());
            return Err(Error::new(message).with_way_out("Leave --name out."));
        }
    }
    // All names are right before anything is loaded.
    let mut named = Vec::new();
    for (source, names) in images {
        if names.is_empty() {
            return Err(Error::new(format!("{source}: an image in it has no full name"))
                .with_way_out("Give it one: --name REF."));
        }
        let names = names.iter().map(|name| Named::parse(name)).collect::<Result<Vec<_>>>()?;
        named.push((source, names));
    }
    let progress = global.progress();
    let mut loaded = Vec::new();
    for (source, names) in named {
        let image: Image = source.image(platform, &limits.documents)?;
        let (jobs, devices, rootless) = (options.jobs.count(), options.devices, global.rootless.as_ref());
        Fetch {
            store: &store,
            source: &source,
            limits: &limits,
            jobs,
            progress: &progress,
            devices,
            rootless,
        }
        .into_store(&image)?;
        for name in names {
            let name = name.to_string();
            store.put_ref_durably(&name, &top_descriptor(&image))?;
            loaded.push((name, image.top.digest.clone()));
        }
    }
    drop(progress);
    if global.json {
        let list = loaded.iter().map(|(name, digest)| json!({"name": name, "digest": digest.to_string()}));
        return Ok(format!("{:#}\n", list.collect::<serde_json::Value>()).into_bytes());
    }
    Ok(loaded.iter().map(|(name, digest)| format!("{name}@{digest}\n")).collect::<String>().into_bytes())
}

/// The images of an archive, each with its names. What is both an image layout and what docker saves is read as the
/// layout, which keeps digests.
fn sources(archive: Archive, limits: &Limits) -> Result<Vec<(Source<'static>, Vec<String>)>> {
    let documents = &limits.documents;
    if !archive.has("oci-layout") {
        let images = docker_archive::images(&archive, documents)?;
        let source = |image: &docker_archive::Image| {
            let source = DockerArchive::new(&archive, image, documents)?;
            Ok((Source::DockerArchive(Box::new(source)), image.tags.clone()))
        };
        return images.iter().map(source).collect();
    }
    let layout = Layout::of_archive(archive)?;
    let mut sources: Vec<(Source<'static>, Vec<String>)> = Vec::new();
    let mut last = None;
    for (digest, name) in layout.names(documents)? {
        if last.as_ref() != Some(&digest) {
            let source = Source::Layout { layout: layout.only(&digest), name: None };
            sources.push((source, Vec::new()));
            last = Some(digest);
        }
        if let Some((_, names)) = sources.last_mut() {
            names.extend(name);
        }
    }
    Ok(sources)
}
