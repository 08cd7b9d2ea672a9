//! An image's config, and what the user wants otherwise, become what the container's process is: pure, before anything
//! is made.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/conversion.md>,
//! <https://github.com/opencontainers/image-spec/blob/main/config.md>

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::image::digest::brief;
use crate::root::cleaned;
use crate::spec::{self, Node, Report};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Annotations that tell some runtime, or a hook of one, what to do. An image is nobody to say that: `org.criu.config`
/// names a file whose `action-script` CRIU runs as root. keel's own are held by a test against `keel features`.
const DRIVING: [&str; 12] = [
    "org.keel.",
    "org.criu.",
    "org.systemd.property.",
    // crun's, and of its handlers.
    "run.oci.",
    "module.wasm.",
    "krun.",
    "io.katacontainers.",
    // gVisor's.
    "dev.gvisor.",
    "io.kubernetes.cri.",
    "io.kubernetes.cri-o.",
    // The hook that traces system calls into a file of this name.
    "io.containers.",
    "io.podman.",
];
const MOST_VOLUMES: usize = 1000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Annotations {
    /// The image's labels, but for those that drive runtimes
    #[default]
    Safe,
    All,
    None,
}

/// What the user wants instead of the image's own.
#[derive(Debug, Default)]
pub struct Overrides {
    pub user: Option<String>,
    /// `NAME=VALUE`, or `NAME` for the caller's own.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    pub entrypoint: Option<String>,
    /// In place of Cmd.
    pub args: Vec<String>,
    pub annotations: Annotations,
}

#[derive(Debug, Default, PartialEq)]
pub struct Converted {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    /// To be looked up in the image.
    pub user: String,
    pub annotations: BTreeMap<String, String>,
    /// Where the image wants volumes, absolute.
    pub volumes: Vec<PathBuf>,
    pub warnings: Vec<String>,
}

/// `name` is for errors.
pub fn convert(config: &[u8], name: &str, overrides: &Overrides) -> Result<Converted> {
    let report = Report::default();
    let malformed = |error: Error| error.with_kind(Kind::Integrity);
    let map = spec::parse(config, &report).map_err(|error| malformed(error).because(name.to_owned()))?;
    let root = Node::root(&map, &report);
    let image = root.object_or_empty("config");
    let mut converted = Converted::default();
    converted.process(&image, overrides);
    converted.user = overrides.user.clone().unwrap_or_else(|| text(&image, "User"));
    converted.set_annotations(&root, &image, overrides.annotations);
    if image.object_or_empty("Volumes").keys().count() > MOST_VOLUMES {
        let message = format!("{name}: it has more than {MOST_VOLUMES} volumes");
        return Err(Error::of_kind(Kind::Limit, message));
    }
    converted.set_volumes(&image);
    report.finish().map_err(|error| malformed(error).in_document(name.to_owned(), ""))?;
    if converted.args.is_empty() {
        return Err(Error::new(format!("{name}: the image has neither an entrypoint nor a command"))
            .with_way_out("Say what to run, after --."));
    }
    Ok(converted)
}

impl Converted {
    fn process(&mut self, image: &Node, overrides: &Overrides) {
        let list = |key| image.strings(key).into_iter().map(|(text, _)| text.to_owned()).collect::<Vec<_>>();
        let (entrypoint, cmd) = (list("Entrypoint"), list("Cmd"));
        // Another program has no use for the arguments of the old one.
        let (entrypoint, cmd) = match &overrides.entrypoint {
            Some(entrypoint) => {
                (Some(entrypoint.clone()).into_iter().filter(|e| !e.is_empty()).collect(), vec![])
            }
            None => (entrypoint, cmd),
        };
        let cmd = if overrides.args.is_empty() { cmd } else { overrides.args.clone() };
        self.args = [entrypoint, cmd].concat();

        let (env, odd): (Vec<_>, Vec<_>) =
            list("Env").into_iter().partition(|entry| entry.find('=').is_some_and(|at| at > 0));
        if let Some(first) = odd.first() {
            let more = if odd.len() > 1 { format!(" and {} more", odd.len() - 1) } else { String::new() };
            self.warnings.push(format!("environment {:?}{more}: there is no NAME=, left out", brief(first)));
        }
        self.env = env;
        for entry in &overrides.env {
            let entry = match entry.contains('=') {
                true => entry.clone(),
                false => match std::env::var(entry) {
                    Ok(value) => format!("{entry}={value}"),
                    Err(_) => continue,
                },
            };
            let name = entry.split_inclusive('=').next().unwrap_or_default();
            self.env.retain(|own| !own.starts_with(name));
            self.env.push(entry);
        }
        if !self.env.iter().any(|entry| entry.starts_with("PATH=")) {
            self.env.insert(0, PATH.to_owned());
        }

        let cwd = overrides.workdir.clone().unwrap_or_else(|| text(image, "WorkingDir"));
        self.cwd = Path::new("/").join(cwd).to_string_lossy().into_owned();
    }

