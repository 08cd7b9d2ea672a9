//! `/process/terminal` and `/process/consoleSize`: a pseudo-terminal of the container's own devpts as standard
//! input, output and error, as controlling terminal, and on /dev/console.
//!
//! The pair is reached by descriptor from first to last. A path below /dev/pts would be the image's word on
//! what lies there: a link planted as /dev/pts/0 or /dev/console had runtimes bind a file of the host's proc
//! in its place (CVE-2025-52565).
//!
//! Whoever talks to the process gets the master over a Unix socket, as one message with one descriptor.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#process>,
//! <https://man7.org/linux/man-pages/man7/pty.7.html>

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};
use nix::unistd::{Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown};

use crate::error::{At, Context, Error, Field, Result};
use crate::root::Root;
use crate::socket::send_fd;
use crate::spec::Node;
use crate::sys::fs::{Resolve, openat2};
use crate::sys::mount::{move_mount, open_tree_clone};
use crate::sys::terminal::{Size, tiocgptpeer, tiocsctty, tiocsptlck_unlock, tiocswinsz};

/// The process is to have a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    field: Field,
    /// None: nobody says (0 in either direction means the same).
    pub size: Option<Size>,
}

pub fn plan(process: &Node) -> Option<Terminal> {
    // Without a terminal the size must be ignored, whatever it is.
    if !process.boolean("terminal") {
        return None;
    }
    let size = process.object("consoleSize").and_then(|size| {
        size.expect_keys(&["height", "width"]);
        let (rows, columns) = (read_length(&size, "height"), read_length(&size, "width"));
        Some(Size { rows: rows?, columns: columns? })
    });
    Some(Terminal {
        field: process.at("terminal"),
        size: size.filter(|size| size.rows != 0 && size.columns != 0),
    })
}

fn read_length(size: &Node, key: &str) -> Option<u16> {
    let length = size.required_u64(key)?;
    u16::try_from(length)
        .map_err(|_| size.problem(key, format_args!("must be from 0 to 65535 characters, not {length}")))
        .ok()
}

/// A pseudo-terminal. Dropping it closes this process's side of both ends; the process keeps the other end as
/// its standard streams.
pub struct Pty {
    field: Field,
    master: OwnedFd,
    slave: OwnedFd,
}

/// Makes the pair, in init, after the mounts: it must be one of the container's devpts, or its name would mean
/// nothing there. `uid` is the user that the process will run as.
pub fn allocate(terminal: &Terminal, root: &Root, uid: Uid) -> Result<Pty> {
    let pair = || -> Result<Pty> {
        let master = open_ptmx(root)?;
        tiocsptlck_unlock(&master).context(|| "unlock the pseudo-terminal")?;
        let slave = tiocgptpeer(&master).context(|| "open the other end of the pseudo-terminal")?;
        if let Some(size) = terminal.size {
            tiocswinsz(&slave, size).context(|| format!("set size {} x {}", size.rows, size.columns))?;
        }
        own(&slave, uid).context(|| format!("give the pseudo-terminal to user {uid}"))?;
        Ok(Pty { field: terminal.field.clone(), master, slave })
    };
    pair().context(|| "allocate a terminal").at(&terminal.field)
}

fn open_ptmx(root: &Root) -> Result<OwnedFd> {
    let missing = || Error::new("use /dev/pts in the rootfs: no devpts is mounted there");
    let pts = match root.open(Path::new("/dev/pts"), libc::O_PATH | libc::O_DIRECTORY) {
        Err(Errno::ENOENT) => return Err(missing()),
        opened => opened.context(|| "open /dev/pts in the rootfs")?,
    };
    if fstatfs(&pts).context(|| "statfs /dev/pts in the rootfs")?.filesystem_type() != DEVPTS_SUPER_MAGIC {
        return Err(missing());
    }
    // A devpts holds nothing but what the kernel makes, so this is the real one if it is not mounted over.
    let resolve = Resolve::BENEATH | Resolve::NO_XDEV | Resolve::NO_SYMLINKS;
    openat2(&pts, Path::new("ptmx"), libc::O_RDWR | libc::O_NOCTTY, 0, resolve)
        .context(|| "open /dev/pts/ptmx in the rootfs")
}

