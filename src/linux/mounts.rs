//! `/mounts`: the mounts below the root, in the listed order, and the one on `/` that replaces it.
//!
//! A mount is made first and attached last: the parent clones the sources of bind mounts on the host, init makes
//! new file systems in its own namespaces. Either is a descriptor of a mount that is attached nowhere, which gets
//! its attributes and is then moved onto its destination, found once and inside the root. So no path is walked
//! twice, and after the clone no path of the host is walked at all.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#mounts>,
//! <https://man7.org/linux/man-pages/man2/move_mount.2.html>,
//! <https://man7.org/linux/man-pages/man2/mount_setattr.2.html>

mod attributes;
mod cgroups;
mod dev;
pub mod external;
mod id_mapped;
mod layers;
mod sources;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;

use crate::error::{At, Context, Error, Field, Result};
use crate::linux::file_system::{FileSystem, reconfigure};
use crate::linux::mount_destination::{self, Destination, Expected, is_directory, not_attached};
use crate::linux::mount_options::{self, FsOption, Options, Propagation, Way};
use crate::linux::tmpcopyup::copy_up;
use crate::root::{Root, cleaned};
use crate::spec::Node;
use crate::sys::mount::{Change, attr, move_mount};

use attributes::set;
use id_mapped::IdMapped;
pub use id_mapped::{Own, Users};
pub use sources::{make_root, open_root, open_sources};

#[derive(Debug, PartialEq)]
pub struct Mounts {
    /// Takes the place of `/root/path`.
    pub root: Option<Mount>,
    list: Vec<Mount>,
}

#[derive(Debug, PartialEq)]
pub struct Mount {
    /// Absolute, inside the container, without `..`.
    destination: PathBuf,
    what: What,
    attributes: Change,
    /// Applied to all mounts below as well.
    recursive: Change,
    propagation: Vec<Propagation>,
    ids: Option<IdMapped>,
    field: Field,
}

#[derive(Debug, PartialEq)]
enum What {
    /// `by_parent`: init, in its user namespace, may not make such a file system.
    New {
        file_system: FileSystem,
        copy_up: bool,
        by_parent: bool,
    },
    Bind {
        source: Source,
        recursive: bool,
        detach: Option<Propagation>,
    },
    Remount(Vec<FsOption>),
}

#[derive(Debug, PartialEq)]
enum Source {
    Path(PathBuf),
    /// The container's own cgroup, in place of the hierarchy, when it has no cgroup namespace.
    Cgroup,
}

/// `config` is the whole document.
pub fn plan(config: &Node, bundle: &Path, own: Own<'_>) -> Mounts {
    let linux = config.object("linux");
    let label = linux.as_ref().and_then(|linux| linux.string("mountLabel"));
    let root_propagation = linux
        .as_ref()
        .and_then(|linux| linux.value("rootfsPropagation")?.as_str())
        .and_then(Propagation::named);
    let reader = Reader { bundle, label, root_propagation, own };
    let nodes = config.objects("mounts");
    if !own.mount && !nodes.is_empty() {
        config.problem("mounts", "mounts need a mount namespace of the container's own");
    }
    let mut mounts = Mounts { root: None, list: Vec::with_capacity(nodes.len()) };
    for (i, node) in nodes.iter().enumerate() {
        let Some(mount) = reader.mount(node) else { continue };
        if mount.destination != Path::new("/") || matches!(mount.what, What::Remount(_)) {
            mounts.list.push(mount);
            continue;
        }
        if i != 0 {
            node.problem("destination", "a mount on / must be the first: it would hide those before it");
        }
        mount.check_root(node, own.user);
        mounts.root = Some(mount);
    }
    mounts
}

/// What every mount of a config shares.
struct Reader<'a> {
    bundle: &'a Path,
    label: Option<&'a str>,
    root_propagation: Option<Propagation>,
    own: Own<'a>,
}

