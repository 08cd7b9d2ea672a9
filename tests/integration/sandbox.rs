//! A throw-away bundle with its own state directory, cgroup and id. Every test is a leak test: when the sandbox
//! ends, no process, mount, cgroup, state directory or changed device of its may be left.
//!
//! ```ignore
//! let mut c = Sandbox::new();
//! c.set("/hostname", "a");
//! assert_eq!(c.report()["uname"]["hostname"], "a");
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

/// Longer than any command may take on a machine that is busy with the other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// The host's user who is root in a sandbox's user namespace.
pub const HOST_ROOT: u32 = 100_000;

/// A user without privileges, of the tests' own mount namespace: who it is, and the ids that it may map besides.
pub const USER: u32 = 60_042;
pub const USER_NAME: &str = "keel-tester";
pub const SUBIDS: (u32, u32) = (700_000, 65_536);

/// The runtime under test: $KEEL, else the one that cargo built, else the one beside this test binary.
pub fn runtime() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_keel"));
    match env::var_os("KEEL") {
        Some(path) => path.into(),
        None if built.exists() => built,
        None => env::current_exe().expect("this program's path").with_file_name("keel"),
    }
}

/// False for a control run with another runtime, which need not fulfil keel's own contract.
pub fn is_keel() -> bool {
    runtime().file_name().is_some_and(|name| name == "keel")
}

/// For what only keel promises.
pub fn keel() -> Result<(), String> {
    is_keel().then_some(()).ok_or("a control run with another runtime".into())
}

pub fn root() -> Result<(), String> {
    nix::unistd::geteuid().is_root().then_some(()).ok_or("needs root".into())
}

pub fn program(name: &str) -> Result<(), String> {
    let path = env::var("PATH").unwrap_or_default();
    let found = path.split(':').any(|directory| Path::new(directory).join(name).exists());
    found.then_some(()).ok_or(format!("needs the program {name}"))
}

pub fn path(path: &str) -> Result<(), String> {
    Path::new(path).exists().then_some(()).ok_or(format!("needs {path}"))
}

pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().rfind(|line| line.contains(" - cgroup2 "))?;
    mount.split(' ').nth(4).map(PathBuf::from)
}

/// A controller that the cgroups below the root get.
pub fn controller(name: &str) -> Result<(), String> {
    let passed = cgroup_root().and_then(|root| fs::read_to_string(root.join("cgroup.controllers")).ok());
    let has = passed.is_some_and(|names| names.split_whitespace().any(|passed| passed == name));
    has.then_some(()).ok_or(format!("needs the cgroup controller {name}"))
}

/// That keel makes the cgroups itself, and not systemd by $SYSTEMD, which removes each with its last process.
pub fn cgroupfs() -> Result<(), String> {
    env::var_os("SYSTEMD").is_none().then_some(()).ok_or("is about the cgroups that keel makes itself".into())
}

/// A host that systemd runs.
pub fn systemd() -> Result<(), String> {
    path("/run/systemd/private")
}

/// The user `tester` of the machine of hack/vm, with a systemd of its own.
pub const SESSION_USER: u32 = 1000;
pub const SESSION_SUBIDS: (u32, u32) = (100_000, 65_536);

pub fn session_dir() -> PathBuf {
    PathBuf::from(format!("/run/user/{SESSION_USER}"))
}

/// A systemd of that user's.
pub fn session() -> Result<(), String> {
    let is_there = session_dir().join("systemd/private").exists() && Path::new("/home/tester").exists();
    is_there.then_some(()).ok_or("needs the user tester with a systemd of its own".into())
}

/// Swap space, and a controller that counts it.
pub fn swap() -> Result<(), String> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    (swaps.lines().count() > 1).then_some(()).ok_or("needs swap space".into())
}

/// Free huge pages of 2 MiB.
pub fn huge_pages(count: u32) -> Result<(), String> {
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free: u32 = free.ok().and_then(|free| free.trim().parse().ok()).unwrap_or(0);
    (free >= count).then_some(()).ok_or(format!("needs {count} free huge pages of 2 MiB, not {free}"))
}