    fn set_annotations(&mut self, root: &Node, image: &Node, which: Annotations) {
        if which == Annotations::None {
            return;
        }
        let mut implicit = |key: &str, value: String| {
            if !value.is_empty() {
                self.annotations.insert(format!("org.opencontainers.image.{key}"), value);
            }
        };
        for key in ["os", "architecture", "variant", "os.version", "author", "created"] {
            implicit(key, text(root, key));
        }
        let features: Vec<_> = root.strings("os.features").into_iter().map(|(text, _)| text).collect();
        implicit("os.features", features.join(","));
        implicit("stopSignal", text(image, "StopSignal"));
        let ports: Vec<_> = image.object_or_empty("ExposedPorts").keys().collect();
        implicit("exposedPorts", ports.join(","));

        let labels = image.object_or_empty("Labels");
        let mut dropped = Vec::new();
        for key in labels.keys() {
            if which == Annotations::Safe && DRIVING.iter().any(|prefix| key.starts_with(prefix)) {
                dropped.push(format!("{:?}", brief(key)));
            } else if let Some(Value::String(value)) = labels.value(key) {
                self.annotations.insert(key.to_owned(), value.clone());
            }
        }
        // The runtime spec wants a key.
        self.annotations.remove("");
        if let Some(first) = dropped.first() {
            let more =
                if dropped.len() > 1 { format!(" and {} more", dropped.len() - 1) } else { String::new() };
            self.warnings.push(format!(
                "label {first}{more}: it would drive a runtime and is left out; --annotations=all keeps it"
            ));
        }
    }

    fn set_volumes(&mut self, image: &Node) {
        for path in image.object_or_empty("Volumes").keys() {
            let volume = cleaned(Path::new(path));
            let is_below = |top: &&str| volume.starts_with(top);
            if volume == Path::new("/")
                || path.contains('\0')
                || ["/proc", "/sys", "/dev"].iter().any(is_below)
            {
                self.warnings.push(format!("volume {:?}: nothing can be put there, left out", brief(path)));
            } else if !self.volumes.contains(&volume) {
                self.volumes.push(volume);
            }
        }
        // What lies inside of another one comes after it.
        self.volumes.sort();
    }
}

