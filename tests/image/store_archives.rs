//! Between the store and archives, registries and root file systems: load, save, push, import, export, commit.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use keel::image::digest::Digest;
use keel::image::manifest::Descriptor;
use keel::image::store::Store;
use keel::image::store::bundles::Bundle;
use serde_json::{Value, json};

use crate::debian_registry::registry;
use crate::fixture::{Image, digest, image, index_image};
use crate::place::{Place, Run, program};
use crate::{needs, tests};

tests![
    what_is_loaded_is_saved_and_pushed_with_its_digest,
    archives_of_several_images_are_loaded_under_their_names,
    an_image_without_a_full_name_needs_one,
    an_archive_comes_from_stdin_and_goes_to_stdout,
    what_docker_saves_today_is_read_either_way,
    the_tree_of_an_image_is_the_one_that_umoci_makes,
    all_platforms_of_the_store_are_those_it_has,
    what_is_not_in_the_store_is_not_saved,
    a_root_file_system_becomes_an_image,
    a_directory_becomes_an_image,
    what_is_no_root_file_system_is_refused,
    options_that_mean_nothing_are_refused,
    a_plain_root_is_exported_as_it_is,
    an_overlay_is_exported_as_it_is_seen,
    a_failed_export_leaves_what_was_there,
    commit_push_and_pull_give_the_same_digest,
    a_mapped_bundle_gives_the_ids_of_the_inside,
    a_bundle_without_changes_of_its_own_says_what_to_do,
    a_container_cannot_make_a_commit_endless,
    an_upper_that_is_mounted_is_not_committed,
    a_container_is_paused_while_it_is_committed,
    what_a_container_of_keel_writes_is_committed_while_it_runs,
    a_bundle_that_is_mounted_is_committed_once_it_is_not,
];

fn root() -> Result<(), String> {
    nix::unistd::geteuid().is_root().then_some(()).ok_or("needs root".into())
}

fn run(place: &Place, args: &[&str]) -> Run {
    place.keel_image(&[&["--store=store", "--quiet"], args].concat())
}

fn good(place: &Place, args: &[&str]) -> String {
    let run = run(place, args);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}");
    run.stdout.trim_end().to_owned()
}

fn shell(place: &Place, script: &str) -> String {
    place.run("sh", &["-euc", script])
}

fn raw(place: &Place, reference: &str) -> String {
    good(place, &["inspect", "--raw", reference])
}

/// The names and contents of a layout's only image, in the store as app:v1.
fn loaded(place: &Place) -> Image {
    let image = image(place);
    good(place, &["copy", "oci:layout:v1", "oci-archive:x.tar"]);
    let said = good(place, &["load", "--name=app:v1", "x.tar"]);
    assert_eq!(said, format!("docker.io/library/app:v1@{}", digest(&image.manifest)));
    image
}

fn what_is_loaded_is_saved_and_pushed_with_its_digest() {
    needs!(root(), program("docker-registry"));
    let place = Place::new();
    let image = loaded(&place);
    let top = digest(&image.manifest);
    assert_eq!(good(&place, &["save", "app:v1", "saved.tar"]), top);
    assert_eq!(raw(&place, "saved.tar").trim_end(), image.manifest);
    // Under its name it comes back.
    fs::remove_dir_all(place.path("store")).unwrap();
    assert_eq!(good(&place, &["load", "saved.tar"]), format!("docker.io/library/app:v1@{top}"));
    let registry = registry(&place, "", "");
    let remote = format!("{}/test/app:v1", registry.address);
    assert_eq!(good(&place, &["push", "app:v1", &remote]), top);
    assert_eq!(raw(&place, &remote).trim_end(), image.manifest);
    assert_eq!(good(&place, &["push", "saved.tar", &remote]), top);
    good(&place, &["save", "--format=docker", "app:v1", "docker.tar"]);
    let config = good(&place, &["inspect", "--config", "docker-archive:docker.tar:app:v1"]);
    assert_eq!(config, image.config);
}

