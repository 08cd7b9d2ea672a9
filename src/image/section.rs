//! A part of a file, read by offset, so that many can read at once: a blob, alone in its file or inside an archive.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};

#[derive(Clone, Debug)]
pub struct Section {
    file: Arc<File>,
    start: u64, // bytes
    size: u64,  // bytes
}

impl Section {
    pub fn new(file: Arc<File>, start: u64, size: u64) -> Self {
        Self { file, start, size }
    }

    pub fn whole(file: File) -> Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), start: 0, size })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn reader(&self) -> Reader {
        Reader { section: self.clone(), at: 0 }
    }

    pub fn read(&self, most: u64) -> Result<Vec<u8>> {
        if self.size > most {
            return Err(Error::of_kind(Kind::Limit, format!("it is larger than {most} bytes")));
        }
        let mut bytes = vec![0; self.size as usize];
        self.file.read_exact_at(&mut bytes, self.start)?;
        Ok(bytes)
    }

    /// The file, and where in it the part starts.
    pub fn place(&self) -> (&File, u64) {
        (&self.file, self.start)
    }
}

pub struct Reader {
    section: Section,
    at: u64, // bytes
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Section { file, start, size } = &self.section;
        let most = buffer.len().min(usize::try_from(size - self.at).unwrap_or(usize::MAX));
        let read = file.read_at(&mut buffer[..most], start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