/// $DISK: a block device whose contents do not matter, with the BFQ scheduler.
pub fn disk() -> Result<String, String> {
    env::var("DISK").map_err(|_| "needs a disk that may be overwritten: DISK=/dev/...".into())
}

/// What a command did.
#[derive(Debug)]
pub struct Output {
    #[allow(dead_code, reason = "shown when a test fails")]
    pub command: String,
    /// 128 + n after signal n, as a shell says it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Success is silent.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.code == 0 && (self.stderr.is_empty() || !is_keel()), "{self:#?}");
        self
    }

    /// The error: status 1 and one line on stderr with the word `error`.
    #[track_caller]
    pub fn fails(self) -> String {
        self.fails_with(1)
    }

    /// The same of `exec`, whose failures all have status 255: 1 may be the program's own.
    #[track_caller]
    pub fn exec_fails(self) -> String {
        self.fails_with(255)
    }

    #[track_caller]
    fn fails_with(self, code: i32) -> String {
        assert_ne!(self.code, 0, "{self:#?}");
        if is_keel() {
            assert_eq!(self.code, code, "{self:#?}");
            assert_eq!(self.stderr.lines().count(), 1, "{self:#?}");
            assert!(self.stderr.contains("error"), "{self:#?}");
        }
        self.stderr
    }

    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }

    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }
}

/// A command in the background.
pub struct Running {
    command: String,
    child: Child,
    /// Where stdout and stderr go.
    files: Option<[PathBuf; 2]>,
}

impl Running {
    /// A command whose output goes elsewhere.
    pub fn of(command: &mut Command) -> Self {
        let words: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        let words = format!("{} {}", command.get_program().display(), words.join(" "));
        let child = command.spawn().unwrap_or_else(|e| panic!("run {words}: {e}"));
        Self { command: words, child, files: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it sleeps in poll(2).
    pub fn polls(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/wchan", self.pid())).is_ok_and(|at| at.contains("poll"))
    }

    #[track_caller]
    pub fn wait(mut self) -> Output {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for the command") {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().expect("kill the command that hangs");
                panic!("{} hangs; it printed {:?}", self.command, self.printed());
            }
            thread::sleep(Duration::from_millis(1));
        };
        let [stdout, stderr] = self.printed();
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        Output { command: take(&mut self.command), code: code.expect("a status"), stdout, stderr }
    }

    fn printed(&self) -> [String; 2] {
        let read = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        self.files.as_ref().map_or_else(Default::default, |files| files.each_ref().map(read))
    }
}

