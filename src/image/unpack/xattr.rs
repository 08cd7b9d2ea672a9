//! Extended attributes: which of them a layer may set, and how.
//!
//! Never what overlayfs reads from its layers (`trusted.overlay.*`, `user.overlay.*`: a planted redirect shows
//! other directories), nor what belongs to the host's policy (`security.selinux`, `security.ima`).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::malformed;
use super::owner::Owners;
use crate::error::{Context, Result};
use crate::sys::fs::{fgetxattr, flistxattr, fremovexattr, fsetxattr};

pub const CAPABILITY: &[u8] = b"security.capability";
/// The first word of file capabilities, `struct vfs_ns_cap_data` of linux/capability.h.
const VERSION_2: u32 = 0x0200_0000;
const VERSION_3: u32 = 0x0300_0000;
const FLAGS: u32 = 0x00ff_ffff;
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// A warning, the first path of which it is true, and of how many more.
#[derive(Default)]
pub struct Warnings(BTreeMap<String, (String, u64)>);

impl Warnings {
    /// `what` must be one of few: hostile layers have millions of names.
    pub fn add(&mut self, what: impl Into<String>, path: &[u8]) {
        let first = || (String::from_utf8_lossy(path).into_owned(), 0);
        self.0.entry(what.into()).or_insert_with(first).1 += 1;
    }

    pub fn into_list(self) -> Vec<String> {
        let line = |(what, (path, count)): (String, (String, u64))| match count {
            1 => format!("{what}: {path:?}"),
            _ => format!("{what}: {path:?} and {} more", count - 1),
        };
        self.0.into_iter().map(line).collect()
    }
}

/// The attributes that an entry gets, as the kernel takes them.
pub struct Xattrs(Vec<(CString, Vec<u8>)>);

impl Xattrs {
    pub fn plan(
        xattrs: &[(Vec<u8>, Vec<u8>)],
        owners: &Owners,
        path: &[u8],
        warnings: &mut Warnings,
    ) -> Result<Self> {
        let mut kept = Vec::new();
        for (name, value) in xattrs {
            if let Some(dropped) = dropped(name, owners) {
                warnings.add(format!("extended attributes {dropped} are left out"), path);
                continue;
            }
            let shown = || String::from_utf8_lossy(name).into_owned();
            let c_name = CString::new(name.clone())
                .ok()
                .filter(|name| name.count_bytes() <= 255)
                .ok_or_else(|| malformed(format!("extended attribute {:?}", shown())))?;
            let value = match owners.root() {
                Some(root) if name == CAPABILITY => of_namespace(value, root),
                _ => value.clone(),
            };
            kept.push((c_name, value));
        }
        Ok(Self(kept))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn apply(&self, file: impl AsFd, path: &[u8], warnings: &mut Warnings) -> Result<()> {
        for (name, value) in &self.0 {
            let shown = name.to_string_lossy();
            match fsetxattr(&file, name, value) {
                Err(Errno::EOPNOTSUPP) => {
                    let class = shown.split_inclusive('.').next().unwrap_or_default();
                    warnings.add(format!("the file system has no extended attributes {class}*"), path);
                }
                done => done.context(|| format!("set extended attribute {shown}"))?,
            }
        }
        Ok(())
    }

    /// Takes away what a directory of a lower layer has and this entry does not; but for what we ourselves set.
    pub fn clear(file: impl AsFd) -> Result<()> {
        let clearing = || "remove extended attributes";
        for name in list(&file).context(clearing)? {
            if ours(name.to_bytes()) {
                fremovexattr(&file, &name).context(clearing)?;
            }
        }
        Ok(())
    }
}

/// What an image's files may carry.
fn ours(name: &[u8]) -> bool {
    name == CAPABILITY
        || ACLS.contains(&name)
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// What is left out, as the warning has it.
pub fn dropped(name: &[u8], owners: &Owners) -> Option<&'static str> {
    let has_ids = ACLS.contains(&name);
    if has_ids && *owners != Owners::Kept {
        return Some("system.posix_acl_* (with ids that are mapped)");
    }
    if name == CAPABILITY && *owners == Owners::Squashed {
        return Some("security.capability (with one id only)");
    }
    if ours(name) {
        return None;
    }
    Some(match name.split(|&byte| byte == b'.').next().unwrap_or_default() {
        b"trusted" => "trusted.*",
        b"user" => "user.overlay.*",
        b"security" => "security.* (but for capability)",
        b"system" => "system.* (but for POSIX ACLs)",
        _ => "of an unknown class",
    })
}

/// File capabilities without an owner (version 2) as those that are true below the user namespace with this root.
/// See `capabilities(7)`.
fn of_namespace(value: &[u8], root: u32) -> Vec<u8> {
    let magic = value.first_chunk().map(|magic| u32::from_le_bytes(*magic));
    match magic {
        Some(magic) if magic & !FLAGS == VERSION_2 && value.len() == 20 => {
            let magic = (VERSION_3 | magic & FLAGS).to_le_bytes();
            [&magic[..], &value[4..], &root.to_le_bytes()].concat()
        }
        // The kernel refuses what is no capability.
        _ => value.to_vec(),
    }
}

/// The way back: capabilities as an image has them, without an owner. None if their owner is neither `root` nor who asks.
pub fn of_image(value: &[u8], root: Option<u32>) -> Option<Vec<u8>> {
    let magic = value.first_chunk().map(|magic| u32::from_le_bytes(*magic))?;
    if magic & !FLAGS != VERSION_3 {
        return Some(value.to_vec());
    }
    let owner = value.get(20..)?.first_chunk().map(|owner| u32::from_le_bytes(*owner))?;
    let ours = root.unwrap_or(0) == owner;
    ours.then(|| [&(VERSION_2 | magic & FLAGS).to_le_bytes()[..], &value[4..20]].concat())
}

/// The names of a file's attributes.
pub fn list(file: impl AsFd) -> Result<Vec<CString>, Errno> {
    let mut names = vec![0; 64 << 10]; // the kernel's own limit
    let size = match flistxattr(&file, &mut names) {
        Err(Errno::EOPNOTSUPP) => 0,
        size => size?,
    };
    let name = |name: &[u8]| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned);
    Ok(names[..size].split_inclusive(|&byte| byte == 0).filter_map(name).collect())
}

