//! Images that are made here, by `import` and `commit`: a layer's blob, a config, a manifest, and then the name.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::image::cli::{ConfigOptions, Global};
use crate::image::digest::Digest;
use crate::image::fetch::Fetch;
use crate::image::limits::Limits;
use crate::image::manifest::{Config, Descriptor, Document, Found, OCI_CONFIG, OCI_MANIFEST, Received};
use crate::image::pack::compress::{Compressor, Method};
use crate::image::pull::top_descriptor;
use crate::image::source::{Image, Source};
use crate::image::store::Store;
use crate::image::store::blobs::Insert;

/// Stores a layer, and gives its diff_id. `fill` writes the archive, and may say something of it.
pub fn layer<T>(
    store: &Store,
    method: Method,
    fill: impl FnOnce(&mut Compressor<Insert<'_>>) -> Result<T>,
) -> Result<(Descriptor, Digest, T)> {
    let mut compressor = Compressor::new(store.insert_new()?, method)?;
    let said = fill(&mut compressor)?;
    let (diff_id, insert) = compressor.finish().context(|| "write a layer")?;
    let (digest, size) = insert.finish()?;
    Ok((Descriptor::new(method.compression.media_type(), digest, size), diff_id, said))
}

/// Gives the image of these layers, the lowest first, a name in the store; it is ready for a bundle.
pub fn image(
    global: &Global,
    store: &Store,
    name: &str,
    config: &Value,
    layers: &[Descriptor],
    limits: &Limits,
) -> Result<Image> {
    let config = config.to_string().into_bytes();
    let entry = |media_type: &str, digest: &Digest, size: u64| json!({"mediaType": media_type, "digest": digest.to_string(), "size": size});
    let layers: Vec<_> =
        layers.iter().map(|layer| entry(&layer.media_type, &layer.digest, layer.size)).collect();
    let document = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": entry(OCI_CONFIG, &Digest::of(&config), config.len() as u64), "layers": layers});
    let bytes = document.to_string().into_bytes();
    let manifest = match Document::parse(&bytes, Some(OCI_MANIFEST), &limits.documents, "the new manifest")? {
        Document::Manifest(manifest) => *manifest,
        Document::Index(_) => return Err(Error::new("the new manifest is an index")),
    };
    let parsed = Config::parse(&config, &manifest)?;
    let (digest, media_type) = (Digest::of(&bytes), OCI_MANIFEST.to_owned());
    let top = Received { digest: digest.clone(), media_type: Some(media_type.clone()), bytes: bytes.clone() };
    let found = Found { digest, media_type, bytes, manifest };
    let image = Image { top, found, config_bytes: config, config: parsed };
    let (source, progress) = (Source::Store { store, name: name.to_owned() }, global.progress());
    let fetch = Fetch {
        store,
        source: &source,
        limits,
        jobs: global.jobs(),
        progress: &progress,
        devices: false,
        rootless: global.rootless.as_ref(),
    };
    fetch.into_store(&image)?;
    store.put_ref(name, &top_descriptor(&image))?;
    Ok(image)
}

/// The name with its digest.
pub fn result(global: &Global, name: &str, image: &Image) -> Vec<u8> {
    let digest = &image.top.digest;
    match global.json {
        true => format!("{:#}\n", json!({"name": name, "digest": digest.to_string()})).into_bytes(),
        false => format!("{name}@{digest}\n").into_bytes(),
    }
}

/// Now, or the time that a reproducible build is given: <https://reproducible-builds.org/specs/source-date-epoch/>.
pub fn now() -> Result<String> {
    let time = match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => SystemTime::now(),
        Ok(text) => {
            let seconds = text.parse().ok().filter(|seconds| *seconds < 1 << 37);
            let wrong =
                || Error::new(format!("$SOURCE_DATE_EPOCH: must be seconds since 1970, not {text:?}"));
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.ok_or_else(wrong)?)
        }
    };
    Ok(humantime::format_rfc3339_seconds(time).to_string())
}

