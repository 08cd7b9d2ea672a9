//! `/linux/personality`: whether the kernel shows itself to the program as a 32-bit one (uname says i686).
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#personality>,
//! [personality(2)](https://man7.org/linux/man-pages/man2/personality.2.html)

use nix::sys::personality::{Persona, set};

use crate::error::{At, Context, Field, Result};
use crate::spec::Node;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Personality {
    domain: Domain,
    field: Field,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Domain {
    /// PER_LINUX of `linux/personality.h`.
    Linux = 0,
    /// PER_LINUX32.
    Linux32 = 8,
}

impl Personality {
    pub fn plan(linux: &Node) -> Option<Self> {
        let node = linux.object("personality")?;
        node.expect_keys(&["domain", "flags"]);
        for (flag, field) in node.strings("flags") {
            node.report()
                .problem(field, format_args!("{flag:?} is not supported: the spec defines no flags yet"));
        }
        let domain = match node.required_string("domain")? {
            "LINUX" => Domain::Linux,
            "LINUX32" => Domain::Linux32,
            other => {
                node.problem("domain", format_args!("must be LINUX or LINUX32, not {other:?}"));
                return None;
            }
        };
        Some(Self { domain, field: node.field().clone() })
    }

    /// Before the seccomp filter, which often allows no personality(2). Clears what the caller had, such as
    /// ADDR_NO_RANDOMIZE, too.
    pub fn apply(&self) -> Result<()> {
        set(Persona::from_bits_retain(self.domain as i32))
            .map(drop)
            .context(|| format!("set personality {:?}", self.domain))
            .at(&self.field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    #[test]
    fn a_domain_is_one_of_two_and_flags_are_problems() {
        for (json, domain, problems) in [
            ("{}", None, vec![]),
            (r#"{"personality": {"domain": "LINUX"}}"#, Some(0), vec![]),
            (r#"{"personality": {"domain": "LINUX32", "flags": []}}"#, Some(8), vec![]),
            (r#"{"personality": {}}"#, None, vec!["/personality/domain: is required"]),
            (
                r#"{"personality": {"domain": "linux", "flags": ["X"]}}"#,
                None,
                vec![
                    "/personality/flags/0: \"X\" is not supported: the spec defines no flags yet",
                    "/personality/domain: must be LINUX or LINUX32, not \"linux\"",
                ],
            ),
        ] {
            let report = Report::default();
            let value = parse(json.as_bytes(), &report).unwrap();
            let planned = Personality::plan(&Node::root(&value, &report));
            assert_eq!(planned.map(|p| p.domain as i32), domain, "{json}");
            let found = report
                .finish()
                .err()
                .map_or(vec![], |e| e.problems().iter().map(|p| p.to_string()).collect());
            assert_eq!(found, problems);
        }
    }
}