fn archives_of_several_images_are_loaded_under_their_names() {
    needs!(root());
    let place = Place::new();
    let first = image(&place);
    good(&place, &["copy", "oci:layout:v1", "oci:both:docker.io/library/a:1"]);
    good(&place, &["copy", "oci:layout:v1", "oci:both:ghcr.io/b/c:2"]);
    fs::remove_dir_all(place.path("layout")).unwrap();
    let second = image(&place);
    good(&place, &["copy", "oci:layout:v1", "oci:both:localhost:5000/d:3"]);
    shell(&place, "tar -C both -cf both.tar .");
    let mut said: Vec<_> = good(&place, &["load", "both.tar"]).lines().map(str::to_owned).collect();
    said.sort();
    let (one, two) = (digest(&first.manifest), digest(&second.manifest));
    let expected = [
        format!("docker.io/library/a:1@{one}"),
        format!("ghcr.io/b/c:2@{one}"),
        format!("localhost:5000/d:3@{two}"),
    ];
    assert_eq!(said, expected);
    let refused = run(&place, &["load", "--name=x", "both.tar"]);
    assert!(refused.code == 1 && refused.stderr.contains("the archive has 2 images"), "{refused:?}");
    good(&place, &["save", "localhost:5000/d:3", "d.tar"]);
    assert_eq!(raw(&place, "d.tar").trim_end(), second.manifest);
}

fn an_image_without_a_full_name_needs_one() {
    needs!(root());
    let place = Place::new();
    image(&place);
    for (to, said) in [("oci-archive:x.tar:v1", "no full name"), ("docker-archive:x.tar", "no full name")] {
        good(&place, &["copy", "oci:layout:v1", to]);
        let refused = run(&place, &["load", "x.tar"]);
        assert!(refused.code == 1 && refused.stderr.contains(said), "{refused:?}");
        assert!(refused.stderr.ends_with("Give it one: --name REF.\n"), "{refused:?}");
        good(&place, &["load", "--name=x", "x.tar"]);
    }
    // A name that is none, or that is a path.
    good(&place, &["copy", "oci:layout:v1", "oci-archive:x.tar:a/../../b:1"]);
    let refused = run(&place, &["load", "x.tar"]);
    assert!(refused.code == 1 && refused.stderr.contains("reference \"a/../../b:1\""), "{refused:?}");
}

fn an_archive_comes_from_stdin_and_goes_to_stdout() {
    needs!(root());
    let place = Place::new();
    let image = loaded(&place);
    let keel_image = concat!(env!("CARGO_BIN_EXE_keel-image"), " --quiet --store=");
    for format in ["oci", "docker"] {
        let name = shell(
            &place,
            &format!(
                "{keel_image}store save --format={format} app:v1 - | gzip -1 | {keel_image}other load -"
            ),
        );
        assert!(name.starts_with("docker.io/library/app:v1@sha256:"), "{name}");
        if format == "oci" {
            assert!(name.ends_with(&format!("{}\n", digest(&image.manifest))), "{name}");
        }
        fs::remove_dir_all(place.path("other")).unwrap();
    }
    let cut = shell(
        &place,
        &format!("{keel_image}store save app:v1 - | head -c 100000 | {keel_image}store load - 2>&1 || true"),
    );
    assert!(cut.contains("is cut off"), "{cut}");
    assert_eq!(shell(&place, "ls -A store/tmp | grep -v lock || true"), "");
}

fn what_docker_saves_today_is_read_either_way() {
    needs!(root());
    let place = Place::new();
    let image = image(&place);
    // Since version 25: an image layout that has manifest.json besides; layers are plain, as its storage has them.
    good(&place, &["copy", "--compression=none", "oci:layout:v1", "oci:d:latest"]);
    let plain = digest(raw(&place, "oci:d").trim_end());
    let blob = |digest: &str| format!("blobs/sha256/{}", &digest[7..]);
    let layers: Vec<_> = image.plain.iter().map(|plain| blob(&digest(plain))).collect();
    let config = blob(&digest(&image.config));
    let list = json!([{"Config": config, "RepoTags": ["app:latest"], "Layers": layers}]);
    place.write("d/manifest.json", list.to_string());
    place.write("d/repositories", "{}");
    let mut index: Value = serde_json::from_str(&place.read("d/index.json")).unwrap();
    index["manifests"][0]["annotations"]["io.containerd.image.name"] = json!("docker.io/library/app:latest");
    place.write("d/index.json", index.to_string());
    shell(&place, "tar -C d -cf x.tar .");
    assert_eq!(good(&place, &["load", "x.tar"]), format!("docker.io/library/app:latest@{plain}"));
    for reference in ["x.tar", "docker-archive:x.tar:app", "docker-archive:x.tar", "oci-archive:x.tar:latest"]
    {
        assert_eq!(good(&place, &["inspect", "--config", reference]), image.config, "{reference}");
    }
}

