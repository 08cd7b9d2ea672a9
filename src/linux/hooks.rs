//! /hooks: programs that are run at six points of a container's life.
//!
//! A hook finds the container's state on stdin and has exactly the environment that config.json gives it, no
//! ignored signal, no descriptor above 2 and a session of its own. It is run in the namespaces and the working
//! directory of the caller: the parent for prestart, createRuntime, poststart and poststop, init for
//! createContainer (before the pivot) and startContainer.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks>

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2, setsid};
use serde::{Deserialize, Serialize};

use crate::error::{At, Context, Error, Field, Result};
use crate::log;
use crate::spec::Node;
use crate::sys::fs::close_range_cloexec;
use crate::sys::process::{Clone, clone3, exit_now, reset_signals, unblock_signals};

/// All hooks of a container, each list in the order in which it is run.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// In the order in which they are run.
pub const NAMES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Kept in the container's state too: start and delete run hooks without reading the config again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<Duration>,
    field: Field,
}

impl Hooks {
    pub fn plan(root: &Node) -> Self {
        let Some(hooks) = root.object("hooks") else { return Self::default() };
        hooks.expect_keys(&NAMES);
        let list = |key: &str| hooks.objects(key).iter().filter_map(Hook::plan).collect();
        Self {
            prestart: list("prestart"),
            create_runtime: list("createRuntime"),
            create_container: list("createContainer"),
            start_container: list("startContainer"),
            poststart: list("poststart"),
            poststop: list("poststop"),
        }
    }
}

impl Hooks {
    /// Whether `create` runs any.
    pub fn any_in_create(&self) -> bool {
        [&self.prestart, &self.create_runtime, &self.create_container].iter().any(|hooks| !hooks.is_empty())
    }
}

impl Hook {
    fn plan(hook: &Node) -> Option<Self> {
        hook.expect_keys(&["path", "args", "env", "timeout"]);
        let strings = |key: &str| hook.strings(key).into_iter().map(|(text, _)| text.to_owned()).collect();
        let (args, env) = (strings("args"), strings("env"));
        let timeout = hook.i64("timeout");
        if timeout.is_some_and(|seconds| seconds <= 0) {
            hook.problem("timeout", "must be greater than 0");
        }
        let path = hook.required_string("path")?;
        if !path.starts_with('/') {
            hook.problem("path", "must be absolute");
        }
        let timeout = timeout.map(|seconds| Duration::from_secs(seconds.unsigned_abs()));
        Some(Self { path: path.into(), args, env, timeout, field: hook.field().clone() })
    }
}

