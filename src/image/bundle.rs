//! `keel-image bundle`: from the name of an image to a directory that a runtime runs.
//!
//! | `--rootfs` | what the bundle's root is |
//! |---|---|
//! | overlay | the store's layers, and the bundle's own `upper`: config.json says so, and keel mounts it |
//! | ro | the same without an upper |
//! | mount | the same as overlay, mounted on the host for other runtimes until `keel-image umount` |
//! | copy | a directory with all files |
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/bundle.md>

pub mod config;
pub mod convert;
pub mod place;
pub mod seccomp;
pub mod tree_copy;
pub mod user;
pub mod volumes;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use serde_json::json;

use self::config::{Bind, Overlay, Parts, hostname};
use self::convert::{Converted, Overrides, convert};
use self::place::Place;
use crate::error::{Context, Error, Result};
use crate::image::cli::{BundleOptions, Global};
use crate::image::fetch::{Fetch, manifest_descriptor};
use crate::image::fixup;
use crate::image::limits::Limits;
use crate::image::overlay;
use crate::image::pull::{Wanted, obtain, store_name, top_descriptor};
use crate::image::reference::Reference;
use crate::image::rootless::Rootless;
use crate::image::source::Image;
use crate::image::store::bundles::Bundle;
use crate::image::store::layers::{Layer, layer_name};
use crate::image::store::{Store, upkeep};
use crate::image::unpack::xattr::read_ours;
use crate::image::unpack::{Owners, Range};
use crate::root::Root;
use crate::sys::fs::fsetxattr;
use crate::sys::mount::{attr, move_mount};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rootfs {
    #[default]
    Overlay,
    Copy,
    Ro,
    Mount,
}

pub fn bundle(global: &Global, options: &BundleOptions) -> Result<Vec<u8>> {
    let overrides = options.overrides();
    let limits = Limits::new(&options.limits)?;
    let rootless = global.rootless.as_ref();
    let (uids, gids) = options.id_maps(rootless)?;
    let owners = match rootless {
        Some(rootless) if rootless.is_single() => Owners::Squashed,
        // Inside of the namespace they are the image's.
        Some(_) => Owners::Kept,
        None if uids.is_empty() => Owners::Kept,
        None => Owners::Mapped { uids: uids.clone(), gids: gids.clone() },
    };
    let binds = volumes::of_user(&options.volume)?;
    let store = global.store()?;
    place::look(&store, &options.directory, options.force)?;
    upkeep::start(&store)?;
    let reference = global.reference(&options.reference)?;
    let progress = global.progress();
    let wanted = Wanted {
        reference: &reference,
        platform: options.platform.as_ref(),
        policy: options.pull,
        expect_digest: options.expect_digest.as_ref(),
        limits: &limits,
        devices: options.devices,
        jobs: options.jobs,
    };
    let mut place = None;
    let mut converted = Converted::default();
    let mut layers = Vec::new();
    let image = obtain(global, &store, &progress, &wanted, |fetch, image| {
        converted = convert(&image.config_bytes, &config_name(image), &overrides)?;
        if options.rootfs != Rootfs::Copy {
            overlay::check_depth(image.found.manifest.layers.len())?;
            fetch.into_store(image)?;
            layers = lowers(fetch, image)?;
            return overlay::check_depth(layers.len());
        }
        let place = match &place {
            Some(place) => place,
            None => place.insert(Place::make(&store, &options.directory, options.force)?),
        };
        record(&store, place, &reference, image, &[])?;
        place.remove("rootfs")?;
        fetch.into_root(image, &place.directory("rootfs", 0o755)?, owners.clone())
    })?;
    for warning in &converted.warnings {
        progress.say(warning);
    }
    let mut place = match place {
        Some(place) => place,
        None => Place::make(&store, &options.directory, options.force)?,
    };
    let mut bundle = record(&store, &place, &reference, &image, &layers)?;
    if let Reference::Registry(_) = &reference {
        store.put_ref(&store_name(&reference)?, &top_descriptor(&image))?;
    }

    let paths = layers.iter().map(Layer::fs).collect();
    let mut root = LazyRoot { paths, user_xattr: rootless.is_some(), root: None };
    if options.rootfs == Rootfs::Copy {
        root.paths.push(place.path().join("rootfs"));
    }
    let user = match converted.user.is_empty() {
        true => user::User::default(),
        false => user::find(&converted.user, root.get()?)?,
    };
    let binds = volumes::make(&place, &converted.volumes, binds, &owners, &limits.unpack, || root.get())?;
    drop(root);
    let lowers = match options.rootfs {
        Rootfs::Copy => Vec::new(),
        rootfs => overlay_directories(&place, rootfs, &layers, &owners, &binds)?,
    };
    if let (Owners::Mapped { .. }, Some((_, gid))) = (&owners, owners.of(0, 0)?) {
        place.let_through(gid)?;
    }
    let is_overlay = matches!(options.rootfs, Rootfs::Overlay | Rootfs::Ro);
    let config = config::config(&Parts {
        converted: &converted,
        user: &user,
        architecture: &image.config.platform.architecture,
        hostname: &hostname(place.path()),
        overlay: is_overlay.then(|| Overlay {
            store: store.path().display().to_string(),
            lowers: lowers.clone(),
            writable: options.rootfs == Rootfs::Overlay,
        }),
        read_only: options.rootfs == Rootfs::Ro,
        binds,
        uids: &uids,
        gids: &gids,
        rootless: rootless.is_some(),
    });
    if options.rootfs == Rootfs::Mount {
        bundle.mounted = true;
        store.put_bundle(&bundle)?;
        mount(&mut place, &lowers)?;
    }
    let path = place.finish(&config)?;
    drop(progress);
    if !global.json {
        return Ok(format!("{}\n", path.display()).into_bytes());
    }
    let text = json!({"bundle": path, "name": bundle.reference, "digest": image.top.digest.to_string(),
        "manifestDigest": image.found.digest.to_string(), "platform": image.config.platform.to_string()});
    Ok(format!("{text:#}\n").into_bytes())
}

