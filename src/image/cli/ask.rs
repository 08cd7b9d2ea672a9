//! The options of what asks about images, and of what tells registries who we are.

use clap::Args;

use super::registry;
use crate::error::Result;
use crate::image::platform::Platform;

/// Show an image's manifest and config, as JSON
#[derive(Args, Debug)]
pub struct InspectOptions {
    /// The image
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Which of the image's platforms, as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Only the manifest, or the index that the name stands for, byte for byte
    #[arg(long)]
    pub raw: bool,
    /// Only the config, byte for byte
    #[arg(long, conflicts_with = "raw")]
    pub config: bool,
}

impl InspectOptions {
    pub fn platform(&self) -> Result<Platform> {
        self.platform.as_deref().map_or_else(|| Ok(Platform::host()), Platform::parse)
    }
}

/// List the tags of a repository
#[derive(Args, Debug)]
pub struct TagsOptions {
    /// The repository: a name without a tag
    #[arg(value_name = "REPO")]
    pub repository: String,
}

/// Store a name and password for a registry, once it has taken them
#[derive(Args, Debug)]
pub struct LoginOptions {
    /// The registry
    #[arg(value_name = "HOST[:PORT]", default_value = "docker.io", value_parser = registry)]
    pub registry: String,
    /// The name; asked for if it is not given
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Read the password from stdin; it is asked for on the terminal otherwise
    #[arg(long)]
    pub password_stdin: bool,
}

/// Forget the password for a registry
#[derive(Args, Debug)]
pub struct LogoutOptions {
    /// The registry
    #[arg(value_name = "HOST[:PORT]", default_value = "docker.io", value_parser = registry)]
    pub registry: String,
}
