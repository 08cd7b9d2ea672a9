//! Archives of strangers: each fault has its error, and none costs more than it should.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::fixture::image;
use crate::place::{Place, Run};
use crate::tests;

tests![
    a_name_that_leads_out_is_refused,
    a_name_that_is_there_twice_is_refused,
    an_archive_that_is_cut_off_is_refused_wherever_it_ends,
    links_between_layers_are_followed_inside_of_the_archive_only,
    what_is_no_file_is_not_read,
    a_huge_manifest_is_not_read,
    what_is_not_json_is_said_to_be_none,
    as_many_layers_as_diff_ids,
    a_layer_that_is_another_is_found_out,
    a_bomb_is_stopped,
    holes_are_refused,
    other_files_are_no_archives_of_images,
];

/// The files of a docker-archive, in a directory.
fn docker(place: &Place) {
    let image = image(place);
    fs::create_dir(place.path("d")).unwrap();
    place.write("d/config.json", &image.config);
    for (n, plain) in image.plain.iter().enumerate() {
        fs::create_dir(place.path(&format!("d/{n}"))).unwrap();
        place.write(&format!("d/{n}/layer.tar"), plain);
    }
    manifest(
        place,
        &json!([{"Config": "config.json", "RepoTags": ["app:v1"], "Layers": ["0/layer.tar", "1/layer.tar"]}]),
    );
}

fn manifest(place: &Place, manifest: &serde_json::Value) {
    place.write("d/manifest.json", manifest.to_string());
}

fn pack(place: &Place, dir: &str, args: &[&str]) {
    let all = [&["-C", dir, "-cf", "x.tar"], args, &["."]].concat();
    place.run("tar", &all);
}

/// All of the archive is read.
fn read(place: &Place) -> Run {
    let _ = fs::remove_file(place.path("out.tar"));
    let run = place.keel_image(&["--quiet", "copy", "docker-archive:x.tar", "oci-archive:out.tar"]);
    if run.code != 0 {
        assert!(!place.path("out.tar").exists(), "{run:?}");
    }
    run
}

fn refused(place: &Place, code: i32, said: &str) {
    let run = read(place);
    assert!(run.code == code && run.stderr.contains(said), "expected {code} {said:?}: {run:?}");
}

fn a_name_that_leads_out_is_refused() {
    let place = Place::new();
    docker(&place);
    pack(&place, "d", &[]);
    assert_eq!(read(&place).code, 0);
    for expression in ["s,config.json,../config.json,", "s,config.json,x/../../config.json,"] {
        pack(&place, "d", &["--transform", expression]);
        refused(&place, 5, "leads out of the archive");
    }
    // An absolute name is one from the archive's top.
    pack(&place, "d", &["-P", "--transform", "s,^./config.json,/config.json,"]);
    assert_eq!(read(&place).code, 0);
}

fn a_name_that_is_there_twice_is_refused() {
    let place = Place::new();
    docker(&place);
    pack(&place, "d", &["--transform", "s,0/layer.tar,config.json,"]);
    refused(&place, 5, "\"./config.json\" is there twice");
    // However it is written.
    pack(&place, "d", &["--transform", "s,0/layer.tar,.//manifest.json,"]);
    refused(&place, 5, "is there twice");
}

fn an_archive_that_is_cut_off_is_refused_wherever_it_ends() {
    let place = Place::new();
    docker(&place);
    pack(&place, "d", &["--sort=name"]);
    let whole = fs::read(place.path("x.tar")).unwrap();
    // The end itself may be missing.
    let end = whole.len() - whole.iter().rev().position(|byte| *byte != 0).unwrap();
    for at in [1, 511, 513, 1024, 5000, 1_000_000, 3_000_000, end - 1] {
        place.write("x.tar", &whole[..at]);
        let run = read(&place);
        assert!(run.code == 5 || run.code == 3, "{at}: {run:?}");
    }
    place.write("x.tar", "");
    refused(&place, 3, "there is no \"manifest.json\"");
}

fn links_between_layers_are_followed_inside_of_the_archive_only() {
    let place = Place::new();
    docker(&place);
    let layer = place.path("d/1/layer.tar");
    let relinked = |target: &str| {
        let _ = fs::remove_file(&layer);
        symlink(target, &layer).unwrap();
        pack(&place, "d", &[]);
    };
    fs::rename(&layer, place.path("d/layer1")).unwrap();
    relinked("../layer1");
    assert_eq!(read(&place).code, 0);
    for (target, code, said) in [
        ("layer.tar", 5, "is a link that leads in a circle"),
        ("../1/../1/layer.tar", 5, "is a link that leads in a circle"),
        ("../../layer1", 5, "is a link that leads out of the archive"),
        ("/etc/passwd", 5, "is a link that leads out of the archive"),
        ("../missing", 3, "there is no \"1/layer.tar\""),
        (".", 5, "is no regular file"),
    ] {
        relinked(target);
        refused(&place, code, said);
    }
    // Two that stand for each other.
    relinked("../0/layer.tar");
    fs::remove_file(place.path("d/0/layer.tar")).unwrap();
    symlink("../1/layer.tar", place.path("d/0/layer.tar")).unwrap();
    pack(&place, "d", &[]);
    refused(&place, 5, "is a link that leads in a circle");
}

