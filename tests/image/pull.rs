//! `keel-image pull`: what is in the store afterwards, whatever happens on the way.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use keel::image::digest::Digest;
use serde_json::json;

use crate::archive::Tar;
use crate::images::{Image, root};
use crate::place::{Place, noise, program};
use crate::server::{Body, Reply, Server};
use crate::{needs, tests};

tests![
    an_image_is_in_the_store_with_all_its_layers,
    what_the_store_has_is_not_fetched_again,
    two_pulls_of_one_layer_fetch_it_once,
    a_pull_that_is_killed_can_be_done_again,
    a_connection_that_breaks_off_goes_on,
    a_wrong_blob_leaves_nothing_behind,
    a_damaged_blob_is_fetched_anew_when_it_is_needed,
    a_document_with_a_lie_is_refused,
    a_full_disk_is_no_space_and_leaves_nothing_behind,
    a_limit_is_kept,
    an_image_for_another_machine_is_taken_only_when_told,
    progress_is_for_people_or_programs,
];

fn layers() -> Vec<Tar> {
    vec![Tar::new().dir("a/").file("a/noise", noise(300_000)), Tar::new().file("b", "b")]
}

fn image() -> Image {
    Image::new(layers(), json!({"Cmd": ["/x"]}))
}

fn app(server: &Server) -> String {
    format!("{}/test/app:v1", server.address)
}

fn an_image_is_in_the_store_with_all_its_layers() {
    needs!(root());
    let (place, image) = (Place::new(), image());
    let server = image.serve();
    let run = place.image_ok(&["pull", &app(&server)]);
    assert_eq!(run.stdout, format!("{}@{}\n", app(&server), image.digest()));
    let read =
        |i: usize, path: &str| fs::read(place.layer(&image.layers[i].1).join("fs").join(path)).unwrap();
    assert!(read(0, "a/noise") == noise(300_000));
    assert_eq!(read(1, "b"), b"b");
    for (digest, blob) in &image.blobs {
        assert!(fs::read(place.blob(&Digest::parse(digest).unwrap())).unwrap() == *blob);
    }
    assert_eq!(place.stored("tmp"), [""; 0]);
    let ls = place.image_ok(&["ls", "--json"]).json();
    assert_eq!(ls[0]["name"], app(&server));
    assert_eq!(ls[0]["digest"], image.digest().to_string());
    assert_eq!(place.image_ok(&["verify"]).stdout, "4 blobs are right\n");
}

fn what_the_store_has_is_not_fetched_again() {
    needs!(root());
    let (place, image) = (Place::new(), image());
    let server = image.serve();
    place.image_ok(&["pull", &app(&server)]);
    let asked = server.seen().len();
    place.image_ok(&["pull", "--pull=missing", &app(&server)]);
    place.image_ok(&["pull", "--pull=never", &app(&server)]);
    assert_eq!(server.seen().len(), asked);
    place.image_ok(&["pull", &app(&server)]);
    let config = image
        .blobs
        .keys()
        .find(|digest| !image.layers.iter().any(|(layer, _)| layer.to_string() == **digest));
    let expected =
        ["GET /v2/test/app/manifests/v1".to_owned(), format!("GET /v2/test/app/blobs/{}", config.unwrap())];
    assert_eq!(server.asked()[asked..], expected);
    let run = place.image(&["pull", "--pull=never", &format!("{}/test/app:v2", server.address)]);
    assert_eq!(run.code, 3, "{run:?}");
}

fn two_pulls_of_one_layer_fetch_it_once() {
    needs!(root());
    let (place, image) = (Place::new(), Image::new(layers()[..1].to_vec(), json!({})));
    let (blob, fetched, both) = (image.layers[0].0.to_string(), AtomicUsize::new(0), Barrier::new(2));
    let served = image.clone();
    let server = Server::new(move |request| {
        if request.path.ends_with("v1") {
            both.wait();
        }
        if request.path.ends_with(&blob) && fetched.fetch_add(1, Ordering::Relaxed) > 0 {
            return Reply::new(500, "a second time");
        }
        served.reply(&request.path)
    });
    let pull = || place.image_command(&["pull", &app(&server)]).spawn().unwrap();
    for mut pull in [pull(), pull()] {
        assert!(pull.wait().unwrap().success());
    }
    assert_eq!(place.stored("tmp"), [""; 0]);
    assert!(place.layer(&image.layers[0].1).join("fs/a/noise").exists());
}

