//! Images: keel-image, as built, and its client of registries, against Debian's docker-registry and against a server
//! that does what a hostile one would.
#![deny(unsafe_code)]

#[allow(dead_code, reason = "the tests of unpack use the rest")]
#[path = "../unpack/archive.rs"]
mod archive;
mod fixture;
#[path = "../harness/mod.rs"]
mod harness;
mod images;
mod in_use;
mod place;
mod server;

mod archives;
mod auth;
mod blobs;
mod bundle;
mod bundle_layers;
mod bundle_refused;
mod copy;
mod debian_registry;
mod kills;
mod manifests;
mod mirrors;
mod pull;
mod push;
mod redirects;
mod rootless;
mod store;
mod store_archives;
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
    pull::TESTS,
    store::TESTS,
    kills::TESTS,
    bundle::TESTS,
    bundle_layers::TESTS,
    bundle_refused::TESTS,
    in_use::TESTS,
    rootless::TESTS,
];

fn main() -> ExitCode {
    harness::run("image", TESTS, || Ok(())).exit_code()
}
