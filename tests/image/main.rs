//! Images: keel-image, as built, and its client of registries, against Debian's docker-registry and against a server
//! that does what a hostile one would.
//!
//! With STRICT=1 a test that has to be skipped is a failure, unless MAY_SKIP has a line with just its reason.
#![deny(unsafe_code)]

mod place;
mod server;

mod auth;
mod blobs;
mod debian_registry;
mod manifests;
mod mirrors;
mod push;
mod redirects;
mod tags;

use std::env;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use place::Test;

const TESTS: &[&[Test]] = &[
    manifests::TESTS,
    blobs::TESTS,
    redirects::TESTS,
    auth::TESTS,
    tags::TESTS,
    mirrors::TESTS,
    push::TESTS,
    debian_registry::TESTS,
];

fn main() -> ExitCode {
    let trials = TESTS.iter().copied().flatten().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(test: &'static Test) -> Trial {
    let name = test.name.strip_prefix("image::").unwrap_or(test.name);
    Trial::ignorable_test(name, move || {
        (test.run)();
        match place::skipped() {
            None => Ok(Completion::Completed),
            Some(why) if env::var("STRICT").is_ok_and(|strict| strict == "1") && !may_skip(&why) => {
                Err(Failed::from(format!("skipped, but STRICT=1: {why}")))
            }
            Some(why) => {
                eprintln!("SKIP {name}: {why}");
                Ok(Completion::ignored_with(why))
            }
        }
    })
}

fn may_skip(why: &str) -> bool {
    env::var("MAY_SKIP").is_ok_and(|reasons| reasons.lines().any(|reason| reason.trim() == why))
}
