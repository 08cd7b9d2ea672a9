//! Layers against the real kernel; as root, for owners, devices and `trusted.*`: from archives to files, and back.
#![deny(unsafe_code)]

#[path = "../harness/mod.rs"]
mod harness;

mod archive;
mod escapes;
mod formats;
mod kernel;
mod layers;
mod limits;
mod pack;

use std::process::ExitCode;

use harness::Test;

const TESTS: &[&[Test]] =
    &[layers::TESTS, formats::TESTS, escapes::TESTS, limits::TESTS, kernel::TESTS, pack::TESTS];

fn main() -> ExitCode {
    harness::run("unpack", TESTS, || Ok(())).exit_code()
}

pub fn root() -> Result<(), String> {
    nix::unistd::geteuid().is_root().then_some(()).ok_or("needs root".into())
}

pub fn program(name: &str) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').any(|dir| std::path::Path::new(dir).join(name).exists());
    found.then_some(()).ok_or_else(|| format!("{name} is not installed"))
}
