//! /linux/netDevices: network devices of the host that are given to the container, and its loopback device.
//!
//! The parent moves each device by rtnetlink, in one message with its new name, and then gives it back in the
//! container's network namespace what the kernel takes from it on the way: its permanent global addresses and
//! its being up.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#network-devices>,
//! `rtnetlink(7)`.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::fstat;
use nix::unistd::Pid;

use crate::error::{At, Context, Error, Field, Result};
use crate::netlink::{Message, Route, attributes, word};
use crate::proc::Proc;
use crate::spec::Node;
use crate::sys::net::interface_up;

#[derive(Debug, PartialEq, Eq)]
pub struct NetDevice {
    name: String,
    /// May hold one `%d`, for which the kernel puts the first free number.
    new_name: String,
    field: Field,
}

/// `own_network`: whether the container has a network namespace of its own, new or joined.
pub fn plan(linux: &Node, own_network: bool) -> Vec<NetDevice> {
    let Some(devices) = linux.object("netDevices") else { return Vec::new() };
    if !own_network && devices.keys().next().is_some() {
        linux.problem("netDevices", "needs a network namespace in /linux/namespaces");
    }
    let mut planned = Vec::new();
    let mut new_names = HashSet::new();
    for name in devices.keys() {
        if name == "lo" {
            devices.problem(name, "the loopback device cannot be moved");
        } else if let Some(reason) = fault(name, false) {
            devices.problem(name, reason);
        }
        let Some(device) = devices.object(name) else { continue };
        device.expect_keys(&["name"]);
        // Callers write an empty name for an absent one.
        let new_name = device.string("name").filter(|name| !name.is_empty()).unwrap_or(name);
        if new_name == "lo" && name != "lo" {
            device.problem("name", "every network namespace has a lo already");
        } else if let Some(reason) = fault(new_name, true).filter(|_| new_name != name) {
            device.problem("name", reason);
        }
        if !new_name.contains('%') && !new_names.insert(new_name) {
            device.problem("name", format_args!("two devices are to be called {new_name}"));
        }
        planned.push(NetDevice {
            name: name.into(),
            new_name: new_name.into(),
            field: device.field().clone(),
        });
    }
    planned
}

/// What the kernel would not take about a name; a template may hold one `%d`.
fn fault(name: &str, template: bool) -> Option<&'static str> {
    const MOST: usize = libc::IFNAMSIZ - 1; // bytes
    let plain = if template { name.replacen("%d", "", 1) } else { name.to_owned() };
    if name.is_empty() || name.len() > MOST {
        Some("a device name has 1 to 15 bytes")
    } else if name == "." || name == ".." || plain.contains(['/', ':', '%']) {
        Some("is not a device name")
    } else if name.contains(char::is_whitespace) {
        Some("a device name has no white space")
    } else {
        None
    }
}

/// Brings up the loopback device of the network namespace that this process is in.
pub fn loopback_up() -> Result<()> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    any.and_then(|socket| interface_up(&socket, "lo")).context(|| "bring up network device lo")
}

/// The devices that the container has been given. Its socket keeps their namespace alive, in which the virtual ones
/// would perish.
pub struct Given {
    host: Route,
    host_namespace: OwnedFd,
    container: Route,
    devices: Vec<Back>,
}

/// What a device was on the host.
struct Back {
    name: String,
    /// In the container.
    index: i32,
    addresses: Vec<Address>,
    up: bool,
}

/// Gives the devices to init's network namespace. By the parent, in the host's, and before init writes kernel
/// parameters, which may be a device's. Those in `given` must go back if the container is not created after all.
pub fn apply(devices: &[NetDevice], proc: &Proc, init: Pid, given: &mut Option<Given>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let namespace = proc.namespace(init, "net")?;
    let host_namespace = proc.namespace("self", "net")?;
    let container = open_inside(&namespace, &host_namespace)?;
    let given = given.insert(Given { host: Route::open()?, host_namespace, container, devices: Vec::new() });
    // All are looked up before the first one moves, so that what can be foreseen leaves nothing behind.
    let links: Vec<Link> = devices
        .iter()
        .map(|device| device.look_up(&given.host, &given.container).at(&device.field))
        .collect::<Result<_>>()?;
    for (device, link) in devices.iter().zip(links) {
        device.give(link, given, &namespace).at(&device.field)?;
    }
    Ok(())
}

impl Given {
    /// Takes the devices back, as they were.
    pub fn take_back(&self) -> Result<()> {
        self.devices.iter().rev().try_for_each(|device| {
            self.take(device).context(|| format!("take back network device {}", device.name))
        })
    }

    fn take(&self, Back { name, index, addresses, up }: &Back) -> Result<()> {
        let message = link(libc::RTM_NEWLINK, *index, 0)
            .attribute(libc::IFLA_NET_NS_FD, &self.host_namespace.as_raw_fd().to_ne_bytes());
        self.container.request(named(message, name), |_, _| ())?;
        let index = find_link(&self.host, name)?.index;
        addresses.iter().try_for_each(|address| address.add(&self.host, index))?;
        if *up {
            self.host.request(link(libc::RTM_NEWLINK, index, libc::IFF_UP), |_, _| ())?;
        }
        Ok(())
    }
}