/// The group stays the one that devpts gave it (its gid option, usually tty).
fn own(slave: &OwnedFd, uid: Uid) -> Result<(), Errno> {
    if fstat(slave)?.st_uid == uid.as_raw() {
        return Ok(());
    }
    match fchown(slave, Some(uid), None) {
        // A devpts that may not be written to, or belongs to another user namespace, must do as it is.
        Err(Errno::EPERM | Errno::EROFS) => Ok(()),
        owned => owned,
    }
}

impl Pty {
    /// Binds the terminal on /dev/console, made as an empty file if missing. Before /dev or the root becomes
    /// read-only, and after the devices.
    pub fn bind_console(&self, root: &Root) -> Result<()> {
        let bind = || -> Result<()> {
            let console = open_console(root)?;
            // A copy of the devpts mount whose root is the slave itself.
            let mount = open_tree_clone(&self.slave, Path::new(""), libc::AT_EMPTY_PATH)
                .context(|| "copy the mount of the terminal")?;
            move_mount(&mount, &console)?;
            Ok(())
        };
        bind().context(|| "bind the terminal on /dev/console").at(&self.field)
    }

    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Sends the master to whoever will talk to the process.
    pub fn send_master(&self, socket: BorrowedFd<'_>) -> Result<()> {
        // The name is what other runtimes send; receivers only need the message not to be empty.
        send_fd(socket, b"/dev/ptmx", self.master.as_fd())
            .context(|| "send the terminal to the console socket")
            .at(&self.field)
    }

    /// Makes it the controlling terminal and the standard streams. setsid is the caller's, before.
    pub fn become_stdio(&self) -> Result<()> {
        let become_stdio = || -> Result<(), Errno> {
            tiocsctty(&self.slave)?;
            dup2_stdin(&self.slave)?;
            dup2_stdout(&self.slave)?;
            dup2_stderr(&self.slave)
        };
        become_stdio().context(|| "make the terminal the standard streams").at(&self.field)
    }
}

fn open_console(root: &Root) -> Result<OwnedFd> {
    // A /dev that is a link is refused here as it is for devices.
    let dev = root
        .open(Path::new("/dev"), libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .context(|| "open /dev in the rootfs")?;
    let open = |flags, mode| {
        let resolve = Resolve::BENEATH | Resolve::NO_SYMLINKS;
        openat2(&dev, Path::new("console"), flags | libc::O_NOFOLLOW, mode, resolve)
            .context(|| "open /dev/console in the rootfs")
    };
    match open(libc::O_PATH, 0) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => {
            open(libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOCTTY, 0o620)
        }
        Err(error) => Err(error),
        Ok(console) => {
            let kind = SFlag::from_bits_truncate(fstat(&console)?.st_mode) & SFlag::S_IFMT;
            if kind != SFlag::S_IFREG && kind != SFlag::S_IFCHR {
                return Err(Error::new(
                    "use /dev/console in the rootfs: it is a link, or neither a file nor a device",
                ));
            }
            Ok(console)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    fn planned(json: &str) -> Result<Option<Terminal>> {
        let report = Report::default();
        let map = parse(json.as_bytes(), &report).unwrap();
        let terminal = plan(&Node::root(&map, &report));
        report.finish().map(|_| terminal)
    }

    fn size(json: &str) -> Option<(u16, u16)> {
        planned(json).unwrap().unwrap().size.map(|size| (size.rows, size.columns))
    }

    #[test]
    fn a_console_size_counts_only_with_a_terminal() {
        assert_eq!(planned(r#"{"terminal": false, "consoleSize": {"height": "x"}}"#).unwrap(), None);
        assert_eq!(planned(r#"{"consoleSize": 7}"#).unwrap(), None);
        assert_eq!(size(r#"{"terminal": true}"#), None);
        assert_eq!(size(r#"{"terminal": true, "consoleSize": {"height": 0, "width": 80}}"#), None);
        assert_eq!(
            size(r#"{"terminal": true, "consoleSize": {"height": 25, "width": 65535}}"#),
            Some((25, 65535))
        );
    }

    #[test]
    fn a_terminal_of_half_a_size_or_a_size_too_large_is_a_problem() {
        let error = planned(r#"{"terminal": true, "consoleSize": {"height": 65536}}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid config.json: /consoleSize/height: must be from 0 to 65535 characters, not 65536; \
             /consoleSize/width: is required"
        );
    }
}
