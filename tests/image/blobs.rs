//! Blobs from registries that break off, lie, do not end, or are busy.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keel::error::Kind;

use crate::place::{Place, descriptor, noise, pull};
use crate::server::{Body, Reply, Request, Server};
use crate::tests;

tests![
    a_blob_that_breaks_off_goes_on_where_it_ended,
    a_registry_without_ranges_is_read_again_from_the_start,
    a_range_that_was_not_asked_for_is_refused,
    a_registry_that_gives_a_byte_at_a_time_is_given_up,
    a_blob_that_is_not_its_digest_is_refused,
    a_blob_of_another_size_is_refused,
    an_endless_blob_ends_at_its_size,
    a_busy_registry_is_asked_again_when_it_says,
    a_registry_that_wants_too_much_patience_gets_none,
];

/// The rest from where the request wants it, of which so many bytes get through.
fn rest(request: &Request, blob: &[u8], passes: usize) -> Reply {
    let from = request.range().unwrap_or(0);
    let rest = &blob[from..];
    let body = Body::Cut { announced: rest.len(), sent: rest[..passes.min(rest.len())].to_vec() };
    let reply = Reply::new(if from > 0 { 206 } else { 200 }, "").with(body);
    if from == 0 {
        reply
    } else {
        reply.header("Content-Range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()))
    }
}

fn a_blob_that_breaks_off_goes_on_where_it_ended() {
    let blob = noise(5_000_000);
    let sent = blob.clone();
    let server = Server::new(move |request| rest(request, &sent, 2_000_000));
    assert!(pull(&Place::new().client(), &server.address, &descriptor(&blob)).unwrap() == blob);
    let ranges: Vec<_> = server.seen().iter().map(Request::range).collect();
    assert_eq!(ranges, [None, Some(2_000_000), Some(4_000_000)]);
}

fn a_registry_without_ranges_is_read_again_from_the_start() {
    let blob = noise(300_000);
    let (sent, count) = (blob.clone(), AtomicUsize::new(0));
    let server = Server::new(move |_| {
        // After the look whether it speaks HTTP.
        let passes = if count.fetch_add(1, Ordering::Relaxed) == 1 { 100_000 } else { sent.len() };
        Reply::new(200, "").with(Body::Cut { announced: sent.len(), sent: sent[..passes].to_vec() })
    });
    assert!(pull(&Place::new().client(), &server.address, &descriptor(&blob)).unwrap() == blob);
    assert_eq!(server.seen().len(), 2);
}

fn a_range_that_was_not_asked_for_is_refused() {
    let blob = noise(1000);
    let sent = blob.clone();
    let server = Server::new(move |request| match request.range() {
        None => rest(request, &sent, 500),
        Some(_) => Reply::new(206, &sent[..500]).header("Content-Range", "bytes 0-499/1000"),
    });
    let error = pull(&Place::new().client(), &server.address, &descriptor(&blob)).unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    assert!(error.to_string().contains("asked for bytes 500 to 1000"), "{error}");
}

fn a_registry_that_gives_a_byte_at_a_time_is_given_up() {
    let blob = noise(1000);
    let sent = blob.clone();
    let server = Server::new(move |request| rest(request, &sent, 1));
    let error = pull(&Place::new().client(), &server.address, &descriptor(&blob)).unwrap_err();
    assert!(error.to_string().contains("receive byte 5 of 1000"), "{error}");
    assert_eq!(server.seen().len(), 5);
}

fn a_blob_that_is_not_its_digest_is_refused() {
    let server = Server::new(|_| Reply::new(200, "lAyer"));
    let error = pull(&Place::new().client(), &server.address, &descriptor(b"layer")).unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    assert!(error.to_string().contains("the digest is sha256:"), "{error}");
}

fn a_blob_of_another_size_is_refused() {
    let server = Server::new(|_| Reply::new(200, "layer and more"));
    let error = pull(&Place::new().client(), &server.address, &descriptor(b"layer")).unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    assert!(error.to_string().ends_with("it has 14 bytes, not 5"), "{error}");
}

fn an_endless_blob_ends_at_its_size() {
    let server = Server::new(|_| Reply::new(200, "").with(Body::Endless));
    let started = Instant::now();
    let error = pull(&Place::new().client(), &server.address, &descriptor(b"layer")).unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity, "{error}");
    assert_eq!(pull(&Place::new().client(), &server.address, &descriptor(b"     ")).unwrap(), b"     ");
    assert!(started.elapsed() < Duration::from_secs(10));
}

fn a_busy_registry_is_asked_again_when_it_says() {
    let count = AtomicUsize::new(0);
    let server = Server::new(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        // The look whether it speaks HTTP.
        0 => Reply::new(200, ""),
        1 => Reply::new(429, "").header("Retry-After", 2),
        2 => Reply::new(503, ""),
        _ => Reply::new(200, "layer"),
    });
    let started = Instant::now();
    assert_eq!(pull(&Place::new().client(), &server.address, &descriptor(b"layer")).unwrap(), b"layer");
    assert_eq!(server.seen().len(), 3);
    assert!(started.elapsed() >= Duration::from_secs(3), "{:?}", started.elapsed());
}

fn a_registry_that_wants_too_much_patience_gets_none() {
    let server = Server::new(|_| Reply::new(429, "").header("Retry-After", 3600));
    let started = Instant::now();
    let error = pull(&Place::new().client(), &server.address, &descriptor(b"layer")).unwrap_err().to_string();
    assert!(error.contains("wait 3600 s, as the registry asks: GET") && error.contains("429"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
}
