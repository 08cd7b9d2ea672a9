//! Volumes: those that the image wants, as directories of the bundle with what the image has there, and those that the
//! user gives.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, absolute};

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};

use super::config::Bind;
use super::place::Place;
use super::tree_copy::Copy;
use crate::error::{Context, Error, Kind, Result};
use crate::image::unpack::{LayerLimits, Owners};
use crate::root::Root;

/// What may be said of a user's volume.
const OPTIONS: [&str; 11] =
    ["ro", "rw", "nosuid", "nodev", "noexec", "private", "rprivate", "slave", "rslave", "shared", "rshared"];

/// `SOURCE:DESTINATION[:OPTION,...]`, each.
pub fn of_user(texts: &[String]) -> Result<Vec<Bind>> {
    texts.iter().map(|text| parse(text).context(|| format!("--volume {text}"))).collect()
}

fn parse(text: &str) -> Result<Bind> {
    let mut parts = text.splitn(3, ':');
    let (Some(source), Some(destination)) = (parts.next().filter(|source| !source.is_empty()), parts.next())
    else {
        return Err(Error::new("must be SOURCE:DESTINATION[:OPTION,...]"));
    };
    let absolute_source = absolute(source).context(|| format!("find {source}"))?;
    if !absolute_source.exists() {
        return Err(Error::of_kind(Kind::NotFound, format!("{source} does not exist")));
    }
    let is_up = Path::new(destination).components().any(|part| part == Component::ParentDir);
    if !destination.starts_with('/') || is_up || Path::new(destination) == Path::new("/") {
        return Err(Error::new(format!(
            "{destination:?} must be an absolute path in the container, and not /"
        )));
    }
    let options: Vec<_> =
        parts.next().map_or(Vec::new(), |options| options.split(',').map(str::to_owned).collect());
    if let Some(unknown) = options.iter().find(|option| !OPTIONS.contains(&option.as_str())) {
        return Err(Error::new(format!("there is no option {unknown:?}"))
            .with_way_out(format!("There are: {}.", OPTIONS.join(", "))));
    }
    let source = absolute_source.to_str().map(str::to_owned);
    let source = source.ok_or_else(|| Error::new("the path must be UTF-8"))?;
    Ok(Bind { source, destination: destination.to_owned(), options })
}

/// Makes the image's volumes, but for those that the user has something else for, and gives all of them.
pub fn make<'r>(
    place: &Place<'_>,
    wanted: &[std::path::PathBuf],
    of_user: Vec<Bind>,
    owners: &Owners,
    limits: &LayerLimits,
    root: impl FnOnce() -> Result<&'r Root>,
) -> Result<Vec<Bind>> {
    let is_users = |path: &Path| of_user.iter().any(|bind| Path::new(&bind.destination) == path);
    let wanted: Vec<_> = wanted.iter().filter(|path| !is_users(path)).collect();
    let mut binds = Vec::new();
    if !wanted.is_empty() {
        let root = root()?;
        let mut copy = Copy::new(owners, limits, place.directory("volumes", 0o700)?)?;
        // The last first: what is mounted later hides what others have at its place, so that they need not have it.
        for (i, path) in wanted.into_iter().enumerate().rev() {
            let source = format!("volumes/{i}");
            let destination =
                path.to_str().ok_or_else(|| Error::new(format!("volume {path:?}: it must be UTF-8")))?;
            seed(&mut copy, place.directory(&source, 0o755)?, root, path, owners)
                .context(|| format!("make volume {destination}"))?;
            binds.push(Bind { source, destination: destination.to_owned(), options: Vec::new() });
        }
        binds.reverse();
    }
    binds.extend(of_user);
    Ok(binds)
}

/// With what the image has at that path; where it has nothing, or no directory, it is empty.
fn seed(copy: &mut Copy<'_>, volume: OwnedFd, root: &Root, path: &Path, owners: &Owners) -> Result<()> {
    match root.open(path, libc::O_RDONLY | libc::O_DIRECTORY) {
        Ok(found) => copy.volume(found, volume),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
            let (uid, gid) = owners.of(0, 0)?.unwrap_or_default();
            nix::unistd::fchown(&volume, Some(uid.into()), Some(gid.into()))?;
            Ok(fchmod(&volume, Mode::from_bits_truncate(0o755))?)
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_of_the_users_is_two_paths_and_options() {
        let bind = parse("/tmp:/data:ro,rslave").unwrap();
        assert_eq!((&*bind.source, &*bind.destination), ("/tmp", "/data"));
        assert_eq!(bind.options, ["ro", "rslave"]);
        for (text, why) in [
            ("/tmp", "must be SOURCE:DESTINATION"),
            (":/data", "must be SOURCE:DESTINATION"),
            ("/tmp:data", "must be an absolute path"),
            ("/tmp:/a/../..", "must be an absolute path"),
            ("/tmp:/", "must be an absolute path"),
            ("/tmp:/a:suid", "there is no option \"suid\""),
            ("/nowhere-at-all:/a", "does not exist"),
        ] {
            let error = parse(text).err().unwrap().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
