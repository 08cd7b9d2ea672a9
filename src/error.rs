//! One error type for the whole runtime: what was done, to what, with which value, what the kernel
//! said, and which line of config.json asked for it.
//!
//! ```text
//! create container c1: write 4096 to memory.max: Invalid argument (22) [config.json /linux/resources/memory/limit]
//! ```

use std::fmt;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An RFC 6901 JSON pointer into config.json.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field(String);

impl Field {
    pub fn root() -> Self {
        Self::default()
    }

    /// The pointer one step further down; an array index is written in decimal.
    pub fn child(&self, key: impl fmt::Display) -> Self {
        let key = key.to_string();
        let key = if key.contains(['~', '/']) { key.replace('~', "~0").replace('/', "~1") } else { key };
        Self(format!("{}/{key}", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

/// One thing that is wrong with config.json, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub field: Field,
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Only what callers branch on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[default]
    Other,
    /// The container does not exist.
    NoContainer,
    /// The container is not running, or not in the state that the command needs.
    WrongStatus,
    /// A signal has ended the wait.
    Interrupted,
    // What keel-image has an exit code for; no container's init sends these.
    /// The image, tag or file does not exist.
    #[serde(skip)]
    NotFound,
    /// The registry wants other credentials.
    #[serde(skip)]
    Denied,
    /// What was received is not what was asked for, or is malformed.
    #[serde(skip)]
    Integrity,
    /// More than is let pass.
    #[serde(skip)]
    Limit,
    /// The disk is full.
    #[serde(skip)]
    NoSpace,
}

#[derive(Serialize, Deserialize)]
struct Inner {
    /// Innermost first.
    context: Vec<String>,
    errno: Option<i32>,
    field: Option<Field>,
    problems: Vec<Problem>,
    kind: Kind,
    /// What the fields are in, if it is not config.json.
    document: Option<String>,
    /// What the user can do about it.
    way_out: Option<String>,
}

/// Opaque; it travels from init to its parent as JSON.
#[derive(Serialize, Deserialize)]
pub struct Error(Box<Inner>);

impl Error {
    pub fn new(message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            context: vec![message.into()],
            errno: None,
            field: None,
            problems: Vec::new(),
            kind: Kind::Other,
            document: None,
            way_out: None,
        }))
    }

    pub fn of_kind(kind: Kind, message: impl Into<String>) -> Self {
        let mut error = Self::new(message);
        error.0.kind = kind;
        error
    }

    /// A config that cannot be run, with everything that is wrong with it.
    pub fn invalid_config(problems: Vec<Problem>) -> Self {
        let mut error = Self::new("");
        error.0.context.clear();
        error.0.problems = problems;
        error
    }

    /// The error of what `document` describes, which config.json would have at `place`.
    pub fn in_document(mut self, document: String, place: &str) -> Self {
        let inner = &mut *self.0;
        let problems = inner.problems.iter_mut().map(|problem| &mut problem.field);
        let fields: Vec<_> = inner.field.iter_mut().chain(problems).collect();
        if fields.iter().all(|field| field.0.starts_with(place)) {
            fields.into_iter().for_each(|field| drop(field.0.drain(..place.len())));
            inner.document = Some(document);
        }
        self
    }

    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Says what the user can do about it: a second line, after the error's own; the innermost wins.
    pub fn with_way_out(mut self, text: impl Into<String>) -> Self {
        self.0.way_out.get_or_insert_with(|| text.into());
        self
    }

    pub fn way_out(&self) -> Option<&str> {
        self.0.way_out.as_deref()
    }

