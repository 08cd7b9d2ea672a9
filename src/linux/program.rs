//! `/process/args`, `/process/env`, `/process/cwd`: the program, what it is told, and where it starts.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config.md#process>,
//! [execvp(3)](https://man7.org/linux/man-pages/man3/execvp.3.html),
//! [execve(2)](https://man7.org/linux/man-pages/man2/execve.2.html)

mod explain;

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{SFlag, stat};
use nix::unistd::{AccessFlags, execve, faccessat, fchdir};

use crate::error::{At, Context, Error, Field, Result};
use crate::root::Root;
use crate::spec::Node;
use crate::sys::process::getcwd;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// `args[0]`, never empty.
    file: CString,
    args: Vec<CString>,
    /// `name=value`, each name once.
    env: Vec<CString>,
    cwd: PathBuf,
    field: Field,
}

/// Where a program is looked for when the config's environment has no PATH; the program does not see it.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Program {
    pub fn plan(process: &Node) -> Self {
        let args = process.strings("args");
        match args.first() {
            None => process.problem("args", "is required, with at least one entry"),
            Some(("", field)) => process.report().problem(field.clone(), "must name a program"),
            Some(_) => {}
        }
        let cwd = process.required_string("cwd").unwrap_or("/");
        if !cwd.starts_with('/') {
            process.problem("cwd", format_args!("must be an absolute path, not {cwd:?}"));
        }
        let args: Vec<_> = args.into_iter().map(|(arg, _)| c_string(arg)).collect();
        Self {
            file: args.first().cloned().unwrap_or_default(),
            args,
            env: plan_env(process),
            cwd: cwd.into(),
            field: process.field().clone(),
        }
    }

    pub fn env(&self) -> &[CString] {
        &self.env
    }

    /// The value of an environment variable.
    pub fn env_value(&self, name: &str) -> Option<&[u8]> {
        self.env.iter().find_map(|entry| entry.to_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }

    /// Adds or replaces an environment variable that the runtime provides (HOME, LISTEN_FDS ...).
    pub fn set_env(&mut self, name: &str, value: &[u8]) {
        // None of them has a NUL byte.
        let Ok(entry) = CString::new([name.as_bytes(), b"=", value].concat()) else { return };
        self.env.retain(|other| !other.to_bytes().starts_with(&entry.to_bytes()[..=name.len()]));
        self.env.push(entry);
    }

    /// Makes the working directory if the rootfs has none. While the rootfs is writable, all mounts are there, and
    /// the umask is 0.
    pub fn create_cwd(&self, root: &Root) -> Result<()> {
        root.create_dir_all(&self.cwd)
            .map(drop)
            .map_err(|error| self.explain_cwd(error))
            .at(&self.cwd_field())
    }

    /// Changes to the working directory, before the user is set: root may pass where the user may not. False when
    /// it is the other way round (a FUSE or NFS mount of the user's); `enter_cwd` is due when the user is set.
    pub fn try_enter_cwd(&self, root: &Root) -> Result<bool> {
        match self.enter_cwd(root) {
            Err(error) if matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM)) => Ok(false),
            entered => entered.map(|()| true),
        }
    }

    /// Changes to the working directory, which is opened below the root and without the links that /proc has to
    /// open files: by /proc/self/fd/7 and a descriptor that leaked the container once got out (CVE-2024-21626).
    pub fn enter_cwd(&self, root: &Root) -> Result<()> {
        root.open(&self.cwd, libc::O_PATH | libc::O_DIRECTORY)
            .and_then(fchdir)
            .context(|| format!("change to working directory {}", self.cwd.display()))
            .map_err(|error| self.explain_cwd(error))
            .and_then(|()| self.verify_cwd())
            .at(&self.cwd_field())
    }

    /// The directory may have been moved since it was opened; where it is now is what counts.
    fn verify_cwd(&self) -> Result<()> {
        let here = getcwd().context(|| format!("get working directory {}", self.cwd.display()))?;
        if here.starts_with(b"/") {
            return Ok(());
        }
        Err(Error::new(format!(
            "working directory {} is outside of the container's root",
            self.cwd.display()
        )))
    }

    fn explain_cwd(&self, error: Error) -> Error {
        match error.errno() {
            Some(Errno::ELOOP) => Error::new(format!(
                "working directory {} leads through a loop, or through a link of /proc out of the container's root",
                self.cwd.display()
            )),
            _ => error,
        }
    }

    fn cwd_field(&self) -> Field {
        self.field.child("cwd")
    }

    /// The path to execute: `args[0]` if it has a slash, else the first match in PATH, as execvp does it. As the final
    /// user, with the final capabilities and in the working directory, so that a hit is what execve will take.
    ///
    /// Paths are given to the kernel as they are: this process is inside the container, where a link can lead to
    /// nothing that the program could not open itself.
    pub fn find(&self) -> Result<CString> {
        self.find_file().map_err(|reason| self.error(&reason)).at(&self.field.child("args").child(0))
    }

    fn find_file(&self) -> Result<CString, String> {
        let file = self.file.to_bytes();
        if file.contains(&b'/') {
            return match check(&self.file) {
                Ok(()) => Ok(self.file.clone()),
                // In these words, lower case, callers know it.
                Err(Errno::ENOENT) => {
                    Err(format!("stat {}: no such file or directory", self.file.to_string_lossy()))
                }
                Err(Errno::EISDIR) => Err("is a directory: permission denied".into()),
                Err(errno) => Err(explain::reason(&self.file, errno)),
            };
        }
        let mut denied = None;
        for dir in self.env_value("PATH").unwrap_or(DEFAULT_PATH).split(|&b| b == b':') {
            // An empty entry is the working directory.
            let dir = if dir.is_empty() { b"." } else { dir };
            let Ok(candidate) = CString::new([dir, b"/", file].concat()) else { continue };
            match check(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(Errno::EACCES) => denied = denied.or(Some(candidate)),
                // Whatever is wrong there, the next may have it.
                Err(_) => {}
            }
        }
        Err(match denied {
            Some(candidate) => explain::reason(&candidate, Errno::EACCES),
            None => "executable file not found in $PATH".into(),
        })
    }

    /// Becomes the program; returns only to say why not. `path` is what `find` found. No descriptor to the outside may
    /// be open any more, not even one that execve closes: it does so after it has walked the path, which may lead
    /// through /proc/self/fd (CVE-2024-21626).
    pub fn execute(&self, path: &CStr) -> Error {
        let Err(errno) = execve(path, &self.args, &self.env);
        let reason = match errno {
            Errno::E2BIG => explain::too_big(&self.args, &self.env),
            _ => explain::reason(path, errno),
        };
        self.error(&reason).field(&self.field.child("args"))
    }

    fn error(&self, reason: &str) -> Error {
        Error::new(format!("exec: {:?}: {reason}", self.file.to_string_lossy()))
    }
}

