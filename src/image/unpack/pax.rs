//! PAX extended headers: `LENGTH KEY=VALUE\n`, again and again.

use nix::sys::time::TimeSpec;

use super::malformed;
use super::sparse::{Piece, Sparse};
use crate::error::Result;

/// What an entry's extended header says; what nobody here needs is left out.
#[derive(Debug, Default)]
pub struct Records<'a> {
    pub path: Option<&'a [u8]>,
    pub link_path: Option<&'a [u8]>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<TimeSpec>,
    pub sparse_size: Option<u64>,
    xattrs: Vec<(&'a [u8], &'a [u8])>,
    sparse_name: Option<&'a [u8]>,
    sparse_major: Option<u64>,
    sparse_minor: Option<u64>,
    /// Offset and length by turns.
    sparse_map: Vec<u64>,
}

impl<'a> Records<'a> {
    pub fn parse(mut data: &'a [u8]) -> Result<Self> {
        let mut records = Self::default();
        while !data.is_empty() {
            let (key, value, rest) = split(data).ok_or_else(|| {
                malformed(format!("PAX record {:?}", String::from_utf8_lossy(&data[..data.len().min(40)])))
            })?;
            data = rest;
            records.take(key, value)?;
        }
        Ok(records)
    }

    fn take(&mut self, key: &'a [u8], value: &'a [u8]) -> Result<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name, value));
            return Ok(());
        }
        // An empty value takes a record back.
        let set = !value.is_empty();
        let text = || String::from_utf8_lossy(value);
        let wrong = || malformed(format!("PAX record {}={:?}", String::from_utf8_lossy(key), text()));
        let number = || match set {
            true => decimal(value).map(Some).ok_or_else(wrong),
            false => Ok(None),
        };
        let id = || number()?.map(|id| u32::try_from(id).map_err(|_| wrong())).transpose();
        match key {
            b"path" => self.path = set.then_some(value),
            b"linkpath" => self.link_path = set.then_some(value),
            b"size" => self.size = number()?,
            b"uid" => self.uid = id()?,
            b"gid" => self.gid = id()?,
            b"mtime" if set => self.mtime = Some(time(value).ok_or_else(wrong)?),
            b"mtime" => self.mtime = None,
            b"GNU.sparse.name" => self.sparse_name = set.then_some(value),
            b"GNU.sparse.major" => self.sparse_major = number()?,
            b"GNU.sparse.minor" => self.sparse_minor = number()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = number()?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_offset = key.ends_with(b"offset");
                if is_offset != self.sparse_map.len().is_multiple_of(2) {
                    return Err(wrong());
                }
                self.sparse_map.push(number()?.ok_or_else(wrong)?);
            }
            b"GNU.sparse.map" if set => {
                let numbers = value.split(|&byte| byte == b',').map(decimal);
                self.sparse_map = numbers.collect::<Option<_>>().ok_or_else(wrong)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Go's reader, which most programs for images use, ignores a global header, GNU tar applies it to all entries:
    /// one that says anything about them shows each another tree.
    pub fn refuse_as_global(&self) -> Result<()> {
        let Self { path, link_path, size, uid, gid, mtime, sparse_size, .. } = self;
        let nothing = path.or(*link_path).or(self.sparse_name).is_none()
            && size.or(*sparse_size).or(self.sparse_major).is_none()
            && uid.or(*gid).is_none()
            && mtime.is_none()
            && self.xattrs.is_empty()
            && self.sparse_map.is_empty();
        match nothing {
            true => Ok(()),
            false => Err(malformed("a global PAX header that is about entries")),
        }
    }

    pub fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
    }

    pub fn sparse_name(&self) -> Option<&'a [u8]> {
        self.sparse_name
    }

    /// Format 1.0.
    pub fn sparse_in_body(&self) -> bool {
        self.sparse_major == Some(1) && self.sparse_minor == Some(0)
    }

    /// The map of formats 0.0 and 0.1.
    pub fn sparse_map(&self, size: u64) -> Result<Option<Sparse>> {
        if self.sparse_major.is_some_and(|major| major > 0) {
            return Err(malformed("a sparse file of an unknown format"));
        }
        if self.sparse_map.is_empty() {
            // All of it is a hole.
            let hole = self.sparse_size.filter(|_| size == 0);
            return Ok(hole.map(|size| Sparse { pieces: Vec::new(), size }));
        }
        if !self.sparse_map.len().is_multiple_of(2) {
            return Err(malformed("a sparse map with an odd number of values"));
        }
        let pieces = self.sparse_map.chunks_exact(2).map(|pair| Piece { offset: pair[0], length: pair[1] });
        Ok(Some(Sparse { pieces: pieces.collect(), size: self.sparse_size.unwrap_or(0) }))
    }
}

/// The first record's key and value, and what follows it.
fn split(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = data.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&data[..blank])?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

/// Digits only: no sign, no blanks.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| all)?.parse().ok()
}

/// Seconds with a sign and a fraction, of which nine digits count.
fn time(value: &[u8]) -> Option<TimeSpec> {
    let negative = value.starts_with(b"-");
    let mut halves = value.strip_prefix(b"-").unwrap_or(value).splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(halves.next()?)?).ok()?;
    let mut nanoseconds = 0;
    if let Some(fraction) = halves.next().filter(|fraction| !fraction.is_empty()) {
        let mut nine = [b'0'; 9];
        let n = fraction.len().min(9);
        nine[..n].copy_from_slice(&fraction[..n]);
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        nanoseconds = i64::try_from(decimal(&nine)?).ok()?;
    }
    Some(match (negative, nanoseconds) {
        (false, _) => TimeSpec::new(seconds, nanoseconds),
        (true, 0) => TimeSpec::new(-seconds, 0),
        (true, _) => TimeSpec::new(-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_sign_and_a_fraction() {
        let table: &[(&str, Option<(i64, i64)>)] = &[
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.", Some((12, 0))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("", None),
            ("+1", None),
            ("1.x", None),
            ("--1", None),
            ("9223372036854775808", None),
        ];
        for (value, expected) in table {
            let time = time(value.as_bytes()).map(|time| (time.tv_sec(), time.tv_nsec()));
            assert_eq!(time, *expected, "{value:?}");
        }
    }

    #[test]
    fn a_record_is_as_long_as_it_says() {
        let table: &[(&[u8], bool)] = &[
            (b"", true),
            (b"8 uid=1\n", true),
            (b"8 uid=1\n8 gid=2\n", true),
            (b"9 uid=1\n", false),
            (b"7 uid=1\n", false),
            (b"5 a=\n", true),
            (b"5 =a\n", false),
            (b"-8 uid=1\n", false),
            (b"99999999999999999999 uid=1\n", false),
            (b"8 uid=x\n", false),
            (b"9 uid=-1\n", false),
            (b"8 uid=1\n\0", false),
            (b"0 \n", false),
        ];
        for (data, good) in table {
            assert_eq!(Records::parse(data).is_ok(), *good, "{:?}", String::from_utf8_lossy(data));
        }
    }
}
