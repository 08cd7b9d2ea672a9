//! A layer's entries: ustar, old GNU and PAX headers, read one after another from a stream.
//!
//! Where readers of tar disagree, a hostile archive shows each of them another tree. So what is ambiguous is an
//! error here, and the rest is read as Go's archive/tar does, by which most images are made and read: only
//! regular files have a body whatever the size field says, and a trailing slash makes a directory.
//!
//! No crate: `tar` reads PAX sparse files wrongly, and `tar-core` 0.1 refuses times before 1970.
//!
//! <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html>,
//! <https://www.gnu.org/software/tar/manual/html_node/Standard.html>

use std::io::{BufRead, BufReader, ErrorKind, Read, Seek};

use nix::sys::time::TimeSpec;

use super::field::{check_sum, header_path, id, long_name, number, size, text};
use super::limits::LayerLimits;
use super::pax::Records;
use super::sparse::{self, Sparse};
use super::{limit, malformed};
use crate::error::{Error, Result};

pub const BLOCK: usize = 512;
pub type Block = [u8; BLOCK];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

#[derive(Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Type,
    /// The permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: TimeSpec,
    /// Bytes of body in the archive.
    pub stored: u64,
    /// Where they belong, if not one after another from the start.
    pub sparse: Option<Sparse>,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What goes before an entry's own header.
#[derive(Default)]
struct Extensions {
    pax: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    bytes: u64,
}

pub struct Archive<'l, R> {
    input: R,
    limits: &'l LayerLimits,
    /// Of the present entry's body, without the padding.
    body: u64,
    padding: u64,
}

impl<'l, R: BufRead> Archive<'l, R> {
    pub fn new(input: R, limits: &'l LayerLimits) -> Self {
        Self { input, limits, body: 0, padding: 0 }
    }

