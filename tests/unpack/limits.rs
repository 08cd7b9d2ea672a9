//! Damaged blobs, and layers that cost too much.

use std::io::{Read, Write};

use flate2::{Compression as Level, write::GzEncoder};
use keel::error::{Error, Kind};
use keel::image::compression::Compression;
use keel::image::unpack::{LayerLimits, LayerSpec, Options, unpack};
use nix::mount::{MsFlags, mount};

use crate::archive::{Header, OVERLAY, Place, Tar, digest, options, spec};
use crate::kernel::with_own_mounts;
use crate::{needs, root, tests};

tests![
    every_compression_unpacks_in_one_or_several_members,
    a_damaged_blob_is_an_error_wherever_it_ends,
    digests_and_size_are_checked,
    an_endless_body_ends_at_its_size,
    a_window_of_two_gigabytes_is_refused,
    each_limit_has_its_error,
    a_bomb_is_stopped_early,
    a_full_disk_is_told_from_other_errors,
    a_disk_is_kept_free_while_one_file_fills_it,
    a_stream_that_breaks_says_why,
];

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

fn layer() -> Vec<u8> {
    Tar::new().file("a", "hello").file("b", vec![b'x'; 300_000]).end()
}

fn fails(stream: impl Read + Send, spec: &LayerSpec, options: &Options) -> Error {
    let place = Place::new("damaged");
    unpack(stream, spec, place.target(), options).map(drop).expect_err("it is damaged")
}

fn every_compression_unpacks_in_one_or_several_members() {
    needs!(root());
    let plain = layer();
    let (start, end) = plain.split_at(1000);
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], &zstd(&plain)[..]].concat();
    let table = [
        (plain.clone(), Compression::None),
        (gzip(&plain), Compression::Gzip),
        ([gzip(start), gzip(end)].concat(), Compression::Gzip),
        (zstd(&plain), Compression::Zstd),
        ([zstd(start), zstd(end)].concat(), Compression::Zstd),
        (skipped, Compression::Zstd),
    ];
    for (blob, compression) in table {
        assert_eq!(Compression::of_blob(&blob), compression);
        let place = Place::new("compression");
        let unpacked =
            unpack(&blob[..], &spec(&blob, &plain, compression), place.target(), &options(OVERLAY)).unwrap();
        assert_eq!((unpacked.entries, unpacked.bytes), (2, 300_005));
        assert_eq!(place.list(), ["a file 5", "b file 300000"]);
    }
}

fn a_damaged_blob_is_an_error_wherever_it_ends() {
    needs!(root());
    let plain = layer();
    for (compression, blob) in [(Compression::Gzip, gzip(&plain)), (Compression::Zstd, zstd(&plain))] {
        let double = [blob.clone(), blob.clone()].concat();
        let garbage = [&blob[..], b"garbage"].concat();
        let ends = [0, 1, 5, blob.len() / 2, blob.len() - 1, blob.len() + 3, 2 * blob.len() - 1];
        for blob in ends.iter().map(|&end| &double[..end]).chain([&garbage[..]]) {
            // The digest is right, the data is not.
            let mut spec = spec(blob, &plain, compression);
            let error = fails(blob, &spec, &options(OVERLAY));
            assert_eq!(error.kind(), Kind::Integrity, "{} bytes: {error}", blob.len());
            // Neither is right: the digest explains it.
            spec.digest = digest(b"other");
            let error = fails(blob, &spec, &options(OVERLAY)).to_string();
            assert!(error.contains(&format!("the digest is {}, not", digest(blob))), "{error}");
        }
    }
}

fn digests_and_size_are_checked() {
    needs!(root());
    let plain = layer();
    for (compression, blob) in [(Compression::None, plain.clone()), (Compression::Gzip, gzip(&plain))] {
        let good = spec(&blob, &plain, compression);
        let size = blob.len() as u64;
        let other = digest(b"other");
        let table = [
            (LayerSpec { digest: other.clone(), ..good.clone() }, "digest"),
            (LayerSpec { diff_id: other.clone(), ..good.clone() }, "diff_id"),
            (LayerSpec { size: size - 1, ..good.clone() }, "the blob is longer than"),
            (LayerSpec { size: size + 1, ..good.clone() }, "the blob ends after"),
            (
                LayerSpec { digest: "sha256:../../etc".into(), ..good.clone() },
                "is no sha256 or sha512 digest",
            ),
            (LayerSpec { diff_id: "md5:00".into(), ..good.clone() }, "is no sha256 or sha512 digest"),
        ];
        for (spec, text) in table {
            let error = fails(&blob[..], &spec, &options(OVERLAY));
            // The two are the same of what is not compressed.
            let same = compression == Compression::None && !text.starts_with("the blob");
            let text = if same { "it is not compressed, but its diff_id is" } else { text };
            assert!(error.to_string().contains(text), "{text}: {error}");
            assert_eq!(error.kind(), Kind::Integrity, "{error}");
        }
    }
    // What follows the archive's end is a part of what is hashed.
    let mut longer = plain.clone();
    longer.extend([7; 5000]);
    let blob = gzip(&longer);
    let error = fails(&blob[..], &spec(&blob, &plain, Compression::Gzip), &options(OVERLAY));
    assert!(error.to_string().contains(&format!("the diff_id is {}", digest(&longer))), "{error}");
    let place = Place::new("longer");
    unpack(&blob[..], &spec(&blob, &longer, Compression::Gzip), place.target(), &options(OVERLAY)).unwrap();
}