/// Runs hooks one after the other, up to the first that fails. One that still runs when one of `ends` becomes readable
/// is killed, and has failed.
pub fn run(hooks: &[Hook], state_json: &[u8], ends: &[BorrowedFd<'_>]) -> Result<()> {
    hooks.iter().try_for_each(|hook| hook.run(state_json, ends))
}

/// Runs all hooks; one that fails leaves a warning, as the spec wants it of poststop.
pub fn run_all(hooks: &[Hook], state_json: &[u8]) {
    for error in hooks.iter().filter_map(|hook| hook.run(state_json, &[]).err()) {
        log::warning(error);
    }
}

impl Hook {
    fn run(&self, state_json: &[u8], ends: &[BorrowedFd<'_>]) -> Result<()> {
        let list = self.field.as_str().split('/').nth(2).unwrap_or_default();
        self.execute(state_json, ends).context(|| format!("{list} hook {}", self.path)).at(&self.field)
    }

    fn execute(&self, state_json: &[u8], ends: &[BorrowedFd<'_>]) -> Result<()> {
        let program = Program::new(self)?;
        let (stdin, state) = pipe()?;
        let (output, stdout) = pipe()?;
        let (failure, report) = pipe()?;
        let (pid, pidfd) = match clone3(0, None).context(|| "clone")? {
            Clone::Child => {
                let Err(error) = program.execute(&stdin, &stdout);
                // EPIPE when the parent was killed: nobody is left to be told.
                let _ = File::from(report).write(&serde_json::to_vec(&error).unwrap_or_default());
                exit_now(127)
            }
            Clone::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop((stdout, report));
        let mut failed = Vec::new();
        // EOF as soon as execve has closed the other end.
        File::from(failure).read_to_end(&mut failed).context(|| "await execve")?;
        if !failed.is_empty() {
            wait(&pidfd)?;
            return Err(serde_json::from_slice(&failed).unwrap_or_else(|_| Error::new("not executed")));
        }
        let mut pipes = Pipes::new(state_json, stdin, state, output)?;
        let end = pipes.serve_until_end(&pidfd, self.timeout, ends)?;
        if end != End::Exit {
            // After setsid its children are in its process group and go with it. The number cannot have passed to
            // another group, since the hook has not been waited for.
            killpg(pid, Signal::SIGKILL).context(|| "kill")?;
        }
        let reason = match wait(&pidfd)? {
            _ if end == End::Interrupt => "interrupted".into(),
            _ if end == End::Timeout => {
                format!("timed out after {} s", self.timeout.unwrap_or_default().as_secs())
            }
            WaitStatus::Exited(_, 0) => return Ok(()),
            WaitStatus::Exited(_, status) => format!("exited with status {status}"),
            WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
            other => format!("ended as {other:?}"),
        };
        let tail = pipes.tail();
        Err(Error::new(if tail.is_empty() { reason } else { format!("{reason}: {tail}") }))
    }
}

/// What execve is given, made before the clone.
struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn new(hook: &Hook) -> Result<Self> {
        let c_string = |text: &String| CString::new(text.as_str()).map_err(|_| Errno::EINVAL);
        let c_strings = |texts: &[String]| texts.iter().map(c_string).collect::<Result<_, Errno>>();
        let args = if hook.args.is_empty() { std::slice::from_ref(&hook.path) } else { &hook.args };
        let program = || -> Result<Self, Errno> {
            Ok(Self { path: c_string(&hook.path)?, args: c_strings(args)?, env: c_strings(&hook.env)? })
        };
        program().context(|| "make the argument list")
    }

    /// In the hook's process.
    fn execute(&self, stdin: &OwnedFd, output: &OwnedFd) -> Result<Infallible> {
        setsid().context(|| "setsid")?;
        dup2_stdin(stdin).context(|| "dup2 to stdin")?;
        dup2_stdout(output).context(|| "dup2 to stdout")?;
        dup2_stderr(output).context(|| "dup2 to stderr")?;
        // The caller's callers may have left descriptors open that the hook must not have.
        close_range_cloexec(3).context(|| "close_range")?;
        reset_signals().and_then(|()| unblock_signals()).context(|| "reset signals")?;
        execve(&self.path, &self.args, &self.env).context(|| "execute")
    }
}

/// What ended the time of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Exit,
    Timeout,
    Interrupt,
}

/// The hook's stdin and its output, while it runs.
struct Pipes<'a> {
    unsent: &'a [u8],
    state: Option<File>,
    /// Our copy of the hook's end. While it is open, a hook that does not read cannot make a write an EPIPE, nor a
    /// SIGPIPE, which init does not ignore.
    _stdin: OwnedFd,
    output: Option<File>,
    tail: Vec<u8>,
}

impl<'a> Pipes<'a> {
    const TAIL: usize = 2048; // bytes of output that an error shows

    fn new(state_json: &'a [u8], stdin: OwnedFd, state: OwnedFd, output: OwnedFd) -> Result<Self> {
        for fd in [&state, &output] {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context(|| "set O_NONBLOCK")?;
        }
        let (state, output) = (Some(File::from(state)), Some(File::from(output)));
        Ok(Self { unsent: state_json, state, _stdin: stdin, output, tail: Vec::new() })
    }

    /// Gives the hook its state and takes its output until it ends. A process that it left behind may hold the pipes
    /// for longer; nobody waits for that.
    fn serve_until_end(
        &mut self,
        pidfd: &OwnedFd,
        timeout: Option<Duration>,
        ends: &[BorrowedFd<'_>],
    ) -> Result<End> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.write_state()?;
            let left = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Ok(End::Timeout),
                // Rounded up: a wait of 0 ms would spin.
                Some(left) => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            };
            let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            fds.extend(ends.iter().map(|&fd| PollFd::new(fd, PollFlags::POLLIN)));
            fds.extend(self.output.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)));
            fds.extend(self.state.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLOUT)));
            match poll(&mut fds, left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context(|| "poll"),
            }
            let has_come = |fd: &PollFd| fd.any() == Some(true);
            let (exited, interrupted) = (has_come(&fds[0]), fds[1..=ends.len()].iter().any(has_come));
            self.read_output()?;
            if exited {
                return Ok(End::Exit);
            }
            if interrupted {
                return Ok(End::Interrupt);
            }
        }
    }

    fn write_state(&mut self) -> Result<()> {
        let Some(state) = &mut self.state else { return Ok(()) };
        match state.write(self.unsent) {
            Ok(written) => self.unsent = &self.unsent[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context(|| "write state to its stdin"),
        }
        if self.unsent.is_empty() {
            self.state = None;
        }
        Ok(())
    }

    /// One read takes all that a pipe holds.
    fn read_output(&mut self) -> Result<()> {
        let mut buffer = [0; 65536];
        let Some(output) = &mut self.output else { return Ok(()) };
        match output.read(&mut buffer) {
            Ok(0) => self.output = None,
            Ok(read) => self.tail.extend(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context(|| "read its output"),
        }
        self.tail.drain(..self.tail.len().saturating_sub(Self::TAIL));
        Ok(())
    }

    /// The end of the output as one line; a container's hook must not send escape sequences to our terminal.
    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).trim().replace(char::is_control, " ")
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).context(|| "pipe")
}

