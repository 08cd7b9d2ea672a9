//! What criu(8) needs to know of `/mounts`: which it neither saves nor makes, since what they show is the host's, and
//! that what the others go onto is there.
//!
//! Such a mount is called by its destination in config.json, so that the images fit any bundle that has it too.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{Mount, Mounts, Source, What};
use crate::error::{At, Context, Result};
use crate::linux::mount_destination::{self, Expected};
use crate::root::Root;

/// A bind mount, or one that came along below a recursive one.
#[derive(Debug, PartialEq)]
pub struct External {
    /// Inside the container.
    pub destination: PathBuf,
    /// On the host; None for the container's own cgroup.
    pub source: Option<PathBuf>,
}

/// `host` are the mount points of the runtime's mount namespace.
pub fn list(mounts: &Mounts, host: &[PathBuf]) -> Vec<External> {
    let mut list = Vec::new();
    for Mount { destination, what, .. } in &mounts.list {
        let What::Bind { source, recursive, .. } = what else { continue };
        let source = match source {
            Source::Path(path) => Some(path.clone()),
            Source::Cgroup => None,
        };
        if let (Some(source), true) = (&source, recursive) {
            let along = below(source, host).into_iter();
            let along = along
                .map(|(path, rest)| External { destination: destination.join(rest), source: Some(path) });
            // Another mount of the config may lie over it.
            list.extend(
                along.filter(|found| !mounts.list.iter().any(|mount| mount.destination == found.destination)),
            );
        }
        list.push(External { destination: destination.clone(), source });
    }
    list
}

/// The mounts below `source`, with their paths relative to it.
fn below(source: &Path, host: &[PathBuf]) -> Vec<(PathBuf, PathBuf)> {
    // What the kernel calls it. A source that is gone has no mounts.
    let Ok(real) = source.canonicalize() else { return Vec::new() };
    let rest = |path: &PathBuf| Some((path.clone(), path.strip_prefix(&real).ok()?.to_owned()));
    host.iter().filter_map(rest).filter(|(_, rest)| !rest.as_os_str().is_empty()).collect()
}

/// Makes the files and directories that mounts go onto, as init does. What lies in a new file system is in the images;
/// what lies in a bind mount is not, so these are attached meanwhile. They are given back.
pub fn make_destinations(
    mounts: &Mounts,
    sources: Vec<Option<OwnedFd>>,
    root: &Root,
) -> Result<Vec<OwnedFd>> {
    let mut attached = Vec::new();
    let mut new: Vec<&Path> = Vec::new();
    for (mount, source) in mounts.list.iter().zip(sources) {
        let path = mount.destination.as_path();
        if new.iter().any(|top| path.starts_with(top)) {
            continue;
        }
        let made = match &mount.what {
            What::Bind { .. } => mount.attach(source, root),
            What::New { .. } => {
                new.push(path);
                mount_destination::open(root, path, Expected::Directory, || Ok(true)).map(|_| None)
            }
            What::Remount(_) => Ok(None),
        };
        attached.extend(made.context(|| mount.to_string()).at(&mount.field)?);
    }
    Ok(attached)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Node, Report, parse};

    #[test]
    fn what_lies_below_a_recursive_bind_is_external_too() {
        let config = r#"{"mounts": [
            {"destination": "/proc", "type": "proc"},
            {"destination": "/a", "source": "/tmp", "options": ["rbind"]},
            {"destination": "/b", "source": "/tmp", "options": ["bind"]},
            {"destination": "/a/own", "type": "tmpfs"},
            {"destination": "/sys/fs/cgroup", "type": "cgroup"}]}"#;
        let report = Report::default();
        let map = parse(config.as_bytes(), &report).unwrap();
        let own = super::super::Own { mount: true, ..Default::default() };
        let mounts = super::super::plan(&Node::root(&map, &report), Path::new("/"), own);
        let host = ["/", "/tmp", "/tmp/x y/z", "/tmp/own", "/tmpfs"].map(PathBuf::from);
        let external = |destination: &str, source: Option<&str>| External {
            destination: destination.into(),
            source: source.map(PathBuf::from),
        };
        let expected = [
            external("/a/x y/z", Some("/tmp/x y/z")),
            external("/a", Some("/tmp")),
            external("/b", Some("/tmp")),
            external("/sys/fs/cgroup", None),
        ];
        assert_eq!(list(&mounts, &host), expected);
    }
}
