//! The image's `User`, with the names that its own /etc/passwd and /etc/group know.
//!
//! Both files are the image's, so they are opened inside of its root, as regular files, and only so much of them is
//! read. What looks like a number is one: a number that no id can have is never taken for a name (CVE-2026-46680).
//!
//! <https://github.com/opencontainers/image-spec/blob/main/conversion.md#configuser>

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};

use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::brief;
use crate::root::Root;

const MOST: u64 = 10 << 20; // bytes of passwd or group
/// NGROUPS_MAX.
const MOST_GROUPS: usize = 65536;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq)]
enum Id<'t> {
    Number(u32),
    Name(&'t str),
}

/// `user[:group]`, each a number or a name. The files are read only if they are needed.
pub fn find(text: &str, root: &Root) -> Result<User> {
    let what = || format!("find user {:?}", brief(text));
    if text.is_empty() {
        return Ok(User::default());
    }
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let user = id(user).context(what)?;
    let group = group.filter(|group| !group.is_empty()).map(id).transpose().context(what)?;
    let mut found = User::default();
    let mut name = None;
    match user {
        Id::Number(uid) => {
            found.uid = uid;
            if group.is_none() {
                // Without an entry it is root's group, as elsewhere.
                let passwd = read(root, "/etc/passwd").context(what)?.unwrap_or_default();
                found.gid = entries(&passwd).find(|entry| entry.id == uid).map_or(0, |entry| entry.group);
            }
        }
        Id::Name(wanted) => {
            let passwd = read(root, "/etc/passwd").context(what)?;
            let passwd = passwd.ok_or_else(|| missing("the image has no /etc/passwd")).context(what)?;
            let entry = entries(&passwd).find(|entry| entry.name == wanted);
            let entry = entry.ok_or_else(|| missing("it is not in the image's /etc/passwd")).context(what)?;
            (found.uid, found.gid) = (entry.id, entry.group);
            name = Some(wanted);
        }
    }
    match group {
        Some(Id::Number(gid)) => found.gid = gid,
        Some(Id::Name(wanted)) => {
            let file = read(root, "/etc/group").context(what)?;
            let file = file.ok_or_else(|| missing("the image has no /etc/group")).context(what)?;
            let gid = groups(&file).find(|group| group.name == wanted).map(|group| group.gid);
            found.gid =
                gid.ok_or_else(|| missing("the group is not in the image's /etc/group")).context(what)?;
        }
        // As the conversion rules have it: only for a name, and only if no group is named.
        None => {
            if let Some(name) = name {
                let file = read(root, "/etc/group").context(what)?.unwrap_or_default();
                found.additional_gids = memberships(&file, name, found.gid).context(what)?;
            }
        }
    }
    Ok(found)
}

fn missing(why: &str) -> Error {
    Error::of_kind(Kind::NotFound, why).with_way_out("Name a user that it has, or a number, with --user.")
}

fn id(text: &str) -> Result<Id<'_>> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() {
        return Err(Error::new("a user or group is missing"));
    }
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(Id::Name(text));
    }
    match text.parse::<i32>() {
        Ok(number) if number >= 0 && !text.starts_with(['+', '-']) => Ok(Id::Number(number as u32)),
        _ => Err(Error::new(format!("{:?} is out of range: ids are from 0 to {}", brief(text), i32::MAX))),
    }
}

struct Entry<'t> {
    name: &'t str,
    id: u32,
    group: u32,
}

/// The lines of `passwd(5)` that are whole.
fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, id, group) = (fields.next()?, fields.nth(1)?, fields.next()?);
        Some(Entry { name, id: id.parse().ok()?, group: group.parse().ok()? })
    })
}

struct Group<'t> {
    name: &'t str,
    gid: u32,
    members: &'t str,
}

/// The lines of `group(5)` that are whole.
fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn memberships(file: &str, user: &str, own: u32) -> Result<Vec<u32>> {
    let of_user = groups(file).filter(|group| group.members.split(',').any(|member| member == user));
    let mut gids: Vec<_> = of_user.map(|group| group.gid).filter(|gid| *gid != own).collect();
    gids.sort_unstable();
    gids.dedup();
    if gids.len() > MOST_GROUPS {
        let message = format!("it is in {} groups, more than {MOST_GROUPS}", gids.len());
        return Err(Error::of_kind(Kind::Limit, message).with_way_out("Name one: --user USER:GROUP."));
    }
    Ok(gids)
}

