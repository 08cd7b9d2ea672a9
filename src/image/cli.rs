//! The command line of keel-image: the options that concern all commands, and for each command its own.
//!
//! A command joins with a variant of [`Operation`], a struct of its options, and a line in [`run`]; what it does is
//! in the file of its name.

mod ask;
mod transfer;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;

use crate::error::{Context, Error, Kind, Result};
use crate::image::bundle::convert::Annotations;
use crate::image::bundle::{self, Rootfs};
use crate::image::digest::Digest;
use crate::image::platform::Platform;
use crate::image::progress::{self, Progress};
use crate::image::pull::{self, Policy};
use crate::image::reference::{Named, Reference};
use crate::image::registry::{Client, Mirror, Options};
use crate::image::rootless::{self, Rootless};
use crate::image::store::{self, Store, upkeep};
use crate::image::unpack::Range;
use crate::image::{commit, copy, import, inspect, limits, load, login, ls, prune, rm, tags, umount, verify};

pub use ask::{InspectOptions, LoginOptions, LogoutOptions, TagsOptions};
pub use transfer::{
    CommitOptions, ConfigOptions, CopyOptions, ExportOptions, Format, ImportOptions, LoadOptions,
    PushOptions, SaveOptions, Which,
};

/// Container images: fetch, unpack, make, push
#[derive(Parser, Debug)]
#[command(name = "keel-image", version, max_term_width = 100, subcommand_required = true)]
pub struct CommandLine {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub operation: Operation,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Where images are kept [default: /var/lib/keel, or $XDG_DATA_HOME/keel for a user]
    #[arg(long, global = true, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// A registry that may speak plain HTTP or show any certificate; can be repeated
    #[arg(long, global = true, value_name = "HOST[:PORT]", value_parser = registry)]
    pub insecure: Vec<String>,
    /// Further authorities for certificates, in PEM; can be repeated
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Vec<PathBuf>,
    /// Directory with HOST[:PORT]/{*.crt,*.cert,*.key} [default: /etc/containers/certs.d and /etc/docker/certs.d]
    #[arg(long, global = true, value_name = "DIR")]
    pub certs_dir: Option<PathBuf>,
    /// File with credentials, as docker's config.json [default: $REGISTRY_AUTH_FILE, docker's, podman's]
    #[arg(long, global = true, value_name = "FILE")]
    pub creds_file: Option<PathBuf>,
    /// Where to ask before the registry, docker.io if none is named; can be repeated
    #[arg(long, global = true, value_name = "[REGISTRY=]HOST[:PORT][/PREFIX]", value_parser = Mirror::parse)]
    pub mirror: Vec<Mirror>,
    /// How progress is shown on stderr
    #[arg(long, global = true, value_name = "HOW", value_enum, default_value_t, hide_possible_values = true)]
    pub progress: progress::Mode,
    /// Say nothing but the result and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Give the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// The user namespace that the command is in, if it has no privileges.
    #[arg(skip)]
    pub rootless: Option<Rootless>,
}

impl Global {
    pub fn client(&self) -> Result<Client> {
        Client::new(Options {
            insecure: self.insecure.clone(),
            ca: self.ca.clone(),
            certs_dir: self.certs_dir.clone(),
            creds_file: self.creds_file.clone(),
            mirrors: self.mirror.clone(),
            notify: if self.quiet { |_| () } else { tell },
        })
    }

    pub fn store(&self) -> Result<Store> {
        let store = Store::open(Some(&self.store_path()?))?;
        if let Some(rootless) = &self.rootless {
            store.keep_to_ids(rootless)?;
        }
        Ok(store)
    }

    pub fn store_path(&self) -> Result<PathBuf> {
        match &self.store {
            Some(path) => Ok(path.clone()),
            // Who is root in a namespace only has the user's.
            None => store::default_path(geteuid().is_root() && self.rootless.is_none()),
        }
    }

    pub fn progress(&self) -> Progress {
        Progress::new(self.progress, self.quiet)
    }

    /// What the user wrote; if a short name was meant for another registry, this is where it shows.
    pub fn reference(&self, text: &str) -> Result<Reference> {
        let reference = Reference::find(text)?;
        self.tell_expansion(text, &reference);
        Ok(reference)
    }

    pub fn repository(&self, text: &str) -> Result<Named> {
        let repository = Named::parse_repository(text)?;
        self.tell_expansion(text, &repository);
        Ok(repository)
    }

