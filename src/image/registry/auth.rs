//! From a challenge and our credentials to an `Authorization`: Basic, or a token that somebody else gives.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/>, `/oauth/`. A registry says where tokens are to be
//! had (the realm), and so where our password goes: only by https (or to the registry's own insecure host), and only
//! within the registry's domain, for a realm elsewhere is as likely to be an attacker's as a service of the
//! registry's. Who is asked without a password may still give a token to anybody.

use serde_json::Value;
use ureq::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use ureq::http::{HeaderValue, Method, StatusCode, Uri};

use super::challenge::Challenge;
use super::http::{Content, Request, Response, read_all, refusal};
use super::url::{Origin, encoded, is_loopback, shown, with_query};
use super::{Client, Endpoint};
use crate::error::{Context, Error, Kind, Result};
use crate::image::credentials::Credential;
use crate::image::reference::Named;

const CLIENT: &str = "keel-image";
const MOST_OF_TOKEN: u64 = 1 << 20; // bytes

impl Client {
    /// Whether the registry takes them.
    pub fn check_login(&self, registry: &str, user: &str, password: &str) -> Result<()> {
        let named =
            Named { registry: registry.to_owned(), repository: String::new(), tag: None, digest: None };
        let endpoint = self.endpoint(&named)?;
        let uri: Uri =
            format!("{}/v2/", endpoint.base).parse().map_err(|e| Error::new(format!("{registry}: {e}")))?;
        let mut request = Request::new(Method::GET, uri);
        let what = || format!("log in to {registry} as {user:?}");
        let response = self.http.send(&request).context(what)?;
        if response.status() == StatusCode::OK {
            return Err(Error::new(format!("{}: it asks nobody for a password", what())));
        }
        let credential = Credential::Basic { user: user.to_owned(), password: password.to_owned() };
        request.authorization =
            self.authorize_as(&endpoint, "", &response, Some(credential)).context(what)?;
        let response = self.http.send(&request).context(what)?;
        if response.status() == StatusCode::OK {
            return Ok(());
        }
        let error = refusal(&request, response);
        let kind = if error.kind() == Kind::NotFound { Kind::Other } else { error.kind() };
        Err(error.with_kind(kind).because(what()))
    }

    /// The answer to a 401, or None if there is none.
    pub(super) fn authorize(
        &self,
        endpoint: &Endpoint,
        scope: &str,
        response: &Response,
    ) -> Result<Option<HeaderValue>> {
        let repository = &endpoint.repository;
        let credential = self.credentials.get(&endpoint.registry, repository)?;
        self.authorize_as(endpoint, scope, response, credential)
    }

