//! The options of what moves images between places, and of what makes them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::image::limits;
use crate::image::make::{Words, absolute, port, variable};
use crate::image::pack::compress::Method;
use crate::image::platform::Platform;

/// Which of an image's platforms, and how compressed
#[derive(Args, Debug)]
pub struct Which {
    /// One of the image's platforms, as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = Platform::parse)]
    pub platform: Option<Platform>,
    /// All platforms, and whatever else the image's index names, with the index as it is
    #[arg(long, conflicts_with = "platform")]
    pub all: bool,
    /// Compress layers anew with gzip, zstd or none; the image gets another digest. Layers stay as they are otherwise,
    /// but for a docker-archive's, which are compressed with gzip
    #[arg(long, value_name = "METHOD[:LEVEL]")]
    pub compression: Option<Method>,
    /// What an image may cost; see pull
    #[arg(long, value_name = "KEY=N", value_parser = limits::parse)]
    pub limits: Vec<(String, u64)>,
}

impl Which {
    pub fn platform(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::host)
    }
}

/// Copy an image between registries, image layouts and archives, byte for byte
#[derive(Args, Debug)]
pub struct CopyOptions {
    /// A name in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]
    #[arg(value_name = "SRC")]
    pub source: String,
    /// The same
    #[arg(value_name = "DST")]
    pub destination: String,
    #[command(flatten)]
    pub which: Which,
}

/// Send an image to a registry
#[derive(Args, Debug)]
pub struct PushOptions {
    /// The name of an image in the store, or an image layout or archive as for copy
    #[arg(value_name = "SRC")]
    pub source: String,
    /// The name that it gets, with its registry
    #[arg(value_name = "REF")]
    pub destination: String,
    #[command(flatten)]
    pub which: Which,
}

/// Write an image of the store to an archive
#[derive(Args, Debug)]
pub struct SaveOptions {
    /// The image
    #[arg(value_name = "REF")]
    pub reference: String,
    /// The archive; - is stdout
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// oci keeps the image's digest; docker is what `docker load` of before 25 reads
    #[arg(long, value_name = "oci|docker", default_value = "oci")]
    pub format: Format,
    #[command(flatten)]
    pub which: Which,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Oci,
    Docker,
}

/// Put the images of an archive into the store
#[derive(Args, Debug)]
pub struct LoadOptions {
    /// What docker save, podman save or keel-image save has written, compressed or not; - is stdin
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// What the image is to be called, if the archive does not say it, or says something else
    #[arg(long, value_name = "REF")]
    pub name: Option<String>,
    /// Which of the image's platforms, as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = Platform::parse)]
    pub platform: Option<Platform>,
    /// Make the device nodes that the image has
    #[arg(long)]
    pub devices: bool,
    /// What an image may cost; see pull
    #[arg(long, value_name = "KEY=N", value_parser = limits::parse)]
    pub limits: Vec<(String, u64)>,
}

/// Make an image of one layer from a root file system
#[derive(Args, Debug)]
pub struct ImportOptions {
    /// A tar archive, compressed or not, or a directory; - is an archive from stdin
    #[arg(value_name = "ROOTFS.tar|DIR|-")]
    pub file: PathBuf,
    /// The name of the image
    #[arg(value_name = "REF")]
    pub reference: String,
    /// What it is for, as linux/arm64 [default: this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = Platform::parse)]
    pub platform: Option<Platform>,
    /// How the layer is compressed: gzip, zstd or none
    #[arg(long, value_name = "METHOD[:LEVEL]", default_value = "gzip")]
    pub compression: Method,
    /// A remark for the image's history
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
    /// What an image may cost; see pull
    #[arg(long, value_name = "KEY=N", value_parser = limits::parse)]
    pub limits: Vec<(String, u64)>,
    #[command(flatten)]
    pub config: ConfigOptions,
}

/// Write a bundle's root file system to a tar archive
#[derive(Args, Debug)]
pub struct ExportOptions {
    /// The bundle's directory
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// The archive; - is stdout
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// What the root may cost: bytes=N, holes included
    #[arg(long, value_name = "KEY=N", value_parser = limits::parse)]
    pub limits: Vec<(String, u64)>,
}

/// Make an image of a bundle's own image and what its container has written
#[derive(Args, Debug)]
pub struct CommitOptions {
    /// The bundle's directory
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// The name of the new image
    #[arg(value_name = "REF")]
    pub reference: String,
    /// The container that uses the bundle; it is paused meanwhile
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// The runtime of that container
    #[arg(long, value_name = "PROGRAM", default_value = "keel", requires = "container")]
    pub runtime: PathBuf,
    /// The runtime's --root
    #[arg(long, value_name = "DIR", requires = "container")]
    pub runtime_root: Option<PathBuf>,
    /// How the layer is compressed: gzip, zstd or none
    #[arg(long, value_name = "METHOD[:LEVEL]", default_value = "gzip")]
    pub compression: Method,
    /// Who made it
    #[arg(long, value_name = "TEXT")]
    pub author: Option<String>,
    /// A remark for the image's history
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
    /// What an image may cost; see pull
    #[arg(long, value_name = "KEY=N", value_parser = limits::parse)]
    pub limits: Vec<(String, u64)>,
    #[command(flatten)]
    pub config: ConfigOptions,
}

/// What containers of a new image are like
#[derive(Args, Debug)]
#[command(next_help_heading = "Config of the image")]
pub struct ConfigOptions {
    /// The command, or what follows the entry point: a JSON list, or a line for /bin/sh
    #[arg(long, value_name = "WORDS")]
    pub cmd: Option<Words>,
    /// The same for what is always run
    #[arg(long, value_name = "WORDS")]
    pub entrypoint: Option<Words>,
    /// A variable of the environment; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable)]
    pub env: Vec<String>,
    /// The directory to start in
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub workdir: Option<String>,
    /// Who runs it: NAME or ID, with :GROUP if need be
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// A label; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable)]
    pub label: Vec<String>,
    /// A directory whose files are not the image's; can be repeated
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub volume: Vec<String>,
    /// A port that it listens on; can be repeated
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = port)]
    pub expose: Vec<String>,
    /// The signal that ends it
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
}
