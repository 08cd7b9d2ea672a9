//! `keel run`: create and start in one, and in the foreground stay until the program ends, then delete.

use std::os::fd::AsFd;

use crate::cli::RunOptions;
use crate::create::{self, Created, Mode, Process, new_container};
use crate::delete::destroy_unless_gone;
use crate::error::{Context, Result};
use crate::relay::{self, Signals};
use crate::start::run_poststart;

/// The exit code of the container's process; 0 when it runs on, detached.
pub fn run(options: &RunOptions, process: &Process) -> Result<i32> {
    let id = &options.create.id;
    if options.detach {
        let signals = create::hold_signals(&options.create)?;
        let interrupt = signals.as_ref().map(Signals::interrupt);
        let mut created = new_container(&options.create, process, Mode::Detached, interrupt)?;
        return detach(&mut created).context(|| format!("run container {id}")).map(|()| 0);
    }
    if !options.no_subreaper {
        // Orphans of the container are reaped here, and not left to the caller.
        nix::sys::prctl::set_child_subreaper(true).context(|| "become a subreaper")?;
    }
    // Before the container exists: a signal that comes meanwhile must not leave half of it behind.
    let signals = relay::block_signals()?;
    let interrupt = Some(signals.interrupt());
    let created = new_container(&options.create, process, Mode::Foreground, interrupt)?;
    attend(&signals, created, options.keep).context(|| format!("run container {id}"))
}

fn detach(created: &mut Created) -> Result<()> {
    let Created { container, state, first, notify } = created;
    run_poststart(container, state)?;
    notify.as_ref().map_or(Ok(()), |notify| notify.relay(first.pid, first.pidfd.as_fd()))
}

/// Stays with the container to its end.
fn attend(signals: &Signals, created: Created, keep: bool) -> Result<i32> {
    let Created { mut container, state, first, notify } = created;
    run_poststart(&mut container, &state)?;
    let code = relay::foreground(signals, first.pid, first.pidfd.as_fd(), first.console, notify);
    if !keep {
        destroy_unless_gone(&mut container, &state)?;
    }
    code
}
