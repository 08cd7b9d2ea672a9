//! With the kernel's overlayfs, a full disk, a user namespace, and a sudden death.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use keel::error::Kind;
use keel::image::compression::Compression;
use keel::image::unpack::{Mode, unpack};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::archive::{Header, OVERLAY, Place, Tar, list, options, snapshot, spec, xattrs};
use crate::{needs, root, tests};

tests![
    the_kernel_shows_layers_as_applying_them_does,
    a_disk_that_fills_up_is_no_space,
    child,
    a_user_namespace_is_enough,
    a_sudden_death_changes_nothing_outside_and_can_be_repeated,
];

/// Runs with mounts that nobody else sees, which end with the thread.
pub fn with_own_mounts<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            what()
        });
        thread.join().unwrap()
    })
}

fn layers() -> [Tar; 4] {
    let top = || Tar::new().dir("./");
    [
        top()
            .dir("a")
            .file("a/1", "one")
            .dir("a/b")
            .file("a/b/2", "two")
            .dir("d")
            .file("d/x", "")
            .file("e", "e"),
        top()
            .dir("a")
            .file("a/.wh.1", "")
            .file("a/3", "three")
            .file("d", "no directory")
            .hardlink("h", "a/3"),
        top()
            .dir("a")
            .dir("a/b")
            .file("a/b/4", "")
            .file("a/b/.wh..wh..opq", "")
            .file("a/b/.wh.2", "")
            .dir("d"),
        top().dir("a").file(".wh.e", "").dir("e").file("e/y", "").file("a/.wh.b", "").dir("a/b"),
    ]
}

fn the_kernel_shows_layers_as_applying_them_does() {
    needs!(root());
    let (overlay, applied) = (Place::new("kernel"), Place::new("applied"));
    let mut lowers = Vec::new();
    for (i, layer) in layers().into_iter().enumerate() {
        applied.unpack(layer.clone(), Mode::Apply).unwrap();
        let path = overlay.0.join(i.to_string());
        fs::create_dir(&path).unwrap();
        let (plain, target) =
            (layer.end(), File::create_new(&path).err().map(|_| File::open(&path).unwrap()));
        let spec = spec(&plain, &plain, Compression::None);
        let unpacked = unpack(&plain[..], &spec, target.unwrap().into(), &options(OVERLAY)).unwrap();
        assert_eq!(unpacked.lacks.links, []);
        lowers.insert(0, path.to_str().unwrap().to_owned());
    }
    let shown = with_own_mounts(|| {
        let lowers = format!("lowerdir={},redirect_dir=nofollow,metacopy=off", lowers.join(":"));
        mount(Some("overlay"), &overlay.root(), Some("overlay"), MsFlags::MS_RDONLY, Some(&*lowers)).unwrap();
        snapshot(&overlay.root())
    });
    assert_eq!(shown, snapshot(&applied.root()));
    assert_eq!(
        applied.list(),
        ["a dir", "a/3 file 5", "a/b dir", "d dir", "e dir", "e/y file 0", "h file 5"]
    );
}

fn a_disk_that_fills_up_is_no_space() {
    needs!(root());
    let place = Place::new("full");
    with_own_mounts(|| {
        mount(Some("tmpfs"), &place.root(), Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        let error = place.unpack(Tar::new().file("a", vec![1; 3 << 20]), OVERLAY).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert!(error.to_string().ends_with("entry \"a\": write: No space left on device (28)"), "{error}");
    });
}

/// A copy of this program in which only [`child`] runs.
fn program(before: &[&str], place: &Place, mode: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut words: Vec<&str> = before.to_vec();
    words.push(this.to_str().unwrap());
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["--exact", "kernel::child", "--nocapture"]);
    command.env("KEEL_UNPACK_CHILD", &place.0).env("KEEL_UNPACK_MODE", mode);
    command
}

fn child() {
    let Some(place) = std::env::var_os("KEEL_UNPACK_CHILD") else { return };
    let mode = match std::env::var("KEEL_UNPACK_MODE").as_deref() {
        Ok("user") => Mode::Overlay { user_xattr: true },
        _ => Mode::Apply,
    };
    let plain = fs::read(Path::new(&place).join("layer.tar")).unwrap();
    let target = File::open(Path::new(&place).join("root")).unwrap();
    unpack(&plain[..], &spec(&plain, &plain, Compression::None), target.into(), &options(mode)).unwrap();
}

fn a_user_namespace_is_enough() {
    needs!(root());
    let place = Place::new("user-namespace");
    let owned = Header { uid: 5, gid: 6, mode: 0o4755, ..Header::new("d/owned", b'0') };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Tar::new()
        .header(Header { mode: 0, ..Header::new("d", b'5') })
        .header(owned)
        .file("d/.wh.x", "")
        .file("e/.wh..wh..opq", "")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("ping", "")
        .file("ro", "")
        .hardlink("d/ro", "ro");
    fs::write(place.0.join("layer.tar"), layer.end()).unwrap();
    nix::unistd::chown(&place.root(), Some(100_000.into()), Some(100_000.into())).unwrap();
    let mut namespace = Command::new("unshare")
        .args(["-U", "sh", "-c", "echo ready; exec sleep 100"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    namespace.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
    let pid = namespace.id().to_string();
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), "0 100000 70000").unwrap();
    }
    let run = program(&["nsenter", "-U", "-t", &pid, "-S0", "-G0"], &place, "user").output().unwrap();
    namespace.kill().unwrap();
    namespace.wait().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let expected =
        ["d dir", "d/owned file 0", "d/ro file 0", "d/x whiteout", "e dir", "ping file 0", "ro file 0"];
    assert_eq!(place.list(), expected);
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(place.root().join("d/owned")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (100_005, 100_006, 0o4755));
    assert_eq!(xattrs(&place.root().join("e")), "user.overlay.opaque=0x79");
    assert!(xattrs(&place.root().join("ping")).starts_with("security.capability=0x01000003"));
}

fn a_sudden_death_changes_nothing_outside_and_can_be_repeated() {
    needs!(root());
    let place = Place::new("killed");
    let mut layer = Tar::new();
    for i in 0..3000 {
        layer =
            layer.file(format!("{}/{i}", i % 100), "x").symlink(&format!("{}/l{i}", i % 50), "../../outside");
    }
    fs::write(place.0.join("layer.tar"), layer.end()).unwrap();
    let outside = snapshot(&place.0.join("outside"));
    let mut seen = Vec::new();
    for delay in [10, 40, 80, 120, 200] {
        let mut run = program(&["env"], &place, "apply").stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        run.kill().unwrap();
        run.wait().unwrap();
        seen.push(list(&place.root()).len());
        assert_eq!(snapshot(&place.0.join("outside")), outside);
    }
    println!("files when it died: {seen:?}");
    assert!(program(&["env"], &place, "apply").output().unwrap().status.success());
    assert_eq!(place.list().len(), 100 + 6000);
}
