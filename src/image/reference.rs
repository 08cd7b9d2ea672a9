//! How an image is named: `name[:tag][@sha256:...]` in a registry, `oci:PATH[:tag]`, `oci-archive:FILE[:tag]`,
//! `docker-archive:FILE[:tag]`, or just the path of one of these.
//!
//! A name follows the grammar of <https://github.com/distribution/reference>, short names docker.io's rules there:
//! `alpine` is `docker.io/library/alpine:latest`. A path cannot hold a colon, as elsewhere.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result};
use crate::image::digest::Digest;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Registry(Named),
    /// A directory in the form of the image layout; `name` is its org.opencontainers.image.ref.name.
    Layout {
        path: PathBuf,
        name: Option<String>,
    },
    /// The same in a tar file.
    OciArchive {
        path: PathBuf,
        name: Option<String>,
    },
    /// What `docker save` writes; `name` is one of its RepoTags.
    DockerArchive {
        path: PathBuf,
        name: Option<String>,
    },
}

/// An image, or with the tag left out of mind a repository, in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// `docker.io`, `localhost:5000`, `[::1]:5000`; in lower case.
    pub registry: String,
    /// `library/alpine`.
    pub repository: String,
    pub tag: Option<String>,
    /// If both are there the digest counts, and the tag is for people.
    pub digest: Option<Digest>,
}

const DOCKER_HUB: &str = "docker.io";
const MOST_OF_PATH: usize = 255; // characters
const MOST_OF_TAG: usize = 128; // characters

impl Reference {
    /// What the user wrote. An archive of an image, or a directory that is an image layout, is found by its path, and
    /// all that looks like a path is one.
    pub fn find(text: &str) -> Result<Self> {
        let path = Path::new(text);
        let is_path =
            ["/", "./", "../"].iter().any(|start| text.starts_with(start)) || [".", ".."].contains(&text);
        if !text.is_empty() && path.join("oci-layout").is_file() {
            return Ok(Self::Layout { path: path.to_owned(), name: None });
        }
        let what = || format!("find image {text}");
        if path.is_file() {
            let kind = archive_kind(&File::open(path).context(what)?).context(what)?;
            match kind {
                Some(Archive::Oci) => return Ok(Self::OciArchive { path: path.to_owned(), name: None }),
                Some(Archive::Docker) => {
                    return Ok(Self::DockerArchive { path: path.to_owned(), name: None });
                }
                None if is_path || text.contains(".tar") => {
                    let way_out =
                        "If it is a compressed one, say which: docker-archive:FILE or oci-archive:FILE.";
                    let message = format!("{}: the file is no tar archive of an image", what());
                    return Err(Error::new(message).with_way_out(way_out));
                }
                // A file that has an image's name by chance.
                None => (),
            }
        }
        if !is_path {
            return Self::parse(text);
        }
        let why = if path.exists() { "there is no oci-layout in it" } else { "there is no such file" };
        let way_out = "With a tag it is oci:PATH:TAG or docker-archive:FILE:TAG.";
        Err(Error::of_kind(Kind::NotFound, format!("{}: {why}", what())).with_way_out(way_out))
    }

    /// The same without a look at the files.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((kind @ ("oci" | "oci-archive" | "docker-archive"), rest)) = text.split_once(':') else {
            return Named::parse(text).map(Self::Registry);
        };
        let (path, name) = rest.split_once(':').map_or((rest, None), |(path, name)| (path, Some(name)));
        if path.is_empty() {
            return Err(Error::new(format!("reference {text:?}: a path is missing after {kind}:")));
        }
        if let Some(at) = name.and_then(not_a_ref_name) {
            return Err(wrong(text, text.len() - name.map_or(0, str::len) + at, "not part of a tag"));
        }
        let (path, name) = (path.into(), name.map(str::to_owned));
        Ok(match kind {
            "oci" => Self::Layout { path, name },
            "oci-archive" => Self::OciArchive { path, name },
            _ => Self::DockerArchive { path, name },
        })
    }
}

