//! `/linux/devices`: makes the device nodes that config.json lists, those that every container has (/dev/null
//! and five more), and the links in /dev.
//!
//! Everything is made relative to the descriptor of a directory that was opened inside the root, and nothing
//! in the way is followed or overwritten: /dev itself may be a link in a hostile image (CVE-2026-41579,
//! CVE-2026-47766). A /dev that the config binds from the host is left as it is.
//!
//! In a user namespace nobody can make a device; there they come from a [`shelf`], or are those of the host.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#devices>,
//! <https://github.com/opencontainers/runtime-spec/blob/main/runtime-linux.md#dev-symbolic-links>

mod shelf;

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag};
use nix::sys::stat::{fchmodat, fstat, fstatat, major, makedev, minor, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use serde_json::Value;

use crate::error::{At, Context, Error, Field, Result};
use crate::linux::idmap::IdMap;
use crate::log;
use crate::proc::Proc;
use crate::root::{Root, cleaned};
use crate::spec::Node;
use crate::sys::fs::{Resolve, openat2};

pub use shelf::{Nodes, fill_dev, shelf};

/// What the container gets in /dev and elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    field: Field,
    listed: Vec<Device>,
    /// Of [`DEFAULTS`], those at whose path the config has neither a device nor a mount of its own.
    defaults: Vec<(&'static str, Inode)>,
    /// The config binds a directory on /dev: it is the caller's, and may well be the host's.
    bound: bool,
    from: From,
}

/// Where the nodes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Init makes them.
    Mknod,
    /// The parent has made them, for an init in a user namespace, on its [`shelf`].
    Shelf,
    /// Nobody can make them: the caller has no rights over the host. The host's own are bound.
    Host,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    field: Field,
    path: PathBuf,
    inode: Inode,
    mode: Mode,
    uid: Uid,
    gid: Gid,
}

/// The type of a file and, for a device, its number (otherwise 0).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Inode {
    kind: SFlag,
    number: libc::dev_t,
}

const fn character(major: u64, minor: u64) -> Inode {
    Inode { kind: SFlag::S_IFCHR, number: makedev(major, minor) }
}

const DEFAULTS: [(&str, Inode); 6] = [
    ("null", character(1, 3)),
    ("zero", character(1, 5)),
    ("full", character(1, 7)),
    ("random", character(1, 8)),
    ("urandom", character(1, 9)),
    ("tty", character(5, 0)),
];

const PTMX: Inode = character(5, 2);

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// `config` is the whole document, for its mounts; `linux` its section of that name. `map` are the mappings of
/// the container's user namespace, if the config has them.
pub fn plan(config: &Node, linux: Option<&Node>, from: From, map: Option<&IdMap>) -> Devices {
    let listed = linux.map(read_list).unwrap_or_default();
    for device in &listed {
        let (uid, gid) = (device.uid.as_raw(), device.gid.as_raw());
        if let Some(map) = map {
            map.refuse_unmapped_uid(uid, device.field.child("uid"), config.report());
            map.refuse_unmapped_gid(gid, device.field.child("gid"), config.report());
        }
    }
    let is_free = |path: &Path| {
        let mounted =
            |mount: &Value| mount["destination"].as_str().is_some_and(|at| cleaned(Path::new(at)) == path);
        listed.iter().all(|device| device.path != path) && !mounts(config).iter().any(mounted)
    };
    let defaults = DEFAULTS.into_iter().filter(|(name, _)| is_free(&Path::new("/dev").join(name))).collect();
    let field = Field::root().child("linux").child("devices");
    Devices { field, listed, defaults, bound: binds_dev(config), from }
}

fn read_list(linux: &Node) -> Vec<Device> {
    let mut listed: Vec<Device> = Vec::new();
    for node in linux.objects("devices") {
        let Some(device) = read(&node) else { continue };
        if device.path == Path::new("/dev/ptmx") {
            // The link to pts/ptmx supplies it; a node would be one more way to a terminal of the host.
            if device.inode != PTMX {
                node.problem("path", format_args!("/dev/ptmx must be {PTMX:?}, not {:?}", device.inode));
            }
            continue;
        }
        if let Some(first) = listed.iter().find(|first| first.path == device.path) {
            if (Device { field: device.field.clone(), ..first.clone() }) == device {
                node.warning("path", format_args!("is also the path of {}, which is the same", first.field));
            } else {
                node.problem("path", format_args!("is also the path of {}, which differs", first.field));
            }
            continue;
        }
        let same = |other: &&Device| other.inode == device.inode && device.inode.kind != SFlag::S_IFIFO;
        if let Some(other) = listed.iter().find(same) {
            node.warning("path", format_args!("is the same device as {}", other.field));
        }
        listed.push(device);
    }
    listed
}

