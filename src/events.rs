//! `keel events`: what a container uses, line by line, and its processes that are killed for lack of memory.
//!
//! ```text
//! {"type":"stats","id":"c1","data":{"cpu":{...},"memory":{...},...}}
//! {"type":"oom","id":"c1"}
//! ```

use std::io::{Write, stdout};
use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::Serialize;

use crate::cgroup::watch::Watch;
use crate::cgroup::{Cgroup, stats};
use crate::cli::EventsOptions;
use crate::container::{Container, Status};
use crate::error::{Context, Error, Kind, Result};
use crate::linux::rdt;

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

#[derive(Serialize)]
struct Stats {
    #[serde(flatten)]
    cgroup: stats::Stats,
    intel_rdt: rdt::Stats,
    /// runc tells only of veth pairs that it made itself, in a way of old that no config.json can ask for.
    network_interfaces: (),
}

/// A container whose processes are watched.
struct Watched<'a> {
    id: &'a str,
    cgroup: Cgroup,
    rdt: Option<rdt::Assigned>,
}

pub fn events(root: &Path, options: &EventsOptions) -> Result<()> {
    let id = options.id.as_str();
    let show = || {
        let container = Container::open(root, id)?;
        let state = container.state()?;
        let cgroup = match container.status(&state)? {
            Status::Stopped => None,
            _ => state.need_cgroup()?,
        };
        let init = state.init()?;
        let watched = Watched { id, cgroup: cgroup.ok_or_else(|| not_running(id))?, rdt: state.rdt };
        let watch = watched.cgroup.watch()?.ok_or_else(|| not_running(id))?;
        if options.stats {
            return if watched.say_stats(&watch)? { Ok(()) } else { Err(not_running(id)) };
        }
        match watched.follow(watch, init, options.interval()) {
            // Whoever read has read enough.
            Err(e) if e.errno() == Some(Errno::EPIPE) => Ok(()),
            ended => ended,
        }
    };
    show().context(|| format!("show the events of container {id}"))
}

fn not_running(id: &str) -> Error {
    Error::of_kind(Kind::WrongStatus, format!("container with id {id} is not running"))
}

impl Watched<'_> {
    /// Until the last process has ended or nobody reads any more.
    fn follow(&self, mut watch: Watch, mut init: Option<OwnedFd>, interval: Duration) -> Result<()> {
        let timer = timer(interval).context(|| format!("set a timer of {interval:?}"))?;
        let mut due = false;
        loop {
            // In this order: a kill is counted before the process ends.
            let populated = watch.populated()?;
            for _ in 0..watch.new_kills()? {
                say(&Event { r#type: "oom", id: self.id, data: None })?;
            }
            if !populated {
                return Ok(());
            }
            if take(&mut due) && !self.say_stats(&watch)? {
                // It has just ended, of a kill perhaps.
                continue;
            }
            let stdout = stdout();
            let mut fds = vec![
                PollFd::new(timer.as_fd(), PollFlags::POLLIN),
                // Only for what is always told: that nobody reads any more.
                PollFd::new(stdout.as_fd(), PollFlags::empty()),
            ];
            fds.extend(watch.poll_fds());
            // It tells of its end at once, the cgroup up to 10 ms later.
            fds.extend(init.iter().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context(|| "wait for events"),
            }
            let has_news = |fd: &PollFd| fd.any() == Some(true);
            let ended = fds.last().is_some_and(has_news);
            if has_news(&fds[1]) {
                return Ok(());
            }
            due = has_news(&fds[0]);
            if due {
                timer.wait().context(|| "read the timer")?;
            }
            // Others of a shared pid namespace may live on, and a dead one would end every poll.
            init.take_if(|_| ended);
        }
    }

    /// False if the container has ended meanwhile, and the figures are nobody's.
    fn say_stats(&self, watch: &Watch) -> Result<bool> {
        let stats = self.stats();
        if !watch.populated()? {
            return Ok(false);
        }
        say(&Event { r#type: "stats", id: self.id, data: Some(stats?) })?;
        Ok(true)
    }

    fn stats(&self) -> Result<Stats> {
        let intel_rdt = self.rdt.as_ref().map_or_else(|| Ok(rdt::Stats::default()), rdt::Assigned::stats)?;
        Ok(Stats { cgroup: self.cgroup.stats()?, intel_rdt, network_interfaces: () })
    }
}

fn timer(interval: Duration) -> Result<TimerFd, Errno> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    let interval = TimeSpec::from_duration(interval);
    timer.set(Expiration::Interval(interval), TimerSetTimeFlags::empty())?;
    Ok(timer)
}

/// One line in one `write(2)`, for whoever reads by lines.
fn say(event: &Event) -> Result<()> {
    let mut line = serde_json::to_vec(event).map_err(|e| Error::new(e.to_string()))?;
    line.push(b'\n');
    let mut stdout = stdout();
    stdout.write_all(&line).and_then(|()| stdout.flush()).context(|| "write to stdout")
}