impl BundleOptions {
    fn overrides(&self) -> Overrides {
        Overrides {
            user: self.user.clone(),
            env: self.env.clone(),
            workdir: self.workdir.clone(),
            entrypoint: self.entrypoint.clone(),
            args: self.args.clone(),
            annotations: self.annotations,
        }
    }

    /// The one for the other if only one is there.
    fn id_maps(&self, rootless: Option<&Rootless>) -> Result<(Vec<Range>, Vec<Range>)> {
        if let Some(Rootless { uids, gids }) = rootless {
            if self.rootfs == Rootfs::Mount {
                return Err(Error::new("--rootfs=mount: only root can mount on the host"));
            }
            if !self.uid_map.is_empty() || !self.gid_map.is_empty() {
                return Err(Error::new("--uid-map, --gid-map: only root can choose, a user has his own ids"));
            }
            return Ok((uids.clone(), gids.clone()));
        }
        let (uids, gids) = match (&self.uid_map[..], &self.gid_map[..]) {
            ([], []) => return Ok(Default::default()),
            (uids, []) => (uids, uids),
            ([], gids) => (gids, gids),
            maps => maps,
        };
        if self.rootfs == Rootfs::Mount {
            let error = Error::new("--uid-map, --gid-map: an overlay on the host shows the image's own ids");
            return Err(error.with_way_out("Take --rootfs=overlay or --rootfs=copy."));
        }
        for (option, ranges) in [("--uid-map", uids), ("--gid-map", gids)] {
            let overlap = |a: u32, b: u32, n: u32, m: u32| {
                u64::from(a) < u64::from(b) + u64::from(m) && u64::from(b) < u64::from(a) + u64::from(n)
            };
            for (i, a) in ranges.iter().enumerate() {
                if ranges[..i].iter().any(|b| {
                    overlap(a.inside, b.inside, a.count, b.count)
                        || overlap(a.outside, b.outside, a.count, b.count)
                }) {
                    return Err(Error::new(format!("{option}: the ranges overlap")));
                }
            }
            if !ranges.iter().any(|range| range.inside == 0) {
                return Err(Error::new(format!("{option}: id 0 of the container is not mapped")));
            }
        }
        Ok((uids.to_vec(), gids.to_vec()))
    }
}

/// `CONTAINER:HOST:SIZE`.
pub fn parse_range(text: &str) -> Result<Range, String> {
    let numbers: Option<Vec<u32>> = text.split(':').map(|number| number.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[inside, outside, count])
            if count > 0 && inside.checked_add(count).is_some() && outside.checked_add(count).is_some() =>
        {
            Ok(Range { inside, outside, count })
        }
        _ => Err("must be CONTAINER:HOST:SIZE, three numbers within 32 bits".to_owned()),
    }
}

fn config_name(image: &Image) -> String {
    format!("config {}", image.found.manifest.config.digest)
}

/// The store's layers for an overlay, the topmost first.
fn lowers(fetch: &Fetch<'_>, image: &Image) -> Result<Vec<Layer>> {
    let ids = &image.config.diff_ids;
    let layer = |diff_id| {
        let name = layer_name(diff_id, fetch.variant());
        fetch.store.layer(&name)?.ok_or_else(|| Error::new(format!("layer {name}: it is gone")))
    };
    let layers = ids.iter().map(layer).collect::<Result<Vec<_>>>()?;
    fixup::lowers(fetch.store, ids, &layers, fetch.variant(), fetch.rootless.is_some())
}

/// Before anything is in it, so that a prune knows.
fn record(
    store: &Store,
    place: &Place<'_>,
    reference: &Reference,
    image: &Image,
    layers: &[Layer],
) -> Result<Bundle> {
    let mut bundle = Bundle::new(place.path(), store_name(reference)?, manifest_descriptor(&image.found))?;
    bundle.layers = layers.iter().map(|layer| layer.name.clone()).collect();
    store.put_bundle(&bundle)?;
    Ok(bundle)
}