/// A socket in the container's network namespace, for which the parent has to go there and back.
fn open_inside(namespace: &OwnedFd, own: &OwnedFd) -> Result<Route> {
    let inode = |fd| fstat(fd).map(|stat| stat.st_ino).context(|| "stat a network namespace");
    if inode(namespace)? == inode(own)? {
        return Err(Error::new("the container's network namespace is the runtime's own"));
    }
    setns(namespace, CloneFlags::CLONE_NEWNET).context(|| "enter the container's network namespace")?;
    let route = Route::open();
    setns(own, CloneFlags::CLONE_NEWNET).context(|| "leave the container's network namespace")?;
    route
}

impl NetDevice {
    /// The device on the host. Its new name must be free in the container, as the kernel does not always
    /// see to that before it moves a device: the one that it then cannot rename would stay there.
    fn look_up(&self, host: &Route, container: &Route) -> Result<Link> {
        let Self { name, new_name, .. } = self;
        if !new_name.contains('%') {
            match find_link(container, new_name) {
                Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
                found => found.and(Err(Errno::EEXIST.into())),
            }
            .context(|| format!("move network device {name} into the container as {new_name}"))?;
        }
        find_link(host, name).context(|| format!("find network device {name}"))
    }

    fn give(&self, Link { index, up }: Link, given: &mut Given, namespace: &OwnedFd) -> Result<()> {
        let Self { name, new_name, .. } = self;
        let mut addresses =
            addresses(&given.host, index).context(|| format!("read addresses of network device {name}"))?;
        let index = move_link(index, new_name, namespace)
            .context(|| format!("move network device {name} into the container as {new_name}"))?;
        given.devices.push(Back { name: name.clone(), index, addresses: addresses.clone(), up });
        for address in &mut addresses {
            if new_name != name {
                // It begins with the old name.
                address.attributes.retain(|(kind, _)| *kind != libc::IFA_LABEL);
            }
            address
                .add(&given.container, index)
                .context(|| format!("add {address} to network device {new_name} in the container"))?;
        }
        given
            .container
            .request(link(libc::RTM_NEWLINK, index, libc::IFF_UP), |_, _| ())
            .context(|| format!("bring up network device {new_name} in the container"))
    }
}

/// The bytes of an ifinfomsg: family, type, index, flags, which flags change.
const LINK_HEADER: usize = 16;
/// The bytes of an ifaddrmsg: family, prefix length, flags, scope, index.
const ADDRESS_HEADER: usize = 8;
/// Where both have the index.
const INDEX: usize = 4;
/// Where the first has the flags.
const FLAGS: usize = 8;

/// A message about the device of this index; `up` is IFF_UP, or 0 to leave that alone.
fn link(kind: u16, index: i32, up: i32) -> Message {
    Message::new(kind, libc::NLM_F_ACK, [0, index, up, up].map(i32::to_ne_bytes).as_flattened())
}

fn named(message: Message, name: &str) -> Message {
    message.attribute(libc::IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat())
}

#[derive(Clone, Copy)]
struct Link {
    index: i32,
    up: bool,
}

fn find_link(route: &Route, name: &str) -> Result<Link> {
    let mut found = None;
    route.request(named(link(libc::RTM_GETLINK, 0, 0), name), |kind, payload| {
        if kind == libc::RTM_NEWLINK {
            let up = word(payload, FLAGS).is_some_and(|flags| flags & libc::IFF_UP != 0);
            found = word(payload, INDEX).map(|index| Link { index, up });
        }
    })?;
    found.ok_or(Errno::ENODEV.into())
}

/// Moves and renames a device at once. Returns its index there, which the kernel keeps if it is free: the name
/// would not do to find it again, since the kernel makes it if `new_name` is a template.
fn move_link(index: i32, new_name: &str, namespace: &OwnedFd) -> Result<i32> {
    // The news that the device has left, which says as which one it arrived, comes before the answer. On a socket of
    // its own: it would go on to collect the news of all of the host's devices.
    let route = Route::open()?;
    route.watch_links()?;
    let message = link(libc::RTM_NEWLINK, index, 0)
        .attribute(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
    let mut new_index = None;
    route.request(named(message, new_name), |kind, payload| {
        if kind == libc::RTM_DELLINK && word(payload, INDEX) == Some(index) {
            new_index = attributes(payload, LINK_HEADER)
                .find(|(kind, _)| *kind == libc::IFLA_NEW_IFINDEX)
                .and_then(|(_, data)| word(data, 0));
        }
    })?;
    new_index.ok_or_else(|| Error::new("the kernel did not say as which device it arrived"))
}

/// What RTM_GETADDR tells about an address, and RTM_NEWADDR takes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8, // bits
    flags: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// Only if it is permanent and of global scope: others are made by the kernel, or borrowed for a time.
    fn parse(payload: &[u8]) -> Option<Self> {
        let &[family, prefix, flags, scope, ..] = payload else { return None };
        let attributes =
            attributes(payload, ADDRESS_HEADER).map(|(kind, data)| (kind, data.to_vec())).collect();
        let address = Self { family, prefix, flags, attributes };
        let permanent = u32::from(flags) & libc::IFA_F_PERMANENT != 0;
        (permanent && scope == libc::RT_SCOPE_UNIVERSE).then_some(address)
    }

    fn get(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(known, _)| *known == kind).map(|(_, data)| data.as_slice())
    }

    fn add(&self, route: &Route, index: i32) -> Result<()> {
        let mut header = [self.family, self.prefix, self.flags, libc::RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
        header[INDEX..].copy_from_slice(&index.to_ne_bytes());
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let message = Message::new(libc::RTM_NEWADDR, flags, &header);
        let message =
            self.attributes.iter().fold(message, |message, (kind, data)| message.attribute(*kind, data));
        route.request(message, |_, _| ())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.get(libc::IFA_LOCAL).or(self.get(libc::IFA_ADDRESS)).unwrap_or_default();
        let v4 = <[u8; 4]>::try_from(ip).map(IpAddr::from);
        match v4.or(<[u8; 16]>::try_from(ip).map(IpAddr::from)) {
            Ok(ip) => write!(f, "{ip}/{}", self.prefix),
            Err(_) => write!(f, "an address of family {}", self.family),
        }
    }
}