impl Reader<'_> {
    fn mount(&self, node: &Node) -> Option<Mount> {
        node.expect_keys(&["destination", "type", "source", "options", "uidMappings", "gidMappings"]);
        let options = mount_options::plan(node);
        let ids = IdMapped::plan(node, &options, self.own);
        let destination = not_empty(node, "destination")?;
        if !destination.starts_with('/') {
            node.warning("destination", "a relative destination is deprecated; it is taken as relative to /");
        }
        let destination = cleaned(Path::new(destination));
        let what = self.what(node, &options, &destination)?;
        if let (Some(field), false) = (&options.copy_up, matches!(what, What::New { copy_up: true, .. })) {
            node.report().problem(field.clone(), "tmpcopyup is for a new tmpfs");
        }
        let (attributes, recursive, field) = (options.attributes, options.recursive, node.field().clone());
        let propagation = options.propagation;
        let mount = Mount { destination, what, attributes, recursive, propagation, ids, field };
        mount.check_proc(node);
        Some(mount)
    }

    fn what(&self, node: &Node, options: &Options, destination: &Path) -> Option<What> {
        let kind = node.string("type");
        match options.way {
            Way::Bind { recursive } => {
                let source = Source::Path(self.bundle.join(not_empty(node, "source")?));
                Some(What::Bind { source, recursive, detach: self.detach(options) })
            }
            Way::Remount { .. } => Some(What::Remount(options.file_system.clone())),
            Way::New => match kind {
                None => {
                    node.problem("type", "is required, as options hold neither bind nor rbind");
                    None
                }
                Some("bind" | "rbind" | "none" | "") => {
                    node.problem("type", "is no file system; a bind mount has bind or rbind in its options");
                    None
                }
                Some("cgroup" | "cgroup2") if !self.own.cgroup => {
                    for option in &options.file_system {
                        let reason = "without a cgroup namespace the host's mount is used, with its options";
                        node.report().problem(option.field.clone(), reason);
                    }
                    let detach = self.detach(options);
                    Some(What::Bind { source: Source::Cgroup, recursive: false, detach })
                }
                Some(kind) => {
                    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
                    let mut file_system = FileSystem::plan(node, kind, options, self.label, self.bundle);
                    file_system.suit(self.own.rights, node.field());
                    self.own.map.inspect(|map| file_system.refuse_unmapped(map, node.report()));
                    let refused = self.own.user && !file_system.is_for_user_namespaces();
                    let mapped = options.id_map.is_some() || node.has("uidMappings");
                    let copy_up = options.copy_up.is_some() && kind == "tmpfs";
                    let devices = dev::takes_devices(destination, &file_system, options, self.own);
                    let by_parent = (mapped || refused || devices) && !self.own.rights.is_user();
                    Some(What::New { file_system, copy_up, by_parent })
                }
            },
        }
    }

    /// What takes a clone out of its source's peer group, or whatever the container mounts in it would appear on
    /// the host. That is left out only where it is wanted on both sides: the mount is shared and the root too.
    fn detach(&self, options: &Options) -> Option<Propagation> {
        let shared = |propagation: Propagation| propagation.kind == libc::MS_SHARED;
        match self.root_propagation {
            Some(root) if shared(root) && options.propagation.iter().copied().any(shared) => None,
            Some(root) if matches!(root.kind, libc::MS_PRIVATE | libc::MS_UNBINDABLE) => {
                Some(Propagation::PRIVATE)
            }
            _ => Some(Propagation::SLAVE),
        }
    }
}

/// An empty path would silently stand for the directory that it is joined to.
fn not_empty<'a>(node: &Node<'a>, key: &str) -> Option<&'a str> {
    let text = node.required_string(key)?;
    if text.is_empty() {
        node.problem(key, "must not be empty");
        return None;
    }
    Some(text)
}

impl Mount {
    fn check_proc(&self, node: &Node) {
        let on_proc = self.destination == Path::new("/proc");
        let allowed = match &self.what {
            What::Remount(_) => true,
            // That the source is a proc file system is seen when it is opened.
            What::Bind { .. } if on_proc => true,
            What::New { file_system, .. } if on_proc => file_system.kind == "proc",
            _ => mount_destination::is_allowed(&self.destination),
        };
        if !allowed {
            let reason = "only a proc file system can be mounted on /proc, and nothing inside it";
            node.problem("destination", reason);
        }
    }

