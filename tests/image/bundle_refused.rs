//! Images that would like to be more than one, and command lines that cannot be meant.

use std::fs;

use serde_json::{Value, json};

use crate::archive::Tar;
use crate::images::{Image, busybox, root};
use crate::place::{Place, program};
use crate::{needs, tests};

tests![
    a_user_that_is_not_there_is_refused,
    the_hosts_users_are_not_the_images,
    a_user_in_too_many_groups_is_refused,
    labels_do_not_drive_the_runtime,
    a_volume_stays_inside,
    an_unexpected_digest_is_refused,
    an_image_that_runs_nothing_is_refused,
    a_layer_that_leads_out_is_refused,
    a_bundle_needs_a_place,
];

fn bundle(place: &Place, layers: Vec<Tar>, config: Value, args: &[&str]) -> crate::place::Run {
    let reference = Image::new(layers, config).layout(place, "i");
    let run = place.image(&[&["bundle", &reference, "web"], args].concat());
    if run.code != 0 {
        assert!(!place.path("web").exists(), "{run:?}");
        assert_eq!(place.stored("tmp"), [""; 0]);
    }
    run
}

fn a_user_that_is_not_there_is_refused() {
    needs!(root());
    for (user, code, why) in [
        ("nobody", 3, "the image has no /etc/passwd"),
        ("4294967296", 1, "\"4294967296\" is out of range"),
        ("-1", 1, "\"-1\" is out of range"),
        ("0:-1", 1, "\"-1\" is out of range"),
    ] {
        for rootfs in ["--rootfs=overlay", "--rootfs=copy"] {
            let run = bundle(
                &Place::new(),
                vec![Tar::new().file("x", "")],
                json!({"Cmd": ["/x"], "User": user}),
                &[rootfs],
            );
            assert!(run.code == code && run.stderr.contains(why), "{user}: {run:?}");
        }
    }
}

fn the_hosts_users_are_not_the_images() {
    needs!(root());
    let place = Place::new();
    let host = place.write("passwd", "evil:x:0:0::/:/bin/sh\n");
    for target in [host.display().to_string(), format!("../../../../../..{}", host.display())] {
        for rootfs in ["--rootfs=overlay", "--rootfs=copy"] {
            let layer = Tar::new().dir("etc/").symlink("etc/passwd", &target);
            let run = bundle(&place, vec![layer], json!({"Cmd": ["/x"], "User": "evil"}), &[rootfs]);
            assert!(run.code == 3 && run.stderr.contains("the image has no /etc/passwd"), "{run:?}");
            fs::remove_dir_all(place.path("i")).unwrap();
        }
    }
}

fn a_user_in_too_many_groups_is_refused() {
    needs!(root());
    let group = (1..=300_000).map(|gid| format!("g{gid}:x:{gid}:web\n")).collect::<String>();
    let layer = Tar::new().dir("etc/").file("etc/passwd", "web:x:1:1::/:\n").file("etc/group", group);
    let run = bundle(&Place::new(), vec![layer], json!({"Cmd": ["/x"], "User": "web"}), &[]);
    assert!(run.code == 6 && run.stderr.contains("it is in 299999 groups, more than 65536"), "{run:?}");
}

fn labels_do_not_drive_the_runtime() {
    needs!(root());
    let place = Place::new();
    let labels =
        json!({"run.oci.keep_original_groups": "1", "org.systemd.property.ExecStop": "x", "mine": "1"});
    let config = json!({"Cmd": ["/x"], "Labels": labels});
    assert_eq!(bundle(&place, vec![], config, &[]).code, 0);
    let config: Value = serde_json::from_str(&place.read("web/config.json")).unwrap();
    let keys: Vec<_> = config["annotations"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["mine", "org.opencontainers.image.architecture", "org.opencontainers.image.os"]);
}

fn a_volume_stays_inside() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    place.write("outside", "host");
    let layer = busybox().symlink("out", place.dir.to_str().unwrap()).symlink("up", "../../../..");
    let config = json!({"Cmd": ["/bin/ls", "/data"], "Volumes": {"/out": {}, "/up": {}, "/proc/self": {}, "/": {}, "../data": {}}});
    let run = bundle(&place, vec![layer], config, &[]);
    assert_eq!(run.code, 0, "{run:?}");
    let config: Value = serde_json::from_str(&place.read("web/config.json")).unwrap();
    let mounts = config["mounts"].as_array().unwrap().iter();
    let binds: Vec<_> =
        mounts.filter(|mount| mount["type"] == "bind").map(|mount| mount["destination"].clone()).collect();
    assert_eq!(binds, [json!("/data"), json!("/out"), json!("/up")]);
    // What lies there on the host was not copied; what the image has at its top was.
    let copied = |i: u32| fs::read_dir(place.path(&format!("web/volumes/{i}"))).unwrap().count();
    assert_eq!([copied(0), copied(1)], [0, 0]);
    assert!(!place.path("web/volumes/2/outside").exists() && place.path("web/volumes/2/bin").exists());
}

fn an_unexpected_digest_is_refused() {
    needs!(root());
    let other = format!("sha256:{}", "0".repeat(64));
    let run = bundle(&Place::new(), vec![], json!({"Cmd": ["/x"]}), &["--expect-digest", &other]);
    assert!(
        run.code == 5 && run.stderr.contains(&format!("not {other}\n  The name stands for another image")),
        "{run:?}"
    );
}

fn an_image_that_runs_nothing_is_refused() {
    needs!(root());
    let run = bundle(&Place::new(), vec![], json!({}), &[]);
    assert!(
        run.code == 1
            && run.stderr.ends_with("neither an entrypoint nor a command\n  Say what to run, after --.\n"),
        "{run:?}"
    );
    let run = bundle(&Place::new(), vec![], json!({"Cmd": "sh", "Env": [1]}), &[]);
    assert!(
        run.code == 5
            && run.stderr.contains("/config/Cmd: must be an array")
            && run.stderr.contains("/config/Env/0"),
        "{run:?}"
    );
}

fn a_layer_that_leads_out_is_refused() {
    needs!(root());
    let place = Place::new();
    let outside = place.write("outside", "host");
    let name = format!("../../../../../../../../..{}", outside.display());
    for rootfs in ["--rootfs=overlay", "--rootfs=copy"] {
        let run = bundle(
            &place,
            vec![Tar::new().file(&name[..99.min(name.len())], "evil")],
            json!({"Cmd": ["/x"]}),
            &[rootfs],
        );
        assert!(run.code == 5 && run.stderr.contains("its name leads out of the layer (..)"), "{run:?}");
        fs::remove_dir_all(place.path("i")).unwrap();
    }
    assert_eq!(place.read("outside"), "host");
}

fn a_bundle_needs_a_place() {
    needs!(root());
    let place = Place::new();
    let reference = Image::new(vec![], json!({"Cmd": ["/x"]})).layout(&place, "i");
    let run = place.image(&["bundle", &reference, "no/where"]);
    assert!(run.code == 3 && run.stderr.contains("there is no directory no"), "{run:?}");
    let run = place.image(&["bundle", &reference]);
    assert_eq!(run.code, 2, "{run:?}");
    place.write("file", "");
    let run = place.image(&["bundle", &reference, "file"]);
    assert!(run.code == 1 && run.stderr.contains("make bundle file: Not a directory"), "{run:?}");
}