impl Drop for Running {
    /// A test that failed leaves no command behind.
    fn drop(&mut self) {
        // Both fail with ESRCH or ECHILD after wait().
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Sandbox {
    /// Of mode 0700: `bundle/`, `state/`, `io/`, and whatever the test puts here.
    pub dir: PathBuf,
    pub id: String,
    pub config: Value,
    /// A test whose attack would overwrite the runtime puts a copy here.
    pub runtime: PathBuf,
    /// Whether systemd makes the cgroup.
    scope: bool,
    /// Only because of $SYSTEMD: not if the test gives a path that systemd takes none of.
    scope_by_default: bool,
    /// Who calls it, if not root.
    pub user: Option<u32>,
    calls: AtomicU32,
}

impl Sandbox {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let id = format!("keel-test-{}-{:04}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = env::temp_dir().join(&id);
        for name in
            ["io", "bundle/rootfs/proc", "bundle/rootfs/sys", "bundle/rootfs/dev", "bundle/rootfs/tmp"]
        {
            fs::create_dir_all(dir.join(name)).expect("make the sandbox");
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("chmod the sandbox");
        let mut sandbox = Self {
            config: default_config(&id),
            runtime: runtime(),
            user: None,
            dir,
            id,
            scope: false,
            scope_by_default: false,
            calls: AtomicU32::new(0),
        };
        link(&env::current_exe().expect("this program's path"), &sandbox.rootfs().join("payload"));
        // All tests once more in a user namespace: not all can pass, but which do not is worth a look.
        if env::var_os("USERNS").is_some() {
            sandbox.user_namespace();
        }
        // The same with cgroups of systemd's.
        if env::var_os("SYSTEMD").is_some() {
            sandbox.scope().scope_by_default = true;
        }
        // The same as a user.
        if env::var_os("ROOTLESS").is_some() {
            sandbox.rootless();
        }
        sandbox
    }

    /// In a scope of systemd's.
    pub fn scope(&mut self) -> &mut Self {
        self.scope = true;
        self.scope_by_default = false;
        let path = format!("system.slice:keel:{}", self.id);
        self.set("/linux/cgroupsPath", path)
    }

    fn in_scope(&self) -> bool {
        let path = self.config.pointer("/linux/cgroupsPath").and_then(Value::as_str);
        self.scope && !(self.scope_by_default && path.is_some_and(|path| !path.contains(':')))
    }

    /// The name of the cgroup, as /proc/PID/cgroup has it.
    pub fn cgroup_name(&self) -> String {
        let root = cgroup_root().expect("a cgroup2 mount");
        format!("/{}", self.cgroup().strip_prefix(root).expect("a cgroup below the mount").display())
    }

    /// The unit that this container lives in, or would.
    pub fn unit(&self) -> String {
        format!("keel-{}.scope", self.id)
    }

    /// For [`USER`], whom all of the sandbox is given to, with what `spec --rootless` writes: itself mapped as root, the
    /// host's network, no cgroup asked for.
    pub fn rootless(&mut self) -> &mut Self {
        self.rootless_as(USER)
    }

    /// For the user of [`session`], in a scope of its systemd's; called from outside of the cgroup that is the user's.
    pub fn users_scope(&mut self) -> &mut Self {
        self.rootless_as(SESSION_USER).scope = true;
        self.set("/linux/cgroupsPath", format!("user.slice:keel:{}", self.id))
    }

    fn rootless_as(&mut self, user: u32) -> &mut Self {
        let itself = json!([{"containerID": 0, "hostID": user, "size": 1}]);
        self.set("/linux/uidMappings", itself.clone()).set("/linux/gidMappings", itself);
        self.set("/linux/namespaces/-", json!({"type": "user"}));
        self.unset("/linux/cgroupsPath").unset("/linux/resources");
        self.set(
            "/mounts/2/options",
            json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        );
        self.user = Some(user);
        self.give_to_user(&self.dir);
        self
    }

    /// Maps subordinate ids of the user's from 1 on, by newuidmap and newgidmap.
    pub fn subids(&mut self, (first, size): (u32, u32)) -> &mut Self {
        let mapping = json!([{"containerID": 0, "hostID": self.user, "size": 1},
            {"containerID": 1, "hostID": first, "size": size}]);
        self.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping)
    }

    /// The same with [`SUBIDS`].
    pub fn rootless_with_subids(&mut self) -> &mut Self {
        self.rootless().subids(SUBIDS)
    }

    /// Gives what the test has put into a directory of the sandbox to its user.
    pub fn give_to_user(&self, dir: &Path) {
        Self::give(dir, self.user.unwrap_or(USER));
    }

    pub fn with_resources(resources: Value) -> Self {
        let mut sandbox = Self::new();
        sandbox.set("/linux/resources", resources);
        sandbox
    }

    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("bundle/rootfs")
    }

    /// Where this container's cgroup is, or would be.
    pub fn cgroup(&self) -> PathBuf {
        let root = cgroup_root().expect("a cgroup2 mount");
        match self.user {
            _ if !self.in_scope() => root.join(&self.id),
            None => root.join("system.slice").join(self.unit()),
            Some(user) => root
                .join(format!("user.slice/user-{user}.slice/user@{user}.service/user.slice"))
                .join(self.unit()),
        }
    }

    /// What is in a file of the cgroup.
    #[track_caller]
    pub fn limit(&self, file: &str) -> String {
        let path = self.cgroup().join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim_end().to_owned()
    }

    /// A number that stands behind its name in a file of the cgroup.
    #[track_caller]
    pub fn count(&self, file: &str, name: &str) -> u64 {
        let text = self.limit(file);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{file} has no {name}: {text}")).parse().expect("a number")
    }

    /// `update` with an object as /linux/resources has it.
    #[track_caller]
    pub fn update(&self, resources: &Value) -> Output {
        let file = self.host_file("resources.json", &resources.to_string());
        self.keel(&["update", "--resources", file.to_str().expect("UTF-8"), &self.id])
    }

    /// A file in the rootfs, with its directories.
    pub fn write(&self, path: &str, text: &str) -> PathBuf {
        self.put(&self.rootfs().join(path.trim_start_matches('/')), text)
    }

    /// A file of the host, in the sandbox but outside of the rootfs.
    pub fn host_file(&self, path: &str, text: &str) -> PathBuf {
        self.put(&self.dir.join("host").join(path), text)
    }

    pub fn host_dir(&self, path: &str) -> PathBuf {
        let path = self.dir.join("host").join(path);
        fs::create_dir_all(&path).expect("make a directory");
        path
    }

    fn put(&self, path: &Path, text: &str) -> PathBuf {
        fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
        fs::write(path, text).expect("write a file");
        path.to_owned()
    }

    /// A host script for hooks; `$D` is the sandbox's directory.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.host_file(name, &format!("#!/bin/sh\nD={}\n{text}\n", self.dir.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod a script");
        path
    }

