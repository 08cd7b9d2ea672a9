//! `keel-image login` and `logout`.

use std::io::{BufRead, Read, Write, stderr, stdin};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use serde_json::json;

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
    let text = json!({"registry": registry, "user": user, "place": place.to_string()});
    Ok(match global.json {
        true => format!("{text:#}\n"),
        false => format!("the password for {registry} is in {place}\n"),
    }
    .into_bytes())
}

pub fn logout(global: &Global, options: &LogoutOptions) -> Result<Vec<u8>> {
    let registry = &options.registry;
    if !Credentials::new(global.creds_file.as_deref()).erase(registry)? {
        return Err(Error::of_kind(
            Kind::NotFound,
            format!("log out of {registry}: there is no password for it"),
        ));
    }
    Ok(match global.json {
        true => format!("{:#}\n", json!({"registry": registry})),
        false => format!("the password for {registry} is forgotten\n"),
    }
    .into_bytes())
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
    // A signal that ends this would leave the terminal without its echo: it waits until that is back.
    let mut ending = SigSet::empty();
    ending.extend([Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP]);
    let ended = SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC)?;
    ending.thread_block()?;
    let ask = || -> Result<String> {
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent)?;
        let mut ready = [&stdin.as_fd(), &ended.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
        poll(&mut ready, PollTimeout::NONE)?;
        let mut line = String::new();
        if ready[1].any() != Some(true) {
            stdin.lock().read_line(&mut line)?;
        }
        Ok(line)
    };
    let line = ask();
    let restored = tcsetattr(&stdin, SetArg::TCSAFLUSH, &before);
    if !echo {
        stderr().write_all(b"\n")?;
    }
    // Of one that has come this is the end.
    ending.thread_unblock()?;
    restored?;
    Ok(line?.trim_end_matches(['\r', '\n']).to_owned())
}
