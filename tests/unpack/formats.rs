//! What archives may look like: names, numbers, sparse files, and what no two readers agree on.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use keel::error::Kind;
use keel::image::unpack::Mode;

use crate::archive::{Header, OVERLAY, Place, Tar, put, record, summed};
use crate::{needs, root, tests};

tests![
    what_is_ambiguous_is_refused,
    the_end_is_two_blocks_or_the_streams,
    only_regular_files_have_bodies_and_a_slash_makes_a_directory,
    long_names_and_numbers_are_read,
    a_size_in_an_extended_header_counts_as_it_does_for_gnu_tar,
    sparse_files_are_as_they_were,
];

fn changed(header: Header, change: impl FnOnce(&mut [u8; 512])) -> [u8; 512] {
    let mut block = header.block();
    change(&mut block);
    summed(block)
}

fn sized(kind: u8, size: u64) -> Header {
    Header { size, ..Header::new("a", kind) }
}

fn what_is_ambiguous_is_refused() {
    needs!(root());
    let file = || Tar::new().file("a", "x");
    let global = |key, value: &[u8]| Tar::new().entry(b'g', "g", &record(key, value)).file("a", "x");
    let pax = |key, value: &[u8]| Tar::new().pax(&[(key, value)]).file("a", "x");
    let negative = changed(sized(b'0', 0), |block| block[124..136].fill(0xff));
    let no_sum = {
        let mut block = Header::new("a", b'0').block();
        block[0] = b'b';
        block
    };
    let sparse = changed(sized(b'S', 0), |block| {
        put(&mut block[257..265], "ustar  \0".into());
        block[482] = 1;
    });
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("a single block of zeroes", file().block([0; 512]).file("b", "x").end()),
        ("check sum", Tar::new().block(no_sum).end()),
        ("check sum", Tar::new().data(&[1; 512]).end()),
        ("a size of -1", Tar::new().block(negative).end()),
        ("NUL in the name", pax("path", b"a\0b").end()),
        ("NUL in the link target", pax("linkpath", b"a\0b").end()),
        ("NUL in the name", Tar::new().entry(b'L', "l", b"a\0b\0").file("a", "x").end()),
        ("PAX record", Tar::new().entry(b'x', "p", b"99 path=a\n").file("a", "x").end()),
        ("PAX record size=\"-1\"", pax("size", b"-1").end()),
        ("PAX record size=\"0x1\"", pax("size", b"0x1").end()),
        ("a size of", pax("size", b"18446744073709551615").end()),
        ("PAX record uid=\"4294967296\"", pax("uid", b"4294967296").end()),
        ("owner 4294967295", pax("uid", b"4294967295").end()),
        ("about entries", global("path", b"b").end()),
        ("about entries", global("SCHILY.xattr.user.a", b"b").end()),
        ("entries of type 'Z'", Tar::new().entry(b'Z', "a", b"").end()),
        ("entries of type 'M'", Tar::new().entry(b'M', "a", b"").end()),
        ("without a name", Tar::new().file("", "x").end()),
        (
            "two extended headers",
            Tar::new().pax(&[("path", b"x")]).pax(&[("path", b"y")]).file("a", "").end(),
        ),
        ("ends after an extended header", Tar::new().pax(&[("path", b"x")]).end()),
        ("ends inside of a header", file().end()[..700].to_vec()),
        ("ends inside of the file's body", Tar::new().header(sized(b'0', 100)).0),
        ("ends inside of a header", Tar::new().header(sized(b'0', 100)).0[..100].to_vec()),
        ("is a whiteout of overlayfs", Tar::new().device("a", b'3', (0, 0)).end()),
        ("device 4096:0 is out of range", Tar::new().device("a", b'3', (4096, 0)).end()),
        ("device 0:1048576 is out of range", Tar::new().device("a", b'3', (0, 1 << 20)).end()),
        ("ends inside of a header", Tar::new().block(sparse).0),
        ("a symbolic link to nothing", Tar::new().symlink("a", "").end()),
        ("a sparse file without a GNU header", Tar::new().header(sized(b'S', 0)).end()),
        (
            "pieces overlap",
            Tar::new()
                .pax(&[("GNU.sparse.map", b"0,2,1,2"), ("GNU.sparse.size", b"9")])
                .file("a", "abcd")
                .end(),
        ),
        (
            "pieces overlap",
            Tar::new().pax(&[("GNU.sparse.map", b"8,2"), ("GNU.sparse.size", b"9")]).file("a", "ab").end(),
        ),
        (
            "for a body of",
            Tar::new().pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"9")]).file("a", "ab").end(),
        ),
        (
            "odd number",
            Tar::new().pax(&[("GNU.sparse.map", b"0,1,2"), ("GNU.sparse.size", b"9")]).file("a", "a").end(),
        ),
        (
            "does not read",
            Tar::new()
                .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")])
                .file("a", vec![b'x'; 512])
                .file("b", "\n")
                .end(),
        ),
    ];
    for (text, layer) in table {
        let place = Place::new("ambiguous");
        let error = place.unpack_with(&layer, &crate::archive::options(OVERLAY)).expect_err(text);
        // A map of garbage never ends, until it is the body's end.
        let text = if text == "does not read" { "sparse map" } else { text };
        assert!(error.to_string().contains(text), "{text}: {error}");
        assert_eq!(error.kind(), Kind::Integrity, "{error}");
    }
}

