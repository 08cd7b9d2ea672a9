//! Images on their way out: into a directory, or into a tar file.
//!
//! | What | File |
//! |---|---|
//! | a tar file, entry by entry, that gets its name when it is whole | [`tar_file`] |
//! | `oci:PATH`, `oci-archive:FILE` | [`layout`] |
//! | `docker-archive:FILE` | [`docker_archive`] |

pub mod docker_archive;
pub mod layout;
pub mod tar_file;
