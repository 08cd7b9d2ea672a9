//! Sparse files: which parts of a file an archive holds. Old GNU headers, and the formats 0.0, 0.1 and 1.0 in PAX.
//!
//! <https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html>

use super::field::number;
use super::pax::decimal;
use super::tar::{BLOCK, Block};
use super::{limit, malformed};
use crate::error::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub length: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Sparse {
    pub pieces: Vec<Piece>,
    /// Of the whole file, in bytes.
    pub size: u64,
}

impl Sparse {
    /// The pieces are in order, within the file, and make up the body of `stored` bytes.
    pub fn check(&self, stored: u64) -> Result<()> {
        let mut end = 0;
        let mut bytes = 0;
        for Piece { offset, length } in &self.pieces {
            let next = offset.checked_add(*length).filter(|&next| *offset >= end && next <= self.size);
            end = next.ok_or_else(|| malformed("a sparse map whose pieces overlap or exceed the file"))?;
            bytes += length;
        }
        if bytes != stored || self.size > i64::MAX as u64 {
            return Err(malformed(format!("a sparse map of {bytes} bytes for a body of {stored}")));
        }
        Ok(())
    }
}

const OFFSETS: [usize; 2] = [0, 12];

/// Four pieces are in the header, 21 in each block that follows it.
pub fn old_gnu(header: &Block, mut next: impl FnMut() -> Result<Block>, most: u64) -> Result<Sparse> {
    if header[257..265] != *b"ustar  \0" {
        return Err(malformed("a sparse file without a GNU header"));
    }
    let size = |field: &[u8]| {
        let value = number(field, "sparse map")?;
        u64::try_from(value).map_err(|_| malformed(format!("{value} in a sparse map")))
    };
    let mut sparse = Sparse { pieces: Vec::new(), size: size(&header[483..495])? };
    let mut table = header[386..482].to_vec();
    let mut more = header[482];
    let mut bytes = 0;
    loop {
        for pair in table.chunks_exact(24) {
            if pair[0] == 0 {
                break;
            }
            let [offset, length] = OFFSETS.map(|at| size(&pair[at..at + 12]));
            sparse.pieces.push(Piece { offset: offset?, length: length? });
        }
        if more == 0 {
            return Ok(sparse);
        }
        bytes += BLOCK as u64;
        too_long(bytes, most)?;
        let block = next()?;
        table = block[..504].to_vec();
        more = block[504];
    }
}

fn too_long(bytes: u64, most: u64) -> Result<()> {
    match bytes > most {
        true => Err(limit("pax", format!("a sparse map of more than {most} bytes"))),
        false => Ok(()),
    }
}

/// Format 1.0: lines with a number each, how many pieces first, filled up to a whole block.
#[derive(Default)]
pub struct MapText {
    bytes: u64,
    line: Vec<u8>,
    count: Option<usize>,
    numbers: Vec<u64>,
}

impl MapText {
    /// The pieces, once the last block is in.
    pub fn take(&mut self, block: &Block, most: u64) -> Result<Option<Vec<Piece>>> {
        self.bytes += BLOCK as u64;
        too_long(self.bytes, most)?;
        let wrong = || malformed("a sparse map that does not read");
        for &byte in block {
            if self.is_whole() {
                break;
            }
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let number = decimal(&self.line).ok_or_else(wrong)?;
            self.line.clear();
            match self.count {
                None => self.count = Some(usize::try_from(number).map_err(|_| wrong())?),
                Some(_) => self.numbers.push(number),
            }
        }
        let pieces = self.numbers.chunks_exact(2).map(|pair| Piece { offset: pair[0], length: pair[1] });
        Ok(self.is_whole().then(|| pieces.collect()))
    }

    fn is_whole(&self) -> bool {
        self.count.is_some_and(|count| count.checked_mul(2) == Some(self.numbers.len()))
    }
}
