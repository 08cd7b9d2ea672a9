//! Hostile layers: each is refused with a clear word or stays inside; what is outside never changes.

use std::path::Path;

use keel::error::Kind;
use keel::image::unpack::{Mode, Options};

use crate::archive::{Header, OVERLAY, Place, Tar, list, options, snapshot};
use crate::{needs, root, tests};

tests![
    no_name_leads_out,
    links_among_the_parents_stay_inside,
    links_of_an_earlier_layer_stay_inside,
    nothing_is_done_through_a_link_in_the_last_place,
    hard_links_stay_inside,
    the_root_stays_a_directory,
    a_process_that_renames_in_the_tree_leads_nowhere,
];

/// What comes of a layer: an error that has this text, or these files.
enum Outcome {
    Refused(&'static str),
    Files(&'static [&'static str]),
}
use Outcome::{Files, Refused};

/// Unpacks the layers into one tree, in the mode given and with the sentinels watched.
fn try_layers(what: &str, mode: Mode, layers: &[Tar], place: &Place, expected: &Outcome) {
    let outside = snapshot(&place.0.join("outside"));
    let mut result = Ok(());
    for layer in layers {
        let options = Options { devices: true, ..options(mode) };
        result = result.and(place.unpack_with(&layer.clone().end(), &options).map(drop));
    }
    assert_eq!(snapshot(&place.0.join("outside")), outside, "{what}: the sentinels changed");
    assert_eq!(
        list(&place.0).iter().filter(|line| !line.contains('/')).count(),
        2,
        "{what}: something new beside"
    );
    match (expected, result) {
        (Refused(text), Err(error)) => {
            assert!(error.to_string().contains(text), "{what}: {error}");
            assert!(error.to_string().starts_with("layer 2/3 (sha256:"), "{what}: {error}");
            assert_eq!(error.kind(), Kind::Integrity, "{what}");
            assert!(error.way_out().is_some_and(|text| text.contains("malformed or hostile")), "{what}");
        }
        (Files(files), Ok(())) => assert_eq!(place.list(), *files, "{what}"),
        (_, result) => panic!("{what}: {result:?}, {:?}", place.list()),
    }
}

fn try_both(what: &str, make: impl Fn(&Place) -> Tar, expected: Outcome) {
    for mode in [OVERLAY, Mode::Apply] {
        let place = Place::new(&format!("{}-{}", what.replace([' ', '/'], "-"), mode == Mode::Apply));
        try_layers(what, mode, &[make(&place)], &place, &expected);
    }
}

fn no_name_leads_out() {
    needs!(root());
    let table: &[(&str, Outcome)] = &[
        ("../outside/new", Refused("leads out of the layer")),
        ("a/../../outside/new", Refused("leads out of the layer")),
        ("a/..", Refused("leads out of the layer")),
        ("..", Refused("leads out of the layer")),
        ("/etc", Files(&["etc file 1"])),
        ("//./etc", Files(&["etc file 1"])),
        ("./", Files(&[])),
        (".", Refused("the root must be a directory")),
        ("/", Files(&[])),
        ("...", Files(&["... file 1"])),
        ("a\nb", Files(&["a\nb file 1"])),
        (".wh.", Refused("a whiteout of no name")),
        (".wh..", Refused("a whiteout of no name")),
        (".wh...", Refused("a whiteout of no name")),
        ("a/.wh..", Refused("a whiteout of no name")),
        (".wh.a/b", Refused("named like a whiteout")),
    ];
    for (name, expected) in table {
        for mode in [OVERLAY, Mode::Apply] {
            let place = Place::new("names");
            try_layers(name, mode, &[Tar::new().file(name, "x")], &place, expected);
        }
    }
}

fn links_among_the_parents_stay_inside() {
    needs!(root());
    try_both(
        "relative link out",
        |_| Tar::new().symlink("a", "../outside").file("a/passwd", "evil"),
        Files(&["a -> ../outside", "outside dir", "outside/passwd file 4"]),
    );
    try_both(
        "link chain out",
        |_| Tar::new().symlink("a", "b/..").symlink("b", "../..").file("a/x", "evil"),
        Files(&["a -> b/..", "b -> ../..", "x file 4"]),
    );
    try_both(
        "links in a circle",
        |_| Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "evil"),
        Refused("too many symbolic links"),
    );
    try_both(
        "a file as parent",
        |_| Tar::new().file("a", "x").file("a/x", "evil"),
        Refused("is no directory"),
    );
    try_both(
        "a fifo as parent",
        |_| Tar::new().header(Header::new("a", b'6')).file("a/x", "evil"),
        Refused("is no directory"),
    );
    // The absolute link's target differs from place to place.
    for mode in [OVERLAY, Mode::Apply] {
        let place = Place::new("absolute");
        let outside = snapshot(&place.0.join("outside"));
        let target = place.outside("");
        let layer = Tar::new().symlink("a", &target).file("a/passwd", "evil").dir("a/directory");
        place.unpack(layer, mode).unwrap();
        assert_eq!(snapshot(&place.0.join("outside")), outside);
        let inside = format!("{}passwd", target.trim_start_matches('/'));
        assert_eq!(place.read(&inside), "evil");
    }
}