/// Every value is read before any is missed, so that all that is wrong is reported.
fn read(node: &Node) -> Option<Device> {
    node.expect_keys(&["type", "path", "major", "minor", "fileMode", "uid", "gid"]);
    let (kind, path) = (read_type(node), read_path(node));
    let number = if kind == Some(SFlag::S_IFIFO) { Some(0) } else { read_number(node) };
    let (mode, uid, gid) = (read_mode(node), read_id(node, "uid"), read_id(node, "gid"));
    Some(Device {
        field: node.field().clone(),
        path: path?,
        inode: Inode { kind: kind?, number: number? },
        mode: mode?,
        uid: Uid::from_raw(uid?),
        gid: Gid::from_raw(gid?),
    })
}

fn read_type(node: &Node) -> Option<SFlag> {
    match node.required_string("type")? {
        "c" | "u" => Some(SFlag::S_IFCHR),
        "b" => Some(SFlag::S_IFBLK),
        "p" => Some(SFlag::S_IFIFO),
        other => {
            node.problem("type", format_args!("must be c, b, u or p, not {other:?}"));
            None
        }
    }
}

fn read_path(node: &Node) -> Option<PathBuf> {
    let given = Path::new(node.required_string("path")?);
    let path = cleaned(given);
    if given.is_relative() || path.file_name().is_none() {
        node.problem("path", format_args!("must be the absolute path of a file, not {given:?}"));
        return None;
    }
    Some(path)
}

fn read_number(node: &Node) -> Option<libc::dev_t> {
    // The kernel has 12 bits for the major number and 20 for the minor.
    let part = |key: &str, most: u64| {
        let value = node.required_u64(key)?;
        if value > most {
            node.problem(key, format_args!("must be from 0 to {most}, not {value}"));
        }
        (value <= most).then_some(value)
    };
    let (major, minor) = (part("major", 0xfff), part("minor", 0xf_ffff));
    Some(makedev(major?, minor?))
}

/// 0666 if absent. Callers that copied st_mode from a node of the host leave its type bits in.
fn read_mode(node: &Node) -> Option<Mode> {
    let mode = if node.has("fileMode") { node.u32("fileMode")? } else { 0o666 };
    if mode > 0o177777 {
        node.problem("fileMode", format_args!("must be a file mode (0 to 4095 = 0o7777), not {mode}"));
        return None;
    }
    Some(Mode::from_bits_truncate(mode))
}

/// 0 if absent.
fn read_id(node: &Node, key: &str) -> Option<u32> {
    let id = if node.has(key) { node.u32(key)? } else { 0 };
    if id == u32::MAX {
        node.problem(key, format_args!("must not be {id}, which chown takes for no change"));
        return None;
    }
    Some(id)
}

/// The config's mounts as they stand there; what is wrong with one is told elsewhere.
fn mounts<'a>(config: &Node<'a>) -> &'a [Value] {
    config.value("mounts").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether what the container has at /dev in the end is a bind mount.
fn binds_dev(config: &Node) -> bool {
    let at_dev = |mount: &&Value| {
        let destination = mount["destination"].as_str().unwrap_or_default();
        cleaned(Path::new(destination)) == Path::new("/dev")
    };
    mounts(config).iter().rfind(at_dev).is_some_and(|mount| {
        let options = mount["options"].as_array().map_or(&[][..], Vec::as_slice);
        mount["type"] == "bind" || options.iter().any(|option| option == "bind" || option == "rbind")
    })
}

