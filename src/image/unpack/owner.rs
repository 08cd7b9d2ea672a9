//! Whose the files are: the ids of a layer are those inside of the container.

use super::malformed;
use crate::error::{Error, Result};

/// As a line of /proc/PID/uid_map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The layer's own ids: as root, or inside of the user namespace that the container will have.
    Kept,
    /// Moved to where a user namespace has them.
    Mapped { uids: Vec<Range>, gids: Vec<Range> },
    /// Everything belongs to who unpacks: there is one id only.
    Squashed,
}

impl Owners {
    /// The owner of a file, or none when it is whoever makes it.
    pub fn of(&self, uid: u32, gid: u32) -> Result<Option<(u32, u32)>> {
        match self {
            Self::Kept => Ok(Some((uid, gid))),
            Self::Squashed => Ok(None),
            Self::Mapped { uids, gids } => Ok(Some((map(uids, uid, "uid")?, map(gids, gid, "gid")?))),
        }
    }

    /// The way back: the ids of the inside for a file on the disk. Squashed, all is root's.
    pub fn inside(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        match self {
            Self::Kept => Ok((uid, gid)),
            Self::Squashed => Ok((0, 0)),
            Self::Mapped { uids, gids } => {
                let back = |range: &Range| Range { inside: range.outside, outside: range.inside, ..*range };
                let [uids, gids] = [uids, gids].map(|ranges| ranges.iter().map(back).collect::<Vec<_>>());
                Ok((map(&uids, uid, "uid")?, map(&gids, gid, "gid")?))
            }
        }
    }

    /// The id outside of the user namespace's root, if there is a map.
    pub fn root(&self) -> Option<u32> {
        match self {
            Self::Mapped { uids, .. } => map(uids, 0, "uid").ok(),
            _ => None,
        }
    }
}

fn map(ranges: &[Range], id: u32, what: &str) -> Result<u32> {
    // (uid_t) -1 is "leave it as it is" to chown(2).
    let found = ranges.iter().find(|range| id.wrapping_sub(range.inside) < range.count && id >= range.inside);
    let mapped = found.and_then(|range| range.outside.checked_add(id - range.inside));
    mapped.filter(|&id| id != u32::MAX).ok_or_else(|| {
        Error::new(format!("{what} {id} is not in the id map"))
            .with_way_out(format!("Map more ids with --{what}-map."))
    })
}

/// An id that chown(2) would take for "none".
pub fn check(uid: u32, gid: u32) -> Result<()> {
    match uid == u32::MAX || gid == u32::MAX {
        true => Err(malformed(format!("owner {uid}:{gid} is out of range"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_mapped_or_refused() {
        let range = |inside, outside, count| Range { inside, outside, count };
        let ranges = [range(0, 100_000, 1000), range(5000, 7, 1), range(u32::MAX - 1, u32::MAX - 1, 2)];
        let table = [
            (0, Some(100_000)),
            (999, Some(100_999)),
            (1000, None),
            (5000, Some(7)),
            (4999, None),
            (u32::MAX - 1, Some(u32::MAX - 1)),
            (u32::MAX, None),
        ];
        for (id, expected) in table {
            assert_eq!(map(&ranges, id, "uid").ok(), expected, "{id}");
        }
    }
}
