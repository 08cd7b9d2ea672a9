//! What a layer may cost at most, before it counts as an attack.

/// `--limits k=v`; the keys are the names that errors give.
#[derive(Clone, Debug)]
pub struct LayerLimits {
    /// Entries in one layer.
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
    /// Bytes of the names of whiteouts, links to lower layers and devices left out.
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