fn an_endless_body_ends_at_its_size() {
    let spec = LayerSpec { size: 10_000_000, ..spec(b"", b"", Compression::Gzip) };
    let error = fails(std::io::repeat(0), &spec, &options(OVERLAY));
    assert!(error.to_string().contains("the blob is longer than the 10000000 bytes"), "{error}");
}

fn a_window_of_two_gigabytes_is_refused() {
    // Frame header: no content size, window descriptor for 2 GiB; then an empty last block.
    let blob = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 1, 0, 0];
    let error = fails(&blob[..], &spec(&blob, b"", Compression::Zstd), &options(OVERLAY));
    assert!(error.to_string().contains("the zstd data: "), "{error}");
    assert!(
        error.to_string().to_lowercase().contains("memory") || error.to_string().contains("indow"),
        "{error}"
    );
}

fn each_limit_has_its_error() {
    needs!(root());
    let file = |data: &[u8]| Tar::new().file("a", data);
    let long = vec![b'x'; 300];
    let deep = "d/".repeat(90);
    let set = |change: fn(&mut LayerLimits)| {
        let mut options = options(OVERLAY);
        change(&mut options.limits);
        options
    };
    let pax = |key, value: &[u8]| Tar::new().pax(&[(key, value)]).file("a", "");
    let huge = Header { size: 1 << 32, ..Header::new("x", b'x') };
    let map = (0..200_000).map(|i| format!("{i},0")).collect::<Vec<_>>().join(",");
    let table = [
        ("entries", file(b"").file("b", "").file("c", ""), set(|limits| limits.entries = 2)),
        // One that is said, and those that had to be made for it.
        ("entries", Tar::new().file("b/b/b/b", ""), set(|limits| limits.entries = 3)),
        ("bytes", file(&[0; 2000]), set(|limits| limits.bytes = 1999)),
        ("path", pax("path", &[b'x'; 5000]), set(|_| {})),
        ("path", pax("path", &b"a/".repeat(5000)), set(|_| {})),
        ("path", pax("linkpath", &[b'x'; 5000]), set(|_| {})),
        ("path", pax("path", &long), set(|_| {})),
        ("depth", pax("path", deep.as_bytes()), set(|limits| limits.depth = 50)),
        ("depth", pax("path", &b"a/".repeat(2000)), set(|_| {})),
        ("pax", pax("comment", &[b'x'; 1 << 20]), set(|_| {})),
        ("pax", Tar::new().header(huge), set(|_| {})),
        ("memory", file(b"").file(".wh.a", "").file(".wh.b", ""), set(|limits| limits.memory = 40)),
        ("memory", file(b"").hardlink("b", "below"), set(|limits| limits.memory = 29)),
        ("memory", Tar::new().file("b/b/b", ""), set(|limits| limits.memory = 1 + 3 + 2 * 24 - 1)),
        ("memory", file(b"").device("null", b'3', (1, 3)), set(|limits| limits.memory = 27)),
        ("pax", pax("GNU.sparse.map", map.as_bytes()), set(|_| {})),
    ];
    for (key, layer, options) in table {
        let plain = layer.end();
        let error = fails(&plain[..], &spec(&plain, &plain, Compression::None), &options);
        assert_eq!(error.kind(), Kind::Limit, "{key}: {error}");
        assert!(error.to_string().ends_with(&format!("(limit {key})")), "{key}: {error}");
        assert!(error.way_out().is_some_and(|text| text.contains(&format!("--limits {key}=N"))));
    }
}

fn a_bomb_is_stopped_early() {
    needs!(root());
    for (compression, key) in [(Compression::Gzip, "bytes"), (Compression::Zstd, "ratio")] {
        let plain = Tar::new().file("a", vec![0; 100 << 20]).end();
        let blob = if key == "bytes" { gzip(&plain) } else { zstd(&plain) };
        let mut options = options(OVERLAY);
        options.limits.bytes = if key == "bytes" { 1 << 20 } else { 1 << 40 };
        let error = fails(&blob[..], &spec(&blob, &plain, compression), &options);
        assert!(error.to_string().ends_with(&format!("(limit {key})")), "{error}");
        assert_eq!(error.kind(), Kind::Limit);
    }
}

fn a_full_disk_is_told_from_other_errors() {
    needs!(root());
    let mut low = options(OVERLAY);
    low.limits.free = 100;
    let plain = layer();
    let error = fails(&plain[..], &spec(&plain, &plain, Compression::None), &low);
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.to_string().contains("less than 100 % of the disk is free"), "{error}");
}

fn a_disk_is_kept_free_while_one_file_fills_it() {
    needs!(root());
    let place = Place::new("fills");
    with_own_mounts(|| {
        mount(Some("tmpfs"), &place.root(), Some("tmpfs"), MsFlags::empty(), Some("size=160m")).unwrap();
        let options =
            Options { limits: LayerLimits { free: 50, ..LayerLimits::default() }, ..options(OVERLAY) };
        let error = place.unpack_with(&Tar::new().file("a", vec![1; 150 << 20]).end(), &options).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert!(error.to_string().contains("entry \"a\": less than 50 % of the disk is free"), "{error}");
        // As much as lies between two looks.
        let written = std::fs::metadata(place.root().join("a")).unwrap().len() >> 20;
        assert!((80..=144).contains(&written), "{written} MiB");
    });
}

fn a_stream_that_breaks_says_why() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(libc::ECONNRESET))
        }
    }
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let error = fails(Broken, &spec(b"", b"", compression), &options(OVERLAY));
        assert!(error.to_string().contains("read the blob: Connection reset by peer"), "{error}");
        assert_eq!(error.kind(), Kind::Other);
    }
}