fn what_is_no_file_is_not_read() {
    let place = Place::new();
    docker(&place);
    fs::remove_file(place.path("d/config.json")).unwrap();
    place.run("mkfifo", &["d/config.json"]);
    pack(&place, "d", &[]);
    refused(&place, 5, "\"config.json\" is no regular file");
    manifest(&place, &json!([{"Config": "/etc/passwd", "Layers": []}]));
    pack(&place, "d", &[]);
    refused(&place, 3, "there is no \"/etc/passwd\"");
    manifest(&place, &json!([{"Config": "../config.json", "Layers": []}]));
    pack(&place, "d", &[]);
    refused(&place, 5, "leads out of the archive");
}

fn a_huge_manifest_is_not_read() {
    let place = Place::new();
    docker(&place);
    for (file, said) in
        [("manifest.json", "larger than 4194304 bytes"), ("config.json", "larger than 8388608 bytes")]
    {
        let path = place.path("d").join(file);
        let before = fs::read(&path).unwrap();
        fs::write(&path, [&before[..], &vec![b' '; 9 << 20]].concat()).unwrap();
        pack(&place, "d", &[]);
        refused(&place, 6, said);
        fs::write(&path, before).unwrap();
    }
    manifest(&place, &json!([{"Config": "config.json", "Layers": vec!["0/layer.tar"; 1001]}]));
    pack(&place, "d", &[]);
    refused(&place, 6, "1001 layers are more than the 1000");
}

fn what_is_not_json_is_said_to_be_none() {
    let place = Place::new();
    docker(&place);
    let good = place.read("d/manifest.json");
    for (text, said) in [
        ("", "manifest.json: EOF while parsing"),
        ("{}", "/manifest.json: must be an array"),
        ("[1]", "/manifest.json/0: must be an object"),
        ("[{}]", "/manifest.json/0/Config: is required"),
        (r#"[{"Config": "config.json", "Config": "x"}]"#, "twice"),
        (r#"[], "x": [1]"#, "manifest.json: trailing characters"),
        (r#"[]"#, "there is no image"),
    ] {
        place.write("d/manifest.json", text);
        pack(&place, "d", &[]);
        let run = read(&place);
        assert!(run.code != 0 && run.stderr.contains(said), "{text}: {run:?}");
    }
    place.write("d/manifest.json", good);
    for text in
        ["", "{", "[]", "\u{fffd}", r#"{"rootfs": 1}"#, r#"{"rootfs": {"diff_ids": ["sha256:../x", "y"]}}"#]
    {
        place.write("d/config.json", text);
        pack(&place, "d", &[]);
        refused(&place, 5, "config config.json");
    }
}

fn as_many_layers_as_diff_ids() {
    let place = Place::new();
    docker(&place);
    for layers in [vec![], vec!["0/layer.tar"], vec!["0/layer.tar"; 3]] {
        manifest(&place, &json!([{"Config": "config.json", "Layers": layers}]));
        pack(&place, "d", &[]);
        refused(&place, 5, "/rootfs/diff_ids: must be as many as layers");
    }
}

fn a_layer_that_is_another_is_found_out() {
    let place = Place::new();
    docker(&place);
    manifest(&place, &json!([{"Config": "config.json", "Layers": ["1/layer.tar", "0/layer.tar"]}]));
    pack(&place, "d", &[]);
    refused(&place, 5, "the digest is sha256:");
    // The same under a compression, where the digest of the blob is whatever it is.
    manifest(&place, &json!([{"Config": "config.json", "Layers": ["0/layer.tar.gz", "1/layer.tar"]}]));
    place.run("sh", &["-euc", "gzip -c d/1/layer.tar >d/0/layer.tar.gz"]);
    pack(&place, "d", &[]);
    let run = place.keel_image(&["copy", "--compression=none", "docker-archive:x.tar", "oci:out"]);
    assert!(run.code == 5 && run.stderr.contains("the diff_id is sha256:"), "{run:?}");
    let run = place.keel_image(&["copy", "docker-archive:x.tar", "docker-archive:y.tar"]);
    assert!(run.code == 5 && run.stderr.contains("the diff_id is sha256:"), "{run:?}");
}

fn a_bomb_is_stopped() {
    let place = Place::new();
    // 400 MiB of zeroes in 400 bytes, twice compressed.
    let script = "head -c 400000000 /dev/zero | zstd -q -19 --long >once; cp once x.tar";
    place.run("sh", &["-euc", script]);
    let run = place.keel_image(&["inspect", "docker-archive:x.tar"]);
    assert!(run.code == 6 && run.stderr.contains("more than 1000 for one (limit ratio)"), "{run:?}");
}

fn holes_are_refused() {
    let place = Place::new();
    docker(&place);
    place.run("truncate", &["-s", "10M", "d/hole"]);
    pack(&place, "d", &["--sparse", "--format=pax"]);
    refused(&place, 5, "is stored with holes");
}

fn other_files_are_no_archives_of_images() {
    let place = Place::new();
    image(&place);
    fs::write(place.path("x.tar"), vec![b'x'; 5000]).unwrap();
    refused(&place, 5, "this is no tar archive");
    let run = place.keel_image(&["inspect", "docker-archive:missing.tar"]);
    assert!(run.code == 3 && run.stderr.contains("open archive missing.tar: No such file"), "{run:?}");
    // A layout is no docker-archive, nor the other way round.
    pack(&place, "layout", &[]);
    refused(&place, 3, "there is no \"manifest.json\"");
    assert_eq!(place.keel_image(&["inspect", "--raw", "oci-archive:x.tar:v1"]).code, 0);
    let docker_place = Place::new();
    docker(&docker_place);
    pack(&docker_place, "d", &[]);
    let run = docker_place.keel_image(&["inspect", "oci-archive:x.tar"]);
    assert!(run.code == 3 && run.stderr.contains("there is no \"oci-layout\""), "{run:?}");
}
