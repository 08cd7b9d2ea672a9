//! Who we are to a registry: docker's config.json (`auths`, `credHelpers`, `credsStore`), which podman's auth.json
//! is a part of.
//!
//! `--creds-file`, or else $REGISTRY_AUTH_FILE, or else $DOCKER_CONFIG/config.json and podman's
//! $XDG_RUNTIME_DIR/containers/auth.json. <https://docs.docker.com/reference/cli/docker/login/>,
//! <https://github.com/docker/docker-credential-helpers>

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::error::{Context, Error, Result};

#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Basic {
        user: String,
        password: String,
    },
    /// What an OAuth 2 server gives tokens for.
    IdentityToken(String),
    /// What the registry itself takes.
    RegistryToken(String),
}

impl Credential {
    /// The value of `Authorization: Basic`.
    pub fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
    }
}

pub struct Credentials {
    /// The first that knows the registry counts; the first is written to.
    files: Vec<PathBuf>,
}

impl Credentials {
    pub fn new(creds_file: Option<&Path>) -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = creds_file.map(Path::to_owned).or_else(|| variable("REGISTRY_AUTH_FILE")) {
            return Self { files: vec![file] };
        }
        let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
        let docker = docker.map(|dir| dir.join("config.json"));
        let podman = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
        Self { files: docker.into_iter().chain(podman).collect() }
    }

    pub fn get(&self, registry: &str, repository: &str) -> Result<Option<Credential>> {
        for path in &self.files {
            let config = read(path)?;
            let found = match helper(&config, registry) {
                Some(name) => ask_helper(&name, registry)?,
                None => None,
            };
            let found = match found {
                None => from_auths(&config, registry, repository).context(|| reading(path))?,
                found => found,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Where it was put: a file, or a helper's name.
    pub fn store(&self, registry: &str, user: &str, password: &str) -> Result<String> {
        let (path, mut config) = self.first()?;
        if let Some(name) = helper(&config, registry) {
            let secret =
                json!({"ServerURL": key(registry), "Username": user, "Secret": password}).to_string();
            run_helper(&name, "store", &secret)?.map_err(|said| helper_failed(&name, "store", &said))?;
            return Ok(format!("docker-credential-{name}"));
        }
        let auth = json!({"auth": BASE64_STANDARD.encode(format!("{user}:{password}"))});
        let auths = config.entry("auths").or_insert_with(|| json!({}));
        let auths = auths
            .as_object_mut()
            .ok_or_else(|| Error::new("/auths: must be an object"))
            .context(|| reading(&path))?;
        auths.retain(|name, _| host_of(name) != host_of(&key(registry)));
        auths.insert(key(registry), auth);
        write(&path, &config)?;
        Ok(path.display().to_string())
    }

    /// Whether anything was known of it.
    pub fn erase(&self, registry: &str) -> Result<bool> {
        let (path, mut config) = self.first()?;
        let mut known = false;
        if let Some(name) = helper(&config, registry) {
            known = ask_helper(&name, registry)?.is_some();
            if known {
                run_helper(&name, "erase", &key(registry))?
                    .map_err(|said| helper_failed(&name, "erase", &said))?;
            }
        }
        if let Some(auths) = config.get_mut("auths").and_then(Value::as_object_mut) {
            let before = auths.len();
            auths.retain(|name, _| host_of(name) != host_of(&key(registry)));
            if auths.len() < before {
                known = true;
                write(&path, &config)?;
            }
        }
        Ok(known)
    }

    fn first(&self) -> Result<(PathBuf, Map<String, Value>)> {
        let path = self.files.first().ok_or_else(|| {
            Error::new("find the file for credentials: there is no $HOME")
                .with_way_out("Name one with --creds-file.")
        })?;
        Ok((path.clone(), read(path)?))
    }
}

/// Docker Hub's, from the days of its first API.
fn key(registry: &str) -> String {
    if registry == "docker.io" { "https://index.docker.io/v1/".to_owned() } else { registry.to_owned() }
}

/// The part of a key that names the registry.
fn host_of(key: &str) -> &str {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

fn reading(path: &Path) -> String {
    format!("read credentials {}", path.display())
}

/// Empty if the file is not there.
fn read(path: &Path) -> Result<Map<String, Value>> {
    let what = || reading(path);
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(error).context(what),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    serde_json::from_slice(&bytes).map_err(|e| Error::new(format!("{}: {e}", what())))
}

/// At once and for nobody else to read; the rest of the file is docker's, and kept.
fn write(path: &Path, config: &Map<String, Value>) -> Result<()> {
    let what = || format!("write credentials {}", path.display());
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).context(what)?;
    }
    // A link to the file stays one.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(name);
    let text = serde_json::to_string_pretty(config).map_err(|e| Error::new(e.to_string())).context(what)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.or_else(|error| {
        // ENOENT: it was not made.
        let _ = fs::remove_file(&new);
        Err(error).context(what)
    })
}

/// The helper for a registry, if one is named.
fn helper(config: &Map<String, Value>, registry: &str) -> Option<String> {
    let own = config.get("credHelpers").and_then(Value::as_object).and_then(|helpers| {
        helpers.iter().find(|(name, _)| host_of(name) == registry).and_then(|(_, helper)| helper.as_str())
    });
    let name = own.or_else(|| config.get("credsStore").and_then(Value::as_str));
    name.filter(|name| !name.is_empty()).map(str::to_owned)
}

fn from_auths(config: &Map<String, Value>, registry: &str, repository: &str) -> Result<Option<Credential>> {
    let Some(auths) = config.get("auths").and_then(Value::as_object) else { return Ok(None) };
    // podman's keys may go on with a part of the repository's path: the longest one counts.
    let full = format!("{registry}/{repository}");
    let fits = |name: &str| {
        let whole_host = name.contains("://") || !name.contains('/');
        let within = full.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if whole_host { host_of(name) == registry } else { within }
    };
    let entries = auths.iter().filter(|(name, _)| fits(name));
    let Some((name, auth)) =
        entries.max_by_key(|(name, _)| if name.contains("://") { 0 } else { name.len() })
    else {
        return Ok(None);
    };
    let text = |key: &str| auth.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credential::IdentityToken(token.to_owned())));
    }
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Credential::RegistryToken(token.to_owned())));
    }
    if let Some(auth) = text("auth") {
        let wrong = || Error::new(format!("/auths/{name}/auth: must be the base64 of user:password"));
        let decoded = BASE64_STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or_else(wrong)?;
        let (user, password) = decoded.trim_end_matches('\0').split_once(':').ok_or_else(wrong)?;
        return Ok(Some(Credential::Basic { user: user.to_owned(), password: password.to_owned() }));
    }
    Ok(text("username")
        .zip(text("password"))
        .map(|(user, password)| Credential::Basic { user: user.to_owned(), password: password.to_owned() }))
}

