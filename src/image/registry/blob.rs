//! A blob as a stream that does not break off: a cut connection is taken up again where it ended, and the whole is
//! held to the descriptor's size and digest.

use std::io::{self, Read};

use ureq::BodyReader;
use ureq::http::header::{CONTENT_RANGE, RANGE};
use ureq::http::{Method, StatusCode};

use super::http::{Request, refusal};
use super::manifests::{length, text};
use super::retry::{Backoff, Failure};
use super::{Client, Endpoint};
use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::{Digest, Verified};
use crate::image::manifest::Descriptor;
use crate::image::reference::Named;

/// After so much the next failure is a new one, and not a registry that gives a byte at a time.
const PROGRESS: u64 = 1 << 20; // bytes

pub struct Blob<'a> {
    client: &'a Client,
    endpoint: Endpoint,
    digest: Digest,
    size: u64, // bytes
    at: u64,   // bytes
    body: Option<BodyReader<'static>>,
    backoff: Backoff,
    /// Where the last failure was.
    failed_at: u64, // bytes
}

impl Client {
    /// A blob's bytes. They are those of the digest only if the stream comes to its end.
    pub fn blob(&self, named: &Named, descriptor: &Descriptor) -> Result<Verified<Blob<'_>>> {
        let what = format!("blob {} of {}", descriptor.digest, named.name());
        let blob = self.anywhere(named, |endpoint| {
            let mut blob = Blob {
                client: self,
                endpoint: endpoint.clone(),
                digest: descriptor.digest.clone(),
                size: descriptor.size,
                at: 0,
                body: None,
                backoff: Backoff::default(),
                failed_at: 0,
            };
            blob.open().context(|| what.clone())?;
            Ok(blob)
        })?;
        Ok(Verified::new(blob, &descriptor.digest, descriptor.size, what))
    }
}

impl Blob<'_> {
    /// Asks for what is left.
    fn open(&mut self) -> Result<()> {
        let uri = self.endpoint.uri(&format!("blobs/{}", self.digest))?;
        let mut request = Request::new(Method::GET, uri.clone());
        if self.at > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.at));
        }
        let response = self.client.call(&self.endpoint, &self.endpoint.pull(), request)?;
        let (status, length, range) = (response.status(), length(&response), text(&response, &CONTENT_RANGE));
        let (size, at) = (self.size, self.at);
        let malformed = |why: String| Err(Error::of_kind(Kind::Integrity, why));
        let skip = match status {
            StatusCode::OK => {
                if let Some(length) = length.filter(|length| *length != size) {
                    return malformed(format!("it has {length} bytes, not {size}"));
                }
                // The registry does not know of ranges.
                at
            }
            StatusCode::PARTIAL_CONTENT if at > 0 => {
                let range = range.unwrap_or_default();
                let expected = format!("bytes {at}-");
                let total = range.rsplit('/').next().unwrap_or_default();
                if !range.starts_with(&expected) || total != "*" && total != size.to_string() {
                    return malformed(format!(
                        "asked for bytes {at} to {size}, the registry sends {range:?}"
                    ));
                }
                0
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return malformed(format!("it ends before byte {at} of {size}"));
            }
            _ => return Err(refusal(&Request::new(Method::GET, uri), response)),
        };
        let mut body = response.into_body().into_reader();
        io::copy(&mut (&mut body).take(skip), &mut io::sink())?;
        self.body = Some(body);
        Ok(())
    }

    fn resume(&mut self, error: Error) -> Result<()> {
        self.body = None;
        if self.at >= self.failed_at + PROGRESS {
            self.backoff = Backoff::default();
        }
        self.failed_at = self.at;
        let error =
            error.because(format!("receive byte {} of {} from {}", self.at, self.size, self.endpoint.base));
        self.backoff.wait(Failure::Passing(error, None), self.client.http.notify)
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.at == self.size {
            return Ok(0);
        }
        loop {
            let Some(body) = &mut self.body else {
                self.open().map_err(io::Error::other)?;
                continue;
            };
            let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
            let most = buffer.len().min(left);
            let error = match body.read(&mut buffer[..most]) {
                Ok(0) => Error::new("it breaks off"),
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error.into(),
            };
            self.resume(error).map_err(io::Error::other)?;
        }
    }
}
