//! The way back: trees become archives, by the eyes of our own reader, of GNU tar and of the kernel's overlayfs.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use keel::error::Result;
use keel::image::pack::{Kind, Packed, Top, pack};
use keel::image::unpack::tar::{Archive, Entry};
use keel::image::unpack::{LayerLimits, Mode, Owners, Range};
use nix::mount::{MsFlags, mount};

use crate::archive::{OVERLAY, Place, Tar, list, options, snapshot};
use crate::kernel::with_own_mounts;
use crate::{needs, program, root, tests};

tests![
    a_tree_comes_back_as_it_was,
    the_same_tree_gives_the_same_bytes,
    gnu_tar_reads_what_is_written,
    several_directories_are_seen_as_the_kernel_shows_them,
    an_upper_directory_becomes_the_layer_that_it_is,
    what_a_container_has_done_comes_back_from_its_layer,
    an_upper_that_lies_elsewhere_is_refused,
    a_name_like_a_whiteout_is_refused_in_a_layer_only,
    marks_of_the_other_kind_of_mount_mean_nothing,
    owners_are_moved_back_or_refused,
    capabilities_lose_the_owner_that_a_mapping_gave_them,
    what_is_swapped_for_a_link_leads_nowhere,
    a_tree_too_deep_is_an_error,
    the_longest_names_can_be_taken_away,
    what_costs_a_container_nothing_costs_us_no_more_than_the_limit,
];

const UPPER: Kind = Kind::Upper { user_xattr: false };
const MERGED: Kind = Kind::Merged { user_xattr: false };

fn open(path: impl AsRef<Path>) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn packed(tops: &[&Path], kind: Kind) -> Result<(Vec<u8>, Packed)> {
    let mut bytes = Vec::new();
    let top = |path| Top { directory: open(path), owners: Owners::Kept };
    let packed = pack(tops.iter().map(top).collect(), kind, &LayerLimits::default(), &mut bytes)?;
    Ok((bytes, packed))
}

fn entries(archive: &[u8]) -> Vec<Entry> {
    let limits = LayerLimits::default();
    let mut archive = Archive::new(archive, &limits);
    std::iter::from_fn(|| archive.next_entry().unwrap()).collect()
}