/// Those that an image's file carries, and their values, sorted.
pub fn read_ours(file: impl AsFd) -> Result<Vec<(CString, Vec<u8>)>> {
    let reading = || "read extended attributes";
    let mut found = Vec::new();
    for name in list(&file).context(reading)?.into_iter().filter(|name| ours(name.to_bytes())) {
        let mut value = vec![0; 64 << 10]; // the kernel's own limit
        let size = fgetxattr(&file, &name, &mut value).context(reading)?;
        value.truncate(size);
        found.push((name, value));
    }
    found.sort();
    Ok(found)
}

/// The mark on a directory that hides what is below it.
pub fn set_opaque(directory: impl AsFd, user_xattr: bool) -> Result<()> {
    let name = if user_xattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
    fsetxattr(directory, name, b"y").context(|| format!("set {} to y", name.to_string_lossy()))
}

/// Whether the directory has that mark. See [`set_opaque`].
pub fn is_opaque(directory: impl AsFd, user_xattr: bool) -> bool {
    let name = if user_xattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
    let mut value = [0; 1];
    fgetxattr(directory, name, &mut value) == Ok(1) && value == *b"y"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_get_the_root_of_their_namespace() {
        let mut value = vec![1, 0, 0, 2];
        value.extend([7; 16]);
        let mapped = of_namespace(&value, 0x0001_0203);
        assert_eq!(mapped[..4], [1, 0, 0, 3]);
        assert_eq!(mapped[4..20], [7; 16]);
        assert_eq!(mapped[20..], [3, 2, 1, 0]);
        assert_eq!(of_namespace(&[1, 2], 5), [1, 2]);
        assert_eq!(of_image(&mapped, Some(0x0001_0203)).as_ref(), Some(&value));
        assert_eq!(of_image(&value, None).as_ref(), Some(&value));
        assert_eq!(of_image(&mapped, Some(0)), None);
        assert_eq!(of_image(&mapped, None), None);
    }

    #[test]
    fn only_what_an_image_may_say_is_kept() {
        let table: &[(&str, bool)] = &[
            ("user.mime", true),
            ("user.overlayer", true),
            ("user.overlay.redirect", false),
            ("trusted.overlay.opaque", false),
            ("trusted.x", false),
            ("security.capability", true),
            ("security.selinux", false),
            ("system.posix_acl_access", true),
            ("system.nfs4_acl", false),
            ("", false),
        ];
        for (name, kept) in table {
            assert_eq!(dropped(name.as_bytes(), &Owners::Kept).is_none(), *kept, "{name}");
        }
    }
}
