//! `keel-image bundle`: what comes of an image, run by keel and by others.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::{Value, json};

use crate::archive::{Header, Tar, list};
use crate::images::{Image, busybox, root};
use crate::place::{Place, Run, program};
use crate::{needs, tests};

tests![
    every_kind_of_root_is_run_by_keel,
    an_overlay_writes_to_the_bundle_only,
    a_copy_and_a_mount_are_run_by_others,
    a_copy_and_a_mount_are_run_by_crun,
    the_process_is_as_the_image_says,
    the_process_is_as_the_user_says,
    a_volume_has_what_the_image_has_there,
    volumes_inside_of_volumes_are_copied_once,
    volumes_that_are_one_through_links_are_copied_once,
    a_volumes_holes_stay_holes,
    volumes_cost_no_more_than_the_limits,
    a_volume_of_the_users_takes_the_place_of_the_images,
    a_bundle_is_for_its_owner_only,
    the_roots_mode_and_owner_are_the_images,
    a_bundle_is_replaced_only_when_told,
    what_is_put_aside_comes_back,
    a_bundle_that_was_killed_can_be_made_again,
    a_warm_bundle_asks_nobody,
    ids_are_mapped_in_a_copy,
    one_store_serves_every_mapping,
    devices_are_made_only_when_told,
    an_image_of_nothing_can_be_bundled,
];

/// Two layers, the upper of which takes something away.
fn image(config: Value) -> Image {
    let base = busybox()
        .dir("etc/")
        .file("etc/passwd", "web:x:33:34::/:/bin/sh\n")
        .file("etc/group", "log:x:4:web\n");
    let upper = Tar::new()
        .dir("data/")
        .file("data/seed", "seed")
        .file("etc/.wh.group", "")
        .file("etc/group", "log:x:5:web\n");
    Image::new(vec![base.file("gone", ""), upper.file(".wh.gone", "")], config)
}

fn shell(script: &str) -> Value {
    json!({"Entrypoint": ["/bin/sh", "-c"], "Cmd": [script]})
}

#[track_caller]
fn ran(run: &Run) -> &str {
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    &run.stdout
}

fn every_kind_of_root_is_run_by_keel() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let reference = image(shell("ls /; cat /data/seed; touch /new && cat /etc/group")).layout(&place, "i");
    let list = "bin\ndata\ndev\netc\nproc\nsys\n";
    for kind in ["overlay", "copy"] {
        place.image_ok(&["bundle", &reference, kind, "--rootfs", kind]);
        assert_eq!(ran(&place.keel(kind)), format!("{list}seedlog:x:5:web\n"), "{kind}");
    }
    place.image_ok(&["bundle", &reference, "ro", "--rootfs=ro"]);
    let run = place.keel("ro");
    assert_eq!(run.stdout, format!("{list}seed"), "{run:?}");
    assert_eq!((run.code, run.stderr.as_str()), (1, "touch: /new: Read-only file system\n"));
    let script = format!(
        "{} --store store -q bundle {reference} mount --rootfs=mount >&2 && {} --root state run --bundle mount image-mount-{}",
        env!("CARGO_BIN_EXE_keel-image"),
        env!("CARGO_BIN_EXE_keel"),
        std::process::id(),
    );
    let run = place.run_any("unshare", &["--mount", "sh", "-c", &script]);
    assert_eq!(run.stdout, format!("{list}seedlog:x:5:web\n"), "{run:?}");
}

fn an_overlay_writes_to_the_bundle_only() {
    needs!(root(), program("busybox"));
    let (place, image) = (Place::new(), image(shell("echo new >/data/seed; cat /data/seed")));
    let run = place.image_ok(&["bundle", &image.layout(&place, "i"), "web"]);
    let path = place.path("web").canonicalize().unwrap();
    assert_eq!(run.stdout, format!("{}\n", path.display()));
    assert_eq!(ran(&place.keel("web")), "new\n");
    assert_eq!(place.read("web/upper/data/seed"), "new\n");
    assert_eq!(fs::read_to_string(place.layer(&image.layers[1].1).join("fs/data/seed")).unwrap(), "seed");
    // It can move.
    fs::rename(&path, place.path("elsewhere")).unwrap();
    assert_eq!(ran(&place.keel("elsewhere")), "new\n");
}

