//! `keel check`: everything that is wrong with a bundle's config.json, each with its JSON pointer. It creates
//! nothing, so it says what `create` finds before it touches the kernel.

use std::fmt::Write;
use std::path::Path;

use crate::bundle::Bundle;
use crate::cgroup::Manager;
use crate::error::{Error, Problem, Result};
use crate::linux::seccomp::{Action, Seccomp};
use crate::plan::Plan;
use crate::rights::Rights;
use crate::spec::{Node, Report};

/// What was found, one a line, and the error that there were problems among it.
pub fn check(dir: &Path, manager: Manager) -> (String, Result<()>) {
    let report = Report::default();
    let bundle = match Bundle::load(dir, &report) {
        Ok(bundle) => bundle,
        Err(e) => return (String::new(), Err(e)),
    };
    // What it reports is what is asked for; the plan itself is not used.
    Plan::new(&bundle, "check", false, manager, Rights::of_caller(), &report).check_host(&report);
    match report.finish() {
        Ok(warnings) => (lines(&warnings, "warning: "), Ok(())),
        Err(error) => {
            let found = match error.problems().len() {
                1 => "1 problem".to_string(),
                n => format!("{n} problems"),
            };
            let path = bundle.dir.join("config.json");
            let summary = Error::new(format!("check {}: {found}", path.display()));
            (lines(error.problems(), ""), Err(summary))
        }
    }
}

/// What the bundle's seccomp filter does with each of the calls.
pub fn seccomp(dir: &Path, calls: &[String]) -> Result<String> {
    let mut text = String::new();
    if calls.is_empty() {
        return Ok(text);
    }
    let report = Report::default();
    let bundle = Bundle::load(dir, &report)?;
    // Of this part alone: the filter can be told of whatever else is wrong, which has been said.
    let report = Report::default();
    let linux = Node::root(&bundle.spec, &report).object_or_empty("linux");
    let filter = Seccomp::plan(&linux);
    if report.finish().is_err() {
        return Ok(text);
    }
    let Some(filter) = filter else {
        return Ok("no seccomp filter: every call is allowed\n".into());
    };
    let sizes: Vec<String> = filter.sizes().iter().map(|(name, size)| format!("{size} for {name}")).collect();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "seccomp filter: {} instructions, {}", filter.program().len(), sizes.join(", "));
    for call in calls {
        let Some(verdicts) = filter.verdicts(call, &[]) else {
            return Err(Error::new(format!("check --seccomp: there is no system call {call:?}")));
        };
        for (architecture, actions) in verdicts {
            let depends = if actions.len() > 1 { ", as its arguments are" } else { "" };
            let actions: Vec<String> = actions.iter().map(Action::to_string).collect();
            let _ = writeln!(text, "{call} on {architecture}: {}{depends}", actions.join(" or "));
        }
    }
    Ok(text)
}

fn lines(found: &[Problem], severity: &str) -> String {
    let mut text = String::new();
    for Problem { field, reason } in found {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "config.json {field}: {severity}{reason}");
    }
    text
}
