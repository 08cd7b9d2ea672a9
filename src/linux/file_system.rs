//! `/mounts/N` without `bind`: a new file system by fsopen, fsconfig and fsmount.
//!
//! One option a call, so that a refusal names the option, and the kernel's own words come with it.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#mounts>,
//! <https://man7.org/linux/man-pages/man2/fsopen.2.html>

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::fchdir;

use crate::error::{At, Context, Field, Result};
use crate::linux::idmap::IdMap;
use crate::linux::mount_options::{FsOption, IVersion, Options};
use crate::lowers;
use crate::rights::Rights;
use crate::spec::{Node, Report};
use crate::sys::fs::fsetxattr;
use crate::sys::mount::{
    LONGEST_OPTION, Value, attr, fs_messages, fsconfig_create, fsconfig_reconfigure, fsconfig_set, fsmount,
    fsopen, fspick,
};

#[derive(Clone, Debug, PartialEq)]
pub struct FileSystem {
    pub kind: String,
    source: Option<String>,
    options: Vec<FsOption>,
    i_version: IVersion,
    label: Label,
}

/// How `/linux/mountLabel`, an SELinux context, gets onto the file system.
#[derive(Clone, Debug, PartialEq)]
enum Label {
    None,
    /// For every file in it.
    Context(String),
    /// For its top directory: mqueue does not take the option.
    Xattr(String),
}

impl FileSystem {
    /// `kind` is the type as the kernel knows it; relative directories of an overlay are the bundle's.
    pub fn plan(mount: &Node, kind: &str, options: &Options, label: Option<&str>, bundle: &Path) -> Self {
        let mapped = options.id_map.is_some() || mount.has("uidMappings");
        let source = mount.string("source").filter(|source| !source.is_empty()).map(str::to_owned);
        let mut list = options.file_system.clone();
        if kind == "overlay" {
            list = overlay(list, mount, bundle, mapped);
        }
        for option in list.iter().filter(|option| !is_directory(option)) {
            if option.value.as_ref().is_some_and(|value| value.len() > LONGEST_OPTION) {
                let reason =
                    format_args!("the value of {} is longer than {LONGEST_OPTION} bytes", option.key);
                mount.report().problem(option.field.clone(), reason);
            }
        }
        // A device must not be written to, not even to replay its journal. The file systems that are no device
        // may be one with the host's (sysfs, cgroup2, mqueue ...): these must stay writable there.
        let device = source.as_ref().is_some_and(|source| source.starts_with('/'));
        if device && options.attributes.set & attr::RDONLY != 0 {
            list.push(FsOption { key: "ro".to_owned(), value: None, field: mount.at("options") });
        }
        let own = list.iter().any(|option| option.key.ends_with("context"));
        let label = match (kind, label.filter(|label| !label.is_empty() && !own)) {
            ("proc" | "sysfs" | "cgroup2", _) | (_, None) => Label::None,
            ("mqueue", Some(label)) => Label::Xattr(label.to_owned()),
            (_, Some(label)) => Label::Context(label.to_owned()),
        };
        Self { kind: kind.to_owned(), source, options: list, i_version: options.i_version.clone(), label }
    }

    /// Whether its top directory should get the mode of the one that it covers.
    pub fn inherits_mode(&self) -> bool {
        self.kind == "tmpfs" && !self.has("mode")
    }

    /// Whether it is the cgroup hierarchy as the runtime spec has it in its rules for cgroup ownership.
    pub fn is_cgroup(&self) -> bool {
        self.kind == "cgroup2" && self.source.as_deref() == Some("cgroup")
    }

    /// Whether a process in a user namespace of its own can make one. What it could not, it could not name either: the
    /// devices, and the directories of an overlay, are the host's.
    pub fn is_for_user_namespaces(&self) -> bool {
        let kinds = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2", "ramfs", "binfmt_misc"];
        kinds.contains(&self.kind.as_str())
    }

    /// Where an overlay prepares what it writes.
    pub fn work_dir(&self) -> Option<(&Path, &Field)> {
        let option = self.options.iter().find(|option| self.kind == "overlay" && option.key == "workdir")?;
        Some((Path::new(option.value.as_ref()?), &option.field))
    }

