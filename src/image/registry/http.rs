//! One HTTP request, from its first attempt to the response: connections, certificates, redirects, retries.
//!
//! Redirects are followed here and not by ureq, since each is a chance to lose credentials: `Authorization` goes to
//! the origin that it is for, and to none after a redirect has led away from it. Plain HTTP is spoken with the
//! machine itself and with hosts of `--insecure`, never with another that somebody redirects to.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, RETRY_AFTER};
use ureq::http::{self, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use ureq::{Agent, Body, SendBody};

use super::certificates::Certificates;
use super::retry::{Backoff, Failure, retry_after};
use super::url::{Origin, resolve, shown};
use crate::error::{Error, Kind, Result};

pub type Response = http::Response<Body>;

const MOST_REDIRECTS: usize = 10;
const CONNECT: Duration = Duration::from_secs(20);
/// Without a byte; a transfer as a whole may take as long as it takes.
const IDLE: Duration = Duration::from_secs(30);
/// A registry may look for a big upload in its storage before it answers.
const ANSWER: Duration = Duration::from_secs(120);

pub struct Http {
    /// Hosts that may speak plain HTTP or show any certificate: `host` or `host:port`.
    insecure: Vec<String>,
    certificates: Certificates,
    /// One for each `host:port`, with what it takes to trust that one.
    agents: Mutex<HashMap<String, Agent>>,
    pub notify: fn(&str),
}

/// What is sent with a request. It can be sent again.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    None,
    Bytes(&'a [u8]),
    Part {
        file: &'a File,
        start: u64,  // bytes
        length: u64, // bytes
    },
}

pub struct Request<'a> {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub authorization: Option<HeaderValue>,
    pub content: Content<'a>,
    /// Whether a second one does no harm.
    pub again: bool,
}

impl Request<'_> {
    pub fn new(method: Method, uri: Uri) -> Self {
        let content =
            if method == Method::GET || method == Method::HEAD { Content::None } else { Content::Bytes(b"") };
        Self { method, uri, headers: HeaderMap::new(), authorization: None, content, again: true }
    }

    pub fn header(mut self, name: HeaderName, value: impl AsRef<str>) -> Self {
        // What we send is of our own making; what is not fit for a header is left out, and missed by the registry.
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.append(name, value);
        }
        self
    }
}

impl Http {
    pub fn new(insecure: Vec<String>, certificates: Certificates, notify: fn(&str)) -> Self {
        Self { insecure, certificates, agents: Mutex::default(), notify }
    }

    /// Whether `--insecure` names it.
    pub fn is_insecure(&self, origin: &Origin) -> bool {
        let authority = origin.authority();
        self.insecure.iter().any(|host| *host == origin.host || *host == authority)
    }

