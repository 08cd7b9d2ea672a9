//! `/mounts/N/options`: what each option string asks for, as `mount(8)` understands it.
//!
//! An option belongs to one of four: the mount (attributes: `ro`, `nosuid` ..., and with a leading `r` all mounts
//! below it), its propagation (`rslave` ...), the way of mounting (`bind`, `remount`), or the file system, which
//! gets everything else.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#linux-mount-options>,
//! <https://man7.org/linux/man-pages/man8/mount.8.html>

use crate::error::Field;
use crate::spec::Node;
use crate::sys::mount::{Change, attr};

/// The options of one mount, sorted by what they belong to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub way: Way,
    pub attributes: Change,
    /// Applied to the mount and all below it, after `attributes`.
    pub recursive: Change,
    /// Applied one after another: `rslave`, then `rshared` makes a new peer group that still listens.
    pub propagation: Vec<Propagation>,
    pub file_system: Vec<FsOption>,
    pub i_version: IVersion,
    /// `tmpcopyup`, and where it stands.
    pub copy_up: Option<Field>,
    /// `idmap` or, with true, `ridmap`; and where it stands.
    pub id_map: Option<(bool, Field)>,
}

/// How the mount comes about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    #[default]
    New,
    Bind {
        recursive: bool,
    },
    /// Changes what is mounted already: with `bind` the mount only, else its file system too.
    Remount {
        bind: bool,
    },
}

/// An option for the file system, as fsconfig takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct FsOption {
    pub key: String,
    pub value: Option<String>,
    pub field: Field,
}

/// The inode version counter, which the new mount API cannot set.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum IVersion {
    #[default]
    AsIs,
    Count(Field),
    DoNotCount(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE.
    pub kind: u64,
    pub recursive: bool,
}

impl Propagation {
    pub const SLAVE: Self = Self { kind: libc::MS_SLAVE, recursive: true };
    pub const PRIVATE: Self = Self { kind: libc::MS_PRIVATE, recursive: true };

    const KINDS: [(&str, u64); 4] = [
        ("shared", libc::MS_SHARED),
        ("slave", libc::MS_SLAVE),
        ("private", libc::MS_PRIVATE),
        ("unbindable", libc::MS_UNBINDABLE),
    ];

    /// `slave`, `rslave` and so on.
    pub fn named(name: &str) -> Option<Self> {
        let one = |name: &str| Self::KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        match (one(name), name.strip_prefix('r').and_then(one)) {
            (Some(kind), _) => Some(Self { kind, recursive: false }),
            (_, Some(kind)) => Some(Self { kind, recursive: true }),
            _ => None,
        }
    }

    pub fn change(self) -> Change {
        Change { propagation: self.kind, ..Change::default() }
    }
}

/// What an option without a value does.
#[derive(Clone, Copy)]
enum Effect {
    Set(u64),
    Clear(u64),
    /// One of the three exclusive access-time modes, or the end of one.
    Atime(u64),
    NotAtime(u64),
    /// A flag that every file system understands.
    FileSystem,
    Bind,
    Rbind,
    Remount,
    IVersion,
    NoIVersion,
    CopyUp,
    IdMap {
        recursive: bool,
    },
    /// What holds anyway: the defaults; what only the readers of `/etc/fstab` look at; how much a mount writes to
    /// the kernel's log, which mounts by descriptor do not use.
    Nothing,
    /// Mandatory locking: not in the kernel since Linux 5.15.
    Gone,
}

impl Effect {
    /// Whether it is one of the mount itself, which may be given to all mounts below it too.
    fn is_attribute(self) -> bool {
        matches!(self, Self::Set(_) | Self::Clear(_) | Self::Atime(_) | Self::NotAtime(_))
    }
}

