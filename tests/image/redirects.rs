//! Redirects: followed, but not with credentials and not everywhere.

use keel::error::Kind;

use crate::place::{Place, descriptor, pull};
use crate::server::{Reply, Request, Server};
use crate::tests;

tests![
    a_redirect_to_another_host_gets_no_credentials,
    a_redirect_within_the_host_keeps_them,
    a_way_back_does_not_bring_them_back,
    a_redirect_to_plain_http_elsewhere_is_not_followed,
    a_circle_of_redirects_ends,
];

/// Basic authentication, then what `reply` says.
fn asks_for_password(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    Server::new(move |request| match request.header("authorization") {
        None if request.path.contains("/blobs/") => {
            Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"")
        }
        _ => reply(request),
    })
}

fn authorizations(server: &Server) -> Vec<Option<String>> {
    server.seen().iter().map(|request| request.header("authorization").map(str::to_owned)).collect()
}

const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

fn a_redirect_to_another_host_gets_no_credentials() {
    let other = Server::new(|_| Reply::new(200, "layer"));
    let location = format!("http://{}/storage?signature=x", other.address);
    let server = asks_for_password(move |_| Reply::new(307, "").header("Location", &location));
    let place = Place::new();
    place.credentials(&[(&server.address, "user:secret"), (&other.address, "other:secret")]);
    assert_eq!(pull(&place.client(), &server.address, &descriptor(b"layer")).unwrap(), b"layer");
    assert_eq!(authorizations(&server), [None, Some(BASIC.into())]);
    assert_eq!(authorizations(&other), [None]);
}

fn a_redirect_within_the_host_keeps_them() {
    let server = asks_for_password(|request| match request.path.as_str() {
        "/storage" => Reply::new(200, "layer"),
        _ => Reply::new(302, "").header("Location", "/storage"),
    });
    let place = Place::new();
    place.credentials(&[(&server.address, "user:secret")]);
    assert_eq!(pull(&place.client(), &server.address, &descriptor(b"layer")).unwrap(), b"layer");
    assert_eq!(authorizations(&server), [None, Some(BASIC.into()), Some(BASIC.into())]);
}

fn a_way_back_does_not_bring_them_back() {
    let other = Server::new(|request| {
        let back = request.path.trim_start_matches("/to/").to_owned();
        Reply::new(307, "").header("Location", format!("http://{back}/open"))
    });
    let there = other.address.clone();
    let server = asks_for_password(move |request| match request.path.as_str() {
        "/open" => Reply::new(200, "layer"),
        _ => Reply::new(307, "").header("Location", format!("http://{there}/to/{}", request.headers["host"])),
    });
    let place = Place::new();
    place.credentials(&[(&server.address, "user:secret")]);
    assert_eq!(pull(&place.client(), &server.address, &descriptor(b"layer")).unwrap(), b"layer");
    assert_eq!(authorizations(&server), [None, Some(BASIC.into()), None]);
}

fn a_redirect_to_plain_http_elsewhere_is_not_followed() {
    for (location, why) in [
        (
            "http://192.0.2.1/x?secret=1",
            "redirects to http://192.0.2.1/x, which is not followed: that is neither https",
        ),
        ("http://user:password@127.0.0.1/", "must not hold a user's name"),
        ("ftp://192.0.2.1/x", "must be https:// or http://"),
    ] {
        let server = Server::new(move |_| Reply::new(307, "").header("Location", location));
        let error = pull(&Place::new().client(), &server.address, &descriptor(b"layer")).unwrap_err();
        assert!(error.to_string().contains(why) && error.kind() == Kind::Integrity, "{error}");
        assert!(!error.to_string().contains("password") && !error.to_string().contains("secret"), "{error}");
    }
}

fn a_circle_of_redirects_ends() {
    let server = Server::new(|request| Reply::new(307, "").header("Location", request.path.clone()));
    let error = pull(&Place::new().client(), &server.address, &descriptor(b"layer")).unwrap_err();
    assert_eq!((error.kind(), server.seen().len()), (Kind::Limit, 11), "{error}");
}