    /// The mount on / is made by the parent and becomes the root.
    fn check_root(&self, node: &Node, user_namespace: bool) {
        if !self.propagation.is_empty() {
            node.problem("options", "the propagation of / is set by /linux/rootfsPropagation");
        }
        let What::New { file_system, copy_up, .. } = &self.what else { return };
        if matches!(file_system.kind.as_str(), "proc" | "sysfs" | "mqueue" | "cgroup2") {
            node.problem("type", "such a file system cannot be the root");
        }
        if user_namespace && self.ids.is_none() && file_system.names_owners() {
            node.problem("options", "uid and gid are not possible on / with a user namespace");
        }
        if *copy_up || file_system.sets_i_version() {
            node.problem("options", "tmpcopyup and iversion are not possible on /");
        }
    }

    pub fn is_new(&self) -> bool {
        matches!(self.what, What::New { .. })
    }

    fn set_attributes(&self, mount: impl AsFd) -> Result<()> {
        set(&mount, false, self.early_attributes())?;
        set(&mount, true, self.recursive)
    }

    /// Devices, and directories for the mounts that follow, are still to be made in these.
    fn is_read_only_later(&self) -> bool {
        let on = |path: &str| self.destination == Path::new(path);
        let filled = match &self.what {
            What::New { file_system, .. } => file_system.kind == "tmpfs" || on("/dev") || on("/"),
            What::Bind { .. } => on("/"),
            What::Remount(_) => false,
        };
        filled && self.attributes.set & attr::RDONLY != 0
    }

    fn early_attributes(&self) -> Change {
        let later = if self.is_read_only_later() { attr::RDONLY } else { 0 };
        Change { set: self.attributes.set & !later, ..self.attributes }
    }

    /// Attaches the mount; for init. Gives it back, unless it was there before.
    fn attach(&self, source: Option<OwnedFd>, root: &Root) -> Result<Option<OwnedFd>> {
        match (&self.what, source) {
            (What::New { file_system, copy_up, .. }, made) => {
                self.attach_new(file_system, made, *copy_up, root).map(Some)
            }
            (What::Bind { .. }, Some(tree)) => {
                let kind = || is_directory(&tree);
                let target = mount_destination::open(root, &self.destination, Expected::Either, kind)?.fd;
                move_mount(&tree, &target).context(|| not_attached(&tree, &target))?;
                self.propagate(&tree)?;
                Ok(Some(tree))
            }
            (What::Bind { .. }, None) => Err(Error::new("its source was not opened")),
            (What::Remount(options), _) => {
                let mount = root.open(&self.destination, libc::O_PATH).context(|| "find it in the rootfs")?;
                // EINVAL when it is no mount point.
                self.set_attributes(&mount)?;
                reconfigure(&mount, options)?;
                self.propagate(&mount)?;
                Ok(None)
            }
        }
    }

    fn attach_new(
        &self,
        file_system: &FileSystem,
        made: Option<OwnedFd>,
        copy: bool,
        root: &Root,
    ) -> Result<OwnedFd> {
        let kind = file_system.kind.as_str();
        let expected = match kind {
            "proc" | "sysfs" => Expected::RealDirectory,
            _ => Expected::Directory,
        };
        let Destination { fd: target, existed } =
            mount_destination::open(root, &self.destination, expected, || Ok(true))?;
        let covered = (existed && file_system.inherits_mode()).then(|| fstat(&target)).transpose();
        let mode = covered.context(|| "stat the destination")?.map(|stat| stat.st_mode & 0o7777);
        let attributes = self.early_attributes();
        let early = if file_system.sets_i_version() { 0 } else { attributes.set };
        let mount = made.map_or_else(|| file_system.mount(mode, early), Ok)?;
        if copy && existed {
            let owner = !file_system.has("uid") && !file_system.has("gid");
            copy_up(&target, &mount, owner).context(|| "tmpcopyup")?;
        }
        move_mount(&mount, &target).context(|| "attach")?;
        if file_system.sets_i_version() {
            file_system.set_i_version(&mount)?;
            set(&mount, false, attributes)?;
        }
        self.propagate(&mount)?;
        Ok(mount)
    }

