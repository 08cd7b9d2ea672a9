//! cargo bench --bench unpack -- LAYOUT DIR [apply]: what unpacking an image costs. LAYOUT is an OCI layout with one
//! image; DIR must not exist, and gets a directory for each layer, or with `apply` one for all.

use std::env;
use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use keel::image::compression::Compression;
use keel::image::unpack::{LayerLimits, LayerSpec, Mode, Options, Owners, unpack};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::Value;

fn main() {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [layout, dir, rest @ ..] = &args[..] else {
        return println!("usage: cargo bench --bench unpack -- LAYOUT DIR [apply]");
    };
    let apply = rest.iter().any(|arg| arg == "apply");
    let blob = |digest: &Value| {
        let digest = digest.as_str().expect("a digest").replace(':', "/");
        Path::new(layout).join("blobs").join(digest)
    };
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&fs::read(path).expect("a file of the layout")).expect("JSON")
    };
    let index = read(&Path::new(layout).join("index.json"));
    let manifest = read(&blob(&index["manifests"][0]["digest"]));
    let config = read(&blob(&manifest["config"]["digest"]));
    let layers = manifest["layers"].as_array().expect("layers");
    let mode = if apply { Mode::Apply } else { Mode::Overlay { user_xattr: false } };
    let options = Options { mode, limits: LayerLimits::default(), owners: Owners::Kept, devices: true };
    let begin = Instant::now();
    let (mut entries, mut bytes) = (0, 0);
    for (i, layer) in layers.iter().enumerate() {
        let target = if apply { dir.into() } else { Path::new(dir).join(i.to_string()) };
        fs::create_dir_all(&target).expect("a new directory");
        let spec = LayerSpec {
            number: (i + 1, layers.len()),
            digest: layer["digest"].as_str().expect("a digest").into(),
            size: layer["size"].as_u64().expect("a size"),
            diff_id: config["rootfs"]["diff_ids"][i].as_str().expect("a diff_id").into(),
            compression: Compression::of_media_type(layer["mediaType"].as_str().expect("a type"))
                .expect("a layer"),
        };
        let stream = File::open(blob(&layer["digest"])).expect("the blob");
        let target = File::open(target).expect("the directory");
        let unpacked = unpack(stream, &spec, target.into(), &options).expect("it unpacks");
        entries += unpacked.entries;
        bytes += unpacked.bytes;
    }
    let elapsed = begin.elapsed();
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let (user, system) = (seconds(usage.user_time()), seconds(usage.system_time()));
    println!(
        "{entries} entries, {} MB: user {user:.2} s + system {system:.2} s = {:.2} s, {:.2} s long, RSS {} MB",
        bytes >> 20,
        user + system,
        elapsed.as_secs_f64(),
        usage.max_rss() >> 10,
    );
}
