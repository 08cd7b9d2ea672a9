//! Which mounts there are, in whatever mount namespace: what one stands on must not be deleted.
//!
//! A container's mount is found by the directory of its file system that it shows, and an overlay by the directories
//! that are in its options. See `proc_pid_mountinfo(5)`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::proc::unescaped;

/// What all processes have mounted.
pub struct Mounted(HashSet<Mount>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Mount {
    /// Of its file system, `8:1`.
    device: Vec<u8>,
    /// The directory of its file system that it shows.
    root: PathBuf,
    /// Where it is.
    point: PathBuf,
    /// What was mounted; of an overlay only.
    source: PathBuf,
    /// The directories that an overlay is made of.
    layers: Vec<PathBuf>,
}

impl Mounted {
    pub fn read() -> Result<Self> {
        let mut namespaces = HashSet::new();
        let mut found = HashSet::new();
        for entry in fs::read_dir("/proc").context(|| "list /proc")? {
            let process = entry.context(|| "list /proc")?.path();
            // A process sees what its namespace has below its root. Which ones these are is not for us to know if it is
            // in another user namespace; what it sees is.
            let link = |name: &str| fs::read_link(process.join(name)).ok();
            let namespace = link("ns/mnt").zip(link("root"));
            if namespace.as_ref().is_some_and(|namespace| namespaces.contains(namespace)) {
                continue;
            }
            // It may end meanwhile, and another one like it not. What is no process has no such file.
            let Ok(mountinfo) = fs::read(process.join("mountinfo")) else { continue };
            namespaces.extend(namespace);
            found.extend(mounts(&mountinfo));
        }
        Ok(Self(found))
    }

    /// Whether an overlay has a directory of the store as a layer. keel names mapped layers, and all of them before Linux
    /// 6.5, by descriptors, which say nothing to others: any layer may be meant then, unless the overlay's source is
    /// another store.
    pub fn has_layer(&self, store: &Path, directory: &Path) -> bool {
        self.0.iter().any(|mount| {
            let is_others = mount.source.is_absolute() && mount.source != store;
            mount.layers.iter().any(|layer| match is_descriptor(layer) {
                true => !is_others,
                false => is_at(layer, |layer| layer == directory),
            })
        })
    }
}

/// Whether a container, or anybody else, has a directory mounted, or something that is in it or on it.
pub fn in_use(directory: &Path) -> Result<bool> {
    let what = || format!("find out whether {} is in use", directory.display());
    let directory = directory.canonicalize().context(what)?;
    let own: Vec<_> = mounts(&fs::read("/proc/self/mountinfo").context(what)?).collect();
    if own.iter().any(|mount| mount.point != directory && mount.point.starts_with(&directory)) {
        return Ok(true);
    }
    let place = place(&own, &directory);
    Ok(Mounted::read().context(what)?.0.iter().any(|mount| {
        let shows =
            |(device, path): &(&[u8], PathBuf)| mount.device == *device && mount.root.starts_with(path);
        place.as_ref().is_some_and(shows)
            || mount.layers.iter().any(|layer| is_at(layer, |layer| layer.starts_with(&directory)))
    }))
}

fn is_descriptor(layer: &Path) -> bool {
    layer.starts_with("/proc/self/fd") || layer.as_os_str().as_bytes().iter().all(u8::is_ascii_digit)
}

/// Whether a layer, which may be named by way of a link, is where `is_it` says.
fn is_at(layer: &Path, is_it: impl Fn(&Path) -> bool) -> bool {
    // What begins with /proc would be ours, and what is relative nobody's.
    let can_be = layer.is_absolute() && !layer.starts_with("/proc");
    is_it(layer) || can_be && layer.canonicalize().is_ok_and(|layer| is_it(&layer))
}

/// The device and the path that a directory has on its file system, as a mount of it shows them. None where mountinfo
/// says nothing of our root, after chroot(2).
fn place<'m>(own: &'m [Mount], directory: &Path) -> Option<(&'m [u8], PathBuf)> {
    // Of several at one place the last is the one that is seen.
    let above = own.iter().filter(|mount| directory.starts_with(&mount.point));
    let mount = above.max_by_key(|mount| mount.point.components().count())?;
    let below = directory.strip_prefix(&mount.point).ok()?;
    Some((&mount.device, mount.root.join(below)))
}

fn mounts(mountinfo: &[u8]) -> impl Iterator<Item = Mount> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(mount)
}

