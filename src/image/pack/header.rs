//! An entry's header: ustar, and before it a PAX header for what ustar has no room for.
//!
//! <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html>

use std::io::{self, Write};

use nix::sys::time::TimeSpec;

pub const BLOCK: usize = 512;

/// The greatest numbers of eight and of twelve bytes, the last of which is a NUL.
const MOST_OF_8: u64 = 0o7777777;
const MOST_OF_12: u64 = 0o77777777777;
const MOST_OF_NAME: usize = 100; // bytes

/// The type flags, as they are in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    File = b'0' as isize,
    HardLink = b'1' as isize,
    Symlink = b'2' as isize,
    Character = b'3' as isize,
    Block = b'4' as isize,
    Directory = b'5' as isize,
    Fifo = b'6' as isize,
}

pub struct Header<'a> {
    pub kind: Type,
    /// A directory's ends with a slash.
    pub path: &'a [u8],
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of the body that follows, in bytes.
    pub size: u64,
    pub mtime: TimeSpec,
    pub device: (u32, u32),
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Header<'a> {
    /// Of nobody in particular, and of no time.
    pub fn new(kind: Type, path: &'a [u8]) -> Self {
        let mode = if kind == Type::Directory { 0o755 } else { 0o644 };
        let mtime = TimeSpec::new(0, 0);
        Self { kind, path, link: b"", mode, uid: 0, gid: 0, size: 0, mtime, device: (0, 0), xattrs: &[] }
    }

    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let records = self.records();
        if !records.is_empty() {
            let name = [b"PaxHeaders/", &self.path[..self.path.len().min(80)]].concat();
            out.write_all(&block(b'x', &name, b"", [0o644, 0, 0], records.len() as u64, 0, (0, 0)))?;
            out.write_all(&records)?;
            pad(out, records.len() as u64)?;
        }
        out.write_all(&self.block())
    }

    /// The header alone, for what fits: names of up to 100 bytes, whole seconds. A great size is written as GNU's
    /// programs do, in base 256, which all that read images understand.
    pub fn block(&self) -> [u8; BLOCK] {
        let [mode, uid, gid] = [self.mode, self.uid, self.gid].map(u64::from);
        let ids = [mode, fitting(uid, MOST_OF_8), fitting(gid, MOST_OF_8)];
        let seconds = fitting(u64::try_from(self.mtime.tv_sec()).unwrap_or(0), MOST_OF_12);
        block(self.kind as u8, self.path, self.link, ids, self.size, seconds, self.device)
    }

    /// What does not fit into the header, and what there is no place for in it.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &[u8], value: &[u8]| records.extend(record(key, value));
        if self.path.len() > MOST_OF_NAME {
            add(b"path", self.path);
        }
        if self.link.len() > MOST_OF_NAME {
            add(b"linkpath", self.link);
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if u64::from(id) > MOST_OF_8 {
                add(key.as_bytes(), id.to_string().as_bytes());
            }
        }
        if self.size > MOST_OF_12 {
            add(b"size", self.size.to_string().as_bytes());
        }
        let seconds = self.mtime.tv_sec();
        if self.mtime.tv_nsec() != 0 || !u64::try_from(seconds).is_ok_and(|seconds| seconds <= MOST_OF_12) {
            add(b"mtime", time(self.mtime).as_bytes());
        }
        for (name, value) in self.xattrs {
            add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        records
    }
}

/// Fills a body up to a whole block.
pub fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let rest = size.wrapping_neg() % BLOCK as u64;
    out.write_all(&[0; BLOCK][..rest as usize])
}

/// What does not fit stands in a record.
fn fitting(number: u64, most: u64) -> u64 {
    if number > most { 0 } else { number }
}

fn block(
    kind: u8,
    name: &[u8],
    link: &[u8],
    ids: [u64; 3],
    size: u64,
    seconds: u64,
    device: (u32, u32),
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(MOST_OF_NAME)]);
    for (at, id) in [100, 108, 116].into_iter().zip(ids) {
        put(at, format!("{id:07o}").as_bytes());
    }
    match size > MOST_OF_12 {
        false => put(124, format!("{size:011o}").as_bytes()),
        true => put(124, &[&[0x80, 0, 0, 0], &size.to_be_bytes()[..]].concat()),
    }
    put(136, format!("{seconds:011o}").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link[..link.len().min(MOST_OF_NAME)]);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", device.0).as_bytes());
    put(337, format!("{:07o}", device.1).as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Seconds with a sign and a fraction.
fn time(time: TimeSpec) -> String {
    let (seconds, nanoseconds) = (time.tv_sec(), time.tv_nsec());
    // -2 s and 0.75 s are -1.25 s.
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (false, _) => ("", seconds.unsigned_abs(), nanoseconds),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, _) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
    };
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::unpack::LayerLimits;
    use crate::image::unpack::tar::Archive;

    /// As our own reader reads it.
    fn read_back(header: &Header<'_>) -> crate::image::unpack::tar::Entry {
        let mut bytes = Vec::new();
        header.write(&mut bytes).unwrap();
        let limits = LayerLimits::default();
        Archive::new(bytes.as_slice(), &limits).next_entry().unwrap().unwrap()
    }

    #[test]
    fn what_does_not_fit_into_a_header_comes_back_whole() {
        let long = [b'x'; 300];
        let xattrs = [(b"user.a".to_vec(), b"\0=\n".to_vec()), (b"user.b".to_vec(), vec![7; 1000])];
        for (path, seconds, nanoseconds, id, size) in [
            (&b"a"[..], 0, 0, 0, 0),
            (&long[..100], 1, 1, MOST_OF_8 as u32, MOST_OF_12),
            (&long[..101], -1, 0, MOST_OF_8 as u32 + 1, MOST_OF_12 + 1),
            (&long, -2, 750_000_000, u32::MAX - 1, 1 << 40),
            (b"a\xff\n", MOST_OF_12 as i64 + 1, 500, 3_000_000, 1),
        ] {
            let mtime = TimeSpec::new(seconds, nanoseconds);
            let header = Header {
                link: path,
                mtime,
                uid: id,
                gid: id,
                size,
                xattrs: &xattrs,
                ..Header::new(Type::File, path)
            };
            let entry = read_back(&header);
            assert_eq!((&*entry.path, &*entry.link), (path, path));
            assert_eq!((entry.mtime, entry.uid, entry.gid, entry.stored), (mtime, id, id, size));
            assert_eq!(entry.xattrs, xattrs);
        }
    }

    #[test]
    fn a_great_size_fits_into_one_block() {
        for size in [0, MOST_OF_12, MOST_OF_12 + 1, i64::MAX as u64] {
            let block = Header { size, ..Header::new(Type::File, b"a") }.block();
            let limits = LayerLimits::default();
            let entry = Archive::new(block.as_slice(), &limits).next_entry().unwrap().unwrap();
            assert_eq!(entry.stored, size);
        }
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, start) in [(93, "99 "), (94, "101 "), (95, "102 ")] {
            let record = record(b"k", &vec![b'v'; value]);
            assert!(record.starts_with(start.as_bytes()), "{value}: {}", String::from_utf8_lossy(&record));
            assert_eq!(record.len(), start.trim().parse::<usize>().unwrap());
        }
    }

    #[test]
    fn times_have_a_sign_and_a_fraction() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (10, 0, "10"),
            (12, 500_000_000, "12.5"),
            (-2, 750_000_000, "-1.25"),
            (-1, 1, "-0.999999999"),
        ] {
            assert_eq!(time(TimeSpec::new(seconds, nanoseconds)), text);
        }
    }
}