    /// The same where only a name in a registry, or in the store, can be meant.
    pub fn named(&self, text: &str) -> Result<Named> {
        let named = Named::parse(text)?;
        self.tell_expansion(text, &named);
        Ok(named)
    }

    /// What is being done, on stderr.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            tell(text);
        }
    }

    fn tell_expansion(&self, text: &str, full: &impl ToString) {
        let full = full.to_string();
        if full != text && !self.quiet {
            tell(&format!("{text} is {full}"));
        }
    }
}

#[derive(Subcommand, Debug)]
pub enum Operation {
    Bundle(Box<BundleOptions>),
    Pull(PullOptions),
    /// List the images in the store
    Ls,
    Rm(RmOptions),
    /// Delete what no name and no bundle needs any more
    Prune,
    /// Check the store's blobs against their digests
    Verify,
    Umount(UmountOptions),
    /// What other commands leave to a process of its own
    #[command(hide = true)]
    Upkeep,
    /// What a user namespace gets its ids from
    #[command(hide = true)]
    MapIds {
        pid: u32,
        uids: String,
        gids: String,
    },
    Inspect(InspectOptions),
    Tags(TagsOptions),
    Copy(CopyOptions),
    Push(PushOptions),
    Save(SaveOptions),
    Load(LoadOptions),
    Import(ImportOptions),
    Export(ExportOptions),
    Commit(CommitOptions),
    Login(LoginOptions),
    Logout(LogoutOptions),
}

// Of the commands that unpack layers. A doc comment would be the help of these.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Jobs {
    /// How many layers are worked on at once [default: one a processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
}

impl Jobs {
    pub fn count(self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or_else(processors, usize::from)
    }
}

/// Make a bundle of an image, fetched if it is not in the store
#[derive(Args, Debug)]
pub struct BundleOptions {
    /// The image
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Where the bundle is to be: a directory that does not exist, or is empty
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Arguments in place of the image's command
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<String>,
    /// What the root is: overlay, ro, copy, mount
    #[arg(long, value_name = "HOW", value_enum, default_value_t, hide_possible_values = true)]
    pub rootfs: Rootfs,
    /// Which of the image's platforms, as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = Platform::parse)]
    pub platform: Option<Platform>,
    /// When to ask the registry: missing, always, never
    #[arg(long, value_name = "WHEN", value_enum, default_value = "missing", hide_possible_values = true)]
    pub pull: Policy,
    /// Refuse an image of any other digest
    #[arg(long, value_name = "SHA256:HEX", value_parser = Digest::parse)]
    pub expect_digest: Option<Digest>,
    /// Run as another user than the image's
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Set a variable, or take it from the own environment; can be repeated
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Start in another directory than the image's
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run another program than the image's; its command goes with it
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Show a file or directory of the host in the container; can be repeated
    #[arg(long, short, value_name = "SOURCE:DESTINATION[:OPTIONS]")]
    pub volume: Vec<String>,
    /// Which of the image's labels become annotations: safe, all, none
    #[arg(long, value_name = "WHICH", value_enum, default_value_t, hide_possible_values = true)]
    pub annotations: Annotations,
    /// Make the device nodes that the image has
    #[arg(long)]
    pub devices: bool,
    /// Give the container a user namespace with these users; can be repeated
    #[arg(long, value_name = "CONTAINER:HOST:SIZE", value_parser = bundle::parse_range)]
    pub uid_map: Vec<Range>,
    /// The same with groups [default: as the users]
    #[arg(long, value_name = "CONTAINER:HOST:SIZE", value_parser = bundle::parse_range)]
    pub gid_map: Vec<Range>,
    /// What an image may cost at most, as entries=3m; can be repeated
    #[arg(long, value_name = "KEY=N", value_parser = limits::parse)]
    pub limits: Vec<(String, u64)>,
    #[command(flatten)]
    pub jobs: Jobs,
    /// Replace a bundle that is there
    #[arg(long)]
    pub force: bool,
}

