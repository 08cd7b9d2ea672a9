//! Debian's docker-registry on loopback, with skopeo at the other end.

use std::fs::{self, File};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keel::image::digest::Digest;
use keel::image::platform::Platform;
use keel::image::registry::push::Pushed;
use keel::image::registry::{Client, Options};
use keel::image::section::Section;
use serde_json::json;

use crate::place::{Place, config, descriptor, limits, manifest, named, noise, program};
use crate::{needs, tests};

tests![
    what_skopeo_pushes_is_inspected_and_pulled,
    what_is_pushed_is_what_skopeo_pulls,
    a_layout_shows_the_same_as_the_registry,
    tls_takes_the_authority_or_consent,
    a_client_certificate_is_shown,
    a_password_is_asked_for_and_taken,
];

pub struct Registry {
    process: Child,
    pub address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // ESRCH: it has ended by itself, as a test would have shown.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// With more lines of its config.yml, below `http:` and at the top.
pub fn registry(place: &Place, http: &str, top: &str) -> Registry {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let storage = place.path("storage");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: {address}\n  secret: x\n{http}\n{top}\n",
        storage.display()
    );
    let path = place.write("registry.yml", text);
    let log = File::create(place.path("registry.log")).unwrap();
    let process = Command::new("docker-registry")
        .arg("serve")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let started = Instant::now();
    while TcpStream::connect(&address).is_err() {
        assert!(started.elapsed() < Duration::from_secs(20), "{}", place.read("registry.log"));
        std::thread::sleep(Duration::from_millis(20));
    }
    Registry { process, address }
}

const LAYER: usize = 6_000_000; // bytes, in two pieces on the way

