//! `keel ps`: the processes of a container, as pids of the host.

use std::path::Path;
use std::process::Command;

use crate::cli::PsOptions;
use crate::container::Container;
use crate::error::{Context, Error, Result};

pub fn ps(root: &Path, options: &PsOptions) -> Result<Vec<u8>> {
    let list = || {
        let state = Container::open(root, &options.id)?.state()?;
        let pids = match state.need_cgroup()? {
            Some(cgroup) => cgroup.pids()?,
            None => Vec::new(),
        };
        let pids: Vec<i32> = pids.into_iter().map(nix::unistd::Pid::as_raw).collect();
        if options.format == "json" {
            let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
            return Ok(format!("[{}]\n", pids.join(",")).into_bytes());
        }
        table(&options.ps_options, &pids)
    };
    list().context(|| format!("list the processes of container {}", options.id))
}

/// The lines of ps(1) for these processes, under its heading.
fn table(ps_options: &[std::ffi::OsString], pids: &[i32]) -> Result<Vec<u8>> {
    let mut command = Command::new("ps");
    if ps_options.is_empty() {
        command.arg("-ef");
    }
    let output = command.args(ps_options).output().context(|| "run ps")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        return Err(Error::new(format!("run ps: {message}")));
    }
    filter(&output.stdout, pids)
}

fn filter(table: &[u8], pids: &[i32]) -> Result<Vec<u8>> {
    let mut lines = table.split_inclusive(|&b| b == b'\n');
    let heading = lines.next().unwrap_or_default();
    let column = words(heading).position(|word| word == b"PID").ok_or_else(|| {
        Error::new("find the column PID in the output of ps: give options that print it, such as -o pid,cmd")
    })?;
    let is_ours = |line: &&[u8]| {
        let pid = words(line).nth(column).and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    Ok([heading].into_iter().chain(lines.filter(is_ours)).flatten().copied().collect())
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_containers_processes_are_kept() {
        let table =
            b"UID          PID CMD\nroot           1 init\nroot          20 sh -c 1\nroot         120 x\n";
        let expected = b"UID          PID CMD\nroot          20 sh -c 1\n";
        assert_eq!(filter(table, &[20, 12]).unwrap(), expected);
        assert!(filter(b"CMD\ninit\n", &[1]).is_err());
    }
}