/// Makes the devices and links, in init, after the mounts (else they would be covered) and before /dev or the
/// root becomes read-only. umask 0 is the caller's; `proc` is init's own; `nodes` are those that init does not make.
pub fn apply(devices: &Devices, root: &Root, proc: &Proc, nodes: Nodes) -> Result<()> {
    let dev = (!devices.bound).then(|| open_dev(root)).transpose().at(&devices.field)?;
    for device in &devices.listed {
        match nodes {
            _ if devices.is_brought(device) => expect(device, root),
            Nodes::Shelf(_) | Nodes::Host(_) if !device.is_fifo() => continue,
            _ => make(device, root, proc),
        }
        .context(|| format!("create device {} ({:?})", device.path.display(), device.inode))
        .at(&device.field)?;
    }
    if let Some(dev) = &dev {
        for (name, inode) in devices.defaults().iter().filter(|_| matches!(nodes, Nodes::None)) {
            // umask 0 makes the mode exact, and what root makes in /dev is root's.
            mknodat(dev, *name, inode.kind, Mode::from_bits_truncate(0o666), inode.number)
                .or_else(|errno| accept_existing(dev, name.as_ref(), *inode, errno))
                .context(|| format!("create device /dev/{name} ({inode:?})"))
                .at(&devices.field)?;
        }
        make_links(dev, root).at(&devices.field)?;
    }
    shelf::bind_all(devices, nodes, root, dev.as_ref())
}

