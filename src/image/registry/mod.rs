//! A client of registries: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>
//!
//! | What | File |
//! |---|---|
//! | a request, its redirects and retries | [`http`], [`retry`], [`url`] |
//! | whom TLS trusts | [`certificates`] |
//! | tokens and passwords | [`auth`], [`challenge`] |
//! | manifests and lists of tags | [`manifests`] |
//! | blobs, and what to do when they break off | [`blob`] |
//! | uploads | [`push`] |
//!
//! Everything that comes from a registry or a mirror is held to a digest, to a size, or at least to a limit. A
//! [`Client`] is for all threads of a command.

pub mod auth;
pub mod blob;
pub mod certificates;
pub mod challenge;
pub mod http;
pub mod manifests;
pub mod push;
pub mod retry;
pub mod url;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use ureq::http::{HeaderValue, StatusCode, Uri};

use self::certificates::Certificates;
use self::http::{Http, Request, Response, refusal};
use self::url::{Origin, is_loopback};
use crate::error::{Context, Error, Kind, Result};
use crate::image::credentials::Credentials;
use crate::image::reference::{Named, check_registry};
use crate::sys::names::nss_configure_lookup;

pub struct Options {
    /// Of `--insecure`: `host` or `host:port`.
    pub insecure: Vec<String>,
    /// Of `--ca`: files of authorities.
    pub ca: Vec<PathBuf>,
    /// Instead of the system's certs.d.
    pub certs_dir: Option<PathBuf>,
    pub creds_file: Option<PathBuf>,
    pub mirrors: Vec<Mirror>,
    /// What the user may like to know: attempts that failed.
    pub notify: fn(&str),
}

/// `--mirror [REGISTRY=]HOST[:PORT][/PREFIX]`: asked before the registry for what is read from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    of: String,
    host: String,
    /// Empty, or with a slash at its end.
    prefix: String,
}

impl Mirror {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (of, place) = text.split_once('=').unwrap_or(("docker.io", text));
        let (host, prefix) = place.split_once('/').unwrap_or((place, ""));
        for registry in [of, host] {
            check_registry(registry).map_err(|(_, why)| format!("{registry:?}: {why}"))?;
        }
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            Named::parse_repository(&format!("{host}/{prefix}")).map_err(|e| e.to_string())?;
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { of: of.to_ascii_lowercase(), host: host.to_ascii_lowercase(), prefix })
    }
}

/// Where a repository is.
#[derive(Clone, Debug)]
pub struct Endpoint {
    origin: Origin,
    /// What credentials are stored under.
    registry: String,
    /// `https://host[:port]`
    base: String,
    repository: String,
}

impl Endpoint {
    fn uri(&self, rest: &str) -> Result<Uri> {
        let text = format!("{}/v2/{}/{rest}", self.base, self.repository);
        text.parse().map_err(|e| Error::new(format!("URL {text}: {e}")))
    }

    fn pull(&self) -> String {
        format!("repository:{}:pull", self.repository)
    }

    fn push(&self) -> String {
        format!("repository:{}:pull,push", self.repository)
    }
}

pub struct Client {
    http: Http,
    credentials: Credentials,
    mirrors: Vec<Mirror>,
    /// What a host that need not speak TLS does speak.
    schemes: Mutex<HashMap<String, &'static str>>,
    /// The `Authorization` for a registry and a scope.
    authorizations: Mutex<HashMap<(String, String), HeaderValue>>,
}

impl Client {
    pub fn new(options: Options) -> Result<Self> {
        // Before any look-up.
        nss_configure_lookup(c"hosts", c"files dns").context(|| "choose how host names are looked up")?;
        let insecure = options.insecure.iter().map(|host| host.to_ascii_lowercase()).collect();
        let certificates = Certificates::new(&options.ca, options.certs_dir.as_deref())?;
        Ok(Self {
            http: Http::new(insecure, certificates, options.notify),
            credentials: Credentials::new(options.creds_file.as_deref()),
            mirrors: options.mirrors,
            schemes: Mutex::default(),
            authorizations: Mutex::default(),
        })
    }

    /// Where the registry itself has the repository.
    pub fn endpoint(&self, named: &Named) -> Result<Endpoint> {
        let host = if named.registry == "docker.io" { "registry-1.docker.io" } else { &named.registry };
        self.endpoint_at(host, &named.registry, named.repository.clone())
    }

    fn endpoint_at(&self, host: &str, registry: &str, repository: String) -> Result<Endpoint> {
        let base = format!("{}://{host}", self.scheme(host)?);
        let uri: Uri = base.parse().map_err(|e| Error::new(format!("registry {host}: {e}")))?;
        Ok(Endpoint { origin: Origin::of(&uri)?, registry: registry.to_owned(), base, repository })
    }

