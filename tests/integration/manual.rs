//! Shell completions and manual pages, made of the same definitions as --help (see examples/manual.rs).

use std::process::Command;

use clap_complete::aot::{Shell, generate};
use keel::cli;

use crate::sandbox::{Sandbox, program};
use crate::{needs, tests};

tests![bash_completes_commands_options_and_values, manual_pages_tell_what_help_tells];

fn bash_completes_commands_options_and_values() {
    needs!(program("bash"));
    let c = Sandbox::new();
    let mut script = Vec::new();
    generate(Shell::Bash, &mut cli::whole(), "keel", &mut script);
    let path = c.host_file("keel.bash", &String::from_utf8(script).unwrap());
    let completed = |line: &[&str]| {
        let words: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
        let (last, before) = (line.len() - 1, line[line.len() - 2]);
        let bash = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={last}; _keel keel '{}' '{before}'; echo ${{COMPREPLY[@]}}",
            path.display(),
            words.join(" "),
            line[last],
        );
        let output = Command::new("bash").args(["--norc", "-c", &bash]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    for (line, expected) in [
        (&["keel", "st"][..], "start state"),
        (&["keel", "exec", "--pid"], "--pid-file --pidfd-socket"),
        (&["keel", "--log-f"], "--log-format"),
        (&["keel", "list", "--format", "j"], "json"),
        (&["keel", "--cgroup-manager", ""], "cgroupfs systemd disabled"),
    ] {
        assert_eq!(completed(line), expected, "{line:?}");
    }
}

fn manual_pages_tell_what_help_tells() {
    let c = Sandbox::new();
    let directory = c.host_dir("man");
    clap_mangen::generate_to(cli::whole(), &directory).unwrap();
    let page = |name: &str| {
        std::fs::read_to_string(directory.join(name)).unwrap().replace("\\-", "-").replace("\\*(Aq", "'")
    };
    for command in cli::whole().get_subcommands() {
        let name = command.get_name();
        let help = c.keel(&[name, "--help"]).ok().stdout;
        let options = help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 4);
        let (text, all) = (page(&format!("keel-{name}.1")), page("keel.1"));
        assert!(text.contains(&command.get_about().unwrap().to_string()), "{name}: {text}");
        assert!(all.contains(&format!("keel-{name}(1)")), "{name}: {all}");
        for option in options.map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric())) {
            let option = option.split('[').next().unwrap();
            assert!(text.contains(option), "{name} {option}: {text}");
        }
    }
}