    /// Makes an overlay keep its whiteouts and opaque directories where nobody but the host's root may write to
    /// `trusted.*` attributes.
    pub fn suit(&mut self, rights: Rights, field: &Field) {
        if rights != Rights::Root && self.kind == "overlay" && !self.has("userxattr") {
            self.options.push(FsOption { key: "userxattr".into(), value: None, field: field.clone() });
        }
    }

    /// What a refusal to make it means. A user namespace shows only what belongs to it.
    fn hint(&self, result: Result<(), Errno>) -> String {
        let kind = match (result, self.kind.as_str()) {
            (Err(Errno::EPERM), "proc") => "pid",
            (Err(Errno::EPERM), "sysfs") => "network",
            (Err(Errno::EPERM), "mqueue") => "ipc",
            (Err(Errno::EPERM), "cgroup2") => "cgroup",
            _ => return String::new(),
        };
        format!(" (a user namespace needs a {kind} namespace of its own for it)")
    }

    /// Has owners that a maker outside of a user namespace would have to be told otherwise.
    pub fn names_owners(&self) -> bool {
        self.has("uid") || self.has("gid")
    }

    /// Reports owners that the container's user namespace does not have.
    pub fn refuse_unmapped(&self, map: &IdMap, report: &Report) {
        for option in &self.options {
            let Some(id) = option.value.as_ref().and_then(|value| value.parse().ok()) else { continue };
            match option.key.as_str() {
                "uid" => map.refuse_unmapped_uid(id, option.field.clone(), report),
                "gid" => map.refuse_unmapped_gid(id, option.field.clone(), report),
                _ => {}
            }
        }
    }

    pub fn has(&self, key: &str) -> bool {
        self.options.iter().any(|option| option.key == key)
    }

    /// Makes the file system; `mode` is an inherited one, `attributes` are those of fsmount(2). The mount is
    /// attached nowhere yet.
    pub fn mount(&self, mode: Option<u32>, attributes: u64) -> Result<OwnedFd> {
        self.mount_over(&[], mode, attributes)
    }

    /// The same with other directories as the layers of an overlay.
    pub fn mount_over(&self, layers: &[OwnedFd], mode: Option<u32>, attributes: u64) -> Result<OwnedFd> {
        let old_way = self.has_old_layers();
        let unmapped = if old_way && layers.is_empty() { self.open_layers()? } else { Vec::new() };
        let layers = if unmapped.is_empty() { layers } else { &unmapped };
        let in_one = old_way.then(|| lowers::in_one(layers)).transpose()?;
        let opened = fsopen(&self.kind);
        let hint = self.hint(opened.as_ref().map(drop).map_err(|&errno| errno));
        let fs = opened.context(|| format!("open file system {}{hint}", self.kind))?;
        let set = |key: &str, value: &str| {
            told(&fs, fsconfig_set(&fs, key, Value::String(value)), || format!("set {key}={value}"))
        };
        if let Some(source) = &self.source {
            set("source", source)?;
        }
        if let Some(mode) = mode {
            set("mode", &format!("{mode:04o}"))?;
        }
        if let Label::Context(label) = &self.label {
            set("context", label)?;
        }
        let mut layers = layers.iter();
        for option in &self.options {
            match is_layer(option).then(|| layers.next()).flatten() {
                Some(_) if in_one.is_some() => Ok(()),
                Some(layer) => {
                    let value = format!("/proc/self/fd/{}", layer.as_raw_fd());
                    let set = fsconfig_set(&fs, &option.key, Value::String(&value));
                    let named = option.value.as_deref().unwrap_or_default();
                    told(&fs, set, || format!("set {}={named}", option.key))
                }
                None => set_one(&fs, option),
            }
            .at(&option.field)?;
        }
        let created = in_one.map_or_else(|| fsconfig_create(&fs), |in_one| lowers::create_over(&fs, &in_one));
        told(&fs, created, || format!("create the file system{}", self.hint(created)))?;
        let mount = fsmount(&fs, attributes).context(|| match self.kind.as_str() {
            // The kernel's mount_too_revealing, the only refusal here.
            "proc" | "sysfs" => "fsmount (in a user namespace: where the host's own is covered in parts)",
            _ => "fsmount",
        })?;
        if let Label::Xattr(label) = &self.label {
            let top =
                openat(&mount, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                    .context(|| "open its top directory")?;
            fsetxattr(&top, c"security.selinux", label.as_bytes())
                .context(|| format!("set its security context {label}"))?;
        }
        Ok(mount)
    }

    pub fn is_overlay(&self) -> bool {
        self.kind == "overlay"
    }

    /// The directories that an overlay shows and does not write to, each with the option that names it.
    pub fn layers(&self) -> Vec<(&Path, &Field)> {
        let layers = self.options.iter().filter(|option| is_layer(option));
        layers.filter_map(|option| Some((Path::new(option.value.as_ref()?), &option.field))).collect()
    }

    /// Whether its layers are to be named as they were before Linux 6.5.
    fn has_old_layers(&self) -> bool {
        self.options.iter().any(is_layer) && !lowers::are_options()
    }

    fn open_layers(&self) -> Result<Vec<OwnedFd>> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = |(value, field): (&Path, &Field)| {
            open(value, flags, Mode::empty()).context(|| format!("open layer {}", value.display())).at(field)
        };
        self.layers().into_iter().map(open).collect()
    }

