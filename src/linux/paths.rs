//! `/linux/maskedPaths` and `/linux/readonlyPaths`: what the container must not read or write, /proc/kcore or
//! /proc/sys for instance, is covered by mounts.
//!
//! A masked directory gets an empty read-only tmpfs (one for all of them, as Kubernetes masks many), a masked
//! file the container's own /dev/null; a read-only path gets a read-only copy of itself, mounts below it
//! included. What does not exist is left alone. Each path is looked up once, inside the root, and used by
//! descriptor from then on.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#masked-paths>

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};

use crate::error::{At, Context, Field, Result};
use crate::root::{Root, cleaned};
use crate::spec::Node;
use crate::sys::mount::{
    Change, Value, attr, fsconfig_create, fsconfig_set, fsmount, fsopen, mount_setattr, move_mount,
    open_tree_clone,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    masked: Vec<(PathBuf, Field)>,
    readonly: Vec<(PathBuf, Field)>,
    /// `/linux/mountLabel`, an SELinux context, for the tmpfs.
    label: Option<String>,
}

pub fn plan(linux: &Node) -> Paths {
    let label = linux.string("mountLabel").filter(|label| !label.is_empty()).map(str::to_owned);
    Paths { masked: read(linux, "maskedPaths"), readonly: read(linux, "readonlyPaths"), label }
}

fn read(linux: &Node, key: &str) -> Vec<(PathBuf, Field)> {
    let mut paths = Vec::new();
    for (path, field) in linux.strings(key) {
        if !path.starts_with('/') {
            linux.report().problem(field, format_args!("must be an absolute path, not {path:?}"));
        } else if cleaned(Path::new(path)) == Path::new("/") {
            // A mount over the root is not seen by a process whose root lies below it.
            linux.report().problem(field, "must name something below /; root.readonly is there for / itself");
        } else {
            paths.push((path.into(), field));
        }
    }
    paths
}

/// Covers the paths, in init, once the file systems and devices are mounted and sysctls written: afterwards
/// /proc/sys is read-only. It works before and after pivot_root. `kernel` are the mounts of /proc and /sys.
pub fn apply(paths: &Paths, root: &Root, kernel: Vec<(&Path, Root)>) -> Result<()> {
    let place = Place { root, kernel: &kernel };
    for (path, field) in &paths.readonly {
        make_readonly(path, place).context(|| format!("make {} read-only", path.display())).at(field)?;
    }
    // After the read-only paths, whose copies would otherwise drag the masks along.
    let mut masks = Masks { place, label: paths.label.as_deref(), file: None, directory: None };
    for (path, field) in &paths.masked {
        masks.cover(path).context(|| format!("mask {}", path.display())).at(field)?;
    }
    Ok(())
}

/// Where the paths are.
#[derive(Clone, Copy)]
struct Place<'r> {
    root: &'r Root,
    kernel: &'r [(&'r Path, Root)],
}

impl Place<'_> {
    /// None if there is nothing at `path`. What lies in /proc or /sys is looked for in that very mount: whoever has
    /// the image's directory as well could rename the mount point just now, and nothing would be covered.
    fn find(self, path: &Path) -> Result<Option<OwnedFd>, Errno> {
        let path = cleaned(path);
        let mut mounts = self.kernel.iter().rev();
        let inside = mounts.find_map(|(top, mount)| Some((mount, path.strip_prefix(top).ok()?)));
        let (root, path) = inside.unwrap_or((self.root, &path));
        match root.open(path, libc::O_PATH) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            found => found.map(Some),
        }
    }
}

/// Mounts a read-only copy of the tree at `path` on it, so that its other flags stay as they are. The copy is
/// recursive: something writable below a path that is said to be read-only would be a surprise.
fn make_readonly(path: &Path, place: Place) -> Result<(), Errno> {
    let Some(target) = place.find(path)? else { return Ok(()) };
    let copy = open_tree_clone(&target, Path::new(""), libc::AT_EMPTY_PATH | libc::AT_RECURSIVE)?;
    mount_setattr(&copy, true, Change { set: attr::RDONLY, ..Change::default() })?;
    move_mount(&copy, &target)
}