fn the_end_is_two_blocks_or_the_streams() {
    needs!(root());
    let layer = Tar::new().file("a", "x");
    let zeroes = |n: usize| [layer.0.clone(), vec![0; n]].concat();
    let after = [zeroes(1024), Tar::new().file("b", "x").end()].concat();
    for layer in [zeroes(0), zeroes(512), zeroes(1024), zeroes(10240), after] {
        let place = Place::new("end");
        place.unpack_with(&layer, &crate::archive::options(OVERLAY)).unwrap();
        assert_eq!(place.list(), ["a file 1"]);
    }
    let place = Place::new("empty");
    assert_eq!(place.unpack_with(b"", &crate::archive::options(OVERLAY)).unwrap().entries, 0);
}

fn only_regular_files_have_bodies_and_a_slash_makes_a_directory() {
    needs!(root());
    let place = Place::new("bodies");
    let with_size = |name: &str, kind: u8, link: &str| Header {
        size: 512,
        link: link.into(),
        mode: 0o755,
        ..Header::new(name, kind)
    };
    let layer = Tar::new()
        .header(with_size("d", b'5', ""))
        .header(with_size("l", b'2', "x"))
        .entry(b'0', "e/", &[0xff; 512])
        .entry(b'7', "f", b"xyz")
        .entry(0, "g", b"xy")
        .header(with_size("h", b'1', "f"));
    place.unpack(layer, OVERLAY).unwrap();
    assert_eq!(place.list(), ["d dir", "e dir", "f file 3", "g file 2", "h file 3", "l -> x"]);
}

fn long_names_and_numbers_are_read() {
    needs!(root());
    let place = Place::new("long");
    let name = |c: char| c.to_string().repeat(200);
    let prefixed = changed(Header::new("name", b'0'), |block| put(&mut block[345..500], "pre/fix".into()));
    let numbers = changed(Header::new("n", b'0'), |block| {
        put(&mut block[257..265], "ustar  \0".into());
        block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 0x12, 0x34, 0x56]);
        block[136..148].fill(0xff);
        block[147] = 0xf6;
    });
    let layer = Tar::new()
        .entry(b'L', "l", format!("{}\0", name('a')).as_bytes())
        .file("short", "1")
        .entry(b'K', "l", format!("{}\0", name('b')).as_bytes())
        .symlink("s", "short")
        .pax(&[("path", name('c').as_bytes()), ("mtime", b"-1.5"), ("uid", b"70000"), ("comment", b"x")])
        .file("short", "3")
        .block(prefixed)
        .block(numbers);
    place.unpack(layer, OVERLAY).unwrap();
    let (a, b, c) = (name('a'), name('b'), name('c'));
    let expected = [format!("{a} file 1"), format!("{c} file 1"), "n file 0".into(), "pre dir".into()];
    let list = place.list();
    assert_eq!(list[..4], expected);
    assert_eq!(list[4..], ["pre/fix dir".into(), "pre/fix/name file 0".into(), format!("s -> {b}")]);
    let meta = std::fs::metadata(place.root().join(c)).unwrap();
    assert_eq!((meta.uid(), meta.mtime(), meta.mtime_nsec()), (70000, -2, 500_000_000));
    let meta = std::fs::metadata(place.root().join("n")).unwrap();
    assert_eq!((meta.uid(), meta.mtime()), (0x123456, -10));
}

/// GNU tar writes them, in each of its formats.
fn sparse_files_are_as_they_were() {
    needs!(root());
    let place = Place::new("sparse");
    let script = "cd outside && truncate -s 3000000 holes && for i in 0 7 90 100 200 201 333 444 555 600 700; do \
        printf data$i | dd of=holes bs=4096 seek=$i conv=notrunc status=none; done && truncate -s 5000000 empty && \
        for i in $(seq 0 2 80); do printf x$i | dd of=many bs=8192 seek=$i conv=notrunc status=none; done";
    assert!(Command::new("sh").args(["-c", script]).current_dir(&place.0).status().unwrap().success());
    for format in ["--format=oldgnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"]
    {
        let posix = if format.contains("version") { "--format=posix" } else { "-b20" };
        let run = Command::new("tar")
            .args(["-c", "-S", "-C", "outside", posix, format, "holes", "empty", "many", "passwd"])
            .current_dir(&place.0)
            .output()
            .unwrap();
        let unpacked = place.unpack_with(&run.stdout, &crate::archive::options(Mode::Apply)).unwrap();
        assert!(run.stdout.len() < 1_000_000 && unpacked.bytes > 8_000_000, "{format} made no sparse files");
        for file in ["holes", "empty", "many", "passwd"] {
            let read = |dir: &str| std::fs::read(place.0.join(dir).join(file)).unwrap();
            assert!(read("root") == read("outside"), "{file} {format}");
            let blocks = std::fs::metadata(place.root().join(file)).unwrap().blocks();
            assert!(blocks < 2000, "{file} {format}: {blocks} blocks");
        }
    }
}

/// Who goes by the other size reads a file's content as entries: one program checks an archive, the next unpacks another.
fn a_size_in_an_extended_header_counts_as_it_does_for_gnu_tar() {
    needs!(root());
    let hidden = Tar::new().file("evil", "x").0;
    let named = |size: u64| Header { size, ..Header::new("a", b'0') };
    let larger = Tar::new().pax(&[("size", b"1024")]).header(named(0)).data(&hidden).file("b", "x");
    let smaller = Tar::new().pax(&[("size", b"0")]).header(named(1024)).file("b", "x");
    for (layer, expected) in [(larger, ["a file 1024", "b file 1"]), (smaller, ["a file 0", "b file 1"])] {
        let place = Place::new("sizes");
        std::fs::write(
            place.0.join("layer.tar"),
            layer.0.iter().chain(&[0; 1024]).copied().collect::<Vec<_>>(),
        )
        .unwrap();
        let tar = Command::new("tar").arg("-tf").arg(place.0.join("layer.tar")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&tar.stdout), "a\nb\n");
        place.unpack(layer, OVERLAY).unwrap();
        assert_eq!(place.list(), expected);
    }
}
