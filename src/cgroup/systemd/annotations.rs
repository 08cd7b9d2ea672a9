//! `/annotations["org.systemd.property.NAME"]`: properties of the unit that are no limits, in GVariant's text format.
//!
//! Engines pass annotations on from whoever may start a container, so only those are taken that change nothing but
//! the unit itself: a property like SuccessAction or Wants would reach the host (CVE-2024-3154).
//!
//! <https://github.com/opencontainers/runc/blob/main/docs/systemd.md#auxiliary-properties>,
//! <https://docs.gtk.org/glib/gvariant-text-format.html>

use super::message::Value;
use super::properties::{OLDEST, Property};
use crate::spec::Node;

pub const PREFIX: &str = "org.systemd.property.";

#[derive(Clone, Copy)]
enum Kind {
    Bool,
    I32,
    U64,
    Text,
    Texts,
}

/// Those that may be set, as systemd has them on D-Bus.
#[rustfmt::skip]
const ALLOWED: [(&str, Kind); 23] = [
    ("After", Kind::Texts), ("Before", Kind::Texts), ("CollectMode", Kind::Text),
    ("DefaultDependencies", Kind::Bool), ("Documentation", Kind::Texts),
    ("FinalKillSignal", Kind::I32), ("IgnoreOnIsolate", Kind::Bool), ("IPAccounting", Kind::Bool),
    ("KillMode", Kind::Text), ("KillSignal", Kind::I32), ("ManagedOOMMemoryPressure", Kind::Text),
    ("ManagedOOMPreference", Kind::Text), ("ManagedOOMSwap", Kind::Text), ("MemoryPressureThresholdUSec", Kind::U64),
    ("MemoryPressureWatch", Kind::Text), ("OOMPolicy", Kind::Text), ("PartOf", Kind::Texts),
    ("RestartKillSignal", Kind::I32), ("RuntimeMaxUSec", Kind::U64), ("RuntimeRandomizedExtraUSec", Kind::U64),
    ("SendSIGHUP", Kind::Bool), ("SendSIGKILL", Kind::Bool), ("TimeoutStopUSec", Kind::U64),
];

/// Reads `/annotations` of the whole config.
pub fn plan(config: &Node) -> Vec<Property> {
    let Some(annotations) = config.object("annotations") else { return Vec::new() };
    let keys = annotations.keys().filter(|key| key.starts_with(PREFIX));
    keys.filter_map(|key| plan_one(&annotations, key)).collect()
}

fn plan_one(annotations: &Node, key: &str) -> Option<Property> {
    let text = annotations.string(key)?;
    let name = key.strip_prefix(PREFIX)?;
    // As unit files have it: TimeoutStopSec is TimeoutStopUSec in seconds.
    let in_seconds = name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U'));
    let (name, scale) =
        in_seconds.map_or_else(|| (name.into(), 1), |stem| (format!("{stem}USec"), 1_000_000));
    let Some((name, kind)) = ALLOWED.iter().find(|(allowed, _)| *allowed == name) else {
        let names: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
        let what = format_args!("cannot be set by an annotation: only {} can", names.join(", "));
        annotations.problem(key, what);
        return None;
    };
    match read(text.trim(), *kind, scale) {
        Ok(value) => Some(Property { name, value, field: annotations.at(key), since: OLDEST }),
        Err(expected) => {
            annotations.problem(key, format_args!("must be {expected}, not {text:?}"));
            None
        }
    }
}

fn read(text: &str, kind: Kind, scale: u64) -> Result<Value, &'static str> {
    match kind {
        Kind::Bool => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err("true or false"),
        },
        Kind::I32 => untyped(text).parse().map(Value::I32).map_err(|_| "a number such as 'int32 9'"),
        Kind::U64 => {
            let number = untyped(text).parse().ok().and_then(|number: u64| number.checked_mul(scale));
            number.map(Value::U64).ok_or("a number such as 'uint64 9'")
        }
        Kind::Text => match read_text(text) {
            Some((text, "")) => Ok(Value::Text(text)),
            _ => Err("a string in quotes of its own, such as \"'all'\""),
        },
        Kind::Texts => {
            read_texts(text).map(Value::Texts).ok_or("a list such as \"['a.service', 'b.service']\"")
        }
    }
}

