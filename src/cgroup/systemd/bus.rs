//! The D-Bus that systemd listens to.
//!
//! What a connection begins with is sent at once, what comes back is read with the answer to the first call: one round
//! trip, half of which passes while the caller clones. The library for it, zbus, makes several, a third of the time that
//! a scope takes, is 1 MB of program, and starts three threads. After the first thread no process that runs Rust could be
//! cloned any more, as hooks are, and no mount namespace be entered, as for an init in a user namespace.
//!
//! <https://dbus.freedesktop.org/doc/dbus-specification.html>, `org.freedesktop.systemd1(5)`

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::message::{self, Message, NO_REPLY, Object, Writer};
use crate::error::{Context, Error, Kind, Result};

/// How long systemd may take, as with runc.
const PATIENCE: Duration = Duration::from_secs(30);

const BUS: Object<'_> = Object {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};
const SYSTEMD: Object<'_> = Object {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const JOB_REMOVED: &str = "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
    interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// The two lines of [`LOGIN`] that are not the last have an answer each.
const ANSWERS: usize = 2;

/// Whoever the kernel says that we are: in a user namespace we might not know ourselves.
const LOGIN: &[u8] = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";

/// Whose systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instance {
    System,
    User,
}

impl Instance {
    /// Where it has its sockets and files; None if a user's is not told.
    pub fn directory(self) -> Option<PathBuf> {
        match self {
            Self::System => Some("/run".into()),
            Self::User => env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        }
    }
}

/// What systemd says when it does not do what it is asked for.
#[derive(Debug)]
pub struct Refused {
    pub name: String,
    pub text: String,
}

/// A connection.
pub struct Bus<'a> {
    stream: BufReader<Stream<'a>>,
    unsent: Vec<u8>,
    /// Answers to [`LOGIN`] that are still to come.
    answers: usize,
    serial: u32,
    /// JobRemoved, of jobs that may be ours.
    removed: Vec<Message>,
}

/// What is read until `interrupt` is readable.
struct Stream<'a> {
    socket: UnixStream,
    interrupt: Option<BorrowedFd<'a>>,
}

impl<'a> Bus<'a> {
    pub fn connect(instance: Instance, interrupt: Option<BorrowedFd<'a>>) -> Result<Self> {
        let (socket, is_bus) = connect(instance)?;
        let timeouts = socket.set_read_timeout(Some(PATIENCE));
        timeouts.and_then(|()| socket.set_write_timeout(Some(PATIENCE))).context(|| "set a timeout")?;
        let mut bus = Self {
            stream: BufReader::new(Stream { socket, interrupt }),
            unsent: LOGIN.to_vec(),
            answers: ANSWERS,
            serial: 0,
            removed: Vec::new(),
        };
        if is_bus {
            bus.send(BUS, "Hello", 0, "", |_| ());
            bus.send(BUS, "AddMatch", 0, "s", |body| body.text(JOB_REMOVED));
        }
        // The bus may see to it while the caller does other things.
        bus.flush().context(|| "greet systemd")?;
        Ok(bus)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().socket.write_all(&self.unsent)?;
        self.unsent.clear();
        Ok(())
    }

    fn send(
        &mut self,
        object: Object<'_>,
        member: &str,
        flags: u8,
        signature: &str,
        write: impl FnOnce(&mut Writer),
    ) {
        self.serial += 1;
        self.unsent.extend(message::call(object, member, flags, self.serial, signature, write));
    }

    /// A call whose result does not matter; it goes out with the next that does.
    pub fn tell(&mut self, member: &str, signature: &str, write: impl FnOnce(&mut Writer)) {
        self.send(SYSTEMD, member, NO_REPLY, signature, write);
    }

    /// A call and its reply.
    pub fn ask(
        &mut self,
        member: &str,
        signature: &str,
        write: impl FnOnce(&mut Writer),
    ) -> Result<Result<Message, Refused>> {
        self.ask_object(SYSTEMD, member, signature, write)
    }

