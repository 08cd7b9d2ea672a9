//! A tar file of an image: its entries are found once, and then read in any order where they are. Nothing of it is
//! unpacked; one that is compressed as a whole is inflated to a file without a name first.
//!
//! Archives are hostile as layers are, and read by the same code. What could be read in two ways, a name that is there
//! twice, is refused.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Context, Error, Kind, Result};
use crate::image::compression::Compression;
use crate::image::scratch;
use crate::image::section::Section;
use crate::image::unpack::LayerLimits;
use crate::image::unpack::decoder::Decoder;
use crate::image::unpack::link::components;
use crate::image::unpack::pipe::check_plain_size;
use crate::image::unpack::tar::{self, Type};

/// An image has a few for each layer.
const MOST_ENTRIES: u64 = 100_000;
/// As many as the kernel follows.
const MOST_LINKS: usize = 40;

pub struct Archive {
    /// What it is called in errors.
    name: String,
    file: Arc<File>,
    entries: HashMap<Vec<u8>, Slot>,
}

enum Slot {
    File {
        start: u64, // bytes
        size: u64,  // bytes
    },
    /// To another name in the archive.
    Link(Vec<u8>),
    Directory,
    /// A device or a FIFO, which nothing in an image is.
    Other,
}

impl Archive {
    /// `tmp` is where one that is compressed goes.
    pub fn open(path: &Path, tmp: &Path) -> Result<Self> {
        let what = || format!("open archive {}", path.display());
        let file = File::open(path).map_err(|error| {
            let missing = error.kind() == io::ErrorKind::NotFound;
            Error::from(error).with_kind(if missing { Kind::NotFound } else { Kind::Other })
        });
        let file = file.context(what)?;
        let name = format!("archive {}", path.display());
        if !file.metadata().context(what)?.is_file() {
            return Self::read(file, name, tmp);
        }
        let mut start = [0; 4];
        let read = file.read_at(&mut start, 0).context(what)?;
        match Compression::of_blob(&start[..read]) {
            Compression::None => Self::index(file, name),
            _ => Self::read(file, name, tmp),
        }
    }

    /// What comes from a pipe.
    pub fn read(stream: impl Read, name: String, tmp: &Path) -> Result<Self> {
        let file = spool(stream, tmp).context(|| format!("read {name}"))?;
        Self::index(file, name)
    }

    fn index(file: File, name: String) -> Result<Self> {
        let entries = index(&file).context(|| name.clone())?;
        Ok(Self { name, file: Arc::new(file), entries })
    }

    pub fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path.as_bytes())
    }

    /// What it is called in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes of a file; links are followed within the archive.
    pub fn find(&self, path: &str) -> Result<Section> {
        let malformed = |why: &str| Error::of_kind(Kind::Integrity, format!("{}: {path:?} {why}", self.name));
        let names = components(path.as_bytes()).ok_or_else(|| malformed("leads out of the archive"))?;
        let mut name = names.join(&b'/');
        for _ in 0..MOST_LINKS {
            match self.entries.get(&name) {
                Some(Slot::File { start, size }) => {
                    return Ok(Section::new(self.file.clone(), *start, *size));
                }
                Some(Slot::Link(target)) => name.clone_from(target),
                Some(Slot::Directory | Slot::Other) => return Err(malformed("is no regular file")),
                None => {
                    return Err(Error::of_kind(
                        Kind::NotFound,
                        format!("{}: there is no {path:?}", self.name),
                    ));
                }
            }
        }
        Err(malformed("is a link that leads in a circle"))
    }
}

fn index(file: &File) -> Result<HashMap<Vec<u8>, Slot>> {
    let limits = LayerLimits { entries: MOST_ENTRIES, ..LayerLimits::default() };
    let length = file.metadata()?.len();
    let mut reader = file;
    reader.rewind()?;
    let mut archive = tar::Archive::new(BufReader::new(reader), &limits);
    let (mut entries, mut bytes, mut count) = (HashMap::new(), 0, 0);
    while let Some(entry) = archive.next_entry()? {
        let malformed = |why: &str| {
            let name = String::from_utf8_lossy(&entry.path);
            Error::of_kind(Kind::Integrity, format!("entry {name:?} {why}"))
        };
        let names = components(&entry.path).ok_or_else(|| malformed("leads out of the archive"))?;
        count += 1;
        bytes += entry.path.len() + entry.link.len();
        if count > limits.entries || bytes > limits.memory {
            return Err(Error::of_kind(Kind::Limit, format!("more than {} entries", limits.entries)));
        }
        let start = archive.pass_body()?;
        if start.checked_add(entry.stored).is_none_or(|end| end > length) {
            return Err(malformed("is cut off: the archive ends before it"));
        }
        let slot = match entry.kind {
            Type::File if entry.sparse.is_some() => return Err(malformed("is stored with holes")),
            Type::File => Slot::File { start, size: entry.stored },
            Type::Directory => Slot::Directory,
            Type::HardLink => match components(&entry.link) {
                Some(target) => Slot::Link(target.join(&b'/')),
                None => return Err(malformed("is a link that leads out of the archive")),
            },
            Type::Symlink => match beside(&names, &entry.link) {
                Some(target) => Slot::Link(target),
                None => return Err(malformed("is a link that leads out of the archive")),
            },
            Type::Character | Type::Block | Type::Fifo => Slot::Other,
        };
        let both_directories = |old: &Slot| matches!((old, entry.kind), (Slot::Directory, Type::Directory));
        if entries.insert(names.join(&b'/'), slot).is_some_and(|old| !both_directories(&old)) {
            return Err(malformed("is there twice"));
        }
    }
    Ok(entries)
}

/// Where a symbolic link leads, if it stays in the archive.
fn beside(link: &[&[u8]], target: &[u8]) -> Option<Vec<u8>> {
    let mut names = link[..link.len().checked_sub(1)?].to_vec();
    if target.starts_with(b"/") {
        return None;
    }
    for name in target.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}

/// The plain bytes of a stream in a file without a name.
fn spool(stream: impl Read, tmp: &Path) -> Result<File> {
    let limits = LayerLimits::default();
    let mut stream = Counted { inner: BufReader::with_capacity(256 << 10, stream), position: 0 };
    let compression = Compression::of_blob(stream.fill_buf()?);
    let mut decoder = Decoder::new(stream, compression)?;
    let mut file = scratch::unnamed(tmp)?;
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let n = match decoder.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if compression != Compression::None => {
                return Err(Error::of_kind(Kind::Integrity, format!("the compressed data: {error}")));
            }
            n => n?,
        };
        if n == 0 {
            return Ok(file);
        }
        total += n as u64;
        check_plain_size(total, decoder.get_ref().position, &limits)?;
        file.write_all(&buffer[..n]).context(|| "write to a temporary file")?;
    }
}

/// Knows how much of it has been read.
struct Counted<R> {
    inner: R,
    position: u64, // bytes
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.position += n as u64;
        self.inner.consume(n);
    }
}