/// None if there is no such file in the image.
fn read(root: &Root, path: &str) -> Result<Option<String>> {
    let what = || format!("read the image's {path}");
    // A pipe would keep us waiting.
    let file = match root.open(Path::new(path), libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
        file => file.context(what)?,
    };
    if SFlag::from_bits_truncate(fstat(&file).context(what)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(Error::of_kind(Kind::Integrity, format!("{}: it is no regular file", what())));
    }
    let mut bytes = Vec::new();
    File::from(file).take(MOST + 1).read_to_end(&mut bytes).context(what)?;
    if bytes.len() as u64 > MOST {
        return Err(Error::of_kind(Kind::Limit, format!("{}: it is larger than {MOST} bytes", what())));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    struct Image(PathBuf);

    impl Image {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("keel-user-{}-{name}", std::process::id()));
            fs::create_dir_all(path.join("etc")).unwrap();
            fs::write(
                path.join("etc/passwd"),
                "root:x:0:0::/root:/bin/sh\nbroken:x\nwww:x:33:34::/:/bin/sh\n1005:x:7:7::/:/bin/sh\n",
            )
            .unwrap();
            fs::write(path.join("etc/group"), "root:x:0:\nwww:x:34:\nlog:x:4:a,www\ndisk:x:6:www,b\n")
                .unwrap();
            Self(path)
        }

        fn find(&self, text: &str) -> Result<(u32, u32, Vec<u32>), String> {
            let root = Root::new(File::open(&self.0).unwrap().into());
            let found = find(text, &root).map_err(|error| error.to_string())?;
            Ok((found.uid, found.gid, found.additional_gids))
        }
    }

    impl Drop for Image {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_user_is_a_number_or_a_name_of_the_image() {
        let image = Image::new("names");
        for (text, uid, gid, groups) in [
            ("", 0, 0, vec![]),
            ("0", 0, 0, vec![]),
            ("www", 33, 34, vec![4, 6]),
            ("33", 33, 34, vec![]),
            ("1005", 1005, 0, vec![]),
            ("www:log", 33, 4, vec![]),
            ("www:1000", 33, 1000, vec![]),
            ("5:disk", 5, 6, vec![]),
            ("2147483647:0", i32::MAX as u32, 0, vec![]),
        ] {
            assert_eq!(image.find(text), Ok((uid, gid, groups)), "{text}");
        }
    }

    #[test]
    fn what_is_no_user_is_refused_and_never_root() {
        let image = Image::new("refused");
        for (text, why) in [
            ("-1", "out of range"),
            ("+1", "out of range"),
            ("2147483648", "out of range"),
            ("4294967296", "out of range"),
            ("18446744073709551616", "out of range"),
            ("0:4294967296", "out of range"),
            (":5", "a user or group is missing"),
            ("nobody", "it is not in the image's /etc/passwd"),
            ("broken", "it is not in the image's /etc/passwd"),
            ("www:wheel", "the group is not in the image's /etc/group"),
        ] {
            let error = image.find(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_link_to_the_hosts_passwd_stays_in_the_image() {
        let image = Image::new("link");
        let host = image.0.with_extension("host");
        fs::write(&host, "evil:x:0:0::/:/bin/sh\n").unwrap();
        fs::remove_file(image.0.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink(&host, image.0.join("etc/passwd")).unwrap();
        assert!(image.find("evil").unwrap_err().contains("the image has no /etc/passwd"));
        fs::remove_file(image.0.join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&image.0.join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(image.find("evil").unwrap_err().contains("it is no regular file"));
        fs::remove_file(&host).unwrap();
    }

    #[test]
    fn as_many_groups_as_the_kernel_takes() {
        let image = Image::new("groups");
        let line = |gid: u32| format!("g{gid}:x:{gid}:www\n");
        fs::write(image.0.join("etc/group"), (1..=300_000).map(line).collect::<String>()).unwrap();
        let error = image.find("www").unwrap_err();
        assert!(error.ends_with("it is in 299999 groups, more than 65536"), "{error}");
        fs::write(image.0.join("etc/group"), "x".repeat(10 << 20) + "x").unwrap();
        assert!(image.find("www").unwrap_err().ends_with("it is larger than 10485760 bytes"));
    }
}
