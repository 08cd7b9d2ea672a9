//! Which of `/mounts` show cgroups, and whether the container may change them there.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#cgroup-ownership>

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use super::{Mount, Mounts, Source, What};
use crate::error::{Context, Error, Result};
use crate::spec::Report;
use crate::sys::mount::{attr, open_tree_clone};

impl Mounts {
    /// Whether the container sees cgroups that it may change where everybody looks for them; as the spec says it.
    pub fn has_writable_cgroup(&self) -> bool {
        let is_new = |mount: &Mount| match &mount.what {
            What::New { file_system, .. } => file_system.is_cgroup(),
            _ => false,
        };
        let mut at_usual = self.list.iter().filter(|mount| mount.destination == Path::new("/sys/fs/cgroup"));
        at_usual.any(|mount| is_new(mount) && !mount.is_read_only())
    }

    /// Whether some mount shows the container's own cgroup alone.
    pub fn binds_cgroup(&self) -> bool {
        self.list.iter().any(|mount| matches!(mount.what, What::Bind { source: Source::Cgroup, .. }))
    }

    /// For a container that has no cgroup of its own: what it could write to would be the caller's.
    pub fn refuse_writable_cgroups(&self, why_none: &str, report: &Report) {
        let shows_cgroups = |mount: &&Mount| match &mount.what {
            What::New { file_system, .. } => file_system.kind == "cgroup2",
            What::Bind { source, .. } => *source == Source::Cgroup,
            What::Remount(_) => false,
        };
        for mount in self.list.iter().filter(shows_cgroups).filter(|mount| !mount.is_read_only()) {
            let what = format_args!("must be ro: {why_none}, and it shows the caller's");
            report.problem(mount.field.child("options"), what);
        }
    }
}

/// A clone of the mount of the container's cgroup alone.
pub(super) fn open_source(cgroup: Option<BorrowedFd>) -> Result<OwnedFd> {
    let cgroup = cgroup.ok_or_else(|| Error::new("the container has no cgroup to be mounted"))?;
    open_tree_clone(cgroup, Path::new(""), libc::AT_EMPTY_PATH).context(|| "open the cgroup")
}

impl Mount {
    /// Whether it shows where init is, or may make files of any size, which count there.
    pub(super) fn needs_cgroup(&self) -> bool {
        match &self.what {
            What::New { file_system, copy_up, .. } => file_system.is_cgroup() || *copy_up,
            What::Bind { .. } | What::Remount(_) => false,
        }
    }

    fn is_read_only(&self) -> bool {
        (self.attributes.set | self.recursive.set) & attr::RDONLY != 0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::spec::{Node, parse};

    fn planned(mount: Value, cgroup_namespace: bool) -> (Mounts, Report) {
        let report = Report::default();
        let map = parse(json!({"mounts": [mount]}).to_string().as_bytes(), &report).unwrap();
        let own = super::super::Own { mount: true, cgroup: cgroup_namespace, ..Default::default() };
        (super::super::plan(&Node::root(&map, &report), Path::new("/b"), own), report)
    }

    fn cgroups(kind: &str, source: &str, at: &str, options: &[&str]) -> Value {
        json!({"type": kind, "source": source, "destination": at, "options": options})
    }

    #[test]
    fn only_a_writable_hierarchy_at_the_usual_place_is_managed_by_the_container() {
        for (mount, writable) in [
            (cgroups("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid"]), true),
            (cgroups("cgroup2", "cgroup", "/sys/fs/../fs/cgroup/", &["ro", "rw"]), true),
            (cgroups("cgroup", "cgroup", "/sys/fs/cgroup", &["ro"]), false),
            (cgroups("cgroup", "cgroup", "/sys/fs/cgroup", &["rro"]), false),
            (cgroups("cgroup", "cgroup", "/cgroup", &[]), false),
            (cgroups("cgroup", "other", "/sys/fs/cgroup", &[]), false),
            (cgroups("tmpfs", "cgroup", "/sys/fs/cgroup", &[]), false),
            (cgroups("none", "cgroup", "/sys/fs/cgroup", &["bind"]), false),
        ] {
            assert_eq!(planned(mount.clone(), true).0.has_writable_cgroup(), writable, "{mount}");
        }
        let without_namespace = planned(cgroups("cgroup", "cgroup", "/sys/fs/cgroup", &[]), false).0;
        assert!(!without_namespace.has_writable_cgroup() && without_namespace.binds_cgroup());
    }

    #[test]
    fn the_callers_cgroup_is_shown_read_only() {
        for (mount, namespace, refused) in [
            (cgroups("cgroup", "cgroup", "/c", &[]), true, true),
            (cgroups("cgroup", "cgroup", "/c", &[]), false, true),
            (cgroups("cgroup2", "x", "/c", &["ro"]), true, false),
            (cgroups("cgroup", "cgroup", "/c", &["ro"]), false, false),
            (cgroups("tmpfs", "cgroup", "/c", &[]), true, false),
        ] {
            let (mounts, report) = planned(mount.clone(), namespace);
            mounts.refuse_writable_cgroups("there is none", &report);
            let problems = report.finish().err().map_or(Vec::new(), |e| e.problems().to_vec());
            let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
            assert_eq!(fields == ["/mounts/0/options"], refused, "{mount}");
        }
    }
}
