//! Manifests, indexes and configs: which blobs an image is made of.
//!
//! They are read as config.json is, every problem at once with its JSON pointer. What could be read in two ways is
//! refused: a key that is there twice, a document that is both manifest and index (CVE-2021-41190).
//!
//! oci-spec's types stop at the first fault, have digests of any form, and cannot tell a manifest from an index.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/manifest.md>, `image-index.md`, `config.md`, `descriptor.md`

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::error::{Error, Kind, Result};
use crate::image::compression::Compression;
use crate::image::digest::{Digest, brief};
use crate::image::limits::DocumentLimits;
use crate::image::platform::Platform;
use crate::spec::{self, Node, Report};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// How many indexes are followed down to a manifest.
pub const MOST_INDEXES: usize = 4;

/// What names a blob or a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64, // bytes
    /// The content itself, if it came along; it is verified.
    pub data: Option<Vec<u8>>,
    pub platform: Option<Platform>,
    /// `org.opencontainers.image.ref.name`: the tag, in an image layout.
    pub ref_name: Option<String>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, data: None, platform: None, ref_name: None }
    }

    /// Of a blob that is at hand.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub descriptor: Descriptor,
    pub compression: Compression,
}

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What it calls itself.
    pub media_type: Option<String>,
    pub config: Descriptor,
    /// The lowest first.
    pub layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Box<Manifest>),
    Index(Vec<Descriptor>),
}

/// What of a config concerns the layers; the rest is the container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub platform: Platform,
    /// Of each layer's tar archive, the lowest first; as many as layers.
    pub diff_ids: Vec<Digest>,
    /// When it was made, as it says.
    pub created: Option<String>,
}

/// A manifest or an index as it came, with its digest verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub digest: Digest,
    /// What its sender calls it.
    pub media_type: Option<String>,
    pub bytes: Vec<u8>,
}

/// The manifest for one platform, and as it came.
#[derive(Debug)]
pub struct Found {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
    pub manifest: Manifest,
}

impl Document {
    /// `media_type` is what the registry or a descriptor calls it; `name` is for errors.
    pub fn parse(
        bytes: &[u8],
        media_type: Option<&str>,
        limits: &DocumentLimits,
        name: &str,
    ) -> Result<Self> {
        if bytes.len() as u64 > limits.manifest {
            return Err(too_large(name, limits.manifest));
        }
        read(bytes, name, |root| {
            let Some(is_index) = root_kind(root, media_type)? else { return Ok(None) };
            if is_index {
                let manifests = root.objects("manifests");
                return Ok(manifests.iter().map(descriptor).collect::<Option<Vec<_>>>().map(Self::Index));
            }
            manifest(root, limits).map(|manifest| manifest.map(Box::new).map(Self::Manifest))
        })
    }
}

/// What a manifest or an index is made of, whatever it is for: signatures and attestations are copied, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub manifests: Vec<Descriptor>,
    /// The config, and the layers.
    pub blobs: Vec<Descriptor>,
}

impl Parts {
    /// See [`Document::parse`].
    pub fn of(bytes: &[u8], media_type: Option<&str>, limits: &DocumentLimits, name: &str) -> Result<Self> {
        if bytes.len() as u64 > limits.manifest {
            return Err(too_large(name, limits.manifest));
        }
        read(bytes, name, |root| {
            if root_kind(root, media_type)?.is_none() {
                return Ok(None);
            }
            let (manifests, layers) = (root.objects("manifests"), root.objects("layers"));
            if manifests.len().max(layers.len()) > limits.layers {
                let message = format!("more than the {} parts that are let pass", limits.layers);
                return Err(Error::of_kind(Kind::Limit, message));
            }
            let blobs: Vec<_> = root.object("config").into_iter().chain(layers).collect();
            let [manifests, blobs] =
                [manifests, blobs].map(|nodes| nodes.iter().map(descriptor).collect::<Option<Vec<_>>>());
            Ok(manifests.zip(blobs).map(|(manifests, blobs)| Self { manifests, blobs }))
        })
    }
}

