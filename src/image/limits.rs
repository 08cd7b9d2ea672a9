//! `--limits k=v`: what an image may cost at most, the documents and each layer.

use std::io::Read;

use crate::error::{Error, Kind, Result};
use crate::image::digest::Verified;
use crate::image::manifest::Descriptor;
use crate::image::unpack::LayerLimits;

#[derive(Clone, Debug, Default)]
pub struct Limits {
    pub documents: DocumentLimits,
    pub unpack: LayerLimits,
}

/// Of manifests, indexes and configs.
#[derive(Clone, Copy, Debug)]
pub struct DocumentLimits {
    pub manifest: u64, // bytes
    pub config: u64,   // bytes
    pub layers: usize,
}

impl Default for DocumentLimits {
    fn default() -> Self {
        Self { manifest: 4 << 20, config: 8 << 20, layers: 1000 }
    }
}

impl DocumentLimits {
    /// For what was let in already.
    pub const NONE: Self = Self { manifest: u64::MAX, config: u64::MAX, layers: usize::MAX };

    /// A manifest, index or config, which its descriptor may hold itself.
    pub fn read<R: Read>(
        &self,
        descriptor: &Descriptor,
        blob: impl FnOnce() -> Result<Verified<R>>,
    ) -> Result<Vec<u8>> {
        if let Some(data) = &descriptor.data {
            return Ok(data.clone());
        }
        let most = self.manifest.max(self.config);
        if descriptor.size > most {
            let message = format!("blob {}: it is larger than {most} bytes", descriptor.digest);
            return Err(Error::of_kind(Kind::Limit, message));
        }
        let mut bytes = Vec::new();
        blob()?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// In the order of `--help`.
pub const KEYS: [&str; 11] = [
    "layers", "entries", "bytes", "ratio", "path", "depth", "metadata", "memory", "manifest", "config",
    "free",
];

impl Limits {
    pub fn new(settings: &[(String, u64)]) -> Result<Self> {
        let mut limits = Self::default();
        for (key, value) in settings {
            limits.set(key, *value)?;
        }
        Ok(limits)
    }

    fn set(&mut self, key: &str, value: u64) -> Result<()> {
        let (documents, unpack) = (&mut self.documents, &mut self.unpack);
        let size = usize::try_from(value).unwrap_or(usize::MAX);
        match key {
            "layers" => documents.layers = size,
            "manifest" => documents.manifest = value,
            "config" => documents.config = value,
            "entries" => unpack.entries = value,
            "bytes" => unpack.bytes = value,
            "ratio" => unpack.ratio = value,
            "path" => unpack.path = size,
            "depth" => unpack.depth = size,
            "metadata" => unpack.metadata = value,
            "memory" => unpack.memory = size,
            "free" if value <= 100 => unpack.free = value,
            "free" => return Err(Error::new(format!("limit free: it is per cent, not {value}"))),
            _ => {
                return Err(Error::new(format!("limit {key:?}: there is no such limit"))
                    .with_way_out(format!("There are: {}.", KEYS.join(", "))));
            }
        }
        Ok(())
    }
}

/// `KEY=N`, with k, m, g or t for binary thousands.
pub fn parse(text: &str) -> Result<(String, u64), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=N")?;
    let (digits, shift) = match value.char_indices().last() {
        Some((at, 'k' | 'K')) => (&value[..at], 10),
        Some((at, 'm' | 'M')) => (&value[..at], 20),
        Some((at, 'g' | 'G')) => (&value[..at], 30),
        Some((at, 't' | 'T')) => (&value[..at], 40),
        _ => (value, 0),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number = digits.parse::<u64>().ok().filter(|_| plain).and_then(|n| n.checked_mul(1 << shift));
    Ok((key.to_owned(), number.ok_or_else(|| format!("{value:?} is no whole number"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_key_and_a_number() {
        for (text, number) in [
            ("x=1", Some(1)),
            ("x=2k", Some(2048)),
            ("x=3G", Some(3 << 30)),
            ("x=-1", None),
            ("x=", None),
            ("x=k", None),
            ("x=1e3", None),
            ("x=+1", None),
            ("x=99999999999t", None),
            ("x", None),
        ] {
            assert_eq!(parse(text).ok(), number.map(|number| ("x".to_owned(), number)), "{text}");
        }
    }

    #[test]
    fn every_key_sets_something() {
        let before = format!("{:?}", Limits::default());
        for key in KEYS {
            let limits = Limits::new(&[(key.to_owned(), 7)]).unwrap();
            assert_ne!(format!("{limits:?}"), before, "{key}");
        }
        let error = Limits::new(&[("entry".to_owned(), 7)]).unwrap_err();
        assert_eq!(error.to_string(), "limit \"entry\": there is no such limit");
    }
}
