//! Layers as they should be: what each entry becomes, and what layers do to each other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use keel::image::compression::Compression;
use keel::image::unpack::{Mode, Options, Owners, Range, unpack};

use crate::archive::{Header, OVERLAY, Place, Tar, options, snapshot, spec, xattrs};
use crate::{needs, program, root, tests};

tests![
    whiteouts_take_away_what_lower_layers_brought,
    a_layer_for_overlayfs_carries_its_whiteouts,
    a_duplicate_replaces_what_it_repeats,
    modes_owners_times_and_attributes_are_the_layers,
    a_directory_of_a_lower_layer_takes_the_new_attributes_and_else_keeps_its_own,
    devices_are_made_only_when_asked_for,
    owners_are_kept_mapped_or_squashed,
    a_real_tree_is_as_gnu_tar_and_bsdtar_unpack_it,
    layers_on_each_other_are_as_umoci_unpacks_them,
];

fn apply(layers: &[Tar]) -> Vec<String> {
    let place = Place::new("apply");
    for layer in layers {
        place.unpack(layer.clone(), Mode::Apply).unwrap();
    }
    place.list()
}

fn whiteouts_take_away_what_lower_layers_brought() {
    needs!(root());
    let base =
        || Tar::new().dir("a").file("a/1", "").dir("a/b").file("a/b/2", "").file("c", "").symlink("l", "a");
    let table: &[(Tar, &[&str])] = &[
        (Tar::new().file(".wh.a", ""), &["c file 0", "l -> a"]),
        (Tar::new().file(".wh.c", "").file("a/.wh.1", ""), &["a dir", "a/b dir", "a/b/2 file 0", "l -> a"]),
        (Tar::new().file(".wh.l", ""), &["a dir", "a/1 file 0", "a/b dir", "a/b/2 file 0", "c file 0"]),
        (Tar::new().file("l/.wh.b", ""), &["a dir", "a/1 file 0", "c file 0", "l -> a"]),
        (Tar::new().file("a/.wh..wh..opq", ""), &["a dir", "c file 0", "l -> a"]),
        (Tar::new().file(".wh..wh..opq", ""), &[]),
        (
            Tar::new().file("x/.wh.y", "").file(".wh.z", ""),
            &["a dir", "a/1 file 0", "a/b dir", "a/b/2 file 0", "c file 0", "l -> a"],
        ),
        // What the layer itself brings stays, before and after.
        (
            Tar::new().dir("a").file("a/1", "new").file("a/.wh..wh..opq", "").file("a/3", ""),
            &["a dir", "a/1 file 3", "a/3 file 0", "c file 0", "l -> a"],
        ),
        (
            Tar::new().file("a/b/3", "").file(".wh.a", ""),
            &["a dir", "a/b dir", "a/b/3 file 0", "c file 0", "l -> a"],
        ),
        (
            Tar::new().file(".wh.a", "").file("a/b/3", ""),
            &["a dir", "a/b dir", "a/b/3 file 0", "c file 0", "l -> a"],
        ),
        (
            Tar::new().file("c", "new").file(".wh.c", ""),
            &["a dir", "a/1 file 0", "a/b dir", "a/b/2 file 0", "c file 3", "l -> a"],
        ),
        // Another kind of file.
        (Tar::new().file("a", "").dir("c").symlink("l", "x"), &["a file 0", "c dir", "l -> x"]),
        (
            Tar::new().symlink("a", "c").dir("l").file("l/x", ""),
            &["a -> c", "c file 0", "l dir", "l/x file 0"],
        ),
        (
            Tar::new().file("x", "1").hardlink("a", "x").hardlink("c", "x"),
            &["a file 1", "c file 1", "l -> a", "x file 1"],
        ),
        (
            Tar::new().file(".wh..wh.plnk", "").file(".wh..wh.plnk/1", ""),
            &["a dir", "a/1 file 0", "a/b dir", "a/b/2 file 0", "c file 0", "l -> a"],
        ),
    ];
    for (i, (layer, expected)) in table.iter().enumerate() {
        assert_eq!(apply(&[base(), layer.clone()]), *expected, "layer {i}");
    }
}