    /// The next entry; what is left of the last one's body is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.with_body(self.body, |_| Ok(()))?;
        let mut before = Extensions::default();
        loop {
            let Some(header) = self.header()? else {
                return match before.bytes {
                    0 => Ok(None),
                    _ => Err(malformed("the archive ends after an extended header")),
                };
            };
            let size = size(&header)?;
            let slot = match header[156] {
                b'x' | b'X' => &mut before.pax,
                b'L' => &mut before.name,
                b'K' => &mut before.link,
                b'g' => {
                    Records::parse(&self.metadata(size)?)?.refuse_as_global()?;
                    continue;
                }
                // The name of the whole archive.
                b'V' => continue,
                _ => return self.entry(&header, size, before).map(Some),
            };
            if slot.is_some() {
                return Err(malformed("two extended headers of one kind before one entry"));
            }
            before.bytes += size.max(1);
            if before.bytes > self.limits.metadata {
                return Err(self.too_much_metadata(before.bytes));
            }
            *slot = Some(self.metadata(size)?);
        }
    }

    /// Hands `length` bytes of the body on, as they come.
    pub fn with_body(&mut self, length: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        debug_assert!(length <= self.body);
        let mut left = length;
        while left > 0 {
            let chunk = fill(&mut self.input)?;
            if chunk.is_empty() {
                return Err(malformed("the archive ends inside of the file's body"));
            }
            let n = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            take(&chunk[..n])?;
            self.input.consume(n);
            left -= n as u64;
        }
        self.body -= length;
        if self.body == 0 && self.padding > 0 {
            let mut rest = [0; BLOCK];
            let n = std::mem::take(&mut self.padding) as usize;
            self.read(&mut rest[..n])?;
        }
        Ok(())
    }

    /// Reads what follows the archive's end up to the stream's end: it belongs to the digest.
    pub fn drain(mut self) -> Result<()> {
        loop {
            let n = fill(&mut self.input)?.len();
            if n == 0 {
                return Ok(());
            }
            self.input.consume(n);
        }
    }

    /// The next header; none at the end of the archive, which is two blocks of zeroes or the end of the stream.
    fn header(&mut self) -> Result<Option<Block>> {
        let mut block = [0; BLOCK];
        if fill(&mut self.input)?.is_empty() {
            return Ok(None);
        }
        self.read(&mut block)?;
        if block != [0; BLOCK] {
            check_sum(&block)?;
            return Ok(Some(block));
        }
        if !fill(&mut self.input)?.is_empty() {
            self.read(&mut block)?;
        }
        match block == [0; BLOCK] {
            true => Ok(None),
            // Some readers stop at the first block of zeroes, others go on.
            false => Err(malformed("a single block of zeroes, and more after it")),
        }
    }

    /// The body of an extended header.
    fn metadata(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > self.limits.metadata {
            return Err(self.too_much_metadata(size));
        }
        let mut data = vec![0; size as usize];
        self.read(&mut data)?;
        let mut rest = [0; BLOCK];
        self.read(&mut rest[..padding(size) as usize])?;
        Ok(data)
    }

    fn too_much_metadata(&self, size: u64) -> Error {
        limit("pax", format!("{size} bytes of extended headers, more than {}", self.limits.metadata))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        read(&mut self.input, into)
    }

    fn entry(&mut self, header: &Block, size: u64, before: Extensions) -> Result<Entry> {
        let records = Records::parse(before.pax.as_deref().unwrap_or_default())?;
        let sparse_name = records.sparse_name();
        let path = match (sparse_name.or(records.path), &before.name) {
            (Some(path), _) => path.to_vec(),
            (None, Some(name)) => long_name(name)?,
            (None, None) => header_path(header),
        };
        let link = match (records.link_path, &before.link) {
            (Some(link), _) => link.to_vec(),
            (None, Some(link)) => long_name(link)?,
            (None, None) => text(&header[157..257]).to_vec(),
        };
        for (what, name) in [("name", &path), ("link target", &link)] {
            if name.contains(&0) {
                return Err(malformed(format!("NUL in the {what} {:?}", String::from_utf8_lossy(name))));
            }
            if name.len() > self.limits.path {
                let long = format!("a {what} of {} bytes, more than {}", name.len(), self.limits.path);
                return Err(limit("path", long));
            }
        }
        if path.is_empty() {
            return Err(malformed("an entry without a name"));
        }
        let kind = match header[156] {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Type::Directory,
            b'0' | 0 | b'7' | b'S' => Type::File,
            b'1' => Type::HardLink,
            b'2' => Type::Symlink,
            b'3' => Type::Character,
            b'4' => Type::Block,
            b'5' => Type::Directory,
            b'6' => Type::Fifo,
            other => return Err(malformed(format!("entries of type {:?} are not known", other as char))),
        };
        let size = records.size.unwrap_or(size);
        let has_body = matches!(header[156], b'0' | 0 | b'7' | b'S');
        self.body = if has_body { size } else { 0 };
        self.padding = padding(self.body);
        if self.body > i64::MAX as u64 {
            return Err(malformed(format!("a size of {size} bytes")));
        }
        let sparse = match (kind, header[156]) {
            (Type::File, b'S') => Some(sparse::old_gnu(
                header,
                || {
                    let mut block = [0; BLOCK];
                    read(&mut self.input, &mut block)?;
                    Ok(block)
                },
                self.limits.metadata,
            )?),
            (Type::File, _) if records.sparse_in_body() => Some(self.sparse_map_in_body(&records)?),
            (Type::File, _) => records.sparse_map(size)?,
            _ => None,
        };
        if let Some(sparse) = &sparse {
            sparse.check(self.body)?;
        }
        let seconds = || number(&header[136..148], "time");
        Ok(Entry {
            mode: (number(&header[100..108], "mode")? & 0o7777) as u32,
            uid: records.uid.map_or_else(|| id(&header[108..116], "uid"), Ok)?,
            gid: records.gid.map_or_else(|| id(&header[116..124], "gid"), Ok)?,
            mtime: records.mtime.map_or_else(|| Ok(TimeSpec::new(seconds()?, 0)), Ok::<_, Error>)?,
            device: match kind {
                Type::Character | Type::Block => {
                    (id(&header[329..337], "device number")?, id(&header[337..345], "device number")?)
                }
                _ => (0, 0),
            },
            stored: self.body,
            xattrs: records.xattrs(),
            path,
            link,
            kind,
            sparse,
        })
    }

    /// The map that PAX sparse 1.0 puts at the start of the body.
    fn sparse_map_in_body(&mut self, records: &Records<'_>) -> Result<Sparse> {
        let mut map = sparse::MapText::default();
        let most = self.limits.metadata;
        loop {
            if self.body < BLOCK as u64 {
                return Err(malformed("a sparse map longer than the file's body"));
            }
            let mut block = [0; BLOCK];
            self.read(&mut block)?;
            self.body -= BLOCK as u64;
            if let Some(pieces) = map.take(&block, most)? {
                return Ok(Sparse { pieces, size: records.sparse_size.unwrap_or(0) });
            }
        }
    }
}

impl<R: Read + Seek> Archive<'_, BufReader<R>> {
    /// Leaves the present entry's body unread; where it starts in the file.
    pub fn pass_body(&mut self) -> Result<u64> {
        let start = self.input.stream_position()?;
        // What is beyond the file's end is for the caller to see: sizes are.
        let length = self.body.checked_add(std::mem::take(&mut self.padding));
        let length = length.and_then(|length| i64::try_from(length).ok());
        let length = length.ok_or_else(|| malformed(format!("a size of {} bytes", self.body)))?;
        self.body = 0;
        self.input.seek_relative(length)?;
        Ok(start)
    }
}

/// [`BufRead::fill_buf`], again when a signal came.
fn fill(input: &mut impl BufRead) -> Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
            // Asked again because the borrow checker does not see that the error's arm has let go.
            Ok(_) => return Ok(input.fill_buf()?),
        }
    }
}

fn read(input: &mut impl BufRead, into: &mut [u8]) -> Result<()> {
    input.read_exact(into).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => malformed("the archive ends inside of a header"),
        _ => broken(error),
    })
}

/// A pipe that broke is explained by who broke it.
fn broken(error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe => malformed("the data ends early"),
        _ => error.into(),
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
