//! Where a name stands in the tables of system calls: build.rs fills the slots, [`super::arch`] looks them up. A profile
//! names hundreds, and a search by order compares nine names for each.

/// Some four to a name, so that few share one.
pub const SLOTS: usize = 2048;

/// The slots in which a name may be, in this order: the first free one ends the search. FNV-1a:
/// <https://datatracker.ietf.org/doc/draft-eastlake-fnv/>
pub fn slots(name: &str) -> impl Iterator<Item = usize> {
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (0..SLOTS).map(move |step| (hash as usize + step) % SLOTS)
}
