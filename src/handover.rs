//! How callers learn of the container's process: the pid file and the pidfd socket.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::log;
use crate::socket;

/// Writes the pid, digits only, so that a reader sees the whole of it or no file.
pub fn write_pid_file(path: &Path, pid: Pid) -> Result<()> {
    let write = || -> Result<()> {
        let name = path.file_name().ok_or_else(|| Error::new("it has no file name"))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        let temporary = path.with_file_name(hidden);
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(pid.to_string().as_bytes())?;
        Ok(std::fs::rename(&temporary, path)?)
    };
    write().context(|| format!("write pid file {}", path.display()))
}

/// Takes it back, when the container has come to nothing after all.
pub fn remove_pid_file(path: &Path) {
    if let Err(e) = std::fs::remove_file(path) {
        log::warning(format_args!("remove pid file {}: {e}", path.display()));
    }
}

/// Sends the pidfd of the container's process in one message.
pub fn send_pidfd(path: &Path, pidfd: BorrowedFd<'_>) -> Result<()> {
    let socket = socket::connect(path)?;
    socket::send_fd(&socket, b"pidfd", pidfd).context(|| format!("send the pidfd to {}", path.display()))
}
