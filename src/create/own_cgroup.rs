//! The container's cgroup: made before its first process, or by systemd around it.

use std::os::fd::AsFd;

use nix::sys::signal::Signal;

use super::Making;
use crate::cgroup::systemd::Bus;
use crate::cgroup::{Cgroup, Manager, oom};
use crate::cli::CreateOptions;
use crate::error::{Error, Kind, Result};
use crate::relay::{self, Signals};
use crate::spawn::Spawned;
use crate::spec::Report;

/// systemd may be long in making the cgroup. A signal that ends this process meanwhile must leave nothing behind; at
/// other times it is as good as a crash, and `delete` cleans up.
pub fn hold_signals(options: &CreateOptions) -> Result<Option<Signals>> {
    options.cgroup_manager.systemd().map(|_| relay::block_signals()).transpose()
}

impl Making<'_> {
    /// Makes the cgroup, if it is keel that makes it, and the state that names what is to be made.
    pub(super) fn make_cgroup(&mut self) -> Result<()> {
        if self.options.cgroup_manager == Manager::Disabled {
            return self.container.create_state(&self.state);
        }
        if let Some((scope, instance)) = self.plan.cgroup.scope().zip(self.options.cgroup_manager.systemd()) {
            // It takes a process to make one.
            self.bus = Some(Bus::connect(instance, self.interrupt)?);
            self.state.unit = Some(scope.name.clone());
            return self.container.create_state(&self.state);
        }
        let Some(path) = self.plan.cgroup.permitted_path(&self.host, self.options.cgroup_optional)? else {
            // What it could write to would be the caller's own.
            let report = Report::default();
            let lacks = Manager::Undelegated;
            self.plan.mounts.refuse_writable_cgroups(lacks.lacks().unwrap_or_default(), &report);
            report.finish()?;
            self.state.cgroup_manager = lacks;
            return self.container.create_state(&self.state);
        };
        // Before the state names it as what to kill: it may be somebody else's.
        Cgroup::refuse_used(&self.plan.cgroup, &path)?;
        self.state.cgroup = Some(path.clone());
        self.container.create_state(&self.state)?;
        let made = Cgroup::create(&self.plan.cgroup, &path, &self.host);
        // It has undone itself, and what is there now is not ours.
        let cgroup = made.inspect_err(|_| self.state.cgroup = None)?;
        self.watch_oom(&cgroup)?;
        self.cgroup = Some(cgroup);
        Ok(())
    }

    fn watch_oom(&mut self, cgroup: &Cgroup) -> Result<()> {
        self.oom_watch = oom::Watch::new(&self.plan.cgroup, cgroup)?;
        self.state.oom_watch = self.oom_watch.field.is_some().then(|| self.oom_watch.clone());
        Ok(())
    }

    /// Has systemd make the cgroup around init, which waits for that.
    pub(super) fn enter_scope(&mut self, spawned: &Spawned) -> Result<()> {
        let (Some(bus), Some(scope)) = (&mut self.bus, self.plan.cgroup.scope()) else { return Ok(()) };
        // So that an undo waits for its end.
        self.state.set_init(spawned.pid)?;
        let description = self.state.description();
        let started = scope.start(bus, &description, &self.plan.cgroup, spawned.pid, &self.host);
        let path = started.inspect_err(|error| {
            if error.kind() == Kind::Interrupted {
                // systemd has no answer yet, and may have none for the undo: without init there is no scope either.
                self.state.unit = None;
            }
        })?;
        self.state.cgroup = Some(path.clone());
        let cgroup = Cgroup::of_scope(&self.plan.cgroup, &path, &self.host)?;
        self.watch_oom(&cgroup)?;
        let leaf = self.plan.cgroup.leaf.as_ref().map(|leaf| leaf.make(&cgroup)).transpose()?;
        self.cgroup = Some(cgroup);
        spawned.sync.scope(leaf.as_ref().map(AsFd::as_fd))
    }

    /// An init that the out-of-memory killer took cannot say so, and whatever else fails then does so for that.
    pub(super) fn oom_kill(&self, spawned: &Spawned) -> Option<Error> {
        let (Some(cgroup), Some(Signal::SIGKILL)) = (&self.cgroup, spawned.killed_by()) else { return None };
        self.oom_watch.killed(cgroup).ok().flatten()
    }
}

/// Init may have been ready before the limit of memory was there, and still be on its way out.
pub(super) fn fail_if_killed(cgroup: Option<&Cgroup>, watch: &oom::Watch) -> Result<()> {
    match cgroup.filter(|_| watch.field.is_some()).map(|cgroup| watch.killed(cgroup)).transpose()?.flatten() {
        Some(killed) => Err(killed),
        None => Ok(()),
    }
}
