//! `keel-image inspect`: an image's manifest and config, verified, without its layers.

use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::image::cli::{Global, InspectOptions};
use crate::image::limits::DocumentLimits;
use crate::image::source::{Image, Source};

pub fn inspect(global: &Global, options: &InspectOptions) -> Result<Vec<u8>> {
    let platform = options.platform()?;
    let limits = DocumentLimits::default();
    let reference = global.reference(&options.reference)?;
    let source = Source::open(&reference, &limits, || global.client())?;
    if options.raw {
        return Ok(source.top(&limits)?.bytes);
    }
    let Image { top, found, config_bytes, config } = source.image(&platform, &limits)?;
    if options.config {
        return Ok(config_bytes);
    }
    let text = json!({
        "name": reference.to_string(),
        "digest": top.digest.to_string(),
        "platform": config.platform.to_string(),
        "manifestDigest": found.digest.to_string(),
        "mediaType": found.media_type,
        "size": found.manifest.layers.iter().map(|layer| layer.descriptor.size).fold(0, u64::saturating_add),
        "manifest": tree(&found.bytes)?,
        "config": tree(&config_bytes)?,
    });
    Ok(format!("{text:#}\n").into_bytes())
}

fn tree(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::of_kind(Kind::Integrity, e.to_string()))
}
