//! The messages between `create` and init, over one pair of SOCK_SEQPACKET sockets.
//!
//! Init tells how far it is, create tells when to go on. A closed socket is a message too: the other side
//! is dead. Init's end closes by itself at execve, and by then nobody may still need it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, socketpair};

use nix::unistd::write;

use crate::error::{Context, Error, Result};
use crate::socket::{receive, send_fd};

/// What init says to create.
pub enum FromInit {
    /// The mounts are made: time for the hooks of the runtime's namespaces.
    Mounted,
    /// The terminal's master, for a `run` in the foreground.
    Terminal(OwnedFd),
    /// The number of the descriptor that a seccomp agent is to get, among init's.
    Listener(RawFd),
    /// The same as such, from a user's init.
    ListenerSent(OwnedFd),
    /// All is set up but the user's program.
    Ready,
    /// Init gave up and is exiting.
    Failed(Error),
    /// Init is gone without a word; or, after [`ToInit::Start`], it executed the program.
    Closed,
}

/// What create says to init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToInit {
    /// The ids of its user namespace are mapped; or the hooks have run.
    Continue = 1,
    /// State and pid file are written: wait for `start`.
    Commit = 2,
    /// The same, and start at once (`run`).
    Start = 3,
}

const MOUNTED: u8 = 1;
const TERMINAL: u8 = 2;
const READY: u8 = 3;
const FAILED: u8 = 4;
const LISTENER: u8 = 5;
const MOUNT: u8 = 6;
const SCOPE: u8 = 7;

/// The longest message; an error's text is cut to it by the sender.
const LONGEST: usize = 16 << 10; // bytes

/// Create's end.
pub struct CreateEnd(OwnedFd);

/// Init's end.
pub struct InitEnd(OwnedFd);

pub fn pair() -> Result<(CreateEnd, InitEnd)> {
    let (create, init) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .context(|| "make the socket pair between create and init")?;
    Ok((CreateEnd(create), InitEnd(init)))
}

impl CreateEnd {
    pub fn send(&self, message: ToInit) -> Result<()> {
        send(&self.0, &[message as u8]).context(|| "send to init")
    }

    /// That init is in its cgroup, and where in it to move to.
    pub fn scope(&self, leaf: Option<BorrowedFd<'_>>) -> Result<()> {
        let sent = match leaf {
            Some(procs) => send_fd(&self.0, &[SCOPE], procs),
            None => send(&self.0, &[SCOPE]),
        };
        sent.context(|| "tell init of its cgroup")
    }

    /// A mount that was opened for an init in a user namespace.
    pub fn mount(&self, mount: BorrowedFd<'_>) -> Result<()> {
        send_fd(&self.0, &[MOUNT], mount).context(|| "send a mount to init")
    }

    pub fn receive(&self) -> Result<FromInit> {
        let mut buffer = vec![0; LONGEST];
        let received = match receive(&self.0, &mut buffer) {
            // That it died with unread messages is told once, before what it had said itself.
            Err(Errno::ECONNRESET) => receive(&self.0, &mut buffer),
            other => other,
        };
        let (length, fd) = received.context(|| "receive from init")?;
        let Some((&kind, body)) = buffer[..length].split_first() else { return Ok(FromInit::Closed) };
        Ok(match (kind, fd) {
            (MOUNTED, _) => FromInit::Mounted,
            (READY, _) => FromInit::Ready,
            (TERMINAL, Some(master)) => FromInit::Terminal(master),
            (LISTENER, Some(listener)) => FromInit::ListenerSent(listener),
            (LISTENER, _) if let Ok(number) = body.try_into() => {
                FromInit::Listener(RawFd::from_ne_bytes(number))
            }
            (FAILED, _) => FromInit::Failed(Error::from_json(body)),
            _ => return Err(Error::new("receive from init: not a message of this keel")),
        })
    }
}

impl AsFd for CreateEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for InitEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl InitEnd {
    pub fn mounted(&self) -> Result<()> {
        send(&self.0, &[MOUNTED]).context(|| "tell create that the mounts are made")
    }

    pub fn terminal(&self, master: BorrowedFd<'_>) -> Result<()> {
        send_fd(&self.0, &[TERMINAL], master).context(|| "send the terminal to run")
    }

