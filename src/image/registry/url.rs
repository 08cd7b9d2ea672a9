//! What a registry answers with in place of what was asked: other URLs.

use ureq::http::Uri;

use crate::error::{Error, Kind, Result};

/// Scheme, host and port: what credentials are bound to. RFC 6454.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub https: bool,
    /// In lower case, an IPv6 address in brackets.
    pub host: String,
    pub port: u16,
}

impl Origin {
    pub fn of(uri: &Uri) -> Result<Self> {
        let wrong = |why| Error::of_kind(Kind::Integrity, format!("URL {}: {why}", shown(uri)));
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("must be https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("must not hold a user's name"));
        }
        let port = match (authority.port_u16(), authority.port()) {
            (Some(port), _) => port,
            (None, None) => {
                if https {
                    443
                } else {
                    80
                }
            }
            (None, Some(_)) => return Err(wrong("has no port of TCP")),
        };
        Ok(Self { https, host: authority.host().to_ascii_lowercase(), port })
    }

    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// `host:port`
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// The machine itself, from which nobody on the network can take the connection.
pub fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        // What is below it is asked of DNS, which may say anything.
        Err(_) => host == "localhost",
    }
}

/// Without the query, which may hold a signature.
pub fn shown(uri: &Uri) -> String {
    let authority =
        uri.authority().map_or("", |authority| authority.as_str().rsplit('@').next().unwrap_or_default());
    format!("{}://{authority}{}", uri.scheme_str().unwrap_or_default(), uri.path())
}

/// RFC 3986, section 5.2, but for `.` and `..`, which the other side can resolve.
pub fn resolve(base: &Uri, reference: &str) -> Result<Uri> {
    let reference = reference.split('#').next().unwrap_or_default();
    let origin = format!(
        "{}://{}",
        base.scheme_str().unwrap_or_default(),
        base.authority().map_or("", |authority| authority.as_str())
    );
    let absolute = if reference.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        reference.to_owned()
    } else if let Some(rest) = reference.strip_prefix("//") {
        format!("{}://{rest}", base.scheme_str().unwrap_or_default())
    } else if reference.starts_with('/') {
        format!("{origin}{reference}")
    } else if reference.starts_with('?') || reference.is_empty() {
        format!("{origin}{}{reference}", base.path())
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{origin}{directory}/{reference}")
    };
    absolute.parse().map_err(|e| {
        let address = absolute.split('?').next().unwrap_or_default();
        Error::of_kind(Kind::Integrity, format!("URL {address:?} that {} answers with: {e}", shown(base)))
    })
}

/// A URL with one more parameter in its query.
pub fn with_query(uri: &Uri, key: &str, value: &str) -> Result<Uri> {
    let text = uri.to_string();
    let separator = if uri.query().is_some() { '&' } else { '?' };
    let text = format!("{text}{separator}{key}={}", encoded(value));
    text.parse().map_err(|e| Error::new(format!("URL {}: {e}", shown(uri))))
}

/// RFC 3986, section 2.1.
pub fn encoded(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(byte.into()),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_resolved_against_what_was_asked() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/x?y=1".parse().unwrap();
        for (location, absolute) in [
            ("https://cdn.example/b?sig=a%2Fb#part", "https://cdn.example/b?sig=a%2Fb"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/b?to=http://x/", "https://r.example:5000/b?to=http://x/"),
            ("?y=2", "https://r.example:5000/v2/a/blobs/x?y=2"),
            ("z", "https://r.example:5000/v2/a/blobs/z"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), absolute, "{location}");
        }
        for location in ["http://", "https://a b/", "https://[::1", "/a b"] {
            assert!(resolve(&base, location).is_err(), "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap());
        assert_eq!(origin("https://A.example/x").unwrap(), origin("https://a.example:443/y").unwrap());
        for other in
            ["http://a.example/", "https://a.example:5000/", "https://b.example/", "https://xa.example/"]
        {
            assert_ne!(origin("https://a.example/").unwrap(), origin(other).unwrap(), "{other}");
        }
        for text in ["ftp://a.example/", "/path", "https://u:p@a.example/", "file:///etc/passwd"] {
            assert!(text.parse::<Uri>().is_err() || origin(text).is_err(), "{text}");
        }
        for (host, loopback) in [
            ("localhost", true),
            ("127.1.2.3", true),
            ("[::1]", true),
            ("r.localhost", false),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }

    #[test]
    fn a_query_gets_one_more_parameter() {
        let with = |uri: &str| with_query(&uri.parse().unwrap(), "digest", "sha256:a/b").unwrap().to_string();
        assert_eq!(with("https://a/u"), "https://a/u?digest=sha256%3Aa%2Fb");
        assert_eq!(with("https://a/u?state=x%3D"), "https://a/u?state=x%3D&digest=sha256%3Aa%2Fb");
    }
}
