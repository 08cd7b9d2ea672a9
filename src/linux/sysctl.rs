//! /linux/sysctl: kernel parameters of the container's namespaces, written to /proc/sys by init.
//!
//! Only parameters that belong to a namespace of the container's own are allowed: any other write would change
//! the host.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#sysctl>, `sysctl(8)`.

use std::collections::HashMap;

use crate::error::{At, Context, Error, Field, Result};
use crate::proc::Proc;
use crate::spec::Node;
use crate::sys::process::setdomainname;

/// Which of the container's namespaces are not the runtime's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Private {
    pub ipc: bool,
    pub network: bool,
    pub uts: bool,
    pub user: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Below /proc/sys.
    path: String,
    value: String,
    owner: Owner,
    field: Field,
}

/// The namespace that a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Ipc,
    Network,
    Uts,
    User,
}

impl Private {
    fn has(self, owner: Owner) -> bool {
        match owner {
            Owner::Ipc => self.ipc,
            Owner::Network => self.network,
            Owner::Uts => self.uts,
            Owner::User => self.user,
        }
    }
}

impl Owner {
    fn name(self) -> &'static str {
        match self {
            Owner::Ipc => "ipc",
            Owner::Network => "network",
            Owner::Uts => "uts",
            Owner::User => "user",
        }
    }
}

/// `domainname` is config.json's own, which a parameter must not contradict.
pub fn plan(linux: &Node, private: Private, domainname: Option<&str>) -> Vec<Sysctl> {
    let Some(parameters) = linux.object("sysctl") else { return Vec::new() };
    let mut planned = Vec::new();
    let mut seen = HashMap::new();
    for key in parameters.keys() {
        let Some(value) = parameters.string(key) else { continue };
        let path = path(key);
        let owner = match owner(&path) {
            Ok(owner) if private.has(owner) => owner,
            Ok(owner) => {
                let name = owner.name();
                parameters.problem(key, format_args!("needs a {name} namespace of the container's own"));
                continue;
            }
            Err(reason) => {
                parameters.problem(key, reason);
                continue;
            }
        };
        if path == "kernel/domainname" && domainname.is_some_and(|name| name != value) {
            parameters.problem(key, "contradicts /domainname");
        }
        if let Some(other) = seen.insert(path.clone(), key) {
            parameters.problem(key, format_args!("is the same parameter as {other}"));
        }
        planned.push(Sysctl { path, value: value.into(), owner, field: parameters.at(key) });
    }
    planned
}

/// Refuses what `plan` could not know: that a namespace joined by path is the runtime's own after all.
pub fn check(sysctls: &[Sysctl], private: Private) -> Result<()> {
    match sysctls.iter().find(|sysctl| !private.has(sysctl.owner)) {
        Some(Sysctl { path, owner, field, .. }) => {
            let owner = owner.name();
            Err(Error::new(format!("write /proc/sys/{path}: the {owner} namespace is the runtime's own")))
                .at(field)
        }
        None => Ok(()),
    }
}

/// By init, in its namespaces and still privileged.
pub fn apply(sysctls: &[Sysctl], proc: &Proc) -> Result<()> {
    sysctls.iter().try_for_each(|sysctl| sysctl.write(proc))
}

/// Those of the network namespace that the caller is in.
pub fn apply_network(sysctls: &[Sysctl], proc: &Proc) -> Result<()> {
    let mut of_network = sysctls.iter().filter(|sysctl| sysctl.owner == Owner::Network);
    of_network.try_for_each(|sysctl| sysctl.write(proc))
}

impl Sysctl {
    fn write(&self, proc: &Proc) -> Result<()> {
        // The file is for the host's root alone, whosever the namespace is.
        if self.path == "kernel/domainname" {
            return setdomainname(&self.value)
                .context(|| format!("set domain name {}", self.value))
                .at(&self.field);
        }
        // The newline lets an empty value through: a write of no bytes would change nothing and yet succeed.
        proc.write(&format!("sys/{}", self.path), &format!("{}\n", self.value)).at(&self.field)
    }
}

/// The file below /proc/sys. A name takes `.` or `/` as its separator, whichever comes first in it; the other one
/// then stands for `.` within a step (`net.ipv4.conf.eth0/1.rp_filter`, `net/ipv4/conf/eth0.1/rp_filter`).
fn path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key[first..].starts_with('.') => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => key.into(),
    }
}

