//! The runtime's own binary, kept out of the container's hands (CVE-2019-5736).
//!
//! Init runs the host's keel until it executes the container's program. A process of the container can open that
//! as /proc/PID/exe, or make init execute /proc/self/exe; as soon as nobody runs it any more, it writes to it, and
//! so to the program that root starts next. A read-only bind mount does not help: CAP_SYS_ADMIN can clear its flag.
//!
//! So keel starts itself anew from a file that nobody can write: the same one, seen through an overlay that has no
//! upper directory and is attached nowhere. Its superblock cannot become writable; with nobody holding the mount's
//! root, no flag of it can be changed either. <https://docs.kernel.org/filesystems/overlayfs.html>

pub mod overlay;

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, Statfs, fstatfs};
use nix::sys::statvfs::FsFlags;
use nix::unistd::geteuid;

use self::overlay::Failure;
use crate::error::{Context, Error, Result};
use crate::sys::process::{exec_path, with_own_arguments};
use crate::sys::raw::{Stat, execveat};

const EXE: &str = "/proc/self/exe";

/// Against whom the running binary is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    Everybody,
    /// It has the immutable flag, which a process with CAP_LINUX_IMMUTABLE in the host's user namespace clears
    /// through any descriptor. For a container that gets this capability, [`restart`] is needed.
    UnlessImmutableIsCleared,
}

/// The first act of a command that enters a container. Starts keel anew, with the same arguments, environment and
/// open files, unless its binary is safe already.
pub fn protect() -> Result<Protection> {
    let exe = open_exe(OFlag::O_PATH)?;
    if is_restarted(&exe)? {
        return Ok(Protection::Everybody);
    }
    if !geteuid().is_root() && is_roots_alone(&exe)? {
        return Ok(Protection::Everybody);
    }
    match overlay::protection(&stat()?, statfs(&exe)?.filesystem_type().0 as u32) {
        Some(protection) => Ok(protection),
        None => match restart()? {},
    }
}

/// Starts keel anew from a protected file; returns only an error.
pub fn restart() -> Result<Infallible> {
    let exe = stat()?;
    let Failure { doing, errno } = with_own_arguments(|arguments| overlay::restart(&exe, arguments));
    // No overlay for a rootless caller, on a file system that cannot be below one, for a binary that was deleted.
    restart_from_copy().context(|| {
        let errno = Errno::from_raw(errno);
        format!("protect the own binary: no overlay ({doing}: {errno}) and no sealed copy")
    })
}

/// Whether nobody but the host's root may write to a file. For a user whose container has the user's ids and subordinate
/// ones: over a file of an owner that is not mapped no capability of a user namespace has power. (An access list that
/// lets somebody write shows as a group that may.)
fn is_roots_alone(exe: &OwnedFd) -> Result<bool> {
    let stat = fstat(exe).context(|| "stat the own binary")?;
    Ok((stat.st_uid, stat.st_gid, stat.st_mode & 0o022) == (0, 0, 0))
}

/// Whether this is the second start. The path by which it was executed tells; only the host's side chose that.
///
/// # Errors
/// When it should be but does not run from an overlay, instead of starting for ever.
fn is_restarted(exe: &OwnedFd) -> Result<bool> {
    let Some(path) = exec_path().to_bytes().strip_prefix(overlay::BY_DESCRIPTOR) else { return Ok(false) };
    let number = path.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if path[number..].starts_with(b"/./") {
        let statfs = statfs(exe)?;
        let is_overlay = statfs.filesystem_type() == OVERLAYFS_SUPER_MAGIC;
        if is_overlay && statfs.flags().contains(FsFlags::ST_RDONLY) {
            return Ok(true);
        }
        return Err(Error::new("protect the own binary: it was started anew, but not from an overlay"));
    }
    // By descriptor: perhaps our sealed copy, perhaps anything.
    let is_sealed = match fcntl(open_exe(OFlag::O_RDONLY)?, FcntlArg::F_GET_SEALS) {
        Ok(seals) => SealFlag::from_bits_retain(seals).contains(SEALS),
        // Not a memfd.
        Err(Errno::EINVAL) => false,
        Err(errno) => return Err(errno).context(|| "read the seals of /proc/self/exe"),
    };
    if is_sealed {
        // The kernel named the process after the descriptor.
        prctl::set_name(c"keel").context(|| "name the process")?;
    }
    Ok(is_sealed)
}

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

fn restart_from_copy() -> Result<Infallible> {
    // Since Linux 6.3 the sysctl vm.memfd_noexec wants this said; before, it is an error.
    const MFD_EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let copy = match memfd_create("keel", flags | MFD_EXEC) {
        Err(Errno::EINVAL) => memfd_create("keel", flags),
        other => other,
    };
    let mut copy = File::from(copy.context(|| "create a memfd")?);
    let mut exe = File::from(open_exe(OFlag::O_RDONLY)?);
    std::io::copy(&mut exe, &mut copy).context(|| "copy /proc/self/exe to a memfd")?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(SEALS)).context(|| "seal the memfd")?;
    let errno = with_own_arguments(|arguments| execveat(copy.as_fd(), c"", arguments, libc::AT_EMPTY_PATH));
    Err(Errno::from_raw(errno)).context(|| "execute the protected binary")
}

fn open_exe(flags: OFlag) -> Result<OwnedFd> {
    open(EXE, flags | OFlag::O_CLOEXEC, Mode::empty()).context(|| "open /proc/self/exe")
}

fn stat() -> Result<Stat> {
    overlay::own_binary().map_err(Errno::from_raw).context(|| "stat the own binary")
}

