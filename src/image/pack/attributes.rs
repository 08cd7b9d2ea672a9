//! Extended attributes of a file on the disk: those that an image may have, and the ones of overlayfs that say that the
//! file is not what it looks like.

use std::os::fd::AsFd;

use crate::error::{Context, Error, Result};
use crate::image::unpack::Owners;
use crate::image::unpack::xattr::{CAPABILITY, Warnings, dropped, list, of_image};
use crate::sys::fs::fgetxattr;

/// What overlayfs keeps in an upper directory for itself. With these a name's content lies elsewhere, or it stands for
/// nothing; keel's own mounts never make them.
const ELSEWHERE: [&[u8]; 3] = [b"overlay.redirect", b"overlay.metacopy", b"overlay.whiteout"];

/// The attributes that an entry gets, sorted. `in_overlay`: the file lies in a directory of overlayfs.
pub fn read(
    file: impl AsFd,
    path: &[u8],
    owners: &Owners,
    in_overlay: bool,
    warnings: &mut Warnings,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in list(&file).context(|| "list extended attributes")? {
        let bytes = name.to_bytes();
        let class = bytes.iter().position(|&byte| byte == b'.').map_or(0, |dot| dot + 1);
        if in_overlay && ELSEWHERE.contains(&&bytes[class..]) {
            let message = format!("it has {}, so that its content lies elsewhere", name.to_string_lossy());
            return Err(Error::new(message)
                .with_way_out("Something else than keel has mounted it, with redirect_dir or metacopy."));
        }
        if let Some(dropped) = dropped(bytes, owners) {
            // What overlayfs has noted, and what the host's policy says, is nothing that anybody misses.
            if !bytes.starts_with(b"trusted.overlay.")
                && !bytes.starts_with(b"user.overlay.")
                && bytes != b"security.selinux"
            {
                warnings.add(format!("extended attributes {dropped} are left out"), path);
            }
            continue;
        }
        if bytes.contains(&b'=') {
            warnings.add(
                "extended attributes with '=' in their names, which a tar archive cannot have, are left out",
                path,
            );
            continue;
        }
        let reading = || format!("read extended attribute {}", name.to_string_lossy());
        let mut value = vec![0; 64 << 10]; // the kernel's own limit
        let size = fgetxattr(&file, &name, &mut value).context(reading)?;
        value.truncate(size);
        let value = match bytes == CAPABILITY {
            true => match of_image(&value, owners.root()) {
                Some(value) => value,
                None => {
                    warnings.add("capabilities that are those of another user namespace are left out", path);
                    continue;
                }
            },
            false => value,
        };
        found.push((bytes.to_vec(), value));
    }
    found.sort();
    Ok(found)
}
