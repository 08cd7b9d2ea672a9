//! `os/architecture[/variant]`: which of an index's images is for this machine.
//!
//! Names are Go's: <https://github.com/opencontainers/image-spec/blob/main/image-index.md>. A newer variant runs what
//! is built for an older one; another architecture is never taken for it.

use std::fmt;

use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    /// Empty where the architecture's ordinary one is meant.
    pub variant: String,
}

impl Platform {
    /// With other names for the same thing made one.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (os, architecture, variant) =
            (os.to_lowercase(), architecture.to_lowercase(), variant.to_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i686", _) => ("386", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("riscv64gc", variant) => ("riscv64", variant),
            (architecture, variant) => (architecture, variant),
        };
        let variant = match (architecture, variant.strip_prefix('v').unwrap_or(variant)) {
            ("amd64", "1") | ("arm64", "8") => String::new(),
            ("arm", "") => "v7".to_owned(),
            (_, digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                format!("v{digits}")
            }
            _ => variant.to_owned(),
        };
        Self { os, architecture: architecture.to_owned(), variant }
    }

    /// `linux/arm64`, `linux/arm/v6`, or `arm64` alone.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong =
            || Error::new(format!("platform {text:?}: must be os/architecture[/variant], as linux/arm64"));
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        if !parts.iter().all(word) {
            return Err(wrong());
        }
        match parts[..] {
            [architecture] => Ok(Self::new("linux", architecture, "")),
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(wrong()),
        }
    }

    /// What the kernel runs.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            architecture => architecture,
        };
        let machine = nix::sys::utsname::uname().map(|name| name.machine().to_string_lossy().into_owned());
        // armv6l, armv7l; a 64-bit kernel (aarch64) runs v7, too.
        let variant = match machine.unwrap_or_default().strip_prefix("armv") {
            Some(version) if architecture == "arm" => {
                format!("v{}", version.trim_end_matches(char::is_alphabetic))
            }
            _ => String::new(),
        };
        Self::new("linux", architecture, &variant)
    }

    /// How good an image for `theirs` is here: 0 is just right, each step to an older variant is one more, None does
    /// not run.
    pub fn distance(&self, theirs: &Self) -> Option<u32> {
        if (&self.os, &self.architecture) != (&theirs.os, &theirs.architecture) {
            return None;
        }
        if self.variant == theirs.variant {
            return Some(0);
        }
        self.version()?.checked_sub(theirs.version()?)
    }

    /// The variant's number, which grows with what the processor can do.
    fn version(&self) -> Option<u32> {
        match (self.architecture.as_str(), self.variant.as_str()) {
            ("amd64", "") => Some(1),
            ("arm64", "") => Some(8),
            (_, variant) => variant.strip_prefix('v')?.parse().ok(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.variant.is_empty() { "" } else { "/" };
        write!(f, "{}/{}{slash}{}", self.os, self.architecture, self.variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_same_platform_are_one() {
        for (text, name) in [
            ("amd64", "linux/amd64"),
            ("linux/x86_64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("Linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("windows/386", "windows/386"),
            ("linux/ppc64le/power9", "linux/ppc64le/power9"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), name, "{text}");
        }
        for text in ["", "/", "linux/", "linux//v7", "linux/arm/v7/x", "linux/a b", "linux/\u{e9}"] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_older_variant_runs_and_a_newer_one_does_not() {
        for (here, image, distance) in [
            ("linux/arm/v7", "linux/arm/v7", Some(0)),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v7", "linux/arm/v5", Some(2)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/amd64/v3", "linux/amd64", Some(2)),
            ("linux/amd64", "linux/amd64/v2", None),
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm64/v9", "linux/arm64", Some(1)),
            ("linux/arm64", "linux/arm/v7", None),
            ("linux/amd64", "linux/386", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/ppc64le", "linux/ppc64le/power9", None),
            ("linux/amd64", "unknown/unknown", None),
        ] {
            let parse = |text| Platform::parse(text).unwrap();
            assert_eq!(parse(here).distance(&parse(image)), distance, "{image} on {here}");
        }
    }
}