    pub fn symlink(&self, target: &str, path: &str) {
        let path = self.rootfs().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir(&path).expect("remove an empty directory");
        }
        symlink(target, path).expect("make a symlink");
    }

    /// busybox in /bin, for what the payload cannot do.
    pub fn busybox(&self) {
        fs::create_dir_all(self.rootfs().join("bin")).expect("make /bin");
        link(Path::new("/bin/busybox"), &self.rootfs().join("bin/busybox"));
        for name in ["sh", "sleep", "true", "cat", "touch"] {
            self.symlink("busybox", &format!("bin/{name}"));
        }
    }

    /// Sets a place of config.json and what leads to it; `-` appends to an array.
    pub fn set(&mut self, pointer: &str, value: impl Into<Value>) -> &mut Self {
        let mut at = &mut self.config;
        for key in pointer.split('/').skip(1) {
            let key = key.replace("~1", "/").replace("~0", "~");
            if at.is_null() {
                *at = if key == "-" { json!([]) } else { json!({}) };
            }
            at = match at {
                Value::Array(array) => {
                    let index = if key == "-" { array.len() } else { key.parse().expect("an index") };
                    array.resize(array.len().max(index + 1), Value::Null);
                    &mut array[index]
                }
                object => &mut object[key],
            };
        }
        *at = value.into();
        self
    }

    /// Removes a key of an object.
    pub fn unset(&mut self, pointer: &str) -> &mut Self {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = self.config.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
        parent.remove(key).unwrap_or_else(|| panic!("{pointer} is not set"));
        self
    }

    /// A new user namespace, whose root is the host's user [`HOST_ROOT`]; the rootfs as it stands is given to that.
    pub fn user_namespace(&mut self) -> &mut Self {
        let mapping = json!([{"containerID": 0, "hostID": HOST_ROOT, "size": 65536}]);
        self.set("/linux/namespaces/-", json!({"type": "user"}));
        self.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping);
        self.give_rootfs();
        self
    }

    /// Gives what the test has put into the rootfs to the user namespace's root.
    pub fn give_rootfs(&self) {
        Self::give(&self.rootfs(), HOST_ROOT);
    }

    pub fn give(dir: &Path, id: u32) {
        // Not the payload and busybox, which are the host's files too.
        let find = Command::new("find")
            .arg(dir)
            .args(["(", "-links", "1", "-o", "-type", "d", "-o", "-type", "l", ")"])
            .args(["-exec", "chown", "-h", &format!("{id}:{id}"), "{}", "+"])
            .status();
        assert!(find.is_ok_and(|status| status.success()), "chown {}", dir.display());
    }

    pub fn mount(&mut self, mount: Value) -> &mut Self {
        self.set("/mounts/-", mount)
    }

    /// Leaves out the default mount at a destination.
    pub fn without_mount(&mut self, destination: &str) -> &mut Self {
        self.retain("/mounts", |mount| mount["destination"] != destination)
    }

    pub fn without_namespace(&mut self, kind: &str) -> &mut Self {
        self.retain("/linux/namespaces", |namespace| namespace["type"] != kind)
    }

    fn retain(&mut self, pointer: &str, keep: impl Fn(&Value) -> bool) -> &mut Self {
        let array = self.config.pointer_mut(pointer).and_then(Value::as_array_mut).expect("an array");
        let before = array.len();
        array.retain(keep);
        assert!(array.len() < before, "{pointer} has no such element");
        self
    }

    /// What the payload is to do, in the words of payload.rs.
    pub fn acts(&mut self, acts: &str) -> &mut Self {
        let args: Vec<&str> = ["/payload"].into_iter().chain(acts.split_whitespace()).collect();
        self.set("/process/args", json!(args))
    }

    pub fn args(&mut self, args: &[&str]) -> &mut Self {
        self.set("/process/args", json!(args))
    }

    pub fn write_config(&self) {
        if env::var_os("USERNS").is_some() {
            self.give_rootfs();
        }
        if self.user.is_some() {
            self.give_to_user(&self.bundle());
        }
        let json = serde_json::to_vec_pretty(&self.config).expect("JSON");
        fs::write(self.bundle().join("config.json"), json).expect("write config.json");
    }

    /// `keel --root STATE ARGS`, with nothing of this process's environment but PATH.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.dir.join("state"));
        if self.in_scope() && !args.iter().any(|arg| arg.as_ref() == "--cgroup-manager") {
            command.arg("--systemd-cgroup");
        }
        command.args(args);
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("SANDBOX", &self.id);
        command.current_dir(self.bundle()).stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        if let (Some(user), true) = (self.user, self.scope) {
            command.env("XDG_RUNTIME_DIR", format!("/run/user/{user}"));
        }
        command
    }

    /// Starts a command whose stdout and stderr are files: a container may keep them open after it.
    pub fn spawn(&self, mut command: Command) -> Running {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let files = ["out", "err"].map(|end| self.dir.join(format!("io/{call}.{end}")));
        let [stdout, stderr] = files.each_ref().map(|path| File::create(path).expect("make an output file"));
        let mut running = Running::of(command.stdout(stdout).stderr(stderr));
        running.files = Some(files);
        running
    }

    /// The same with stdout in a descriptor.
    pub fn spawn_to(&self, mut command: Command, stdout: OwnedFd) -> Running {
        Running::of(command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::inherit()))
    }

    #[track_caller]
    pub fn execute(&self, command: Command) -> Output {
        self.spawn(command).wait()
    }

    #[track_caller]
    pub fn keel<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.execute(self.command(args))
    }

    /// keel behind another program, which runs it as its last arguments.
    #[track_caller]
    pub fn behind(&self, wrapper: &[&str], args: &[&str]) -> Output {
        let keel = self.command(args);
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(keel.get_program()).args(keel.get_args()).current_dir(self.bundle());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("SANDBOX", &self.id);
        self.execute(command)
    }

    /// `run`, to its end; it must leave nothing behind, whatever became of it.
    #[track_caller]
    pub fn run(&self) -> Output {
        self.write_config();
        let output = self.keel(&["run", &self.id]);
        assert_eq!(self.left(), Vec::<String>::new(), "left behind by {output:#?}");
        output
    }

    #[track_caller]
    pub fn run_in_background(&self) -> Running {
        self.write_config();
        self.spawn(self.command(&["run", &self.id]))
    }

    /// What the payload sees.
    #[track_caller]
    pub fn report(&mut self) -> Value {
        self.acts("report").run().ok().json()
    }

    /// What the payload prints when it does this, line by line.
    #[track_caller]
    pub fn does(&mut self, acts: &str) -> Vec<String> {
        self.acts(acts).run().ok().lines().into_iter().map(str::to_owned).collect()
    }

    /// What the payload's stat says of a path.
    #[track_caller]
    pub fn stat(&mut self, path: &str) -> Value {
        self.acts(&format!("stat {path}")).run().ok().json()
    }

    #[track_caller]
    pub fn create(&self) -> Output {
        self.write_config();
        self.keel(&["create", &self.id])
    }

    /// A container that waits to be started.
    #[track_caller]
    pub fn created(&self) -> &Self {
        self.create().ok();
        self
    }

    /// A container whose payload pauses.
    #[track_caller]
    pub fn running(&mut self) -> &Self {
        self.acts("pause").create().ok();
        self.start().ok();
        self
    }

    /// `keel exec OPTIONS ID /payload ACTS`.
    #[track_caller]
    pub fn exec(&self, options: &[&str], acts: &str) -> Output {
        self.execute(self.exec_command(options, acts))
    }

    pub fn exec_command(&self, options: &[&str], acts: &str) -> Command {
        let mut args = vec!["exec"];
        args.extend(options);
        args.extend([&*self.id, "/payload"]);
        args.extend(acts.split_whitespace());
        self.command(&args)
    }

    /// What a payload that `exec` adds sees.
    #[track_caller]
    pub fn exec_report(&self, options: &[&str]) -> Value {
        self.exec(options, "report").ok().json()
    }

    /// Runs what `process` describes.
    #[track_caller]
    pub fn exec_process(&self, process: &Value) -> Output {
        let path = self.host_file("process.json", &process.to_string());
        self.keel(&["exec", "--process", path.to_str().expect("a UTF-8 path"), &self.id])
    }

    /// The container's own process with another payload, for `exec_process`.
    pub fn process(&self, acts: &str) -> Value {
        let mut process = self.config["process"].clone();
        let args: Vec<&str> = ["/payload"].into_iter().chain(acts.split_whitespace()).collect();
        process["args"] = json!(args);
        process
    }

    /// `create` refuses the config, names the field or one inside it, and leaves nothing behind.
    #[track_caller]
    pub fn refused(&self, field: &str) -> String {
        self.write_config();
        let error = self.keel(&["create", &self.id]).fails();
        // The field or what lies below it.
        let named = [format!("{field}: "), format!("[config.json {field}]"), format!("{field}/")];
        assert!(
            !is_keel() || named.iter().any(|name| error.contains(name)),
            "{field} is not named in: {error}"
        );
        assert_eq!(self.left(), Vec::<String>::new(), "left behind by the create that said {error}");
        error
    }

    /// `create`, or the start after it, fails; nothing is left once the container is deleted.
    #[track_caller]
    pub fn never_runs(&self) -> String {
        let created = self.create();
        if created.code != 0 {
            return created.fails();
        }
        let error = self.start().fails();
        self.delete_force().ok();
        error
    }

    #[track_caller]
    pub fn start(&self) -> Output {
        self.keel(&["start", &self.id])
    }

    #[track_caller]
    pub fn kill(&self, signal: &str) -> Output {
        self.keel(&["kill", &self.id, signal])
    }

    #[track_caller]
    pub fn delete(&self) -> Output {
        self.keel(&["delete", &self.id])
    }

    #[track_caller]
    pub fn delete_force(&self) -> Output {
        self.keel(&["delete", "--force", &self.id])
    }

    #[track_caller]
    pub fn state(&self) -> Value {
        self.keel(&["state", &self.id]).ok().json()
    }

    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("a status").to_owned()
    }

    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.state()["pid"].as_i64().expect("a pid").try_into().expect("a pid")
    }

    #[track_caller]
    pub fn wait_stopped(&self) {
        eventually("the container stops", || self.status() == "stopped");
    }

    /// What all commands have printed so far: a created container writes into its create's output.
    pub fn printed(&self) -> String {
        self.all_calls("out")
    }

    /// The same for stderr.
    pub fn complaints(&self) -> String {
        self.all_calls("err")
    }

    fn all_calls(&self, end: &str) -> String {
        let calls = 0..self.calls.load(Ordering::Relaxed);
        calls
            .map(|call| fs::read_to_string(self.dir.join(format!("io/{call}.{end}"))).unwrap_or_default())
            .collect()
    }

    #[track_caller]
    pub fn wait_printed(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.printed().contains(text) {
            assert!(
                Instant::now() < deadline,
                "no {text:?} in {:?}, {:?}",
                self.printed(),
                self.complaints()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The containers that have a state directory.
    pub fn containers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join("state")).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        // crun keeps a directory of its own there.
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }

    /// All that a container of this sandbox left on the machine.
    pub fn left(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.containers().into_iter().map(|id| format!("state of {id}")).collect();
        for mount in self.host_mounts() {
            left.push(format!("mount at {mount}"));
        }
        if self.cgroup().exists() {
            left.push(format!("cgroup {}", self.cgroup().display()));
        }
        // systemd forgets a unit a moment after it has said that it has ended.
        let units = self.user.map_or("/run".into(), |_| session_dir()).join("systemd/transient");
        let unit = units.join(self.unit());
        for _ in 0..1000 {
            if !unit.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        if unit.exists() {
            left.push(format!("unit {}", self.unit()));
        }
        left.extend(processes_of(&self.id).into_iter().map(|process| format!("process {process}")));
        let null = fs::metadata("/dev/null").expect("stat /dev/null");
        if (null.rdev(), null.mode() & 0o7777, null.uid(), null.gid())
            != (nix::libc::makedev(1, 3), 0o666, 0, 0)
        {
            left.push("a harmed /dev/null".into());
        }
        left
    }

    /// Mounts below the sandbox in this process's namespace.
    pub fn host_mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.contains(&self.id)).map(str::to_owned).collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let mut faults = Vec::new();
        for id in self.containers() {
            let output = self.execute(self.command(&["delete", "--force", &id]));
            if output.code != 0 {
                faults.push(format!("{output:#?}"));
            }
        }
        faults.extend(self.left());
        if !faults.is_empty() {
            self.sweep();
        }
        let removed = Command::new("rm").args(["-rf", "--one-file-system"]).arg(&self.dir).status();
        if !removed.is_ok_and(|status| status.success()) {
            faults.push(format!("directory {}", self.dir.display()));
        }
        if !thread::panicking() {
            assert!(faults.is_empty(), "left behind at the end: {faults:#?}");
        }
    }
}

