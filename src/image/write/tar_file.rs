//! A tar file that is made entry by entry. A header is written after its body, since a layer's size and name may be
//! known only when it is there; so what goes to a pipe is made in a file without a name first.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Context, Result};
use crate::image::pack::header::{BLOCK, Header, Type};
use crate::image::scratch::{self, Unfinished};

pub struct TarFile {
    file: File,
    at: u64, // bytes
    /// None for stdout.
    named: Option<Unfinished>,
}

impl TarFile {
    /// At `path`, when it is whole; what is there stays until then.
    pub fn at(path: &Path) -> Result<Self> {
        let named = Unfinished::new(path)?;
        let file = named.file.try_clone().context(|| format!("write {}", path.display()))?;
        Ok(Self { file, at: 0, named: Some(named) })
    }

    pub fn for_stdout() -> Result<Self> {
        Ok(Self { file: scratch::unnamed(&scratch::directory())?, at: 0, named: None })
    }

    pub fn directory(&mut self, path: &str) -> Result<()> {
        self.put(&Header::new(Type::Directory, path.as_bytes()).block()).context(|| "write to the archive")
    }

    pub fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let mut body = self.body();
        body.write_all(content).context(|| format!("write {path} to the archive"))?;
        body.finish(path)
    }

    /// A file whose name and size are told at its end; one that is dropped before leaves no trace.
    pub fn body(&mut self) -> Body<'_> {
        let start = self.at + BLOCK as u64;
        Body { tar: self, start, size: 0 }
    }

    pub fn finish(mut self) -> Result<()> {
        self.put(&[0; 2 * BLOCK]).context(|| "write the archive's end")?;
        // What an entry that was given up has left behind.
        self.file.set_len(self.at).context(|| "cut the archive to its length")?;
        let Some(named) = self.named else {
            self.file.seek(SeekFrom::Start(0)).context(|| "read the archive")?;
            io::copy(&mut self.file, &mut io::stdout()).context(|| "write to stdout")?;
            return Ok(());
        };
        named.finish()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// What is in a file of the archive.
pub struct Body<'t> {
    tar: &'t mut TarFile,
    start: u64, // bytes
    size: u64,  // bytes
}

impl Body<'_> {
    /// The path has at most 100 bytes.
    pub fn finish(self, path: &str) -> Result<()> {
        let Self { tar, start, size } = self;
        let header = Header { size, ..Header::new(Type::File, path.as_bytes()) };
        let rest = size.wrapping_neg() % BLOCK as u64;
        let done = tar.put(&header.block()).and_then(|()| {
            tar.at = start + size;
            tar.put(&[0; BLOCK][..rest as usize])
        });
        done.context(|| format!("write {path} to the archive"))
    }
}

impl Write for Body<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.tar.file.write_at(bytes, self.start + self.size)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
