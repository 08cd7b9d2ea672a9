//! `keel-image login` and `logout`.

use std::io::{BufRead, Read, Write, stderr, stdin};

use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

use crate::error::{Context, Error, Kind, Result};
use crate::image::cli::{Global, LoginOptions, LogoutOptions};
use crate::image::credentials::Credentials;

pub fn login(global: &Global, options: &LoginOptions) -> Result<Vec<u8>> {
    let registry = &options.registry;
    let user = match &options.user {
        Some(user) => user.clone(),
        None if options.password_stdin => return Err(Error::new("--password-stdin needs --user")),
        None => ask("User: ", true)?,
    };
    if user.is_empty() || user.contains(':') {
        return Err(Error::new(format!("user {user:?}: must be a name without a colon")));
    }
    let password = if options.password_stdin { read_password()? } else { ask("Password: ", false)? };
    global.client()?.check_login(registry, &user, &password)?;
    let place = Credentials::new(global.creds_file.as_deref()).store(registry, &user, &password)?;
    Ok(format!("the password for {registry} is in {place}\n").into_bytes())
}

pub fn logout(global: &Global, options: &LogoutOptions) -> Result<Vec<u8>> {
    let registry = &options.registry;
    if !Credentials::new(global.creds_file.as_deref()).erase(registry)? {
        return Err(Error::of_kind(
            Kind::NotFound,
            format!("log out of {registry}: there is no password for it"),
        ));
    }
    Ok(format!("the password for {registry} is forgotten\n").into_bytes())
}

fn read_password() -> Result<String> {
    const MOST: u64 = 64 << 10; // bytes
    let mut text = String::new();
    stdin().take(MOST).read_to_string(&mut text).context(|| "read the password from stdin")?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() { Err(Error::new("the password is empty")) } else { Ok(password.to_owned()) }
}

/// Asks on the terminal; what is typed shows only if `echo`.
fn ask(prompt: &str, echo: bool) -> Result<String> {
    ask_terminal(prompt, echo).map_err(|error| {
        error
            .because("ask on the terminal".to_owned())
            .with_way_out("Without one: --user USER --password-stdin.")
    })
}

fn ask_terminal(prompt: &str, echo: bool) -> Result<String> {
    let stdin = stdin();
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_flags.set(LocalFlags::ECHO, echo);
    stderr().write_all(prompt.as_bytes())?;
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent)?;
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &before)?;
    if !echo {
        stderr().write_all(b"\n")?;
    }
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
