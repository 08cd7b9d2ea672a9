//! `keel-image inspect`: an image's manifest and config, verified, without its layers.

use serde_json::{Value, json};

use crate::error::{Context, Error, Kind, Result};
use crate::image::cli::{Global, InspectOptions};
use crate::image::layout::Layout;
use crate::image::manifest::{Config, Found, Limits, Received, resolve};
use crate::image::reference::Reference;

pub fn inspect(global: &Global, options: &InspectOptions) -> Result<Vec<u8>> {
    let platform = options.platform()?;
    let limits = Limits::default();
    let reference = global.reference(&options.reference)?;
    // What the name stands for, and the image that it leads to.
    let (top, found, config): (Received, Found, Vec<u8>) = match &reference {
        Reference::Registry(named) => {
            let client = global.client()?;
            let top = client.manifest(named, &limits)?;
            if options.raw {
                return Ok(top.bytes);
            }
            let found = client.resolve(named, top.clone(), &platform, &limits)?;
            let config = client.config(named, &found.manifest, &limits)?;
            (top, found, config)
        }
        Reference::Layout { path, name } => {
            let layout = Layout::open(path)?;
            let top = layout.manifest(name.as_deref(), &limits)?;
            if options.raw {
                return Ok(top.bytes);
            }
            let fetch = |descriptor: &_| layout.document(descriptor, &limits);
            let found = resolve(top.clone(), &platform, &limits, fetch).context(|| reference.to_string())?;
            let config = layout.document(&found.manifest.config, &limits)?;
            (top, found, config)
        }
        Reference::OciArchive { .. } | Reference::DockerArchive { .. } => {
            return Err(Error::new(format!("inspect {reference}: archives are not supported yet")));
        }
    };
    let parsed = Config::parse(&config, &found.manifest).context(|| reference.to_string())?;
    if options.config {
        return Ok(config);
    }
    let text = json!({
        "name": reference.to_string(),
        "digest": top.digest.to_string(),
        "platform": parsed.platform.to_string(),
        "manifestDigest": found.digest.to_string(),
        "mediaType": found.media_type,
        "size": found.manifest.layers.iter().map(|layer| layer.descriptor.size).fold(0, u64::saturating_add),
        "manifest": tree(&found.bytes)?,
        "config": tree(&config)?,
    });
    Ok(format!("{text:#}\n").into_bytes())
}

fn tree(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::of_kind(Kind::Integrity, e.to_string()))
}
