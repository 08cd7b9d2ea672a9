//! Mirrors are asked first, and are not believed.

use keel::image::registry::{Client, Mirror, Options};

use crate::place::{Place, descriptor, pull};
use crate::server::{Reply, Server};
use crate::tests;

tests![
    what_a_mirror_has_is_not_asked_of_the_registry,
    what_a_mirror_does_not_have_is_asked_of_the_registry,
    a_mirror_gets_no_password_of_the_registry,
];

fn client(place: &Place, registry: &Server, mirror: &str) -> Client {
    let mirror = Mirror::parse(&format!("{}={mirror}", registry.address)).unwrap();
    Client::new(Options { mirrors: vec![mirror], ..place.options() }).unwrap()
}

fn what_a_mirror_has_is_not_asked_of_the_registry() {
    let (registry, mirror) =
        (Server::new(|_| Reply::new(500, "")), Server::new(|_| Reply::new(200, "layer")));
    let client = client(&Place::new(), &registry, &format!("{}/proxy", mirror.address));
    assert_eq!(pull(&client, &registry.address, &descriptor(b"layer")).unwrap(), b"layer");
    assert_eq!(mirror.asked(), [format!("GET /v2/proxy/test/app/blobs/{}", descriptor(b"layer").digest)]);
    assert_eq!(registry.asked().len(), 0);
}

fn what_a_mirror_does_not_have_is_asked_of_the_registry() {
    let registry = Server::new(|_| Reply::new(200, "layer"));
    // One that has lost it, one that lies, and one that is not there.
    for status in [404, 200, 0] {
        let mirror = Server::new(move |_| Reply::new(status, "other size"));
        let address = if status == 0 { "127.0.0.1:1" } else { &mirror.address };
        let client = client(&Place::new(), &registry, address);
        assert_eq!(pull(&client, &registry.address, &descriptor(b"layer")).unwrap(), b"layer", "{status}");
    }
    assert_eq!(registry.asked().len(), 3);
}

fn a_mirror_gets_no_password_of_the_registry() {
    let registry = Server::new(|_| Reply::new(200, "layer"));
    let mirror = Server::new(|_| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"));
    let place = Place::new();
    place.credentials(&[(&registry.address, "user:secret")]);
    let client = client(&place, &registry, &mirror.address);
    assert_eq!(pull(&client, &registry.address, &descriptor(b"layer")).unwrap(), b"layer");
    assert_eq!(mirror.seen()[0].header("authorization"), None);
    assert_eq!(mirror.seen().len(), 1);
}