fn paths(archive: &[u8]) -> Vec<String> {
    entries(archive).into_iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

fn shell(dir: &Path, script: &str) {
    let run = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(run.status.success(), "{script}: {}", String::from_utf8_lossy(&run.stderr));
}

/// Of every kind a file.
fn tree(place: &Place) {
    let long = "n".repeat(200);
    shell(
        &place.root(),
        &format!(
            "mkdir -m 1777 tmp; mkdir -p a/b/{long}; echo one >a/1; ln a/1 a/b/2; ln -s ../../outside/passwd l
             ln -s {long}{long} ll; ln l l2; mkfifo f; mknod c c 1 3; mknod b b 7 9; echo x >a/b/{long}/{long}
             chown 3000000:5 a/1; chown -h 7:8 l; chmod 6755 a/1; chmod 0 f; truncate -s 300000 zeroes
             touch -d '1969-01-01 00:00:00.25' zeroes; touch -d '2001-02-03 04:05:06.789' a a/1; touch -hd '1999-01-01' l
             printf 'with\\nnewline' >\"$(printf 'n\\nl \\303\\244 \\377')\"; mkdir -m 2750 sgid; chown 1:2 sgid
             setfattr -n user.x -v 0x00ff a/1; setfattr -n user.long -v {long} a
             setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 zeroes; rm -f s
             chmod 711 ."
        ),
    );
}

fn a_tree_comes_back_as_it_was() {
    needs!(root(), program("setfattr"));
    let (from, to) = (Place::new("from"), Place::new("to"));
    tree(&from);
    let _socket = std::os::unix::net::UnixListener::bind(from.root().join("s")).unwrap();
    let (archive, packed) = packed(&[&from.root()], Kind::Plain).unwrap();
    assert_eq!(packed.warnings, [r#"sockets are left out: "s""#]);
    assert_eq!(packed.entries as usize, entries(&archive).len());
    let options = keel::image::unpack::Options { devices: true, ..options(Mode::Apply) };
    to.unpack_with(&archive, &options).unwrap();
    fs::remove_file(from.root().join("s")).unwrap();
    assert_eq!(snapshot(&to.root()), snapshot(&from.root()));
    use std::os::unix::fs::MetadataExt;
    let time =
        |place: &Place, name: &str| fs::symlink_metadata(place.root().join(name)).unwrap().mtime_nsec();
    assert_eq!(
        (time(&to, "zeroes"), time(&to, "a/1"), time(&to, "a")),
        (250_000_000, 789_000_000, 789_000_000)
    );
    assert_eq!(fs::metadata(to.root()).unwrap().mode() & 0o7777, 0o711);
}

fn the_same_tree_gives_the_same_bytes() {
    needs!(root(), program("setfattr"));
    let place = Place::new("twice");
    tree(&place);
    let first = packed(&[&place.root()], Kind::Plain).unwrap().0;
    // Another order of the names in the directory, and other inodes.
    let copy = Place::new("copy");
    shell(&copy.0, &format!("rmdir root; cp -a {} root", place.root().display()));
    assert!(packed(&[&copy.root()], Kind::Plain).unwrap().0 == first);
    let names = paths(&first);
    let sorted = |names: &[String]| names.windows(2).all(|pair| pair[0] < pair[1]);
    assert!(sorted(&names[1..]), "{names:?}");
    assert_eq!(names[0], "./");
}

fn gnu_tar_reads_what_is_written() {
    needs!(root(), program("setfattr"));
    let (from, to) = (Place::new("from"), Place::new("gnu"));
    tree(&from);
    fs::write(to.0.join("x.tar"), packed(&[&from.root()], Kind::Plain).unwrap().0).unwrap();
    shell(&to.0, "tar --numeric-owner --xattrs '--xattrs-include=*' --same-permissions -xf x.tar -C root");
    assert_eq!(snapshot(&to.root()), snapshot(&from.root()));
}

/// What a container might do in its root, by the kernel's overlayfs: `upper` over `lower`s.
fn with_overlay(place: &Place, lowers: &str, script: &str, look: impl FnOnce(&Path) + Send) {
    let dir = place.0.clone();
    shell(&dir, "mkdir -p upper work merged");
    let options = format!(
        "lowerdir={},upperdir={d}/upper,workdir={d}/work,redirect_dir=nofollow,metacopy=off",
        lowers.split(':').map(|lower| format!("{}/{lower}", dir.display())).collect::<Vec<_>>().join(":"),
        d = dir.display()
    );
    with_own_mounts(|| {
        let merged = dir.join("merged");
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
        // A shell, in this thread's mount namespace.
        shell(&merged, script);
        look(&merged);
        nix::mount::umount(&merged).unwrap();
    });
}

/// overlayfs shows a lower file's links still, when another of its names has been copied up.
fn without_links(root: &Path) -> Vec<String> {
    let links = [1, 2, 3].map(|count| format!(" links {count} "));
    let line = |line: String| links.iter().fold(line, |line, links| line.replace(links, " "));
    snapshot(root).into_iter().map(line).collect()
}

const LOWER: &str = "mkdir -p low/d/e low/gone low/opq low/both low/becomes_file low/deep/er; echo 1 >low/d/1; echo 2 >low/d/e/2
    echo 3 >low/gone/3; echo 4 >low/opq/4; echo 5 >low/both/5; echo 6 >low/f; ln low/f low/f2; echo 7 >low/becomes_dir
    echo 8 >low/becomes_file/8; echo 9 >low/deep/er/9; setfattr -n user.k -v low low/d; chmod 700 low/both";
const SCRIPT: &str =
    "rm -r gone; rm -r opq; mkdir opq; echo new >opq/new; echo 5a >both/5a; rm both/5; echo more >>f
    rm becomes_dir; mkdir becomes_dir; echo in >becomes_dir/in; rm -r becomes_file; echo file >becomes_file
    rm d/1; echo again >d/1; ln d/1 d/link; mv deep/er/9 deep/9; chown 5:6 d/e; chmod 711 .; rmdir deep/er";

fn several_directories_are_seen_as_the_kernel_shows_them() {
    needs!(root(), program("setfattr"));
    let (place, to) = (Place::new("merged"), Place::new("to"));
    shell(&place.0, LOWER);
    shell(
        &place.0,
        "mkdir -p mid/both mid/d mid/lone; echo mid >mid/both/mid; mknod mid/deep c 0 0; echo x >mid/lone/x",
    );
    with_overlay(
        &place,
        "mid:low",
        "rm -r lone; rm both/mid; mkdir deep; echo d >deep/d; echo f >>f",
        |merged| {
            let tops = ["upper", "mid", "low"].map(|name| place.0.join(name));
            let (archive, _) = packed(&tops.each_ref().map(|top| top.as_path()), MERGED).unwrap();
            to.unpack_with(&archive, &options(Mode::Apply)).unwrap();
            assert_eq!(without_links(&to.root()), without_links(merged));
            assert!(!to.root().join("lone").exists() && to.root().join("deep/d").exists());
            assert!(!to.root().join("deep/er").exists());
        },
    );
}

fn an_upper_directory_becomes_the_layer_that_it_is() {
    needs!(root(), program("setfattr"));
    let place = Place::new("upper");
    shell(&place.0, LOWER);
    with_overlay(&place, "low", SCRIPT, |_| ());
    let (archive, packed) = packed(&[&place.0.join("upper")], UPPER).unwrap();
    assert_eq!(packed.warnings, Vec::<String>::new());
    let expected = [
        "./",
        "becomes_dir/",
        "becomes_dir/.wh..wh..opq",
        "becomes_dir/in",
        "becomes_file",
        "both/",
        "both/.wh.5",
        "both/5a",
        "d/",
        "d/1",
        "d/e/",
        "d/link",
        "deep/",
        "deep/9",
        "deep/.wh.er",
        "f",
        ".wh.gone",
        "opq/",
        "opq/.wh..wh..opq",
        "opq/new",
    ];
    assert_eq!(paths(&archive), expected);
    let all = entries(&archive);
    // Not even to each other are whiteouts links, and nothing of overlayfs is left on them.
    assert!(
        all.iter().all(|entry| entry.xattrs.iter().all(|(name, _)| name.starts_with(b"user.k"))),
        "{all:?}"
    );
    let links: Vec<_> =
        all.iter().filter(|entry| !entry.link.is_empty()).map(|entry| &entry.path[..]).collect();
    assert_eq!(links, [b"d/link"]);
}

fn what_a_container_has_done_comes_back_from_its_layer() {
    needs!(root(), program("setfattr"));
    let (place, to) = (Place::new("commit"), Place::new("to"));
    shell(&place.0, LOWER);
    let base = packed(&[&place.0.join("low")], Kind::Plain).unwrap().0;
    with_overlay(&place, "low", SCRIPT, |merged| {
        let layer = packed(&[&place.0.join("upper")], UPPER).unwrap().0;
        for archive in [&base, &layer] {
            to.unpack_with(archive, &options(Mode::Apply)).unwrap();
        }
        assert_eq!(without_links(&to.root()), without_links(merged));
    });
    // And as a lower layer of overlayfs.
    let (again, layer) = (Place::new("again"), packed(&[&place.0.join("upper")], UPPER).unwrap().0);
    again.unpack_with(&layer, &options(OVERLAY)).unwrap();
    let second = packed(&[&again.root()], UPPER).unwrap().0;
    assert_eq!(paths(&second), paths(&layer));
}

fn an_upper_that_lies_elsewhere_is_refused() {
    needs!(root(), program("setfattr"));
    for (file, attribute) in [
        ("d", "trusted.overlay.redirect"),
        ("d", "user.overlay.redirect"),
        ("f", "trusted.overlay.metacopy"),
        ("f", "user.overlay.metacopy"),
        ("f", "trusted.overlay.whiteout"),
    ] {
        let place = Place::new("elsewhere");
        shell(&place.root(), &format!("mkdir d; echo x >f; setfattr -n {attribute} -v /etc {file}"));
        for kind in [UPPER, MERGED] {
            let error = packed(&[&place.root()], kind).unwrap_err().to_string();
            let slash = if file == "d" { "/" } else { "" };
            assert_eq!(
                error,
                format!("pack \"{file}{slash}\": it has {attribute}, so that its content lies elsewhere")
            );
        }
        // In no overlay it means nothing, and an image may not have it.
        let (archive, _) = packed(&[&place.root()], Kind::Plain).unwrap();
        assert!(entries(&archive).iter().all(|entry| entry.xattrs.is_empty()));
    }
}

fn a_name_like_a_whiteout_is_refused_in_a_layer_only() {
    needs!(root());
    let place = Place::new("wh");
    shell(&place.root(), "mkdir d; echo x >d/.wh.passwd");
    let error = packed(&[&place.root()], UPPER).unwrap_err();
    let expected = "pack \"d/.wh.passwd\": in a layer such a name would take another file away";
    assert_eq!((error.to_string().as_str(), error.way_out().is_some()), (expected, true));
    assert_eq!(paths(&packed(&[&place.root()], MERGED).unwrap().0), ["./", "d/", "d/.wh.passwd"]);
}

fn marks_of_the_other_kind_of_mount_mean_nothing() {
    needs!(root(), program("setfattr"));
    let place = Place::new("marks");
    // A container may set what begins with user.
    shell(&place.0, "mkdir -p up/d low/d; echo x >low/d/x; setfattr -n user.overlay.opaque -v y up/d");
    let tops = ["up", "low"].map(|name| place.0.join(name));
    let tops = tops.each_ref().map(|top| top.as_path());
    assert_eq!(paths(&packed(&tops, MERGED).unwrap().0), ["./", "d/", "d/x"]);
    assert_eq!(paths(&packed(&tops, Kind::Merged { user_xattr: true }).unwrap().0), ["./", "d/"]);
    assert_eq!(paths(&packed(&tops[..1], UPPER).unwrap().0), ["./", "d/"]);
    let upper = packed(&tops[..1], Kind::Upper { user_xattr: true }).unwrap().0;
    assert_eq!(paths(&upper), ["./", "d/", "d/.wh..wh..opq"]);
}

fn owners_are_moved_back_or_refused() {
    needs!(root());
    let place = Place::new("owners");
    shell(&place.root(), "echo >a; echo >b; chown 100000:100000 . a; chown 100033:100005 b");
    let range = |count| vec![Range { inside: 0, outside: 100_000, count }];
    let with = |owners| -> Result<_> {
        let mut bytes = Vec::new();
        pack(vec![Top { directory: place.target(), owners }], UPPER, &LayerLimits::default(), &mut bytes)?;
        Ok(entries(&bytes).iter().map(|entry| (entry.uid, entry.gid)).collect::<Vec<_>>())
    };
    let mapped = |count| with(Owners::Mapped { uids: range(count), gids: range(65536) });
    assert_eq!(mapped(65536).unwrap(), [(0, 0), (0, 0), (33, 5)]);
    assert_eq!(mapped(33).unwrap_err().to_string(), "pack \"b\": uid 100033 is not in the id map");
    assert_eq!(with(Owners::Squashed).unwrap(), [(0, 0); 3]);
}

fn capabilities_lose_the_owner_that_a_mapping_gave_them() {
    needs!(root(), program("setfattr"));
    let place = Place::new("caps");
    let capability = |value: &[u8]| [(b"security.capability".to_vec(), value.to_vec())];
    let v2: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // As the kernel stores it for a user namespace whose root is 100000 outside.
    shell(
        &place.root(),
        "echo >a; chown 100000:100000 . a
         setfattr -n security.capability -v 0x0100000300200000000000000000000000000000a0860100 a",
    );
    let range = vec![Range { inside: 0, outside: 100_000, count: 65536 }];
    let with = |owners| {
        let mut bytes = Vec::new();
        let packed =
            pack(vec![Top { directory: place.target(), owners }], UPPER, &LayerLimits::default(), &mut bytes)
                .unwrap();
        (entries(&bytes).pop().unwrap().xattrs, packed.warnings.len())
    };
    let mapped = Owners::Mapped { uids: range.clone(), gids: range };
    assert_eq!(with(mapped), (capability(v2).to_vec(), 0));
    assert_eq!(with(Owners::Kept), (vec![], 1));
}

fn what_is_swapped_for_a_link_leads_nowhere() {
    needs!(root());
    let place = Place::new("swap");
    shell(&place.root(), "mkdir d; echo inside >d/passwd; echo x >passwd");
    let (root, outside) = (place.root(), place.0.join("outside"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let swap = |name: &str, target: &Path| {
                let link = root.join("link");
                std::os::unix::fs::symlink(target, &link).unwrap();
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let at = nix::fcntl::AT_FDCWD;
                for _ in 0..2 {
                    nix::fcntl::renameat2(at, &link, at, &root.join(name), flags).unwrap();
                }
                fs::remove_file(&link).unwrap();
            };
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                swap("d", &outside);
                swap("passwd", &outside.join("passwd"));
            }
        });
        let mut whole = 0;
        for _ in 0..2000 {
            let Ok((archive, _)) = packed(&[&root], Kind::Plain) else { continue };
            whole += 1;
            assert!(!archive.windows(8).any(|bytes| bytes == b"sentinel"), "followed a link");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(whole > 0);
    });
}

fn a_tree_too_deep_is_an_error() {
    needs!(root());
    let place = Place::new("deep");
    shell(&place.root(), "i=0; while [ $i -lt 300 ]; do mkdir d; cd d; i=$((i+1)); done");
    let error = packed(&[&place.root()], Kind::Plain).unwrap_err();
    assert_eq!(error.kind(), keel::error::Kind::Limit);
    assert!(error.to_string().ends_with("d/d/\": more than 256 directories inside of each other"), "{error}");
    assert_eq!(list(&place.root()).len(), 300);
}

fn the_longest_names_can_be_taken_away() {
    needs!(root());
    let (place, overlay, applied) = (Place::new("long"), Place::new("overlay"), Place::new("applied"));
    for length in [251, 252, 255] {
        shell(&place.root(), &format!("mknod {} c 0 0", "n".repeat(length)));
        shell(&applied.root(), &format!("touch {}", "n".repeat(length)));
    }
    let layer = packed(&[&place.root()], UPPER).unwrap().0;
    overlay.unpack_with(&layer, &options(OVERLAY)).unwrap();
    assert_eq!(overlay.list(), place.list());
    applied.unpack_with(&layer, &options(Mode::Apply)).unwrap();
    assert_eq!(applied.list(), [""; 0]);
    let longer = Tar::new().pax(&[("path", &[b".wh.", &[b'n'; 256][..]].concat())]).file("x", "");
    let error = overlay.unpack(longer, OVERLAY).unwrap_err().to_string();
    assert!(error.ends_with("a name of 256 bytes, more than 255 (limit path)"), "{error}");
}

fn what_costs_a_container_nothing_costs_us_no_more_than_the_limit() {
    needs!(root());
    let place = Place::new("holes");
    shell(&place.root(), "truncate -s 600K a b; truncate -s 1T c");
    let with = |bytes| {
        let (limits, mut out) = (LayerLimits { bytes, ..LayerLimits::default() }, Vec::new());
        let top = Top { directory: place.target(), owners: Owners::Kept };
        pack(vec![top], UPPER, &limits, &mut out).map(|_| ()).map_err(|error| (error, out.len()))
    };
    let (error, written) = with(1 << 20).unwrap_err();
    assert_eq!(error.kind(), keel::error::Kind::Limit);
    assert_eq!(error.to_string(), "pack \"b\": a file of 614400 bytes is more than is left (limit bytes)");
    assert!(error.way_out().is_some_and(|text| text.contains("--limits bytes=N")));
    assert!(written < 620_000, "{written}");
    let (error, written) = with(LayerLimits::default().bytes).unwrap_err();
    assert!(error.to_string().starts_with("pack \"c\": a file of 1099511627776 bytes"), "{error}");
    assert!(written < 1_300_000, "{written}");
    shell(&place.root(), "rm c");
    with(1_228_800).unwrap();
    assert!(with(1_228_799).is_err());
}