fn the_tree_of_an_image_is_the_one_that_umoci_makes() {
    needs!(root(), program("umoci"), program("setfattr"));
    let place = Place::new();
    // What it begins with, and what two containers made of it.
    shell(
        &place,
        &format!(
            "{TREE}; mkdir -p r/a/b r/c; echo 1 >r/a/1; ln r/a/1 r/a/b/2; touch -d 2001-02-03 r/a r/a/1; chmod 2755 r/c"
        ),
    );
    good(&place, &["import", "r", "app:1", "--cmd=x"]);
    let script = "change() {
             $K bundle --pull=never --rootfs=mount --force app:$1 b >/dev/null
             (cd b/rootfs; eval \"$3\"); $K umount b >/dev/null; $K commit b app:$2 >/dev/null
         }
         mount --make-rprivate /
         change 1 2 'rm -r a/b; echo 2 >a/3; chown 5:6 c; setfattr -n user.x -v y c; rm l; mkdir l; echo l >l/l'
         change 2 3 'rm -r a; mkdir a; echo 4 >a/4; ln a/4 c/4; ln -s ../a c/a; rm l/l; mkfifo c/f; chmod 4755 bin/sh'";
    in_own_mounts(&place, script);
    good(&place, &["save", "app:3", "saved.tar"]);
    good(&place, &["copy", "saved.tar", "oci:out:v1"]);
    place.run("umoci", &["unpack", "--image", "out:v1", "umoci"]);
    good(&place, &["bundle", "--pull=never", "--rootfs=copy", "app:3", "keel"]);
    shell(
        &place,
        "for d in umoci keel; do
             (cd $d/rootfs; find . -printf '%P %y %m %U:%G %n %T@ %l\\n' | sed -E 's/^([^ ]* d .*) [0-9]+ ([0-9.]+ )$/\\1 \\2/' | sort
              getfattr -dRh -m- . | grep -v '^$'; find . -type f -exec md5sum {} + | sort) >$d.list
         done
         grep -q 'c/4 f' keel.list; diff umoci.list keel.list",
    );
}

fn all_platforms_of_the_store_are_those_it_has() {
    needs!(root());
    let place = Place::new();
    let (index, host) = index_image(&place);
    good(&place, &["copy", "--all", "oci:layout:v1", "oci-archive:x.tar:test/app:v1"]);
    assert_eq!(good(&place, &["load", "x.tar"]), format!("docker.io/test/app:v1@{}", digest(&index)));
    assert_eq!(good(&place, &["save", "test/app:v1", "y.tar"]), digest(&host.manifest));
    let refused = run(&place, &["save", "--all", "test/app:v1", "z.tar"]);
    assert!(refused.code == 3 && refused.stderr.contains("Without --all"), "{refused:?}");
    assert!(!place.path("z.tar").exists());
}

fn what_is_not_in_the_store_is_not_saved() {
    let place = Place::new();
    for args in [["save", "app:v1", "x.tar"], ["push", "app:v1", "127.0.0.1:1/x:y"]] {
        let refused = run(&place, &args);
        assert!(refused.code == 3 && refused.stderr.contains("has no such image"), "{refused:?}");
    }
    assert!(!place.path("x.tar").exists());
}

const TREE: &str = "mkdir -p r/etc r/bin; echo root:x:0:0:root:/:/bin/sh >r/etc/passwd; echo sh >r/bin/sh; chmod 755 r/bin/sh
    ln r/bin/sh r/bin/ash; ln -s /etc r/l; chown 7:8 r/etc; setfattr -n user.k -v v r/etc/passwd";