    pub fn sets_i_version(&self) -> bool {
        self.i_version != IVersion::AsIs
    }

    /// Turns the version counter on or off, which only mount(2) can, and only on an attached mount. It sets all
    /// flags anew, so it comes before the mount's attributes. Moves the working directory.
    pub fn set_i_version(&self, mount_fd: impl AsFd) -> Result<()> {
        let (on, field) = match &self.i_version {
            IVersion::AsIs => return Ok(()),
            IVersion::Count(field) => (true, field),
            IVersion::DoNotCount(field) => (false, field),
        };
        let mut flags = MsFlags::MS_REMOUNT;
        flags.set(MsFlags::MS_I_VERSION, on);
        for option in &self.options {
            match option.key.as_str() {
                "ro" => flags.insert(MsFlags::MS_RDONLY),
                "sync" => flags.insert(MsFlags::MS_SYNCHRONOUS),
                "async" => flags.remove(MsFlags::MS_SYNCHRONOUS),
                "lazytime" => flags.insert(MsFlags::MS_LAZYTIME),
                "nolazytime" => flags.remove(MsFlags::MS_LAZYTIME),
                _ => {}
            }
        }
        const NONE: Option<&str> = None;
        fchdir(mount_fd).context(|| "enter the mount")?;
        mount(NONE, ".", NONE, flags, NONE).context(|| format!("set the version counter to {on}")).at(field)
    }
}

/// Changes the options of the file system that is mounted on `mount`.
pub fn reconfigure(mount: impl AsFd, options: &[FsOption]) -> Result<()> {
    if options.is_empty() {
        return Ok(());
    }
    let fs = fspick(mount).context(|| "open the mounted file system")?;
    set_all(&fs, options)?;
    told(&fs, fsconfig_reconfigure(&fs), || "reconfigure the file system".to_owned())
}

fn set_all(fs: &OwnedFd, options: &[FsOption]) -> Result<()> {
    for option in options {
        set_one(fs, option).at(&option.field)?;
    }
    Ok(())
}

