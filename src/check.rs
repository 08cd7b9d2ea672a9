//! `keel check`: everything that is wrong with a bundle's config.json, each with its JSON pointer. It creates
//! nothing, so it says what `create` finds before it touches the kernel.

use std::fmt::Write;
use std::path::Path;

use crate::bundle::Bundle;
use crate::cgroup::Manager;
use crate::error::{Error, Problem, Result};
use crate::plan::Plan;
use crate::spec::Report;

/// What was found, one a line, and the error that there were problems among it.
pub fn check(dir: &Path, manager: Manager) -> (String, Result<()>) {
    let report = Report::default();
    let bundle = match Bundle::load(dir, &report) {
        Ok(bundle) => bundle,
        Err(e) => return (String::new(), Err(e)),
    };
    // What it reports is what is asked for; the plan itself is not used.
    Plan::new(&bundle, "check", false, manager, &report).check_host(&report);
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

fn lines(found: &[Problem], severity: &str) -> String {
    let mut text = String::new();
    for Problem { field, reason } in found {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "config.json {field}: {severity}{reason}");
    }
    text
}