fn wait(pidfd: &OwnedFd) -> Result<WaitStatus> {
    loop {
        match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Err(Errno::EINTR) => {}
            other => return other.context(|| "wait"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::planned;

    #[test]
    fn every_list_is_read_in_its_order() {
        let config = r#"{"hooks": {
            "prestart": [{"path": "/a", "args": ["a", "b"], "env": ["K=V"], "timeout": 5}, {"path": "/b"}],
            "createRuntime": [{"path": "/c"}], "createContainer": [{"path": "/d"}],
            "startContainer": [{"path": "/e"}], "poststart": [{"path": "/f"}], "poststop": [{"path": "/g"}]}}"#;
        let hook = |path: &str, list: &str, index| Hook {
            path: path.into(),
            args: vec![],
            env: vec![],
            timeout: None,
            field: Field::root().child("hooks").child(list).child(index),
        };
        let first = Hook {
            args: vec!["a".into(), "b".into()],
            env: vec!["K=V".into()],
            timeout: Some(Duration::from_secs(5)),
            ..hook("/a", "prestart", 0)
        };
        let expected = Hooks {
            prestart: vec![first, hook("/b", "prestart", 1)],
            create_runtime: vec![hook("/c", "createRuntime", 0)],
            create_container: vec![hook("/d", "createContainer", 0)],
            start_container: vec![hook("/e", "startContainer", 0)],
            poststart: vec![hook("/f", "poststart", 0)],
            poststop: vec![hook("/g", "poststop", 0)],
        };
        assert_eq!(planned(config, Hooks::plan), (expected, vec![]));
    }

    #[test]
    fn what_the_spec_forbids_is_a_problem() {
        let table = [
            (r#"{"args": ["x"]}"#, "/hooks/poststop/0/path: is required"),
            (r#"{"path": "bin/x"}"#, "/hooks/poststop/0/path: must be absolute"),
            (r#"{"path": "/x", "timeout": 0}"#, "/hooks/poststop/0/timeout: must be greater than 0"),
            (r#"{"path": "/x", "timeout": -1}"#, "/hooks/poststop/0/timeout: must be greater than 0"),
            (
                r#"{"path": "/x", "env": [1]}"#,
                "/hooks/poststop/0/env/0: must be a string without NUL characters, not 1",
            ),
        ];
        for (hook, problem) in table {
            let config = format!(r#"{{"hooks": {{"poststop": [{hook}]}}}}"#);
            assert_eq!(planned(&config, Hooks::plan).1, [problem]);
        }
    }

    #[test]
    fn hooks_survive_in_the_containers_state() {
        let config = r#"{"hooks": {"poststop": [{"path": "/x", "env": ["A=B"], "timeout": 9}]}}"#;
        let (hooks, _) = planned(config, Hooks::plan);
        let state = serde_json::to_string(&hooks).unwrap();
        assert_eq!(serde_json::from_str::<Hooks>(&state).unwrap(), hooks);
    }
}
