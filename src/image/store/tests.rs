use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::error::Kind;
use crate::image::manifest::{Descriptor, OCI_MANIFEST};
use crate::image::unpack::Lacks;

/// A store that goes with the test.
struct Place(PathBuf, Store);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("keel-store-{}-{name}", std::process::id()));
        Self(path.clone(), Store::open(Some(&path)).unwrap())
    }

    fn names(&self, directory: &str) -> Vec<String> {
        self.1.names(directory).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::of(OCI_MANIFEST, bytes)
}

#[test]
fn a_blob_is_there_once_it_is_what_it_should_be() {
    let place = Place::new("blob");
    let store = &place.1;
    let wanted = descriptor(b"blob");
    for bytes in [&b"blo"[..], b"blob!", b"blub"] {
        let mut insert = store.insert(&wanted).unwrap();
        insert.write_all(bytes).unwrap();
        assert_eq!(insert.finish().unwrap_err().kind(), Kind::Integrity);
        assert!(!store.has_blob(&wanted));
    }
    assert_eq!(store.blob(&wanted).err().unwrap().kind(), Kind::NotFound);
    let mut insert = store.insert(&wanted).unwrap();
    insert.write_all(b"blob").unwrap();
    assert!(!store.has_blob(&wanted));
    insert.finish().unwrap();
    assert_eq!(store.document(&wanted, &Default::default()).unwrap(), b"blob");
    assert_eq!(place.names("tmp"), [""; 0]);
    fs::write(store.blob_path(&wanted.digest), "blub").unwrap();
    let error = store.document(&wanted, &Default::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity, "{error}");
}

#[test]
fn names_are_kept_whatever_their_length() {
    let place = Place::new("refs");
    let store = &place.1;
    let names = [format!("localhost/{}:{}", "a".repeat(255), "b".repeat(128)), "x/y:z".to_owned()];
    for name in &names {
        store.put_ref(name, &descriptor(name.as_bytes())).unwrap();
    }
    let found: Vec<_> = store.refs().unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(found, names);
    assert_eq!(store.get_ref(&names[0]).unwrap(), Some(descriptor(names[0].as_bytes())));
    assert!(store.remove_ref(&names[0]).unwrap() && !store.remove_ref(&names[0]).unwrap());
    assert_eq!(store.get_ref(&names[0]).unwrap(), None);
    // As after a crash.
    fs::write(place.0.join("refs").join(&place.names("refs")[0]), "").unwrap();
    assert_eq!(store.get_ref(&names[1]).unwrap(), None);
    assert!(store.refs().unwrap_err().to_string().ends_with("it is no name of an image"));
    store.put_ref(&names[1], &descriptor(b"")).unwrap();
    assert_eq!(store.refs().unwrap().len(), 1);
}

#[test]
fn a_layer_of_before_a_crash_is_made_anew_beside_the_old_one() {
    let place = Place::new("layer");
    let store = &place.1;
    let put = |content: &str| {
        let new = store.new_layer().unwrap();
        fs::write(new.fs().join("file"), content).unwrap();
        store.put_layer(&new, "x", &Lacks::default()).unwrap()
    };
    let layer = put("old");
    assert_eq!(store.layer("x").unwrap(), Some(layer.clone()));
    let ok = place.0.join("layers/x/ok");
    fs::write(&ok, fs::read_to_string(&ok).unwrap().replace(&store.boot.boot, "another")).unwrap();
    assert_eq!(store.layer("x").unwrap(), None);
    let old = File::open(layer.fs().join("file")).unwrap();
    put("new");
    assert_eq!(fs::read_to_string(layer.fs().join("file")).unwrap(), "new");
    assert_eq!(io::read_to_string(old).unwrap(), "old");
    assert_eq!(place.names("trash").len(), 1);
    store.sync(&["x".to_owned()]).unwrap();
    fs::write(&ok, fs::read_to_string(&ok).unwrap().replace(&store.boot.boot, "another")).unwrap();
    assert!(store.layer("x").unwrap().is_some());
    store.sweep().unwrap();
    assert_eq!(place.names("trash"), [""; 0]);
}