/// Whether it is an index, or None with the problem reported.
fn root_kind(root: &Node, media_type: Option<&str>) -> Result<Option<bool>> {
    let own = root.string("mediaType");
    let version = root.u64("schemaVersion");
    let is_old =
        |media_type: &str| media_type.starts_with("application/vnd.docker.distribution.manifest.v1+");
    if version == Some(1) || own.or(media_type).is_some_and(is_old) {
        return Err(Error::new("schema 1 is not supported")
            .with_way_out("Push the image again with a tool of today."));
    }
    if version != Some(2) {
        root.problem("schemaVersion", "must be 2");
        return Ok(None);
    }
    let known = |media_type: &str| match media_type {
        OCI_INDEX | DOCKER_LIST => Some(true),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(false),
        _ => None,
    };
    let (has_manifests, has_layers) = (root.has("manifests"), root.has("layers") || root.has("config"));
    if has_manifests == has_layers {
        let what =
            if has_layers { "both a manifest and an index" } else { "neither a manifest nor an index" };
        root.problem("manifests", format_args!("the document is {what}"));
        return Ok(None);
    }
    for (whose, media_type) in [("its own", own), ("the sender's", media_type)] {
        match media_type.map(known) {
            Some(None) if whose == "its own" => {
                let reason = format_args!("{:?} is no image", brief(media_type.unwrap_or_default()));
                root.problem("mediaType", reason);
                return Ok(None);
            }
            Some(Some(is_index)) if is_index != has_manifests => {
                let what = if has_manifests { "an index" } else { "a manifest" };
                root.problem(
                    "mediaType",
                    format_args!("{whose} media type does not fit: the document is {what}"),
                );
                return Ok(None);
            }
            _ => (),
        }
    }
    Ok(Some(has_manifests))
}

fn manifest(root: &Node, limits: &DocumentLimits) -> Result<Option<Manifest>> {
    let config = root.object("config");
    if config.is_none() && !root.has("config") {
        root.problem("config", "is required");
    }
    if let Some(config) = &config
        && let Some(media_type) = config.string("mediaType")
        && media_type != OCI_CONFIG
        && media_type != DOCKER_CONFIG
    {
        let kind = root.string("artifactType").unwrap_or(media_type);
        return Err(Error::new(format!("it is an artifact ({}), no image", brief(kind))));
    }
    let layers = root.objects("layers");
    let encrypted = |layer: &Node| layer.string("mediaType").is_some_and(|kind| kind.ends_with("+encrypted"));
    if let Some(at) = layers.iter().position(encrypted) {
        return Err(Error::new(format!("layer {} is encrypted, which is not supported", at + 1)));
    }
    if layers.len() > limits.layers {
        let message =
            format!("{} layers are more than the {} that are let pass", layers.len(), limits.layers);
        return Err(Error::of_kind(Kind::Limit, message));
    }
    let layers = layers.iter().map(layer).collect::<Vec<_>>();
    let config = config.as_ref().and_then(descriptor);
    if let Some(config) = config.as_ref().filter(|config| config.size > limits.config) {
        return Err(too_large(&format!("config {}", config.digest), limits.config));
    }
    let layers = layers.into_iter().collect::<Option<_>>();
    let media_type = root.string("mediaType").map(str::to_owned);
    Ok(config.zip(layers).map(|(config, layers)| Manifest { media_type, config, layers }))
}

fn layer(node: &Node) -> Option<Layer> {
    let descriptor = descriptor(node);
    let media_type = node.string("mediaType")?;
    let Some(compression) = Compression::of_media_type(media_type) else {
        node.problem("mediaType", format_args!("{:?} is no layer of an image", brief(media_type)));
        return None;
    };
    Some(Layer { descriptor: descriptor?, compression })
}

