//! A bundle: the directory that `create` is given, and its config.json.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlink};
use nix::sys::stat::Mode;
use serde_json::{Map, Value};

use crate::error::{Context, Error, Result};
use crate::spec::{Report, parse};

/// Far more than any caller writes; a wrong file (a disk image, /dev/zero) must not fill the memory.
const MAX_CONFIG: u64 = 16 << 20; // bytes

pub struct Bundle {
    /// Absolute, without symbolic links, UTF-8.
    pub dir: PathBuf,
    /// The bytes of config.json, which are frozen into the state directory.
    pub config: Vec<u8>,
    /// config.json, parsed.
    pub spec: Map<String, Value>,
}

impl Bundle {
    /// Reads the bundle in `dir`; keys that config.json has twice go to `report`.
    pub fn load(dir: &Path, report: &Report) -> Result<Self> {
        let (fd, dir) = open_dir(dir).context(|| format!("open bundle {}", dir.display()))?;
        if dir.to_str().is_none() {
            return Err(Error::new(format!("open bundle {}: the path must be UTF-8", dir.display())));
        }
        let path = dir.join("config.json");
        let config = read_config(&fd).context(|| format!("read {}", path.display()))?;
        let spec = parse(&config, report).context(|| format!("parse {}", path.display()))?;
        Ok(Self { dir, config, spec })
    }
}

/// The directory, and its path as the kernel tells it.
fn open_dir(dir: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
    let fd = open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let path = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str())?;
    Ok((fd, path.into()))
}

fn read_config(dir: &OwnedFd) -> Result<Vec<u8>> {
    let file = File::from(openat(dir, "config.json", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?);
    let mut config = Vec::with_capacity(8 << 10);
    file.take(MAX_CONFIG + 1).read_to_end(&mut config)?;
    if config.len() as u64 > MAX_CONFIG {
        return Err(Error::new(format!("it is larger than {} MiB", MAX_CONFIG >> 20)));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str, config: Option<&[u8]>) -> Self {
            let dir = std::env::temp_dir().join(format!("keel-bundle-{}-{name}", std::process::id()));
            std::fs::create_dir(&dir).unwrap();
            if let Some(config) = config {
                std::fs::write(dir.join("config.json"), config).unwrap();
            }
            Self(dir.canonicalize().unwrap())
        }

        fn error(&self) -> String {
            let error = Bundle::load(&self.0, &Report::default()).err().unwrap().to_string();
            error.replace(self.0.to_str().unwrap(), "B")
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_bundle_is_its_directory_its_bytes_and_their_meaning() {
        let dir = Dir::new("ok", Some(br#"{ "root": {"path": "r"} }"#));
        let indirect = dir.0.join("../").join(dir.0.file_name().unwrap()).join(".");
        let bundle = Bundle::load(&indirect, &Report::default()).unwrap();
        assert_eq!(bundle.dir, dir.0);
        assert_eq!(bundle.config, br#"{ "root": {"path": "r"} }"#);
        assert_eq!(bundle.spec["root"]["path"], "r");
    }

    #[test]
    fn an_unreadable_config_names_the_place() {
        for (name, config, error) in [
            ("none", None, "read B/config.json: No such file or directory (2)"),
            ("empty", Some(&b""[..]), "parse B/config.json: EOF while parsing a value at line 1 column 0"),
            ("json", Some(b"{\n \"a\": x}"), "parse B/config.json: expected value at line 2 column 7"),
            ("array", Some(b"[]"), "parse B/config.json: it must be a JSON object"),
        ] {
            assert_eq!(Dir::new(name, config).error(), error);
        }
        let missing = Bundle::load(Path::new("/nonexistent/b"), &Report::default()).err().unwrap();
        assert_eq!(missing.to_string(), "open bundle /nonexistent/b: No such file or directory (2)");
    }

    #[test]
    fn a_config_without_end_is_refused() {
        let dir = Dir::new("big", Some(&vec![b' '; MAX_CONFIG as usize + 1]));
        assert_eq!(dir.error(), "read B/config.json: it is larger than 16 MiB");
    }
}