/// `ID PARENT DEVICE ROOT POINT OPTIONS [TAG...] - TYPE SOURCE OPTIONS`
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (device, root, point) = (fields.nth(2)?.to_vec(), fields.next()?, fields.next()?);
    let kind = fields.find(|field| field == b"-").and_then(|_| fields.next())?;
    let (source, layers) = match kind == b"overlay" {
        true => (path(unescaped(fields.next()?)), layers(fields.next()?)),
        false => Default::default(),
    };
    Some(Mount { device, root: path(unescaped(root)), point: path(unescaped(point)), source, layers })
}

/// The directories in an overlay's options. As mount(2) has them, but for `lowerdir+`, a backslash comes before what
/// would end them; and in mountinfo both are octal numbers.
fn layers(options: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for option in options.split(|&byte| byte == b',') {
        let Some(at) = option.iter().position(|&byte| byte == b'=') else { continue };
        let value = unescaped(&option[at + 1..]);
        match &option[..at] {
            b"lowerdir" => found.extend(split(&value)),
            b"lowerdir+" | b"datadir+" => found.push(path(value)),
            b"upperdir" | b"workdir" => {
                // Which of the two ways it was given is not told.
                found.extend(split(&value).into_iter().take(1));
                found.push(path(value));
            }
            _ => {}
        }
    }
    found
}

/// `a:b`, with a backslash before what belongs to a name.
pub fn split(paths: &[u8]) -> Vec<PathBuf> {
    let mut list = vec![Vec::new()];
    let mut bytes = paths.iter();
    while let Some(&byte) = bytes.next() {
        let last = list.len() - 1;
        match byte {
            b':' => list.push(Vec::new()),
            b'\\' => list[last].extend(bytes.next()),
            byte => list[last].push(byte),
        }
    }
    list.into_iter().filter(|path| !path.is_empty()).map(path).collect()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 writes it.
    const MOUNTINFO: &[u8] = br"22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw
28 27 8:2 /sub /home/a\040b rw,relatime shared:1 master:2 - ext4 /dev/sdb rw
30 27 0:44 / /m rw,relatime - overlay o rw,lowerdir=/a\134\054b\040c\134:d:/x\134\134y,upperdir=/up\134\054per,workdir=/w,uuid=on
31 27 0:45 / /n rw - overlay /s ro,lowerdir+=/s/a\054b\040c:d,lowerdir+=/x\134y,lowerdir+=/proc/self/fd/7,redirect_dir=on
";

    #[test]
    fn a_directory_is_found_on_its_file_system() {
        let own: Vec<_> = mounts(MOUNTINFO).collect();
        for (path, device, below) in [
            ("/", "8:1", "/"),
            ("/m\nx", "8:1", "/m\nx"),
            ("/home/a b", "8:2", "/sub"),
            ("/home/a b/c", "8:2", "/sub/c"),
            ("/home/a", "8:1", "/home/a"),
        ] {
            let found = place(&own, Path::new(path));
            assert_eq!(found, Some((device.as_bytes(), PathBuf::from(below))), "{path}");
        }
    }

    #[test]
    fn the_layers_of_overlays_are_found_in_mountinfo() {
        let own: Vec<_> = mounts(MOUNTINFO).collect();
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        let first = ["/a,b c:d", r"/x\y", "/up,per", r"/up\,per", "/w", "/w"];
        assert_eq!(own[3].layers, paths(&first));
        assert_eq!(own[4].layers, paths(&["/s/a,b c:d", r"/x\y", "/proc/self/fd/7"]));
    }

    #[test]
    fn layers_without_a_name_may_be_any_of_their_store() {
        let mounted = Mounted(mounts(MOUNTINFO).collect());
        let has = |store: &str, layer: &str| mounted.has_layer(Path::new(store), Path::new(layer));
        assert!(has("/s", "/s/layers/1/fs"));
        assert!(!has("/t", "/t/layers/1/fs"));
        // One of the names is enough.
        assert!(has("/t", "/s/a,b c:d") && !has("/t", "/s/a,b c"));
        for (nobodys, may_be) in [("+=/proc/self/fd/7", true), ("=7:8", true), ("=l/7:l/8", false)] {
            let line = format!("31 27 0:45 / /n rw - overlay overlay ro,lowerdir{nobodys}");
            let mounted = Mounted(mounts(line.as_bytes()).collect());
            assert_eq!(mounted.has_layer(Path::new("/t"), Path::new("/t/layers/1/fs")), may_be, "{nobodys}");
        }
    }
}