fn a_layer_for_overlayfs_carries_its_whiteouts() {
    needs!(root());
    let place = Place::new("overlay");
    let layer = Tar::new()
        .file("a/.wh.1", "")
        .file("b/.wh..wh..opq", "")
        .file("b/.wh.2", "")
        .file("b/new", "")
        .file("c/new", "")
        .file(".wh.c", "")
        .file(".wh.d", "")
        .dir("d")
        .file(".wh.e", "")
        .file("e", "")
        .file("f/.wh.x", "")
        .file("f", "");
    let unpacked = place.unpack(layer, OVERLAY).unwrap();
    let expected = [
        "a dir",
        "a/1 whiteout",
        "b dir",
        "b/new file 0",
        "c dir",
        "c/new file 0",
        "d dir",
        "e file 0",
        "f file 0",
    ];
    assert_eq!(place.list(), expected);
    let opaque = |name| xattrs(&place.root().join(name));
    for (name, expected) in [("a", ""), ("b", "0x79"), ("c", "0x79"), ("d", "0x79")] {
        let expected =
            if expected.is_empty() { "".into() } else { format!("trusted.overlay.opaque={expected}") };
        assert_eq!(opaque(name), expected, "{name}");
    }
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    assert_eq!(unpacked.lacks.whiteouts, paths(&["a/1"]));
    assert_eq!(unpacked.lacks.implied, paths(&["", "a", "b", "c"]));
    assert!(!unpacked.lacks.opaque && unpacked.lacks.links.is_empty());

    let place = Place::new("opaque-top");
    let layer = Tar::new()
        .dir("./")
        .file(".wh..wh..opq", "")
        .hardlink("a/b", "usr/x")
        .hardlink("c", "usr/y")
        .file("c", "");
    let lacks = place.unpack(layer, OVERLAY).unwrap().lacks;
    assert!(lacks.opaque);
    assert_eq!(lacks.implied, paths(&["a"]));
    assert_eq!(lacks.links, [(PathBuf::from("a/b"), PathBuf::from("usr/x"))]);

    let place = Place::new("user");
    place.unpack(Tar::new().file("b/.wh..wh..opq", ""), Mode::Overlay { user_xattr: true }).unwrap();
    assert_eq!(xattrs(&place.root().join("b")), "user.overlay.opaque=0x79");
}

fn a_duplicate_replaces_what_it_repeats() {
    needs!(root());
    for mode in [OVERLAY, Mode::Apply] {
        let place = Place::new("duplicates");
        let layer = Tar::new()
            .file("a", "1")
            .file("a", "22")
            .hardlink("b", "a")
            .file("a", "333")
            .dir("d")
            .file("d/x", "")
            .file("d", "")
            .dir("d")
            .file("d/y", "")
            .symlink("s", "d")
            .dir("s");
        place.unpack(layer, mode).unwrap();
        assert_eq!(place.list(), ["a file 3", "b file 2", "d dir", "d/y file 0", "s dir"]);
    }
}

fn modes_owners_times_and_attributes_are_the_layers() {
    needs!(root());
    let place = Place::new("attributes");
    let header = |name: &str, kind, mode, uid, gid| Header { mode, uid, gid, ..Header::new(name, kind) };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Tar::new()
        .header(header("./", b'5', 0o751, 5, 6))
        .header(header("g", b'5', 0o2775, 0, 50))
        .header(header("g/file", b'0', 0o644, 0, 0))
        .header(header("g/sub", b'5', 0o755, 0, 0))
        .header(header("sticky", b'5', 0o1777, 0, 0))
        .header(header("suid", b'0', 0o6755, 7, 8))
        .header(header("rootsuid", b'0', 0o4711, 0, 0))
        .header(header("closed", b'5', 0, 0, 0))
        .file("closed/file", "")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.x", b"a=\0b"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .header(header("ping", b'0', 0o755, 9, 9));
    let unpacked = place.unpack(layer, OVERLAY).unwrap();
    let seen = |name: &str| {
        let meta = fs::symlink_metadata(place.root().join(name)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime())
    };
    let time = 1_000_000_000;
    for (name, mode, uid, gid) in [
        ("", 0o751, 5, 6),
        ("g", 0o2775, 0, 50),
        ("g/file", 0o644, 0, 0),
        ("g/sub", 0o755, 0, 0),
        ("sticky", 0o1777, 0, 0),
        ("suid", 0o6755, 7, 8),
        ("rootsuid", 0o4711, 0, 0),
        ("closed", 0, 0, 0),
        ("ping", 0o755, 9, 9),
    ] {
        assert_eq!(seen(name), (mode, uid, gid, time), "{name:?}");
    }
    let hex: String = capability.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = format!("security.capability=0x{hex} user.x=0x613d0062");
    assert_eq!(xattrs(&place.root().join("ping")), expected);
    let warnings = [
        "extended attributes trusted.* are left out: \"ping\"",
        "extended attributes user.overlay.* are left out: \"ping\"",
    ];
    assert_eq!(unpacked.warnings, warnings);
}

