//! Uploads of blobs: what the registry has is not sent, what another of its repositories has is mounted from there,
//! and a big one that breaks off goes on where it ended.

use ureq::http::header::{CONTENT_TYPE, LOCATION, RANGE};
use ureq::http::{HeaderName, Method, StatusCode, Uri};

use super::http::{Content, Request, Response, refusal};
use super::manifests::text;
use super::retry::{Backoff, Failure};
use super::url::{encoded, resolve, with_query};
use super::{Client, Endpoint};
use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::Digest;
use crate::image::reference::Named;
use crate::image::section::Section;

/// Up to here one request does it all.
const SMALL: u64 = 4 << 20; // bytes

const CONTENT_RANGE: HeaderName = HeaderName::from_static("content-range");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Present,
    Mounted,
    Sent,
}

impl Client {
    /// Puts a blob into a repository. `mount_from` is another repository of this registry that may have it; the bytes
    /// are asked for only if they have to be sent.
    pub fn push_blob(
        &self,
        named: &Named,
        digest: &Digest,
        mount_from: Option<&Named>,
        open: impl FnOnce() -> Result<Section>,
    ) -> Result<Pushed> {
        let endpoint = self.endpoint(named)?;
        let what = || format!("push blob {digest} to {}", named.name());
        if self.has_blob(&endpoint, digest).context(what)? {
            return Ok(Pushed::Present);
        }
        let mount_from = mount_from.filter(|from| from.registry == named.registry);
        let mut backoff = Backoff::default();
        let Some(mut location) = self.begin(&endpoint, digest, mount_from).context(what)? else {
            return Ok(Pushed::Mounted);
        };
        let blob = open()?;
        loop {
            match self.upload(&endpoint, location, digest, &blob, &mut backoff) {
                Ok(()) => return Ok(Pushed::Sent),
                // With a session of its own: nobody knows what is left of this one.
                Err(failure) => backoff.wait(failure, self.http.notify).context(what)?,
            }
            let again = self.begin(&endpoint, digest, None).context(what)?;
            let Some(next) = again else { return Ok(Pushed::Mounted) };
            location = next;
        }
    }

    fn has_blob(&self, endpoint: &Endpoint, digest: &Digest) -> Result<bool> {
        let uri = endpoint.uri(&format!("blobs/{digest}"))?;
        let response = self.call(endpoint, &endpoint.push(), Request::new(Method::HEAD, uri.clone()))?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refusal(&Request::new(Method::HEAD, uri), response)),
        }
    }

    /// Opens a session and says where; None if the blob could be mounted.
    fn begin(&self, endpoint: &Endpoint, digest: &Digest, from: Option<&Named>) -> Result<Option<Uri>> {
        let (mut rest, mut scope) = ("blobs/uploads/".to_owned(), endpoint.push());
        if let Some(from) = from {
            rest.push_str(&format!(
                "?mount={}&from={}",
                encoded(&digest.to_string()),
                encoded(&from.repository)
            ));
            scope.push_str(&format!(" repository:{}:pull", from.repository));
        }
        let uri = endpoint.uri(&rest)?;
        let response = self.call(endpoint, &scope, Request::new(Method::POST, uri.clone()))?;
        match response.status() {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => location(&uri, &response).map(Some),
            _ => Err(refusal(&Request::new(Method::POST, uri), response)),
        }
    }

    fn upload(
        &self,
        endpoint: &Endpoint,
        mut session: Uri,
        digest: &Digest,
        blob: &Section,
        backoff: &mut Backoff,
    ) -> Result<(), Failure> {
        if blob.size() <= SMALL {
            return self.finish(endpoint, &session, digest, from(blob, 0));
        }
        let mut sent = 0;
        while sent < blob.size() {
            match self.send_rest(endpoint, &session, blob, sent) {
                Ok(next) => (session, sent) = (next, blob.size()),
                Err(failure) => {
                    backoff.wait(failure, self.http.notify)?;
                    let (next, received) = self.received(endpoint, &session)?;
                    if received > blob.size() || received < sent {
                        let message =
                            format!("the registry has {received} bytes, of {sent} that it said it had");
                        return Err(Failure::Passing(Error::new(message), None));
                    }
                    (session, sent) = (next, received);
                }
            }
        }
        self.finish(endpoint, &session, digest, Content::Bytes(b""))
    }

    /// All from byte `at` on; where to go on. It is always the last chunk, which may be as short as it likes whatever
    /// OCI-Chunk-Min-Length says.
    fn send_rest(&self, endpoint: &Endpoint, session: &Uri, blob: &Section, at: u64) -> Result<Uri, Failure> {
        let mut request = Request::new(Method::PATCH, session.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_RANGE, format!("{at}-{}", blob.size() - 1));
        request.content = from(blob, at);
        let response =
            self.authorized(endpoint, &endpoint.push(), request, |request| self.http.attempt(request))?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT => {
                Ok(location(session, &response)?)
            }
            status => {
                let error = refusal(&Request::new(Method::PATCH, session.clone()), response);
                let passing = status == StatusCode::RANGE_NOT_SATISFIABLE;
                Err(if passing { Failure::Passing(error, None) } else { Failure::Final(error) })
            }
        }
    }

    /// How much of an upload has arrived, and where to go on.
    fn received(&self, endpoint: &Endpoint, session: &Uri) -> Result<(Uri, u64), Failure> {
        let request = Request::new(Method::GET, session.clone());
        let response = self.call(endpoint, &endpoint.push(), request)?;
        if ![StatusCode::NO_CONTENT, StatusCode::ACCEPTED].contains(&response.status()) {
            let error = refusal(&Request::new(Method::GET, session.clone()), response);
            return Err(Failure::Passing(error, None));
        }
        // "0-99", where 0-0 stands for nothing, too; a single byte more is no harm.
        let range = text(&response, &RANGE).unwrap_or_default();
        let last = range.rsplit('-').next().and_then(|last| last.parse::<u64>().ok()).unwrap_or(0);
        let received = if last == 0 { 0 } else { last + 1 };
        Ok((location(session, &response).unwrap_or_else(|_| session.clone()), received))
    }

    fn finish(
        &self,
        endpoint: &Endpoint,
        session: &Uri,
        digest: &Digest,
        content: Content,
    ) -> Result<(), Failure> {
        let uri = with_query(session, "digest", &digest.to_string())?;
        let mut request =
            Request::new(Method::PUT, uri.clone()).header(CONTENT_TYPE, "application/octet-stream");
        request.content = content;
        let response =
            self.authorized(endpoint, &endpoint.push(), request, |request| self.http.attempt(request))?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            _ => Err(refusal(&Request::new(Method::PUT, uri), response).into()),
        }
    }
}

fn from(blob: &Section, at: u64) -> Content<'_> {
    let (file, start) = blob.place();
    Content::Part { file, start: start + at, length: blob.size() - at }
}

fn location(asked: &Uri, response: &Response) -> Result<Uri> {
    let location = text(response, &LOCATION);
    let missing = || Error::of_kind(Kind::Integrity, "the registry does not say where to send it");
    resolve(asked, &location.ok_or_else(missing)?)
}