fn set_one(fs: &OwnedFd, option: &FsOption) -> Result<()> {
    let key = &option.key;
    let Some(value) = &option.value else {
        return told(fs, fsconfig_set(fs, key, Value::Flag), || format!("set {key}"));
    };
    if value.len() <= LONGEST_OPTION {
        return told(fs, fsconfig_set(fs, key, Value::String(value)), || format!("set {key}={value}"));
    }
    // A directory of an overlay: the kernel takes a descriptor since Linux 6.13.
    let directory =
        open(value.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .context(|| format!("open {key} {value}"))?;
    let set = fsconfig_set(fs, key, Value::Fd(directory.as_fd()));
    told(fs, set, || format!("set {key} to the directory {value}"))
}

/// Adds the text that the kernel left on the context to an error.
fn told(fs: &OwnedFd, result: Result<(), Errno>, what: impl FnOnce() -> String) -> Result<()> {
    result.context(|| fs_messages(fs).iter().fold(what(), |what, said| format!("{what} ({said})")))
}

/// An option whose value is one directory.
fn is_directory(option: &FsOption) -> bool {
    is_layer(option) || matches!(option.key.as_str(), "upperdir" | "workdir")
}

fn is_layer(option: &FsOption) -> bool {
    matches!(option.key.as_str(), "lowerdir+" | "datadir+")
}

/// The options of an overlay with absolute directories, and without trust in the layers' own redirects: one that
/// an image brings could point at any file of the layers below it.
///
/// `mapped`: each layer is to be opened.
fn overlay(options: Vec<FsOption>, mount: &Node, bundle: &Path, mapped: bool) -> Vec<FsOption> {
    let absolute = |path: &str| bundle.join(path).to_string_lossy().into_owned();
    let mut list = Vec::with_capacity(options.len() + 2);
    for option in options {
        match (option.key.as_str(), &option.value) {
            ("lowerdir", Some(value)) => lower(&option.field, value, mount, mapped, &absolute, &mut list),
            (_, Some(value)) if is_directory(&option) => {
                list.push(FsOption { value: Some(absolute(value)), ..option });
            }
            _ => list.push(option),
        }
    }
    let has = |key: &str, values: &[&str]| {
        let named =
            |o: &FsOption| o.value.as_deref().is_some_and(|v| values.is_empty() || values.contains(&v));
        list.iter().any(|option| option.key == key && named(option))
    };
    // The kernel says why to its log only.
    if let Some(upper) = list.iter().find(|option| option.key == "upperdir")
        && !has("workdir", &[])
    {
        mount.report().problem(upper.field.clone(), "an upperdir needs a workdir beside it");
    }
    if !has("lowerdir", &[]) && !has("lowerdir+", &[]) {
        mount.problem("options", "an overlay needs a lowerdir");
    }
    // Metadata-only copies and their digests work by redirects.
    if !has("metacopy", &["on"]) && !has("verity", &["on", "require"]) {
        let missing: Vec<_> = [("redirect_dir", "nofollow"), ("metacopy", "off")]
            .into_iter()
            .filter(|(key, _)| !has(key, &[]))
            .collect();
        for (key, value) in missing {
            let (key, value) = (key.to_owned(), Some(value.to_owned()));
            list.push(FsOption { key, value, field: mount.field().clone() });
        }
    }
    list
}

/// `lowerdir=a:b::c`, with `\` before a `:` or `\` that belongs to a name; what follows `::` is a data-only layer.
/// Left as it is where any kernel can take it so, else one option for each layer (Linux 6.5).
fn lower(
    field: &Field,
    value: &str,
    mount: &Node,
    mapped: bool,
    absolute: &dyn Fn(&str) -> String,
    list: &mut Vec<FsOption>,
) {
    let mut layers = Vec::new();
    let (mut key, mut layer) = ("lowerdir+", String::new());
    let mut rest = value.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            ':' => {
                layers.push((key, std::mem::take(&mut layer)));
                key = if rest.next_if_eq(&':').is_some() { "datadir+" } else { "lowerdir+" };
            }
            '\\' => layer.extend(rest.next()),
            _ => layer.push(character),
        }
    }
    layers.push((key, layer));
    if layers.iter().any(|(_, layer)| layer.is_empty()) {
        return mount.report().problem(field.clone(), "a layer has an empty name");
    }
    let plain =
        !mapped && value.len() <= LONGEST_OPTION && layers.iter().all(|(_, layer)| layer.starts_with('/'));
    if plain {
        let (key, value) = ("lowerdir".to_owned(), Some(value.to_owned()));
        return list.push(FsOption { key, value, field: field.clone() });
    }
    list.extend(layers.into_iter().map(|(key, layer)| {
        let (key, value) = (key.to_owned(), Some(absolute(&layer)));
        FsOption { key, value, field: field.clone() }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::mount_options;
    use crate::spec::{Report, parse};

    /// A file system of a bundle in /b as fsconfig gets it, and the problems.
    fn planned(kind: &str, source: &str, options: &[&str], label: Option<&str>) -> (FileSystem, Vec<String>) {
        let json = serde_json::json!({ "source": source, "options": options }).to_string();
        let report = Report::default();
        let map = parse(json.as_bytes(), &report).unwrap();
        let node = Node::root(&map, &report);
        let fs = FileSystem::plan(&node, kind, &mount_options::plan(&node), label, Path::new("/b"));
        let problems = report.finish().err().map_or(Vec::new(), |e| e.problems().to_vec());
        (fs, problems.iter().map(ToString::to_string).collect())
    }

    fn set(fs: &FileSystem) -> Vec<String> {
        let text =
            |o: &FsOption| o.value.as_ref().map_or(o.key.clone(), |value| format!("{}={value}", o.key));
        fs.options.iter().map(text).collect()
    }

    #[test]
    fn a_read_only_device_is_read_only_as_a_whole_but_what_the_host_shares_is_not() {
        assert_eq!(set(&planned("ext4", "/dev/sdx", &["ro", "nosuid"], None).0), ["ro"]);
        assert_eq!(set(&planned("ext4", "/dev/sdx", &["rw"], None).0), [""; 0]);
        assert_eq!(set(&planned("cgroup2", "cgroup", &["ro"], None).0), [""; 0]);
    }

    #[test]
    fn layers_of_an_overlay_become_absolute_and_their_redirects_are_not_followed() {
        let long = format!("/{}", "x".repeat(253));
        for (options, expected) in [
            (&["lowerdir=/a:/b"][..], &["lowerdir=/a:/b", "redirect_dir=nofollow", "metacopy=off"][..]),
            (
                &["lowerdir=a\\:b:/c::d,e", "metacopy=on"],
                &["lowerdir+=/b/a:b", "lowerdir+=/c", "datadir+=/b/d,e", "metacopy=on"],
            ),
            (
                &["lowerdir+=a,b:c", "upperdir=u", "workdir=/w", "metacopy=off"],
                &[
                    "lowerdir+=/b/a,b:c",
                    "upperdir=/b/u",
                    "workdir=/w",
                    "metacopy=off",
                    "redirect_dir=nofollow",
                ],
            ),
            (
                &[&format!("lowerdir={long}:/a"), "verity=on"],
                &[&format!("lowerdir+={long}"), "lowerdir+=/a", "verity=on"],
            ),
        ] {
            assert_eq!(set(&planned("overlay", "overlay", options, None).0), expected);
        }
    }

    #[test]
    fn a_label_is_set_where_the_file_system_takes_one() {
        let label = |kind, options| planned(kind, "x", options, Some("a:b:c")).0.label;
        assert_eq!(label("tmpfs", &[]), Label::Context("a:b:c".into()));
        assert_eq!(label("tmpfs", &["context=\"d\""]), Label::None);
        assert_eq!(label("mqueue", &[]), Label::Xattr("a:b:c".into()));
        assert_eq!(label("proc", &[]), Label::None);
        assert_eq!(label("sysfs", &[]), Label::None);
    }

    #[test]
    fn only_a_tmpfs_without_a_mode_inherits_one() {
        assert!(planned("tmpfs", "x", &["size=1"], None).0.inherits_mode());
        assert!(!planned("tmpfs", "x", &["mode=755"], None).0.inherits_mode());
        assert!(!planned("ramfs", "x", &[], None).0.inherits_mode());
    }

    #[test]
    fn what_fsconfig_cannot_take_is_a_problem() {
        let long = "x".repeat(256);
        let problems = planned("tmpfs", "x", &["nosuid", &format!("mpol={long}")], None).1;
        assert_eq!(problems, ["/options/1: the value of mpol is longer than 255 bytes"]);
        assert_eq!(
            planned("overlay", "x", &["lowerdir=/a::"], None).1,
            ["/options/0: a layer has an empty name", "/options: an overlay needs a lowerdir"]
        );
        assert_eq!(
            planned("overlay", "x", &["lowerdir=/a", &format!("upperdir=/{long}")], None).1,
            ["/options/1: an upperdir needs a workdir beside it"]
        );
    }
}