fn a_root_file_system_becomes_an_image() {
    needs!(root(), program("umoci"), program("setfattr"), program("zstd"));
    let place = Place::new();
    shell(
        &place,
        &format!("{TREE}; tar --xattrs --numeric-owner -C r -cf r.tar .; gzip -k r.tar; zstd -q r.tar"),
    );
    let plain = digest(fs::read(place.path("r.tar")).unwrap());
    for (file, method) in [("r.tar", "gzip"), ("r.tar.gz", "zstd"), ("r.tar.zst", "none")] {
        let said = good(
            &place,
            &[
                "import",
                file,
                "app",
                "--compression",
                method,
                "--message=by hand",
                r#"--cmd=["/bin/sh"]"#,
                "--entrypoint=exec \"$@\"",
                "--env=A=b",
                "--env=A=c",
                "--workdir=/etc",
                "--user=7",
                "--label=l=m",
                "--volume=/v",
                "--expose=80",
                "--stop-signal=SIGINT",
                "--platform=linux/arm/v6",
            ],
        );
        assert!(said.starts_with("docker.io/library/app:latest@sha256:"), "{said}");
        good(&place, &["save", "--platform=linux/arm/v6", "app", "saved.tar"]);
        let config = run(&place, &["inspect", "--platform=linux/arm/v6", "--config", "saved.tar"]).json();
        assert_eq!(config["rootfs"], json!({"type": "layers", "diff_ids": [plain]}));
        let expected = json!({"Cmd": ["/bin/sh"], "Entrypoint": ["/bin/sh", "-c", "exec \"$@\""], "Env": ["A=c"],
            "WorkingDir": "/etc", "User": "7", "Labels": {"l": "m"}, "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGINT"});
        assert_eq!(config["config"], expected);
        assert_eq!((&config["architecture"], &config["variant"]), (&json!("arm"), &json!("v6")));
        assert_eq!(config["history"][0]["comment"], "by hand");
        good(&place, &["copy", "--platform=linux/arm/v6", "saved.tar", "oci:out:v1"]);
        if method == "zstd" {
            // Not known to Debian's umoci.
            continue;
        }
        place.run("umoci", &["unpack", "--image", "out:v1", "bundle"]);
        shell(&place, "diff -r --no-dereference r bundle/rootfs && rm -r bundle out");
    }
    // The same gives the same, if time stands still.
    let twice = shell(
        &place,
        &format!(
            "export SOURCE_DATE_EPOCH=1000000000; for n in 1 2; do {} --store=store -q import r.tar app:$n | sed s/.*@//; done",
            env!("CARGO_BIN_EXE_keel-image")
        ),
    );
    let lines: Vec<_> = twice.lines().collect();
    assert!(lines.len() == 2 && lines[0] == lines[1], "{twice}");
}

fn a_directory_becomes_an_image() {
    needs!(root(), program("umoci"), program("setfattr"));
    let place = Place::new();
    shell(&place, TREE);
    good(&place, &["import", "r", "app:dir"]);
    good(&place, &["save", "app:dir", "saved.tar"]);
    good(&place, &["copy", "saved.tar", "oci:out:v1"]);
    place.run("umoci", &["unpack", "--image", "out:v1", "bundle"]);
    shell(
        &place,
        "diff -r --no-dereference r bundle/rootfs
         for d in r bundle/rootfs; do (cd $d; find . -printf '%P %y %m %U:%G %n %T@ %l\\n' | sort; getfattr -dR .) >$(basename $d).list; done
         diff r.list rootfs.list",
    );
}