fn ask_helper(name: &str, registry: &str) -> Result<Option<Credential>> {
    let said = match run_helper(name, "get", &key(registry))? {
        Ok(said) => said,
        Err(said) if said.contains("credentials not found") => return Ok(None),
        Err(said) => return Err(helper_failed(name, "get", &said)),
    };
    let wrong =
        || Error::new(format!("run docker-credential-{name} get: it must answer with Username and Secret"));
    let answer: Value = serde_json::from_str(&said).map_err(|_| wrong())?;
    let text = |key: &str| answer[key].as_str().map(str::to_owned).ok_or_else(wrong);
    let (user, secret) = (text("Username")?, text("Secret")?);
    Ok(Some(match user.as_str() {
        "<token>" => Credential::IdentityToken(secret),
        _ => Credential::Basic { user, password: secret },
    }))
}

/// What it says: `Ok` with success, `Err` without.
fn run_helper(name: &str, action: &str, input: &str) -> Result<Result<String, String>> {
    const MOST: u64 = 64 << 10; // bytes
    let program = format!("docker-credential-{name}");
    let what = || format!("run {program} {action}");
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(Error::new(format!("{}: that is no name of a helper", what())));
    }
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        // EPIPE: `list` and the like do not read; what it says shows the rest.
        let _ = stdin.write_all(input.as_bytes());
    }
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MOST).read_to_string(&mut said).context(what)?;
    }
    let status = child.wait().context(what)?;
    let said = said.trim().to_owned();
    Ok(if status.success() { Ok(said) } else { Err(said) })
}

fn helper_failed(name: &str, action: &str, said: &str) -> Error {
    let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
    Error::new(format!("run docker-credential-{name} {action}: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Basic { user: user.into(), password: password.into() })
    }

    fn config(config: Value) -> Map<String, Value> {
        config.as_object().unwrap().clone()
    }

    #[test]
    fn a_registrys_entry_is_found_by_its_host() {
        let auth = |text: &str| json!({"auth": BASE64_STANDARD.encode(text)});
        let config = config(json!({"auths": {
            "https://index.docker.io/v1/": auth("hub:a:b"),
            "ghcr.io": auth("g:1"),
            "ghcr.io/org": auth("o:2"),
            "ghcr.io/org/app": auth("p:3"),
            "https://r.example:5000": {"username": "u", "password": "p"},
            "idp.example": {"identitytoken": "t"},
            "empty.example": {},
        }}));
        for (registry, repository, expected) in [
            ("docker.io", "library/alpine", basic("hub", "a:b")),
            ("ghcr.io", "a/b", basic("g", "1")),
            ("ghcr.io", "org", basic("o", "2")),
            ("ghcr.io", "org/x", basic("o", "2")),
            ("ghcr.io", "org/app", basic("p", "3")),
            ("ghcr.io", "organ/x", basic("g", "1")),
            ("r.example:5000", "a", basic("u", "p")),
            ("r.example", "a", None),
            ("xghcr.io", "a", None),
            ("io", "a", None),
            ("idp.example", "a", Some(Credential::IdentityToken("t".into()))),
            ("empty.example", "a", None),
        ] {
            assert!(
                from_auths(&config, registry, repository).unwrap() == expected,
                "{registry}/{repository}"
            );
        }
        for auth in ["?", "dXNlcg==", "/////w=="] {
            let config = json!({"auths": {"r": {"auth": auth}}});
            assert!(from_auths(config.as_object().unwrap(), "r", "a").is_err(), "{auth}");
        }
    }

    #[test]
    fn a_registrys_own_helper_comes_before_the_store() {
        let config = config(json!({"credsStore": "all", "credHelpers": {"ghcr.io": "gh"}}));
        assert_eq!(helper(&config, "ghcr.io").as_deref(), Some("gh"));
        assert_eq!(helper(&config, "docker.io").as_deref(), Some("all"));
        assert_eq!(helper(&Map::new(), "docker.io"), None);
        for name in ["../x", "a b", "x;y"] {
            assert!(
                run_helper(name, "get", "").unwrap_err().to_string().contains("no name of a helper"),
                "{name}"
            );
        }
    }
}
