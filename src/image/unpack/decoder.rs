//! The plain bytes of a stream that may be compressed.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use flate2::bufread::MultiGzDecoder;

use super::LayerLimits;
use super::pipe::check_plain_size;
use crate::error::{Context, Error, Kind, Result};
use crate::image::compression::Compression;

/// As zstd's own program has it without --long, 128 MiB; the format allows for 3.75 TiB.
const LARGEST_WINDOW: u32 = 27;

pub enum Decoder<R: BufRead> {
    None(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    pub fn new(from: R, compression: Compression) -> Result<Self> {
        match compression {
            Compression::None => Ok(Self::None(from)),
            Compression::Gzip => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(from)))),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(from).and_then(|mut decoder| {
                    decoder.window_log_max(LARGEST_WINDOW)?;
                    Ok(decoder)
                });
                Ok(Self::Zstd(Box::new(decoder.context(|| "start zstd")?)))
            }
        }
    }

    /// What is left of the stream.
    pub fn into_inner(self) -> R {
        match self {
            Self::None(from) => from,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }

    pub fn get_ref(&self) -> &R {
        match self {
            Self::None(from) => from,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(from) => from.read(into),
            Self::Gzip(decoder) => decoder.read(into),
            Self::Zstd(decoder) => decoder.read(into),
        }
    }
}

/// Gives `take` the plain bytes of a layer's blob of this size, which may be a bomb: whether they are those of the
/// diff_id is known at their end only, and who made the one has made the other.
pub fn inflate(
    blob: impl Read,
    size: u64,
    compression: Compression,
    limits: &LayerLimits,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut decoder = Decoder::new(BufReader::with_capacity(256 << 10, blob), compression)?;
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let n = match decoder.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.get_ref().is_none_or(|inner| !inner.is::<Error>()) => {
                return Err(Error::of_kind(Kind::Integrity, format!("read its data: {error}")));
            }
            n => n?,
        };
        if n == 0 {
            break;
        }
        total += n as u64;
        check_plain_size(total, size, limits)?;
        take(&buffer[..n])?;
    }
    // Bytes behind the compressed data belong to the digest, too.
    io::copy(&mut decoder.into_inner(), &mut io::sink())?;
    Ok(())
}
