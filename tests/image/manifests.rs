//! Manifests by tag and digest, from registries that lie.

use keel::error::Kind;
use keel::image::digest::Digest;
use keel::image::platform::Platform;
use serde_json::json;

use crate::place::{Place, config, limits, manifest, named};
use crate::server::{Body, Reply, Server};
use crate::tests;

tests![
    an_image_is_found_by_its_tag,
    what_does_not_exist_is_not_found,
    a_manifest_that_is_not_its_digest_is_refused,
    a_digest_header_that_is_a_path_is_refused,
    an_endless_manifest_is_refused_by_its_limit,
    an_index_whose_manifest_has_another_size_is_refused,
    a_config_with_too_few_diff_ids_is_refused,
    escapes_in_what_a_registry_says_do_not_reach_the_terminal,
];

const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn an_image_is_found_by_its_tag() {
    let config = config().to_string();
    let manifest = manifest(config.as_bytes(), b"layer").to_string();
    let (digest, config_path) =
        (Digest::of(manifest.as_bytes()), format!("/v2/test/app/blobs/{}", Digest::of(config.as_bytes())));
    let server = Server::new(move |request| match request.path.as_str() {
        "/v2/test/app/manifests/v1" => Reply::new(200, &manifest).header("Content-Type", TYPE),
        path if path == config_path => Reply::new(200, &config),
        _ => Reply::new(404, ""),
    });
    let run = Place::new().keel_image(&["inspect", &format!("{}/test/app:v1", server.address)]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let json = run.json();
    assert_eq!(json["digest"], digest.to_string());
    assert_eq!(json["platform"], Platform::host().to_string());
    assert_eq!(json["size"], 5);
    assert_eq!(json["config"]["rootfs"]["diff_ids"][0], Digest::of(b"tar").to_string());
    let accept = &server.seen()[0].headers["accept"];
    assert_eq!(accept.matches("application/vnd.").count(), 4, "{accept}");
}

fn what_does_not_exist_is_not_found() {
    let server = Server::new(|_| {
        Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
    });
    let reference = format!("{}/test/app:v1", server.address);
    let run = Place::new().keel_image(&["inspect", &reference]);
    assert_eq!(run.code, 3, "{run:?}");
    assert_eq!(run.stderr, format!("keel-image: {reference}: http://{} does not have it\n", server.address));
    assert_eq!(Place::new().client().manifest_digest(&named(&reference), &limits()).unwrap(), None);
}

fn a_manifest_that_is_not_its_digest_is_refused() {
    let sent = manifest(b"config", b"layer").to_string();
    let digest = Digest::of(sent.as_bytes());
    let server = Server::new(move |request| {
        let promised = if request.path.ends_with("promised") {
            Digest::of(b"other")
        } else {
            Digest::of(sent.as_bytes())
        };
        Reply::new(200, &sent).header("Content-Type", TYPE).header("Docker-Content-Digest", promised)
    });
    let (place, other) = (Place::new(), Digest::of(b"other"));
    let get = |rest: &str| {
        place.client().manifest(&named(&format!("{}/test/app{rest}", server.address)), &limits())
    };
    assert_eq!(get(&format!("@{digest}")).unwrap().digest, digest);
    assert_eq!(get(":right").unwrap().digest, digest);
    for rest in [format!("@{other}"), ":promised".to_owned()] {
        let error = get(&rest).unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity, "{error}");
    }
}

fn a_digest_header_that_is_a_path_is_refused() {
    let server =
        Server::new(|_| Reply::new(200, "{}").header("Docker-Content-Digest", "sha256:../../../etc/passwd"));
    let error =
        Place::new().client().manifest(&named(&format!("{}/a", server.address)), &limits()).unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    assert!(error.to_string().contains("its Docker-Content-Digest must be sha256:"), "{error}");
}

fn an_endless_manifest_is_refused_by_its_limit() {
    let server = Server::new(|_| Reply::new(200, "").with(Body::Endless));
    let run = Place::new().keel_image(&["inspect", &format!("{}/a", server.address)]);
    assert_eq!(run.code, 6, "{run:?}");
    assert!(run.stderr.contains("it is larger than 4194304 bytes"), "{run:?}");
    let announced = Server::new(|_| Reply::new(200, "").header("Content-Length", 5 << 20));
    let run = Place::new().keel_image(&["inspect", &format!("{}/a", announced.address)]);
    assert_eq!(run.code, 6, "{run:?}");
}

fn an_index_whose_manifest_has_another_size_is_refused() {
    let inner = manifest(b"config", b"layer").to_string();
    let platform = Platform::host();
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": TYPE, "digest": Digest::of(inner.as_bytes()).to_string(), "size": inner.len() + 1,
        "platform": {"os": platform.os, "architecture": platform.architecture},
    }]});
    let server = Server::new(move |request| match request.path.rsplit('/').next() {
        Some("latest") => Reply::new(200, index.to_string()),
        _ => Reply::new(200, &inner),
    });
    let run = Place::new().keel_image(&["inspect", "-q", &format!("{}/a", server.address)]);
    assert_eq!(run.code, 5, "{run:?}");
    let length = manifest(b"config", b"layer").to_string().len();
    assert!(run.stderr.ends_with(&format!("it has {length} bytes, not {}\n", length + 1)), "{run:?}");
    let other = Place::new().keel_image(&[
        "inspect",
        "-q",
        "--platform=plan9/mips",
        &format!("{}/a", server.address),
    ]);
    assert_eq!(other.code, 3, "{other:?}");
    assert!(
        other.stderr.contains(&format!("\n  There are: {}. Take one with --platform.\n", platform)),
        "{other:?}"
    );
}

fn a_config_with_too_few_diff_ids_is_refused() {
    let mut config = config();
    config["rootfs"]["diff_ids"] = json!([]);
    let config = config.to_string();
    let manifest = manifest(config.as_bytes(), b"layer").to_string();
    let server = Server::new(move |request| {
        Reply::new(200, if request.path.contains("/manifests/") { &manifest } else { &config })
    });
    let run = Place::new().keel_image(&["inspect", &format!("{}/a:1", server.address)]);
    assert_eq!(run.code, 5, "{run:?}");
    assert!(run.stderr.contains("/rootfs/diff_ids: must be as many as layers, 1, and are 0"), "{run:?}");
}

fn escapes_in_what_a_registry_says_do_not_reach_the_terminal() {
    let server = Server::new(|_| {
        Reply::new(400, "{\"errors\":[{\"message\":\"\\u001b]0;x\\u0007 no\\nkeel-image: all is well\"}]}")
    });
    let run = Place::new().keel_image(&["inspect", &format!("{}/a:1", server.address)]);
    assert_eq!((run.code, run.stderr.lines().count()), (1, 1), "{run:?}");
    assert!(
        run.stderr.ends_with("]0;x nokeel-image: all is well\n") && !run.stderr.contains('\u{1b}'),
        "{run:?}"
    );
}
