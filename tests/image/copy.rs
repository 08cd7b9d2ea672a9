//! Images from one place to another, with skopeo, umoci and buildah at the other end.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::debian_registry::registry;
use crate::fixture::{digest, image, index_image};
use crate::place::{Place, program};
use crate::{needs, tests};

tests![
    a_copy_has_the_same_digest_wherever_it_goes,
    skopeo_reads_what_is_written,
    umoci_unpacks_what_is_written,
    buildah_pulls_what_is_written_and_writes_what_is_read,
    what_skopeo_writes_is_read,
    all_platforms_go_with_their_index_or_one_of_them,
    a_docker_archive_says_what_it_loses,
    layers_of_a_docker_archive_are_compressed_on_the_way,
    another_compression_gives_the_same_files,
    blobs_that_are_there_are_not_written_again,
    another_repository_lends_its_blobs,
    a_layout_takes_several_images_and_one_name_once,
    a_directory_with_other_things_is_not_filled,
    a_failed_write_leaves_what_was_there,
    a_killed_write_leaves_what_was_there,
    a_damaged_blob_is_not_passed_on,
    a_bomb_that_says_what_it_is_is_stopped,
    a_destination_says_what_it_is,
];

fn copy(place: &Place, args: &[&str]) -> String {
    let run = place.keel_image(&[&["--quiet", "copy"], args].concat());
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}");
    run.stdout.trim_end().to_owned()
}

fn raw(place: &Place, reference: &str) -> String {
    let run = place.keel_image(&["inspect", "--raw", reference]);
    assert_eq!(run.code, 0, "{run:?}");
    run.stdout
}

fn skopeo(place: &Place, args: &[&str]) -> String {
    place.run("skopeo", &[&["--insecure-policy"], args].concat())
}

fn a_copy_has_the_same_digest_wherever_it_goes() {
    needs!(program("docker-registry"));
    let place = Place::new();
    let image = image(&place);
    let registry = registry(&place, "", "");
    let (one, two) = (format!("{}/a/b:1", registry.address), format!("{}/c:2", registry.address));
    let way = [
        "oci:layout:v1",
        &one,
        "oci-archive:x.tar:v3",
        &two,
        "oci:second:v4",
        "oci-archive:y.tar",
        "oci:third",
    ];
    for step in way.windows(2) {
        assert_eq!(copy(&place, step), digest(&image.manifest), "{step:?}");
        assert_eq!(raw(&place, step[1]), image.manifest, "{step:?}");
    }
    let inspected = place.keel_image(&["inspect", "third"]).json();
    assert_eq!(inspected["config"], serde_json::from_str::<Value>(&image.config).unwrap());
    // What lies in an archive found by its path, too.
    assert_eq!(raw(&place, "./x.tar"), image.manifest);
    let run = place.keel_image(&["--json", "copy", "oci:layout:v1", "oci:json"]);
    assert_eq!(run.json(), json!({"digest": digest(&image.manifest)}));
    assert!(run.stderr.contains("blob sha256:") && run.stderr.contains("bytes: written"), "{run:?}");
}

fn skopeo_reads_what_is_written() {
    needs!(program("skopeo"));
    let place = Place::new();
    let image = image(&place);
    for to in ["oci:dir:v1", "oci-archive:x.tar:v1"] {
        copy(&place, &["oci:layout:v1", to]);
        assert_eq!(skopeo(&place, &["inspect", "--raw", to]), image.manifest);
        let copied = format!("oci:by-skopeo-{}:v1", &to[..5].replace(':', "-"));
        skopeo(&place, &["copy", "--preserve-digests", to, &copied]);
    }
    copy(&place, &["oci:layout:v1", "docker-archive:d.tar:test/app:v7"]);
    let listed: Value = serde_json::from_str(&skopeo(&place, &["inspect", "docker-archive:d.tar"])).unwrap();
    let diff_ids: Vec<_> = image.plain.iter().map(digest).collect();
    assert_eq!(listed["Layers"], json!(diff_ids));
    skopeo(&place, &["copy", "docker-archive:d.tar:docker.io/test/app:v7", "oci:from-docker:v1"]);
    assert_eq!(
        place.keel_image(&["inspect", "--config", "from-docker"]).json()["rootfs"]["diff_ids"],
        json!(diff_ids)
    );
}