/// A number may name its type; systemd takes one only.
fn untyped(text: &str) -> &str {
    const TYPES: [&str; 7] = ["byte", "int16", "uint16", "int32", "uint32", "int64", "uint64"];
    match text.split_once(' ') {
        Some((kind, number)) if TYPES.contains(&kind) => number.trim_start(),
        _ => text,
    }
}

fn read_texts(text: &str) -> Option<Vec<String>> {
    let text = text.strip_prefix("@as").unwrap_or(text).trim_start();
    let mut rest = text.strip_prefix('[')?.strip_suffix(']')?.trim();
    let mut texts = Vec::new();
    while !rest.is_empty() {
        let (text, after) = read_text(rest)?;
        texts.push(text);
        rest = match after.trim_start() {
            "" => "",
            // Not after the last.
            more => Some(more.strip_prefix(',')?.trim_start()).filter(|more| !more.is_empty())?,
        };
    }
    Some(texts)
}

/// A string in quotes, and what follows it.
fn read_text(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    let mut plain = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next()?.1 {
                escaped @ ('\\' | '\'' | '"') => plain.push(escaped),
                _ => return None,
            },
            c if c == quote => return Some((plain, &text[at + 1..])),
            c => plain.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::planned;

    fn property(name: &str, text: &str) -> Result<(&'static str, Value), String> {
        let config = json!({"annotations": {format!("{PREFIX}{name}"): text, "other": "x"}}).to_string();
        let (mut properties, problems) = planned(&config, plan);
        match properties.pop() {
            Some(property) => Ok((property.name, property.value)),
            None => Err(problems.join("\n")),
        }
    }

    #[test]
    fn values_are_read_as_runc_reads_them() {
        let texts = |texts: &[&str]| Value::Texts(texts.iter().map(|&text| text.into()).collect());
        for (name, text, value) in [
            ("TimeoutStopUSec", "uint64 123456789", ("TimeoutStopUSec", Value::U64(123_456_789))),
            ("TimeoutStopSec", " 2 ", ("TimeoutStopUSec", Value::U64(2_000_000))),
            (
                "CollectMode",
                "'inactive-or-failed'",
                ("CollectMode", Value::Text("inactive-or-failed".into())),
            ),
            ("KillMode", r#""it's \"a\\b\" ""#, ("KillMode", Value::Text(r#"it's "a\b" "#.into()))),
            ("DefaultDependencies", "true", ("DefaultDependencies", Value::Bool(true))),
            ("KillSignal", "int32 37", ("KillSignal", Value::I32(37))),
            ("KillSignal", "37", ("KillSignal", Value::I32(37))),
            ("After", "['a.service']", ("After", texts(&["a.service"]))),
            ("After", r#"[ 'a,]' , "b" ]"#, ("After", texts(&["a,]", "b"]))),
            ("After", "@as []", ("After", texts(&[]))),
        ] {
            assert_eq!(property(name, text), Ok(value), "{name} {text}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_a_problem() {
        for (name, text) in [
            ("TimeoutStopUSec", "'5'"),
            ("TimeoutStopUSec", "-1"),
            ("TimeoutStopSec", "uint64 18446744073709551615"),
            ("TimeoutStopUSec", "float 5"),
            ("KillSignal", "4294967296"),
            ("SendSIGHUP", "1"),
            ("CollectMode", "inactive"),
            ("CollectMode", "'a' 'b'"),
            ("CollectMode", "'a"),
            ("CollectMode", r"'\n'"),
            ("After", "'a'"),
            ("After", "['a' 'b']"),
            ("After", "['a',]"),
            ("After", "['a'"),
        ] {
            let problem = property(name, text).unwrap_err();
            assert!(
                problem.starts_with(&format!("/annotations/{PREFIX}{name}: must be ")),
                "{text}: {problem}"
            );
        }
    }

    #[test]
    fn what_would_reach_the_host_cannot_be_set() {
        for name in [
            "SuccessAction",
            "FailureAction",
            "Wants",
            "Conflicts",
            "OnFailure",
            "Slice",
            "Delegate",
            "PIDs",
            "MemoryMax",
            "DeviceAllow",
            "",
            "Sec",
            "timeoutstopusec",
        ] {
            let problem = property(name, "'reboot'").unwrap_err();
            assert!(problem.contains(": cannot be set by an annotation: only After, "), "{problem}");
        }
    }
}