fn descriptor(node: &Node) -> Option<Descriptor> {
    let media_type = node.required_string("mediaType");
    let digest = node.required_string("digest");
    let size = node.required_u64("size");
    let digest =
        digest.and_then(|text| Digest::parse(text).map_err(|why| node.problem("digest", why)).ok())?;
    let (media_type, size) = (media_type?.to_owned(), size?);
    let data = match node.string("data").map(|text| BASE64_STANDARD.decode(text)) {
        None => None,
        Some(Ok(data)) if data.len() as u64 == size && digest.like(&data) == digest => Some(data),
        Some(Ok(_)) => {
            node.problem("data", "is not what size and digest say");
            return None;
        }
        Some(Err(e)) => {
            node.problem("data", format_args!("must be base64: {e}"));
            return None;
        }
    };
    let platform = node.object("platform").map(|platform| {
        let part = |key| platform.string(key).unwrap_or_default();
        Platform::new(part("os"), part("architecture"), part("variant"))
    });
    let annotations = node.object_or_empty("annotations");
    let ref_name = annotations.string("org.opencontainers.image.ref.name").map(str::to_owned);
    Some(Descriptor { media_type, digest, size, data, platform, ref_name })
}

impl Config {
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self> {
        let name = format!("config {}", manifest.config.digest);
        read(bytes, &name, |root| {
            let (os, architecture) = (root.required_string("os"), root.required_string("architecture"));
            let variant = root.string("variant").unwrap_or_default();
            let rootfs = root.object_or_empty("rootfs");
            if let Some(kind) = rootfs.string("type").filter(|kind| *kind != "layers") {
                rootfs.problem("type", format_args!("must be layers, not {:?}", brief(kind)));
            }
            let ids = rootfs.strings("diff_ids");
            if ids.len() != manifest.layers.len() {
                let (found, layers) = (ids.len(), manifest.layers.len());
                rootfs.problem(
                    "diff_ids",
                    format_args!("must be as many as layers, {layers}, and are {found}"),
                );
            }
            let diff_ids = ids.into_iter().filter_map(|(text, field)| {
                Digest::parse(text).map_err(|why| rootfs.report().problem(field, why)).ok()
            });
            let diff_ids = diff_ids.collect();
            let created = root.string("created").map(str::to_owned);
            let platform = os.zip(architecture).map(|(os, arch)| Platform::new(os, arch, variant));
            Ok(platform.map(|platform| Self { platform, diff_ids, created }))
        })
    }
}

/// Reads a document; without a problem there is a result.
pub(super) fn read<T>(bytes: &[u8], name: &str, read: impl FnOnce(&Node) -> Result<Option<T>>) -> Result<T> {
    let report = Report::default();
    let named = |error: Error| error.because(name.to_owned());
    let malformed = |error: Error| error.with_kind(Kind::Integrity);
    let map = spec::parse(bytes, &report).map_err(malformed).map_err(named)?;
    let value = read(&Node::root(&map, &report)).map_err(named)?;
    report.finish().map_err(|error| malformed(error).in_document(name.to_owned(), ""))?;
    value.ok_or_else(|| named(malformed(Error::new("it cannot be read"))))
}

fn too_large(name: &str, most: u64) -> Error {
    Error::of_kind(Kind::Limit, format!("{name}: it is larger than the {most} bytes that are let pass"))
}

/// The one of an index that is nearest to `platform`; the first of equals, and one that does not say its platform only
/// if no other is there.
pub fn select<'a>(index: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor> {
    let is_image = |descriptor: &&Descriptor| {
        [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].contains(&descriptor.media_type.as_str())
    };
    let distance = |descriptor: &Descriptor| match &descriptor.platform {
        Some(theirs) => platform.distance(theirs),
        None => Some(u32::MAX),
    };
    let images = index.iter().filter(is_image);
    let nearest =
        images.filter_map(|image| Some((distance(image)?, image))).min_by_key(|(distance, _)| *distance);
    nearest.map(|(_, image)| image).ok_or_else(|| {
        let mut there: Vec<_> =
            index.iter().filter_map(|d| d.platform.as_ref()).map(Platform::to_string).collect();
        there.retain(|name| !name.starts_with("unknown/"));
        there.dedup();
        there.truncate(40);
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Error::of_kind(Kind::NotFound, format!("the image is not there for {platform}"))
            .with_way_out(format!("There are: {there}. Take one with --platform."))
    })
}