/// Everything about the files of a tree, as tar(1) has it.
fn listing(place: &Place, dir: &str) -> String {
    let script = format!(
        "cd {dir} && find . ! -name . -printf '%P %y %m %U:%G %s %T@ %l\\n' -type f -exec md5sum {{}} + | sed 's/ \\(d .*\\) [0-9]* [0-9.]* $/ \\1/' | sort"
    );
    place.run("sh", &["-euc", &script])
}

fn umoci_unpacks_what_is_written() {
    needs!(program("umoci"));
    let place = Place::new();
    image(&place);
    copy(&place, &["oci:layout:v1", "oci-archive:x.tar:v1"]);
    copy(&place, &["oci-archive:x.tar", "oci:out:v1"]);
    place.run("umoci", &["unpack", "--image", "out:v1", "bundle"]);
    let root = place.path("bundle/rootfs");
    assert_eq!(fs::read_to_string(root.join("etc/new")).unwrap(), "new\n");
    assert!(!root.join("etc/gone").exists());
    assert_eq!(fs::metadata(root.join("bin/big")).unwrap().nlink(), 2);
    // What was compressed anew, and what went through docker's format, has the same files.
    copy(&place, &["--compression=gzip:1", "oci:layout:v1", "oci:zip:v1"]);
    copy(&place, &["oci:layout:v1", "docker-archive:d.tar"]);
    copy(&place, &["docker-archive:d.tar", "oci:again:v1"]);
    for layout in ["zip", "again"] {
        let bundle = format!("bundle-{layout}");
        place.run("umoci", &["unpack", "--image", &format!("{layout}:v1"), &bundle]);
        assert_eq!(listing(&place, &format!("{bundle}/rootfs")), listing(&place, "bundle/rootfs"));
    }
}

fn buildah_pulls_what_is_written_and_writes_what_is_read() {
    needs!(program("buildah"));
    let place = Place::new();
    let image = image(&place);
    copy(&place, &["oci:layout:v1", "oci-archive:x.tar:v1"]);
    copy(&place, &["oci:layout:v1", "docker-archive:d.tar:test/app:v1"]);
    let script = r#"
         b() { c=$1; shift; buildah --storage-driver=vfs --root $PWD/s --runroot $PWD/r $c --signature-policy $PWD/policy.json "$@"; }
         echo '{"default": [{"type": "insecureAcceptAnything"}]}' >policy.json
         for from in oci-archive:x.tar:v1 docker-archive:d.tar; do
             id=$(b pull -q $from)
             rm -f o.tar e.tar
             b push -q $id oci-archive:$PWD/o.tar:v1 >&2
             b push -q $id docker-archive:$PWD/e.tar:app:v1 >&2
         done"#;
    place.run("sh", &["-euc", script]);
    let diff_ids: Vec<_> = image.plain.iter().map(digest).collect();
    for written in ["o.tar", "docker-archive:e.tar"] {
        let config = place.keel_image(&["inspect", "--config", written]).json();
        assert_eq!(config["rootfs"]["diff_ids"], json!(diff_ids), "{written}");
        copy(&place, &[written, "oci:last:v1"]);
    }
}

fn what_skopeo_writes_is_read() {
    needs!(program("skopeo"));
    let place = Place::new();
    let image = image(&place);
    for to in ["oci:s:v1", "oci-archive:s.tar:v1"] {
        skopeo(&place, &["copy", "--preserve-digests", "oci:layout:v1", to]);
        assert_eq!(raw(&place, to), image.manifest);
    }
    // With a directory for each layer, whose layer.tar is a link.
    skopeo(&place, &["copy", "oci:layout:v1", "docker-archive:d.tar:test/app:v1"]);
    let config = place.keel_image(&["inspect", "--config", "docker-archive:d.tar:test/app:v1"]);
    assert_eq!(config.json(), serde_json::from_str::<Value>(&image.config).unwrap(), "{config:?}");
    let names = place.run("tar", &["-tvf", "d.tar"]);
    assert!(names.contains("layer.tar -> ../"), "{names}");
    place.run("gzip", &["-k", "d.tar"]);
    place.run("zstd", &["-q", "s.tar"]);
    for compressed in ["docker-archive:d.tar.gz", "oci-archive:s.tar.zst:v1"] {
        let listed = place.keel_image(&["inspect", compressed]).json();
        assert_eq!(listed["config"], config.json(), "{compressed}");
    }
    let manifest = raw(&place, "docker-archive:d.tar.gz");
    assert_eq!(manifest, raw(&place, "docker-archive:d.tar"));
    let run = place.keel_image(&["inspect", "docker-archive:d.tar:other"]);
    assert!(run.code == 3 && run.stderr.ends_with("There are: docker.io/test/app:v1.\n"), "{run:?}");
}

