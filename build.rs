//! Lets the program begin at `keel_entry` (src/sys/entry.rs) instead of the C library's `_start`.
//!
//! Only at a fixed address, as .cargo/config.toml has it: a static program that relocates itself has not done so
//! by then, and calls and constants could lead anywhere. Others start as usual, only slower.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTFLAGS");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if ["x86_64", "aarch64"].contains(&architecture.as_str()) && flags.contains("relocation-model=static") {
        println!("cargo::rustc-link-arg-bins=-Wl,--entry=keel_entry");
    }
}