const EFFECTS: &[(&str, Effect)] = &[
    ("ro", Effect::Set(attr::RDONLY)),
    ("rw", Effect::Clear(attr::RDONLY)),
    ("nosuid", Effect::Set(attr::NOSUID)),
    ("suid", Effect::Clear(attr::NOSUID)),
    ("nodev", Effect::Set(attr::NODEV)),
    ("dev", Effect::Clear(attr::NODEV)),
    ("noexec", Effect::Set(attr::NOEXEC)),
    ("exec", Effect::Clear(attr::NOEXEC)),
    ("nosymfollow", Effect::Set(attr::NOSYMFOLLOW)),
    ("symfollow", Effect::Clear(attr::NOSYMFOLLOW)),
    ("nodiratime", Effect::Set(attr::NODIRATIME)),
    ("diratime", Effect::Clear(attr::NODIRATIME)),
    ("noatime", Effect::Atime(attr::NOATIME)),
    ("atime", Effect::NotAtime(attr::NOATIME)),
    ("relatime", Effect::Atime(attr::RELATIME)),
    ("norelatime", Effect::NotAtime(attr::RELATIME)),
    ("strictatime", Effect::Atime(attr::STRICTATIME)),
    ("nostrictatime", Effect::NotAtime(attr::STRICTATIME)),
    ("sync", Effect::FileSystem),
    ("async", Effect::FileSystem),
    ("dirsync", Effect::FileSystem),
    ("lazytime", Effect::FileSystem),
    ("nolazytime", Effect::FileSystem),
    ("iversion", Effect::IVersion),
    ("noiversion", Effect::NoIVersion),
    ("bind", Effect::Bind),
    ("rbind", Effect::Rbind),
    ("remount", Effect::Remount),
    ("tmpcopyup", Effect::CopyUp),
    ("idmap", Effect::IdMap { recursive: false }),
    ("ridmap", Effect::IdMap { recursive: true }),
    ("defaults", Effect::Nothing),
    ("silent", Effect::Nothing),
    ("loud", Effect::Nothing),
    ("auto", Effect::Nothing),
    ("noauto", Effect::Nothing),
    ("nouser", Effect::Nothing),
    ("_netdev", Effect::Nothing),
    ("mand", Effect::Gone),
    ("nomand", Effect::Nothing),
];

fn effect(name: &str) -> Option<Effect> {
    EFFECTS.iter().find(|(known, _)| *known == name).map(|(_, effect)| *effect)
}

/// Sorts the options of a mount; what cannot be honoured becomes a problem at its place in the array.
pub fn plan(mount: &Node) -> Options {
    let mut options = Options::default();
    let (mut bind, mut remount) = (None, false);
    for (text, field) in mount.strings("options") {
        for option in split(text) {
            let Some((recursive, effect)) = find(option) else {
                options.other(option, &field, mount);
                continue;
            };
            match effect {
                Effect::Bind => bind = bind.or(Some(false)),
                Effect::Rbind => bind = Some(true),
                Effect::Remount => remount = true,
                Effect::FileSystem => options.push(option, None, &field),
                Effect::IVersion => options.i_version = IVersion::Count(field.clone()),
                Effect::NoIVersion => options.i_version = IVersion::DoNotCount(field.clone()),
                Effect::CopyUp => options.copy_up = Some(field.clone()),
                Effect::IdMap { recursive } => options.id_map = Some((recursive, field.clone())),
                Effect::Nothing => {}
                Effect::Gone => mount
                    .report()
                    .warning(field.clone(), "mandatory locking is gone since Linux 5.15: no effect"),
                _ => apply(effect, if recursive { &mut options.recursive } else { &mut options.attributes }),
            }
        }
    }
    options.way = match (bind, remount) {
        (bind, true) => Way::Remount { bind: bind.is_some() },
        (Some(recursive), false) => Way::Bind { recursive },
        (None, false) => Way::New,
    };
    options.check_way(mount);
    if options.way == Way::New {
        // Nothing is below a new mount yet, and what comes later is not meant.
        let (one, all) = (options.attributes, std::mem::take(&mut options.recursive));
        options.attributes.set = one.set & !all.clear | all.set;
        options.attributes.clear = one.clear & !all.set | all.clear;
    }
    options
}

/// The effect of an option; attributes have a recursive form with a leading `r`.
fn find(option: &str) -> Option<(bool, Effect)> {
    if let Some(effect) = effect(option) {
        return Some((false, effect));
    }
    let effect = effect(option.strip_prefix('r')?)?;
    effect.is_attribute().then_some((true, effect))
}

/// Every option that is not left to the file system, in order.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = EFFECTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let attributes = EFFECTS.iter().filter(|(_, effect)| effect.is_attribute()).map(|(name, _)| name);
    let propagations = Propagation::KINDS.iter().map(|(name, _)| name);
    names.extend(propagations.clone().map(|name| (*name).to_owned()));
    names.extend(attributes.chain(propagations).map(|name| format!("r{name}")));
    names.sort_unstable();
    names
}

