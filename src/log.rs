//! The log file in runc's two formats, one `write(2)` a line, O_APPEND. The only global of the program.
//!
//! JSON: `{"level":"error","msg":"...","time":"<RFC 3339>"}`; containerd shows the last error's `msg`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::error::{Context, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

struct Sink {
    /// Without a file, warnings and debug lines go to stderr; errors are printed by `main`.
    file: Option<File>,
    format: Format,
    least: Level,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Opens the log; called once, by `main`.
pub fn open(path: Option<&Path>, format: Format, least: Level) -> Result<()> {
    let file = path
        .map(|path| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o644)
                .open(path)
                .context(|| format!("open log file {}", path.display()))
        })
        .transpose()?;
    // A second call would be a bug in main; the first log stays.
    let _ = SINK.set(Sink { file, format, least });
    Ok(())
}

/// Whether messages go anywhere yet.
pub fn is_open() -> bool {
    SINK.get().is_some()
}

/// The log file's descriptor, which a process that closes all others keeps.
pub fn descriptor() -> Option<RawFd> {
    Some(SINK.get()?.file.as_ref()?.as_raw_fd())
}

pub fn debug_enabled() -> bool {
    SINK.get().is_some_and(|sink| sink.least == Level::Debug)
}

pub fn debug(message: impl fmt::Display) {
    write(Level::Debug, &message);
}

pub fn info(message: impl fmt::Display) {
    write(Level::Info, &message);
}

pub fn warning(message: impl fmt::Display) {
    write(Level::Warning, &message);
}

pub fn error(message: impl fmt::Display) {
    write(Level::Error, &message);
}

fn write(level: Level, message: &dyn fmt::Display) {
    let Some(sink) = SINK.get().filter(|sink| level >= sink.least) else { return };
    match &sink.file {
        // A full disk must not keep a container from running.
        Some(file) => drop((&*file).write_all(line(sink.format, level, message).as_bytes())),
        None if level != Level::Error => tell(level, message),
        None => (),
    }
}

/// One line on stderr, in one `write(2)`: callers read it by lines, and others write to it too.
pub fn tell(level: Level, message: &dyn fmt::Display) {
    let line = format!("keel: {}: {message}", name(level)).replace('\n', " ") + "\n";
    // EPIPE, ENOSPC: there is nobody left to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}

fn line(format: Format, level: Level, message: &dyn fmt::Display) -> String {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let (level, msg) = (name(level), message.to_string());
    match format {
        Format::Json => format!("{}\n", serde_json::json!({"level": level, "msg": msg, "time": time})),
        Format::Text => format!("time=\"{time}\" level={level} msg={msg:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_holds_level_msg_and_time() {
        let line = line(Format::Json, Level::Error, &"a \"b\"\nc");
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value["level"].as_str(), value["msg"].as_str()), (Some("error"), Some("a \"b\"\nc")));
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
    }
}
