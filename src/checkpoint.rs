//! `keel checkpoint`: saves the processes of a container into files, with criu, and ends it.
//!
//! Criu saves what the processes have and the file systems that were made for the container. What is the host's it is
//! told not to look behind: bind mounts, namespaces that were joined, standard streams, the root's files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, readlink};
use nix::sys::stat::fstat;

use crate::cli::{CheckpointOptions, CriuOptions};
use crate::container::{Container, NOTIFY_DIR, State, Status};
use crate::criu::rpc::{CgroupMode, ExtMount, Opts, PageServer, RequestType};
use crate::criu::stdio::Streams;
use crate::criu::{Criu, Images};
use crate::delete::destroy;
use crate::error::{Context, Error, Kind, Result};
use crate::linux::mounts::{self, external};
use crate::linux::namespaces::{self, Namespace, Namespaces};
use crate::notify;
use crate::proc::Proc;
use crate::root::Root;
use crate::spec::{self, Node, Report};
use crate::sys::process::adopt_fd;

const LOG: &str = "dump.log";

/// runc's annotation for a configuration file of criu's in place of runc's.
pub const CONFIG_ANNOTATION: &str = "org.criu.config";

pub fn checkpoint(root: &Path, options: &CheckpointOptions) -> Result<()> {
    save(root, options).context(|| format!("checkpoint container {}", options.id))
}

fn save(root: &Path, options: &CheckpointOptions) -> Result<()> {
    Criu::refuse_user()?;
    let mut container = Container::open(root, &options.id)?;
    // Nobody may delete or freeze it meanwhile, nor restore into its place.
    container.lock()?;
    let state = container.state()?;
    match container.status(&state)? {
        // A frozen one stays so, and is saved no less.
        Status::Running | Status::Paused => {}
        status => {
            let message = format!("container cannot be checkpointed in {status} state");
            return Err(Error::of_kind(Kind::WrongStatus, message));
        }
    }
    let mut ready = options.status_fd.map(status_fd).transpose()?;
    let images = Images::make(&options.criu.image_path, options.criu.work_path.as_deref(), LOG)?;
    options.parent_path.as_deref().map_or(Ok(()), |parent| images.check_parent(parent))?;
    let opts = request(&container, &state, options, &images)?;

    let kind = if options.pre_dump { RequestType::PreDump } else { RequestType::Dump };
    let criu = Criu::start(None, &[])?;
    let answer = criu.ask(kind, opts, None, |notice| match (notice.script.as_str(), ready.take()) {
        ("status-ready", Some(mut fd)) => fd.write_all(&[0]).context(|| "write to --status-fd"),
        (_, fd) => {
            ready = fd;
            Ok(())
        }
    });
    // Until then it has processes of the container stopped.
    criu.finish(kind)?;
    match answer {
        Ok(answer) if answer.success => {}
        Ok(answer) => return Err(images.failure(&answer)),
        Err(error) => return Err(images.explain(&error.to_string())),
    }
    if options.leave_running || options.pre_dump { Ok(()) } else { destroy(&container, &state) }
}

fn status_fd(fd: u32) -> Result<File> {
    let open = || -> Result<OwnedFd, Errno> {
        let fd = adopt_fd(i32::try_from(fd).map_err(|_| Errno::EBADF)?)?;
        let mode = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
        // Criu must not keep it open: its end is waited for.
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        if mode == OFlag::O_RDONLY { Err(Errno::EBADF) } else { Ok(fd) }
    };
    open().map(File::from).context(|| format!("write to --status-fd {fd}"))
}

/// What `checkpoint` and `restore` ask for in the same way.
pub fn common(options: &CriuOptions, images: &Images, annotations: &BTreeMap<String, String>) -> Opts {
    // Settings of the host's administrator, as other runtimes have them; a missing file is ignored.
    let config = annotations.get(CONFIG_ANNOTATION).map_or("/etc/criu/runc.conf", String::as_str);
    Opts {
        config_file: (!config.is_empty()).then(|| config.to_owned()),
        tcp_established: Some(options.tcp_established),
        ext_unix_sk: Some(options.ext_unix_sk),
        shell_job: Some(options.shell_job),
        file_locks: Some(options.file_locks),
        auto_dedup: Some(options.auto_dedup),
        lazy_pages: Some(options.lazy_pages),
        manage_cgroups_mode: Some(options.manage_cgroups_mode.unwrap_or(CgroupMode::Default).into()),
        // Network devices are given to a container from outside, when it is restored too.
        empty_ns: Some(nix::libc::CLONE_NEWNET as u32),
        // The terminal's other side is the engine's.
        orphan_pts_master: Some(true),
        ..images.opts()
    }
}

