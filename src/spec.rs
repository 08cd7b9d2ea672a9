//! config.json as a tree in which every object knows its JSON pointer, and a report of everything that
//! is wrong with it.
//!
//! The facilities read their part through a [`Node`]: a value of the wrong type or out of range becomes a
//! problem with its pointer, and reading goes on, so that one run shows all problems. oci-spec's own
//! deserialisation stops at the first, without a pointer, and cannot tell an absent number from 0.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config.md>

use std::cell::RefCell;
use std::fmt;
use std::sync::LazyLock;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Field, Problem, Result};

/// What was found wrong (problems: the config cannot be run) or odd (warnings: it can).
#[derive(Default)]
pub struct Report {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl Report {
    pub fn problem(&self, field: Field, reason: impl fmt::Display) {
        let problem = Problem { field, reason: reason.to_string() };
        let mut problems = self.problems.borrow_mut();
        // Two facilities may read the same key.
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    pub fn warning(&self, field: Field, reason: impl fmt::Display) {
        self.warnings.borrow_mut().push(Problem { field, reason: reason.to_string() });
    }

    /// The warnings, or the error that lists every problem.
    pub fn finish(self) -> Result<Vec<Problem>> {
        let problems = self.problems.into_inner();
        if problems.is_empty() {
            Ok(self.warnings.into_inner())
        } else {
            Err(Error::invalid_config(problems))
        }
    }
}

/// Parses config.json. A key that an object has twice is a problem, since parsers differ on which one counts.
pub fn parse(json: &[u8], report: &Report) -> Result<Map<String, Value>> {
    parse_at(json, Field::root(), report)
}

/// Parses a document that has `field` as its place in config.json.
pub fn parse_at(json: &[u8], field: Field, report: &Report) -> Result<Map<String, Value>> {
    let seed = Tree { report, at: &Path::Root(&field) };
    let mut parser = serde_json::Deserializer::from_slice(json);
    let value = seed.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    match value {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::new("it must be a JSON object")),
        Err(e) => Err(Error::new(e.to_string())),
    }
}

/// An object of config.json. Null counts as absent, as it does for the callers' JSON libraries.
#[derive(Clone)]
pub struct Node<'a> {
    map: &'a Map<String, Value>,
    field: Field,
    report: &'a Report,
}

impl<'a> Node<'a> {
    /// The whole document.
    pub fn root(map: &'a Map<String, Value>, report: &'a Report) -> Self {
        Self { map, field: Field::root(), report }
    }

    /// A document that is a part of config.json, whose pointer `field` is.
    pub fn at_field(map: &'a Map<String, Value>, field: Field, report: &'a Report) -> Self {
        Self { map, field, report }
    }

    pub fn field(&self) -> &Field {
        &self.field
    }

    /// The pointer to one of this object's keys.
    pub fn at(&self, key: impl fmt::Display) -> Field {
        self.field.child(key)
    }

