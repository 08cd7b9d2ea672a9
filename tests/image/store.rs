//! `keel-image ls`, `rm`, `prune`, `verify`, `umount`.

use std::fs;

use serde_json::json;

use crate::archive::Tar;
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