    fn scheme(&self, host: &str) -> Result<&'static str> {
        let uri: Uri =
            format!("https://{host}").parse().map_err(|e| Error::new(format!("registry {host}: {e}")))?;
        let origin = Origin::of(&uri)?;
        if !is_loopback(&origin.host) && !self.http.is_insecure(&origin) {
            return Ok("https");
        }
        if let Some(scheme) = self.schemes.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            return Ok(scheme);
        }
        let scheme = self.http.scheme(host)?;
        self.schemes.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), scheme);
        Ok(scheme)
    }

    /// The mirrors that have the repository, or should, and the registry itself as the last.
    fn endpoints(&self, named: &Named) -> Vec<Place> {
        let mirrors = self.mirrors.iter().filter(|mirror| mirror.of == named.registry);
        mirrors.cloned().map(Place::Mirror).chain([Place::Registry]).collect()
    }

    fn at(&self, place: &Place, named: &Named) -> Result<Endpoint> {
        match place {
            Place::Registry => self.endpoint(named),
            Place::Mirror(mirror) => {
                let repository = format!("{}{}", mirror.prefix, named.repository);
                self.endpoint_at(&mirror.host, &mirror.host, repository)
            }
        }
    }

    /// Does it where it can be done first.
    fn anywhere<T>(&self, named: &Named, mut action: impl FnMut(&Endpoint) -> Result<T>) -> Result<T> {
        for place in self.endpoints(named) {
            let result = self.at(&place, named).and_then(|endpoint| action(&endpoint));
            match (result, place) {
                (Err(error), Place::Mirror(mirror)) => {
                    (self.http.notify)(&format!("mirror {}: {error}", mirror.host));
                }
                (result, _) => return result,
            }
        }
        Err(Error::new(format!("ask {}: there is nobody to ask", named.registry)))
    }

    /// The response to an authorised request. Refused credentials are an error, other statuses are the caller's.
    fn call(&self, endpoint: &Endpoint, scope: &str, request: Request) -> Result<Response> {
        self.authorized(endpoint, scope, request, |request| self.http.send(request))
    }

    fn authorized<E: From<Error>>(
        &self,
        endpoint: &Endpoint,
        scope: &str,
        mut request: Request,
        send: impl Fn(&Request) -> Result<Response, E>,
    ) -> Result<Response, E> {
        let key = (endpoint.base.clone(), scope.to_owned());
        // An upload may be sent elsewhere, and what we are told is not told there.
        let is_home = Origin::of(&request.uri)? == endpoint.origin;
        let known = || self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        request.authorization = known().filter(|_| is_home);
        let response = send(&request)?;
        if response.status() != StatusCode::UNAUTHORIZED || !is_home {
            return Ok(self.not_forbidden(endpoint, &request, response)?);
        }
        // There was none, or it has expired.
        let Some(new) = self.authorize(endpoint, scope, &response)? else {
            return Err(self.denied(endpoint, &request, response).into());
        };
        request.authorization = Some(new.clone());
        let response = send(&request)?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(self.denied(endpoint, &request, response).into());
        }
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).insert(key, new);
        Ok(self.not_forbidden(endpoint, &request, response)?)
    }

    fn not_forbidden(&self, endpoint: &Endpoint, request: &Request, response: Response) -> Result<Response> {
        match response.status() {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Err(self.denied(endpoint, request, response)),
            _ => Ok(response),
        }
    }

    fn denied(&self, endpoint: &Endpoint, request: &Request, response: Response) -> Error {
        let error = refusal(request, response);
        let registry = &endpoint.registry;
        let way_out = format!("It may not be there, or not for you: keel-image login {registry}.");
        error.with_kind(Kind::Denied).with_way_out(way_out)
    }
}

enum Place {
    Mirror(Mirror),
    Registry,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_names_its_host_and_what_it_mirrors() {
        let mirror = |of: &str, host: &str, prefix: &str| Mirror {
            of: of.into(),
            host: host.into(),
            prefix: prefix.into(),
        };
        for (text, expected) in [
            ("mirror.example", mirror("docker.io", "mirror.example", "")),
            ("ghcr.io=localhost:5000/proxy/ghcr/", mirror("ghcr.io", "localhost:5000", "proxy/ghcr/")),
        ] {
            assert_eq!(Mirror::parse(text), Ok(expected));
        }
        for text in ["", "=x", "ghcr.io=", "https://m.example", "m.example/..", "m.example/a:b", "m example"]
        {
            assert!(Mirror::parse(text).is_err(), "{text}");
        }
    }
}