    /// The scheme of a host that need not speak TLS: https if it can. With a wrong certificate it can, too.
    pub fn scheme(&self, authority: &str) -> Result<&'static str> {
        let uri = |scheme: &str| -> Result<Uri> {
            let uri = format!("{scheme}://{authority}/v2/").parse();
            uri.map_err(|e| Error::new(format!("registry {authority}: {e}")))
        };
        let probe = |uri: &Uri| Ok::<_, Error>(self.agent(&Origin::of(uri)?)?.get(uri).call());
        let (secure, plain) = (uri("https")?, uri("http")?);
        let Err(error) = probe(&secure)? else { return Ok("https") };
        let is_certificate = matches!(tls_fault(&error), Some(rustls::Error::InvalidCertificate(_)));
        if !is_certificate && probe(&plain)?.is_ok() {
            return Ok("http");
        }
        Err(failure(error, &secure).into_error().because(format!("GET {}", shown(&secure))))
    }

    /// The response, whatever its status, but for what passes if one waits.
    pub fn send(&self, request: &Request) -> Result<Response> {
        let mut backoff = Backoff::default();
        loop {
            match self.attempt(request) {
                Ok(response) => return Ok(response),
                Err(failure) if request.again => backoff.wait(failure, self.notify)?,
                Err(failure) => return Err(failure.into_error()),
            }
        }
    }

    /// Follows redirects to the response.
    pub fn attempt(&self, request: &Request) -> Result<Response, Failure> {
        let home = Origin::of(&request.uri)?;
        let (mut uri, mut is_home) = (request.uri.clone(), true);
        for _ in 0..=MOST_REDIRECTS {
            let response = self.once(request, &uri, is_home)?;
            let status = response.status();
            let header =
                |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            let passing = [408, 429, 500, 502, 503, 504].contains(&status.as_u16());
            if passing {
                let after = header(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
                return Err(Failure::Passing(refusal(request, response), after));
            }
            // After 301 to 303 another method would become GET.
            let is_read = request.method == Method::GET || request.method == Method::HEAD;
            let first = if is_read { 301 } else { 307 };
            if !(first..=308).contains(&status.as_u16()) || [304, 305, 306].contains(&status.as_u16()) {
                return Ok(response);
            }
            let Some(location) = header(LOCATION) else { return Ok(response) };
            let next = resolve(&uri, location)?;
            self.check_redirect(&uri, &next)?;
            is_home = is_home && Origin::of(&next)? == home;
            // It may hold a secret (a refresh token).
            if !is_home && request.method == Method::POST {
                return Err(unfollowed(&uri, &next, "what is sent is for the first host only").into());
            }
            uri = next;
        }
        let message = format!("{}: more than {MOST_REDIRECTS} redirects", what(request, &request.uri));
        Err(Error::of_kind(Kind::Limit, message).into())
    }

    fn check_redirect(&self, from: &Uri, to: &Uri) -> Result<()> {
        let (old, new) = (Origin::of(from)?, Origin::of(to)?);
        if new.https || self.is_insecure(&new) || !old.https && new.is_loopback() && old.is_loopback() {
            return Ok(());
        }
        Err(unfollowed(from, to, "that is neither https nor a host of --insecure"))
    }

    fn once(&self, request: &Request, uri: &Uri, authorized: bool) -> Result<Response, Failure> {
        let fault = |e: http::Error| Error::new(format!("{}: {e}", what(request, uri)));
        let agent = self.agent(&Origin::of(uri)?)?;
        let mut head = http::Request::builder().method(&request.method).uri(uri);
        if let Some(headers) = head.headers_mut() {
            headers.extend(request.headers.clone());
            if let Some(authorization) = request.authorization.as_ref().filter(|_| authorized) {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
        }
        let sent = match request.content {
            Content::None => agent.run(head.body(()).map_err(fault)?),
            Content::Bytes(bytes) => agent.run(head.body(bytes).map_err(fault)?),
            Content::Part { file, start, length } => {
                let mut part = Part { file, at: start, left: length };
                let head = head.header(CONTENT_LENGTH, length);
                agent.run(head.body(SendBody::from_reader(&mut part)).map_err(fault)?)
            }
        };
        sent.map_err(|error| failure(error, uri).because(|| what(request, uri)))
    }

    fn agent(&self, origin: &Origin) -> Result<Agent> {
        let authority = origin.authority();
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&authority) {
            return Ok(agent.clone());
        }
        let tls = self.certificates.for_host(origin, self.is_insecure(origin))?;
        let mut config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("keel-image/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(IDLE))
            .timeout_per_write(Some(IDLE))
            .timeout_recv_response(Some(ANSWER));
        if origin.is_loopback() {
            config = config.proxy(None);
        }
        let agent = config.build().new_agent();
        agents.insert(authority, agent.clone());
        Ok(agent)
    }
}

/// A part of a file as a stream.
struct Part<'a> {
    file: &'a File,
    at: u64,   // bytes
    left: u64, // bytes
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file has become shorter"));
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Failure {
    fn because(self, what: impl FnOnce() -> String) -> Self {
        match self {
            Self::Final(error) => Self::Final(error.because(what())),
            Self::Passing(error, after) => Self::Passing(error.because(what()), after),
        }
    }
}

/// "GET https://host/path"
fn what(request: &Request, uri: &Uri) -> String {
    format!("{} {}", request.method, shown(uri))
}

fn unfollowed(from: &Uri, to: &Uri, why: &str) -> Error {
    let message = format!("{} redirects to {}, which is not followed: {why}", shown(from), shown(to));
    Error::of_kind(Kind::Integrity, message)
}

/// What kept a request from being answered: connections break, but who is not there will not be.
fn failure(error: ureq::Error, uri: &Uri) -> Failure {
    if let Some(tls) = tls_fault(&error) {
        return Failure::Final(tls_error(tls, uri));
    }
    let refused = [io::ErrorKind::ConnectionRefused, io::ErrorKind::InvalidData];
    match error {
        ureq::Error::Io(error) if refused.contains(&error.kind()) => Failure::Final(error.into()),
        ureq::Error::Io(error) => Failure::Passing(error.into(), None),
        ureq::Error::Timeout(_) => Failure::Passing(Error::new("no answer in time"), None),
        ureq::Error::HostNotFound => Failure::Final(Error::new("the host's name is unknown")),
        error => Failure::Final(Error::new(error.to_string())),
    }
}

fn tls_fault(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(tls) => Some(tls),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn tls_error(error: &rustls::Error, uri: &Uri) -> Error {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    match error {
        rustls::Error::InvalidMessage(_) => Error::new("the other side does not speak TLS")
            .with_way_out(format!("If it may do without: --insecure {host}.")),
        rustls::Error::InvalidCertificate(_) => Error::new(error.to_string()).with_way_out(format!(
            "Name the authority that has signed it with --ca FILE, or trust any certificate with --insecure {host}."
        )),
        _ => Error::new(format!("TLS: {error}")),
    }
}

/// What the other side has to say instead of doing what was asked.
pub fn refusal(request: &Request, response: Response) -> Error {
    let status = response.status();
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Denied,
        _ => Kind::Other,
    };
    let reason = status.canonical_reason().unwrap_or_default().to_lowercase();
    let said = said(response).map(|said| format!(": {said}")).unwrap_or_default();
    Error::of_kind(kind, format!("{}: {} {reason}{said}", what(request, &request.uri), status.as_u16()))
}

/// The messages of a distribution error: `{"errors": [{"code", "message", "detail"}]}`.
fn said(response: Response) -> Option<String> {
    const MOST: u64 = 64 << 10; // bytes
    let mut body = Vec::new();
    response.into_body().into_reader().take(MOST).read_to_end(&mut body).ok()?;
    let json: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let messages = json["errors"].as_array()?.iter().filter_map(|error| error["message"].as_str());
    let text: String =
        messages.collect::<Vec<_>>().join("; ").chars().filter(|c| !c.is_control()).take(200).collect();
    (!text.is_empty()).then_some(text)
}

/// A whole body that must not be larger than so many bytes.
pub fn read_all(response: Response, most: u64, name: &str) -> Result<Vec<u8>> {
    let too_large = || Error::of_kind(Kind::Limit, format!("{name}: it is larger than {most} bytes"));
    if response.body().content_length().is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let read = response.into_body().into_reader().take(most + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::from(e).because(format!("receive {name}")))?;
    if bytes.len() as u64 > most { Err(too_large()) } else { Ok(bytes) }
}
