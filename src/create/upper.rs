//! The writable layer of an overlay is one container's at a time: the kernel only warns, in its log, and both
//! find their files changed under them.
//!
//! Whose it is stands in an attribute of the overlay's `workdir`, which no container sees and which stays when a
//! container, or this process, is killed: the state directory, and when its container was created.

use std::ffi::CStr;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;

use crate::container::{Container, State, Status};
use crate::error::{At, Context, Error, Result};
use crate::log;
use crate::plan::Plan;
use crate::sys::fs::{fgetxattr, fsetxattr};

const OWNER: &CStr = c"user.keel.container";

/// For a container that has its state already.
pub fn claim(plan: &Plan, container: &Container, state: &State) -> Result<()> {
    plan.mounts.work_dirs().try_for_each(|(work, field)| {
        take(work, container, state).context(|| format!("take the workdir {}", work.display())).at(field)
    })
}

fn take(work: &Path, container: &Container, state: &State) -> Result<()> {
    let dir = match open(work, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        // The mount says what is wrong with it.
        Err(_) => return Ok(()),
        Ok(dir) => dir,
    };
    let dir = match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => {
            return Err(Error::new("it is in use by a container that is being created"));
        }
        locked => locked.map_err(|(_, errno)| errno).context(|| "lock it")?,
    };
    let mut owner = [0; 4096];
    if let Ok(length) = fgetxattr(&*dir, OWNER, &mut owner)
        && let Some(other) = in_use(&owner[..length])
    {
        let what = format!("it is in use by container {other}: each would change the other's files");
        return Err(Error::new(format!("{what}; take another bundle, or delete that container")));
    }
    let path = container.path().canonicalize()?;
    let mine = format!("{} {}", state.created, path.display());
    // A file system without attributes, or a full one, keeps nobody from running.
    fsetxattr(&*dir, OWNER, mine.as_bytes()).or_else(|errno| {
        log::debug(format_args!("note in {} whose it is: {errno}", work.display()));
        Ok(())
    })
}

/// The state directory of the container that has it, if that lives.
fn in_use(owner: &[u8]) -> Option<&str> {
    let (created, path) = std::str::from_utf8(owner).ok()?.split_once(' ')?;
    let (root, id) = (Path::new(path).parent()?, Path::new(path).file_name()?.to_str()?);
    let other = Container::open(root, id).ok()?;
    let state = other.state().ok().filter(|state| state.created == created)?;
    (other.status(&state).ok()? != Status::Stopped).then_some(path)
}
