//! SIGKILL at each system call that changes what the store has, by strace's injection: what is left is whole, and the
//! command, done again, succeeds.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::images::{Image, busybox, root};
use crate::place::{Place, program};
use crate::{needs, tests};

tests![
    a_pull_may_be_killed_at_any_change,
    a_bundle_may_be_killed_at_any_change,
    a_bundle_is_replaced_at_once_or_not_at_all,
    a_commit_may_be_killed_at_any_change,
    a_prune_may_be_killed_at_any_change,
];

/// Each makes, names or removes something.
const CHANGES: &str = "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,fsync,syncfs";

fn killed_at_each(prepare: impl Fn(&Place) -> Vec<String>, check: impl Fn(&Place)) {
    killed_and_looked_at(prepare, |_| (), check);
}

/// Kills the command at its first change, its second, and so on, each time in a place of its own, until it is through.
/// `look` is for what a kill has left.
fn killed_and_looked_at(
    prepare: impl Fn(&Place) -> Vec<String>,
    look: impl Fn(&Place),
    check: impl Fn(&Place),
) {
    for at in 1.. {
        let place = Place::new();
        let args = prepare(&place);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let command = place.image_command(&args);
        let status = Command::new("strace")
            .args(["--follow-forks", "--quiet=all", "--output=strace", &format!("--trace={CHANGES}")])
            .args([format!("--inject={CHANGES}:signal=KILL:when={at}"), "--".into()])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(&place.dir)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        let said = place.image(&["verify"]);
        assert_eq!(said.code, 0, "after {at} changes: {said:?}");
        if !status.success() {
            look(&place);
            let again = place.image(&args);
            assert_eq!(again.code, 0, "after {at} changes: {again:?}");
        }
        check(&place);
        if status.success() {
            assert!(at > 5, "it changes something");
            return;
        }
    }
}

fn layout(place: &Place, name: &str) -> String {
    let top = busybox().dir("./").file("name", name);
    Image::new(vec![top], json!({"Cmd": ["/bin/cat", "/name"]})).layout(place, name)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn runs(place: &Place, bundle: &str, prints: &str) {
    let run = place.keel(bundle);
    assert_eq!((run.code, run.stdout.as_str()), (0, prints), "{run:?}");
}

fn a_pull_may_be_killed_at_any_change() {
    needs!(root(), program("strace"), program("busybox"));
    killed_at_each(
        |place| words(&["pull", &layout(place, "app")]),
        |place| {
            let reference = format!("oci:{}", place.path("app").display());
            place.image_ok(&["bundle", "--pull=never", &reference, "web"]);
            runs(place, "web", "app");
        },
    );
}

fn a_bundle_may_be_killed_at_any_change() {
    needs!(root(), program("strace"), program("busybox"));
    killed_at_each(
        |place| words(&["bundle", "--force", &layout(place, "app"), "web"]),
        |place| runs(place, "web", "app"),
    );
}

fn a_bundle_is_replaced_at_once_or_not_at_all() {
    needs!(root(), program("strace"), program("busybox"));
    let new = |place: &Place| runs(place, "web", "new");
    killed_and_looked_at(
        |place| {
            place.image_ok(&["bundle", &layout(place, "old"), "web"]);
            fs::write(place.path("web/upper/name"), "written").unwrap();
            words(&["bundle", "--force", &layout(place, "new"), "web"])
        },
        |place| {
            // Whatever name it has now, it stands on its layers.
            place.image_ok(&["prune"]);
            let run = place.image(&["bundle", "oci:new", "web"]);
            assert!(run.code == 1 && run.stderr.contains("there is a bundle already"), "{run:?}");
            place.image_ok(&["prune"]);
            match fs::read_to_string(place.path("web/upper/name")) {
                Ok(written) => {
                    assert_eq!(written, "written");
                    runs(place, "web", "written");
                }
                Err(_) => new(place),
            }
            let left = fs::read_dir(&place.dir).unwrap().map(|entry| entry.unwrap().file_name());
            let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with('.')).collect();
            assert!(left.is_empty() && place.stored("bundles").len() == 1, "{left:?}");
        },
        new,
    );
}

fn a_commit_may_be_killed_at_any_change() {
    needs!(root(), program("strace"), program("busybox"));
    killed_at_each(
        |place| {
            place.image_ok(&["bundle", &layout(place, "app"), "web"]);
            fs::write(place.path("web/upper/name"), "changed").unwrap();
            words(&["commit", "web", "localhost/new"])
        },
        |place| {
            place.image_ok(&["bundle", "--pull=never", "localhost/new", "new"]);
            runs(place, "new", "changed");
            runs(place, "web", "changed");
        },
    );
}

fn a_prune_may_be_killed_at_any_change() {
    needs!(root(), program("strace"), program("busybox"));
    killed_at_each(
        |place| {
            let (kept, gone) = (layout(place, "kept"), layout(place, "gone"));
            place.image_ok(&["bundle", &kept, "web"]);
            place.write("kept-layers", place.stored("layers").join(" "));
            place.image_ok(&["pull", &gone]);
            place.image_ok(&["rm", &gone]);
            words(&["prune"])
        },
        |place| {
            runs(place, "web", "kept");
            assert_eq!(place.stored("layers").join(" "), place.read("kept-layers"));
            assert_eq!(place.stored("trash"), [""; 0]);
        },
    );
}