    pub fn errno(&self) -> Option<Errno> {
        self.0.errno.map(Errno::from_raw)
    }

    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }

    /// The config field that asked for what failed.
    pub fn names(&self) -> Option<&Field> {
        self.0.field.as_ref()
    }

    /// Names the config field that asked for what failed; the innermost naming wins.
    pub fn field(mut self, field: &Field) -> Self {
        self.0.field.get_or_insert_with(|| field.clone());
        self
    }

    /// The error as init sends it; a longer text than `most` bytes is cut.
    pub fn to_json(&self, most: usize) -> Vec<u8> {
        let encode = |error: &Self| serde_json::to_vec(error).unwrap_or_default();
        let json = encode(self);
        if json.len() <= most {
            return json;
        }
        let mut text = self.to_string();
        // JSON makes at most six bytes of one character's byte (\u0000).
        text.truncate(text.floor_char_boundary((most - 256) / 6));
        encode(&Self::of_kind(self.kind(), text))
    }

    /// The error that init sent; the text as it is if it does not read.
    pub fn from_json(json: &[u8]) -> Self {
        serde_json::from_slice(json).unwrap_or_else(|_| Self::new(String::from_utf8_lossy(json)))
    }

    /// Puts what was being done before what went wrong.
    pub fn because(mut self, what: String) -> Self {
        self.0.context.push(what);
        self
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        let mut error = Self::new("");
        error.0.context.clear();
        error.0.errno = Some(errno as i32);
        error
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Errno::from_raw(errno).into(),
            // One of ours comes back whole from behind a Read or a Write.
            None => error.downcast().unwrap_or_else(|error| Self::new(error.to_string())),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        for (i, context) in inner.context.iter().rev().enumerate() {
            write!(f, "{}{context}", if i == 0 { "" } else { ": " })?;
        }
        if let Some(errno) = self.errno() {
            let colon = if inner.context.is_empty() { "" } else { ": " };
            write!(f, "{colon}{} ({})", errno.desc(), errno as i32)?;
        }
        let document = inner.document.as_deref().unwrap_or("config.json");
        if !inner.problems.is_empty() {
            write!(f, "{}invalid {document}", if inner.context.is_empty() { "" } else { ": " })?;
        }
        for (i, problem) in inner.problems.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { ": " } else { "; " })?;
        }
        if let Some(field) = &inner.field {
            write!(f, " [{document} {field}]")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// "verb object path value", lower case, no "failed to".
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.into().because(what().into()))
    }
}

/// Names the config field behind a refusal.
pub trait At<T> {
    fn at(self, field: &Field) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, field: &Field) -> Result<T> {
        self.map_err(|e| e.field(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_step_errno_and_field() {
        let field = Field::root().child("linux").child("sysctl").child("net/ipv4~x");
        let result: Result<()> = Err(Errno::EINVAL).context(|| "write 1 to memory.max").at(&field);
        let error = result.context(|| "create container c1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "create container c1: write 1 to memory.max: Invalid argument (22) [config.json /linux/sysctl/net~1ipv4~0x]"
        );
    }

    #[test]
    fn an_error_survives_the_way_from_init_to_its_parent() {
        let error =
            Error::from(Errno::EPERM).because("mount proc".into()).field(&Field::root().child("mounts"));
        let sent = serde_json::to_vec(&error).unwrap();
        let received: Error = serde_json::from_slice(&sent).unwrap();
        assert_eq!(received.to_string(), "mount proc: Operation not permitted (1) [config.json /mounts]");
    }

    #[test]
    fn every_problem_of_a_config_is_listed() {
        let problem = |key: &str| Problem { field: Field::root().child(key), reason: "is wrong".into() };
        let error = Error::invalid_config(vec![problem("a"), problem("b")]);
        assert_eq!(error.to_string(), "invalid config.json: /a: is wrong; /b: is wrong");
    }

    #[test]
    fn an_error_of_another_document_names_it() {
        let process = Field::root().child("process");
        let error =
            Error::from(Errno::EPERM).field(&process.child("user")).in_document("p.json".into(), "/process");
        assert_eq!(error.to_string(), "Operation not permitted (1) [p.json /user]");
        let problem = Problem { field: process, reason: "is wrong".into() };
        let error = Error::invalid_config(vec![problem])
            .in_document("p.json".into(), "/process")
            .because("exec".into());
        assert_eq!(error.to_string(), "exec: invalid p.json: /: is wrong");
        let error =
            Error::new("x").field(&Field::root().child("linux")).in_document("p.json".into(), "/process");
        assert_eq!(error.to_string(), "x [config.json /linux]");
    }
}