fn links_of_an_earlier_layer_stay_inside() {
    needs!(root());
    let place = Place::new("earlier");
    let first = Tar::new().symlink("a", "../outside").symlink("b", &place.outside("passwd")).dir("d");
    let second = Tar::new().file("a/passwd", "evil").file("a/.wh.link", "").file("a/.wh..wh..opq", "");
    let expected = Files(&["a -> ../outside", "b file 4", "d dir", "outside dir", "outside/passwd file 4"]);
    try_layers("earlier", Mode::Apply, &[first, second.file("b", "evil")], &place, &expected);
}

fn nothing_is_done_through_a_link_in_the_last_place() {
    needs!(root());
    let place = Place::new("last");
    let link = |name: &str| Tar::new().symlink("a", &place.outside(name));
    let mut directory = Header::new("a", b'5');
    directory.mode = 0o777;
    let table = [
        ("chmod by a directory", link("directory").header(directory), Files(&["a dir"])),
        ("write", link("passwd").file("a", "evil"), Files(&["a file 4"])),
        ("create", link("new").file("a", "evil"), Files(&["a file 4"])),
        ("fifo", link("passwd").header(Header::new("a", b'6')), Files(&["a fifo"])),
    ];
    for (what, layer, expected) in table {
        try_layers(what, Mode::Apply, &[layer, Tar::new()], &place, &expected);
        std::fs::remove_dir_all(place.root()).unwrap();
        std::fs::create_dir(place.root()).unwrap();
    }
}

fn hard_links_stay_inside() {
    needs!(root());
    try_both(
        "to dot dot",
        |_| Tar::new().hardlink("a", "../outside/passwd"),
        Refused("is outside the layer"),
    );
    try_both("to a directory", |_| Tar::new().dir("d").hardlink("a", "d"), Refused("is a directory"));
    try_both("to the root", |_| Tar::new().hardlink("a", "/"), Refused("is a directory"));
    try_both(
        "to itself",
        |_| Tar::new().file("a", "x").hardlink("a", "./a"),
        Refused("a hard link to itself"),
    );
    try_both(
        "to itself by another name",
        |_| Tar::new().dir("d").file("d/a", "x").symlink("e", "d").hardlink("e/a", "d/a"),
        Refused("is replaced by the link itself"),
    );
    try_both(
        "over its own parent",
        |_| Tar::new().dir("d").file("d/a", "x").hardlink("d", "d/a"),
        Refused("is replaced by the link itself"),
    );
    try_both(
        "to a link that leads out",
        |_| Tar::new().symlink("a", "../outside/passwd").hardlink("b", "a").file("b", "evil"),
        Files(&["a -> ../outside/passwd", "b file 4"]),
    );
    // Missing in the layer: for the layers below in one mode, an error in the other.
    let layers = |place: &Place| {
        [
            Tar::new().hardlink("b", &place.outside("passwd")),
            Tar::new().symlink("a", "../outside").hardlink("b", "a/passwd"),
            Tar::new().symlink("a", &place.outside("")).hardlink("b", "a/passwd"),
            Tar::new().file("x", "").hardlink("b", "x/y"),
        ]
    };
    for i in 0..4 {
        let place = Place::new("missing");
        let layer = layers(&place)[i].clone();
        try_layers("missing", Mode::Apply, &[layer], &place, &Refused("does not exist"));
        let place = Place::new("below");
        let lacks = place.unpack(layers(&place)[i].clone(), OVERLAY).unwrap().lacks;
        assert_eq!(lacks.links.len(), 1);
        assert_eq!(lacks.links[0].0, Path::new("b"));
        assert!(!place.root().join("b").exists());
    }
    let place = Place::new("removed");
    let layers = [Tar::new().file("a", "x"), Tar::new().file(".wh.a", "").hardlink("b", "a")];
    try_layers("removed", Mode::Apply, &layers, &place, &Refused("does not exist"));
}

fn the_root_stays_a_directory() {
    needs!(root());
    for name in [".", "/", "./", "/."] {
        let layer =
            |place: &Place| Tar::new().symlink(name, &place.outside("directory")).file("file", "evil");
        try_both("root as link", layer, Refused("the root must be a directory"));
        try_both(
            "root as hard link",
            |_| Tar::new().hardlink(name, "x"),
            Refused("the root must be a directory"),
        );
    }
}

fn a_process_that_renames_in_the_tree_leads_nowhere() {
    needs!(root());
    let place = Place::new("renames");
    let outside = snapshot(&place.0.join("outside"));
    let top = place.root();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Swaps the directory with a link to the sentinels.
            let (target, link) = (top.join("a/b"), top.join("link"));
            std::os::unix::fs::symlink(place.0.join("outside"), &link).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                // ENOENT while it is not there yet.
                let _ = nix::fcntl::renameat2(
                    nix::fcntl::AT_FDCWD,
                    Path::new(&target),
                    nix::fcntl::AT_FDCWD,
                    Path::new(&link),
                    flags,
                );
            }
        });
        let mut layer = Tar::new().dir("a");
        for i in 0..3000 {
            layer = layer.dir("a/b").file(format!("a/b/passwd{}", i % 7), "evil").file("a/b/passwd", "evil");
            layer = layer.file("c", "").file("a/b/.wh.link", "").file("a/b/.wh.passwd", "");
        }
        // An error is as good as success: the tree is the swapper's too.
        let result = place.unpack(layer, Mode::Apply);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Err(error) = result {
            println!("{error}");
        }
    });
    assert_eq!(snapshot(&place.0.join("outside")), outside);
}
