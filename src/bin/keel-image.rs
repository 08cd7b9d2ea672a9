//! keel-image: from an image in a registry to a bundle that keel runs. Reads the command line, calls the operation,
//! prints its result, and says what failed and the way out.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use clap::Parser;

use keel::error::{Context, Error};
use keel::image::cli::{CommandLine, exit_code, run};

fn main() -> ExitCode {
    let mut command_line = CommandLine::parse();
    let printed = run(&mut command_line).and_then(|result| {
        let mut stdout = stdout();
        stdout.write_all(&result).and_then(|()| stdout.flush()).context(|| "write to stdout")
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

/// What others sent stands in it: nothing of that is for the terminal to obey.
fn report(error: &Error) {
    let way_out = error.way_out().map_or_else(String::new, |way_out| format!("\n  {way_out}"));
    let text = format!("{error}{way_out}");
    let text: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    // EPIPE: there is nobody left to tell.
    let _ = stderr().write_all(format!("keel-image: {text}\n").as_bytes());
}