fn statfs(file: &OwnedFd) -> Result<Statfs> {
    fstatfs(file).context(|| "statfs the own binary")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::sys::mount::{Change, attr, mount_setattr, open_tree_clone};

    /// The program that the tests below run, which is this test binary once more.
    #[test]
    fn program() {
        let Ok(way) = std::env::var("KEEL_TEST_WAY") else { return };
        if way == "deleted" {
            // At its second start the link says "/memfd:keel (deleted)".
            std::fs::remove_file(std::fs::read_link(EXE).unwrap()).ok();
        }
        let exe = open_exe(OFlag::O_PATH).unwrap();
        if way == "copy" && !is_restarted(&exe).unwrap() {
            restart_from_copy().unwrap();
        }
        let protection = protect().unwrap();
        let kind = statfs(&exe).unwrap().filesystem_type().0;
        let exe = std::fs::read_link(EXE).unwrap();
        let [process, thread] = ["self", "thread-self"].map(|path| {
            let comm = std::fs::read(format!("/proc/{path}/comm")).unwrap();
            String::from_utf8_lossy(&comm).trim().to_owned()
        });
        println!("\nresult: {protection:?} {} {kind:#x} {process} {thread}", exe.display());
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }

    /// Runs `program`, as the binary `path`, up to where it waits for its stdin to end.
    fn start(path: &Path, way: &str) -> (Child, String) {
        let mut child = Command::new(path)
            .arg0("keel")
            .args(["linux::self_exe::tests::program", "--exact", "--nocapture"])
            .env("KEEL_TEST_WAY", way)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(|line| line.unwrap());
        let result = lines.find_map(|line| line.strip_prefix("result: ").map(str::to_owned));
        let result = result.expect("the program failed");
        (child, result)
    }

    fn finish(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    fn write_error(fd: &OwnedFd) -> Option<i32> {
        let mut file = match File::options().write(true).open(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
            Err(e) => return e.raw_os_error(),
            Ok(file) => file,
        };
        file.write_all(b"x").err()?.raw_os_error()
    }

    fn held_exe(child: &Child) -> OwnedFd {
        open(format!("/proc/{}/exe", child.id()).as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .unwrap()
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            println!("SKIP needs root");
        }
        root
    }

    /// A directory with a second name of the test binary in it, both removed at the end.
    struct Place(PathBuf, PathBuf);

    impl Place {
        fn new(dir: &[u8], name: &[u8]) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let own = std::env::current_exe().unwrap();
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let top = own.with_extension(format!("{}-{count}", std::process::id()));
            let dir = top.join(OsStr::from_bytes(dir));
            std::fs::create_dir_all(&dir).unwrap();
            let path = dir.join(OsStr::from_bytes(name));
            std::fs::hard_link(own, &path).unwrap();
            Self(top, path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_binary_cannot_be_written_by_one_who_holds_it() {
        if !is_root() {
            return;
        }
        let (child, result) = start(&std::env::current_exe().unwrap(), "overlay");
        assert!(result.starts_with("Everybody /keel-") && result.contains(" 0x794c7630 keel-"), "{result}");
        let exe = held_exe(&child);
        assert_eq!(write_error(&exe), Some(libc::EROFS));
        finish(child);
        assert_eq!(write_error(&exe), Some(libc::EROFS));
        // Nor does CAP_SYS_ADMIN help.
        let writable = Change { clear: attr::RDONLY, ..Change::default() };
        assert_eq!(mount_setattr(&exe, false, writable).unwrap_err(), Errno::EINVAL);
        let clone = open_tree_clone(&exe, Path::new(""), libc::AT_EMPTY_PATH);
        assert_eq!(clone.unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn the_copy_cannot_be_written_either() {
        let (child, result) = start(&std::env::current_exe().unwrap(), "copy");
        assert!(
            result.starts_with("Everybody /memfd:keel (deleted) 0x1021994 ") && result.ends_with(" keel"),
            "{result}"
        );
        let exe = held_exe(&child);
        assert_eq!(write_error(&exe), Some(libc::ETXTBSY));
        finish(child);
        assert_eq!(write_error(&exe), Some(libc::EPERM));
    }

    #[test]
    fn an_immutable_binary_is_used_as_it_is() {
        let place = Place::new(b"immutable", b"keel");
        // A file of its own: the flag is the file's, not the name's.
        std::fs::remove_file(&place.1).unwrap();
        std::fs::copy(std::env::current_exe().unwrap(), &place.1).unwrap();
        let chattr = |flag| Command::new("chattr").arg(flag).arg(&place.1).stderr(Stdio::null()).status();
        if !chattr("+i").is_ok_and(|status| status.success()) {
            println!("SKIP needs root, chattr and a file system with the immutable flag");
            return;
        }
        let started = std::panic::catch_unwind(|| start(&place.1, "immutable"));
        chattr("-i").unwrap();
        let (child, result) = started.unwrap();
        assert!(result.starts_with(&format!("UnlessImmutableIsCleared {} ", place.1.display())), "{result}");
        finish(child);
    }

    #[test]
    fn a_binary_that_was_deleted_is_copied() {
        let place = Place::new(b"deleted", b"keel");
        let (child, result) = start(&place.1, "deleted");
        assert!(result.starts_with("Everybody /memfd:keel (deleted)"), "{result}");
        finish(child);
    }

    #[test]
    fn no_path_is_too_odd_for_an_overlay() {
        if !is_root() {
            return;
        }
        let long = [vec![b'a'; 200], vec![b'b'; 200]].join(&b'/');
        for dir in [b"a:b,c\\d".as_slice(), b"not\xffutf8", &long] {
            let place = Place::new(dir, b"ke:el,\\\xff");
            let (child, result) = start(&place.1, "overlay");
            assert!(result.contains(" 0x794c7630 "), "{result}");
            finish(child);
        }
    }
}
