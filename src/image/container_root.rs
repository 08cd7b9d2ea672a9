//! What a bundle's root file system is made of, by its config.json: a directory, or an overlay that keel mounts on `/`.
//!
//! What is read is what keel would mount, so that it is right for a bundle that was changed, or not made by us.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use crate::error::{Context, Error, Kind as ErrorClass, Result};
use crate::image::mounted;
use crate::image::pack::{Kind, Top};
use crate::image::unpack::{Owners, Range};
use crate::spec::{self, Node, Report};

const MOST_OF_CONFIG: u64 = 64 << 20; // bytes

#[derive(Debug)]
pub struct ContainerRoot {
    /// Of overlayfs, the highest first; or the one directory that is it all.
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    is_overlay: bool,
    user_xattr: bool,
    /// Whose the files of the lower directories, and of the upper one, are.
    owners: (Owners, Owners),
}

impl ContainerRoot {
    pub fn read(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let what = || format!("read {}", path.display());
        let size = std::fs::metadata(&path).map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            Error::from(error).with_kind(if missing { ErrorClass::NotFound } else { ErrorClass::Other })
        });
        if size.context(what)?.len() > MOST_OF_CONFIG {
            return Err(Error::of_kind(ErrorClass::Limit, format!("{}: it is too large", what())));
        }
        let bytes = std::fs::read(&path).context(what)?;
        let report = Report::default();
        let map = spec::parse(&bytes, &report).context(what)?;
        let root = plan(&Node::root(&map, &report), bundle);
        report.finish().context(what)?;
        Ok(root)
    }

    /// The same where the overlay was mounted on the host, so that config.json does not know of it.
    pub fn with_upper(self, upper: PathBuf) -> Self {
        if self.is_overlay { self } else { Self { upper: Some(upper), ..self } }
    }

    /// The root as the container sees it.
    pub fn whole(&self) -> Result<(Vec<Top>, Kind)> {
        let kind = match self.is_overlay {
            true => Kind::Merged { user_xattr: self.user_xattr },
            false => Kind::Plain,
        };
        let upper = self.upper.iter().filter(|_| self.is_overlay).map(|path| (path, &self.owners.1));
        let all = upper.chain(self.lowers.iter().map(|path| (path, &self.owners.0)));
        let tops = all.map(|(path, owners)| Ok(Top { directory: directory(path)?, owners: owners.clone() }));
        Ok((tops.collect::<Result<_>>()?, kind))
    }

    /// What the container has written.
    pub fn changes(&self) -> Result<(Vec<Top>, Kind)> {
        let upper = self.upper()?;
        let top = Top { directory: directory(upper)?, owners: self.owners.1.clone() };
        Ok((vec![top], Kind::Upper { user_xattr: self.user_xattr }))
    }

    fn upper(&self) -> Result<&Path> {
        self.upper.as_deref().ok_or_else(|| {
            let why = match self.is_overlay {
                true => "its root is read-only",
                false => {
                    "its root is one directory: what the container has changed is not told from the image"
                }
            };
            Error::new(why).with_way_out(
                "As an image of one layer: keel-image export BUNDLE - | keel-image import - REF.",
            )
        })
    }

    /// Whether a container, or anybody else, has the writable directory mounted now.
    pub fn is_in_use(&self) -> Result<bool> {
        let plain = self.lowers.first().filter(|_| !self.is_overlay);
        self.upper.as_ref().or(plain).map_or(Ok(false), |directory| mounted::in_use(directory))
    }
}

