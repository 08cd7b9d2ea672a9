//! What a running container stands on: nobody replaces it, and no prune deletes it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::archive::Tar;
use crate::images::{Image, busybox, root};
use crate::place::{Place, program};
use crate::{needs, tests};

tests![
    a_bundle_that_a_container_uses_is_not_replaced,
    a_mount_in_a_bundle_is_not_deleted_through,
    a_plain_root_that_a_container_uses_is_told_of,
    layers_of_a_mapped_container_outlive_its_record,
    layers_are_found_by_the_stores_own_name,
];

fn config() -> Value {
    json!({"Cmd": ["/bin/sh", "-c", "echo ready; read line; cat /data/seed"], "Volumes": {"/data": {}}})
}

fn image(place: &Place) -> (String, Image) {
    let image = Image::new(vec![busybox().dir("data/").file("data/seed", "seed")], config());
    (image.layout(place, "i"), image)
}

/// A container that waits for its stdin to end.
struct Running(Child);

impl Running {
    fn new(place: &Place, bundle: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_keel"))
            .args(["--root=state", "run", "--bundle", bundle])
            .arg(place.dir.file_name().unwrap())
            .current_dir(&place.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// What it says at last.
    fn end(self) -> String {
        let output = self.0.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn a_bundle_that_a_container_uses_is_not_replaced() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let (reference, _) = image(&place);
    for (bundle, kind) in
        [("web", "overlay"), ("a b,c:d", "overlay"), ("ro", "ro"), ("copy", "copy"), ("copy e", "copy")]
    {
        place.image_ok(&["bundle", &reference, bundle, "--rootfs", kind]);
        let container = Running::new(&place, bundle);
        let run = place.image(&["bundle", &reference, bundle, "--force"]);
        assert!(
            run.code == 1 && run.stderr.contains("it is in use\n  End its container"),
            "{bundle}: {run:?}"
        );
        // Its volume is still there.
        assert_eq!(container.end(), "seed", "{bundle}");
        place.image_ok(&["bundle", &reference, bundle, "--force"]);
    }
}

fn a_mount_in_a_bundle_is_not_deleted_through() {
    needs!(root(), program("unshare"), program("busybox"));
    let place = Place::new();
    let (reference, _) = image(&place);
    place.image_ok(&["bundle", &reference, "web"]);
    fs::create_dir(place.path("mine")).unwrap();
    place.write("mine/file", "mine");
    let script = format!(
        "mkdir web/mine && mount --bind mine web/mine && {} --store store -q bundle --force {reference} web",
        env!("CARGO_BIN_EXE_keel-image"),
    );
    let run = place.run_any("unshare", &["--mount", "sh", "-c", &script]);
    assert!(run.code == 1 && run.stderr.contains("it is in use"), "{run:?}");
    assert_eq!(place.read("mine/file"), "mine");
}

fn a_plain_root_that_a_container_uses_is_told_of() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let (reference, _) = image(&place);
    place.image_ok(&["bundle", &reference, "copy", "--rootfs=copy"]);
    let container = Running::new(&place, "copy");
    let run = place.keel_image(&["--store=store", "export", "copy", "x.tar"]);
    container.end();
    assert!(run.code == 0 && run.stderr.contains("a container is using the bundle"), "{run:?}");
    let run = place.keel_image(&["--store=store", "export", "copy", "x.tar"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
}

/// mountinfo shows `lowerdir+=/proc/self/fd/N`, and a bundle that has moved has no record.
fn layers_of_a_mapped_container_outlive_its_record() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let (reference, image) = image(&place);
    place.image_ok(&["bundle", &reference, "web", "--uid-map=0:100000:65536"]);
    fs::rename(place.path("web"), place.path("elsewhere")).unwrap();
    let container = Running::new(&place, "elsewhere");
    // Another store's are not concerned.
    let other = Image::new(vec![Tar::new().file("own", "own")], config()).layout(&place, "other");
    let elsewhere = |args: &[&str]| place.keel_image(&[&["--store=second", "-q"], args].concat());
    assert_eq!(elsewhere(&["pull", &other]).code, 0);
    assert_eq!(elsewhere(&["rm", &other]).code, 0);
    assert_eq!(elsewhere(&["prune", "--json"]).json()["layers"], 1);
    let pruned = place.image_ok(&["prune", "--json"]).json();
    assert_eq!((&pruned["bundles"], &pruned["layers"]), (&json!(1), &json!(0)));
    assert!(place.layer(&image.layers[0].1).join("fs/bin/busybox").exists());
    container.end();
    place.image_ok(&["prune"]);
    assert_eq!(place.stored("layers"), [""; 0]);
}

fn layers_are_found_by_the_stores_own_name() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let (reference, image) = image(&place);
    let args = ["--store=the real,one", "--quiet", "bundle", &reference, "web"];
    assert_eq!(place.keel_image(&args).code, 0);
    symlink("the real,one", place.path("store")).unwrap();
    fs::rename(place.path("web"), place.path("elsewhere")).unwrap();
    let container = Running::new(&place, "elsewhere");
    place.image_ok(&["prune"]);
    assert!(place.layer(&image.layers[0].1).join("fs/bin/busybox").exists());
    container.end();
    place.image_ok(&["prune"]);
    assert_eq!(place.stored("layers"), [""; 0]);
}
