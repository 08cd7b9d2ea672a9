//! Layers against the real kernel; as root, for owners, devices and `trusted.*`.

mod archive;
mod escapes;
mod formats;
mod kernel;
mod layers;
mod limits;

/// Whether this test can run.
pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP needs root");
    }
    root
}
