//! sd_notify(3) through the runtime: systemd listens on the host's NOTIFY_SOCKET, the container is given one
//! of its own, and its `READY=1` is passed on.
//!
//! The container's socket lies in the state directory and is bound read-only to /run/notify. Nothing else is
//! relayed: the container must not speak to the host's service manager in its own words.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};
use serde_json::{Map, Value, json};

use crate::container::{Container, NOTIFY_DIR, NOTIFY_SOCKET};
use crate::error::{Context, Error, Result};
use crate::gate::already_started;

/// Where the container has it.
pub const INSIDE: &str = "/run/notify";

/// The container's socket, and the host's that listens behind it.
pub struct Notify {
    container: UnixDatagram,
    host: PathBuf,
}

fn host_socket() -> Option<PathBuf> {
    std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Adds the container's socket to a config, when keel was given one: a mount and an environment variable.
/// [`make_dir`] must follow before the mounts are opened.
pub fn offer(config: &mut Map<String, Value>, state_dir: &Path) -> Result<bool> {
    if host_socket().is_none() {
        return Ok(false);
    }
    // The config's relative paths begin at the bundle.
    let source = std::path::absolute(state_dir.join(NOTIFY_DIR)).context(|| "find the state directory")?;
    let source = source.to_str().ok_or_else(|| Error::new("the state directory's path is not UTF-8"))?;
    let mount = json!({
        "destination": INSIDE, "type": "bind", "source": source,
        "options": ["bind", "nosuid", "noexec", "nodev", "ro"],
    });
    // A config whose mounts or env are of the wrong type is refused by the plan.
    if let Value::Array(mounts) = config.entry("mounts").or_insert(json!([])) {
        mounts.push(mount);
    }
    if let Some(Value::Object(process)) = config.get_mut("process")
        && let Value::Array(env) = process.entry("env").or_insert(json!([]))
    {
        env.push(json!(format!("NOTIFY_SOCKET={INSIDE}/notify.sock")));
    }
    Ok(true)
}

/// The directory that the container sees; its socket is bound when somebody listens.
pub fn make_dir(container: &Container) -> Result<()> {
    let mode = Mode::from_bits_truncate(0o755);
    mkdirat(container.dir(), NOTIFY_DIR, mode)
        // The umask is for the host's users, not for the container's.
        .and_then(|()| fchmodat(container.dir(), NOTIFY_DIR, mode, FchmodatFlags::FollowSymlink))
        .context(|| "create the notify directory")
}

impl Notify {
    /// Listens for the container's word, if it was offered a socket and somebody waits for it on the host.
    pub fn listen(container: &Container) -> Result<Option<Self>> {
        let Some(host) = host_socket() else { return Ok(None) };
        // A socket's path has at most 108 bytes; this one is short whatever the state directory's is.
        let path = format!("/proc/self/fd/{}/{NOTIFY_SOCKET}", container.dir().as_raw_fd());
        remove_stale(container, &path)?;
        match UnixDatagram::bind(&path) {
            Ok(socket) => {
                // The container's user, whoever that is, must be able to write to it.
                let mode = Mode::from_bits_truncate(0o777);
                fchmodat(container.dir(), NOTIFY_SOCKET, mode, FchmodatFlags::FollowSymlink)
                    .context(|| "open the notify socket to the container")?;
                Ok(Some(Self { container: socket, host }))
            }
            // Created without NOTIFY_SOCKET: the container has no socket to write to.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).context(|| "bind the container's notify socket"),
        }
    }

    /// Waits until the container says that it is ready and tells the host, or until it is gone.
    pub fn relay(&self, pid: Pid, pidfd: BorrowedFd<'_>) -> Result<()> {
        loop {
            let mut ready = [
                PollFd::new(self.container.as_fd(), PollFlags::POLLIN),
                PollFd::new(pidfd, PollFlags::POLLIN),
            ];
            poll(&mut ready, PollTimeout::NONE).context(|| "wait for the container to be ready")?;
            if ready[0].any() == Some(true) && self.receive_ready()? {
                return barrier(&self.tell_host(pid)?);
            }
            if ready[1].any() == Some(true) {
                return Ok(());
            }
        }
    }

    /// Whether the container has said something that nobody has read yet.
    pub fn has_word(&self) -> bool {
        let mut word = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut word, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Whether the next datagram says READY=1.
    pub fn receive_ready(&self) -> Result<bool> {
        let mut datagram = [0; 4096];
        let length = self.container.recv(&mut datagram).context(|| "read the container's notification")?;
        Ok(datagram[..length].split(|&b| b == b'\n').any(|line| line == b"READY=1"))
    }

    /// Passes READY=1 on with the pid to watch.
    pub fn tell_host(&self, pid: Pid) -> Result<UnixDatagram> {
        let host = UnixDatagram::unbound().context(|| "make a notify socket")?;
        let address = self.host_address()?;
        host.connect_addr(&address)
            .context(|| format!("connect to NOTIFY_SOCKET {}", self.host.display()))?;
        let message = format!("READY=1\nMAINPID={pid}\n");
        host.send(message.as_bytes()).context(|| "send READY=1 to NOTIFY_SOCKET")?;
        Ok(host)
    }

    fn host_address(&self) -> Result<SocketAddr> {
        use std::os::unix::ffi::OsStrExt;
        match self.host.as_os_str().as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(Path::new(&self.host)),
        }
        .context(|| format!("read NOTIFY_SOCKET {}", self.host.display()))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }
}

/// Another `start` may have been here. If it still listens, this is one too many; if it is gone, the gate tells whether it
/// came to open it.
fn remove_stale(container: &Container, path: &str) -> Result<()> {
    match UnixDatagram::unbound().and_then(|socket| socket.connect(path)) {
        Ok(()) => Err(already_started()),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            unlinkat(container.dir(), NOTIFY_SOCKET, UnlinkatFlags::NoRemoveDir)
                .context(|| "remove the notify socket of another start")
        }
        // No socket, the usual case; what else is wrong, bind says.
        Err(_) => Ok(()),
    }
}

/// sd_notify_barrier(3): waits until all of it has been read. systemd looks the sender up when it reads, and this
/// process is about to be gone. The other side closes the pipe's end when it comes to it.
fn barrier(host: &UnixDatagram) -> Result<()> {
    const PATIENCE_MS: u16 = 30_000; // what systemd's own clients give it
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(|| "make a pipe")?;
    let fds = [write.as_raw_fd()];
    let parts = [std::io::IoSlice::new(b"BARRIER=1")];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(host.as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None)
        .context(|| "send BARRIER=1 to NOTIFY_SOCKET")?;
    drop(write);
    let mut closed = [PollFd::new(read.as_fd(), PollFlags::POLLIN)];
    poll(&mut closed, PollTimeout::from(PATIENCE_MS)).context(|| "wait for NOTIFY_SOCKET to be read")?;
    Ok(())
}