/// Whether this user may execute a file of this name.
fn check(path: &CStr) -> Result<(), Errno> {
    // The mount's noexec too.
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)?;
    match SFlag::from_bits_truncate(stat(path)?.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Ok(()),
        SFlag::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EACCES),
    }
}

/// The last of several entries of a name counts. An empty HOME counts as none: it is then looked up.
fn plan_env(process: &Node) -> Vec<CString> {
    let mut seen = HashSet::new();
    let mut env = Vec::new();
    for (entry, field) in process.strings("env").into_iter().rev() {
        // Their values may be secrets and stay out of the message.
        match entry.split_once('=') {
            None => process.report().problem(field, "must have the form NAME=value"),
            Some(("", _)) => process.report().problem(field, "must have a name before the ="),
            Some(("HOME", "")) => drop(seen.insert("HOME")),
            Some((name, _)) if seen.insert(name) => env.push(c_string(entry)),
            Some(_) => {}
        }
    }
    env.reverse();
    env
}

/// The text has no NUL character: [`Node`] refuses it.
fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    fn plan(json: &str) -> (Program, Vec<String>) {
        let report = Report::default();
        let value = parse(json.as_bytes(), &report).unwrap();
        let program = Program::plan(&Node::root(&value, &report));
        (
            program,
            report.finish().err().map_or(vec![], |e| e.problems().iter().map(|p| p.to_string()).collect()),
        )
    }

    #[test]
    fn what_cannot_be_run_is_a_problem() {
        for (json, expected) in [
            ("{}", vec!["/args: is required, with at least one entry", "/cwd: is required"]),
            (r#"{"args": [], "cwd": "/"}"#, vec!["/args: is required, with at least one entry"]),
            (r#"{"args": [""], "cwd": "/"}"#, vec!["/args/0: must name a program"]),
            (r#"{"args": ["x", ""], "cwd": "/"}"#, vec![]),
            (r#"{"args": ["x"], "cwd": "a"}"#, vec!["/cwd: must be an absolute path, not \"a\""]),
            (
                r#"{"args": ["x"], "cwd": "/", "env": ["A", "=b", "C=", "D=e=f"]}"#,
                vec!["/env/1: must have a name before the =", "/env/0: must have the form NAME=value"],
            ),
        ] {
            assert_eq!(plan(json).1, expected, "{json}");
        }
    }

    #[test]
    fn the_last_of_equal_names_counts_and_an_empty_home_is_none() {
        for (env, expected) in [
            (r#"["A=1", "B=2", "A=3"]"#, vec![c"B=2", c"A=3"]),
            (r#"["A=", "AB=1"]"#, vec![c"A=", c"AB=1"]),
            (r#"["HOME=/a", "HOME="]"#, vec![]),
            (r#"["HOME=", "HOME=/a"]"#, vec![c"HOME=/a"]),
        ] {
            let (program, problems) = plan(&format!(r#"{{"args": ["x"], "cwd": "/", "env": {env}}}"#));
            assert_eq!((program.env.iter().map(|e| e.as_c_str()).collect(), problems), (expected, vec![]));
        }
    }

    #[test]
    fn a_variable_that_is_set_replaces_the_old_one() {
        let mut program = plan(r#"{"args": ["x"], "cwd": "/", "env": ["HOME2=b", "HOME=a"]}"#).0;
        assert_eq!(program.env_value("HOME"), Some(&b"a"[..]));
        program.set_env("HOME", b"/c");
        assert_eq!(program.env(), [c"HOME2=b".to_owned(), c"HOME=/c".to_owned()]);
        assert_eq!(program.env_value("HOM"), None);
    }

    /// A directory of files to find, removed at the end.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("keel-program-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn add(&self, name: &str, mode: u32) -> &Self {
            use std::os::unix::fs::PermissionsExt;
            let path = self.0.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "#!/no/such/interpreter").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            self
        }

        fn find(&self, file: &str, path: Option<&str>) -> String {
            let dir = self.0.to_str().unwrap();
            let file = file.replace("DIR", dir);
            let env: Vec<_> =
                path.iter().map(|path| c_string(&format!("PATH={}", path.replace("DIR", dir)))).collect();
            let program = Program { file: c_string(&file), env, ..Program::default() };
            match program.find() {
                Ok(path) => path.to_str().unwrap().replace(dir, "DIR"),
                Err(error) => error.to_string().replace(dir, "DIR"),
            }
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_program_is_found_in_the_path_of_its_own_environment() {
        let files = Files::new("path");
        files.add("a/tool", 0o644).add("b/tool", 0o755).add("c/tool/x", 0o755).add("a/locked", 0o600);
        let at = " [config.json /args/0]";
        for (file, path, expected) in [
            ("tool", Some("DIR/none:DIR/a:DIR/c:DIR/b"), "DIR/b/tool".to_owned()),
            ("tool", Some("DIR/c"), format!("exec: \"tool\": executable file not found in $PATH{at}")),
            (
                "keel-no-such-tool",
                None,
                format!("exec: \"keel-no-such-tool\": executable file not found in $PATH{at}"),
            ),
            ("sh", None, "/usr/bin/sh".into()),
            (
                "locked",
                Some("DIR/b:DIR/a"),
                format!(
                    "exec: \"locked\": \"DIR/a/locked\" has no execute permission for this user: permission denied{at}"
                ),
            ),
        ] {
            assert_eq!(files.find(file, path), expected);
        }
    }

    #[test]
    fn a_program_with_a_slash_is_looked_up_as_it_is() {
        let files = Files::new("slash");
        files.add("tool", 0o755).add("locked", 0o644);
        let at = " [config.json /args/0]";
        for (file, expected) in [
            ("DIR/tool", "DIR/tool".to_owned()),
            ("DIR/none", format!("exec: \"DIR/none\": stat DIR/none: no such file or directory{at}")),
            ("DIR/tool/x", format!("exec: \"DIR/tool/x\": Not a directory (20){at}")),
            ("DIR/", format!("exec: \"DIR/\": is a directory: permission denied{at}")),
            (
                "DIR/locked",
                format!(
                    "exec: \"DIR/locked\": \"DIR/locked\" has no execute permission for this user: permission denied{at}"
                ),
            ),
        ] {
            assert_eq!(files.find(file, None), expected);
        }
    }
}