fn all_platforms_go_with_their_index_or_one_of_them() {
    needs!(program("docker-registry"));
    let place = Place::new();
    let (index, host) = index_image(&place);
    let registry = registry(&place, "", "");
    let remote = format!("{}/test/app:v1", registry.address);
    for step in
        [["oci:layout:v1", &remote], [&remote, "oci-archive:all.tar"], ["oci-archive:all.tar", "oci:all"]]
    {
        assert_eq!(copy(&place, &[&["--all"][..], &step].concat()), digest(&index));
        assert_eq!(raw(&place, step[1]), index);
    }
    let blobs = |dir: &str| fs::read_dir(place.path(dir).join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs("all"), blobs("layout"));
    assert_eq!(copy(&place, &[&remote, "oci:one"]), digest(&host.manifest));
    assert_eq!((raw(&place, "oci:one"), blobs("one")), (host.manifest, 4));
    let other = copy(&place, &["--platform=riscv64", &remote, "oci-archive:riscv.tar"]);
    assert_eq!(digest(raw(&place, "oci-archive:riscv.tar")), other);
    let run = place.keel_image(&["copy", "--platform=s390x", &remote, "oci:none"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert!(!place.path("none/index.json").exists());
    // An index that names what is not there.
    fs::remove_file(place.path(&format!("layout/blobs/sha256/{}", &other[7..]))).unwrap();
    let run = place.keel_image(&["copy", "--all", "oci:layout", "oci-archive:part.tar"]);
    assert!(run.code == 3 && run.stderr.contains("Without --all"), "{run:?}");
    assert!(!place.path("part.tar").exists());
}

fn a_docker_archive_says_what_it_loses() {
    let place = Place::new();
    image(&place);
    let run = place.keel_image(&["copy", "oci:layout:v1", "docker-archive:d.tar:app:v1"]);
    assert!(run.code == 0 && run.stderr.ends_with("read back, the image has another digest\n"), "{run:?}");
    let run = place.keel_image(&["copy", "--all", "oci:layout:v1", "docker-archive:e.tar"]);
    assert!(run.code == 1 && run.stderr.contains("Leave --all"), "{run:?}");
    assert!(!place.path("e.tar").exists());
    let manifest = place.run("tar", &["-xOf", "d.tar", "manifest.json"]);
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest[0]["RepoTags"], json!(["docker.io/library/app:v1"]));
}

fn layers_of_a_docker_archive_are_compressed_on_the_way() {
    let place = Place::new();
    let image = image(&place);
    copy(&place, &["oci:layout:v1", "docker-archive:d.tar:app:v1"]);
    let first = copy(&place, &["docker-archive:d.tar:app:v1", "oci:one"]);
    // Always the same.
    assert_eq!(copy(&place, &["d.tar", "oci-archive:two.tar"]), first);
    let manifest: Value = serde_json::from_str(&raw(&place, "oci:one")).unwrap();
    assert_eq!(manifest["layers"][1]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    assert_eq!(place.keel_image(&["inspect", "--config", "oci:one"]).stdout, image.config);
    copy(&place, &["--compression=none", "d.tar", "oci:plain"]);
    let manifest: Value = serde_json::from_str(&raw(&place, "oci:plain")).unwrap();
    assert_eq!(manifest["layers"][0]["digest"], digest(&image.plain[0]));
}

fn another_compression_gives_the_same_files() {
    needs!(program("zstd"));
    let place = Place::new();
    let image = image(&place);
    copy(&place, &["--compression=zstd:9", "oci:layout:v1", "oci:z:v1"]);
    let manifest: Value = serde_json::from_str(&raw(&place, "oci:z")).unwrap();
    for (layer, plain) in manifest["layers"].as_array().unwrap().iter().zip(&image.plain) {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
        let hex = &layer["digest"].as_str().unwrap()[7..];
        place.run("zstd", &["-qdf", &format!("z/blobs/sha256/{hex}"), "-o", "plain"]);
        assert!(fs::read(place.path("plain")).unwrap() == *plain);
    }
    let run = place.keel_image(&["copy", "--compression=zstd", "--all", "oci:layout:v1", "oci:y"]);
    assert_eq!(run.code, 1, "{run:?}");
    let run = place.keel_image(&["copy", "--compression=xz", "oci:layout:v1", "oci:y"]);
    assert!(run.code == 2 && run.stderr.contains("must be gzip, zstd or none"), "{run:?}");
}

fn blobs_that_are_there_are_not_written_again() {
    let place = Place::new();
    image(&place);
    copy(&place, &["oci:layout:v1", "oci:to:a"]);
    let run = place.keel_image(&["copy", "oci:layout:v1", "oci:to:b"]);
    let lines: Vec<_> = run.stderr.lines().collect();
    assert!(lines.len() == 3 && lines.iter().all(|line| line.ends_with("bytes: is there")), "{run:?}");
}

fn another_repository_lends_its_blobs() {
    needs!(program("docker-registry"));
    let place = Place::new();
    image(&place);
    let registry = registry(&place, "", "");
    let [from, to] = ["one/app", "two/app"].map(|name| format!("{}/{name}:v1", registry.address));
    copy(&place, &["oci:layout:v1", &from]);
    let run = place.keel_image(&["copy", &from, &to]);
    let lines: Vec<_> = run.stderr.lines().collect();
    assert!(
        lines.len() == 3 && lines.iter().all(|line| line.ends_with("mounted from another repository")),
        "{run:?}"
    );
    let run = place.keel_image(&["copy", &from, &to]);
    assert!(run.stderr.lines().all(|line| line.ends_with("is there")), "{run:?}");
}

fn a_layout_takes_several_images_and_one_name_once() {
    let place = Place::new();
    let first = image(&place);
    copy(&place, &["oci:layout:v1", "oci:to:a"]);
    copy(&place, &["oci:layout:v1", "oci:to:b"]);
    copy(&place, &["oci:layout:v1", "oci:to"]);
    copy(&place, &["oci:layout:v1", "oci:to"]);
    fs::remove_dir_all(place.path("layout")).unwrap();
    let second = image(&place);
    copy(&place, &["oci:layout:v1", "oci:to:a"]);
    assert_eq!((raw(&place, "oci:to:a"), raw(&place, "oci:to:b")), (second.manifest, first.manifest));
    let index: Value = serde_json::from_str(&place.read("to/index.json")).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 3);
    let run = place.keel_image(&["inspect", "oci:to"]);
    assert!(run.code == 1 && run.stderr.contains("there are 2 images"), "{run:?}");
}

fn a_directory_with_other_things_is_not_filled() {
    let place = Place::new();
    image(&place);
    fs::create_dir(place.path("mine")).unwrap();
    place.write("mine/thesis", "x");
    let run = place.keel_image(&["copy", "oci:layout:v1", "oci:mine"]);
    assert!(run.code != 0 && run.stderr.contains("Name a directory that is empty"), "{run:?}");
    assert_eq!(fs::read_dir(place.path("mine")).unwrap().count(), 1);
}

fn leftovers(place: &Place) -> Vec<String> {
    let names =
        fs::read_dir(&place.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".tmp")).collect()
}

