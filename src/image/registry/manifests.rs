//! Manifests and lists of tags.

use std::collections::HashSet;

use serde_json::Value;
use ureq::http::Method;
use ureq::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LINK};
use ureq::http::{HeaderName, StatusCode};

use super::http::{Content, Request, Response, read_all, refusal};
use super::url::{Origin, resolve};
use super::{Client, Endpoint};
use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::Digest;
use crate::image::limits::DocumentLimits;
use crate::image::manifest::{
    self, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Found, Manifest, OCI_INDEX, OCI_MANIFEST, Received,
};
use crate::image::platform::Platform;
use crate::image::reference::Named;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const MOST_OF_PAGE: u64 = 4 << 20; // bytes
const MOST_TAGS: usize = 1_000_000;
/// A thousand are asked for. With fewer than these on its pages a list would take for ever to reach its end.
const LEAST_ON_PAGE: usize = 10;
const MOST_SMALL_PAGES: usize = 100;

impl Client {
    /// The manifest or index of a tag or a digest. What a tag names is the registry's word.
    pub fn manifest(&self, named: &Named, limits: &DocumentLimits) -> Result<Received> {
        self.anywhere(named, |endpoint| {
            let request = self.manifest_request(endpoint, named, Method::GET)?;
            let response = self.call(endpoint, &endpoint.pull(), request)?;
            let response = found(response, endpoint, named)?;
            let media_type = text(&response, &CONTENT_TYPE);
            let promised = promised_digest(&response, named)?;
            let name = format!("manifest {named}");
            let bytes = read_all(response, limits.manifest, &name)?;
            let digest = match named.digest.clone().or(promised) {
                Some(digest) => {
                    digest.verify(&bytes, &name)?;
                    digest
                }
                None => Digest::of(&bytes),
            };
            Ok(Received { digest, media_type, bytes })
        })
    }

    /// What a tag names, without what it holds; None if it does not exist.
    pub fn manifest_digest(&self, named: &Named, limits: &DocumentLimits) -> Result<Option<Digest>> {
        let missing = |error: &Error| error.kind() == Kind::NotFound;
        let head = self.anywhere(named, |endpoint| {
            let request = self.manifest_request(endpoint, named, Method::HEAD)?;
            let response = self.call(endpoint, &endpoint.pull(), request)?;
            promised_digest(&found(response, endpoint, named)?, named)
        });
        match head {
            Ok(Some(digest)) => Ok(Some(digest)),
            // An old registry does not say it.
            Ok(None) => self.manifest(named, limits).map(|received| Some(received.digest)),
            Err(error) if missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The image for a platform; its layers are [`Client::blob`]s.
    pub fn image(&self, named: &Named, platform: &Platform, limits: &DocumentLimits) -> Result<Found> {
        self.resolve(named, self.manifest(named, limits)?, platform, limits)
    }

    /// The same from the manifest or index that the name stands for.
    pub fn resolve(
        &self,
        named: &Named,
        top: Received,
        platform: &Platform,
        limits: &DocumentLimits,
    ) -> Result<Found> {
        manifest::resolve(top, platform, limits, |descriptor| {
            let named = Named { digest: Some(descriptor.digest.clone()), ..named.clone() };
            let received = self.manifest(&named, limits)?;
            check_size(descriptor, received.bytes.len())?;
            Ok(received.bytes)
        })
        .context(|| named.to_string())
    }

    /// The config of an image, verified.
    pub fn config(&self, named: &Named, manifest: &Manifest, limits: &DocumentLimits) -> Result<Vec<u8>> {
        let descriptor = &manifest.config;
        if let Some(data) = &descriptor.data {
            return Ok(data.clone());
        }
        if descriptor.size > limits.config {
            let (size, most) = (descriptor.size, limits.config);
            let message = format!("config {}: its {size} bytes are more than {most}", descriptor.digest);
            return Err(Error::of_kind(Kind::Limit, message));
        }
        let mut bytes = Vec::new();
        let read = std::io::Read::read_to_end(&mut self.blob(named, descriptor)?, &mut bytes);
        read.context(|| format!("config of {named}"))?;
        Ok(bytes)
    }

    /// All tags of a repository, as the registry sorts them.
    pub fn tags(&self, named: &Named) -> Result<Vec<String>> {
        let endpoint = self.endpoint(named)?;
        let (mut tags, mut asked) = (Vec::<String>::new(), HashSet::new());
        let mut next = Some(endpoint.uri("tags/list?n=1000")?);
        while let Some(uri) = next {
            if asked.len() > MOST_SMALL_PAGES + tags.len() / LEAST_ON_PAGE {
                let (pages, tags) = (asked.len(), tags.len());
                let message =
                    format!("tags of {}: {tags} came in {pages} pages, and it goes on", named.name());
                return Err(Error::of_kind(Kind::Limit, message));
            }
            if !asked.insert(uri.clone()) {
                return Err(malformed(
                    &endpoint,
                    named,
                    "the list of tags goes on with a page that was there before",
                ));
            }
            let request = Request::new(Method::GET, uri.clone());
            let response = found(self.call(&endpoint, &endpoint.pull(), request)?, &endpoint, named)?;
            next = text(&response, &LINK)
                .and_then(|link| next_page(&link))
                .map(|link| resolve(&uri, &link))
                .transpose()?;
            if let Some(next) = &next
                && Origin::of(next)? != endpoint.origin
            {
                return Err(malformed(&endpoint, named, "the list of tags goes on at another host"));
            }
            let page = read_all(response, MOST_OF_PAGE, "the list of tags")?;
            let page: Value = serde_json::from_slice(&page)
                .map_err(|e| malformed(&endpoint, named, &format!("the list of tags is not JSON: {e}")))?;
            let page = page["tags"].as_array().map(Vec::as_slice).unwrap_or_default();
            let texts = page.iter().map(|tag| tag.as_str().map(str::to_owned));
            let texts: Option<Vec<_>> = texts.collect();
            tags.extend(texts.ok_or_else(|| malformed(&endpoint, named, "a tag is no text"))?);
            if tags.len() > MOST_TAGS {
                let message = format!("tags of {}: there are more than {MOST_TAGS}", named.name());
                return Err(Error::of_kind(Kind::Limit, message));
            }
            if page.is_empty() {
                break;
            }
        }
        Ok(tags)
    }

    /// Puts a manifest or an index under a tag or its digest. Its blobs, or manifests, are there before.
    pub fn push_manifest(&self, named: &Named, media_type: &str, bytes: &[u8]) -> Result<Digest> {
        let endpoint = self.endpoint(named)?;
        let digest = match &named.digest {
            Some(digest) => {
                digest.verify(bytes, &format!("manifest {named}"))?;
                digest.clone()
            }
            None => Digest::of(bytes),
        };
        let uri = endpoint
            .uri(&format!("manifests/{}", named.tag.clone().unwrap_or_else(|| digest.to_string())))?;
        let mut request = Request::new(Method::PUT, uri.clone()).header(CONTENT_TYPE, media_type);
        request.content = Content::Bytes(bytes);
        let response = self.call(&endpoint, &endpoint.push(), request)?;
        if response.status() != StatusCode::CREATED {
            return Err(refusal(&Request::new(Method::PUT, uri), response).because(format!("push {named}")));
        }
        Ok(digest)
    }

    fn manifest_request(
        &self,
        endpoint: &Endpoint,
        named: &Named,
        method: Method,
    ) -> Result<Request<'static>> {
        let uri = endpoint.uri(&format!("manifests/{}", named.tag_or_digest()))?;
        let kinds = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
        Ok(Request::new(method, uri).header(ACCEPT, kinds.join(", ")))
    }
}

/// A response with what was asked for.
fn found(response: Response, endpoint: &Endpoint, named: &Named) -> Result<Response> {
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::NOT_FOUND => {
            let message = format!("{named}: {} does not have it", endpoint.base);
            Err(Error::of_kind(Kind::NotFound, message))
        }
        _ => Err(refusal(&Request::new(Method::GET, endpoint.uri("")?), response).because(named.to_string())),
    }
}

