//! Layers that lean on those below them: an overlay has to show what applying one after the other makes.

use std::fs;

use serde_json::json;

use crate::archive::{Header, Tar};
use crate::images::{Image, busybox, root};
use crate::place::{Place, program};
use crate::{needs, tests};

tests![
    an_overlay_shows_what_a_copy_holds,
    most_images_need_no_fix_up,
    what_lies_behind_a_link_of_another_layer_takes_a_copy,
    a_hard_link_to_nothing_is_refused,
    few_descriptors_are_enough,
];

/// Mode, owner, links and name of everything.
const LIST: &str = "find / -xdev ! -path '/dev*' ! -path '/proc*' ! -path '/sys*' | while read f; do \
    stat -c '%A %u:%g %n' $f; done; cat /linked /chained /again";

fn leaning() -> Vec<Tar> {
    let private = |name: &str| Header { mode: 0o700, uid: 7, gid: 8, ..Header::new(name, b'5') };
    vec![
        busybox()
            .dir("./")
            .header(private("secret/"))
            .header(private("secret/deep/"))
            .file("target", "t")
            .dir("old/")
            .file("old/x", ""),
        // Implied directories, links down, whiteouts of nothing.
        Tar::new()
            .file("secret/deep/file", "")
            .hardlink("linked", "target")
            .hardlink("chained", "linked")
            .file("fresh/.wh.ghost", "")
            .file("fresh/file", "")
            .file(".wh.nothing", ""),
        Tar::new()
            .hardlink("again", "chained")
            .file("secret/other", "")
            .file(".wh.target", "")
            .file("old/.wh..wh..opq", ""),
    ]
}

fn an_overlay_shows_what_a_copy_holds() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let config = json!({"Cmd": ["/bin/sh", "-c", LIST]});
    let image = Image::new(leaning(), config);
    let reference = image.layout(&place, "i");
    let mut seen = Vec::new();
    for kind in ["copy", "overlay", "ro"] {
        place.image_ok(&["bundle", &reference, kind, "--rootfs", kind]);
        let run = place.keel(kind);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{kind}: {run:?}");
        let mut lines: Vec<_> = run.stdout.lines().map(str::to_owned).collect();
        lines.sort();
        seen.push(lines);
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
    let has = |line: &str| assert!(seen[0].iter().any(|seen| seen == line), "{line}: {:#?}", seen[0]);
    ["drwx------ 7:8 /secret", "drwx------ 7:8 /secret/deep", "-rw-r--r-- 0:0 /linked", "ttt"]
        .iter()
        .for_each(|line| has(line));
    // One file, and none of its data is there twice.
    let fix_up = place.stored("layers").into_iter().find(|name| name.starts_with("chain-")).unwrap();
    use std::os::unix::fs::MetadataExt;
    let inode = |path: std::path::PathBuf| fs::metadata(path).unwrap().ino();
    let target = inode(place.layer(&image.layers[0].1).join("fs/target"));
    for link in ["linked", "chained", "again"] {
        assert_eq!(inode(place.path("store/layers").join(&fix_up).join("fs").join(link)), target, "{link}");
    }
}

fn most_images_need_no_fix_up() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let upper = Tar::new().dir("bin/").file("bin/.wh.cat", "").file("x/y", "");
    let reference =
        Image::new(vec![busybox(), upper], json!({"Cmd": ["/bin/ls", "/bin"]})).layout(&place, "i");
    place.image_ok(&["bundle", &reference, "web"]);
    let config = place.read("web/config.json");
    assert_eq!(config.matches("lowerdir+=").count(), 2, "{config}");
    let fix_up = place.stored("layers").into_iter().find(|name| name.starts_with("chain-")).unwrap();
    assert!(!place.path("store/layers").join(fix_up).join("fs").exists());
    assert!(!place.keel("web").stdout.contains("cat"));
}

fn what_lies_behind_a_link_of_another_layer_takes_a_copy() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    let base = busybox().dir("real/").symlink("link", "real");
    let upper = Tar::new().file("link/file", "behind");
    let reference =
        Image::new(vec![base, upper], json!({"Cmd": ["/bin/cat", "/real/file"]})).layout(&place, "i");
    let run = place.image(&["bundle", &reference, "web"]);
    assert!(run.code == 1 && run.stderr.contains("\"link\" is a symbolic link in one layer"), "{run:?}");
    assert!(run.stderr.ends_with("Take --rootfs=copy.\n") && !place.path("web").exists(), "{run:?}");
    place.image_ok(&["bundle", &reference, "web", "--rootfs=copy"]);
    assert_eq!(place.keel("web").stdout, "behind");
}

fn a_hard_link_to_nothing_is_refused() {
    needs!(root(), program("busybox"));
    let place = Place::new();
    place.write("secret", "host");
    let outside = place.path("secret");
    for target in ["nowhere", outside.to_str().unwrap(), "bin"] {
        let upper = Tar::new().hardlink("link", target);
        let reference = Image::new(vec![busybox(), upper], json!({"Cmd": ["/x"]})).layout(&place, "i");
        for kind in ["overlay", "copy"] {
            let run = place.image(&["bundle", &reference, "web", "--rootfs", kind]);
            assert!(run.code == 5 && run.stderr.contains("hard link target"), "{target}: {run:?}");
            assert!(!place.path("web").exists() && place.stored("bundles").is_empty());
        }
        fs::remove_dir_all(place.path("i")).unwrap();
    }
}

fn few_descriptors_are_enough() {
    needs!(root(), program("busybox"), program("prlimit"));
    let place = Place::new();
    // Links to a lower layer, links in a volume, and layers.
    let (mut base, mut upper) = (busybox(), Tar::new());
    for i in 0..300 {
        base = base.file(format!("target{i}"), "").file(format!("v/{i}"), "");
        base = base.hardlink(&format!("v/{i}link"), &format!("v/{i}"));
        upper = upper.hardlink(&format!("link{i}"), &format!("target{i}"));
    }
    let mut layers = vec![base, upper];
    layers.extend((0..60).map(|i| Tar::new().file(format!("many/{i}"), "")));
    let config = json!({"Cmd": ["/bin/sh", "-c", "ls /v | wc -l; ls /many | wc -l; stat -c %h /link299"],
        "Volumes": {"/v": {}}});
    let reference = Image::new(layers, config).layout(&place, "i");
    let program = env!("CARGO_BIN_EXE_keel-image");
    // The second is raised by the program itself.
    for (bundle, limit) in [("low", "200:200"), ("soft", "24:200")] {
        let (limit, store) = (format!("--nofile={limit}"), format!("--store=store-{bundle}"));
        place.run("prlimit", &[&limit, program, &store, "--quiet", "bundle", &reference, bundle]);
        let run = place.keel(bundle);
        assert_eq!((run.stdout.as_str(), run.code), ("600\n60\n2\n", 0), "{run:?}");
    }
}