    pub(super) fn authorize_as(
        &self,
        endpoint: &Endpoint,
        scope: &str,
        response: &Response,
        credential: Option<Credential>,
    ) -> Result<Option<HeaderValue>> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let headers = headers.iter().filter_map(|header| header.to_str().ok());
        let challenges: Vec<_> = headers.flat_map(Challenge::parse).collect();
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let text = match (of("bearer"), of("basic"), credential) {
            (Some(_), _, Some(Credential::RegistryToken(token))) => format!("Bearer {token}"),
            (Some(bearer), _, credential) => {
                let token = self.token(endpoint, bearer, scope, credential);
                let whom = || format!("get a token for {}", endpoint.registry);
                format!("Bearer {}", token.context(whom)?)
            }
            (None, Some(_), Some(Credential::Basic { user, password })) => {
                Credential::basic(&user, &password)
            }
            _ => return Ok(None),
        };
        let mut header = HeaderValue::from_str(&text).map_err(|_| {
            let registry = &endpoint.registry;
            Error::of_kind(
                Kind::Denied,
                format!("the token for {registry} has characters that no header can hold"),
            )
        })?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    fn token(
        &self,
        endpoint: &Endpoint,
        challenge: &Challenge,
        scope: &str,
        credential: Option<Credential>,
    ) -> Result<String> {
        let realm = challenge.get("realm").unwrap_or_default();
        let realm: Uri = realm.parse().map_err(|e| refused(format!("the realm {realm:?} is no URL: {e}")))?;
        let origin = Origin::of(&realm)?;
        let is_own = origin.host == endpoint.origin.host && !endpoint.origin.https;
        if !origin.https && !is_own {
            return Err(refused(format!("the realm {} is not https", shown(&realm))));
        }
        let trusted = gets_credentials(&endpoint.origin.host, &origin.host);
        let had_credential = credential.is_some();
        let credential = credential.filter(|_| trusted);
        let mut parameters = vec![("client_id", CLIENT)];
        parameters.extend(challenge.get("service").map(|service| ("service", service)));
        parameters.extend(scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope)));
        let form;
        let request = match &credential {
            Some(Credential::IdentityToken(token)) => {
                parameters.extend([("grant_type", "refresh_token"), ("refresh_token", token)]);
                let pairs = parameters.iter().map(|(key, value)| format!("{key}={}", encoded(value)));
                form = pairs.collect::<Vec<_>>().join("&");
                let request = Request::new(Method::POST, realm.clone());
                let mut request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                request.content = Content::Bytes(form.as_bytes());
                request
            }
            _ => {
                let mut uri = realm.clone();
                if let Some(Credential::Basic { user, .. }) = &credential {
                    parameters.push(("account", user));
                }
                for (key, value) in parameters {
                    uri = with_query(&uri, key, value)?;
                }
                Request::new(Method::GET, uri)
            }
        };
        let mut request = request;
        if let Some(Credential::Basic { user, password }) = &credential {
            let basic = HeaderValue::from_str(&Credential::basic(user, password));
            request.authorization = Some(basic.map_err(|e| Error::new(e.to_string()))?);
        }
        let response = self.http.send(&request)?;
        if response.status() != StatusCode::OK {
            let error = refusal(&request, response).with_kind(Kind::Denied);
            return Err(match (had_credential, trusted) {
                (true, false) => error.with_way_out(format!(
                    "{} is not in the registry's domain, and was not given the password.",
                    origin.host
                )),
                (false, _) => error.with_way_out(format!(
                    "Nothing was said of who asks: keel-image login {}.",
                    endpoint.registry
                )),
                _ => error,
            });
        }
        let answer = read_all(response, MOST_OF_TOKEN, "the token")?;
        let answer: Value =
            serde_json::from_slice(&answer).map_err(|e| refused(format!("it is not JSON: {e}")))?;
        let token =
            ["token", "access_token"].iter().find_map(|key| answer[key].as_str().filter(|t| !t.is_empty()));
        token.map(str::to_owned).ok_or_else(|| refused(format!("{} gives none", shown(&realm))))
    }
}

fn refused(why: String) -> Error {
    Error::of_kind(Kind::Denied, why)
}

/// Whether a realm is the registry's own, or beside it or above it in its domain: auth.docker.io for
/// registry-1.docker.io, gitlab.example.com for registry.example.com. A domain has at least two labels.
fn gets_credentials(registry: &str, realm: &str) -> bool {
    let is_name = |host: &str| {
        !is_loopback(host) && !host.starts_with('[') && host.parse::<std::net::Ipv4Addr>().is_err()
    };
    if registry == realm {
        return true;
    }
    if !is_name(registry) || !is_name(realm) {
        return false;
    }
    let parent =
        |host: &str| host.split_once('.').map(|(_, rest)| rest.to_owned()).filter(|rest| rest.contains('.'));
    let above = parent(registry);
    above.is_some() && (above.as_deref() == Some(realm) || above == parent(realm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_stays_in_the_registrys_domain() {
        for (registry, realm, gets) in [
            ("ghcr.io", "ghcr.io", true),
            ("registry-1.docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("registry.example.com", "gitlab.example.com", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("10.0.0.1", "10.1.0.1", false),
            ("ghcr.io", "evil.io", false),
            ("ghcr.io", "io", false),
            ("ghcr.io", "x.ghcr.io", false),
            ("registry.example.com", "example.com.evil.com", false),
            ("registry.example.com", "evil-example.com", false),
            ("registry.example.com", "a.b.example.com", false),
            ("localhost", "evil.com", false),
            ("[::1]", "[::2]", false),
        ] {
            assert_eq!(gets_credentials(registry, realm), gets, "{registry} {realm}");
        }
    }
}
