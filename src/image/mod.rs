//! Images: from a name to verified bytes. This is keel-image's half of the crate; it uses the runtime's base (errors,
//! JSON with pointers, system calls) and nothing else of it, and the runtime uses nothing of this.
//!
//! | What | File |
//! |---|---|
//! | the command line | [`cli`]; what a command does is in the file of its name |
//! | how an image is named | [`reference`] |
//! | digests, and streams that are checked against one | [`digest`] |
//! | how a layer is compressed | [`compression`] |
//! | manifests, indexes and configs, as far as they decide what is fetched | [`manifest`] |
//! | which of an index's images is for this machine | [`platform`] |
//! | images in directories and in archives | [`layout`], [`docker_archive`]; [`archive`] finds what is in a tar file |
//! | images on their way out | [`destination`], [`mod@write`] |
//! | a tree becomes a layer | [`pack`]; [`make`] makes an image of it |
//! | a bundle's root, as its container sees it | [`container_root`] |
//! | parts of files, and files for a while | [`section`], [`scratch`] |
//! | the distribution API | [`registry`] |
//! | who we are to a registry | [`credentials`] |
//! | where an image is read from, whichever it is | [`source`] |
//! | what is kept here | [`store`] |
//! | from a source into the store | [`fetch`]; what the user sees of it [`progress`] |
//! | what an image may cost | [`limits`] |
//! | what may not be deleted, since it is mounted | [`mounted`] |
//! | from a layer's blob to files | [`unpack`] |
//! | layers over each other | [`overlay`], [`fixup`] |
//! | without privileges: a user namespace around the command | [`rootless`] |
//! | a directory that a runtime runs | [`bundle`] |
//!
//! The text of an error may have a second line, which says the way out. Its [`crate::error::Kind`] is the exit code.
//!
//! Formats: <https://github.com/opencontainers/image-spec>, <https://github.com/opencontainers/distribution-spec>,
//! <https://distribution.github.io/distribution/spec/manifest-v2-2/>

pub mod archive;
pub mod bundle;
pub mod cli;
pub mod commit;
pub mod compression;
pub mod container_root;
pub mod copy;
pub mod credentials;
pub mod destination;
pub mod digest;
pub mod docker_archive;
pub mod fetch;
pub mod fixup;
pub mod import;
pub mod inspect;
pub mod layout;
pub mod limits;
pub mod load;
pub mod login;
pub mod ls;
pub mod make;
pub mod manifest;
pub mod mounted;
pub mod overlay;
pub mod pack;
pub mod platform;
pub mod progress;
pub mod prune;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod rm;
pub mod rootless;
pub mod scratch;
pub mod section;
pub mod source;
pub mod store;
pub mod tags;
pub mod umount;
pub mod unpack;
pub mod verify;
pub mod write;