fn a_failed_write_leaves_what_was_there() {
    let place = Place::new();
    let image = image(&place);
    let damaged = format!("layout/blobs/sha256/{}", &digest(&image.blobs[1])[7..]);
    copy(&place, &["oci:layout:v1", "oci-archive:x.tar:v1"]);
    copy(&place, &["oci:layout:v1", "docker-archive:d.tar:v1"]);
    let before = ["x.tar", "d.tar"].map(|name| fs::read(place.path(name)).unwrap());
    let mut bytes = image.blobs[1].clone();
    *bytes.last_mut().unwrap() ^= 1;
    place.write(&damaged, bytes);
    for to in ["oci-archive:x.tar:v2", "docker-archive:d.tar:v2", "oci:new:v2"] {
        let run = place.keel_image(&["copy", "oci:layout:v1", to]);
        assert_eq!(run.code, 5, "{run:?}");
    }
    assert!(["x.tar", "d.tar"].map(|name| fs::read(place.path(name)).unwrap()) == before);
    assert!(!place.path("new/index.json").exists());
    assert_eq!(leftovers(&place), Vec::<String>::new());
    assert!(!place.path("new/blobs/sha256").join(&digest(&image.blobs[1])[7..]).exists());
}

fn a_killed_write_leaves_what_was_there() {
    let place = Place::new();
    let image = image(&place);
    copy(&place, &["oci:layout:v1", "docker-archive:d.tar:v1"]);
    let before = fs::read(place.path("d.tar")).unwrap();
    // One that was not killed in time has written this.
    copy(&place, &["oci:layout:v1", "docker-archive:e.tar:v2"]);
    let after = fs::read(place.path("e.tar")).unwrap();
    for delay in [1, 5, 10, 20, 30, 40, 60, 80] {
        for to in ["docker-archive:d.tar:v2", "oci-archive:o.tar:v2", "oci:killed:v2"] {
            let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_keel-image"))
                .args(["copy", "--quiet", "oci:layout:v1", to])
                .args(if to.starts_with("oci") { &["--compression=zstd:19"][..] } else { &[] })
                .current_dir(&place.dir)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(delay));
            let _ = run.kill();
            run.wait().unwrap();
        }
        let now = fs::read(place.path("d.tar")).unwrap();
        assert!(now == before || now == after);
        if place.path("o.tar").exists() {
            assert_eq!(place.keel_image(&["inspect", "o.tar"]).code, 0);
        }
        // A blob that has its name is the right one.
        let Ok(blobs) = fs::read_dir(place.path("killed/blobs/sha256")) else { continue };
        for blob in blobs {
            let path = blob.unwrap().path();
            assert_eq!(digest(fs::read(&path).unwrap())[7..], *path.file_name().unwrap().to_str().unwrap());
        }
    }
    let again = copy(&place, &["oci:layout:v1", "oci:killed:v2"]);
    assert_eq!(again, digest(&image.manifest));
}

