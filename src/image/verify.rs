//! `keel-image verify`: whether the store's blobs are still what their names say, and all of an image is there.

use std::collections::BTreeMap;
use std::io::{self, Write, stdout};

use serde_json::{Value, json};

use crate::error::{Context, Error, Kind, Result};
use crate::image::cli::Global;
use crate::image::manifest::Descriptor;
use crate::image::prune::read;
use crate::image::store::Store;

pub fn verify(global: &Global) -> Result<Vec<u8>> {
    let store = global.store()?;
    let mut problems = BTreeMap::new();
    let mut checked = 0;
    for (digest, size) in store.blobs()? {
        checked += 1;
        let descriptor = Descriptor::new("", digest, size);
        if let Err(error) = check(&store, &descriptor) {
            problems.insert(descriptor.digest.to_string(), error.to_string());
        }
    }
    for image in store.images()? {
        let (manifest, _) = match read(&store, &image.manifest) {
            Ok(read) => read,
            Err(error) => {
                problems.entry(image.manifest.digest.to_string()).or_insert(error.to_string());
                continue;
            }
        };
        for layer in manifest.layers {
            let digest = layer.descriptor.digest.to_string();
            if !store.has_blob(&layer.descriptor) {
                problems.entry(digest).or_insert(format!("a layer of {} is missing", image.manifest.digest));
            }
        }
    }
    for name in store.refs()? {
        if !store.has_blob(&name.manifest) {
            problems
                .entry(name.manifest.digest.to_string())
                .or_insert(format!("what {} stands for is missing", name.name));
        }
    }
    if problems.is_empty() {
        let text = json!({"blobs": checked, "problems": []});
        return Ok(if global.json { format!("{text:#}\n") } else { format!("{checked} blobs are right\n") }
            .into_bytes());
    }
    let list: Vec<_> = problems.iter().map(|(digest, problem)| format!("{digest}: {problem}")).collect();
    if global.json {
        let list = problems.iter().map(|(digest, problem)| json!({"blob": digest, "problem": problem}));
        let text = json!({"blobs": checked, "problems": list.collect::<Value>()});
        stdout().write_all(format!("{text:#}\n").as_bytes()).context(|| "write to stdout")?;
    }
    let message =
        format!("verify {}: {} blobs are not right: {}", store.path().display(), list.len(), list.join("; "));
    Err(Error::of_kind(Kind::Integrity, message)
        .with_way_out("What came from a registry is fetched anew when it is used."))
}

fn check(store: &Store, descriptor: &Descriptor) -> Result<()> {
    io::copy(&mut store.blob(descriptor)?, &mut io::sink())?;
    Ok(())
}