fn what_is_no_root_file_system_is_refused() {
    needs!(root());
    let place = Place::new();
    place.write("text", "x".repeat(2000));
    place.write("empty", "");
    shell(&place, "mkdir d; echo x >d/x; tar -cf ok.tar -C d .; head -c 700 ok.tar >cut.tar; gzip -c ok.tar | head -c 60 >cut.gz
        tar -P --transform 's,^./x,../x,' -cf dots.tar -C d ./x");
    for (file, code, said) in [
        ("missing", 3, "import missing: No such file"),
        ("empty", 5, "it is empty, and no archive"),
        ("text", 5, "this is no tar archive"),
        ("cut.tar", 5, "the archive ends"),
        ("cut.gz", 5, "the compressed data:"),
        ("dots.tar", 5, "its name leads out of the layer"),
    ] {
        let refused = run(&place, &["import", file, "app:bad"]);
        assert!(refused.code == code && refused.stderr.contains(said), "{file}: {refused:?}");
    }
    assert_eq!(run(&place, &["save", "app:bad", "x.tar"]).code, 3);
}

fn options_that_mean_nothing_are_refused() {
    let place = Place::new();
    for (option, said) in [
        ("--cmd=[1]", "must be a JSON list of strings"),
        ("--env=A", "must be KEY=VALUE"),
        ("--env==x", "must be KEY=VALUE"),
        ("--workdir=x", "must be an absolute path"),
        ("--expose=0", "must be PORT[/tcp|udp|sctp]"),
        ("--expose=80/icmp", "must be PORT[/tcp|udp|sctp]"),
        ("--compression=lzma", "must be gzip, zstd or none"),
        ("--platform=a b", "must be os/architecture"),
    ] {
        let refused = run(&place, &["import", option, "r.tar", "app"]);
        assert!(refused.code == 2 && refused.stderr.contains(said), "{refused:?}");
    }
    let refused = run(&place, &["commit", "--runtime=crun", "b", "app"]);
    assert_eq!(refused.code, 2, "{refused:?}");
}

fn a_plain_root_is_exported_as_it_is() {
    needs!(root(), program("setfattr"));
    let place = Place::new();
    shell(&place, &format!("mkdir b; cd b; {TREE}"));
    place.write("b/config.json", json!({"root": {"path": "r"}}).to_string());
    assert_eq!(good(&place, &["export", "b", "x.tar"]), "");
    shell(
        &place,
        "mkdir out; tar --xattrs '--xattrs-include=*' --numeric-owner -xf x.tar -C out; diff -r --no-dereference b/r out",
    );
    let listed = shell(
        &place,
        "for d in b/r out; do (cd $d; find . -printf '%P %y %m %U:%G %n %T@ %l\\n' | sort | md5sum); done | uniq | wc -l",
    );
    assert_eq!(listed, "1\n");
    let missing = run(&place, &["export", "nowhere", "y.tar"]);
    assert!(missing.code == 3 && missing.stderr.contains("nowhere/config.json"), "{missing:?}");
}

/// A bundle of app:v1 with a container's changes in it, recorded in the store.
fn bundle(place: &Place) -> (PathBuf, Image) {
    let image = loaded(place);
    let store = Store::open(Some(&place.path("store"))).unwrap();
    let names: Vec<_> = image.plain.iter().map(|plain| Digest::of(plain).hex().to_owned()).rev().collect();
    let layers = names.iter().map(|name| store.layer(name).unwrap().unwrap().fs());
    let mut options: Vec<String> = layers.map(|fs| format!("lowerdir+={}", fs.display())).collect();
    options.extend(["upperdir=upper".to_owned(), "workdir=work".to_owned()]);
    let config = json!({"ociVersion": "1.2.0", "root": {"path": "rootfs"},
        "mounts": [{"destination": "/", "type": "overlay", "source": "overlay", "options": options}]});
    shell(place, "mkdir -p b/rootfs b/upper b/work; echo mine >b/upper/new; mknod b/upper/bin c 0 0; mkdir b/upper/etc
        mknod b/upper/etc/new c 0 0; echo changed >b/upper/etc/arch; chown 5:6 b/upper/etc/arch; chmod 711 b/upper");
    place.write("b/config.json", config.to_string());
    let manifest = Descriptor::of(keel::image::manifest::OCI_MANIFEST, image.manifest.as_bytes());
    let mut record = Bundle::new(&place.path("b"), "docker.io/library/app:v1".into(), manifest).unwrap();
    record.layers = names;
    store.put_bundle(&record).unwrap();
    (place.path("b"), image)
}

fn an_overlay_is_exported_as_it_is_seen() {
    needs!(root());
    let place = Place::new();
    bundle(&place);
    good(&place, &["export", "b", "x.tar"]);
    let names = shell(&place, "tar -tf x.tar");
    assert_eq!(names, "./\netc/\netc/arch\netc/passwd\nnew\n");
    let look = "tar --numeric-owner -tvf x.tar etc/arch | cut -c1-14; tar -xOf x.tar etc/arch new";
    assert_eq!(shell(&place, look), "-rw-r--r-- 5/6\nchanged\nmine\n");
    let piped = shell(
        &place,
        &format!("{} --store=store export b - | cmp - x.tar && echo same", env!("CARGO_BIN_EXE_keel-image")),
    );
    assert_eq!(piped, "same\n");
}

fn a_failed_export_leaves_what_was_there() {
    needs!(root(), program("setfattr"));
    let place = Place::new();
    bundle(&place);
    place.write("x.tar", "before");
    shell(&place, "setfattr -n trusted.overlay.redirect -v /bin b/upper/etc");
    let refused = run(&place, &["export", "b", "x.tar"]);
    assert!(refused.code == 1 && refused.stderr.contains("its content lies elsewhere"), "{refused:?}");
    assert_eq!(place.read("x.tar"), "before");
    let refused = run(&place, &["commit", "b", "app:v2"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("pack \"etc/\": it has trusted.overlay.redirect"),
        "{refused:?}"
    );
    assert_eq!(shell(&place, "ls -A | grep tmp || true"), "");
}

fn commit_push_and_pull_give_the_same_digest() {
    needs!(root(), program("docker-registry"), program("umoci"));
    let place = Place::new();
    let (_, image) = bundle(&place);
    let said = good(&place, &["commit", "b", "app:v2", "--author=me", "--message=why", "--env=X=y"]);
    let (name, committed) = said.split_once('@').unwrap();
    assert_eq!(name, "docker.io/library/app:v2");
    let registry = registry(&place, "", "");
    let remote = format!("{}/test/app:v2", registry.address);
    assert_eq!(good(&place, &["push", "app:v2", &remote]), committed);
    let pulled = place.keel_image(&["--store=second", "--quiet", "pull", &remote]).stdout;
    assert_eq!(pulled, format!("{remote}@{committed}\n"));
    // Its base is what it was, byte for byte.
    let manifest: Value = serde_json::from_str(&raw(&place, &remote)).unwrap();
    let layers: Vec<_> = image.blobs.iter().map(digest).collect();
    assert_eq!(json!([manifest["layers"][0]["digest"], manifest["layers"][1]["digest"]]), json!(layers));
    let config = run(&place, &["inspect", "--config", &remote]).json();
    assert_eq!(config["config"]["Env"], json!(["PATH=/bin", "X=y"]));
    assert_eq!((&config["author"], &config["history"][2]["comment"]), (&json!("me"), &json!("why")));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    // As others unpack it, it is what the container has seen.
    good(&place, &["export", "b", "x.tar"]);
    good(&place, &["copy", &remote, "oci:out:v1"]);
    place.run("umoci", &["unpack", "--image", "out:v1", "unpacked"]);
    let names = shell(
        &place,
        "cd unpacked/rootfs; find . ! -type d | sort; cat etc/arch; stat -c '%u:%g' etc/arch; stat -c %a .",
    );
    assert_eq!(names, "./etc/arch\n./etc/passwd\n./new\nchanged\n5:6\n711\n");
}

fn a_mapped_bundle_gives_the_ids_of_the_inside() {
    needs!(root());
    let place = Place::new();
    bundle(&place);
    let mut config: Value = serde_json::from_str(&place.read("b/config.json")).unwrap();
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    config["linux"] = json!({"uidMappings": ids, "gidMappings": ids});
    config["mounts"][0]["uidMappings"] = ids.clone();
    config["mounts"][0]["gidMappings"] = ids;
    place.write("b/config.json", config.to_string());
    shell(&place, "chown -R 100000:100000 b/upper; chown 100005:100006 b/upper/etc/arch");
    good(&place, &["export", "b", "x.tar"]);
    let owners = shell(&place, "tar --numeric-owner -tvf x.tar | awk '{print $6, $2}'");
    assert_eq!(owners, "./ 0/0\netc/ 0/0\netc/arch 5/6\netc/passwd 0/0\nnew 0/0\n");
    good(&place, &["commit", "b", "app:v3"]);
    shell(&place, "chown 5:5 b/upper/new");
    let refused = run(&place, &["commit", "b", "app:v4"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("pack \"new\": uid 5 is not in the id map"),
        "{refused:?}"
    );
    assert_eq!(run(&place, &["save", "app:v4", "y.tar"]).code, 3);
}

fn a_bundle_without_changes_of_its_own_says_what_to_do() {
    needs!(root());
    let place = Place::new();
    bundle(&place);
    let mut config: Value = serde_json::from_str(&place.read("b/config.json")).unwrap();
    let options = config["mounts"][0]["options"].as_array_mut().unwrap();
    options.retain(|option| option.as_str().unwrap().starts_with("lowerdir"));
    place.write("b/config.json", config.to_string());
    let refused = run(&place, &["commit", "b", "app:v2"]);
    assert!(refused.code == 1 && refused.stderr.contains("its root is read-only"), "{refused:?}");
    place.write("b/config.json", json!({"root": {"path": "rootfs"}}).to_string());
    fs::remove_dir_all(place.path("b/upper")).unwrap();
    let refused = run(&place, &["commit", "b", "app:v2"]);
    assert!(
        refused.stderr.contains("one directory") && refused.stderr.contains("keel-image import - REF"),
        "{refused:?}"
    );
    let refused = place.keel_image(&["--store=other", "commit", "b", "app:v2"]);
    assert!(refused.code == 3 && refused.stderr.contains("has not made this bundle"), "{refused:?}");
}

fn a_container_cannot_make_a_commit_endless() {
    needs!(root());
    let place = Place::new();
    bundle(&place);
    shell(&place, "truncate -s 1T b/upper/x");
    for args in
        [&["commit", "b", "app:v2"][..], &["export", "b", "out.tar"], &["import", "b/upper", "app:v3"]]
    {
        let refused = run(&place, args);
        assert!(
            refused.code == 6 && refused.stderr.contains("pack \"x\": a file of 1099511627776 bytes"),
            "{refused:?}"
        );
        assert!(refused.stderr.ends_with("raise the limit: --limits bytes=N\n"), "{refused:?}");
    }
    assert!(!place.path("out.tar").exists());
    // Only as far as the user has said.
    shell(&place, "truncate -s 2M b/upper/x");
    for args in [&["commit", "b", "app:v2"][..], &["import", "b/upper", "app:v3"]] {
        let refused = run(&place, &[args, &["--limits=bytes=1m"]].concat());
        assert!(refused.code == 6 && refused.stderr.contains("pack \"x\""), "{refused:?}");
        good(&place, &[args, &["--limits=bytes=4m"]].concat());
    }
}

fn an_upper_that_is_mounted_is_not_committed() {
    needs!(root(), program("unshare"));
    let place = Place::new();
    bundle(&place);
    let script = "mkdir m; mount -t overlay overlay -o lowerdir=tree/1,upperdir=$PWD/b/upper,workdir=$PWD/b/work m; echo mounted; read line";
    let mut other = Command::new("unshare")
        .args(["--mount", "sh", "-euc", script])
        .current_dir(&place.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(other.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "mounted\n");
    let refused = run(&place, &["commit", "b", "app:v2"]);
    assert!(refused.code == 1 && refused.stderr.contains("a container is using it"), "{refused:?}");
    let told = place.keel_image(&["--store=store", "export", "b", "x.tar"]);
    assert!(told.code == 0 && told.stderr.contains("a container is using the bundle"), "{told:?}");
    drop(other.stdin.take());
    other.wait().unwrap();
    good(&place, &["commit", "b", "app:v2"]);
}

fn a_container_is_paused_while_it_is_committed() {
    needs!(root());
    let place = Place::new();
    let (path, _) = bundle(&place);
    // A runtime that notes what it is asked.
    let state = |bundle: &str| format!(r#"{{"status": "running", "bundle": "{bundle}"}}"#);
    let runtime = |bundle: &str| {
        let script = format!(
            "#!/bin/sh\necho \"$@\" >>calls\n[ $3 != state ] || echo '{}'\n[ $3 != fail ] || exit 1\n",
            state(bundle)
        );
        place.write("runtime", script);
        shell(&place, "chmod 755 runtime");
    };
    let args = ["commit", "--container=c1", "--runtime=./runtime", "--runtime-root=/r", "b"];
    runtime(path.to_str().unwrap());
    good(&place, &[&args[..], &["app:v2"]].concat());
    assert_eq!(place.read("calls"), "--root /r state c1\n--root /r pause c1\n--root /r resume c1\n");
    // Whatever goes wrong, it goes on.
    shell(&place, "rm calls; touch b/upper/.wh.x");
    assert_eq!(run(&place, &[&args[..], &["app:v3"]].concat()).code, 1);
    assert_eq!(place.read("calls"), "--root /r state c1\n--root /r pause c1\n--root /r resume c1\n");
    shell(&place, "rm calls b/upper/.wh.x");
    runtime("/elsewhere");
    let refused = run(&place, &[&args[..], &["app:v3"]].concat());
    assert!(
        refused.code == 1 && refused.stderr.contains("container c1 is that of bundle /elsewhere"),
        "{refused:?}"
    );
    assert_eq!(place.read("calls"), "--root /r state c1\n");
}

/// A bundle of an image with busybox, made by keel-image itself, whose container writes and then sleeps.
fn busybox_bundle(place: &Place, rootfs: &str) {
    shell(
        place,
        "mkdir -p r/bin r/tmp r/proc r/dev r/sys; cp $(command -v busybox) r/bin/busybox; ln r/bin/busybox r/bin/sh; echo 1 >r/file; echo 2 >r/gone",
    );
    good(
        place,
        &[
            "import",
            "r",
            "app",
            "--cmd",
            "rm /gone; echo changed >/file; echo done >/tmp/done; exec busybox sleep 1000",
        ],
    );
    good(place, &["bundle", "--pull=never", rootfs, "app", "b"]);
}

/// A script, to which keel-image is $K, whose mounts nobody else sees.
fn in_own_mounts(place: &Place, script: &str) {
    let run = Command::new("unshare")
        .args(["--mount", "sh", "-euc", script])
        .env("K", concat!(env!("CARGO_BIN_EXE_keel-image"), " --store=store --quiet"))
        .current_dir(&place.dir)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

fn keel() -> Result<(), String> {
    root()?;
    program("busybox")
}

fn what_a_container_of_keel_writes_is_committed_while_it_runs() {
    needs!(keel());
    let place = Place::new();
    busybox_bundle(&place, "--rootfs=overlay");
    let mut config: Value = serde_json::from_str(&place.read("b/config.json")).unwrap();
    let id = place.dir.file_name().unwrap().to_str().unwrap().to_owned();
    config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    place.write("b/config.json", config.to_string());
    let keel = format!("{} --root=run", env!("CARGO_BIN_EXE_keel"));
    shell(
        &place,
        &format!("{keel} run --detach --bundle b {id} </dev/null >log 2>&1 || {{ cat log >&2; exit 1; }}"),
    );
    let begun = std::time::Instant::now();
    while !place.path("b/upper/tmp/done").exists() && begun.elapsed() < std::time::Duration::from_secs(10) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let refused = run(&place, &["commit", "b", "app:2"]);
    let runtime = ["--runtime", env!("CARGO_BIN_EXE_keel"), "--runtime-root=run"];
    let committed = run(&place, &[&["commit", "--container", &id], &runtime[..], &["b", "app:2"]].concat());
    let state = shell(&place, &format!("{keel} state {id}; {keel} delete --force {id}"));
    assert!(refused.code == 1 && refused.stderr.contains("a container is using it"), "{refused:?}");
    assert_eq!((committed.code, committed.stderr.as_str()), (0, ""));
    assert!(state.contains(r#""status": "running""#), "{state}");
    good(&place, &["bundle", "--pull=never", "--rootfs=copy", "app:2", "second"]);
    let seen = shell(&place, "cd second/rootfs; cat file tmp/done; ls");
    assert_eq!(seen, "changed\ndone\nbin\ndev\nfile\nproc\nsys\ntmp\n");
}

fn a_bundle_that_is_mounted_is_committed_once_it_is_not() {
    needs!(keel());
    let place = Place::new();
    // Nothing is mounted where others see it.
    let script = "mount --make-rprivate /
        $K bundle --pull=never --rootfs=mount app m >/dev/null; echo x >m/rootfs/new; rm m/rootfs/gone
        $K export m whole.tar; $K commit m app:3 2>refused && exit 1; $K umount m >/dev/null; $K commit m app:3 >/dev/null
        $K save app:3 saved.tar >/dev/null";
    busybox_bundle(&place, "--rootfs=overlay");
    in_own_mounts(&place, script);
    assert!(place.read("refused").contains("a container is using it"), "{}", place.read("refused"));
    let names = shell(&place, "tar -tf whole.tar");
    assert!(names.contains("new\n") && !names.contains("gone"), "{names}");
    good(&place, &["bundle", "--pull=never", "--rootfs=copy", "app:3", "third"]);
    assert_eq!(shell(&place, "cd third/rootfs; cat new file; ls gone 2>/dev/null || true"), "x\n1\n");
}
