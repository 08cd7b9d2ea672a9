//! The plain bytes of a stream that may be compressed.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Context, Result};
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