/// An image in `layout`, tagged v1: its layer and its manifest.
fn layout(place: &Place) -> (Vec<u8>, String) {
    place.write("noise", noise(LAYER));
    place.run("tar", &["--create", "--gzip", "--file=layer.tar.gz", "noise"]);
    let layer = fs::read(place.path("layer.tar.gz")).unwrap();
    let config = config().to_string();
    let manifest = manifest(config.as_bytes(), &layer).to_string();
    fs::create_dir_all(place.path("layout/blobs/sha256")).unwrap();
    for blob in [config.as_bytes(), &layer, manifest.as_bytes()] {
        place.write(&format!("layout/blobs/sha256/{}", Digest::of(blob).hex()), blob);
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let name = json!({"org.opencontainers.image.ref.name": "v1"});
    let entry = json!({"mediaType": media_type, "digest": Digest::of(manifest.as_bytes()).to_string(),
        "size": manifest.len(), "annotations": name});
    place.write("layout/index.json", json!({"schemaVersion": 2, "manifests": [entry]}).to_string());
    place.write("layout/oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#);
    (layer, manifest)
}

fn skopeo_push(place: &Place, registry: &Registry, flags: &[&str]) {
    let to = format!("docker://{}/test/app:v1", registry.address);
    let args =
        [&["copy", "--insecure-policy", "--preserve-digests"], flags, &["oci:layout:v1", &to]].concat();
    place.run("skopeo", &args);
}

fn what_skopeo_pushes_is_inspected_and_pulled() {
    needs!(program("docker-registry"), program("skopeo"));
    let place = Place::new();
    let (layer, manifest) = layout(&place);
    let registry = registry(&place, "", "");
    skopeo_push(&place, &registry, &["--dest-tls-verify=false"]);
    let reference = format!("{}/test/app:v1", registry.address);
    let run = place.keel_image(&["inspect", "--raw", &reference]);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (0, manifest.as_str(), ""));
    assert_eq!(place.keel_image(&["inspect", "--config", &reference]).stdout, config().to_string());
    assert_eq!(place.keel_image(&["tags", &format!("{}/test/app", registry.address)]).stdout, "v1\n");
    let client = place.client();
    let digest = client.manifest_digest(&named(&reference), &limits()).unwrap();
    assert_eq!(digest, Some(Digest::of(manifest.as_bytes())));
    let found = client.image(&named(&reference), &Platform::host(), &limits()).unwrap();
    let mut pulled = Vec::new();
    let blob = client.blob(&named(&reference), &found.manifest.layers[0].descriptor);
    blob.unwrap().read_to_end(&mut pulled).unwrap();
    assert!(pulled == layer);
    let run = place.keel_image(&["inspect", &format!("{}/test/app:v2", registry.address)]);
    assert_eq!(run.code, 3, "{run:?}");
}

fn what_is_pushed_is_what_skopeo_pulls() {
    needs!(program("docker-registry"), program("skopeo"));
    let place = Place::new();
    let (layer, manifest) = layout(&place);
    let registry = registry(&place, "", "");
    let client = place.client();
    let repository = named(&format!("{}/test/app:v1", registry.address));
    let push = |to: &str, bytes: &[u8], from: Option<&str>| {
        let named = |name: &str| named(&format!("{}/{name}", registry.address));
        let file = File::open(place.write("blob", bytes)).unwrap();
        let open = || Section::whole(file);
        client.push_blob(&named(to), &Digest::of(bytes), from.map(named).as_ref(), open).unwrap()
    };
    let config = config().to_string();
    assert_eq!(push("test/app", &layer, None), Pushed::Sent);
    assert_eq!(push("test/app", &layer, None), Pushed::Present);
    assert_eq!(push("test/app", config.as_bytes(), None), Pushed::Sent);
    assert_eq!(push("other/app", &layer, Some("test/app")), Pushed::Mounted);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let digest = client.push_manifest(&repository, media_type, manifest.as_bytes()).unwrap();
    assert_eq!(digest, Digest::of(manifest.as_bytes()));
    let from = format!("docker://{repository}");
    place.run("skopeo", &["copy", "--insecure-policy", "--src-tls-verify=false", &from, "oci:pulled:v1"]);
    let pulled = fs::read(place.path(&format!("pulled/blobs/sha256/{}", Digest::of(&layer).hex()))).unwrap();
    assert!(pulled == layer);
    let missing = descriptor(b"missing");
    assert_eq!(client.blob(&repository, &missing).err().unwrap().kind(), keel::error::Kind::NotFound);
}

fn a_layout_shows_the_same_as_the_registry() {
    let place = Place::new();
    let (_, manifest) = layout(&place);
    for reference in ["oci:layout:v1", "oci:layout", "layout", "./layout"] {
        assert_eq!(place.keel_image(&["inspect", "--raw", reference]).stdout, manifest, "{reference}");
    }
    assert_eq!(place.keel_image(&["inspect", "--config", "oci:layout"]).stdout, config().to_string());
    let run = place.keel_image(&["inspect", "oci:layout:v2"]);
    assert!(run.code == 3 && run.stderr.ends_with("there is no image \"v2\"\n  There are: v1.\n"), "{run:?}");
    let path = format!("layout/blobs/sha256/{}", Digest::of(config().to_string().as_bytes()).hex());
    place.write(&path, config().to_string().replace("linux", "Linux"));
    let run = place.keel_image(&["inspect", "oci:layout"]);
    assert!(run.code == 5 && run.stderr.contains("the digest is sha256:"), "{run:?}");
}

/// An authority (ca.crt), the registry's certificate (server.crt, server.key) and ours (client.cert, client.key).
fn certificates(place: &Place) -> String {
    let openssl = |line: &str| place.run("openssl", &line.split(' ').collect::<Vec<_>>());
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=authority"));
    let signed = "-CA ca.crt -CAkey ca.key -addext basicConstraints=critical,CA:FALSE";
    openssl(&format!(
        "req -x509 {key} -keyout server.key -out server.crt -subj /CN=r {signed} -addext subjectAltName=IP:127.0.0.1"
    ));
    openssl(&format!(
        "req -x509 {key} -keyout client.key -out client.cert -subj /CN=c {signed} -addext extendedKeyUsage=clientAuth"
    ));
    let dir = place.dir.display();
    format!("  tls:\n    certificate: {dir}/server.crt\n    key: {dir}/server.key\n")
}

fn tls_takes_the_authority_or_consent() {
    needs!(program("docker-registry"), program("skopeo"), program("openssl"));
    let place = Place::new();
    layout(&place);
    let registry = registry(&place, &certificates(&place), "");
    skopeo_push(&place, &registry, &["--dest-tls-verify=false"]);
    let tags = |flags: &[&str]| {
        let repository = format!("{}/test/app", registry.address);
        place.keel_image(&[flags, &["tags", &repository]].concat())
    };
    assert_eq!(tags(&["--ca=ca.crt"]).stdout, "v1\n");
    assert_eq!(tags(&["--insecure", &registry.address]).stdout, "v1\n");
    // Loopback may do without TLS, but not with another's certificate.
    let run = tags(&[]);
    let way_out = format!("or trust any certificate with --insecure {}.\n", registry.address);
    assert!(
        run.code == 1 && run.stderr.contains("UnknownIssuer") && run.stderr.ends_with(&way_out),
        "{run:?}"
    );
    let run = tags(&["--ca=client.key"]);
    assert!(run.code == 1 && run.stderr.contains("client.key: there is no certificate in it"), "{run:?}");
}

fn a_client_certificate_is_shown() {
    needs!(program("docker-registry"), program("openssl"));
    let place = Place::new();
    let tls = format!("{}    clientcas: [{}/ca.crt]\n", certificates(&place), place.dir.display());
    let registry = registry(&place, &tls, "");
    let dir = place.path("certs.d").join(&registry.address);
    let tags =
        || place.keel_image(&["--certs-dir=certs.d", "tags", &format!("{}/test/app", registry.address)]);
    fs::create_dir_all(&dir).unwrap();
    fs::copy(place.path("ca.crt"), dir.join("ca.crt")).unwrap();
    assert_eq!(tags().code, 1, "{:?}", tags());
    fs::copy(place.path("client.cert"), dir.join("client.cert")).unwrap();
    fs::copy(place.path("server.key"), dir.join("client.key")).unwrap();
    assert!(tags().stderr.contains("client.cert: keys may not be consistent: "), "{:?}", tags());
    fs::copy(place.path("client.key"), dir.join("client.key")).unwrap();
    // It lets us in, and has no such repository.
    assert_eq!(tags().code, 3, "{:?}", tags());
}

fn a_password_is_asked_for_and_taken() {
    needs!(program("docker-registry"), program("skopeo"), program("openssl"), program("htpasswd"));
    let place = Place::new();
    layout(&place);
    let tls = certificates(&place);
    place.run("htpasswd", &["-Bbc", "htpasswd", "user", "secret"]);
    let auth = format!("auth:\n  htpasswd: {{realm: x, path: {}/htpasswd}}\n", place.dir.display());
    let registry = registry(&place, &tls, &auth);
    skopeo_push(&place, &registry, &["--dest-tls-verify=false", "--dest-creds=user:secret"]);
    let inspect =
        || place.keel_image(&["--ca=ca.crt", "inspect", &format!("{}/test/app:v1", registry.address)]);
    assert_eq!(inspect().code, 4, "{:?}", inspect());
    let login = |password: &str| {
        let args = ["login", "--ca=ca.crt", "--user=user", "--password-stdin", &registry.address];
        place.keel_image_with(&args, password)
    };
    assert_eq!(login("wrong").code, 4);
    assert_eq!(login("secret").code, 0);
    assert_eq!(inspect().code, 0, "{:?}", inspect());
    let client = Client::new(Options { ca: vec![place.path("ca.crt")], ..place.options() }).unwrap();
    let found =
        client.image(&named(&format!("{}/test/app:v1", registry.address)), &Platform::host(), &limits());
    assert_eq!(found.unwrap().manifest.layers.len(), 1);
}
