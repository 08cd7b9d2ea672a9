//! `keel-image ls`, `rm`, `prune`, `verify`, `umount`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use keel::image::digest::Digest;
use serde_json::json;

use crate::archive::Tar;
use crate::fixture::index_image;
use crate::images::{Image, busybox, root};
use crate::place::{Place, program};
use crate::{needs, tests};

tests![
    what_nothing_stands_on_is_pruned,
    a_bundle_keeps_what_it_stands_on,
    a_layer_that_is_mounted_outlives_its_image,
    a_name_that_is_not_there_cannot_be_removed,
    a_mount_is_taken_away,
    a_record_that_cannot_be_read_stops_a_prune,
    a_layer_that_something_has_changed_is_made_again_when_it_is_removed,
    what_cannot_be_read_stops_a_prune,
    a_directory_of_others_becomes_no_store,
    what_is_only_looked_at_is_not_made,
    a_full_stdout_is_an_error,
    jobs_are_offered_where_there_are_any,
    what_is_nowhere_else_is_on_the_disk_at_the_end,
];

fn image(content: &str) -> Image {
    Image::new(vec![Tar::new().file("same", "same"), Tar::new().file("own", content)], json!({"Cmd": ["/x"]}))
}

/// Pulls an image from a layout, and gives the layout's name.
fn pulled(place: &Place, name: &str) -> (String, Image) {
    let image = image(name);
    let reference = image.layout(place, name);
    place.image_ok(&["pull", &reference]);
    (reference, image)
}

fn what_nothing_stands_on_is_pruned() {
    needs!(root());
    let place = Place::new();
    let ((a, image), (_, other)) = (pulled(&place, "a"), pulled(&place, "b"));
    assert_eq!(place.image_ok(&["prune", "--json"]).json()["blobs"], 0);
    assert_eq!(place.image_ok(&["rm", &a]).stdout, format!("oci:{}\n", place.path("a").display()));
    assert_eq!(place.image_ok(&["ls"]).stdout.lines().count(), 3);
    let pruned = place.image_ok(&["prune", "--json"]).json();
    // The layer that both have stays.
    assert_eq!((&pruned["images"], &pruned["layers"], &pruned["blobs"]), (&json!(1), &json!(1), &json!(3)));
    assert!(!place.layer(&image.layers[1].1).exists() && place.layer(&other.layers[0].1).exists());
    assert_eq!(place.image_ok(&["ls", "--json"]).json().as_array().unwrap().len(), 1);
    place.image_ok(&["verify"]);
    assert_eq!(place.stored("trash"), [""; 0]);
}

fn a_bundle_keeps_what_it_stands_on() {
    needs!(root());
    let place = Place::new();
    let (reference, image) = pulled(&place, "a");
    place.image_ok(&["bundle", &reference, "bundle"]);
    place.image_ok(&["rm", &reference]);
    assert_eq!(place.image_ok(&["prune", "--json"]).json()["layers"], 0);
    assert!(place.layer(&image.layers[0].1).exists());
    fs::remove_dir_all(place.path("bundle")).unwrap();
    let pruned = place.image_ok(&["prune", "--json"]).json();
    assert_eq!((&pruned["bundles"], &pruned["blobs"]), (&json!(1), &json!(4)));
    assert_eq!((place.stored("layers"), place.stored("bundles")), (vec![], vec![]));
}

fn a_layer_that_is_mounted_outlives_its_image() {
    needs!(root(), program("unshare"));
    let place = Place::new();
    let (reference, image) = pulled(&place, "a");
    let lower = |i: usize| place.layer(&image.layers[i].1).join("fs").display().to_string();
    let script = format!(
        "mkdir m && mount -t overlay -o lowerdir={}:{} overlay m && {} --store store -q rm {reference} >&2 \
         && {} --store store -q prune >&2 && cat m/own",
        lower(0),
        lower(1),
        env!("CARGO_BIN_EXE_keel-image"),
        env!("CARGO_BIN_EXE_keel-image"),
    );
    let run = place.run_any("unshare", &["--mount", "sh", "-c", &script]);
    assert_eq!((run.code, run.stdout.as_str()), (0, "a"), "{run:?}");
    assert!(place.layer(&image.layers[0].1).exists());
    place.image_ok(&["prune"]);
    assert_eq!(place.stored("layers"), [""; 0]);
}

