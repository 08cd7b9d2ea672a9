//! Any bytes as a manifest or index, as the parts of one, as a config and as a docker-archive's list: no panic, what is
//! let pass keeps to the limits, and what is an image is read in the same way by both readers.
#![no_main]

use keel::image::limits::DocumentLimits;
use keel::image::manifest::{Config, Document, Parts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = DocumentLimits { layers: 20, ..DocumentLimits::default() };
    for media_type in [None, Some("application/vnd.oci.image.index.v1+json")] {
        let document = Document::parse(data, media_type, &limits, "fuzz");
        let parts = Parts::of(data, media_type, &limits, "fuzz");
        match document {
            Ok(Document::Manifest(manifest)) => {
                assert!(manifest.layers.len() <= limits.layers);
                assert!(manifest.config.size <= limits.config);
                let parts = parts.expect("a manifest has parts");
                assert_eq!(parts.blobs.len(), manifest.layers.len() + 1);
                assert!(parts.manifests.is_empty());
                // Refused or not: both are good.
                let _ = Config::parse(data, &manifest);
            }
            Ok(Document::Index(index)) => {
                if let Ok(parts) = parts {
                    assert_eq!(parts.manifests, index);
                }
            }
            Err(_) => {}
        }
    }
});
