//! Images: keel-image, as built, and its client of registries, against Debian's docker-registry and against a server
//! that does what a hostile one would.
#![deny(unsafe_code)]

#[path = "../harness/mod.rs"]
mod harness;
mod place;
mod server;
mod store_archives;

mod archives;
mod auth;
mod blobs;
mod copy;
mod debian_registry;
mod images;
mod manifests;
mod mirrors;
mod push;
mod redirects;
mod tags;

use std::process::ExitCode;

use harness::Test;

const TESTS: &[&[Test]] = &[
    manifests::TESTS,
    blobs::TESTS,
    redirects::TESTS,
    auth::TESTS,
    tags::TESTS,
    mirrors::TESTS,
    push::TESTS,
    debian_registry::TESTS,
    copy::TESTS,
    archives::TESTS,
    store_archives::TESTS,
];

fn main() -> ExitCode {
    harness::run("image", TESTS, || Ok(())).exit_code()
}