#[test]
fn what_nobody_holds_any_more_is_swept() {
    let place = Place::new("tmp");
    let held = place.1.entry().unwrap();
    let lock = place.1.lock("blob").unwrap();
    fs::create_dir(place.0.join("tmp/left")).unwrap();
    fs::write(place.0.join("tmp/left/file"), "").unwrap();
    place.1.sweep().unwrap();
    assert_eq!(place.names("tmp").len(), 2);
    assert!(held.path().exists());
    drop((held, lock));
    place.1.sweep().unwrap();
    assert_eq!(place.names("tmp"), [""; 0]);
}

#[test]
fn a_bundle_is_gone_with_its_path_but_not_with_its_file_system() {
    let place = Place::new("bundles");
    let path = place.0.join("a/bundle");
    fs::create_dir_all(&path).unwrap();
    let bundle = bundles::Bundle::new(&path, "x".into(), descriptor(b"")).unwrap();
    place.1.put_bundle(&bundle).unwrap();
    assert_eq!(place.1.bundles().unwrap(), std::slice::from_ref(&bundle));
    assert!(!bundle.is_gone());
    fs::remove_dir_all(place.0.join("a")).unwrap();
    assert!(bundle.is_gone());
    fs::write(place.0.join("a"), "").unwrap();
    assert!(bundle.is_gone());
    // ELOOP, as EIO or EACCES, says nothing.
    fs::remove_file(place.0.join("a")).unwrap();
    std::os::unix::fs::symlink("a", place.0.join("a")).unwrap();
    assert!(!bundle.is_gone());
    let elsewhere = bundles::Bundle::new(Path::new("/dev/shm"), "x".into(), descriptor(b"")).unwrap();
    let unmounted = bundles::Bundle { path: place.0.join("b"), ..elsewhere };
    assert!(!unmounted.is_gone());
    let file = place.names("bundles").remove(0);
    fs::write(place.0.join("bundles").join(file), "").unwrap();
    assert!(place.1.bundles().is_err());
}

#[test]
fn a_store_is_for_its_owner_only() {
    let place = Place::new("mode");
    let mode = |name: &str| fs::metadata(place.0.join(name)).unwrap().mode() & 0o777;
    assert_eq!(mode(""), 0o700);
    assert_eq!(DIRECTORIES.map(mode), [0o700; DIRECTORIES.len()]);
    if geteuid().is_root() {
        nix::unistd::chown(&place.0, Some(1.into()), None).unwrap();
        let error = Store::open(Some(&place.0)).err().unwrap();
        assert!(error.to_string().ends_with("it belongs to user 1"), "{error}");
    }
}

#[test]
fn a_directory_that_is_no_store_stays_as_it_is() {
    let place = Place::new("other");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    let directory = |name: &str, mode: u32| {
        let path = place.0.join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    };
    let refused = |path: &Path| Store::open(Some(path)).err().unwrap().to_string();
    let names = |path: &Path| fs::read_dir(path).unwrap().count();
    // As /tmp, with files and before there are any.
    let tmp = directory("full", 0o755);
    fs::write(tmp.join("file"), "").unwrap();
    assert!(refused(&tmp).ends_with("the directory has other files in it, and is no store"));
    assert_eq!((mode(&tmp), names(&tmp)), (0o755, 1));
    let tmp = directory("empty", 0o1777);
    assert!(refused(&tmp).ends_with("others may write to it (mode 777)"));
    assert_eq!((mode(&tmp), names(&tmp)), (0o777, 0));
    // What a store can be made in, with what a killed command has left of one.
    let mine = directory("mine", 0o755);
    fs::create_dir(mine.join("blobs")).unwrap();
    drop(Store::open(Some(&mine)).unwrap());
    assert_eq!((mode(&mine), mode(&mine.join("layers"))), (0o755, 0o700));
    fs::write(mine.join("README"), "").unwrap();
    drop(Store::open(Some(&mine)).unwrap());
}