/// One string may hold several options, as the string that mount(2) takes. Not those that carry paths or
/// security contexts: a comma belongs to these.
fn split(text: &str) -> Vec<&str> {
    let verbatim = ["lowerdir", "upperdir=", "workdir=", "datadir"].iter().any(|key| text.starts_with(key));
    if verbatim || text.contains('"') {
        return vec![text];
    }
    text.split(',').filter(|option| !option.is_empty()).collect()
}

fn apply(effect: Effect, to: &mut Change) {
    // Each of the access-time modes is chosen by clearing the mask; a clear mask means none was chosen yet.
    let chosen = (to.clear & attr::ATIME != 0).then_some(to.set & attr::ATIME);
    let mut choose = |mode: u64| {
        to.set = to.set & !attr::ATIME | mode;
        to.clear |= attr::ATIME;
    };
    match effect {
        Effect::Set(flag) => {
            to.set |= flag;
            to.clear &= !flag;
        }
        Effect::Clear(flag) => {
            to.set &= !flag;
            to.clear |= flag;
        }
        Effect::Atime(mode) => choose(mode),
        // "Not this one" leaves another mode that was asked for. Without one it is the kernel's default, as for
        // mount(8): norelatime does not mean strictatime.
        Effect::NotAtime(mode) if chosen.is_none_or(|chosen| chosen == mode) => choose(attr::RELATIME),
        _ => {}
    }
}

impl Options {
    fn push(&mut self, key: &str, value: Option<&str>, field: &Field) {
        let (key, value) = (key.to_owned(), value.map(str::to_owned));
        self.file_system.push(FsOption { key, value, field: field.clone() });
    }

    /// An option that is not in the table.
    fn other(&mut self, option: &str, field: &Field, mount: &Node) {
        let (key, value) = option.split_once('=').map_or((option, None), |(key, value)| (key, Some(value)));
        if let Some(propagation) = Propagation::named(option) {
            self.propagation.push(propagation);
        } else if key.starts_with("X-mount.") && key != "X-mount.mkdir" {
            // Unlike the other X- options these change the mount.
            mount.report().problem(field.clone(), format_args!("{key} is not supported"));
        } else if !key.starts_with("X-") && !key.starts_with("x-") && key != "comment" {
            // The quotes keep a comma of an SELinux context from mount(2); fsconfig(2) takes them for a part of it.
            let value =
                value.map(|value| if key.ends_with("context") { value.trim_matches('"') } else { value });
            self.push(key, value, field);
        }
    }