fn a_copy_and_a_mount_are_run_by_others() {
    needs!(root(), program("busybox"), program("runc"), program("unshare"));
    others_run("runc", "true");
}

fn a_copy_and_a_mount_are_run_by_crun() {
    // Debian's loads its filter of devices with a limit raised that not everybody may raise.
    let run = std::process::Command::new("prlimit").args(["--memlock=unlimited:unlimited", "true"]).output();
    let may_raise = run.is_ok_and(|output| output.status.success());
    let may_raise = may_raise.then_some(()).ok_or("may not raise RLIMIT_MEMLOCK".to_owned());
    needs!(root(), program("busybox"), program("crun"), program("unshare"), may_raise);
    // It takes one hierarchy of cgroups only.
    others_run("crun", "mount -t cgroup2 cgroup2 /sys/fs/cgroup");
}

fn others_run(runtime: &str, prepare: &str) {
    let place = Place::new();
    let reference = image(shell("cat /data/seed; id -u")).layout(&place, "i");
    for kind in ["copy", "mount"] {
        let script = format!(
            "{} --store store -q bundle {reference} {kind} --rootfs={kind} --user 7 >&2 \
             && {prepare} && {runtime} --root state-{runtime} run --bundle {kind} image-{}",
            env!("CARGO_BIN_EXE_keel-image"),
            std::process::id(),
        );
        let run = place.run_any("unshare", &["--mount", "sh", "-c", &script]);
        assert_eq!((run.code, run.stdout.as_str()), (0, "seed7\n"), "{kind}: {run:?}");
    }
}

fn config_of(place: &Place, bundle: &str) -> Value {
    serde_json::from_str(&place.read(&format!("{bundle}/config.json"))).unwrap()
}

fn the_process_is_as_the_image_says() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let mut config = shell("id -u; id -g; id -G; pwd; echo $A; stat -c %a /etc");
    config["User"] = json!("web");
    config["Env"] = json!(["A=1", "PATH=/bin"]);
    config["WorkingDir"] = json!("data");
    config["StopSignal"] = json!("SIGQUIT");
    let reference = image(config).layout(&place, "i");
    place.image_ok(&["bundle", &reference, "web"]);
    assert_eq!(ran(&place.keel("web")), "33\n34\n34 5\n/data\n1\n755\n");
    let config = config_of(&place, "web");
    assert_eq!(config["annotations"]["org.opencontainers.image.stopSignal"], "SIGQUIT");
    assert_eq!(config["hostname"], "web");
}

fn the_process_is_as_the_user_says() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let reference = image(shell("exit 1")).layout(&place, "i");
    let args = [
        "--user=5:6",
        "--env=B=2",
        "--workdir=/etc",
        "--entrypoint=/bin/sh",
        "--",
        "-c",
        "id -u; id -g; pwd; echo $B",
    ];
    place.image_ok(&[&["bundle", &reference, "web"], &args[..]].concat());
    assert_eq!(ran(&place.keel("web")), "5\n6\n/etc\n2\n");
}

fn a_volume_has_what_the_image_has_there() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let mut config = shell(
        "cat /data/seed; stat -c %u:%a /data/d; cat /data/d/link; stat -c %h /data/hard; touch /data/new /empty/new",
    );
    config["Volumes"] = json!({"/data": {}, "/empty": {}});
    let volume = Tar::new()
        .dir("data/")
        .file("data/seed", "seed")
        .hardlink("data/hard", "data/seed")
        .header(Header { mode: 0o2750, uid: 12, ..Header::new("data/d", b'5') })
        .symlink("data/d/link", "../seed");
    let reference = Image::new(vec![busybox(), volume], config).layout(&place, "i");
    for kind in ["overlay", "copy", "ro"] {
        place.image_ok(&["bundle", &reference, kind, "--rootfs", kind]);
        assert_eq!(ran(&place.keel(kind)), "seed12:2750\nseed2\n", "{kind}");
        let new = ["0", "1"].map(|i| place.path(&format!("{kind}/volumes/{i}/new")).exists());
        assert_eq!(new, [true, true]);
    }
    assert!(!place.path("overlay/upper/data/new").exists());
}