fn owner(path: &str) -> Result<Owner, &'static str> {
    const IPC: [&str; 8] =
        ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    if path.split('/').any(|step| matches!(step, "" | "." | "..")) {
        return Err("is not the name of a kernel parameter");
    }
    match path.split_once('/') {
        Some(("kernel", "domainname")) => Ok(Owner::Uts),
        Some(("kernel", "hostname")) => Err("is set by /hostname, not as a kernel parameter"),
        Some(("kernel", name)) if IPC.contains(&name) => Ok(Owner::Ipc),
        Some(("fs", name)) if name.starts_with("mqueue/") => Ok(Owner::Ipc),
        Some(("net", _)) => Ok(Owner::Network),
        Some(("user", _)) => Ok(Owner::User),
        _ => Err("belongs to no namespace: it would change the host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::planned;

    const ALL: Private = Private { ipc: true, network: true, uts: true, user: true };

    fn problems(key: &str, private: Private) -> Vec<String> {
        let linux = serde_json::json!({"sysctl": {key: "1"}}).to_string();
        planned(&linux, |linux| plan(linux, private, Some("1"))).1
    }

    #[test]
    fn the_first_separator_of_a_name_decides_which_one_it_is() {
        let table = [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
            ("net/ipv4/conf/eth0.1/rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
            ("kernel", "kernel"),
        ];
        for (key, file) in table {
            assert_eq!(path(key), file);
        }
    }

    #[test]
    fn a_parameter_is_allowed_where_its_namespace_is_private() {
        let (ipc, network, uts, user) = (
            Private { ipc: true, ..Private::default() },
            Private { network: true, ..Private::default() },
            Private { uts: true, ..Private::default() },
            Private { user: true, ..Private::default() },
        );
        let table = [
            ("kernel.shmmax", ipc, "ipc"),
            ("kernel/sem", ipc, "ipc"),
            ("fs.mqueue.msg_max", ipc, "ipc"),
            ("net.core.somaxconn", network, "network"),
            ("kernel.domainname", uts, "uts"),
            ("user.max_net_namespaces", user, "user"),
        ];
        for (key, private, name) in table {
            assert!(problems(key, private).is_empty(), "{key}");
            let pointer = Field::root().child("sysctl").child(key);
            let problem = format!("{pointer}: needs a {name} namespace of the container's own");
            assert_eq!(problems(key, Private::default()), [problem]);
        }
    }

    #[test]
    fn a_parameter_of_the_host_is_a_problem() {
        let host = "belongs to no namespace: it would change the host";
        let table = [
            ("kernel.core_pattern", host),
            ("vm.swappiness", host),
            ("fs.mqueue", host),
            ("net", host),
            ("", "is not the name of a kernel parameter"),
            ("net/../kernel/core_pattern", "is not the name of a kernel parameter"),
            ("net.//.kernel.core_pattern", "is not the name of a kernel parameter"),
            ("/net/ipv4/ip_forward", "is not the name of a kernel parameter"),
            ("net.ipv4..ip_forward", "is not the name of a kernel parameter"),
            ("kernel.hostname", "is set by /hostname, not as a kernel parameter"),
        ];
        for (key, reason) in table {
            let pointer = Field::root().child("sysctl").child(key);
            assert_eq!(problems(key, ALL), [format!("{pointer}: {reason}")]);
        }
    }

    #[test]
    fn contradictions_and_values_that_are_no_strings_are_problems() {
        let linux = r#"{"sysctl": {"kernel.domainname": "b", "kernel.shmmax": 1,
            "net.core.somaxconn": "1", "net/core/somaxconn": "2"}}"#;
        assert_eq!(
            planned(linux, |linux| plan(linux, ALL, Some("a"))).1,
            [
                "/sysctl/kernel.domainname: contradicts /domainname",
                "/sysctl/kernel.shmmax: must be a string, not 1",
                "/sysctl/net~1core~1somaxconn: is the same parameter as net.core.somaxconn",
            ]
        );
    }

    #[test]
    fn a_joined_namespace_that_is_the_runtimes_own_is_refused() {
        let linux = r#"{"sysctl": {"net.core.somaxconn": "1"}}"#;
        let (sysctls, _) = planned(linux, |linux| plan(linux, ALL, None));
        assert!(check(&sysctls, ALL).is_ok());
        assert_eq!(
            check(&sysctls, Private { network: false, ..ALL }).unwrap_err().to_string(),
            "write /proc/sys/net/core/somaxconn: the network namespace is the runtime's own \
             [config.json /sysctl/net.core.somaxconn]"
        );
    }
}