fn a_directory_of_a_lower_layer_takes_the_new_attributes_and_else_keeps_its_own() {
    needs!(root());
    let place = Place::new("lower");
    let layer =
        Tar::new().pax(&[("SCHILY.xattr.user.old", b"1")]).dir("a").dir("b").dir("b/c").file("b/c/x", "");
    place.unpack(layer, Mode::Apply).unwrap();
    let changed = Header { mode: 0o700, uid: 3, gid: 4, ..Header::new("a", b'5') };
    let layer = Tar::new()
        .pax(&[("SCHILY.xattr.user.new", b"1")])
        .header(changed)
        .file("b/c/y", "")
        .file("b/c/.wh.x", "");
    place.unpack(layer, Mode::Apply).unwrap();
    let meta = fs::metadata(place.root().join("a")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o700, 3, 4));
    assert_eq!(xattrs(&place.root().join("a")), "user.new=0x31");
    for name in ["b", "b/c"] {
        assert_eq!(fs::metadata(place.root().join(name)).unwrap().mtime(), 1_000_000_000, "{name}");
    }
    assert_eq!(place.list(), ["a dir", "b dir", "b/c dir", "b/c/y file 0"]);
}

fn devices_are_made_only_when_asked_for() {
    needs!(root());
    let layer = || {
        Tar::new().device("dev/null", b'3', (1, 3)).device("dev/sda", b'4', (8, 0)).hardlink("n", "dev/null")
    };
    let place = Place::new("no-devices");
    let unpacked = place.unpack(layer(), OVERLAY).unwrap();
    assert_eq!((unpacked.devices_skipped, place.list().len()), (3, 0));
    assert_eq!(unpacked.lacks.links, []);
    let place = Place::new("devices");
    let unpacked = place.unpack_with(&layer().end(), &Options { devices: true, ..options(OVERLAY) }).unwrap();
    assert_eq!(unpacked.devices_skipped, 0);
    assert_eq!(fs::metadata(place.root().join("n")).unwrap().rdev(), libc::makedev(1, 3));
    assert_eq!(fs::metadata(place.root().join("dev/sda")).unwrap().rdev(), libc::makedev(8, 0));
}

fn owners_are_kept_mapped_or_squashed() {
    needs!(root());
    let layer = || {
        let header = |name: &str, kind| Header { uid: 5, gid: 6, ..Header::new(name, kind) };
        Tar::new().header(header("f", b'0')).header(header("d", b'5')).header(header("p", b'6')).end()
    };
    let ranges = vec![Range { inside: 0, outside: 100_000, count: 10 }];
    let mapped = Owners::Mapped { uids: ranges.clone(), gids: ranges };
    for (owners, expected) in
        [(Owners::Kept, (5, 6)), (mapped.clone(), (100_005, 100_006)), (Owners::Squashed, (0, 0))]
    {
        let place = Place::new("owners");
        place.unpack_with(&layer(), &Options { owners, ..options(OVERLAY) }).unwrap();
        for name in ["f", "d", "p"] {
            let meta = fs::metadata(place.root().join(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), expected, "{name}");
        }
    }
    let place = Place::new("unmapped");
    let layer = Tar::new().header(Header { uid: 10, ..Header::new("f", b'0') }).end();
    let error = place.unpack_with(&layer, &Options { owners: mapped, ..options(OVERLAY) }).unwrap_err();
    assert!(error.to_string().ends_with("entry \"f\": uid 10 is not in the id map"), "{error}");
}

