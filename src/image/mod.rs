//! `keel-image`: an OCI or Docker image becomes a bundle that keel runs.

pub mod unpack;
