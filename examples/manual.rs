//! cargo run --example manual DIR: writes completions for bash, fish and zsh, and manual pages, all of the definitions
//! behind `keel --help`. Not a command of keel's, which would be a tenth larger for it.

use std::path::PathBuf;
use std::{env, fs, io};

use clap_complete::aot::{Shell, generate_to};
use keel::cli;

fn main() -> io::Result<()> {
    let directory = env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or_else(|| io::Error::other("name the directory to write into"))?;
    fs::create_dir_all(&directory)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        println!("{}", generate_to(shell, &mut cli::whole(), "keel", &directory)?.display());
    }
    clap_mangen::generate_to(cli::whole(), &directory)
}