fn a_name_that_is_not_there_cannot_be_removed() {
    needs!(root());
    let place = Place::new();
    let (reference, _) = pulled(&place, "a");
    let run = place.image(&["rm", &reference, "nowhere"]);
    assert!(
        run.code == 3 && run.stderr.contains("remove docker.io/library/nowhere:latest: store"),
        "{run:?}"
    );
    assert_eq!(place.image_ok(&["ls", "--json"]).json().as_array().unwrap().len(), 1);
}

fn a_mount_is_taken_away() {
    needs!(root(), program("unshare"), program("busybox"));
    let place = Place::new();
    let reference = Image::new(vec![busybox()], json!({"Cmd": ["/bin/ls"]})).layout(&place, "a");
    let script = format!(
        "k='{} --store store -q'
        $k bundle {reference} b --rootfs=mount && ls b/rootfs && touch b/rootfs/new \
        && $k umount b && ls b/rootfs && ls b/upper && $k umount b",
        env!("CARGO_BIN_EXE_keel-image"),
    );
    let run = place.run_any("unshare", &["--mount", "sh", "-c", &script]);
    let path = place.path("b").canonicalize().unwrap();
    assert_eq!(run.stdout, format!("{0}\nbin\n{0}\nnew\n", path.display()), "{run:?}");
    assert!(run.code == 1 && run.stderr.contains("it was not mounted by bundle --rootfs=mount"), "{run:?}");
}

fn a_record_that_cannot_be_read_stops_a_prune() {
    needs!(root());
    let place = Place::new();
    let (reference, image) = pulled(&place, "a");
    place.image_ok(&["bundle", &reference, "bundle"]);
    place.image_ok(&["rm", &reference]);
    fs::write(place.path("store/bundles").join(&place.stored("bundles")[0]), "").unwrap();
    let run = place.image(&["prune"]);
    assert!(run.code == 1 && run.stderr.contains("it is no record of a bundle"), "{run:?}");
    assert!(place.layer(&image.layers[0].1).exists());
}

fn a_layer_that_something_has_changed_is_made_again_when_it_is_removed() {
    needs!(root());
    let place = Place::new();
    let (reference, image) = pulled(&place, "a");
    let layer = place.layer(&image.layers[0].1);
    fs::write(layer.join("lacks"), "").unwrap();
    let run = place.image(&["bundle", &reference, "b"]);
    let way_out =
        format!("Remove {}: what it holds is made again.\n", layer.canonicalize().unwrap().display());
    assert!(run.code == 1 && run.stderr.ends_with(&way_out), "{run:?}");
    fs::remove_dir_all(layer).unwrap();
    place.image_ok(&["bundle", &reference, "b"]);
}

fn what_cannot_be_read_stops_a_prune() {
    needs!(root(), program("strace"));
    let place = Place::new();
    let (reference, one) = pulled(&place, "a");
    let (index, host) = index_image(&place);
    place.image_ok(&["pull", "oci:layout:v1"]);
    let everything = || (place.stored("layers"), place.stored("blobs/sha256"), place.stored("images"));
    let before = everything();
    assert_eq!(before.2.len(), 2);
    let documents = [one.digest(), Digest::of(index.as_bytes()), Digest::of(host.manifest.as_bytes())];
    for document in &documents {
        let path = place.path("store").canonicalize().unwrap().join("blobs/sha256").join(document.hex());
        let strace = ["--quiet=all", "--output=strace", "--trace=openat", "-P", path.to_str().unwrap()];
        let command = [env!("CARGO_BIN_EXE_keel-image"), "--store=store", "--quiet", "prune"];
        let inject = ["--inject=openat:error=EMFILE", "--"];
        let run = place.run_any("strace", &[&strace[..], &inject, &command].concat());
        assert!(run.code == 1 && run.stderr.contains("Too many open files"), "{run:?}");
        assert_eq!(everything(), before);
    }
    // A name that a crash has left empty, until it is pulled again.
    let record = place.path("store/refs").join(&place.stored("refs")[0]);
    fs::write(record, "").unwrap();
    let run = place.image(&["prune"]);
    assert!(run.code == 1 && run.stderr.contains("it is no name of an image"), "{run:?}");
    assert_eq!(everything(), before);
    place.image_ok(&["pull", &reference, "oci:layout:v1"]);
    place.image_ok(&["prune"]);
    assert_eq!(everything(), before);
}