    /// By write(2), which is the one call that no profile may leave to the agent.
    pub fn listener(&self, number: RawFd) -> Result<()> {
        let mut message = vec![LISTENER];
        message.extend(number.to_ne_bytes());
        write(&self.0, &message).map(drop).context(|| "tell of the seccomp listener")
    }

    /// As such: create, as a user, may not take anything from a process that is not dumpable.
    pub fn send_listener(&self, listener: BorrowedFd<'_>) -> Result<()> {
        send_fd(&self.0, &[LISTENER], listener).context(|| "send the seccomp listener to create")
    }

    pub fn ready(&self) -> Result<()> {
        send(&self.0, &[READY]).context(|| "tell create that the container is set up")
    }

    /// Init's last words.
    pub fn failed(&self, error: &Error) {
        let mut message = vec![FAILED];
        message.extend(error.to_json(LONGEST - 1));
        // EPIPE: create is dead, and nobody is left to tell.
        let _ = send(&self.0, &message);
    }

    /// Waits until it is in its cgroup; gives where in it to move to. None when create is dead.
    pub fn receive_scope(&self) -> Result<Option<Option<OwnedFd>>> {
        match receive(&self.0, &mut [0]) {
            Ok((0, _)) | Err(Errno::ECONNRESET) => Ok(None),
            received => received.map(|(_, leaf)| Some(leaf)).context(|| "receive from create"),
        }
    }

    /// What create has opened; None when it is dead, or has none left to give.
    pub fn receive_mount(&self) -> Result<Option<OwnedFd>> {
        receive(&self.0, &mut [0]).map(|(_, mount)| mount).context(|| "receive a mount from create")
    }

    /// The next word of create; None when create is dead.
    pub fn receive(&self) -> Result<Option<ToInit>> {
        let mut buffer = [0];
        match receive(&self.0, &mut buffer) {
            Ok((0, _)) | Err(Errno::ECONNRESET) => Ok(None),
            Ok(_) => match buffer[0] {
                1 => Ok(Some(ToInit::Continue)),
                2 => Ok(Some(ToInit::Commit)),
                3 => Ok(Some(ToInit::Start)),
                other => Err(Error::new(format!("receive from create: unknown message {other}"))),
            },
            Err(errno) => Err(errno).context(|| "receive from create"),
        }
    }
}

fn send(socket: &OwnedFd, message: &[u8]) -> Result<(), Errno> {
    socket::send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (create, init) = pair().unwrap();
        init.mounted().unwrap();
        init.ready().unwrap();
        assert!(matches!(create.receive().unwrap(), FromInit::Mounted));
        assert!(matches!(create.receive().unwrap(), FromInit::Ready));
        create.send(ToInit::Start).unwrap();
        assert_eq!(init.receive().unwrap(), Some(ToInit::Start));
    }

    #[test]
    fn an_error_arrives_with_its_field() {
        let (create, init) = pair().unwrap();
        init.failed(&Error::from(Errno::EBUSY).field(&crate::error::Field::root().child("mounts")));
        let FromInit::Failed(error) = create.receive().unwrap() else { panic!() };
        assert_eq!(error.to_string(), "Device or resource busy (16) [config.json /mounts]");
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_arrive() {
        let (create, init) = pair().unwrap();
        create.send(ToInit::Continue).unwrap();
        init.failed(&Error::new("gave up"));
        drop(init);
        let FromInit::Failed(error) = create.receive().unwrap() else { panic!() };
        assert_eq!(error.to_string(), "gave up");
        assert!(matches!(create.receive().unwrap(), FromInit::Closed));
    }

    #[test]
    fn a_dead_peer_is_a_message() {
        let (create, init) = pair().unwrap();
        drop(init);
        assert!(matches!(create.receive().unwrap(), FromInit::Closed));
        let (create, init) = pair().unwrap();
        drop(create);
        assert_eq!(init.receive().unwrap(), None);
    }

    #[test]
    fn a_terminal_arrives_as_a_descriptor() {
        let (create, init) = pair().unwrap();
        init.terminal(std::fs::File::open("/dev/null").unwrap().as_fd()).unwrap();
        assert!(matches!(create.receive().unwrap(), FromInit::Terminal(_)));
    }
}