/// Adds a layer to a config's list, with a line of its history.
pub fn add_layer(
    config: &mut Value,
    diff_id: &Digest,
    created_by: &str,
    comment: Option<&str>,
) -> Result<()> {
    let mut line = json!({"created": now()?, "created_by": created_by});
    if let Some(comment) = comment {
        line["comment"] = json!(comment);
    }
    config["created"] = line["created"].clone();
    config["rootfs"]["type"] = json!("layers");
    push(&mut config["rootfs"]["diff_ids"], json!(diff_id.to_string()));
    push(&mut config["history"], line);
    Ok(())
}

fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}

impl ConfigOptions {
    /// Changes the part of an image's config that is about its containers.
    pub fn apply(&self, config: &mut Value) {
        let config = &mut config["config"];
        if config.is_null() {
            *config = json!({});
        }
        let texts = [("User", &self.user), ("WorkingDir", &self.workdir), ("StopSignal", &self.stop_signal)];
        for (key, text) in texts {
            if let Some(text) = text {
                config[key] = json!(text);
            }
        }
        for (key, args) in [("Entrypoint", &self.entrypoint), ("Cmd", &self.cmd)] {
            if let Some(args) = args {
                config[key] = json!(args.0);
            }
        }
        for variable in &self.env {
            let key = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
            let replaced = config["Env"].as_array_mut().and_then(|list| {
                list.iter_mut().find(|old| old.as_str().is_some_and(|old| key(old) == key(variable)))
            });
            match replaced {
                Some(old) => *old = json!(variable),
                None => push(&mut config["Env"], json!(variable)),
            }
        }
        for label in &self.label {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            config["Labels"][key] = json!(value);
        }
        for volume in &self.volume {
            config["Volumes"][volume] = json!({});
        }
        for port in &self.expose {
            let protocol = if port.contains('/') { "" } else { "/tcp" };
            config["ExposedPorts"][format!("{port}{protocol}")] = json!({});
        }
    }
}

/// The words of a command: a JSON list, or a line for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

impl std::str::FromStr for Words {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('[') {
            return serde_json::from_str(text)
                .map(Self)
                .map_err(|error| format!("must be a JSON list of strings: {error}"));
        }
        let shell = ["/bin/sh", "-c", text].map(str::to_owned).to_vec();
        Ok(Self(if text.is_empty() { Vec::new() } else { shell }))
    }
}

pub fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}

pub fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("must be an absolute path".to_owned()) }
}

pub fn port(text: &str) -> Result<String, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    match (number.parse::<u16>(), protocol) {
        (Ok(1..), "tcp" | "udp" | "sctp") => Ok(text.to_owned()),
        _ => Err("must be PORT[/tcp|udp|sctp]".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_list_or_a_line_for_the_shell() {
        let words = |text: &str| text.parse::<Words>().map(|words| words.0);
        assert_eq!(words(r#"["a", "b c"]"#).unwrap(), ["a", "b c"]);
        assert_eq!(words("a 'b c'").unwrap(), ["/bin/sh", "-c", "a 'b c'"]);
        assert_eq!(words("").unwrap(), Vec::<String>::new());
        assert!(words("[a]").is_err() && words("[1]").is_err());
    }

    #[test]
    fn options_change_what_they_name_and_nothing_else() {
        let mut config =
            json!({"os": "linux", "config": {"Env": ["A=1", "B=2"], "Cmd": ["x"], "Labels": {"k": "v"}}});
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let options = ConfigOptions {
            cmd: None,
            entrypoint: Some(Words(vec!["/e".into()])),
            env: texts(&["B=3", "C=4"]),
            workdir: Some("/w".into()),
            user: None,
            label: texts(&["l=m=n"]),
            volume: texts(&["/v"]),
            expose: texts(&["80", "53/udp"]),
            stop_signal: None,
        };
        options.apply(&mut config);
        let expected = json!({"Env": ["A=1", "B=3", "C=4"], "Cmd": ["x"], "Entrypoint": ["/e"], "WorkingDir": "/w",
            "Labels": {"k": "v", "l": "m=n"}, "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}, "53/udp": {}}});
        assert_eq!(config, json!({"os": "linux", "config": expected}));
    }
}
