//! Uploads.

use std::fs::File;
use std::sync::{Arc, Mutex};

use keel::image::digest::Digest;
use keel::image::registry::push::Pushed;
use keel::image::section::Section;

use crate::place::{Place, named, noise};
use crate::server::{Reply, Server};
use crate::tests;

tests![
    what_is_there_is_not_sent,
    what_another_repository_has_is_mounted,
    a_small_blob_is_sent_at_once,
    a_big_upload_that_breaks_off_goes_on_where_it_ended,
    an_upload_that_is_lost_begins_anew,
    an_upload_that_goes_to_another_host_gets_no_credentials,
];

fn push(server: &Server, blob: &[u8], from: Option<&str>) -> keel::error::Result<Pushed> {
    let place = Place::new();
    place.credentials(&[(&server.address, "user:secret")]);
    // In the midst of a file, as in an archive.
    let path = place.write("blob", [b"before", blob, b"after"].concat());
    let file = File::open(path).unwrap();
    let section = Section::new(Arc::new(file), 6, blob.len() as u64);
    let named = |repository: &str| named(&format!("{}/{repository}", server.address));
    place.client().push_blob(&named("test/app"), &Digest::of(blob), from.map(named).as_ref(), || Ok(section))
}

const UPLOADS: &str = "/v2/test/app/blobs/uploads/";

fn what_is_there_is_not_sent() {
    let server = Server::new(|_| Reply::new(200, ""));
    assert_eq!(push(&server, b"layer", None).unwrap(), Pushed::Present);
    assert_eq!(server.asked(), [format!("HEAD /v2/test/app/blobs/{}", Digest::of(b"layer"))]);
}

fn what_another_repository_has_is_mounted() {
    let server = Server::new(|request| Reply::new(if request.method == "POST" { 201 } else { 404 }, ""));
    assert_eq!(push(&server, b"layer", Some("other/app")).unwrap(), Pushed::Mounted);
    let digest = Digest::of(b"layer").to_string().replace(':', "%3A");
    assert_eq!(server.asked()[1..], [format!("POST {UPLOADS}?mount={digest}&from=other%2Fapp")]);
}

fn a_small_blob_is_sent_at_once() {
    let server = Server::new(|request| match request.method.as_str() {
        "POST" => Reply::new(202, "").header("Location", "/up?state=x"),
        "PUT" => Reply::new(201, ""),
        _ => Reply::new(404, ""),
    });
    assert_eq!(push(&server, b"layer", Some("other/app")).unwrap(), Pushed::Sent);
    let digest = Digest::of(b"layer").to_string().replace(':', "%3A");
    let put = &server.seen()[2];
    assert_eq!(
        (put.path.as_str(), put.body.as_slice()),
        (&*format!("/up?state=x&digest={digest}"), &b"layer"[..])
    );
    assert_eq!(put.header("content-length"), Some("5"));
}

fn a_big_upload_that_breaks_off_goes_on_where_it_ended() {
    let blob = noise(6_000_000);
    let stored = Arc::new(Mutex::new(Vec::<u8>::new()));
    let storage = stored.clone();
    let server = Server::new(move |request| {
        let mut storage = storage.lock().unwrap();
        match request.method.as_str() {
            "POST" => Reply::new(202, "").header("Location", "/up/0"),
            "PATCH" if storage.is_empty() => {
                storage.extend(&request.body[..2_500_000]);
                Reply::new(502, "")
            }
            "PATCH" => {
                assert_eq!(request.header("content-range"), Some("2500000-5999999"));
                storage.extend(&request.body);
                Reply::new(202, "").header("Location", "/up/2")
            }
            "GET" => Reply::new(204, "").header("Location", "/up/1").header("Range", "0-2499999"),
            "PUT" => Reply::new(201, ""),
            _ => Reply::new(404, ""),
        }
    });
    assert_eq!(push(&server, &blob, None).unwrap(), Pushed::Sent);
    assert!(*stored.lock().unwrap() == blob);
    let digest = Digest::of(&blob).to_string().replace(':', "%3A");
    assert_eq!(
        server.asked()[2..],
        ["PATCH /up/0", "GET /up/0", "PATCH /up/1", &format!("PUT /up/2?digest={digest}")]
    );
}

fn an_upload_that_is_lost_begins_anew() {
    let blob = noise(5_000_000);
    let lost = Mutex::new(false);
    let server = Server::new(move |request| match request.method.as_str() {
        "POST" => Reply::new(202, "").header("Location", "/up"),
        "PATCH" if !std::mem::replace(&mut *lost.lock().unwrap(), true) => Reply::new(500, ""),
        "PATCH" => Reply::new(202, "").header("Location", "/up"),
        "PUT" => Reply::new(201, ""),
        _ => Reply::new(404, ""),
    });
    assert_eq!(push(&server, &blob, None).unwrap(), Pushed::Sent);
    let methods: Vec<_> = server.seen().iter().map(|request| request.method.clone()).collect();
    assert_eq!(methods, ["HEAD", "POST", "PATCH", "GET", "POST", "PATCH", "PUT"]);
    assert_eq!(server.seen()[5].body.len(), blob.len());
}

fn an_upload_that_goes_to_another_host_gets_no_credentials() {
    let other = Server::new(|request| match request.method.as_str() {
        "PATCH" => Reply::new(202, "").header("Location", "/up"),
        _ => Reply::new(201, ""),
    });
    let location = format!("http://{}/up", other.address);
    let server =
        Server::new(move |request| match (request.method.as_str(), request.header("authorization")) {
            (_, None) => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
            ("POST", _) => Reply::new(202, "").header("Location", &location),
            _ => Reply::new(404, ""),
        });
    for blob in [b"layer".to_vec(), noise(5_000_000)] {
        assert_eq!(push(&server, &blob, None).unwrap(), Pushed::Sent);
    }
    assert_eq!(other.asked().len(), 3);
    assert!(other.seen().iter().all(|request| request.header("authorization").is_none()));
}
