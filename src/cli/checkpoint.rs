//! The options of `checkpoint` and `restore`, which are runc's.

use std::path::PathBuf;

use clap::Args;

use crate::cgroup::Manager;
use crate::criu::rpc::CgroupMode;

// What `checkpoint` and `restore` have in common.
#[derive(Args, Debug)]
pub struct CriuOptions {
    /// Directory of the images
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Directory for criu's log and its other files [default: that of the images]
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Take established TCP connections along
    #[arg(long)]
    pub tcp_established: bool,
    /// Allow Unix sockets that are connected to processes outside of the container
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Allow a terminal that is not the container's own
    #[arg(long)]
    pub shell_job: bool,
    /// Take file locks along
    #[arg(long)]
    pub file_locks: bool,
    /// Punch out of older images the memory that newer ones have too
    #[arg(long)]
    pub auto_dedup: bool,
    /// Leave memory where it is until it is used; needs `criu lazy-pages`
    #[arg(long)]
    pub lazy_pages: bool,
    /// What is done about cgroups below the container's: soft, full, strict or ignore [default: soft]
    #[arg(long, value_name = "MODE", value_parser = cgroup_mode)]
    pub manage_cgroups_mode: Option<CgroupMode>,
    /// Leave out what is in a namespace: network, which always is left out
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    pub empty_ns: Vec<String>,
}

fn cgroup_mode(text: &str) -> Result<CgroupMode, &'static str> {
    match text {
        "soft" => Ok(CgroupMode::Soft),
        "full" => Ok(CgroupMode::Full),
        "strict" => Ok(CgroupMode::Strict),
        "ignore" => Ok(CgroupMode::Ignore),
        _ => Err("must be soft, full, strict or ignore"),
    }
}

#[derive(Args, Debug)]
pub struct CheckpointOptions {
    /// Name of the container
    pub id: String,
    #[command(flatten)]
    pub criu: CriuOptions,
    /// Directory of an earlier checkpoint, relative to that of the images: only what has changed since is saved
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<String>,
    /// Save the memory only, and let the container run on; a checkpoint with --parent-path is to follow
    #[arg(long)]
    pub pre_dump: bool,
    /// Let the container run on
    #[arg(long)]
    pub leave_running: bool,
    /// Leave out TCP connections that are just being made
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// Give files that are open but deleted a name again, if their directory allows it
    #[arg(long)]
    pub link_remap: bool,
    /// Page server to send the memory to, or with --lazy-pages to be
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = page_server)]
    pub page_server: Option<(String, u16)>,
    /// Descriptor to write a zero byte to when the lazy pages can be asked for
    #[arg(long, value_name = "FD", requires = "lazy_pages")]
    pub status_fd: Option<u32>,
}

fn page_server(text: &str) -> Result<(String, u16), &'static str> {
    let parts = text.rsplit_once(':').and_then(|(address, port)| Some((address, port.parse().ok()?)));
    let address = |address: &str| address.trim_start_matches('[').trim_end_matches(']').to_owned();
    match parts {
        Some((host, port)) if !host.is_empty() && port != 0 => Ok((address(host), port)),
        _ => Err("must be ADDRESS:PORT"),
    }
}

#[derive(Args, Debug)]
pub struct RestoreOptions {
    #[arg(skip)]
    pub cgroup_manager: Manager,
    /// Name of the new container
    pub id: String,
    #[command(flatten)]
    pub criu: CriuOptions,
    /// The bundle: a directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket to send the container's terminal to, its master side
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File to write the pid of the container's process to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Return as soon as the container runs
    #[arg(short, long)]
    pub detach: bool,
    /// Do not adopt the container's orphaned processes
    #[arg(long)]
    pub no_subreaper: bool,
    /// As of create; criu enters the root in its own way
    #[arg(long)]
    pub no_pivot: bool,
    /// Label of the processes, apparmor:PROFILE or selinux:LABEL, in place of what they had
    #[arg(long, value_name = "TYPE:NAME")]
    pub lsm_profile: Option<String>,
    /// SELinux context of the mounts that have one, in place of what they had
    #[arg(long, value_name = "CONTEXT")]
    pub lsm_mount_context: Option<String>,
}