    pub fn report(&self) -> &'a Report {
        self.report
    }

    /// Reports what is wrong with a key.
    pub fn problem(&self, key: &str, reason: impl fmt::Display) {
        self.report.problem(self.at(key), reason);
    }

    pub fn warning(&self, key: &str, reason: impl fmt::Display) {
        self.report.warning(self.at(key), reason);
    }

    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    fn typed<T>(&self, key: &str, what: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.value(key)?;
        let read = read(value);
        if read.is_none() {
            self.problem(key, format_args!("must be {what}, not {}", brief(value)));
        }
        read
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Option<T> {
        if !self.has(key) {
            self.problem(key, "is required");
        }
        value
    }

    pub fn string(&self, key: &str) -> Option<&'a str> {
        let text = self.typed(key, "a string", Value::as_str)?;
        if text.contains('\0') {
            self.problem(key, "must not contain a NUL character");
            return None;
        }
        Some(text)
    }

    pub fn required_string(&self, key: &str) -> Option<&'a str> {
        self.required(key, self.string(key))
    }

    /// Absent is false.
    pub fn boolean(&self, key: &str) -> bool {
        self.typed(key, "true or false", Value::as_bool).unwrap_or(false)
    }

    pub fn u64(&self, key: &str) -> Option<u64> {
        self.typed(key, "a whole number of at least 0", Value::as_u64)
    }

    pub fn i64(&self, key: &str) -> Option<i64> {
        self.typed(key, "a whole number within 64 bits", Value::as_i64)
    }

    pub fn u32(&self, key: &str) -> Option<u32> {
        self.typed(key, "a whole number from 0 to 4294967295", |v| v.as_u64()?.try_into().ok())
    }

    pub fn i32(&self, key: &str) -> Option<i32> {
        self.typed(key, "a whole number from -2147483648 to 2147483647", |v| v.as_i64()?.try_into().ok())
    }

    pub fn required_u32(&self, key: &str) -> Option<u32> {
        self.required(key, self.u32(key))
    }

    pub fn required_u64(&self, key: &str) -> Option<u64> {
        self.required(key, self.u64(key))
    }

    pub fn required_boolean(&self, key: &str) -> Option<bool> {
        self.required(key, self.typed(key, "true or false", Value::as_bool))
    }

    pub fn object(&self, key: &str) -> Option<Node<'a>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Some(Node { map, field: self.at(key), report: self.report })
    }

    /// The same, with an absent object read as an empty one.
    pub fn object_or_empty(&self, key: &str) -> Node<'a> {
        static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        self.object(key).unwrap_or_else(|| Node { map: &EMPTY, field: self.at(key), report: self.report })
    }

    fn array(&self, key: &str) -> &'a [Value] {
        self.typed(key, "an array", Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The objects of an array; absent is empty.
    pub fn objects(&self, key: &str) -> Vec<Node<'a>> {
        self.elements(key, "an object", Value::as_object)
            .map(|(map, field)| Node { map, field, report: self.report })
            .collect()
    }

    /// The strings of an array, each with its pointer; absent is empty.
    pub fn strings(&self, key: &str) -> Vec<(&'a str, Field)> {
        self.elements(key, "a string without NUL characters", |v| v.as_str().filter(|s| !s.contains('\0')))
            .collect()
    }

    /// The same with each one's index, for the hundreds of which few are ever pointed to.
    pub fn indexed_strings(&self, key: &str) -> impl Iterator<Item = (usize, &'a str)> {
        self.array(key).iter().enumerate().filter_map(move |(i, value)| {
            if value.as_str().is_none() {
                let reason = format_args!("must be a string, not {}", brief(value));
                self.report.problem(self.at(key).child(i), reason);
            }
            Some((i, value.as_str()?))
        })
    }

    /// The ids of an array, each with its pointer; absent is empty.
    pub fn u32s(&self, key: &str) -> Vec<(u32, Field)> {
        self.elements(key, "a whole number from 0 to 4294967295", |v| v.as_u64()?.try_into().ok()).collect()
    }

    /// A list of CPUs or memory nodes such as `0-3,7`, as the kernel's bit mask; absent or empty is None.
    pub fn id_mask(&self, key: &str) -> Option<Vec<u64>> {
        let list = self.string(key).filter(|list| !list.is_empty())?;
        let mask = id_mask(list);
        if mask.is_none() {
            self.problem(
                key,
                format_args!("must be a list such as 0-3,7 with numbers up to {MAX_ID}, not {list:?}"),
            );
        }
        mask
    }

    fn elements<T: 'a>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> impl Iterator<Item = (T, Field)> {
        let array = self.at(key);
        self.array(key).iter().enumerate().filter_map(move |(i, value)| match read(value) {
            Some(read) => Some((read, array.child(i))),
            None => {
                let reason = format_args!("must be {what}, not {}", brief(value)).to_string();
                self.report.problem(array.child(i), reason);
                None
            }
        })
    }

    /// Logs every key that is not one of `known`: the spec wants unknown properties ignored.
    pub fn expect_keys(&self, known: &[&str]) {
        if crate::log::debug_enabled() {
            for key in self.keys().filter(|key| !known.contains(key)) {
                crate::log::debug(format_args!("config.json {}: unknown property, ignored", self.at(key)));
            }
        }
    }
}

/// No machine has as many CPUs or nodes; a bound, since the mask grows with the largest number.
const MAX_ID: usize = 65535;

/// Parses `0-3,7`. Blanks and empty members are let pass, as the kernel's own parser does.
pub fn id_mask(list: &str) -> Option<Vec<u64>> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|&id: &usize| digits && id <= MAX_ID)
    };
    let mut mask = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        mask.resize(mask.len().max(last / 64 + 1), 0);
        (first..=last).for_each(|id| mask[id / 64] |= 1 << (id % 64));
    }
    Some(mask).filter(|mask| !mask.is_empty())
}