    /// Refuses what the way of mounting leaves no room for.
    fn check_way(&mut self, mount: &Node) {
        let problem = |field: &Field, reason: &str| mount.report().problem(field.clone(), reason);
        if let (Some((_, field)), Way::Remount { .. }) = (&self.id_map, self.way) {
            problem(field, "the ids of what is mounted already cannot be mapped");
        }
        if matches!(self.way, Way::Bind { .. } | Way::Remount { bind: true }) {
            for option in &self.file_system {
                // These two are what a file system does without being told.
                if option.key != "async" && option.key != "nolazytime" {
                    problem(&option.field, "a bind mount cannot change the options of its file system");
                }
            }
            self.file_system.clear();
        }
        if let (IVersion::Count(field), Way::Bind { .. } | Way::Remount { .. })
        | (IVersion::DoNotCount(field), Way::Remount { .. }) = (&self.i_version, self.way)
        {
            problem(field, "the version counter can be set on a new file system only");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    /// The options, and the problems found in them.
    fn planned(options: &[&str]) -> (Options, Vec<String>) {
        let json = serde_json::json!({ "options": options }).to_string();
        let report = Report::default();
        let map = parse(json.as_bytes(), &report).unwrap();
        let options = plan(&Node::root(&map, &report));
        let problems = report.finish().err().map_or(Vec::new(), |e| e.problems().to_vec());
        (options, problems.iter().map(ToString::to_string).collect())
    }

    fn change(set: u64, clear: u64) -> Change {
        Change { set, clear, propagation: 0 }
    }

    #[test]
    fn every_option_of_the_spec_is_known() {
        let table = [
            "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev",
            "nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow ratime",
            "rbind rdev rdiratime relatime remount rexec rnoatime rnodiratime rnoexec rnorelatime rnostrictatime",
            "rnosuid rnosymfollow ro rrelatime rro rrw rstrictatime rsuid rsymfollow rw silent strictatime suid",
            "symfollow sync tmpcopyup idmap ridmap",
        ];
        for name in table.join(" ").split(' ') {
            assert!(find(name).is_some(), "{name}");
        }
        for name in "private rprivate shared rshared slave rslave unbindable runbindable".split(' ') {
            assert!(Propagation::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_last_of_two_opposite_options_counts() {
        for (options, set, clear) in [
            (["ro", "rw"], 0, attr::RDONLY),
            (["rw", "ro"], attr::RDONLY, 0),
            (["nosuid", "noexec"], attr::NOSUID | attr::NOEXEC, 0),
            (["noatime", "relatime"], attr::RELATIME, attr::ATIME),
            (["noatime", "atime"], attr::RELATIME, attr::ATIME),
            (["noatime", "norelatime"], attr::NOATIME, attr::ATIME),
            (["defaults", "norelatime"], attr::RELATIME, attr::ATIME),
            (["strictatime", "atime"], attr::STRICTATIME, attr::ATIME),
            (["strictatime", "nodiratime"], attr::STRICTATIME | attr::NODIRATIME, attr::ATIME),
        ] {
            assert_eq!(planned(&options).0.attributes, change(set, clear), "{options:?}");
        }
    }

    #[test]
    fn a_leading_r_makes_an_attribute_recursive() {
        let (options, problems) =
            planned(&["rbind", "rro", "rnoatime", "rsuid", "rslave", "shared", "nodev"]);
        assert_eq!(options.recursive, change(attr::RDONLY | attr::NOATIME, attr::ATIME | attr::NOSUID));
        assert_eq!(options.attributes, change(attr::NODEV, 0));
        let shared = Propagation { kind: libc::MS_SHARED, recursive: false };
        assert_eq!(options.propagation, [Propagation::SLAVE, shared]);
        assert_eq!(options.way, Way::Bind { recursive: true });
        assert!(problems.is_empty());
    }

    #[test]
    fn recursive_attributes_of_a_new_mount_are_its_own() {
        let options = planned(&["rro", "rw", "noatime", "rrelatime", "nodev"]).0;
        assert_eq!(options.recursive, change(0, 0));
        assert_eq!(options.attributes, change(attr::RDONLY | attr::NODEV, attr::ATIME));
    }

    #[test]
    fn what_mount_does_not_know_goes_to_the_file_system() {
        let label = "context=\"a:s0:c1,c2\"";
        let (options, _) =
            planned(&["mode=755,size=64k", "sync", "x-note", "comment=hi", "lowerdir=/a,b", label]);
        let found: Vec<_> =
            options.file_system.iter().map(|o| (o.key.as_str(), o.value.as_deref())).collect();
        let expected = [
            ("mode", Some("755")),
            ("size", Some("64k")),
            ("sync", None),
            ("lowerdir", Some("/a,b")),
            ("context", Some("a:s0:c1,c2")),
        ];
        assert_eq!(found, expected);
        assert_eq!(options.file_system[1].field.as_str(), "/options/0");
    }

    #[test]
    fn what_cannot_be_honoured_is_a_problem_at_its_place() {
        let bind = "a bind mount cannot change the options of its file system";
        let counter = "the version counter can be set on a new file system only";
        for (options, problem) in [
            (&["bind", "size=1k"][..], Some(format!("/options/1: {bind}"))),
            (&["sync", "rbind"], Some(format!("/options/0: {bind}"))),
            (&["bind", "async", "nolazytime", "noiversion", "silent"], None),
            (&["bind", "iversion"], Some(format!("/options/1: {counter}"))),
            (&["remount", "noiversion"], Some(format!("/options/1: {counter}"))),
            (&["remount", "size=1k"], None),
            (&["bind", "remount", "size=1k"], Some(format!("/options/2: {bind}"))),
            (&["X-mount.owner=1"], Some("/options/0: X-mount.owner is not supported".into())),
            (&["X-mount.mkdir", "mand"], None),
        ] {
            assert_eq!(planned(options).1, Vec::from_iter(problem), "{options:?}");
        }
    }
}