fn volumes_inside_of_volumes_are_copied_once() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let mut config = shell("cat /v/f /v/1/f /v/1/2/f; stat -c %a /v/1; touch /v/new /v/1/new /v/1/2/new");
    config["Volumes"] = json!({"/v": {}, "/v/1": {}, "/v/1/2": {}});
    let private = Header { mode: 0o700, ..Header::new("v/1/", b'5') };
    let layer = Tar::new().dir("v/").header(private).file("v/f", "a").file("v/1/f", "b").file("v/1/2/f", "c");
    let reference = Image::new(vec![busybox(), layer], config).layout(&place, "i");
    for kind in ["overlay", "copy", "ro"] {
        place.image_ok(&["bundle", &reference, kind, "--rootfs", kind]);
        assert_eq!(ran(&place.keel(kind)), "abc700\n", "{kind}");
        let list = list(&place.path(&format!("{kind}/volumes")));
        let expected = [
            "0 dir",
            "0/1 dir",
            "0/f file 1",
            "0/new file 0",
            "1 dir",
            "1/2 dir",
            "1/f file 1",
            "1/new file 0",
            "2 dir",
            "2/f file 1",
            "2/new file 0",
        ];
        assert_eq!(list, expected, "{kind}");
    }
}

/// The one that is mounted last is seen.
fn volumes_that_are_one_through_links_are_copied_once() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let mut config = shell("cat /a/f /data/f /data/in/f /z/in/f");
    config["Volumes"] = json!({"/a": {}, "/data/in": {}, "/z": {}});
    let layer =
        Tar::new().file("data/f", "f").file("data/in/f", "in").symlink("a", "data").symlink("z", "/data");
    let reference = Image::new(vec![busybox(), layer], config).layout(&place, "i");
    for kind in ["overlay", "copy"] {
        place.image_ok(&["bundle", &reference, kind, "--rootfs", kind]);
        let list = list(&place.path(&format!("{kind}/volumes")));
        assert_eq!(list, ["0 dir", "1 dir", "2 dir", "2/f file 1", "2/in dir", "2/in/f file 2"], "{kind}");
        assert_eq!(ran(&place.keel(kind)), "ffinin", "{kind}");
    }
}

fn a_volumes_holes_stay_holes() {
    needs!(root());
    let place = Place::new();
    place.run(
        "sh",
        &["-euc", "mkdir -p d/v; cd d/v; truncate -s 300M all; truncate -s 200M one; echo x >>one; truncate -s 300M one"],
    );
    place.run("sh", &["-euc", "tar --sparse -C d -cf x.tar v"]);
    place.image_ok(&["import", "x.tar", "app", "--cmd=[\"/x\"]", "--volume=/v"]);
    place.image_ok(&["bundle", "--pull=never", "app", "web"]);
    for (file, text) in [("all", ""), ("one", "x\n")] {
        let path = place.path("web/volumes/0").join(file);
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.len(), meta.blocks() < 100), (300 << 20, true), "{file}: {} blocks", meta.blocks());
        let mut seen = fs::read(&path).unwrap();
        seen.retain(|&byte| byte != 0);
        assert_eq!(String::from_utf8(seen).unwrap(), text);
    }
}

fn volumes_cost_no_more_than_the_limits() {
    needs!(root());
    let place = Place::new();
    let volumes = json!({"Cmd": ["/x"], "Volumes": {"/a": {}, "/b": {}}});
    // One file, of which each volume has its own copy.
    let layer = Tar::new().file("a/f", vec![1; 700_000]).hardlink("b/f", "a/f");
    let reference = Image::new(vec![layer], volumes).layout(&place, "i");
    for (limit, code) in [("bytes=1m", 6), ("entries=1", 6), ("free=100", 7)] {
        place.image_ok(&["pull", &reference]);
        let run = place.image(&["bundle", &reference, "web", "--limits", limit]);
        let key = limit.split('=').next().unwrap();
        assert!(run.code == code && run.stderr.contains(&format!("(limit {key})")), "{limit}: {run:?}");
        assert!(!place.path("web").exists());
    }
    place.image_ok(&["bundle", &reference, "web", "--limits=bytes=1400000", "--limits=entries=2"]);
}

