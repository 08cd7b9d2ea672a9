//! `keel list`: the containers of one state root, as a table or as JSON.
//!
//! It takes no locks: a container that is deleted meanwhile is left out, one that is broken is a warning.

use std::fmt::Write;
use std::path::Path;

use crate::container::Container;
use crate::error::{Context, Error, Kind, Result};
use crate::log;
use crate::state::Shown;

pub enum Format {
    Table,
    Json,
    /// The ids alone.
    Quiet,
}

/// `root_given`: a root that nobody asked for does not have to exist.
pub fn list(root: &Path, root_given: bool, format: Format) -> Result<String> {
    let ids = match Container::ids(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !root_given => Vec::new(),
        ids => ids.context(|| format!("read state root {}", root.display()))?,
    };
    let containers: Vec<Shown> = ids.iter().filter_map(|id| show(root, id)).collect();
    match format {
        Format::Quiet => Ok(containers.iter().fold(String::new(), |ids, shown| ids + &shown.id + "\n")),
        Format::Table => Ok(table(&containers)),
        Format::Json => {
            let json = serde_json::to_string(&containers).map_err(|e| Error::new(e.to_string()));
            json.map(|json| json + "\n").context(|| "print the list of containers")
        }
    }
}

fn show(root: &Path, id: &str) -> Option<Shown> {
    match Container::open(root, id).and_then(|container| Shown::new(&container)) {
        Ok(shown) => Some(shown),
        Err(e) if e.kind() == Kind::NoContainer => {
            log::debug(format_args!("list: {e}"));
            None
        }
        Err(e) => {
            log::warning(format_args!("list: {e}"));
            None
        }
    }
}

/// runc's columns: at least 12 wide, 3 apart, the last one ragged.
fn table(containers: &[Shown]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from)];
    rows.extend(containers.iter().map(|c| {
        let (pid, status) = (c.pid.to_string(), c.status.to_string());
        [c.id.clone(), pid, status, c.bundle.clone(), c.created.clone(), c.owner.clone()]
    }));
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max();
        widest.map_or(12, |widest| (widest + 3).max(12))
    };
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell:width$}");
        }
        text += &row[5];
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Status;

    #[test]
    fn the_table_is_aligned_as_runcs() {
        let shown = Shown {
            oci_version: "1.3.0".into(),
            id: "a-rather-long-name".into(),
            pid: 42,
            status: Status::Running,
            bundle: "/b".into(),
            rootfs: "/b/r".into(),
            created: "2026-01-02T03:04:05.000000006Z".into(),
            annotations: Default::default(),
            owner: "root".into(),
        };
        assert_eq!(
            table(&[shown]),
            "ID                   PID         STATUS      BUNDLE      CREATED                          OWNER\n\
             a-rather-long-name   42          running     /b          2026-01-02T03:04:05.000000006Z   root\n"
        );
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }
}