/// Looks for a device in a /dev that the caller brings: making it there could make it on the host. One that is
/// missing is only worth a warning, since the host's devices come and go.
fn expect(device: &Device, root: &Root) -> Result<()> {
    match root.open(&device.path, libc::O_PATH | libc::O_NOFOLLOW) {
        Ok(file) => check(&fstat(&file)?, device.inode),
        Err(Errno::ENOENT) => {
            log::warning(format_args!("device {} is missing from the bound /dev", device.path.display()));
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// /dev is not followed if it is a link, not even inside the root.
fn open_dev(root: &Root) -> Result<OwnedFd> {
    let open = || root.open(Path::new("/dev"), libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW);
    match open() {
        Err(Errno::ENOENT) => {
            mkdirat(root, "dev", Mode::from_bits_truncate(0o755)).context(|| "create /dev in the rootfs")?;
            open()
        }
        Err(Errno::ENOTDIR) => {
            return Err(Error::new("open /dev in the rootfs: it is a link, or not a directory"));
        }
        opened => opened,
    }
    .context(|| "open /dev in the rootfs")
}

/// Makes one node.
fn make(device: &Device, root: &Root, proc: &Proc) -> Result<()> {
    let (dir, name) = root.create_parent(&device.path)?;
    match mknodat(&dir, name, device.inode.kind, device.mode, device.inode.number) {
        Ok(()) => own(&dir, name, device, proc),
        Err(errno) => accept_existing(&dir, name, device.inode, errno),
    }
}

/// Gives a new node its owner, and its mode again where the directory (a default ACL) or chown changed it.
fn own(dir: &OwnedFd, name: &OsStr, device: &Device, proc: &Proc) -> Result<()> {
    let resolve = Resolve::BENEATH | Resolve::NO_SYMLINKS;
    let node = openat2(dir, Path::new(name), libc::O_PATH | libc::O_NOFOLLOW, 0, resolve)?;
    // Before it is touched: the directory may be a volume where somebody else has put another file meanwhile.
    let mut stat = fstat(&node)?;
    check(&stat, device.inode)?;
    if (stat.st_uid, stat.st_gid) != (device.uid.as_raw(), device.gid.as_raw()) {
        fchownat(&node, "", Some(device.uid), Some(device.gid), AtFlags::AT_EMPTY_PATH)?;
        stat = fstat(&node)?;
    }
    if Mode::from_bits_truncate(stat.st_mode) != device.mode {
        // An O_PATH descriptor takes no fchmod(2), and what would do it came with Linux 6.6 only.
        let fds = proc.open("self/fd", libc::O_PATH | libc::O_DIRECTORY)?;
        let number = node.as_raw_fd().to_string();
        fchmodat(&fds, number.as_str(), device.mode, FchmodatFlags::FollowSymlink)?;
    }
    Ok(())
}

/// After mknod gave `errno`: what exists is fine if it is that very device (an earlier run on this rootfs left
/// it); its owner and mode stay.
fn accept_existing(dir: &OwnedFd, name: &OsStr, wanted: Inode, errno: Errno) -> Result<()> {
    if errno != Errno::EEXIST {
        return Err(errno.into());
    }
    check(&fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?, wanted)
}

fn check(found: &FileStat, wanted: Inode) -> Result<()> {
    let found = Inode::of(found);
    if found == wanted { Ok(()) } else { Err(Error::new(format!("{found:?} is already there"))) }
}

fn make_links(dev: &OwnedFd, root: &Root) -> Result<()> {
    for (name, target) in LINKS {
        make_link(dev, name, target)?;
    }
    match root.open(Path::new("/proc/kcore"), libc::O_PATH | libc::O_NOFOLLOW) {
        Ok(_) => make_link(dev, "core", "/proc/kcore")?,
        Err(Errno::ENOENT | Errno::ENOTDIR) => {}
        Err(errno) => return Err(errno).context(|| "open /proc/kcore in the rootfs"),
    }
    make_ptmx(dev).context(|| "link /dev/ptmx to pts/ptmx")
}

/// What the image has under the name stays, as with other runtimes: it may be the same by other words.
fn make_link(dev: &OwnedFd, name: &str, target: &str) -> Result<()> {
    match symlinkat(target, dev, name) {
        Err(Errno::EEXIST) => {
            log::debug(format_args!("/dev/{name} exists in the rootfs and stays as it is"));
            Ok(())
        }
        made => made.context(|| format!("link /dev/{name} to {target}")),
    }
}

/// Replaces what the image may have there, except the true device: that opens the devpts mounted beside it
/// just as well (and is what a bind mount of pts/ptmx shows, or the host's /dev below a bound root).
fn make_ptmx(dev: &OwnedFd) -> Result<(), Errno> {
    const TARGET: &str = "pts/ptmx";
    match symlinkat(TARGET, dev, "ptmx") {
        Err(Errno::EEXIST) => {}
        made => return made,
    }
    let found = Inode::of(&fstatat(dev, "ptmx", AtFlags::AT_SYMLINK_NOFOLLOW)?);
    if found == PTMX || (found.kind == SFlag::S_IFLNK && readlinkat(dev, "ptmx")? == TARGET) {
        return Ok(());
    }
    unlinkat(dev, "ptmx", UnlinkatFlags::NoRemoveDir)?;
    symlinkat(TARGET, dev, "ptmx")
}

impl Inode {
    fn of(stat: &FileStat) -> Self {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let device = kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK;
        Self { kind, number: if device { stat.st_rdev } else { 0 } }
    }
}

impl fmt::Debug for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            SFlag::S_IFCHR => 'c',
            SFlag::S_IFBLK => 'b',
            SFlag::S_IFIFO => return f.write_str("p"),
            SFlag::S_IFLNK => return f.write_str("a symbolic link"),
            SFlag::S_IFDIR => return f.write_str("a directory"),
            SFlag::S_IFREG => return f.write_str("a regular file"),
            _ => return f.write_str("a socket"),
        };
        write!(f, "{letter} {}:{}", major(self.number), minor(self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    /// The plan, its problems and its warnings.
    fn planned(json: &str) -> (Devices, Vec<String>) {
        let report = Report::default();
        let map = parse(json.as_bytes(), &report).unwrap();
        let config = Node::root(&map, &report);
        let devices = plan(&config, config.object("linux").as_ref(), From::Mknod, None);
        let found = match report.finish() {
            Ok(warnings) => warnings.iter().map(|warning| format!("warning {warning}")).collect(),
            Err(error) => error.problems().iter().map(ToString::to_string).collect(),
        };
        (devices, found)
    }

    fn listed(entries: &str) -> (Devices, Vec<String>) {
        planned(&format!(r#"{{"linux": {{"devices": [{entries}]}}}}"#))
    }

    #[test]
    fn a_listed_device_is_read_whole() {
        let (devices, found) = listed(
            r#"{"path": "/dev/../x//fuse", "type": "u", "major": 10, "minor": 229, "fileMode": 8624, "uid": 7, "gid": 8}"#,
        );
        assert_eq!(found, [""; 0]);
        assert_eq!(devices.defaults, DEFAULTS);
        let device = Device {
            field: Field::root().child("linux").child("devices").child(0),
            path: "/x/fuse".into(),
            inode: character(10, 229),
            mode: Mode::from_bits_truncate(0o660),
            uid: 7.into(),
            gid: 8.into(),
        };
        assert_eq!(devices.listed, [device]);
    }

    #[test]
    fn absent_numbers_are_a_problem_and_zeroes_are_not() {
        let (devices, found) = listed(
            r#"{"path": "/a", "type": "c", "major": 0, "minor": 0}, {"path": "/b", "type": "b"}, {"path": "/p", "type": "p"}"#,
        );
        assert_eq!(found, ["/linux/devices/1/major: is required", "/linux/devices/1/minor: is required"]);
        assert_eq!(devices.listed.len(), 2);
        assert_eq!(devices.listed[0].inode, character(0, 0));
        assert_eq!(devices.listed[1].inode, Inode { kind: SFlag::S_IFIFO, number: 0 });
    }

    #[test]
    fn every_wrong_value_is_reported() {
        let (_, found) = listed(
            r#"{"path": "a", "type": "x", "major": 4096, "minor": -1, "fileMode": 65536, "uid": 4294967295},
               {"path": "/..", "type": "c", "major": 1, "minor": 1048576}"#,
        );
        let problems = [
            r#"0/type: must be c, b, u or p, not "x""#,
            r#"0/path: must be the absolute path of a file, not "a""#,
            "0/major: must be from 0 to 4095, not 4096",
            "0/minor: must be a whole number of at least 0, not -1",
            "0/fileMode: must be a file mode (0 to 4095 = 0o7777), not 65536",
            "0/uid: must not be 4294967295, which chown takes for no change",
            r#"1/path: must be the absolute path of a file, not "/..""#,
            "1/minor: must be from 0 to 1048575, not 1048576",
        ];
        assert_eq!(found, problems.map(|problem| format!("/linux/devices/{problem}")));
    }

    #[test]
    fn a_path_listed_twice_must_be_the_same_device() {
        let null = r#"{"path": "/n", "type": "c", "major": 1, "minor": 3}"#;
        let zero = r#"{"path": "/./n", "type": "c", "major": 1, "minor": 5}"#;
        let (devices, found) = listed(&format!("{null}, {null}"));
        assert_eq!(
            found,
            ["warning /linux/devices/1/path: is also the path of /linux/devices/0, which is the same"]
        );
        assert_eq!(devices.listed.len(), 1);
        let (_, found) = listed(&format!("{null}, {zero}"));
        assert_eq!(found, ["/linux/devices/1/path: is also the path of /linux/devices/0, which differs"]);
    }

    #[test]
    fn one_device_at_two_paths_is_only_a_warning() {
        let (devices, found) = listed(
            r#"{"path": "/a", "type": "c", "major": 1, "minor": 3}, {"path": "/b", "type": "u", "major": 1, "minor": 3}"#,
        );
        assert_eq!(found, ["warning /linux/devices/1/path: is the same device as /linux/devices/0"]);
        assert_eq!(devices.listed.len(), 2);
    }

    #[test]
    fn a_listed_path_replaces_the_default_device() {
        let (devices, _) =
            listed(r#"{"path": "/dev/tty", "type": "c", "major": 5, "minor": 0, "fileMode": 384}"#);
        assert_eq!(devices.defaults, DEFAULTS[..5]);
    }

    #[test]
    fn ptmx_is_always_the_link() {
        let (devices, found) = listed(r#"{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}"#);
        assert_eq!((devices.listed, found), (vec![], vec![]));
        let (_, found) = listed(r#"{"path": "/dev/ptmx", "type": "c", "major": 1, "minor": 3}"#);
        assert_eq!(found, ["/linux/devices/0/path: /dev/ptmx must be c 5:2, not c 1:3"]);
    }

    #[test]
    fn only_a_bind_mount_at_dev_leaves_dev_to_the_caller() {
        let tmpfs = r#"{"destination": "/dev", "type": "tmpfs"}"#;
        let bind = r#"{"destination": "dev/", "options": ["rbind", "ro"]}"#;
        let below = r#"{"destination": "/dev/dri", "options": ["bind"]}"#;
        for (mounts, bound) in [
            (String::new(), false),
            (tmpfs.into(), false),
            (bind.into(), true),
            (format!("{tmpfs}, {bind}"), true),
            (format!("{bind}, {tmpfs}"), false),
            (format!("{tmpfs}, {below}"), false),
        ] {
            let (devices, _) = planned(&format!(r#"{{"mounts": [{mounts}]}}"#));
            assert_eq!(devices.bound, bound, "{mounts}");
        }
    }
}