fn a_volume_of_the_users_takes_the_place_of_the_images() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let mut config = shell("cat /data/own; touch /data/new");
    config["Volumes"] = json!({"/data": {}});
    let reference = image(config).layout(&place, "i");
    fs::create_dir(place.path("own")).unwrap();
    place.write("own/own", "own");
    place.image_ok(&["bundle", &reference, "web", "--volume", "own:/data:ro"]);
    let run = place.keel("web");
    assert_eq!(run.stdout, "own", "{run:?}");
    assert!(!place.path("web/volumes").exists());
    assert!(run.stderr.contains("Read-only file system"), "{run:?}");
    let run = place.image(&["bundle", &reference, "other", "--volume", "nowhere:/data"]);
    assert!(
        run.code == 3 && run.stderr.contains("nowhere does not exist") && !place.path("other").exists(),
        "{run:?}"
    );
}

fn a_bundle_is_for_its_owner_only() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let reference = image(shell("true")).layout(&place, "i");
    fs::create_dir(place.path("web")).unwrap();
    fs::set_permissions(place.path("web"), fs::Permissions::from_mode(0o755)).unwrap();
    place.image_ok(&["bundle", &reference, "web"]);
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().mode() & 0o777;
    assert_eq!([mode("web"), mode("store"), mode("web/config.json")], [0o700, 0o700, 0o600]);
}

fn the_roots_mode_and_owner_are_the_images() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let top = Header { mode: 0o751, uid: 3, gid: 4, ..Header::new("./", b'5') };
    let config = json!({"Cmd": ["/bin/stat", "-c", "%u:%g:%a", "/"]});
    // The upper layer does not say.
    let reference =
        Image::new(vec![busybox().header(top), Tar::new().file("x", "")], config).layout(&place, "i");
    for kind in ["overlay", "copy", "ro"] {
        place.image_ok(&["bundle", &reference, kind, "--rootfs", kind]);
        assert_eq!(ran(&place.keel(kind)), "3:4:751\n", "{kind}");
    }
}