    /// After the mount is attached: a parent that is shared makes its new child shared.
    fn propagate(&self, mount: impl AsFd) -> Result<()> {
        for propagation in &self.propagation {
            set(&mount, propagation.recursive, propagation.change())?;
        }
        Ok(())
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.destination.display();
        match &self.what {
            What::New { file_system, .. } => write!(f, "mount {} on {to}", file_system.kind),
            What::Bind { source: Source::Path(from), .. } => write!(f, "bind {} on {to}", from.display()),
            What::Bind { source: Source::Cgroup, .. } => write!(f, "bind the cgroup on {to}"),
            What::Remount(_) => write!(f, "remount {to}"),
        }
    }
}

/// What comes after the mounts needs some of them once more.
#[derive(Default)]
pub struct Made<'a> {
    /// To become read-only when everything is made that goes into them.
    pub writable: Vec<(OwnedFd, &'a Mount)>,
    /// /proc and /sys.
    pub kernel: Vec<(&'a Path, Root)>,
}

/// Makes all mounts below the root. For init, in the namespaces that they show (pid, network, ipc), before anything is
/// made in /dev. `enter_cgroup` has it go to its cgroup and the namespace of that, in time for the first mount that shows
/// them or counts there.
pub fn apply<'a>(
    mounts: &'a Mounts,
    sources: Vec<Option<OwnedFd>>,
    root: &Root,
    enter_cgroup: impl FnOnce() -> Result<()>,
) -> Result<Made<'a>> {
    let mut enter_cgroup = Some(enter_cgroup);
    let mut made = Made::default();
    if let Some(mount) = mounts.root.as_ref().filter(|mount| mount.is_read_only_later()) {
        let fd = root.as_fd().try_clone_to_owned().context(|| mount.to_string())?;
        made.writable.push((fd, mount));
    }
    for (mount, source) in mounts.list.iter().zip(sources) {
        if mount.needs_cgroup() {
            enter_cgroup.take().map_or(Ok(()), |enter| enter())?;
        }
        let fd = mount.attach(source, root).context(|| mount.to_string()).at(&mount.field)?;
        let Some(fd) = fd else { continue };
        if mount.is_read_only_later() {
            made.writable.push((fd, mount));
        } else if ["/proc", "/sys"].map(Path::new).contains(&mount.destination.as_path()) {
            made.kernel.push((&mount.destination, Root::new(fd)));
        }
    }
    enter_cgroup.map_or(Ok(()), |enter| enter())?;
    Ok(made)
}