    /// The release of systemd that this is; 0 if it does not say.
    pub fn version(&mut self) -> Result<u32> {
        let reply = self.property(SYSTEMD.path, SYSTEMD.interface, "Version")?;
        let version = reply.as_ref().and_then(Message::variant_text).unwrap_or_default();
        // As in 257.13-1~deb13u1.
        let digits = version.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
        Ok(digits.and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    /// What a unit is described as; its name, if there is none.
    pub fn description(&mut self, unit: &str) -> Result<String> {
        let reply = self.property(&path_of(unit), "org.freedesktop.systemd1.Unit", "Description")?;
        Ok(reply.as_ref().and_then(Message::variant_text).unwrap_or_default().into())
    }

    /// A number that a scope has as a property.
    pub fn scope_number(&mut self, unit: &str, name: &str) -> Result<Option<u64>> {
        let reply = self.property(&path_of(unit), "org.freedesktop.systemd1.Scope", name)?;
        Ok(reply.as_ref().and_then(Message::variant_u64))
    }

    /// None if there is no such property.
    fn property(&mut self, path: &str, interface: &str, name: &str) -> Result<Option<Message>> {
        let object = Object { path, interface: "org.freedesktop.DBus.Properties", ..SYSTEMD };
        let reply = self.ask_object(object, "Get", "ss", |body| {
            body.text(interface);
            body.text(name);
        })?;
        Ok(reply.ok())
    }

    fn ask_object(
        &mut self,
        object: Object<'_>,
        member: &str,
        signature: &str,
        write: impl FnOnce(&mut Writer),
    ) -> Result<Result<Message, Refused>> {
        self.send(object, member, 0, signature, write);
        let (what, call) = (|| format!("ask systemd for {member}"), self.serial);
        self.flush().context(what)?;
        loop {
            let Some(message) = self.receive().context(what)? else { continue };
            let refused =
                message.error().map(|(name, text)| Refused { name: name.into(), text: text.into() });
            match refused {
                refused if message.reply_to == call => return Ok(refused.map_or(Ok(message), Err)),
                // Of what the connection begins with.
                Some(refused) => return Err(Error::from(refused)).context(what),
                None => {}
            }
        }
    }

    /// A call that starts a job, and what becomes of that: "done", if all is well.
    pub fn ask_for_job(
        &mut self,
        member: &str,
        signature: &str,
        write: impl FnOnce(&mut Writer),
    ) -> Result<Result<String, Refused>> {
        let reply = match self.ask(member, signature, write)? {
            Ok(reply) => reply,
            Err(refused) => return Ok(Err(refused)),
        };
        let what = || format!("wait for systemd's {member}");
        let job = reply.body().text().ok_or_else(malformed).context(what)?;
        loop {
            // Anybody may send signals, but not as systemd, which is who replies.
            for signal in self.removed.drain(..).filter(|signal| signal.sender == reply.sender) {
                let mut body = signal.body();
                let (_, its_job, _, result) = (body.u32(), body.text(), body.text(), body.text());
                if its_job == Some(job) {
                    return Ok(Ok(result.unwrap_or_default().into()));
                }
            }
            self.receive().context(what)?;
        }
    }

    /// The next message, if it is a reply; one that says that a job has ended is kept.
    fn receive(&mut self) -> Result<Option<Message>> {
        while self.answers > 0 {
            self.read_answer()?;
            self.answers -= 1;
        }
        let mut start = [0; message::START];
        self.stream.read_exact(&mut start).map_err(explain)?;
        let rest = message::rest_of(&start).ok_or_else(malformed)?;
        let mut bytes = start.to_vec();
        bytes.resize(start.len() + rest, 0);
        self.stream.read_exact(&mut bytes[start.len()..]).map_err(explain)?;
        let message = Message::parse(&bytes).ok_or_else(malformed)?;
        if message.is_reply() {
            return Ok(Some(message));
        }
        if message.member == "JobRemoved" {
            self.removed.push(message);
        }
        Ok(None)
    }

    fn read_answer(&mut self) -> Result<()> {
        const LONGEST: u64 = 512; // bytes
        let mut line = Vec::new();
        self.stream.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(explain)?;
        let line = String::from_utf8_lossy(&line);
        match line.split_whitespace().next() {
            Some("DATA" | "OK") => Ok(()),
            None => Err(explain(ErrorKind::UnexpectedEof.into())),
            Some(_) => Err(Error::new(format!("the bus does not let this user in: {}", line.trim_end()))),
        }
    }
}

impl Refused {
    /// One of systemd's own errors.
    pub fn is(&self, name: &str) -> bool {
        self.name.strip_prefix("org.freedesktop.systemd1.") == Some(name)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::new(format!("{} ({})", refused.text, refused.name))
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(interrupt) = self.interrupt {
            let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
            let mut fds = [self.socket.as_fd(), interrupt].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            if poll(&mut fds, timeout)? == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            if fds[0].any() != Some(true) {
                // Not ErrorKind::Interrupted, after which it would be read again.
                return Err(Errno::ECANCELED.into());
            }
        }
        self.socket.read(buffer)
    }
}

fn malformed() -> Error {
    Error::new("what it says is malformed")
}

fn explain(error: io::Error) -> Error {
    match error.kind() {
        _ if error.raw_os_error() == Some(libc::ECANCELED) => {
            Error::of_kind(Kind::Interrupted, "interrupted by a signal")
        }
        ErrorKind::WouldBlock => Error::new(format!("no answer within {} s", PATIENCE.as_secs())),
        ErrorKind::UnexpectedEof => Error::new("it has closed the connection"),
        _ => error.into(),
    }
}

/// Connects to the bus, or where there is none to systemd itself. Also says which of the two.
fn connect(instance: Instance) -> Result<(UnixStream, bool)> {
    let directory = instance.directory();
    let (variable, bus, way_out) = match instance {
        Instance::System => (
            "DBUS_SYSTEM_BUS_ADDRESS",
            "dbus/system_bus_socket",
            "without systemd and dbus.socket leave out --systemd-cgroup",
        ),
        Instance::User => (
            "DBUS_SESSION_BUS_ADDRESS",
            "bus",
            "it takes a session of the user, or `loginctl enable-linger`, and XDG_RUNTIME_DIR; or leave out --systemd-cgroup",
        ),
    };
    let set = env::var_os(variable).filter(|address| !address.is_empty());
    let first = match (&set, &directory) {
        (Some(address), _) => Socket::of_address(address.as_bytes())
            .ok_or_else(|| Error::new(format!("{variable}={}: it names no Unix socket", address.display()))),
        (None, Some(directory)) => Ok(Socket::Path(directory.join(bus))),
        (None, None) => Err(Error::new(format!("neither {variable} nor XDG_RUNTIME_DIR is set"))),
    };
    let refused = match first.and_then(|socket| socket.connect()) {
        Ok(stream) => return Ok((stream, true)),
        Err(refused) => refused,
    };
    // Where systemctl goes, as runc does when there is no bus.
    let direct = directory.map(|directory| Socket::Path(directory.join("systemd/private")).connect());
    match direct {
        Some(Ok(stream)) => Ok((stream, false)),
        _ => Err(refused).context(|| format!("reach systemd by D-Bus ({way_out})")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Socket {
    Path(PathBuf),
    Abstract(Vec<u8>),
}

impl Socket {
    /// The first one in `unix:path=/a%20b,guid=0;unix:abstract=c`.
    fn of_address(addresses: &[u8]) -> Option<Self> {
        let unix = addresses.split(|&byte| byte == b';').filter_map(|one| one.strip_prefix(b"unix:"));
        let mut keys = unix.flat_map(|one| one.split(|&byte| byte == b','));
        keys.find_map(|key| match key.strip_prefix(b"path=") {
            Some(path) => Some(Self::Path(OsString::from_vec(unescape(path)?).into())),
            None => Some(Self::Abstract(unescape(key.strip_prefix(b"abstract=")?)?)),
        })
    }

    fn connect(&self) -> Result<UnixStream> {
        let (connected, name) = match self {
            Self::Path(path) => (UnixStream::connect(path), path.as_path()),
            Self::Abstract(name) => (
                SocketAddr::from_abstract_name(name).and_then(|address| UnixStream::connect_addr(&address)),
                Path::new(std::ffi::OsStr::from_bytes(name)),
            ),
        };
        connected.context(|| format!("connect to {}", name.display()))
    }
}

fn path_of(unit: &str) -> String {
    format!("{}/unit/{}", SYSTEMD.path, escape(unit))
}

/// The name of a unit as a part of an object's path.
fn escape(name: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("_{byte:02x}"),
    };
    match name.as_bytes() {
        // A first digit too.
        [first @ b'0'..=b'9', rest @ ..] => {
            format!("_{first:02x}") + &rest.iter().copied().map(escaped).collect::<String>()
        }
        bytes => bytes.iter().copied().map(escaped).collect(),
    }
}

/// `%20` stands for a blank.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut parts = text.split(|&byte| byte == b'%');
    let mut plain = parts.next()?.to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        plain.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        plain.extend(&part[2..]);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_unit_has_letters_and_digits() {
        assert_eq!(escape(r"keel-a\x2b.scope"), "keel_2da_5cx2b_2escope");
        assert_eq!(escape("1.scope"), "_31_2escope");
    }

    #[test]
    fn an_address_names_a_socket() {
        let path = |path: &str| Some(Socket::Path(path.into()));
        for (address, socket) in [
            ("unix:path=/run/bus", path("/run/bus")),
            ("unix:path=/a%20b%2c,guid=0f", path("/a b,")),
            ("tcp:host=x;unix:guid=0f,path=/c;unix:path=/d", path("/c")),
            ("unix:abstract=/tmp/x", Some(Socket::Abstract(b"/tmp/x".to_vec()))),
            ("unix:path=/a%2", None),
            ("unix:path=/a%+f", None),
            ("unix:runtime=yes", None),
            ("", None),
        ] {
            assert_eq!(Socket::of_address(address.as_bytes()), socket, "{address}");
        }
    }
}