fn a_damaged_blob_is_not_passed_on() {
    needs!(program("docker-registry"));
    let place = Place::new();
    let image = image(&place);
    let registry = registry(&place, "", "");
    place.write(
        &format!("layout/blobs/sha256/{}", &digest(&image.blobs[0])[7..]),
        vec![0; image.blobs[0].len()],
    );
    let to = format!("{}/test/app:v1", registry.address);
    let run = place.keel_image(&["copy", "oci:layout:v1", &to]);
    assert!(run.code == 5 && run.stderr.contains("the digest is sha256:"), "{run:?}");
    assert_eq!(place.keel_image(&["inspect", &to]).code, 3);
}

fn a_destination_says_what_it_is() {
    let place = Place::new();
    image(&place);
    let run = place.keel_image(&["copy", "oci:layout:v1", "./x.tar"]);
    assert!(run.code == 1 && run.stderr.contains("Say oci:./x.tar, oci-archive:./x.tar or"), "{run:?}");
    copy(&place, &["oci:layout:v1", "oci-archive:./x.tar"]);
    copy(&place, &["oci:layout:v1", "./x.tar"]);
}

/// The diff_id is right: who made the bomb has made it, too.
fn a_bomb_that_says_what_it_is_is_stopped() {
    let place = Place::new();
    let plain = vec![0; 80 << 20];
    let blob = zstd::encode_all(&plain[..], 3).unwrap();
    let size = blob.len();
    assert!(plain.len() / size > 1000);
    let of_bomb = crate::images::Image::with(vec![], json!({}), |config, manifest| {
        config["rootfs"]["diff_ids"] = json!([digest(&plain)]);
        let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        manifest["layers"] = json!([{"mediaType": media_type, "digest": digest(&blob), "size": size}]);
    });
    of_bomb.layout(&place, "bomb");
    place.write(&format!("bomb/blobs/sha256/{}", &digest(&blob)["sha256:".len()..]), &blob);
    for to in [&["--compression=gzip", "oci:bomb", "oci:out"][..], &["oci:bomb", "docker-archive:out.tar"]] {
        let run = place.keel_image(&[&["copy"], to].concat());
        let bomb = format!("{size} bytes become ");
        assert!(run.code == 6 && run.stderr.contains(&bomb), "{to:?}: {run:?}");
        assert!(run.stderr.ends_with("If you trust the image, raise it: --limits ratio=N\n"), "{run:?}");
        copy(&place, &[&["--limits=ratio=100k"], to].concat());
    }
    // As it is, it harms nobody.
    copy(&place, &["oci:bomb", "oci:same"]);
    let run = place.keel_image(&["copy", "--limits=layers=0", "oci:bomb", "oci:none"]);
    assert!(run.code == 6, "{run:?}");
}