impl Named {
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::new("the reference of an image is empty"));
        }
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::new(format!("reference {text:?}: an id is no name"))
                .with_way_out(format!("A digest comes after one: NAME@sha256:{text}")));
        }
        let (name_and_tag, digest) = text.split_once('@').map_or((text, None), |(name, d)| (name, Some(d)));
        let digest_at = name_and_tag.len() + 1;
        let digest = digest
            .map(|digest| {
                Digest::parse(digest).map_err(|why| wrong(text, digest_at, format!("the digest {why}")))
            })
            .transpose()?;
        let (registry, path_and_tag) = split_registry(name_and_tag);
        let path_at = name_and_tag.len() - path_and_tag.len();
        if let Some(registry) = registry {
            check_registry(registry).map_err(|(at, why)| wrong(text, at, why))?;
        }
        let last = path_and_tag.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match path_and_tag[last..].find(':') {
            Some(colon) => (&path_and_tag[..last + colon], Some(&path_and_tag[last + colon + 1..])),
            None => (path_and_tag, None),
        };
        check_path(path).map_err(|(at, why)| wrong(text, path_at + at, why))?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(|(at, why)| wrong(text, path_at + path.len() + 1 + at, why))?;
        }
        let registry = match registry {
            Some(registry) if registry != "index.docker.io" => registry.to_ascii_lowercase(),
            _ => DOCKER_HUB.to_owned(),
        };
        let official = registry == DOCKER_HUB && !path.contains('/');
        let tag = tag.or(if digest.is_none() { Some("latest") } else { None });
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        if repository.len() > MOST_OF_PATH {
            let why = format!("the name has more than {MOST_OF_PATH} characters with library/ before it");
            return Err(wrong(text, path_at, why));
        }
        Ok(Self { repository, registry, tag: tag.map(str::to_owned), digest })
    }

    /// A repository, without tag or digest.
    pub fn parse_repository(text: &str) -> Result<Self> {
        let named = Self::parse(text)?;
        let (_, path) = split_registry(text);
        if named.digest.is_some() || path.contains(':') {
            return Err(Error::new(format!("repository {text:?}: a repository has no tag and no digest")));
        }
        Ok(Self { tag: None, ..named })
    }

    /// What the manifest is asked for by.
    pub fn tag_or_digest(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".to_owned()),
        }
    }

    /// The repository with its registry.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path, name) = match self {
            Self::Registry(named) => return named.fmt(f),
            Self::Layout { path, name } => ("oci", path, name),
            Self::OciArchive { path, name } => ("oci-archive", path, name),
            Self::DockerArchive { path, name } => ("docker-archive", path, name),
        };
        let colon = if name.is_some() { ":" } else { "" };
        write!(f, "{kind}:{}{colon}{}", path.display(), name.as_deref().unwrap_or_default())
    }
}

fn wrong(text: &str, at: usize, why: impl fmt::Display) -> Error {
    let position = text.get(..at).map_or(at, |before| before.chars().count()) + 1;
    Error::new(format!("reference {text:?}, character {position}: {why}"))
}

/// Only what cannot be the first part of a docker.io name is a registry.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (Some(first), rest),
        _ => (None, name),
    }
}

type Wrong = (usize, String);

/// `host[:port]`, for commands that take a registry, too.
pub fn check_registry(registry: &str) -> Result<(), Wrong> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']').ok_or((0, "the bracket of an IPv6 address is not closed".to_owned()))?;
            if rest[..end].parse::<std::net::Ipv6Addr>().is_err() {
                return Err((1, "not an IPv6 address".to_owned()));
            }
            (end + 2, registry[end + 2..].strip_prefix(':'))
        }
        None => registry.find(':').map_or((registry.len(), None), |at| (at, Some(&registry[at + 1..]))),
    };
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return Err((host + 1, format!("the port must be a number up to 65535, not {port:?}")));
    }
    if registry.starts_with('[') {
        let rest = registry.len() - host - port.map_or(0, |port| port.len() + 1);
        return if rest == 0 { Ok(()) } else { Err((host, "a port must follow the address".to_owned())) };
    }
    let mut at = 0;
    for label in registry[..host].split('.') {
        if let Some((i, c)) = label.char_indices().find(|(_, c)| !c.is_ascii_alphanumeric() && *c != '-') {
            return Err((at + i, format!("{c:?} cannot be in the name of a registry")));
        }
        if label.is_empty() || label.starts_with('-') {
            return Err((at, "a letter or digit is missing in the name of the registry".to_owned()));
        }
        if label.ends_with('-') {
            return Err((at + label.len() - 1, "'-' cannot end a part of a registry's name".to_owned()));
        }
        at += label.len() + 1;
    }
    Ok(())
}

