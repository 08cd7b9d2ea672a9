//! `keel-image ls`: what is in the store.

use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::image::cli::Global;
use crate::image::digest::Digest;
use crate::image::limits::DocumentLimits;
use crate::image::manifest::{Descriptor, Document};
use crate::image::store::Store;
use crate::image::store::images::Image;

pub fn ls(global: &Global) -> Result<Vec<u8>> {
    let (images, names) = match Store::is_missing(&global.store_path()?) {
        true => Default::default(),
        false => {
            let store = global.store()?;
            (store.images()?, names(&store)?)
        }
    };
    let mut named = vec![false; images.len()];
    let mut rows: Vec<(Option<String>, &Image)> = Vec::new();
    for (name, digests) in names {
        for (i, image) in
            images.iter().enumerate().filter(|(_, image)| digests.contains(&image.manifest.digest))
        {
            named[i] = true;
            rows.push((Some(name.clone()), image));
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

/// Each with the manifests that it stands for.
fn names(store: &Store) -> Result<Vec<(String, Vec<Digest>)>> {
    let names = store.refs()?.into_iter();
    names.map(|name| Ok((name.name, digests_below(store, &name.manifest, 0)?))).collect()
}

/// The manifests that a name stands for: its own, or those of its index, as far as that is here and right. One that
/// cannot be read for another reason is an error: the images below it may be there.
pub fn digests_below(store: &Store, top: &Descriptor, depth: usize) -> Result<Vec<Digest>> {
    const DEEPEST: usize = 4;
    let mut found = vec![top.digest.clone()];
    if depth > DEEPEST || store.has_image(&top.digest)? {
        return Ok(found);
    }
    // An index may call a layer an index, to be read into memory.
    let most = DocumentLimits { manifest: 64 << 20, config: 0, layers: usize::MAX };
    let limits = if depth == 0 { DocumentLimits::NONE } else { most };
    let bytes = match store.document(top, &limits) {
        Err(error) if is_no_use(&error) || error.kind() == Kind::Limit => return Ok(found),
        bytes => bytes?,
    };
    // What it is was decided when it came in.
    let document = Document::parse(&bytes, Some(&top.media_type), &DocumentLimits::NONE, "index");
    if let Ok(Document::Index(below)) = document {
        for descriptor in below {
            found.extend(digests_below(store, &descriptor, depth + 1)?);
        }
    }
    Ok(found)
}

/// Whether what was to be read is of no use to anybody any more, and it is not only that we cannot read it now.
pub fn is_no_use(error: &Error) -> bool {
    matches!(error.kind(), Kind::NotFound | Kind::Integrity)
}
