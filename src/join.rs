//! A process that `exec` adds to a container, from its first instruction to execve, in order.
//!
//! It is a copy of `exec`, born in the container's pid namespace and cgroup. It joins the other namespaces of the
//! container's first process in one call, and from there goes the way of that (see `init.rs`): what is set on it,
//! and in which order, is the same line of code.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chroot, fchdir, setsid};

use crate::error::{Context, Result};
use crate::gate;
use crate::init::{Found, THIS, join_keyring, restrict};
use crate::linux::{idmap, terminal};
use crate::log;
use crate::plan::Process;
use crate::proc::Proc;
use crate::root::Root;
use crate::sync::InitEnd;
use crate::sys::process::exit_now;

/// What was found and opened on the host, before the clone.
pub struct Joining<'a> {
    /// A pidfd of the container's first process.
    pub first: BorrowedFd<'a>,
    /// The CLONE_NEW* flags of its namespaces to join.
    pub namespaces: i32,
    /// Its root, if its mount namespace has another: that of a container without one of its own.
    pub root: Option<OwnedFd>,
    /// Whom it becomes in the user namespace, if that is not the runtime's own.
    pub mapped: Option<(Uid, Gid)>,
    /// Where the terminal's master goes; without it, to exec.
    pub console_socket: Option<OwnedFd>,
    /// The first descriptor that the program does not get.
    pub first_private_fd: u32,
    /// The id of a container with a keyring of its own.
    pub keyring: Option<&'a str>,
    /// Whether it is still to be brought to the container's cgroup.
    pub moves: bool,
}

/// The life of the process.
pub fn live(process: &Process, joining: Joining<'_>, exec: &InitEnd) -> Result<Infallible> {
    let found = set_up(process, joining, exec)?;
    exec.ready()?;
    // If exec is dead nobody will ever know of this process.
    if exec.receive()?.is_none() {
        exit_now(1);
    }
    Err(found.execute())
}

fn set_up<'p>(process: &'p Process, joining: Joining<'_>, exec: &InitEnd) -> Result<Found<'p>> {
    let kept = [Some(exec.as_fd().as_raw_fd()), log::descriptor()];
    gate::hold_signals()?;
    process.exec_affinity.apply_final()?;
    let callers_umask = umask(Mode::empty());
    setsid().context(|| "start a session")?;
    // Before it is anything but a copy of exec: nothing that it does may count as the caller's.
    if joining.moves && exec.receive_scope()?.is_none() {
        exit_now(1);
    }
    let proc = match joining.mapped {
        None => Proc::private(),
        Some(_) => {
            // Nobody may in there.
            process.rlimits.allow(THIS)?;
            let proc = Proc::private_or_host();
            if process.labels.are_set() {
                proc.prepare()?;
            }
            proc
        }
    };
    setns(joining.first, CloneFlags::from_bits_retain(joining.namespaces))
        .context(|| "join the container's namespaces")?;
    if let Some((uid, gid)) = joining.mapped {
        idmap::become_mapped(uid, gid)?;
    }
    if let Some(root) = joining.root {
        fchdir(&root).and_then(|()| chroot(".")).context(|| "enter the container's root")?;
    }
    if let Some(id) = joining.keyring {
        join_keyring(Some(process), &proc, id)?;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = Root::new(open("/", flags, Mode::empty()).context(|| "open the container's root")?);
    if let Some(terminal) = &process.terminal {
        let pty = terminal::allocate(terminal, &root, process.user.uid())?;
        match joining.console_socket {
            Some(socket) => pty.send_master(socket.as_fd())?,
            None => exec.terminal(pty.master())?,
        }
        pty.become_stdio()?;
    }
    if joining.mapped.is_none() || process.rights.is_user() {
        process.schedule(THIS)?;
    }
    restrict(process, &root, proc, callers_umask, joining.first_private_fd, &kept, exec)
}