/// `[a-z0-9]+` with `.`, `_`, `__` or dashes between, and slashes between these.
fn check_path(path: &str) -> Result<(), Wrong> {
    if path.len() > MOST_OF_PATH {
        return Err((MOST_OF_PATH, format!("the name has more than {MOST_OF_PATH} characters")));
    }
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some((at, c)) = path.char_indices().find(|(_, c)| !letter(*c) && !"._-/".contains(*c)) {
        let why =
            if c.is_uppercase() { "a name is in lower case, but this is" } else { "a name cannot hold" };
        return Err((at, format!("{why} {c:?}")));
    }
    let mut at = 0;
    for component in path.split('/') {
        if component.is_empty() {
            return Err((at, "a part of the name is empty".to_owned()));
        }
        if !component.starts_with(letter) {
            return Err((at, "a part of a name begins with a letter or digit".to_owned()));
        }
        if !component.ends_with(letter) {
            return Err((
                at + component.len() - 1,
                "a part of a name ends with a letter or digit".to_owned(),
            ));
        }
        let mut from = 0;
        for separator in component.split(letter).filter(|separator| !separator.is_empty()) {
            from += component[from..].find(separator).unwrap_or(0);
            if !matches!(separator, "." | "_" | "__") && separator.contains(['.', '_']) {
                return Err((
                    at + from,
                    format!("{separator:?} cannot separate letters; '.', '_', '__' or '-' can"),
                ));
            }
            from += separator.len();
        }
        at += component.len() + 1;
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), Wrong> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if tag.is_empty() {
        return Err((0, "a tag is missing after the colon".to_owned()));
    }
    if let Some((at, c)) = tag.char_indices().find(|(at, c)| !(word(*c) || *at > 0 && ".-".contains(*c))) {
        let why = if ".-".contains(c) { "a tag cannot begin with" } else { "a tag cannot hold" };
        return Err((at, format!("{why} {c:?}")));
    }
    if tag.len() > MOST_OF_TAG {
        return Err((MOST_OF_TAG, format!("the tag has more than {MOST_OF_TAG} characters")));
    }
    Ok(())
}

/// Where a layout's `org.opencontainers.image.ref.name` breaks its grammar.
fn not_a_ref_name(name: &str) -> Option<usize> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:@/+".contains(c);
    match name.char_indices().find(|(_, c)| !allowed(*c)) {
        Some((at, _)) => Some(at),
        None => name.is_empty().then_some(0),
    }
}

enum Archive {
    Oci,
    Docker,
}

