//! An image of two layers, and one for two platforms, made with GNU tar and gzip.

use std::fs;
use std::path::Path;

use keel::image::digest::Digest;
use keel::image::manifest::{OCI_INDEX, OCI_MANIFEST};
use keel::image::platform::Platform;
use serde_json::{Value, json};

use crate::place::Place;

pub struct Image {
    pub manifest: String,
    pub config: String,
    /// The layers' blobs, and their tar archives.
    pub blobs: Vec<Vec<u8>>,
    pub plain: Vec<Vec<u8>>,
}

pub fn digest(bytes: impl AsRef<[u8]>) -> String {
    Digest::of(bytes.as_ref()).to_string()
}

fn entry(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn blob(dir: &Path, bytes: &[u8]) {
    fs::write(dir.join("blobs/sha256").join(Digest::of(bytes).hex()), bytes).unwrap();
}

fn shell(place: &Place, script: &str) {
    place.run("sh", &["-euc", script]);
}

fn make(place: &Place, architecture: &str) -> Image {
    shell(
        place,
        &format!(
            "rm -rf tree; mkdir -p tree/1/etc tree/1/bin tree/2/etc; cd tree/1; echo {architecture} >etc/arch; echo root:x:0:0 >etc/passwd
             head -c 3000000 /dev/urandom >bin/big; ln bin/big bin/big2; ln -s ../etc/passwd bin/link; echo x >etc/gone
             chmod 4755 bin/big; chmod 700 etc; cd ../2; echo new >etc/new; : >etc/.wh.gone; cd ..
             for n in 1 2; do tar --sort=name --numeric-owner --owner=0 --group=0 --mtime=@1000000000 -C $n -cf $n.tar .; done
             gzip -nk 1.tar 2.tar"
        ),
    );
    let files = |suffix: &str| {
        [1, 2].map(|n| fs::read(place.path(&format!("tree/{n}.tar{suffix}"))).unwrap()).to_vec()
    };
    let (plain, blobs) = (files(""), files(".gz"));
    let config = json!({"os": "linux", "architecture": architecture, "created": "2001-09-09T01:46:40Z",
        "config": {"Cmd": ["/bin/big"], "Env": ["PATH=/bin"], "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": plain.iter().map(digest).collect::<Vec<_>>()},
        "history": [{"created_by": "one"}, {"created_by": "two"}]})
    .to_string();
    let layers: Vec<_> =
        blobs.iter().map(|blob| entry("application/vnd.oci.image.layer.v1.tar+gzip", blob)).collect();
    // Spaces, which no other program would write: the bytes are to stay.
    let manifest = format!(
        "{:#}",
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers,
            "config": entry("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "annotations": {"made.by": "hand"}})
    );
    Image { manifest, config, blobs, plain }
}

fn put(dir: &Path, image: &Image) {
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    for bytes in [image.manifest.as_bytes(), image.config.as_bytes()] {
        blob(dir, bytes);
    }
    image.blobs.iter().for_each(|bytes| blob(dir, bytes));
}

fn index(dir: &Path, media_type: &str, top: &str) {
    let mut entry = entry(media_type, top.as_bytes());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

/// In the layout `layout`, tagged v1.
pub fn image(place: &Place) -> Image {
    let image = make(place, &Platform::host().architecture);
    put(&place.path("layout"), &image);
    index(&place.path("layout"), OCI_MANIFEST, &image.manifest);
    image
}

/// For this machine and for riscv64, with an attestation, in the layout `layout`: the index, and this machine's.
pub fn index_image(place: &Place) -> (String, Image) {
    let dir = place.path("layout");
    let (host, other) = (make(place, &Platform::host().architecture), make(place, "riscv64"));
    put(&dir, &host);
    put(&dir, &other);
    let statement = b"{\"_type\": \"statement\"}";
    let empty = b"{}";
    let attestation = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": entry("application/vnd.oci.image.config.v1+json", empty),
        "layers": [entry("application/vnd.in-toto+json", statement)]})
    .to_string();
    blob(&dir, statement);
    blob(&dir, empty);
    blob(&dir, attestation.as_bytes());
    let with = |document: &str, architecture: &str| {
        let mut entry = entry(OCI_MANIFEST, document.as_bytes());
        let os = if architecture == "unknown" { "unknown" } else { "linux" };
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entry
    };
    let manifests = [
        with(&other.manifest, "riscv64"),
        with(&host.manifest, &Platform::host().architecture),
        with(&attestation, "unknown"),
    ];
    let top = format!("{:#}", json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}));
    blob(&dir, top.as_bytes());
    index(&dir, OCI_INDEX, &top);
    (top, host)
}