fn addresses(route: &Route, index: i32) -> Result<Vec<Address>> {
    let mut header = [0; ADDRESS_HEADER];
    header[INDEX..].copy_from_slice(&index.to_ne_bytes());
    loop {
        let mut addresses = Vec::new();
        let message = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &header);
        let result = route.request(message, |kind, payload| {
            // Not every address family looks at the index.
            if kind == libc::RTM_NEWADDR && word(payload, INDEX) == Some(index) {
                addresses.extend(Address::parse(payload));
            }
        });
        match result {
            Err(error) if error.errno() == Some(Errno::EINTR) => {}
            other => return other.map(|()| addresses),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::planned;

    fn problems(devices: &str) -> Vec<String> {
        planned(&format!(r#"{{"netDevices": {devices}}}"#), |linux| plan(linux, true)).1
    }

    #[test]
    fn a_device_keeps_its_name_unless_it_gets_another() {
        let linux = r#"{"netDevices": {"a": {}, "b": {"name": "c"}, "d": {"name": "eth%d"}, "e": {"name": "eth%d"}}}"#;
        let (devices, problems) = planned(linux, |linux| plan(linux, true));
        let names: Vec<_> = devices.iter().map(|d| (d.name.as_str(), d.new_name.as_str())).collect();
        assert_eq!(names, [("a", "a"), ("b", "c"), ("d", "eth%d"), ("e", "eth%d")]);
        assert!(problems.is_empty());
    }

    #[test]
    fn names_that_the_kernel_does_not_take_are_problems() {
        let table = [
            (r#"{"": {}}"#, "/netDevices/: a device name has 1 to 15 bytes"),
            (r#"{"abcdefghijklmnop": {}}"#, "/netDevices/abcdefghijklmnop: a device name has 1 to 15 bytes"),
            (r#"{"a b": {}}"#, "/netDevices/a b: a device name has no white space"),
            (r#"{"..": {}}"#, "/netDevices/..: is not a device name"),
            (r#"{"a:b": {}}"#, "/netDevices/a:b: is not a device name"),
            (r#"{"eth%d": {}}"#, "/netDevices/eth%d: is not a device name"),
            (r#"{"lo": {}}"#, "/netDevices/lo: the loopback device cannot be moved"),
            (r#"{"a": {"name": "b/c"}}"#, "/netDevices/a/name: is not a device name"),
            (r#"{"a": {"name": "b%d%d"}}"#, "/netDevices/a/name: is not a device name"),
            (r#"{"a": {"name": "b%s"}}"#, "/netDevices/a/name: is not a device name"),
            (r#"{"a": {"name": "lo"}}"#, "/netDevices/a/name: every network namespace has a lo already"),
            (r#"{"a": {"name": "b"}, "b": {}}"#, "/netDevices/b/name: two devices are to be called b"),
        ];
        for (devices, problem) in table {
            assert_eq!(problems(devices), [problem]);
        }
    }

    #[test]
    fn devices_need_a_network_namespace() {
        let config = |devices| format!(r#"{{"netDevices": {devices}}}"#);
        assert!(planned(&config("{}"), |linux| plan(linux, false)).1.is_empty());
        assert_eq!(
            planned(&config(r#"{"a": {}}"#), |linux| plan(linux, false)).1,
            ["/netDevices: needs a network namespace in /linux/namespaces"]
        );
    }

    #[test]
    fn only_permanent_addresses_of_global_scope_are_kept() {
        let payload =
            |flags, scope| [&[2, 24, flags, scope, 0, 0, 0, 0][..], &[8, 0, 2, 0, 10, 1, 1, 2]].concat();
        assert_eq!(Address::parse(&payload(0x80, 0)).unwrap().to_string(), "10.1.1.2/24");
        assert_eq!(Address::parse(&payload(0, 0)), None);
        assert_eq!(Address::parse(&payload(0x80, libc::RT_SCOPE_LINK)), None);
    }
}
