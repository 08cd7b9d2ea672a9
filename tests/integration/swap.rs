//! Somebody who exchanges two directories for as long as the runtime works on them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// How often to try; $SWAPS for a long run.
pub fn swaps(usual: usize) -> usize {
    std::env::var("SWAPS").map_or(usual, |swaps| swaps.parse().unwrap())
}

/// Both must be there at the end of every exchange: what `act` does may not rename or remove them.
pub fn while_swapped<T>(a: &Path, b: &Path, act: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let acted = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE).unwrap();
            }
        });
        // A test that fails in there must not wait for ever.
        let acted = catch_unwind(AssertUnwindSafe(act));
        stop.store(true, Ordering::Relaxed);
        acted
    });
    acted.unwrap_or_else(|panic| resume_unwind(panic))
}
