//! From a tar archive to a layer's blob: `--compression=gzip|zstd|none[:LEVEL]`. The digest of the plain bytes, the
//! diff_id, is taken on the way; the one of the blob is for who stores it.

use std::io::{self, Write};
use std::str::FromStr;

use flate2::write::GzEncoder;

use crate::error::{Context, Result};
use crate::image::compression::Compression;
use crate::image::digest::{Algorithm, Digest, Hasher};

/// How a layer that is made here is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    pub compression: Compression,
    level: i32,
}

impl Method {
    pub const GZIP: Self = Self { compression: Compression::Gzip, level: 6 };
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, level) = text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level)));
        let (compression, usual, most) = match name {
            "none" => (Compression::None, 0, 0),
            "gzip" => (Compression::Gzip, 6, 9),
            "zstd" => (Compression::Zstd, 3, 22),
            _ => return Err("must be gzip, zstd or none".to_owned()),
        };
        let level = match level.map(str::parse) {
            None => usual,
            Some(Ok(level)) if (1..=most).contains(&level) => level,
            Some(_) if most == 0 => return Err("none has no level".to_owned()),
            Some(_) => return Err(format!("the level of {name} must be 1 to {most}")),
        };
        Ok(Self { compression, level })
    }
}

/// Takes the archive, passes the blob on.
pub struct Compressor<W: Write> {
    hasher: Hasher,
    encoder: Encoder<W>,
}

enum Encoder<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    pub fn new(out: W, method: Method) -> Result<Self> {
        let encoder = match method.compression {
            Compression::None => Encoder::None(out),
            // The header has no name and no time: the same archive gives the same blob.
            Compression::Gzip => {
                Encoder::Gzip(GzEncoder::new(out, flate2::Compression::new(method.level.unsigned_abs())))
            }
            Compression::Zstd => {
                let encoder = zstd::stream::write::Encoder::new(out, method.level).and_then(|mut encoder| {
                    encoder.include_checksum(true)?;
                    Ok(encoder)
                });
                Encoder::Zstd(encoder.context(|| "start zstd")?)
            }
        };
        Ok(Self { hasher: Hasher::new(Algorithm::Sha256), encoder })
    }

    /// The diff_id, and what the blob was passed on to.
    pub fn finish(self) -> io::Result<(Digest, W)> {
        let out = match self.encoder {
            Encoder::None(out) => out,
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        Ok((self.hasher.finish(), out))
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.encoder {
            Encoder::None(out) => out.write(bytes)?,
            Encoder::Gzip(encoder) => encoder.write(bytes)?,
            Encoder::Zstd(encoder) => encoder.write(bytes)?,
        };
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    /// Nothing: a flush in the midst of a stream would cost bytes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::image::unpack::decoder::Decoder;

    #[test]
    fn a_method_has_a_name_and_perhaps_a_level() {
        for (text, level) in
            [("gzip", Some(6)), ("gzip:9", Some(9)), ("zstd:22", Some(22)), ("none", Some(0))]
        {
            assert_eq!(Method::from_str(text).map(|method| method.level).ok(), level, "{text}");
        }
        for text in ["", "xz", "gzip:", "gzip:0", "gzip:10", "zstd:23", "none:1", "gzip:-1"] {
            assert!(Method::from_str(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_blob_holds_what_went_in_and_its_diff_id() {
        let plain: Vec<u8> = (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for text in ["none", "gzip:1", "zstd:19"] {
            let method = Method::from_str(text).unwrap();
            let mut compressor = Compressor::new(Vec::new(), method).unwrap();
            compressor.write_all(&plain).unwrap();
            let (diff_id, blob) = compressor.finish().unwrap();
            assert_eq!(diff_id, Digest::of(&plain));
            assert_eq!(Compression::of_blob(&blob), method.compression);
            let mut read = Vec::new();
            Decoder::new(blob.as_slice(), method.compression).unwrap().read_to_end(&mut read).unwrap();
            assert!(read == plain, "{text}");
        }
    }
}
