//! The mount API by descriptor: <https://man7.org/linux/man-pages/man2/fsopen.2.html> and its family.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

use super::{Result, c_path, check, check_fd};

/// Attributes of one mount (not of its file system), as `mount_setattr(2)` takes them.
pub mod attr {
    pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
    pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
    pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
    /// The mask of the three exclusive atime modes; to change one, clear the mask and set the new one.
    pub const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
    pub const RELATIME: u64 = libc::MOUNT_ATTR_RELATIME;
    pub const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
    pub const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
    pub const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
    pub const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
}

/// The longest string that fsconfig(2) takes.
pub const LONGEST_OPTION: usize = 255; // bytes

/// What one file system option is set to.
pub enum Value<'a> {
    Flag,
    String(&'a str),
    Fd(BorrowedFd<'a>),
}

/// `fsopen(fstype, FSOPEN_CLOEXEC)` — opens a context for a new file system. See `fsopen(2)`. Since Linux 5.2.
pub fn fsopen(fstype: &str) -> Result<OwnedFd> {
    let fstype = CString::new(fstype).map_err(|_| Errno::EINVAL)?;
    // SAFETY: fstype lives across the call.
    check_fd(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) })
}

/// `read(fs, message)` — the kernel's own words on what it did not like since the last time. See `fsopen(2)`.
pub fn fs_messages(fs: impl AsFd) -> Vec<String> {
    let (mut messages, mut message) = (Vec::new(), [0; 512]);
    // One a read, "e ", "w " or "i " first; ENODATA after the last.
    while let Ok(length @ 1..) = nix::unistd::read(&fs, &mut message) {
        let text = String::from_utf8_lossy(&message[..length]);
        messages.push(text.get(2..).unwrap_or(&text).trim_end().to_owned());
    }
    messages
}

/// `fsconfig(fs, FSCONFIG_SET_*, key, value, aux)` — sets one option of a new file system. See `fsconfig(2)`.
/// Since Linux 5.2.
pub fn fsconfig_set(fs: impl AsFd, key: &str, value: Value<'_>) -> Result<()> {
    let fs = fs.as_fd().as_raw_fd();
    let key = CString::new(key).map_err(|_| Errno::EINVAL)?;
    let call = |command: u32, value: *const libc::c_char, aux: i32| {
        // SAFETY: key and value live across the call; value is null or a C string, as the command wants it.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, fs, command, key.as_ptr(), value, aux) })
    };
    match value {
        Value::Flag => call(FSCONFIG_SET_FLAG, std::ptr::null(), 0)?,
        Value::String(text) => {
            let text = CString::new(text).map_err(|_| Errno::EINVAL)?;
            call(FSCONFIG_SET_STRING, text.as_ptr(), 0)?
        }
        Value::Fd(fd) => call(FSCONFIG_SET_FD, std::ptr::null(), fd.as_raw_fd())?,
    };
    Ok(())
}

/// `fsconfig(fs, FSCONFIG_CMD_CREATE)` — makes the file system from the options set. See `fsconfig(2)`. Since
/// Linux 5.2.
pub fn fsconfig_create(fs: impl AsFd) -> Result<()> {
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, fs.as_fd().as_raw_fd(), FSCONFIG_CMD_CREATE, null, null, 0)
    })?;
    Ok(())
}

/// `fsconfig(fs, FSCONFIG_CMD_RECONFIGURE)` — changes a mounted file system to the options set. See `fsconfig(2)`.
/// Since Linux 5.2.
pub fn fsconfig_reconfigure(fs: impl AsFd) -> Result<()> {
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, fs.as_fd().as_raw_fd(), FSCONFIG_CMD_RECONFIGURE, null, null, 0)
    })?;
    Ok(())
}

/// `fspick(mount, "", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH)` — opens a context to change the options of a mounted
/// file system. See `fspick(2)`. Since Linux 5.2.
pub fn fspick(mount: impl AsFd) -> Result<OwnedFd> {
    let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
    // SAFETY: the path is a static C string.
    check_fd(unsafe { libc::syscall(libc::SYS_fspick, mount.as_fd().as_raw_fd(), c"".as_ptr(), flags) })
}

/// `fsmount(fs, FSMOUNT_CLOEXEC, attr)` — a detached mount of a created file system. See `fsmount(2)`. Since
/// Linux 5.2.
pub fn fsmount(fs: impl AsFd, attr: u64) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    check_fd(unsafe {
        libc::syscall(libc::SYS_fsmount, fs.as_fd().as_raw_fd(), FSMOUNT_CLOEXEC, attr as u32)
    })
}

/// `open_tree(dirfd, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags)` — a detached copy of a mount; `flags`
/// may hold AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, AT_RECURSIVE. See `open_tree(2)`. Since Linux 5.2.
pub fn open_tree_clone(dir: impl AsFd, path: &Path, flags: i32) -> Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = flags as u32 | libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: path lives across the call.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_fd().as_raw_fd(), path.as_ptr(), flags) })
}

/// `move_mount(mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)` — attaches a mount on
/// an open file or directory. See `move_mount(2)`. Since Linux 5.2.
pub fn move_mount(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    const EMPTY: &CStr = c"";
    // SAFETY: both paths are static C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            target.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// What [`mount_setattr`] changes; the default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub set: u64,
    pub clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, or 0 for no change.
    pub propagation: u64,
}

/// `mount_setattr(mount, "", AT_EMPTY_PATH [| AT_RECURSIVE], change)` — changes attributes and propagation of a
/// mount, or of all mounts below it. See `mount_setattr(2)`. Since Linux 5.12.
pub fn mount_setattr(mount: impl AsFd, recursive: bool, change: Change) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    setattr(mount.as_fd(), recursive, &attr)
}

/// `mount_setattr(mount, "", AT_EMPTY_PATH [| AT_RECURSIVE], {MOUNT_ATTR_IDMAP, userns})` — maps the ids of a mount
/// that is attached nowhere, as those of a user namespace are mapped. See `mount_setattr(2)`. Since Linux 5.12.
pub fn mount_setattr_idmap(mount: impl AsFd, recursive: bool, user: impl AsFd) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user.as_fd().as_raw_fd() as u64,
    };
    setattr(mount.as_fd(), recursive, &attr)
}

fn setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &libc::mount_attr) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static C string, attr lives across the call, the size is that of attr.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// `pivot_root(".", ".")` — makes the working directory's mount the root and stacks the old root on it. See
/// `pivot_root(2)`.
pub fn pivot_root_here() -> Result<()> {
    // SAFETY: both paths are static C strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    Ok(())
}

pub(super) const FSOPEN_CLOEXEC: u32 = 1;
pub(super) const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
pub(super) const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_FD: u32 = 5;
pub(super) const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
const FSPICK_CLOEXEC: u32 = 1;
const FSPICK_EMPTY_PATH: u32 = 8;
