//! A user without privileges: his own store, and a user namespace around what makes files of many owners.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use serde_json::{Value, json};

use crate::archive::{Header, Tar};
use crate::images::{Image, busybox, root};
use crate::place::{Place, Run, program};
use crate::{needs, tests};

tests![
    with_one_id_all_files_belong_to_it,
    with_subordinate_ids_files_belong_to_these,
    layers_made_with_other_ids_are_refused,
    what_only_root_can_do_is_refused,
    a_users_bundle_runs_as_the_user,
    a_users_bundle_that_a_container_uses_is_not_replaced,
];

const USER: u32 = 4711;

/// What it takes to act as the user.
fn user() -> Result<(), String> {
    root().and(program("setpriv")).and(program("unshare")).and(program("busybox"))
}

fn image() -> Image {
    let owned = Header { uid: 5, gid: 6, mode: 0o4755, ..Header::new("owned", b'0') };
    let upper = Tar::new().dir("d/").file("d/.wh.gone", "").dir("o/").file("o/.wh..wh..opq", "");
    let lower = busybox()
        .header(owned)
        .dir("d/")
        .file("d/gone", "")
        .file("d/kept", "kept")
        .dir("o/")
        .file("o/gone", "");
    Image::new(vec![lower, upper], json!({"Cmd": ["/bin/ls"], "Volumes": {"/d": {}}}))
}

/// A place of the user's, with keel and keel-image where he can reach them.
fn place() -> Place {
    let place = Place::new();
    fs::copy(env!("CARGO_BIN_EXE_keel-image"), place.path("keel-image")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_keel"), place.path("keel")).unwrap();
    chown(&place.dir, Some(USER), Some(USER)).unwrap();
    place
}

impl Place {
    /// As the user, with lines of passwd, subuid and subgid if there are any.
    fn as_user(&self, ids: Option<&str>, args: &[&str]) -> Run {
        self.run_as_user(ids, &[&["./keel-image"], args].concat())
    }

    fn run_as_user(&self, ids: Option<&str>, args: &[&str]) -> Run {
        self.write("passwd", format!("me:x:{USER}:{USER}::/:/bin/sh\n"));
        self.write("ids", ids.unwrap_or_default());
        let script = format!(
            "mount --bind passwd /etc/passwd && mount --bind ids /etc/subuid && mount --bind ids /etc/subgid || exit 99
            export XDG_DATA_HOME=$PWD/data
            exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\""
        );
        self.run_any("unshare", &[&["--mount", "sh", "-c", &script, "sh"], args].concat())
    }
}

fn config_of(place: &Place, bundle: &str) -> Value {
    serde_json::from_str(&place.read(&format!("{bundle}/config.json"))).unwrap()
}

fn with_one_id_all_files_belong_to_it() {
    needs!(user());
    let place = place();
    let reference = image().layout(&place, "i");
    let run = place.as_user(None, &["bundle", &reference, "web"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.stderr.matches("you have one id only").count(), 1, "{run:?}");
    let config = config_of(&place, "web");
    assert_eq!(config["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": USER, "size": 1}]));
    let lower = config["mounts"][0]["options"][1].as_str().unwrap().strip_prefix("lowerdir+=").unwrap();
    assert!(
        lower.starts_with(place.path("data/keel/layers").to_str().unwrap()) && lower.contains("-single"),
        "{lower}"
    );
    let meta = fs::metadata(format!("{lower}/owned")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (USER, USER, 0o4755));
    assert_eq!(fs::metadata(place.path("web/upper")).unwrap().uid(), USER);
    // The volume was seeded through an overlay in the namespace: what the upper layer takes away is not in it.
    let names: Vec<_> =
        fs::read_dir(place.path("web/volumes/0")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["kept"]);
}

