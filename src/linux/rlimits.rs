//! `/process/rlimits`: the resource limits that the program starts with.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-process>,
//! [setrlimit(2)](https://man7.org/linux/man-pages/man2/setrlimit.2.html)

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::error::{At, Context, Error, Field, Result};
use crate::spec::Node;
use crate::sys::process::prlimit;

/// Each resource at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rlimits(Vec<Rlimit>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rlimit {
    resource: Resource,
    soft: u64, // in the resource's unit; u64::MAX is RLIM_INFINITY
    hard: u64,
    field: Field,
}

const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::RLIMIT_AS),
    ("RLIMIT_CORE", Resource::RLIMIT_CORE),
    ("RLIMIT_CPU", Resource::RLIMIT_CPU),
    ("RLIMIT_DATA", Resource::RLIMIT_DATA),
    ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
    ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
    ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
    ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", Resource::RLIMIT_NICE),
    ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
    ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
    ("RLIMIT_RSS", Resource::RLIMIT_RSS),
    ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", Resource::RLIMIT_RTTIME),
    ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
    ("RLIMIT_STACK", Resource::RLIMIT_STACK),
];

impl Rlimits {
    /// Raises the hard limits of a process as far as it will need; its own part is [`Rlimits::apply`]. For the parent
    /// of one in a user namespace, where nobody may.
    pub fn allow(&self, pid: Pid) -> Result<()> {
        self.0.iter().try_for_each(|rlimit| rlimit.allow(pid))
    }

    pub fn plan(process: &Node) -> Self {
        let mut rlimits = Vec::<Rlimit>::new();
        for node in process.objects("rlimits") {
            let Some(rlimit) = plan_one(&node) else { continue };
            if let Some(twin) = rlimits.iter().find(|other| other.resource == rlimit.resource) {
                node.problem("type", format_args!("is limited already at {}", twin.field));
            }
            rlimits.push(rlimit);
        }
        Self(rlimits)
    }

    /// Before capabilities are dropped, since a higher hard limit needs CAP_SYS_RESOURCE; and late, since the
    /// limits hold for what init itself opens, writes and maps from then on.
    pub fn apply(&self) -> Result<()> {
        self.0.iter().try_for_each(|rlimit| match rlimit.waits() {
            false => rlimit.apply(),
            true if rlimit.hard < NEEDED => Ok(()),
            true => Rlimit { soft: NEEDED, ..rlimit.clone() }.apply(),
        })
    }

    /// The one that must wait until nothing is opened any more: just before execve. Whoever has come this far may lower it.
    pub fn apply_last(&self) -> Result<()> {
        self.0.iter().filter(|rlimit| rlimit.waits()).try_for_each(Rlimit::apply)
    }

    pub fn wait(&self) -> bool {
        self.0.iter().any(Rlimit::waits)
    }
}

/// The numbers of descriptors among which a process that waits for `start` finds free ones, beside those it was handed.
const NEEDED: u64 = 1024;

fn plan_one(node: &Node) -> Option<Rlimit> {
    node.expect_keys(&["type", "soft", "hard"]);
    let name = node.required_string("type");
    let resource = name.and_then(|name| {
        let known = RESOURCES.iter().find(|(known, _)| *known == name);
        if known.is_none() {
            node.problem("type", format_args!("{name:?} is not a resource limit of Linux"));
        }
        known.map(|(_, resource)| *resource)
    });
    let (soft, hard) = (node.required_u64("soft"), node.required_u64("hard"));
    if let (Some(soft), Some(hard)) = (soft, hard)
        && soft > hard
    {
        node.problem("soft", format_args!("must not be above the hard limit {hard}, but is {soft}"));
    }
    Some(Rlimit { resource: resource?, soft: soft?, hard: hard?, field: node.field().clone() })
}

impl Rlimit {
    fn waits(&self) -> bool {
        self.resource == Resource::RLIMIT_NOFILE && self.soft < NEEDED
    }

    fn allow(&self, pid: Pid) -> Result<()> {
        let Self { resource, hard, ref field, .. } = *self;
        // A copy of this process has its limits.
        let (soft, most) = getrlimit(resource).context(|| format!("read {resource:?}")).at(field)?;
        if hard <= most {
            return Ok(());
        }
        self.explained(prlimit(pid, resource as u32, soft, hard)).at(field)
    }

    fn apply(&self) -> Result<()> {
        let Self { resource, soft, hard, ref field } = *self;
        self.explained(setrlimit(resource, soft, hard)).at(field)
    }

    fn explained(&self, set: Result<(), Errno>) -> Result<()> {
        let Self { resource, soft, hard, .. } = *self;
        match set {
            Err(Errno::EPERM) if resource == Resource::RLIMIT_NOFILE => Err(Errno::EPERM)
                .context(|| "a higher hard limit needs CAP_SYS_RESOURCE, and ends at sysctl fs.nr_open"),
            Err(Errno::EPERM) => Err(Errno::EPERM).context(|| "a higher hard limit needs CAP_SYS_RESOURCE"),
            result => result.map_err(Error::from),
        }
        .context(|| format!("set {resource:?} to soft {soft}, hard {hard}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    fn plan(json: &str) -> (Rlimits, Vec<String>) {
        let report = Report::default();
        let value = parse(json.as_bytes(), &report).unwrap();
        let rlimits = Rlimits::plan(&Node::root(&value, &report));
        (
            rlimits,
            report.finish().err().map_or(vec![], |e| e.problems().iter().map(|p| p.to_string()).collect()),
        )
    }

    #[test]
    fn every_resource_of_linux_has_its_own_number() {
        for (number, (name, resource)) in RESOURCES.iter().enumerate() {
            assert_eq!(format!("{resource:?}"), *name);
            assert!(RESOURCES[..number].iter().all(|(_, other)| other != resource), "{name}");
        }
        // RLIM_NLIMITS of linux/resource.h
        assert_eq!(RESOURCES.len(), 16);
    }

    #[test]
    fn infinity_is_the_largest_number() {
        let (rlimits, problems) =
            plan(r#"{"rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 18446744073709551615}]}"#);
        assert!(problems.is_empty());
        assert_eq!((rlimits.0[0].soft, rlimits.0[0].hard), (0, nix::sys::resource::RLIM_INFINITY));
    }

    #[test]
    fn what_cannot_be_a_limit_is_a_problem() {
        for (json, expected) in [
            (
                r#"[{"type": "RLIMIT_X", "soft": 1, "hard": 1}]"#,
                vec!["/0/type: \"RLIMIT_X\" is not a resource limit of Linux"],
            ),
            (
                r#"[{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]"#,
                vec!["/0/soft: must not be above the hard limit 1, but is 2"],
            ),
            (r#"[{}]"#, vec!["/0/type: is required", "/0/soft: is required", "/0/hard: is required"]),
            (
                r#"[{"type": "RLIMIT_CPU", "soft": -1, "hard": 1}]"#,
                vec!["/0/soft: must be a whole number of at least 0, not -1"],
            ),
            (
                r#"[{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "soft": 1, "hard": 1}]"#,
                vec!["/1/type: is limited already at /rlimits/0"],
            ),
        ] {
            let problems = plan(&format!(r#"{{"rlimits": {json}}}"#)).1;
            assert_eq!(problems, expected.iter().map(|p| format!("/rlimits{p}")).collect::<Vec<_>>());
        }
    }
}
