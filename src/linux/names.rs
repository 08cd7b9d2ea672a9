//! /hostname and /domainname: the names in the container's uts namespace.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#hostname>, `sethostname(2)`,
//! `setdomainname(2)`.

use nix::unistd::sethostname;

use crate::error::{At, Context, Field, Result};
use crate::spec::Node;
use crate::sys::process::setdomainname;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    hostname: Option<(String, Field)>,
    domainname: Option<(String, Field)>,
}

/// `own_uts`: whether the container has a uts namespace of its own, new or joined.
pub fn plan(root: &Node, own_uts: bool) -> Names {
    let name = |key: &str| {
        const MOST: usize = 64; // bytes, the kernel's __NEW_UTS_LEN
        // Callers write an empty name for an absent one.
        let name = root.string(key).filter(|name| !name.is_empty())?;
        if name.len() > MOST {
            root.problem(key, format_args!("must be at most {MOST} bytes long, not {}", name.len()));
        }
        if !own_uts {
            root.problem(key, "needs a uts namespace in /linux/namespaces");
        }
        Some((name.to_owned(), root.at(key)))
    };
    Names { hostname: name("hostname"), domainname: name("domainname") }
}

impl Names {
    pub fn is_empty(&self) -> bool {
        self.hostname.is_none() && self.domainname.is_none()
    }

    pub fn domainname(&self) -> Option<&str> {
        self.domainname.as_ref().map(|(name, _)| name.as_str())
    }

    /// By init, in its uts namespace.
    pub fn apply(&self) -> Result<()> {
        if let Some((name, field)) = &self.hostname {
            sethostname(name).context(|| format!("set host name {name}")).at(field)?;
        }
        if let Some((name, field)) = &self.domainname {
            setdomainname(name).context(|| format!("set domain name {name}")).at(field)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::planned;

    #[test]
    fn empty_names_are_absent() {
        let (names, problems) = planned(r#"{"hostname": "", "domainname": ""}"#, |root| plan(root, false));
        assert_eq!((names, problems), (Names::default(), vec![]));
    }

    #[test]
    fn names_need_a_uts_namespace_and_at_most_64_bytes() {
        let config = |length| format!(r#"{{"hostname": "h", "domainname": "{}"}}"#, "d".repeat(length));
        assert!(planned(&config(64), |root| plan(root, true)).1.is_empty());
        assert_eq!(
            planned(&config(65), |root| plan(root, false)).1,
            [
                "/hostname: needs a uts namespace in /linux/namespaces",
                "/domainname: must be at most 64 bytes long, not 65",
                "/domainname: needs a uts namespace in /linux/namespaces",
            ]
        );
    }
}