/// Empty if it is not there.
fn text(node: &Node, key: &str) -> String {
    node.string(key).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn converted(config: Value, overrides: &Overrides) -> Converted {
        let mut document = json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["sh"]}});
        for (key, value) in config.as_object().unwrap() {
            document["config"][key] = value.clone();
        }
        convert(document.to_string().as_bytes(), "config x", overrides).unwrap()
    }

    #[test]
    fn the_arguments_are_entrypoint_and_command_or_what_takes_their_place() {
        let of = |entrypoint: Option<&str>, args: &[&str]| Overrides {
            entrypoint: entrypoint.map(str::to_owned),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Overrides::default()
        };
        let both = json!({"Entrypoint": ["nginx", "-q"], "Cmd": ["-g", "daemon off;"]});
        for (overrides, args) in [
            (of(None, &[]), &["nginx", "-q", "-g", "daemon off;"][..]),
            (of(None, &["-t"]), &["nginx", "-q", "-t"]),
            (of(Some("sh"), &[]), &["sh"]),
            (of(Some("sh"), &["-c", "x"]), &["sh", "-c", "x"]),
            (of(Some(""), &["x"]), &["x"]),
        ] {
            assert_eq!(converted(both.clone(), &overrides).args, args);
        }
        let error = convert(br#"{"config": {"Cmd": null}}"#, "config x", &Overrides::default()).unwrap_err();
        assert_eq!(error.to_string(), "config x: the image has neither an entrypoint nor a command");
    }

    #[test]
    fn the_environment_is_kept_but_for_what_is_none() {
        let own = Overrides { env: vec!["B=x".into(), "KEEL_UNSET".into()], ..Overrides::default() };
        let converted = converted(json!({"Env": ["A=1", "odd", "=odd", "B=2=3", "A="]}), &own);
        assert_eq!(converted.env, [PATH, "A=1", "A=", "B=x"]);
        assert_eq!(converted.warnings, ["environment \"odd\" and 1 more: there is no NAME=, left out"]);
    }

    #[test]
    fn the_working_directory_is_absolute() {
        for (cwd, expected) in [("", "/"), ("a/b", "/a/b"), ("/a/../b", "/a/../b")] {
            assert_eq!(converted(json!({"WorkingDir": cwd}), &Overrides::default()).cwd, expected);
        }
    }

    #[test]
    fn labels_become_annotations_but_for_those_that_drive_runtimes() {
        let labels = json!({"Labels": {"a": "b", "run.oci.hooks.stdout": "/x", "org.systemd.property.X": "y",
            "org.opencontainers.image.os": "mine"}, "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}, "90": {}}});
        let of = |annotations| converted(labels.clone(), &Overrides { annotations, ..Overrides::default() });
        let safe = of(Annotations::Safe);
        let expected = [
            ("a", "b"),
            ("org.opencontainers.image.architecture", "amd64"),
            ("org.opencontainers.image.exposedPorts", "80/tcp,90"),
            ("org.opencontainers.image.os", "mine"),
            ("org.opencontainers.image.stopSignal", "SIGQUIT"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(safe.annotations, BTreeMap::from(expected));
        assert_eq!(safe.warnings.len(), 1);
        assert_eq!(of(Annotations::All).annotations.len(), 7);
        assert_eq!(of(Annotations::None).annotations.len(), 0);
    }

    #[test]
    fn no_label_drives_keel() {
        let features: Value = serde_json::from_str(&crate::features::features().unwrap()).unwrap();
        let unsafe_ones = features["potentiallyUnsafeConfigAnnotations"].as_array().unwrap();
        assert!(unsafe_ones.len() >= 3);
        for annotation in unsafe_ones.iter().map(|name| name.as_str().unwrap()) {
            // A prefix of its own ends with a dot.
            let label = format!("{annotation}{}", if annotation.ends_with('.') { "X" } else { "" });
            let converted = converted(json!({"Labels": {&label: "/x"}}), &Overrides::default());
            assert_eq!(converted.annotations.get(&label), None, "{label}");
            assert_eq!(converted.warnings.len(), 1, "{label}");
        }
    }

    #[test]
    fn volumes_are_inside_of_the_container() {
        let volumes =
            json!({"Volumes": {"/b/../../data/": {}, "data": {}, "/": {}, "/proc/1": {}, "/devil": {}}});
        let converted = converted(volumes, &Overrides::default());
        assert_eq!(converted.volumes, [Path::new("/data"), Path::new("/devil")]);
        assert_eq!(converted.warnings.len(), 2);
    }

    /// However many of them are one: to find that out is what would cost.
    #[test]
    fn more_volumes_than_the_limit_are_refused() {
        let volumes = |count| (0..count).map(|i| (format!("/{}v", "/".repeat(i)), json!({})));
        let of = |count| {
            let volumes: serde_json::Map<_, _> = volumes(count).collect();
            let config = json!({"config": {"Cmd": ["x"], "Volumes": volumes}}).to_string();
            convert(config.as_bytes(), "config x", &Overrides::default())
        };
        assert_eq!(of(MOST_VOLUMES).unwrap().volumes, [Path::new("/v")]);
        let error = of(MOST_VOLUMES + 1).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (Kind::Limit, "config x: it has more than 1000 volumes".into())
        );
    }

    #[test]
    fn every_problem_of_a_config_is_named() {
        let config = br#"{"config": {"Cmd": "sh", "Env": [1], "User": 5}}"#;
        let error = convert(config, "config x", &Overrides::default()).unwrap_err();
        for field in ["/config/Cmd", "/config/Env/0", "/config/User"] {
            assert!(error.to_string().contains(field), "{error}");
        }
        assert_eq!(error.kind(), Kind::Integrity);
    }
}