/// Follows indexes down to the manifest for `platform`. `fetch` gets the bytes that a descriptor names, verified.
pub fn resolve(
    top: Received,
    platform: &Platform,
    limits: &DocumentLimits,
    mut fetch: impl FnMut(&Descriptor) -> Result<Vec<u8>>,
) -> Result<Found> {
    let Received { mut digest, mut media_type, mut bytes } = top;
    for _ in 0..=MOST_INDEXES {
        let index =
            match Document::parse(&bytes, media_type.as_deref(), limits, &format!("manifest {digest}"))? {
                Document::Manifest(manifest) => {
                    let media_type = manifest.media_type.clone().or(media_type);
                    let media_type = media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
                    return Ok(Found { digest, media_type, bytes, manifest: *manifest });
                }
                Document::Index(index) => index,
            };
        let chosen = select(&index, platform).map_err(|error| error.because(format!("index {digest}")))?;
        if chosen.size > limits.manifest {
            return Err(too_large(&format!("manifest {}", chosen.digest), limits.manifest));
        }
        bytes = match &chosen.data {
            Some(data) => data.clone(),
            None => fetch(chosen)?,
        };
        digest = chosen.digest.clone();
        media_type = Some(chosen.media_type.clone());
    }
    Err(Error::of_kind(Kind::Limit, format!("the image lies deeper than in {MOST_INDEXES} indexes")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(of: &str) -> String {
        Digest::of(of.as_bytes()).to_string()
    }

    fn image() -> Value {
        let config = json!({"mediaType": OCI_CONFIG, "digest": digest("config"), "size": 6});
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layer = json!({"mediaType": layer, "digest": digest("layer"), "size": 5});
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]})
    }

    fn parse(document: &Value, media_type: Option<&str>) -> Result<Document> {
        Document::parse(document.to_string().as_bytes(), media_type, &DocumentLimits::default(), "manifest x")
    }

    fn parse_manifest(document: &Value) -> Manifest {
        match parse(document, None).unwrap() {
            Document::Manifest(manifest) => *manifest,
            Document::Index(_) => panic!("an index"),
        }
    }

    #[test]
    fn layers_are_read_with_their_compression() {
        for (media_type, compression) in [
            ("application/vnd.oci.image.layer.v1.tar", Compression::None),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Compression::Gzip),
        ] {
            let mut document = image();
            document["layers"][0]["mediaType"] = json!(media_type);
            let manifest = parse_manifest(&document);
            assert_eq!(manifest.layers[0].compression, compression);
            assert_eq!(manifest.layers[0].descriptor.digest, Digest::of(b"layer"));
            assert_eq!(manifest.config.size, 6);
        }
    }

    #[test]
    fn a_malformed_manifest_is_refused_with_its_place() {
        let path = json!("sha256:../../../../etc/passwd");
        let base64 = BASE64_STANDARD.encode("lAyer");
        let cases: [(&str, Value, &str); 16] = [
            ("/schemaVersion", json!(3), "/schemaVersion: must be 2"),
            (
                "/mediaType",
                json!(OCI_INDEX),
                "/mediaType: its own media type does not fit: the document is a manifest",
            ),
            ("/mediaType", json!("text/html"), "/mediaType: \"text/html\" is no image"),
            ("/manifests", json!([]), "/manifests: the document is both a manifest and an index"),
            ("/config", json!(null), "/config: is required"),
            ("/config", json!([]), "/config: must be an object"),
            ("/config/digest", path.clone(), "/config/digest: must be sha256: and 64"),
            ("/layers", json!({}), "/layers: must be an array"),
            ("/layers/0", json!("x"), "/layers/0: must be an object"),
            ("/layers/0/digest", path, "/layers/0/digest: must be sha256: and 64"),
            ("/layers/0/size", json!(-1), "/layers/0/size: must be a whole number of at least 0"),
            ("/layers/0/size", json!(null), "/layers/0/size: is required"),
            (
                "/layers/0/mediaType",
                json!("text/x"),
                "/layers/0/mediaType: \"text/x\" is no layer of an image",
            ),
            ("/layers/0/data", json!("?"), "/layers/0/data: must be base64"),
            ("/layers/0/data", json!(base64), "/layers/0/data: is not what size and digest say"),
            ("/layers/0/data", json!(""), "/layers/0/data: is not what size and digest say"),
        ];
        for (at, value, reason) in cases {
            let mut document = image();
            let (parent, key) = at.rsplit_once('/').unwrap();
            match document.pointer_mut(parent).unwrap() {
                Value::Array(array) => array[0] = value,
                object => object[key] = value,
            }
            let error = parse(&document, None).unwrap_err();
            assert!(error.to_string().starts_with(&format!("invalid manifest x: {reason}")), "{error}");
            assert_eq!(error.kind(), Kind::Integrity, "{error}");
        }
        let error = parse(&image(), Some(DOCKER_LIST)).unwrap_err().to_string();
        assert!(error.contains("the sender's media type does not fit"), "{error}");
        let error = parse(&json!({"schemaVersion": 2}), None).unwrap_err().to_string();
        assert!(error.contains("neither a manifest nor an index"), "{error}");
        let twice = format!("{{\"layers\": [], {}", &image().to_string()[1..]);
        let error = Document::parse(twice.as_bytes(), None, &DocumentLimits::default(), "manifest x")
            .unwrap_err()
            .to_string();
        assert!(error.contains("/layers"), "{error}");
        for json in ["[]", "", "{", "null", &"[".repeat(100_000)] {
            let error =
                Document::parse(json.as_bytes(), None, &DocumentLimits::default(), "manifest x").unwrap_err();
            assert_eq!(error.kind(), Kind::Integrity, "{error}");
        }
    }

    #[test]
    fn what_is_no_image_of_today_is_not_supported() {
        let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
        for (at, value, reason) in [
            ("/schemaVersion", json!(1), "schema 1 is not supported"),
            (
                "/config/mediaType",
                json!("application/x.helm+json"),
                "it is an artifact (application/x.helm+json), no image",
            ),
            ("/layers/0/mediaType", json!(encrypted), "layer 1 is encrypted, which is not supported"),
        ] {
            let mut document = image();
            *document.pointer_mut(at).unwrap() = value;
            let error = parse(&document, None).unwrap_err();
            assert_eq!((error.to_string(), error.kind()), (format!("manifest x: {reason}"), Kind::Other));
        }
    }

    #[test]
    fn embedded_data_comes_along_verified() {
        let mut document = image();
        document["layers"][0]["data"] = json!(BASE64_STANDARD.encode("layer"));
        assert_eq!(parse_manifest(&document).layers[0].descriptor.data.as_deref(), Some(&b"layer"[..]));
        document["layers"][0]["size"] = json!(6);
        assert!(parse(&document, None).unwrap_err().to_string().contains("/layers/0/data: is not what size"));
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_limit() {
        let parse = |document: &Value, limits: DocumentLimits| {
            Document::parse(document.to_string().as_bytes(), None, &limits, "manifest x").unwrap_err()
        };
        let mut many = image();
        many["layers"] = json!(vec![image()["layers"][0].clone(); 1001]);
        let error = parse(&many, DocumentLimits::default());
        assert_eq!(error.to_string(), "manifest x: 1001 layers are more than the 1000 that are let pass");
        assert_eq!(error.kind(), Kind::Limit);
        let mut config = image();
        config["config"]["size"] = json!((8 << 20) + 1);
        assert_eq!(parse(&config, DocumentLimits::default()).kind(), Kind::Limit);
        assert_eq!(
            parse(&image(), DocumentLimits { manifest: 10, ..DocumentLimits::default() }).kind(),
            Kind::Limit
        );
    }

    #[test]
    fn a_config_has_a_diff_id_for_each_layer() {
        let manifest = parse_manifest(&image());
        let config = |ids: Value| {
            let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ids}});
            Config::parse(config.to_string().as_bytes(), &manifest)
        };
        let good = config(json!([digest("tar")])).unwrap();
        assert_eq!(
            (good.platform.to_string().as_str(), good.diff_ids[0].to_string()),
            ("linux/amd64", digest("tar"))
        );
        let name = format!("invalid config {}", digest("config"));
        for (ids, reason) in [
            (json!([]), "/rootfs/diff_ids: must be as many as layers, 1, and are 0"),
            (json!([digest("a"), digest("b")]), "/rootfs/diff_ids: must be as many as layers, 1, and are 2"),
            (json!(["sha256:.."]), "/rootfs/diff_ids/0: must be sha256: and 64"),
        ] {
            let error = config(ids).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{name}: {reason}")), "{error}");
            assert_eq!(error.kind(), Kind::Integrity);
        }
    }

    fn entry(platform: Option<&str>, of: &str) -> Value {
        let mut entry = json!({"mediaType": OCI_MANIFEST, "digest": digest(of), "size": 9});
        if let Some(platform) = platform {
            let mut parts = platform.split('/');
            let mut part = || parts.next().unwrap_or_default();
            entry["platform"] = json!({"os": part(), "architecture": part(), "variant": part()});
        }
        entry
    }

    fn index(entries: &[Value]) -> Vec<u8> {
        json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes()
    }

    #[test]
    fn the_nearest_platform_is_selected() {
        let entries = [
            entry(None, "unknown"),
            entry(Some("unknown/unknown"), "attestation"),
            entry(Some("linux/arm/v5"), "v5"),
            entry(Some("linux/arm/v6"), "v6"),
            entry(Some("linux/amd64"), "amd64"),
            entry(Some("linux/amd64"), "again"),
        ];
        let all = Document::parse(&index(&entries), None, &DocumentLimits::default(), "index").unwrap();
        let Document::Index(all) = all else { panic!("no index") };
        for (platform, image) in
            [("linux/arm/v7", "v6"), ("linux/arm/v5", "v5"), ("amd64", "amd64"), ("riscv64", "unknown")]
        {
            let found = select(&all, &Platform::parse(platform).unwrap()).unwrap();
            assert_eq!(found.digest.to_string(), digest(image), "{platform}");
        }
        let error = select(&all[1..], &Platform::parse("riscv64").unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(
            (error.to_string().as_str(), error.way_out()),
            (
                "the image is not there for linux/riscv64",
                Some("There are: linux/arm/v5, linux/arm/v6, linux/amd64. Take one with --platform.")
            )
        );
    }

    /// The manifest inside of so many indexes.
    fn nested(depth: usize) -> Result<Found> {
        let mut documents = vec![image().to_string().into_bytes()];
        for at in 0..depth {
            let inner = &documents[at];
            let media_type = if at == 0 { OCI_MANIFEST } else { OCI_INDEX };
            let inner = json!({"mediaType": media_type, "digest": Digest::of(inner).to_string(), "size": inner.len()});
            documents.push(index(&[inner]));
        }
        let bytes = documents.last().unwrap().clone();
        let top = Received { digest: Digest::of(&bytes), media_type: None, bytes };
        resolve(top, &Platform::host(), &DocumentLimits::default(), |wanted| {
            Ok(documents.iter().find(|bytes| Digest::of(bytes) == wanted.digest).unwrap().clone())
        })
    }

    #[test]
    fn four_indexes_are_followed_and_no_more() {
        for depth in [0, 1, 4] {
            assert_eq!(nested(depth).unwrap().bytes, image().to_string().into_bytes());
        }
        assert_eq!(nested(5).unwrap_err().kind(), Kind::Limit);
    }
}
