//! Any bytes as a plain layer, and again onto what it has made: no panic, and nothing changes beside the tree.
#![no_main]

use std::fs::{self, File};

use keel::image::unpack::extract::extract;
use keel::image::unpack::{LayerLimits, Mode, Options, Owners};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let top = std::env::temp_dir().join(format!("keel-fuzz-{}", std::process::id()));
    let limits = LayerLimits { entries: 200, bytes: 1 << 20, free: 0, ..LayerLimits::default() };
    fs::create_dir_all(top.join("root")).expect("a directory");
    fs::write(top.join("sentinel"), "sentinel").expect("a file");
    for mode in [Mode::Overlay { user_xattr: false }, Mode::Apply] {
        let options = Options { mode, limits: limits.clone(), owners: Owners::Squashed, devices: false };
        let target = File::open(top.join("root")).expect("the directory");
        // Refused or not: both are good.
        let _ = extract(data, target.into(), &options);
        let beside: Vec<_> = fs::read_dir(&top).expect("a directory").collect();
        assert_eq!(beside.len(), 2);
        assert_eq!(fs::read(top.join("sentinel")).expect("it is there"), b"sentinel");
    }
    fs::remove_dir_all(&top).expect("it can be removed");
});
