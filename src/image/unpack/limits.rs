//! What a layer may cost at most, before it counts as an attack, and what it has cost so far.

use std::os::fd::OwnedFd;

use nix::sys::statvfs::fstatvfs;

use super::limit;
use crate::error::{Context, Error, Kind, Result};

/// `--limits k=v`; the keys are the names that errors give.
#[derive(Clone, Debug)]
pub struct LayerLimits {
    /// Entries in one layer, and the directories that they imply.
    pub entries: u64,
    /// Bytes of one layer, unpacked; holes count.
    pub bytes: u64,
    /// Plain bytes for each compressed one, after `RATIO_FROM`.
    pub ratio: u64,
    /// Bytes of a name or of a link's target.
    pub path: usize,
    /// Directories inside of each other; each costs a descriptor.
    pub depth: usize,
    /// Bytes of the extended headers, or of the sparse map, of one entry.
    pub metadata: u64,
    /// Bytes of the names of whiteouts, links to lower layers, implied directories and devices left out.
    pub memory: usize,
    /// Per cent of the file system that stay free.
    pub free: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            bytes: 64 << 30,
            ratio: 1000,
            path: 4096,
            depth: 256,
            metadata: 1 << 20,
            memory: 64 << 20,
            free: 5,
        }
    }
}

/// Plain bytes from which on the ratio is looked at: a small layer of zeroes is no bomb.
pub const RATIO_FROM: u64 = 64 << 20;

/// Bytes and files after which the free space is looked at again.
pub const SPACE_BYTES: u64 = 64 << 20;
const SPACE_ENTRIES: u64 = 4096;

/// What was made so far on one file system.
pub struct Spent {
    limits: LayerLimits,
    /// Anything on the file system.
    place: OwnedFd,
    pub entries: u64,
    /// Of all files together, holes included.
    pub bytes: u64,
    remembered: usize,
    unchecked_bytes: u64,
}

impl Spent {
    pub fn new(limits: &LayerLimits, place: OwnedFd) -> Result<Self> {
        let limits = limits.clone();
        let spent = Self { limits, place, entries: 0, bytes: 0, remembered: 0, unchecked_bytes: 0 };
        spent.check_space()?;
        Ok(spent)
    }

    pub fn entry(&mut self) -> Result<()> {
        let most = self.limits.entries;
        self.entries += 1;
        if self.entries > most {
            return Err(limit("entries", format!("more than {most} entries")));
        }
        if self.entries.is_multiple_of(SPACE_ENTRIES) {
            self.check_space()?;
        }
        Ok(())
    }

    /// A file of this size is made.
    pub fn file(&mut self, size: u64) -> Result<()> {
        let most = self.limits.bytes;
        self.bytes = self.bytes.saturating_add(size);
        match self.bytes > most {
            true => Err(limit("bytes", format!("more than {most} bytes"))),
            false => Ok(()),
        }
    }

    /// So much of a file is written. Not all of it at once: other layers may be filling the same disk.
    pub fn written(&mut self, bytes: u64) -> Result<()> {
        self.unchecked_bytes += bytes;
        if self.unchecked_bytes >= SPACE_BYTES {
            self.unchecked_bytes = 0;
            self.check_space()?;
        }
        Ok(())
    }

    /// Counts what is kept in memory until the end: names compress well.
    pub fn remember(&mut self, bytes: usize) -> Result<()> {
        let most = self.limits.memory;
        self.remembered += bytes + size_of::<Vec<u8>>();
        match self.remembered > most {
            true => Err(limit("memory", format!("more than {most} bytes of names to remember"))),
            false => Ok(()),
        }
    }

    /// The host must not run out of disk because of an image.
    fn check_space(&self) -> Result<()> {
        let stat = fstatvfs(&self.place).context(|| "look at the free space")?;
        let percent = self.limits.free;
        let low = |available: u64, total: u64| {
            u128::from(available) * 100 < u128::from(total) * u128::from(percent)
        };
        if low(stat.blocks_available(), stat.blocks()) || low(stat.files_available(), stat.files()) {
            return Err(Error::of_kind(
                Kind::NoSpace,
                format!("less than {percent} % of the disk is free (limit free)"),
            ));
        }
        Ok(())
    }
}