impl Sandbox {
    /// Clears what a failure left, so that it harms no other test.
    fn sweep(&self) {
        for mount in self.host_mounts().iter().rev() {
            // EINVAL: it went with its parent.
            let _ = umount2(mount.as_str(), MntFlags::MNT_DETACH);
        }
        let cgroup = self.cgroup();
        for _ in 0..500 {
            // ENOENT: there is none.
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
            if fs::remove_dir(&cgroup).is_ok() || !cgroup.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A hard link where the file system allows it: the payload is many megabytes.
pub fn link(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        copy(from, to);
    }
}

/// A copy of a program. By another process: one that is forked here meanwhile would inherit the file, and what is open
/// for writing cannot be executed.
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "copy {} to {}", from.display(), to.display());
}

/// Whether there is something to read, or the end of it, before the patience ends.
pub fn readable(fd: impl AsFd) -> bool {
    let timeout = PollTimeout::try_from(PATIENCE).expect("a time that poll takes");
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) == Ok(1)
}

/// Waits for something that another process does in its own time.
#[track_caller]
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The living processes that a sandbox's runtime started: they bear its id in their arguments, environment or cgroup.
pub fn processes_of(id: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != process::id()).filter_map(|pid| process_of(id, pid)).collect()
}

fn process_of(id: &str, pid: u32) -> Option<String> {
    let read = |name: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    let bears_id = ["cmdline", "environ", "cgroup"].iter().any(|name| read(name).contains(id));
    let stat = read("stat");
    let dead = stat
        .rsplit(')')
        .next()
        .is_none_or(|rest| matches!(rest.trim().chars().next(), None | Some('Z' | 'X')));
    (bears_id && !dead).then(|| format!("{pid}: {}", read("cmdline")))
}

/// Close to what `runc spec` prints.
fn default_config(id: &str) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        let mut mount = json!({"destination": destination, "type": kind, "source": source});
        if !options.is_empty() {
            mount["options"] = json!(options);
        }
        mount
    };
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["/payload", "report"],
            "env": ["PATH=/bin:/", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "sandbox",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "cgroup"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