fn request(
    container: &Container,
    state: &State,
    options: &CheckpointOptions,
    images: &Images,
) -> Result<Opts> {
    let ps = options
        .page_server
        .as_ref()
        .map(|(address, port)| PageServer { address: Some(address.clone()), port: Some((*port).into()) });
    let cgroup = state.cgroup.as_deref().map(|path| path.to_string_lossy().into_owned());
    let mut opts = Opts {
        pid: Some(state.pid),
        ps,
        leave_running: Some(options.leave_running),
        tcp_skip_in_flight: Some(options.tcp_skip_in_flight),
        link_remap: Some(options.link_remap),
        parent_img: options.parent_path.clone(),
        track_mem: Some(options.pre_dump || options.parent_path.is_some()),
        // Stops a process that forks without end, too.
        freeze_cgroup: cgroup,
        ..common(&options.criu, images, &state.annotations)
    };
    if options.pre_dump {
        return Ok(opts);
    }
    let report = Report::default();
    let config = spec::parse(&container.config()?, &report)?;
    let config = Node::root(&config, &report);
    let namespaces = Namespaces::plan(&config.object_or_empty("linux"));
    check(&namespaces)?;
    let has = |kind| namespaces.is_private(kind);
    let own = mounts::Own { mount: true, cgroup: has(namespaces::Kind::Cgroup), ..Default::default() };
    let mounts = mounts::plan(&config, &state.bundle, own);
    report.finish().context(|| "read the config that the container was created with")?;

    let proc = Proc::host();
    let streams = Streams::of(&proc, state.pid)?;
    streams.save(images)?;
    opts.external = streams.external;
    for kind in [namespaces::Kind::Network, namespaces::Kind::Pid] {
        if let Namespace::Join(..) = namespaces.get(kind) {
            let inode = fstat(proc.namespace(state.pid, kind.file())?).context(|| "stat a namespace")?.st_ino;
            opts.external.push(format!("{}[{inode}]:{}", kind.file(), external_key(kind)));
        }
    }
    let root = Root::new(proc.root(state.pid)?);
    let host = proc.mount_points("self")?;
    let mut destinations: Vec<_> =
        external::list(&mounts, &host).into_iter().map(|mount| mount.destination).collect();
    if container.has(NOTIFY_DIR)? {
        destinations.push(notify::INSIDE.into());
    }
    for destination in destinations {
        opts.ext_mnt.extend(mount_point(&root, &destination)?);
    }
    Ok(opts)
}

/// What no criu can restore is better not saved.
pub fn check(namespaces: &Namespaces) -> Result<()> {
    use namespaces::Kind::{Cgroup, Mount, User};
    if namespaces.is_private(User) {
        // With criu 4.1 on Linux 6.12; without devices in a tmpfs, and with images that the container's root can
        // read, it would work.
        let why = "criu fills a tmpfs from inside the user namespace, where none of the devices of /dev can be made";
        return Err(Error::new(format!(
            "a container with a user namespace cannot be saved and restored: {why}"
        )));
    }
    if !namespaces.is_new(Mount) {
        return Err(Error::new("criu needs a container with a new mount namespace"));
    }
    match namespaces.get(Cgroup) {
        Namespace::Join(_, field) => Err(Error::new("criu cannot join a cgroup namespace").field(field)),
        _ => Ok(()),
    }
}

/// What a joined namespace is called in the images; other runtimes do so too.
pub fn external_key(kind: namespaces::Kind) -> &'static str {
    if kind == namespaces::Kind::Network { "extRootNetNS" } else { "extRootPidNS" }
}

/// Where the mount of this destination is; None if it has been unmounted.
fn mount_point(root: &Root, destination: &Path) -> Result<Option<ExtMount>> {
    let what = || format!("find {} in the container", destination.display());
    let fd = match root.open(destination, nix::libc::O_PATH) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        fd => fd.context(what)?,
    };
    let path = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str()).context(what)?;
    let key = path.into_string().map_err(|_| Error::new("the path is not UTF-8")).context(what)?;
    Ok(Some(ExtMount { key, val: destination.to_string_lossy().into_owned() }))
}
