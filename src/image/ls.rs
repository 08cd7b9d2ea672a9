//! `keel-image ls`: what is in the store.

use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::error::Result;
use crate::image::cli::Global;
use crate::image::limits::DocumentLimits;
use crate::image::manifest::Document;
use crate::image::store::Store;
use crate::image::store::images::Image;

pub fn ls(global: &Global) -> Result<Vec<u8>> {
    let store = global.store()?;
    let images = store.images()?;
    let mut named = vec![false; images.len()];
    let mut rows: Vec<(Option<String>, &Image)> = Vec::new();
    for name in store.refs()? {
        let digests = digests_below(&store, &name.manifest, 0);
        for (i, image) in
            images.iter().enumerate().filter(|(_, image)| digests.contains(&image.manifest.digest))
        {
            named[i] = true;
            rows.push((Some(name.name.clone()), image));
        }
    }
    let nameless = images.iter().zip(&named).filter(|(_, named)| !**named);
    rows.extend(nameless.map(|(image, _)| (None, image)));
    if global.json {
        let row = |(name, image): &(Option<String>, &Image)| {
            json!({"name": name, "digest": image.manifest.digest.to_string(), "platform": image.platform,
                "size": image.size, "created": image.created})
        };
        return Ok(format!("{:#}\n", rows.iter().map(row).collect::<Value>()).into_bytes());
    }
    let width = rows.iter().map(|(name, _)| name.as_ref().map_or(0, String::len)).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  {:12}  {:14}  SIZE\n", "NAME", "DIGEST", "PLATFORM");
    for (name, image) in rows {
        let (name, digest) = (name.as_deref().unwrap_or("-"), &image.manifest.digest.hex()[..12]);
        text += &format!("{name:width$}  {digest}  {:14}  {}\n", image.platform, HumanBytes(image.size));
    }
    // What a stranger's config calls its platform is not for the terminal to obey.
    Ok(text.chars().filter(|c| !c.is_control() || *c == '\n').collect::<String>().into_bytes())
}

/// The manifests that a name stands for: its own, or those of its index that can be read.
pub fn digests_below(
    store: &Store,
    top: &crate::image::manifest::Descriptor,
    depth: usize,
) -> Vec<crate::image::digest::Digest> {
    const DEEPEST: usize = 4;
    let mut found = vec![top.digest.clone()];
    if store.has_image(&top.digest) || depth > DEEPEST {
        return found;
    }
    let limits = DocumentLimits::default();
    let read = store.document(top, &limits);
    let document = read.and_then(|bytes| Document::parse(&bytes, Some(&top.media_type), &limits, "index"));
    if let Ok(Document::Index(below)) = document {
        let here = below.iter().filter(|descriptor| store.has_blob(descriptor));
        found.extend(here.flat_map(|descriptor| digests_below(store, descriptor, depth + 1)));
    }
    found
}