/// Fetch images into the store
#[derive(Args, Debug)]
pub struct PullOptions {
    /// The images
    #[arg(value_name = "REF", required = true)]
    pub references: Vec<String>,
    /// Which of the image's platforms, as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = Platform::parse)]
    pub platform: Option<Platform>,
    /// When to ask the registry: missing, always, never
    #[arg(long, value_name = "WHEN", value_enum, default_value = "always", hide_possible_values = true)]
    pub pull: Policy,
    /// Make the device nodes that the image has
    #[arg(long)]
    pub devices: bool,
    /// What an image may cost at most, as entries=3m; can be repeated
    #[arg(long, value_name = "KEY=N", value_parser = limits::parse)]
    pub limits: Vec<(String, u64)>,
    #[command(flatten)]
    pub jobs: Jobs,
}

/// Take names out of the store; prune deletes what they stood for
#[derive(Args, Debug)]
pub struct RmOptions {
    /// The images
    #[arg(value_name = "REF", required = true)]
    pub references: Vec<String>,
}

/// Unmount what bundle --rootfs=mount has mounted
#[derive(Args, Debug)]
pub struct UmountOptions {
    /// The bundle
    #[arg(value_name = "DIR")]
    pub bundle: PathBuf,
}

impl Operation {
    /// Files of many owners are made, or read.
    fn works_on_files_of_images(&self) -> bool {
        use Operation::{Bundle, Commit, Export, Import, Load, Prune, Pull, Upkeep};
        matches!(self, Bundle(_) | Pull(_) | Prune | Upkeep | Load(_) | Import(_) | Export(_) | Commit(_))
    }
}

fn registry(text: &str) -> Result<String, String> {
    let registry = match text {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        text => text,
    };
    crate::image::reference::check_registry(registry)
        .map_err(|(at, why)| format!("character {}: {why}", at + 1))?;
    Ok(registry.to_ascii_lowercase())
}

/// What is for stdout.
pub fn run(command_line: &mut CommandLine) -> Result<Vec<u8>> {
    // Each layer is held open, and each directory on the way down in it: the usual 1,024 are few.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context(|| format!("set RLIMIT_NOFILE to {most}"))?;
    if command_line.operation.works_on_files_of_images() {
        command_line.global.rootless = rootless::enter()?;
    }
    let global = &command_line.global;
    match &command_line.operation {
        Operation::Bundle(options) => bundle::bundle(global, options),
        Operation::Pull(options) => pull::pull(global, options),
        Operation::Ls => ls::ls(global),
        Operation::Rm(options) => rm::rm(global, options),
        Operation::Prune => prune::prune(global),
        Operation::Verify => verify::verify(global),
        Operation::Umount(options) => umount::umount(global, options),
        Operation::Upkeep => upkeep::upkeep(global),
        Operation::MapIds { pid, uids, gids } => rootless::map_ids(*pid, uids, gids),
        Operation::Inspect(options) => inspect::inspect(global, options),
        Operation::Tags(options) => tags::tags(global, options),
        Operation::Copy(options) => copy::copy(global, options),
        Operation::Push(options) => copy::push(global, options),
        Operation::Save(options) => copy::save(global, options),
        Operation::Load(options) => load::load(global, options),
        Operation::Import(options) => import::import(global, options),
        Operation::Export(options) => import::export(global, options),
        Operation::Commit(options) => commit::commit(global, options),
        Operation::Login(options) => login::login(global, options),
        Operation::Logout(options) => login::logout(global, options),
    }
}

/// 0 is success, 2 a command line that clap refuses.
pub fn exit_code(error: &Error) -> u8 {
    use nix::errno::Errno;
    match (error.kind(), error.errno()) {
        (Kind::NotFound, _) => 3,
        (Kind::Denied, _) => 4,
        (Kind::Integrity, _) => 5,
        (Kind::Limit, _) => 6,
        (Kind::NoSpace, _) | (_, Some(Errno::ENOSPC | Errno::EDQUOT)) => 7,
        _ => 1,
    }
}

/// One line on stderr.
fn tell(text: &str) {
    let text: String =
        text.split('\n').next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    // EPIPE: there is nobody left to tell.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("keel-image: {text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn an_exit_code_tells_the_kind() {
        for (kind, code) in
            [(Kind::Other, 1), (Kind::NotFound, 3), (Kind::Denied, 4), (Kind::Integrity, 5), (Kind::Limit, 6)]
        {
            assert_eq!(exit_code(&Error::of_kind(kind, "x")), code);
        }
        assert_eq!(exit_code(&nix::errno::Errno::ENOSPC.into()), 7);
        assert_eq!(exit_code(&nix::errno::Errno::EIO.into()), 1);
    }
}
