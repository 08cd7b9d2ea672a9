//! Any text as the name of an image: no panic, what is let pass reads the same when it is written out, and no part of it
//! leads elsewhere in a URL or in a path.
#![no_main]

use keel::image::reference::{Named, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(reference) = Reference::parse(text) else { return };
    let full = reference.to_string();
    let again = Reference::parse(&full).expect("it reads as it was written");
    assert_eq!(again, reference, "{text:?} {full:?}");
    if let Reference::Registry(Named { registry, repository, tag, .. }) = reference {
        assert!(!repository.split('/').any(|part| part.is_empty() || part.starts_with('.')), "{text:?}");
        let url = format!("{registry}/{repository}/{}", tag.unwrap_or_default());
        assert!(!url.contains(['?', '#', '%', '@', '\\', ' ']) && !url.contains(char::is_control), "{text:?}");
    }
});
