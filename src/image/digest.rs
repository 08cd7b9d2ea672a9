//! `sha256:<64 hexadecimal digits>`: what names a blob, and how a stream is held to it.
//!
//! A digest becomes a file's name and part of a URL, so that nothing but what the two registered algorithms make
//! gets to be one: <https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests>

use std::fmt::{self, Write};
use std::io::{self, Read};

use sha2::{Digest as _, Sha256, Sha512};

use crate::error::{Error, Kind, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// In lower case.
    hex: String,
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl Digest {
    /// Or the reason why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let (name, hex) = text.split_once(':').unwrap_or(("", text));
        let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name);
        match algorithm {
            Some(algorithm) if hex.len() == algorithm.hex_digits() && hex.bytes().all(lower_hex) => {
                Ok(Self { algorithm, hex: hex.to_owned() })
            }
            _ => Err(format!(
                "must be sha256: and 64 hexadecimal digits in lower case, or sha512: and 128, not {:?}",
                brief(text)
            )),
        }
    }

    /// The SHA-256 of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The same algorithm's digest of other bytes.
    pub fn like(&self, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Whether bytes in memory are these; `what` says where they come from.
    pub fn verify(&self, bytes: &[u8], what: &str) -> Result<()> {
        self.expect(self.like(bytes), what)
    }

    fn expect(&self, found: Self, what: &str) -> Result<()> {
        if found == *self {
            return Ok(());
        }
        Err(Error::of_kind(Kind::Integrity, format!("{what}: the digest is {found}, not {self}")))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest { algorithm: Algorithm::Sha256, hex: hex(&hasher.finalize()) },
            Self::Sha512(hasher) => Digest { algorithm: Algorithm::Sha512, hex: hex(&hasher.finalize()) },
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A stream that ends only if it was exactly what a descriptor says: no more than `size` bytes are read, fewer are
/// an error, and so is another digest. Until the end has been read nothing is known.
pub struct Verified<R> {
    inner: R,
    what: String,
    digest: Digest,
    /// None once it has been checked.
    hasher: Option<Hasher>,
    left: u64, // bytes
}

impl<R: Read> Verified<R> {
    pub fn new(inner: R, digest: &Digest, size: u64, what: String) -> Self {
        let hasher = Some(Hasher::new(digest.algorithm));
        Self { inner, what, digest: digest.clone(), hasher, left: size }
    }

    /// The stream that nobody has read from yet, for who holds it to size and digest himself.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            if self.left == 0
                && let Some(hasher) = self.hasher.take()
            {
                self.digest.expect(hasher.finish(), &self.what).map_err(io::Error::other)?;
            }
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 {
            let message = format!("{}: it ends {} bytes too early", self.what, self.left);
            return Err(io::Error::other(Error::of_kind(Kind::Integrity, message)));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// What somebody sent, in an error.
pub fn brief(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn only_what_an_algorithm_makes_is_a_digest() {
        let long = format!("sha256:{}", "a".repeat(65));
        let short_512 = format!("sha512:{}", "a".repeat(64));
        for text in [
            "",
            "sha256:",
            "sha256:../../../../../../../../../../../../../../../../../../../../../../../../etc/passwd",
            "../sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85\0",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &long,
            &short_512,
        ] {
            assert!(Digest::parse(text).is_err(), "{text}");
        }
        assert_eq!(Digest::parse(EMPTY).unwrap().to_string(), EMPTY);
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        let sha512 = format!("sha512:{}", "0".repeat(128));
        assert_eq!(Digest::parse(&sha512).unwrap().like(b"").hex()[..16], *"cf83e1357eefb8bd");
    }

    fn verified(bytes: &[u8], of: &[u8], size: u64) -> Result<Vec<u8>> {
        let mut found = Vec::new();
        Verified::new(bytes, &Digest::of(of), size, "blob x".into()).read_to_end(&mut found)?;
        Ok(found)
    }

    #[test]
    fn a_verified_stream_ends_only_if_it_is_the_right_one() {
        assert_eq!(verified(b"layer", b"layer", 5).unwrap(), b"layer");
        // No more is read than the descriptor says, so that an endless stream ends.
        assert_eq!(verified(b"layerlayerlayer", b"layer", 5).unwrap(), b"layer");
        let error = verified(b"lay", b"layer", 5).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (Kind::Integrity, "blob x: it ends 2 bytes too early".into())
        );
        let error = verified(b"lAyer", b"layer", 5).unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity);
        assert!(error.to_string().starts_with("blob x: the digest is sha256:"), "{error}");
        assert!(error.to_string().ends_with(&format!("not {}", Digest::of(b"layer"))), "{error}");
        assert_eq!(verified(b"", b"x", 0).unwrap_err().kind(), Kind::Integrity);
    }
}
