//! `/linux/resources/unified`: files of the cgroup by name, each line of the value in a write of its own.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#unified>

use super::limits::Limit;
use crate::spec::Node;

pub fn plan(resources: &Node, limits: &mut Vec<Limit>) {
    let Some(unified) = resources.object("unified") else { return };
    for file in unified.keys() {
        let Some(value) = unified.string(file) else { continue };
        let Some((controller, rest)) = file.split_once('.') else {
            unified.problem(file, "must be a file of the cgroup, named CONTROLLER.NAME");
            continue;
        };
        if controller.is_empty() || rest.is_empty() || file.contains('/') {
            unified.problem(file, "must be a file of the cgroup, named CONTROLLER.NAME");
        }
        // They are keel's own tools.
        if ["cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze", "cgroup.type"].contains(&file) {
            unified.problem(file, "moves, ends or stops processes, and is no limit");
        }
        if value.trim().is_empty() {
            unified.problem(file, "must not be empty");
        }
        let lines = value.lines().filter(|line| !line.trim().is_empty());
        limits.extend(lines.map(|line| Limit::new(file, line, unified.at(file))));
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::planned_limits;
    use super::*;

    fn unified(section: &str) -> Vec<String> {
        planned_limits(&format!(r#"{{"unified": {section}}}"#), plan)
    }

    #[test]
    fn each_line_is_written_by_itself() {
        assert_eq!(
            unified(r#"{"io.max": "259:0 rbps=2097152\n253:0 rbps=1", "misc.max": "res_a 2"}"#),
            ["io.max=259:0 rbps=2097152", "io.max=253:0 rbps=1", "misc.max=res_a 2"]
        );
    }

    #[test]
    fn a_key_is_a_file_of_the_cgroup() {
        for key in ["memory", ".max", "memory.", "../x.y", "a/memory.max"] {
            let planned = unified(&format!(r#"{{"{key}": "1"}}"#));
            assert!(
                planned[0].ends_with("must be a file of the cgroup, named CONTROLLER.NAME"),
                "{planned:?}"
            );
        }
        assert_eq!(unified(r#"{"memory.max": " \n"}"#), ["/unified/memory.max: must not be empty"]);
        assert_eq!(
            unified(r#"{"cgroup.kill": "1"}"#),
            ["/unified/cgroup.kill: moves, ends or stops processes, and is no limit"]
        );
    }
}