/// Makes those mounts read-only; after devices, the console and whatever else is made in the rootfs.
pub fn finish(writable: Vec<(OwnedFd, &Mount)>) -> Result<()> {
    for (fd, mount) in writable {
        set(&fd, false, Change { set: attr::RDONLY, ..Change::default() })
            .context(|| mount.to_string())
            .at(&mount.field)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};
    use serde_json::{Value, json};

    /// The mounts of a config in /b with both namespaces, and the problems.
    fn planned(config: &Value) -> (Mounts, Vec<String>) {
        let report = Report::default();
        let map = parse(config.to_string().as_bytes(), &report).unwrap();
        let own = Own { mount: true, cgroup: true, ..Own::default() };
        let mounts = plan(&Node::root(&map, &report), Path::new("/b"), own);
        let problems = report.finish().err().map_or(Vec::new(), |e| e.problems().to_vec());
        (mounts, problems.iter().map(ToString::to_string).collect())
    }

    fn bind(destination: &str, options: &[&str]) -> Value {
        json!({"destination": destination, "source": "vol", "options": options})
    }

    #[test]
    fn paths_are_cleaned_and_a_bind_source_is_relative_to_the_bundle() {
        let mounts = planned(&json!({"mounts": [bind("a/./../../c/", &["rbind"])]})).0;
        assert_eq!(mounts.list[0].destination, Path::new("/c"));
        let source = Source::Path("/b/vol".into());
        let what = What::Bind { source, recursive: true, detach: Some(Propagation::SLAVE) };
        assert_eq!(mounts.list[0].what, what);
    }

    #[test]
    fn only_proc_itself_and_a_few_files_may_be_mounted_on_proc() {
        for (mount, allowed) in [
            (json!({"destination": "/proc", "type": "proc"}), true),
            (json!({"destination": "/proc", "type": "tmpfs"}), false),
            (json!({"destination": "/x/../proc/", "type": "sysfs"}), false),
            (json!({"destination": "/proc/sys", "type": "proc"}), false),
            (json!({"destination": "/process", "type": "tmpfs"}), true),
            (bind("/proc", &["bind"]), true),
            (bind("/proc/uptime", &["bind"]), true),
            (bind("/proc/./self/attr/exec", &["bind"]), false),
            (bind("/proc/uptime/x", &["bind"]), false),
            (bind("/proc/sys", &["bind", "remount", "ro"]), true),
        ] {
            assert_eq!(planned(&json!({"mounts": [mount]})).1.is_empty(), allowed, "{mount}");
        }
    }

    #[test]
    fn a_bind_stays_with_the_host_only_if_it_and_the_root_are_shared() {
        for (root, options, detach) in [
            (None, vec!["rbind"], Some(Propagation::SLAVE)),
            (None, vec!["rbind", "rshared"], Some(Propagation::SLAVE)),
            (Some("shared"), vec!["rbind", "rshared"], None),
            (Some("rshared"), vec!["rbind"], Some(Propagation::SLAVE)),
            (Some("rslave"), vec!["rbind", "shared"], Some(Propagation::SLAVE)),
            (Some("private"), vec!["rbind"], Some(Propagation::PRIVATE)),
        ] {
            let config = json!({"linux": {"rootfsPropagation": root}, "mounts": [bind("/v", &options)]});
            let What::Bind { detach: found, .. } = planned(&config).0.list[0].what else { panic!() };
            assert_eq!(found, detach, "{root:?} {options:?}");
        }
    }

    #[test]
    fn a_mount_on_the_root_replaces_it_and_is_the_first() {
        let tmpfs = json!({"destination": "/", "type": "tmpfs", "source": "x"});
        let (mounts, problems) = planned(&json!({"mounts": [tmpfs, bind("/v", &["bind"])]}));
        assert_eq!(mounts.root.unwrap().field.as_str(), "/mounts/0");
        assert_eq!((mounts.list.len(), problems.len()), (1, 0));
        let problems = planned(&json!({"mounts": [bind("/v", &["bind"]), tmpfs]})).1;
        assert_eq!(
            problems,
            ["/mounts/1/destination: a mount on / must be the first: it would hide those before it"]
        );
    }

    #[test]
    fn without_a_cgroup_namespace_the_own_cgroup_is_bound() {
        let config =
            json!({"mounts": [{"destination": "/c", "type": "cgroup", "options": ["ro", "memory"]}]});
        let report = Report::default();
        let map = parse(config.to_string().as_bytes(), &report).unwrap();
        let own = Own { mount: true, ..Own::default() };
        let mounts = plan(&Node::root(&map, &report), Path::new("/b"), own);
        assert!(matches!(mounts.list[0].what, What::Bind { source: Source::Cgroup, .. }));
        assert_eq!(report.finish().unwrap_err().problems()[0].field.as_str(), "/mounts/0/options/1");
    }

    #[test]
    fn what_cannot_be_mounted_is_a_problem() {
        for (mount, problem) in [
            (json!({"type": "tmpfs"}), "/mounts/0/destination: is required"),
            (json!({"destination": "", "type": "tmpfs"}), "/mounts/0/destination: must not be empty"),
            (
                json!({"destination": "/v"}),
                "/mounts/0/type: is required, as options hold neither bind nor rbind",
            ),
            (
                json!({"destination": "/v", "type": "bind", "source": "x"}),
                "/mounts/0/type: is no file system; a bind mount has bind or rbind in its options",
            ),
            (
                json!({"destination": "/v", "type": "ramfs", "options": ["tmpcopyup"]}),
                "/mounts/0/options/0: tmpcopyup is for a new tmpfs",
            ),
            (
                json!({"destination": "/v", "type": "tmpfs", "options": ["idmap"]}),
                "/mounts/0/options/0: needs mappings, the mount's own or those of a user namespace",
            ),
            (
                json!({"destination": "/v", "type": "none", "source": "/", "options": ["remount", "bind", "ridmap"]}),
                "/mounts/0/options/2: the ids of what is mounted already cannot be mapped",
            ),
            (
                json!({"destination": "/", "type": "proc"}),
                "/mounts/0/type: such a file system cannot be the root",
            ),
        ] {
            assert_eq!(planned(&json!({"mounts": [mount]})).1, [problem]);
        }
    }
}