fn a_directory_of_others_becomes_no_store() {
    needs!(root());
    let place = Place::new();
    let reference = image("x").layout(&place, "a");
    fs::create_dir(place.path("tmp")).unwrap();
    fs::set_permissions(place.path("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    place.write("tmp/socket", "");
    for args in [&["ls"][..], &["prune"], &["pull", &reference]] {
        let run = place.keel_image(&[&["--store=tmp"], args].concat());
        assert!(run.code == 1 && run.stderr.contains("open store "), "{run:?}");
        assert!(run.stderr.contains("is no store\n  A store is one user's. Name another"), "{run:?}");
    }
    let meta = fs::metadata(place.path("tmp")).unwrap();
    assert_eq!((meta.mode() & 0o7777, fs::read_dir(place.path("tmp")).unwrap().count()), (0o1777, 1));
}

fn what_is_only_looked_at_is_not_made() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).unwrap();
    for store in ["--store=nowhere", "--store=empty"] {
        let run = place.keel_image(&[store, "ls", "--json"]);
        assert_eq!((run.code, run.stdout.as_str()), (0, "[]\n"), "{run:?}");
    }
    assert!(!place.path("nowhere").exists());
    assert_eq!(fs::read_dir(place.path("empty")).unwrap().count(), 0);
}

fn a_full_stdout_is_an_error() {
    needs!(root());
    let place = Place::new();
    let (_, image) = pulled(&place, "a");
    fs::write(place.blob(&image.layers[0].0), "bad").unwrap();
    let script = format!("{} --store=store verify --json >/dev/full", env!("CARGO_BIN_EXE_keel-image"));
    let run = place.run_any("sh", &["-c", &script]);
    assert!(run.code == 7 && run.stderr.starts_with("keel-image: write to stdout: "), "{run:?}");
    let run = place.image(&["verify", "--json"]);
    assert_eq!((run.code, run.json()["problems"].as_array().unwrap().len()), (5, 1));
}

fn jobs_are_offered_where_there_are_any() {
    let place = Place::new();
    for command in ["pull", "bundle", "load"] {
        assert!(place.keel_image(&[command, "--help"]).stdout.contains("--jobs"), "{command}");
    }
    for command in ["copy", "push", "save", "ls"] {
        let run = place.keel_image(&[command, "--jobs=2"]);
        assert!(run.code == 2 && run.stderr.contains("unexpected argument '--jobs'"), "{run:?}");
    }
}

/// Blobs before the name, and the name before the end.
fn what_is_nowhere_else_is_on_the_disk_at_the_end() {
    needs!(root(), program("strace"), program("busybox"));
    let place = Place::new();
    let reference = Image::new(vec![busybox()], json!({"Cmd": ["/bin/ls"]})).layout(&place, "i");
    place.image_ok(&["bundle", &reference, "web"]);
    fs::write(place.path("web/upper/new"), "new").unwrap();
    fs::create_dir(place.path("tree")).unwrap();
    place.image_ok(&["copy", &reference, "docker-archive:x.tar:app:v1"]);
    for args in [&["commit", "web", "a"][..], &["import", "tree", "b"], &["load", "x.tar"]] {
        let strace = ["--follow-forks", "--quiet=all", "--output=strace", "--trace=/^rename,syncfs"];
        let command = ["--", env!("CARGO_BIN_EXE_keel-image"), "--store=store", "--quiet"];
        place.run("strace", &[&strace[..], &command, args].concat());
        let trace = place.read("strace");
        let calls: Vec<_> = trace
            .lines()
            .filter_map(|line| {
                ["/blobs/", "/layers/", "/images/", "/refs/", "syncfs("]
                    .into_iter()
                    .find(|what| line.contains(what))
            })
            .collect();
        let name = calls.iter().position(|call| *call == "/refs/").unwrap();
        assert_eq!(calls[name - 1..], ["syncfs(", "/refs/", "syncfs("], "{args:?}: {trace}");
    }
}
