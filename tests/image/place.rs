//! What a test needs: a directory of its own, keel-image in it, a client, an image.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use keel::error::{Error, Result};
use keel::image::digest::Digest;
use keel::image::limits::DocumentLimits;
use keel::image::manifest::{Descriptor, OCI_MANIFEST};
use keel::image::reference::Named;
use keel::image::registry::{Client, Options};
use serde_json::{Value, json};

pub fn program(name: &str) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    if path.split(':').any(|dir| Path::new(dir).join(name).exists()) {
        return Ok(());
    }
    Err(format!("{name} is not installed"))
}

/// A directory that goes with the test.
pub struct Place {
    pub dir: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("keel-image-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Credentials for registries: `[("127.0.0.1:5000", "user:password")]`.
    pub fn credentials(&self, auths: &[(&str, &str)]) -> PathBuf {
        use base64::Engine;
        let encode = |text: &str| base64::prelude::BASE64_STANDARD.encode(text);
        let auths: serde_json::Map<_, _> =
            auths.iter().map(|(host, auth)| ((*host).to_owned(), json!({"auth": encode(auth)}))).collect();
        self.write("config.json", json!({"auths": auths}).to_string())
    }

    pub fn options(&self) -> Options {
        Options {
            insecure: Vec::new(),
            ca: Vec::new(),
            certs_dir: Some(self.path("certs.d")),
            creds_file: Some(self.path("config.json")),
            mirrors: Vec::new(),
            notify: |_| (),
        }
    }

    pub fn client(&self) -> Client {
        Client::new(self.options()).unwrap()
    }

    /// keel-image with this place's credentials.
    pub fn keel_image(&self, args: &[&str]) -> Run {
        self.keel_image_with(args, "")
    }

    pub fn keel_image_with(&self, args: &[&str], stdin: &str) -> Run {
        let mut child = Command::new(env!("CARGO_BIN_EXE_keel-image"))
            .args(args)
            .current_dir(&self.dir)
            .env("REGISTRY_AUTH_FILE", self.path("config.json"))
            .env("PATH", format!("{}:{}", self.dir.display(), std::env::var("PATH").unwrap()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end before it reads.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        Run::of(child.wait_with_output().unwrap())
    }

    /// Runs a program that may fail.
    pub fn run_any(&self, program: &str, args: &[&str]) -> Run {
        Run::of(Command::new(program).args(args).current_dir(&self.dir).output().unwrap())
    }

    /// Runs a program that has to succeed.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let run = Run::of(Command::new(program).args(args).current_dir(&self.dir).output().unwrap());
        assert_eq!(run.code, 0, "{program} {args:?}: {}", run.stderr);
        run.stdout
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

pub fn named(text: &str) -> Named {
    Named::parse(text).unwrap()
}

pub fn limits() -> DocumentLimits {
    DocumentLimits::default()
}

/// What a manifest says of a blob.
pub fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::of(OCI_MANIFEST, bytes)
}

/// Reads a blob of `test/app` at an address.
pub fn pull(client: &Client, address: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    client
        .blob(&named(&format!("{address}/test/app")), descriptor)?
        .read_to_end(&mut bytes)
        .map_err(Error::from)?;
    Ok(bytes)
}

/// Bytes that no two of are alike, for what is in the wrong place to be seen.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

/// A manifest of one layer and a config, which are not there but by their digests.
pub fn manifest(config: &[u8], layer: &[u8]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(config).to_string(),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": Digest::of(layer).to_string(),
            "size": layer.len(),
        }],
    })
}

pub fn config() -> Value {
    let architecture = keel::image::platform::Platform::host().architecture;
    let diff_ids = [Digest::of(b"tar").to_string()];
    json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}
