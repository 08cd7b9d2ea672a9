//! Images made by hand, in a layout or behind a server, and keel-image with a store of its own.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use keel::image::digest::Digest;
use keel::image::manifest::OCI_MANIFEST;
use keel::image::platform::Platform;
use serde_json::{Value, json};

use crate::archive::{Header, Tar};
use crate::place::{Place, Run};
use crate::server::{Reply, Server};

#[derive(Clone)]
pub struct Image {
    pub manifest: Vec<u8>,
    /// By their digests, the config too.
    pub blobs: HashMap<String, Vec<u8>>,
    /// Digest and diff_id of each layer.
    pub layers: Vec<(Digest, Digest)>,
}

impl Image {
    /// `config` is what a container is told.
    pub fn new(layers: Vec<Tar>, config: Value) -> Self {
        Self::with(layers, config, |_, _| ())
    }

    /// With something changed in the config and the manifest.
    pub fn with(layers: Vec<Tar>, config: Value, change: impl Fn(&mut Value, &mut Value)) -> Self {
        let (mut blobs, mut list, mut ids) = (HashMap::new(), Vec::new(), Vec::new());
        for layer in layers {
            let plain = layer.end();
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&plain).unwrap();
            let blob = encoder.finish().unwrap();
            ids.push((Digest::of(&blob), Digest::of(&plain), blob.len()));
            blobs.insert(Digest::of(&blob).to_string(), blob);
        }
        for (digest, _, size) in &ids {
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            list.push(json!({"mediaType": media_type, "digest": digest.to_string(), "size": size}));
        }
        let diff_ids: Vec<_> = ids.iter().map(|(_, diff_id, _)| diff_id.to_string()).collect();
        let mut document = json!({"os": "linux", "architecture": Platform::host().architecture,
            "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let media_type = "application/vnd.oci.image.config.v1+json";
        let mut manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": list});
        change(&mut document, &mut manifest);
        let config = document.to_string().into_bytes();
        manifest["config"] =
            json!({"mediaType": media_type, "digest": Digest::of(&config).to_string(), "size": config.len()});
        blobs.insert(Digest::of(&config).to_string(), config);
        let layers = ids.into_iter().map(|(digest, diff_id, _)| (digest, diff_id)).collect();
        Self { manifest: manifest.to_string().into_bytes(), blobs, layers }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// What a registry says that has it as `test/app:v1`.
    pub fn reply(&self, path: &str) -> Reply {
        let media_type = |reply: Reply| reply.header("Content-Type", OCI_MANIFEST);
        match path.rsplit('/').next().unwrap() {
            "v1" | "latest" => media_type(Reply::new(200, &self.manifest)),
            digest if digest == self.digest().to_string() => media_type(Reply::new(200, &self.manifest)),
            digest => match self.blobs.get(digest) {
                Some(blob) => Reply::new(200, blob),
                None => Reply::new(if path == "/v2/" { 200 } else { 404 }, ""),
            },
        }
    }

    pub fn serve(&self) -> Server {
        let image = self.clone();
        Server::new(move |request| image.reply(&request.path))
    }

    /// As the layout `name` in the place, and what that is called.
    pub fn layout(&self, place: &Place, name: &str) -> String {
        fs::create_dir_all(place.path(name).join("blobs/sha256")).unwrap();
        let manifest = [(self.digest().to_string(), self.manifest.clone())];
        for (digest, blob) in self.blobs.clone().into_iter().chain(manifest) {
            place.write(&format!("{name}/blobs/sha256/{}", &digest["sha256:".len()..]), blob);
        }
        let entry = json!({"mediaType": OCI_MANIFEST, "digest": self.digest().to_string(),
            "size": self.manifest.len()});
        place.write(
            &format!("{name}/index.json"),
            json!({"schemaVersion": 2, "manifests": [entry]}).to_string(),
        );
        place.write(&format!("{name}/oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#);
        format!("oci:{name}")
    }
}

/// A static program with many names, and the directories that it wants.
pub fn busybox() -> Tar {
    let program = fs::read("/bin/busybox").unwrap();
    let header = Header { mode: 0o755, size: program.len() as u64, ..Header::new("bin/busybox", b'0') };
    let mut tar = Tar::new().dir("bin/").header(header).data(&program);
    for name in ["sh", "ls", "cat", "stat", "id", "find", "env", "touch", "pwd"] {
        tar = tar.symlink(&format!("bin/{name}"), "busybox");
    }
    tar
}

pub fn root() -> Result<(), String> {
    nix::unistd::geteuid().is_root().then_some(()).ok_or("needs root".into())
}

impl Place {
    /// keel-image with the store of this place, quiet.
    pub fn image(&self, args: &[&str]) -> Run {
        self.keel_image(&[&["--store=store", "--quiet"], args].concat())
    }

    /// The same, which has to succeed.
    #[track_caller]
    pub fn image_ok(&self, args: &[&str]) -> Run {
        let run = self.image(args);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}: {run:?}");
        run
    }

    /// The same under way.
    pub fn image_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keel-image"));
        command.args(["--store=store", "--quiet"]).args(args).current_dir(&self.dir);
        command.env("REGISTRY_AUTH_FILE", self.path("config.json"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs a bundle.
    pub fn keel(&self, bundle: &str) -> Run {
        let id = format!(
            "image-test-{}-{}",
            std::process::id(),
            self.dir.display().to_string().rsplit('-').next().unwrap()
        );
        let state = self.path("state");
        let program = env!("CARGO_BIN_EXE_keel");
        self.run_any(program, &["--root", state.to_str().unwrap(), "run", "--bundle", bundle, &id])
    }

    /// What is in a directory of the store.
    pub fn stored(&self, directory: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path("store").join(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.path("store/blobs/sha256").join(digest.hex())
    }

    pub fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.path("store/layers").join(diff_id.hex())
    }
}