fn malformed(endpoint: &Endpoint, named: &Named, why: &str) -> Error {
    Error::of_kind(Kind::Integrity, format!("tags of {}, from {}: {why}", named.name(), endpoint.base))
}

/// What the registry calls the digest of its answer; one that is none is an error.
fn promised_digest(response: &Response, named: &Named) -> Result<Option<Digest>> {
    let promised = text(response, &CONTENT_DIGEST).map(|text| Digest::parse(&text));
    let promised = promised.transpose().map_err(|why| {
        Error::of_kind(Kind::Integrity, format!("manifest {named}: its Docker-Content-Digest {why}"))
    })?;
    match (&named.digest, promised) {
        (Some(wanted), Some(found)) if found.algorithm() == wanted.algorithm() && found != *wanted => Err(
            Error::of_kind(Kind::Integrity, format!("manifest {named}: the registry answers with {found}")),
        ),
        (_, promised) => Ok(promised),
    }
}

fn check_size(descriptor: &Descriptor, length: usize) -> Result<()> {
    if descriptor.size == length as u64 {
        return Ok(());
    }
    let message = format!("manifest {}: it has {length} bytes, not {}", descriptor.digest, descriptor.size);
    Err(Error::of_kind(Kind::Integrity, message))
}

pub(super) fn text(response: &Response, name: &HeaderName) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

/// `Content-Length` of what is, or with HEAD would be, the body.
pub(super) fn length(response: &Response) -> Option<u64> {
    text(response, &CONTENT_LENGTH)?.parse().ok()
}

/// `<uri>; rel="next"`. RFC 8288.
fn next_page(link: &str) -> Option<String> {
    let (uri, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = |parameter: &str| {
        let (key, value) = parameter.split_once('=').unwrap_or_default();
        key.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
    };
    parameters.split(';').any(is_next).then(|| uri.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_in_the_link() {
        for (link, next) in [
            ("</v2/a/tags/list?n=1&last=x>; rel=\"next\"", Some("/v2/a/tags/list?n=1&last=x")),
            ("<x>;title=\"y\"; REL=next", Some("x")),
            ("<x>; rel=\"prev\"", None),
            ("x; rel=\"next\"", None),
            ("", None),
        ] {
            assert_eq!(next_page(link).as_deref(), next, "{link}");
        }
    }
}