fn with_subordinate_ids_files_belong_to_these() {
    needs!(user(), program("newuidmap"), program("newgidmap"));
    let place = place();
    let reference = image().layout(&place, "i");
    let run = place.as_user(Some("me:300000:65536\n"), &["bundle", &reference, "web", "--rootfs=copy"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    let meta = fs::metadata(place.path("web/rootfs/owned")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (300_004, 300_005, 0o4755));
    let mappings = json!([{"containerID": 0, "hostID": USER, "size": 1},
        {"containerID": 1, "hostID": 300_000, "size": 65536}]);
    assert_eq!(config_of(&place, "web")["linux"]["gidMappings"], mappings);
    let run = place.as_user(Some("me:300000:3\n"), &["--store=other", "bundle", &reference, "few"]);
    assert!(run.code == 1 && run.stderr.contains("The image has ids that you have not"), "{run:?}");
    assert!(!place.path("few").exists());
}

fn layers_made_with_other_ids_are_refused() {
    needs!(user());
    let place = place();
    let reference = image().layout(&place, "i");
    assert_eq!(place.as_user(None, &["pull", &reference]).code, 0);
    let ids = place.read("data/keel/ids-single").replace("4711", "4712");
    place.write("data/keel/ids-single", ids);
    let run = place.as_user(None, &["pull", &reference]);
    assert!(run.code == 1 && run.stderr.contains("its files were made with the ids"), "{run:?}");
    // Names can be listed without any of them.
    assert_eq!(place.as_user(None, &["ls"]).stdout.lines().count(), 2);
}

fn what_only_root_can_do_is_refused() {
    needs!(user());
    let place = place();
    let reference = image().layout(&place, "i");
    for (option, why) in [
        ("--rootfs=mount", "only root can mount on the host"),
        ("--uid-map=0:0:1", "a user has his own ids"),
        ("--devices", "only root can make device nodes"),
    ] {
        let run = place.as_user(None, &["bundle", &reference, "web", option]);
        assert!(
            run.code == 1 && run.stderr.contains(why) && !place.path("web").exists(),
            "{option}: {run:?}"
        );
    }
}

fn a_users_bundle_runs_as_the_user() {
    needs!(user(), program("newuidmap"), program("newgidmap"));
    let script = "stat -c %u:%g /owned; ls /d /o; echo new >/owned; rm /d/kept; mkdir /o/new";
    for (ids, owner, store) in [(None, "0:0", "single"), (Some("me:300000:65536\n"), "5:6", "several")] {
        for kind in ["overlay", "copy"] {
            let place = place();
            let reference = image().layout(&place, "i");
            let bundle = [
                "--store",
                store,
                "bundle",
                &reference,
                "web",
                &format!("--rootfs={kind}"),
                "--entrypoint=sh",
            ];
            let run = place.as_user(ids, &[&bundle[..], &["--", "-c", script]].concat());
            assert_eq!(run.code, 0, "{run:?}");
            let run = place.run_as_user(ids, &["./keel", "--root=state", "run", "--bundle=web", "web"]);
            let seen = format!("{owner}\n/d:\nkept\n\n/o:\n");
            assert_eq!((run.code, run.stdout, run.stderr), (0, seen, String::new()), "{owner} {kind}");
        }
    }
}

/// The container is in another user namespace than the command, as a sibling of it.
fn a_users_bundle_that_a_container_uses_is_not_replaced() {
    needs!(user());
    let place = place();
    let reference = image().layout(&place, "i");
    for kind in ["overlay", "copy"] {
        let script = format!(
            "bundle() {{ ./keel-image -q bundle {reference} {kind} --rootfs={kind} --entrypoint=sh $1 -- -c 'echo ready; read line'; }}
            bundle || exit 3; mkfifo fifo-{kind}; ./keel --root=state run --bundle={kind} {kind} <fifo-{kind} >out-{kind} 2>&1 &
            exec 3>fifo-{kind}; for i in $(seq 100); do grep -q ready out-{kind} && break; sleep 0.1; done; cat out-{kind}
            bundle --force; code=$?; exec 3>&-; wait; bundle --force || exit 4; exit $code"
        );
        let run = place.run_as_user(None, &["sh", "-c", &script]);
        let path = place.path(kind);
        assert_eq!(run.stdout, format!("{0}\nready\n{0}\n", path.display()), "{run:?}");
        assert!(run.code == 1 && run.stderr.contains("it is in use"), "{kind}: {run:?}");
    }
}