/// The mounts that cover masked paths, made when first needed.
struct Masks<'r> {
    place: Place<'r>,
    label: Option<&'r str>,
    /// /dev/null.
    file: Option<OwnedFd>,
    /// The tmpfs, attached: before Linux 6.15 only an attached mount can be cloned.
    directory: Option<OwnedFd>,
}

impl Masks<'_> {
    fn cover(&mut self, path: &Path) -> Result<()> {
        let Some(target) = self.place.find(path)? else { return Ok(()) };
        if kind(fstat(&target)?.st_mode) != SFlag::S_IFDIR {
            return self.cover_file(&target);
        }
        match &self.directory {
            Some(mask) => move_mount(clone(mask)?, &target)?,
            None => {
                let mask = empty_directory(self.label).context(|| "mount an empty tmpfs")?;
                move_mount(&mask, &target)?;
                self.directory = Some(mask);
            }
        }
        Ok(())
    }

    fn cover_file(&mut self, target: &OwnedFd) -> Result<()> {
        let mask = match self.file.take() {
            Some(mask) => mask,
            None => self.place.root.open_dev_null(libc::O_PATH)?,
        };
        move_mount(clone(&mask)?, target)?;
        self.file = Some(mask);
        Ok(())
    }
}

fn clone(mount: &OwnedFd) -> Result<OwnedFd, Errno> {
    open_tree_clone(mount, Path::new(""), libc::AT_EMPTY_PATH)
}

fn empty_directory(label: Option<&str>) -> Result<OwnedFd, Errno> {
    let fs = fsopen("tmpfs")?;
    label.map_or(Ok(()), |label| fsconfig_set(&fs, "context", Value::String(label)))?;
    fsconfig_create(&fs)?;
    fsmount(&fs, attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
}

fn kind(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    fn planned(json: &str) -> Result<Paths> {
        let report = Report::default();
        let map = parse(json.as_bytes(), &report).unwrap();
        let paths = plan(&Node::root(&map, &report));
        report.finish().map(|_| paths)
    }

    #[test]
    fn each_path_keeps_its_place_in_the_config() {
        let paths =
            planned(r#"{"maskedPaths": ["/proc/kcore", "/sys/firmware"], "readonlyPaths": null}"#).unwrap();
        let field = Field::root().child("maskedPaths").child(1);
        assert_eq!(paths.masked[1], (PathBuf::from("/sys/firmware"), field));
        assert_eq!(paths.readonly, []);
    }

    #[test]
    fn masks_have_the_label_of_mounts() {
        let label = |json| planned(json).unwrap().label;
        assert_eq!(label(r#"{"mountLabel": "a:b:c", "maskedPaths": ["/x"]}"#).as_deref(), Some("a:b:c"));
        assert_eq!(label(r#"{"mountLabel": ""}"#), None);
        // Where there is no SELinux no file system has the option, and `Labels::check` has said so before.
        if nix::unistd::geteuid().is_root() && !Path::new("/sys/fs/selinux").exists() {
            assert_eq!(empty_directory(Some("a:b:c")).unwrap_err(), Errno::EINVAL);
            assert!(empty_directory(None).is_ok());
        }
    }

    #[test]
    fn a_relative_path_and_the_root_are_problems() {
        let error = planned(r#"{"maskedPaths": ["proc/kcore"], "readonlyPaths": ["/proc", "/proc/.."]}"#);
        assert_eq!(
            error.unwrap_err().to_string(),
            "invalid config.json: /maskedPaths/0: must be an absolute path, not \"proc/kcore\"; \
             /readonlyPaths/1: must name something below /; root.readonly is there for / itself"
        );
    }
}