/// Kills the command once one of the paths is there; false if it ended before.
fn kill_when(mut command: Command, there: impl Fn() -> bool) -> bool {
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    while !there() {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return false;
        }
        assert!(started.elapsed() < Duration::from_secs(20));
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap().signal().is_some()
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn a_pull_that_is_killed_can_be_done_again() {
    needs!(root());
    let image = image();
    let server = image.serve();
    let stages: [fn(&Place, &Image) -> bool; 6] = [
        |place, _| place.path("store/tmp").read_dir().is_ok_and(|mut entries| entries.next().is_some()),
        |place, image| is_there(&place.blob(&image.digest())),
        |place, image| is_there(&place.blob(&image.layers[0].0)),
        |place, image| is_there(&place.layer(&image.layers[0].1)),
        |place, image| is_there(&place.path("store/images").join(image.digest().hex())),
        |place, _| place.path("store/refs").read_dir().is_ok_and(|mut entries| entries.next().is_some()),
    ];
    for (number, stage) in stages.into_iter().enumerate() {
        let place = Place::new();
        let killed = kill_when(place.image_command(&["pull", &app(&server)]), || stage(&place, &image));
        println!("stage {number}: {}", if killed { "killed" } else { "was too fast" });
        // Whatever has a name is whole.
        place.image_ok(&["ls"]);
        for (_, diff_id) in &image.layers {
            assert_eq!(is_there(&place.layer(diff_id)), is_there(&place.layer(diff_id).join("ok")));
        }
        place.image_ok(&["pull", &app(&server)]);
        place.image_ok(&["verify"]);
        place.image_ok(&["upkeep"]);
        assert_eq!(place.stored("tmp"), [""; 0]);
        assert!(fs::read(place.layer(&image.layers[0].1).join("fs/a/noise")).unwrap() == noise(300_000));
    }
}

fn a_connection_that_breaks_off_goes_on() {
    needs!(root());
    let (place, image) = (Place::new(), image());
    let (blob, served) = (image.layers[0].0.to_string(), image.clone());
    let server = Server::new(move |request| {
        let bytes = &served.blobs.get(&blob).unwrap()[..];
        match (request.path.ends_with(&blob), request.range()) {
            (true, None) => Reply::new(200, "")
                .with(Body::Cut { announced: bytes.len(), sent: bytes[..100_000].to_vec() }),
            (true, Some(from)) => Reply::new(206, &bytes[from..])
                .header("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
            _ => served.reply(&request.path),
        }
    });
    place.image_ok(&["pull", &app(&server)]);
    assert!(server.seen().iter().any(|request| request.range() == Some(100_000)));
    place.image_ok(&["verify"]);
}

fn a_wrong_blob_leaves_nothing_behind() {
    needs!(root());
    let (place, image) = (Place::new(), image());
    for change in [|blob: &mut Vec<u8>| blob[1000] ^= 1, |blob: &mut Vec<u8>| blob.truncate(1000)] {
        let mut served = image.clone();
        change(served.blobs.get_mut(&image.layers[0].0.to_string()).unwrap());
        let server = served.serve();
        let run = place.image(&["pull", &app(&server)]);
        assert_eq!(run.code, 5, "{run:?}");
        assert!(run.stderr.starts_with("keel-image: layer 1/2 (sha256:"), "{run:?}");
        assert!(!is_there(&place.blob(&image.layers[0].0)) && !is_there(&place.layer(&image.layers[0].1)));
        for directory in ["refs", "images", "tmp"] {
            assert_eq!(place.stored(directory), [""; 0], "{directory}");
        }
    }
}

fn a_damaged_blob_is_fetched_anew_when_it_is_needed() {
    needs!(root());
    let (place, image) = (Place::new(), image());
    let server = image.serve();
    place.image_ok(&["pull", &app(&server)]);
    let (blob, layer) = (place.blob(&image.layers[0].0), place.layer(&image.layers[0].1));
    let mut bytes = fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let run = place.image(&["verify"]);
    assert!(run.code == 5 && run.stderr.contains(&image.layers[0].0.to_string()), "{run:?}");
    // As after a crash, of which nobody knows what it left of the layer.
    fs::write(layer.join("ok"), "").unwrap();
    fs::write(layer.join("fs/a/noise"), "lost").unwrap();
    place.image_ok(&["pull", "--pull=missing", &app(&server)]);
    assert!(fs::read(layer.join("fs/a/noise")).unwrap() == noise(300_000));
    place.image_ok(&["verify"]);
}

fn a_document_with_a_lie_is_refused() {
    needs!(root());
    type Change = fn(&mut serde_json::Value, &mut serde_json::Value);
    let lies: [(Change, &str); 4] = [
        (
            |config, _| drop(config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop()),
            "must be as many as layers, 2, and are 1",
        ),
        (
            |_, manifest| manifest["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd"),
            "/layers/0/digest: must be sha256:",
        ),
        (|_, manifest| manifest["manifests"] = json!([]), "both a manifest and an index"),
        (
            |config, _| config["rootfs"]["diff_ids"][1] = json!(Digest::of(b"x").to_string()),
            "the diff_id is sha256:",
        ),
    ];
    for (change, why) in lies {
        let place = Place::new();
        let server = Image::with(layers(), json!({}), change).serve();
        let run = place.image(&["pull", &app(&server)]);
        assert!(run.code == 5 && run.stderr.contains(why), "{why}: {run:?}");
        assert_eq!([place.stored("refs"), place.stored("images"), place.stored("tmp")].concat(), [""; 0]);
    }
}

fn a_full_disk_is_no_space_and_leaves_nothing_behind() {
    needs!(root(), program("unshare"));
    let (place, image) = (Place::new(), Image::new(vec![Tar::new().file("big", noise(3 << 20))], json!({})));
    let server = image.serve();
    fs::create_dir(place.path("store")).unwrap();
    let keel_image = env!("CARGO_BIN_EXE_keel-image");
    // Once for the blob and once for the files; without the limit that would come first.
    for size in ["2m", "4m"] {
        let script = format!(
            "mount -t tmpfs -o size={size},mode=700 tmpfs store
            {keel_image} -q --store store pull --limits free=0 {} || code=$?
            ls store/tmp store/layers store/refs store/images store/trash | grep -v : | grep .
            exit $code",
            app(&server)
        );
        let run = place.run_any("unshare", &["--mount", "sh", "-c", &script]);
        assert_eq!((run.code, run.stdout.as_str()), (7, ""), "{size}: {run:?}");
        assert!(run.stderr.contains("No space left on device (28)"), "{run:?}");
        assert!(
            run.stderr.ends_with("  Free some space, or put the store on another file system.\n"),
            "{run:?}"
        );
    }
}

fn a_limit_is_kept() {
    needs!(root());
    let (place, image) = (Place::new(), image());
    let server = image.serve();
    for (limit, why) in [
        ("layers=1", "2 layers are more than the 1"),
        ("bytes=200k", "(limit bytes)"),
        ("config=10", "larger than the 10 bytes"),
    ] {
        let run = place.image(&["pull", "--limits", limit, &app(&server)]);
        assert!(run.code == 6 && run.stderr.contains(why), "{limit}: {run:?}");
    }
    let run = place.image(&["pull", "--limits=layer=1", &app(&server)]);
    assert!(run.stderr.contains("There are: layers, entries"), "{run:?}");
    assert_eq!(place.stored("images"), [""; 0]);
}

fn an_image_for_another_machine_is_taken_only_when_told() {
    needs!(root());
    let place = Place::new();
    let image = Image::with(layers(), json!({}), |config, _| config["architecture"] = json!("sparc64"));
    let server = image.serve();
    let platform = |platform: &str| place.image(&["pull", "--platform", platform, &app(&server)]);
    let run = platform("linux/mips");
    assert!(
        run.code == 3 && run.stderr.contains("the image is for linux/sparc64, not linux/mips"),
        "{run:?}"
    );
    assert_eq!(platform("linux/sparc64").code, 0);
    let run = place.keel_image(&["--store=store", "pull", &app(&server)]);
    assert!(run.code == 0 && run.stderr.contains("its programs need an emulator"), "{run:?}");
}

fn progress_is_for_people_or_programs() {
    needs!(root());
    let image = image();
    let server = image.serve();
    let lines = Mutex::new(Vec::new());
    for how in ["plain", "json", "none", "auto"] {
        let place = Place::new();
        let run = place.keel_image(&["--store=store", "pull", "--progress", how, &app(&server)]);
        assert_eq!(run.stdout.lines().count(), 1, "{run:?}");
        lines.lock().unwrap().push(run.stderr.lines().count());
        for line in run.stderr.lines().filter(|_| how == "json") {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["event"], "layer");
        }
    }
    // Fetching and done, of two layers; nothing lasts long enough to be told of twice.
    assert_eq!(*lines.lock().unwrap(), [0, 4, 0, 0]);
}