/// A tree like a system's, packed by GNU tar, unpacked by all.
fn a_real_tree_is_as_gnu_tar_and_bsdtar_unpack_it() {
    needs!(root());
    let place = Place::new("real");
    let script = r#"
        mkdir src gnu bsd && cd src
        cp -a /etc/. etc 2>/dev/null; cp -a /usr/share/perl5 . 2>/dev/null
        mkdir -p var/local var/tmp many; chmod 1777 var/tmp; chown 0:50 var/local; chmod 2775 var/local
        for i in $(seq 300); do echo $i > many/$i; done; ln many/1 many/hard; ln many/2 var/hard
        ln -s /etc/passwd link; ln many/300 many/zz; mkfifo fifo; mknod null c 1 3; cp -a link link2
        cp /bin/true ping; setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 ping
        setfattr -n user.text -v value var; touch -d 1950-01-01 old; touch -d 2200-01-01 new; chmod 6755 ping
        mkdir -p "$(printf 'deep/%.0s' $(seq 60))"; touch "$(printf 'n%.0s' $(seq 250))"
        touch 'a name with
        newline'; chown -h 1234:4321 link2; chown 70000:80000 old
        cd .. && tar --format=posix --xattrs --xattrs-include='*' -C src -cf layer.tar . &&
        tar --xattrs --xattrs-include='*' --same-owner -C gnu -xpf layer.tar &&
        bsdtar --numeric-owner -C bsd -xpf layer.tar"#;
    assert!(Command::new("sh").args(["-c", script]).current_dir(&place.0).status().unwrap().success());
    let layer = fs::read(place.0.join("layer.tar")).unwrap();
    let made = |dir: &str| snapshot(&place.0.join(dir));
    place.unpack_with(&layer, &Options { devices: true, ..options(OVERLAY) }).unwrap();
    let ours = made("root");
    assert!(ours.len() > 500);
    same(&ours, &made("src"));
    same(&ours, &made("gnu"));
    same(&ours, &made("bsd"));
    fs::remove_dir_all(place.root()).unwrap();
    fs::create_dir(place.root()).unwrap();
    for _ in 0..2 {
        place.unpack_with(&layer, &Options { devices: true, ..options(Mode::Apply) }).unwrap();
        same(&made("root"), &ours);
    }
}

fn same(ours: &[String], theirs: &[String]) {
    let only =
        |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>();
    assert_eq!((only(ours, theirs), only(theirs, ours)), (vec![], vec![]));
}

/// Layers that change each other's files, against umoci.
fn layers_on_each_other_are_as_umoci_unpacks_them() {
    needs!(root(), program("umoci"));
    let place = Place::new("umoci");
    let layers = [
        Tar::new()
            .dir("./")
            .dir("a")
            .file("a/1", "one")
            .dir("a/b")
            .file("a/b/2", "two")
            .symlink("l", "a")
            .file("c", "c"),
        Tar::new()
            .file("l/3", "three")
            .file("a/.wh.1", "")
            .symlink("c", "a/b")
            .hardlink("h", "l/b/2")
            .dir("n/m"),
        Tar::new()
            .file("c/4", "four")
            .file("a/b/.wh..wh..opq", "")
            .file("a/b/5", "five")
            .file(".wh.n", "")
            .file("l", "file"),
        Tar::new().dir("c").file("c/x", "").file("x/y/z", "").hardlink("x/h", "h"),
    ];
    let blobs = place.0.join("image/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let store = |data: &[u8]| {
        let digest = crate::archive::digest(data);
        fs::write(blobs.join(&digest[7..]), data).unwrap();
        (digest, data.len())
    };
    let plain: Vec<Vec<u8>> = layers.iter().map(|layer| layer.clone().end()).collect();
    let stored: Vec<_> = plain.iter().map(|layer| store(layer)).collect();
    let descriptor = |kind: &str, (digest, size): &(String, usize)| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size});
    let diff_ids: Vec<_> = stored.iter().map(|(digest, _)| digest).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = store(config.to_string().as_bytes());
    let layers: Vec<_> = stored.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "config": descriptor("config.v1+json", &config), "layers": layers});
    let mut entry = descriptor("manifest.v1+json", &store(manifest.to_string().as_bytes()));
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "latest"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(place.0.join("image/index.json"), index.to_string()).unwrap();
    fs::write(place.0.join("image/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let run = Command::new("umoci")
        .args(["unpack", "--image", "image:latest", "bundle"])
        .current_dir(&place.0)
        .output();
    let run = run.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    for layer in &plain {
        unpack(&layer[..], &spec(layer, layer, Compression::None), place.target(), &options(Mode::Apply))
            .unwrap();
    }
    // What no layer speaks of is as old as its making.
    let known = |line: &String| !line.starts_with("\"x");
    let made = |dir: &str| snapshot(&place.0.join(dir)).into_iter().filter(known).collect::<Vec<_>>();
    same(&made("root"), &made("bundle/rootfs"));
    assert!(Path::new(&place.0.join("bundle/rootfs/x/y/z")).exists());
}