/// The value as the error shows it.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Builds a [`Value`] and reports repeated keys on the way.
struct Tree<'r> {
    report: &'r Report,
    at: &'r Path<'r>,
}

/// Where the parser stands; made into a [`Field`] only when there is something to report.
enum Path<'p> {
    Root(&'p Field),
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl Path<'_> {
    fn field(&self) -> Field {
        match self {
            Path::Root(field) => (*field).clone(),
            Path::Key(parent, key) => parent.field().child(key),
            Path::Index(parent, index) => parent.field().child(index),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> std::result::Result<Value, E> {
        serde_json::Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("not a JSON number"))
    }

    fn visit_str<E>(self, v: &str) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut array = Vec::new();
        loop {
            let at = Path::Index(self.at, array.len());
            let Some(value) = seq.next_element_seed(Tree { report: self.report, at: &at })? else { break };
            array.push(value);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let at = Path::Key(self.at, &key);
            let value = access.next_value_seed(Tree { report: self.report, at: &at })?;
            if map.contains_key(&key) {
                self.report.problem(at.field(), "stands twice in its object");
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

/// What a facility's `plan` makes of an object of config.json, and its problems.
#[cfg(test)]
pub fn planned<T>(json: &str, plan: impl FnOnce(&Node) -> T) -> (T, Vec<String>) {
    let report = Report::default();
    let value = parse(json.as_bytes(), &report).unwrap();
    let plan = plan(&Node::root(&value, &report));
    let problems =
        report.finish().err().map_or(Vec::new(), |e| e.problems().iter().map(|p| p.to_string()).collect());
    (plan, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(json: &str, read: impl Fn(&Node)) -> Vec<String> {
        planned(json, read).1
    }

    #[test]
    fn every_wrong_type_is_reported_with_its_pointer() {
        let found = problems(r#"{"a": 1, "b": {"c": "x"}, "d": [1, "y"], "e": -1}"#, |node| {
            assert_eq!(node.string("a"), None);
            assert!(!node.object("b").unwrap().boolean("c"));
            assert_eq!(node.strings("d").len(), 1);
            assert_eq!(node.u32("e"), None);
            assert_eq!(node.required_string("f"), None);
        });
        assert_eq!(
            found,
            [
                "/a: must be a string, not 1",
                "/b/c: must be true or false, not \"x\"",
                "/d/0: must be a string without NUL characters, not 1",
                "/e: must be a whole number from 0 to 4294967295, not -1",
                "/f: is required",
            ]
        );
    }

    #[test]
    fn a_repeated_key_is_a_problem() {
        let found = problems(r#"{"a": {"b": 1, "b": 2}}"#, |_| ());
        assert_eq!(found, ["/a/b: stands twice in its object"]);
    }

    #[test]
    fn null_is_absent_and_zero_is_not() {
        let found = problems(r#"{"a": null, "b": 0}"#, |node| {
            assert_eq!(node.u64("a"), None);
            assert_eq!(node.u64("b"), Some(0));
        });
        assert!(found.is_empty());
    }

    #[test]
    fn a_list_of_ids_becomes_a_mask() {
        for (list, mask) in [
            ("0", Some(vec![1])),
            ("0-3,7", Some(vec![0x8f])),
            (" 1 ,,2-2,", Some(vec![6])),
            ("63-64", Some(vec![1 << 63, 1])),
            ("3-1", None),
            ("-1", None),
            ("+1", None),
            ("1-", None),
            ("a", None),
            (",", None),
            ("65536", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(id_mask(list), mask, "{list:?}");
        }
        assert_eq!(id_mask("65535").unwrap().len(), 1024);
    }

    #[test]
    fn a_wrong_list_of_ids_is_a_problem_and_an_empty_one_is_none() {
        let found = problems(r#"{"a": "", "b": "1-x"}"#, |node| {
            assert_eq!((node.id_mask("a"), node.id_mask("b")), (None, None));
        });
        assert_eq!(found, ["/b: must be a list such as 0-3,7 with numbers up to 65535, not \"1-x\""]);
    }

    #[test]
    fn text_after_the_document_is_an_error() {
        assert!(parse(b"{} x", &Report::default()).is_err());
    }
}