fn a_bundle_is_replaced_only_when_told() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let reference = image(shell("touch /new; ls /data")).layout(&place, "i");
    place.image_ok(&["bundle", &reference, "web"]);
    place.keel("web");
    let run = place.image(&["bundle", &reference, "web"]);
    assert!(run.code == 1 && run.stderr.contains("make bundle web: there is a bundle already"), "{run:?}");
    // What fails leaves the old one as it was.
    let run = place.image(&["bundle", "oci:nowhere", "web", "--force"]);
    assert_eq!(run.code, 3, "{run:?}");
    let run = place.image(&["bundle", &reference, "web", "--force", "--rootfs=copy", "--user=nobody"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert!(place.path("web/upper/new").exists());
    place.image_ok(&["bundle", &reference, "web", "--force"]);
    assert!(!place.path("web/upper/new").exists());
    fs::create_dir_all(place.path("mine/x")).unwrap();
    let run = place.image(&["bundle", &reference, "mine", "--force"]);
    assert!(run.code == 1 && run.stderr.contains("the directory is not empty"), "{run:?}");
    assert!(place.path("mine/x").exists());
    let left: Vec<_> = fs::read_dir(&place.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

fn what_is_put_aside_comes_back() {
    needs!(root(), program("busybox"), program("strace"));
    let place = Place::new();
    let reference = image(shell("true")).layout(&place, "i");
    place.image_ok(&["bundle", &reference, "web"]);
    place.write("web/upper/new", "new");
    let web = place.path("web").display().to_string();
    let run = place.run_any(
        "strace",
        &["--quiet=all", "--output=strace", "--trace=mkdir", "-P", &web, "--inject=mkdir:error=EDQUOT", "--"]
            .into_iter()
            .chain([env!("CARGO_BIN_EXE_keel-image"), "--store=store", "bundle", &reference, &web, "--force"])
            .collect::<Vec<_>>(),
    );
    assert!(run.code == 7 && run.stderr.contains("(122)"), "{run:?}");
    assert_eq!(place.read("web/upper/new"), "new");
    assert_eq!(place.stored("bundles").len(), 1);
}

fn a_bundle_that_was_killed_can_be_made_again() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let reference = image(shell("cat /data/seed")).layout(&place, "i");
    for (i, there) in ["", "rootfs", "rootfs/bin/busybox", "rootfs/data"].iter().enumerate() {
        let bundle = format!("b{i}");
        let mut child =
            place.image_command(&["bundle", &reference, &bundle, "--rootfs=copy"]).spawn().unwrap();
        while fs::symlink_metadata(place.path(&bundle).join(there)).is_err()
            && child.try_wait().unwrap().is_none()
        {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let whole = place.path(&bundle).join("config.json").exists();
        let args = ["bundle", &reference, &bundle, "--rootfs=copy", "--force"];
        // Before its record is there nobody can know whose an empty directory is.
        place.image_ok(if whole { &args } else { &args[..4] });
        assert_eq!(ran(&place.keel(&bundle)), "seed", "{there}");
    }
}

fn a_warm_bundle_asks_nobody() {
    needs!(root(), program("busybox"));
    let (place, image) = (Place::new(), image(shell("true")));
    let server = image.serve();
    let reference = format!("{}/test/app:v1", server.address);
    place.image_ok(&["bundle", &reference, "a"]);
    let asked = server.seen().len();
    place.image_ok(&["bundle", &reference, "b"]);
    assert_eq!(server.seen().len(), asked);
    let run = place.image_ok(&[
        "bundle",
        &reference,
        "c",
        "--json",
        "--expect-digest",
        &image.digest().to_string(),
    ]);
    assert_eq!(run.json()["digest"], image.digest().to_string());
}

fn ids_are_mapped_in_a_copy() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let owned = Header { uid: 5, gid: 6, ..Header::new("owned", b'0') };
    let config = json!({"Cmd": ["/bin/stat", "-c", "%u:%g", "/owned"]});
    let reference = Image::new(vec![busybox().dir("./").header(owned)], config).layout(&place, "i");
    let map = ["--rootfs=copy", "--uid-map=0:100000:70000", "--gid-map=0:200000:70000"];
    place.image_ok(&[&["bundle", &reference, "web"], &map[..]].concat());
    let meta = fs::metadata(place.path("web/rootfs/owned")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (100_005, 200_006));
    // The container's root gets through to it, and cannot say what is run.
    for (name, expected) in [("web", (0, 200_000, 0o710)), ("web/config.json", (0, 0, 0o600))] {
        let meta = fs::metadata(place.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), expected, "{name}");
    }
    assert_eq!(ran(&place.keel("web")), "5:6\n");
    for (map, why) in [("--uid-map=1:1:5", "id 0 of the container is not mapped"), ("--uid-map=0:1:5", "uid")]
    {
        let run = place.image(&["bundle", &reference, "other", "--rootfs=copy", map]);
        assert!(run.code == 1 && run.stderr.contains(why) && !place.path("other").exists(), "{map}: {run:?}");
    }
}

/// The layers keep the image's ids; keel maps them for each container.
fn one_store_serves_every_mapping() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let owned = Header { uid: 5, gid: 6, ..Header::new("owned", b'0') };
    let config = json!({"Cmd": ["/bin/sh", "-c", "stat -c %u:%g /owned; echo new >/owned"]});
    let reference = Image::new(vec![busybox().dir("./").header(owned)], config).layout(&place, "i");
    for (bundle, first) in [("one", 100_000), ("two", 200_000)] {
        place.image_ok(&["bundle", &reference, bundle, &format!("--uid-map=0:{first}:65536")]);
        assert_eq!(ran(&place.keel(bundle)), "5:6\n");
        let meta = fs::metadata(place.path(bundle).join("upper/owned")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (first + 5, first + 6));
    }
}

fn devices_are_made_only_when_told() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let layer = busybox().device("null", b'3', (1, 3));
    let reference = Image::new(vec![layer], json!({"Cmd": ["/bin/ls", "/"]})).layout(&place, "i");
    place.image_ok(&["bundle", &reference, "without"]);
    assert_eq!(ran(&place.keel("without")), "bin\ndev\nproc\nsys\n");
    place.image_ok(&["bundle", &reference, "with", "--devices"]);
    assert_eq!(ran(&place.keel("with")), "bin\ndev\nnull\nproc\nsys\n");
}

fn an_image_of_nothing_can_be_bundled() {
    needs!(root());
    let place = Place::new();
    let reference = Image::new(vec![], json!({"Cmd": ["/nothing"]})).layout(&place, "i");
    for kind in ["overlay", "copy", "ro"] {
        place.image_ok(&["bundle", &reference, kind, "--rootfs", kind]);
        let run = place.keel(kind);
        assert!(run.code == 1 && run.stderr.contains("/nothing"), "{kind}: {run:?}");
    }
}