fn plan(config: &Node, bundle: &Path) -> ContainerRoot {
    let linux = config.object_or_empty("linux");
    let written = match is_whole_machine() {
        true => owners(&linux),
        // A user namespace has done it.
        false => Owners::Kept,
    };
    let user_xattr = !geteuid().is_root() || !is_whole_machine();
    let mounts = config.objects("mounts");
    let on_root = mounts.iter().rfind(|mount| mount.string("destination") == Some("/"));
    let Some(mount) = on_root else {
        let root = config.object_or_empty("root");
        let path = root.required_string("path").unwrap_or_default();
        let owners = (written.clone(), written);
        let lowers = vec![bundle.join(path)];
        return ContainerRoot { lowers, upper: None, is_overlay: false, user_xattr, owners };
    };
    if mount.string("type") != Some("overlay") {
        mount.problem("type", "what is mounted on / is no overlay");
    }
    let options: Vec<_> = mount.strings("options").into_iter().map(|(option, _)| option).collect();
    let mut lowers = Vec::new();
    for option in &options {
        if let Some(path) = option.strip_prefix("lowerdir+=") {
            lowers.push(bundle.join(path));
        } else if let Some(paths) = option.strip_prefix("lowerdir=") {
            lowers.extend(mounted::split(paths.as_bytes()).iter().map(|path| bundle.join(path)));
        }
    }
    let upper = options.iter().find_map(|option| option.strip_prefix("upperdir="));
    // The kernel shows layers of a mapped mount as the image has them.
    let mapped =
        mount.has("uidMappings") || options.iter().any(|option| ["idmap", "ridmap"].contains(option));
    let lower_owners = if mapped { Owners::Kept } else { written.clone() };
    ContainerRoot {
        lowers,
        upper: upper.map(|path| bundle.join(path)),
        is_overlay: true,
        user_xattr: user_xattr || options.contains(&"userxattr"),
        owners: (lower_owners, written),
    }
}

/// The container's ids as the host has them.
fn owners(linux: &Node) -> Owners {
    let ranges = |key: &str| {
        let range = |range: &Node| {
            Some(Range {
                inside: range.required_u32("containerID")?,
                outside: range.required_u32("hostID")?,
                count: range.required_u32("size")?,
            })
        };
        linux.objects(key).iter().filter_map(range).collect::<Vec<_>>()
    };
    let (uids, gids) = (ranges("uidMappings"), ranges("gidMappings"));
    if uids.is_empty() { Owners::Kept } else { Owners::Mapped { uids, gids } }
}

/// Whether all ids are mapped to themselves: no user namespace hides whose a file is. See `user_namespaces(7)`.
fn is_whole_machine() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).context(|| format!("open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::planned;

    #[test]
    fn a_root_is_what_keel_would_mount() {
        let read = |json: &str| planned(json, |config| plan(config, Path::new("/b"))).0;
        let path =
            |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        let root = read(r#"{"root": {"path": "rootfs"}}"#);
        assert_eq!((path(&root.lowers), root.is_overlay), (vec!["/b/rootfs".to_owned()], false));
        let root = read(
            r#"{"mounts": [{"destination": "/proc"}, {"destination": "/", "type": "overlay",
                "options": ["lowerdir+=/s/a,b:c", "lowerdir=/x\\:y:/z", "upperdir=upper", "workdir=work", "userxattr"]}]}"#,
        );
        assert_eq!(path(&root.lowers), ["/s/a,b:c", "/x:y", "/z"]);
        assert_eq!((root.upper, root.user_xattr), (Some("/b/upper".into()), true));
    }

    #[test]
    fn a_mapped_container_wrote_as_its_users_on_the_host() {
        let ids = r#""linux": {"uidMappings": [{"containerID": 0, "hostID": 7, "size": 2}]}"#;
        let mapped = Owners::Mapped { uids: vec![Range { inside: 0, outside: 7, count: 2 }], gids: vec![] };
        let mount = r#""destination": "/", "type": "overlay""#;
        for (options, lower) in [("[\"idmap\"]", Owners::Kept), ("[]", mapped.clone())] {
            let json = format!(r#"{{"mounts": [{{{mount}, "options": {options}}}], {ids}}}"#);
            let root = planned(&json, |config| plan(config, Path::new("/b"))).0;
            assert_eq!(root.owners, (lower, mapped.clone()));
        }
    }
}