/// By the names of its entries; nothing but the headers is read.
fn archive_kind(file: &File) -> Result<Option<Archive>> {
    const MOST: usize = 10_000; // entries
    let (mut at, mut found) = (0, None);
    for _ in 0..MOST {
        let mut header = [0; 512];
        let read = file.read_at(&mut header, at)?;
        // The magic is not there in old archives, and in no image's.
        if read < header.len() || &header[257..262] != b"ustar" {
            break;
        }
        let name = header[..100].split(|b| *b == 0).next().unwrap_or_default();
        match name.strip_prefix(b"./").unwrap_or(name) {
            // Newer ones of Docker are both.
            b"oci-layout" => return Ok(Some(Archive::Oci)),
            b"manifest.json" => found = Some(Archive::Docker),
            _ => (),
        }
        let octal = std::str::from_utf8(&header[124..136]).unwrap_or_default();
        let Ok(size) = u64::from_str_radix(octal.trim_matches(['\0', ' ']), 8) else { break };
        at += 512 + size.next_multiple_of(512);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_name_is_expanded_as_docker_does() {
        let digest = format!("alpine@sha256:{HEX}");
        let both = format!("localhost:5000/a/b:v1@sha256:{HEX}");
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/user/app", "docker.io/user/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("ghcr.io/a/b/c__d.e--f_g:_x.Y-z", "ghcr.io/a/b/c__d.e--f_g:_x.Y-z"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[2001:db8::1]/app", "[2001:db8::1]/app:latest"),
            ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app:1"),
            (&digest, &format!("docker.io/library/alpine@sha256:{HEX}")),
            (&both, &both),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), full, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_name_is_said_with_its_place() {
        let long = "a/".repeat(128);
        for (text, at, why) in [
            ("user/App", 6, "a name is in lower case, but this is 'A'"),
            (&"a".repeat(250), 1, "the name has more than 255 characters with library/ before it"),
            ("Registry/app", 1, "a name is in lower case, but this is 'R'"),
            ("alpine:", 8, "a tag is missing after the colon"),
            ("alpine:-1", 8, "a tag cannot begin with '-'"),
            ("alpine:a+b", 9, "a tag cannot hold '+'"),
            ("alpine:a:b", 9, "a tag cannot hold ':'"),
            ("a//b", 3, "a part of the name is empty"),
            ("a/", 3, "a part of the name is empty"),
            ("a___b", 2, "\"___\" cannot separate letters; '.', '_', '__' or '-' can"),
            ("x.y/ab/a-a/a..b", 13, "\"..\" cannot separate letters; '.', '_', '__' or '-' can"),
            ("a/-b", 3, "a part of a name begins with a letter or digit"),
            ("a/b-", 4, "a part of a name ends with a letter or digit"),
            ("a/b/../c", 5, "a part of a name begins with a letter or digit"),
            ("\u{e9}\u{e9}", 1, "a name cannot hold '\u{e9}'"),
            ("a b", 2, "a name cannot hold ' '"),
            ("https://ghcr.io/a", 7, "the port must be a number up to 65535, not \"\""),
            ("ghcr.io:70000/a", 9, "the port must be a number up to 65535, not \"70000\""),
            ("ghcr..io/a", 6, "a letter or digit is missing in the name of the registry"),
            ("ghcr-.io/a", 5, "'-' cannot end a part of a registry's name"),
            ("gh_cr.io/a", 3, "'_' cannot be in the name of a registry"),
            ("[::g]:1/a", 2, "not an IPv6 address"),
            ("[::1]x:1/a", 6, "a port must follow the address"),
            (&long, 256, "the name has more than 255 characters"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert_eq!(error, format!("reference {text:?}, character {at}: {why}"));
        }
        let error = Reference::parse("alpine@sha256:../../etc/passwd").unwrap_err().to_string();
        assert!(error.contains("character 8: the digest must be sha256: and 64"), "{error}");
        assert!(Reference::parse("").is_err());
        assert!(Reference::parse(HEX).unwrap_err().to_string().contains("an id is no name"));
        assert!(Reference::parse(&format!("a:{}", "x".repeat(129))).is_err());
    }

    #[test]
    fn a_repository_has_no_tag() {
        assert_eq!(Named::parse_repository("alpine").unwrap().to_string(), "docker.io/library/alpine");
        assert_eq!(Named::parse_repository("localhost:5000/a").unwrap().to_string(), "localhost:5000/a");
        for text in ["alpine:3", "localhost:5000/a:1", "localhost:5000", &format!("a@sha256:{HEX}")] {
            assert!(Named::parse_repository(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_are_named_by_their_kind() {
        let layout = |path: &str, name: Option<&str>| Reference::Layout {
            path: path.into(),
            name: name.map(Into::into),
        };
        assert_eq!(Reference::parse("oci:/a/b").unwrap(), layout("/a/b", None));
        assert_eq!(Reference::parse("oci:b:v1").unwrap(), layout("b", Some("v1")));
        assert_eq!(
            Reference::parse("docker-archive:x.tar:busybox:latest").unwrap().to_string(),
            "docker-archive:x.tar:busybox:latest"
        );
        assert_eq!(Reference::parse("oci-archive:x.tar").unwrap().to_string(), "oci-archive:x.tar");
        for text in ["oci:", "oci::v1", "oci:x:", "docker-archive:", "oci:x:a b"] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_existing_path_is_found() {
        let dir = std::env::temp_dir().join(format!("keel-image-reference-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("layout")).unwrap();
        std::fs::write(dir.join("layout/oci-layout"), "{}").unwrap();
        let tar = |name: &str, second: &str| {
            let mut bytes = Vec::new();
            for (name, size) in [("blobs/x", 3), (second, 0)] {
                let mut header = [0; 512];
                header[..name.len()].copy_from_slice(name.as_bytes());
                header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
                header[257..262].copy_from_slice(b"ustar");
                bytes.extend(header);
                bytes.resize(bytes.len() + size * 512 / 3, 0);
            }
            std::fs::write(dir.join(name), bytes).unwrap();
        };
        tar("oci.tar", "./oci-layout");
        tar("docker.tar", "manifest.json");
        tar("other.tar", "etc/passwd");
        let find = |name: &str| Reference::find(dir.join(name).to_str().unwrap());
        assert_eq!(find("layout").unwrap(), Reference::Layout { path: dir.join("layout"), name: None });
        assert_eq!(find("oci.tar").unwrap(), Reference::OciArchive { path: dir.join("oci.tar"), name: None });
        assert_eq!(
            find("docker.tar").unwrap(),
            Reference::DockerArchive { path: dir.join("docker.tar"), name: None }
        );
        assert!(find("other.tar").unwrap_err().to_string().contains("no tar archive of an image"));
        assert_eq!(find("none").unwrap_err().kind(), Kind::NotFound);
        assert!(find("").unwrap_err().to_string().contains("no oci-layout"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