/// Makes what the bundle has of the overlay itself, and gives the lower directories as config.json has them.
fn overlay_directories(
    place: &Place<'_>,
    rootfs: Rootfs,
    layers: &[Layer],
    owners: &Owners,
    binds: &[Bind],
) -> Result<Vec<String>> {
    place.directory("rootfs", 0o755)?;
    let text = |layer: &Layer| layer.fs().to_str().map(str::to_owned);
    let lowers: Option<Vec<_>> = layers.iter().map(text).collect();
    let mut lowers = lowers.ok_or_else(|| Error::new("the store's path must be UTF-8"))?;
    if rootfs == Rootfs::Ro {
        mount_points(place, binds)?;
        lowers.push("points".to_owned());
    }
    let least = if rootfs == Rootfs::Ro { 2 } else { 1 };
    if lowers.len() < least {
        // An overlay wants something to lie over.
        place.directory("empty", 0o755)?;
        lowers.push(if rootfs == Rootfs::Mount {
            place.path().join("empty").display().to_string()
        } else {
            "empty".to_owned()
        });
    }
    if rootfs != Rootfs::Ro {
        let upper = place.directory("upper", 0o755)?;
        place.directory("work", 0o700)?;
        if let Some(top) = layers.first() {
            let top: OwnedFd = File::open(top.fs()).context(|| "open the topmost layer")?.into();
            imitate(&top, &upper, owners).context(|| "give upper the mode and owner of the image's root")?;
        }
    }
    overlay::check_depth(lowers.len())?;
    Ok(lowers)
}

/// What the image has no place for a mount for is in the lowest layer: nobody can make it later.
fn mount_points(place: &Place<'_>, binds: &[Bind]) -> Result<()> {
    let root = Root::new(place.directory("points", 0o755)?);
    for point in config::mount_points(binds) {
        let source =
            binds.iter().find(|bind| bind.destination == point).map(|bind| place.path().join(&bind.source));
        match source.is_some_and(|source| source.is_file()) {
            true => root.create_file(Path::new(point))?,
            false => root.create_dir_all(Path::new(point))?,
        };
    }
    Ok(())
}

/// The merged root is as the upper's.
fn imitate(from: &OwnedFd, to: &OwnedFd, owners: &Owners) -> Result<()> {
    let stat = fstat(from)?;
    let (uid, gid) = owners.of(stat.st_uid, stat.st_gid)?.unwrap_or((stat.st_uid, stat.st_gid));
    fchown(to, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    read_ours(from)?.iter().try_for_each(|(name, value)| Ok(fsetxattr(to, name, value)?))
}

fn mount(place: &mut Place<'_>, lowers: &[String]) -> Result<()> {
    let lowers: Vec<_> = lowers.iter().map(PathBuf::from).collect();
    let (upper, work) = (place.path().join("upper"), place.path().join("work"));
    let mounted = overlay::mount(&lowers, Some((&upper, &work)), 0, false)?;
    let rootfs = place.path().join("rootfs");
    let what = || format!("mount the overlay on {}", rootfs.display());
    move_mount(mounted, File::open(&rootfs).context(what)?).context(what)?;
    place.mounted = true;
    Ok(())
}

/// The image's files as its container will see them, if somebody wants to look.
struct LazyRoot {
    /// The topmost first; one is the directory itself.
    paths: Vec<PathBuf>,
    user_xattr: bool,
    root: Option<Root>,
}

impl LazyRoot {
    fn get(&mut self) -> Result<&Root> {
        let fd = match (&self.root, &self.paths[..]) {
            (Some(_), _) => None,
            (None, []) => Some(overlay_of_nothing()?),
            (None, [only]) => Some(File::open(only).context(|| format!("open {}", only.display()))?.into()),
            (None, lowers) => {
                let attributes = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
                Some(overlay::mount(lowers, None, attributes, self.user_xattr)?)
            }
        };
        match fd {
            Some(fd) => Ok(self.root.insert(Root::new(fd))),
            None => self.root.as_ref().ok_or_else(|| Error::new("there is no root")),
        }
    }
}

/// For an image without layers.
fn overlay_of_nothing() -> Result<OwnedFd> {
    use crate::sys::mount::{fsconfig_create, fsmount, fsopen};
    let fs = fsopen("tmpfs")?;
    fsconfig_create(fs.as_fd())?;
    Ok(fsmount(fs.as_fd(), attr::RDONLY)?)
}

/// The bundle that a path names, as its record has it.
pub fn find(store: &Store, path: &Path) -> Result<Bundle> {
    let what = || format!("find bundle {}", path.display());
    let real = path.canonicalize().context(what)?;
    store.get_bundle(&real)?.ok_or_else(|| {
        Error::of_kind(crate::error::Kind::NotFound, format!("{}: the store knows of no such bundle", what()))
    })
}
