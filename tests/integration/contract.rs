//! What callers count on, line by line as they write it: containerd's go-runc, conmon, Podman, BuildKit, the OCI suite.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::sandbox::{Output, Sandbox, eventually, keel, program};
use crate::terminal::{read_all, receive};
use crate::{needs, tests};

tests![
    containerd_drives_a_container,
    containerd_gets_the_terminals,
    containerd_finds_the_reason_in_the_log,
    conmon_and_podman_drive_a_container,
    podman_gets_the_terminal_of_an_exec_session,
    buildkit_keeps_what_has_ended,
    buildkit_gets_the_exit_code,
    the_oci_suite_names_no_root,
    the_state_is_this_text,
    the_state_of_the_stopped_has_no_pid,
    the_list_has_what_the_state_has,
    the_words_of_errors_are_those_that_callers_look_for,
    warnings_go_to_the_log_or_else_to_stderr,
    what_callers_give_twice_is_taken_once,
    every_character_of_an_id_is_taken,
];

/// containerd's globals, and where its shim keeps its files: in the bundle.
struct Containerd<'c> {
    c: &'c Sandbox,
    bundle: String,
}

impl<'c> Containerd<'c> {
    fn new(c: &'c Sandbox) -> Self {
        c.write_config();
        Self { c, bundle: c.bundle().display().to_string() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let log = self.file("log.json");
        let mut command = self.c.command(&[&["--log", &log, "--log-format", "json"], args].concat());
        command.current_dir("/");
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        self.c.execute(self.command(args))
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.bundle)
    }

    fn create(&self) -> Output {
        self.call(&["create", "--bundle", &self.bundle, "--pid-file", &self.file("init.pid"), &self.c.id])
    }

    /// The file that describes a process, in the container's words.
    fn process(&self, acts: &str) -> String {
        let path = self.file("process.json");
        fs::write(&path, self.c.process(acts).to_string()).expect("write the process");
        path
    }

    fn exec(&self, acts: &str) -> Output {
        let process = self.process(acts);
        let pid_file = self.file("e1.pid");
        self.call(&["exec", "--process", &process, "--detach", "--pid-file", &pid_file, &self.c.id])
    }

    /// The call has failed, and the log's last record says the same as stderr.
    fn fails(&self, output: Output, code: i32, words: &str) {
        let last = self.log().pop().expect("a record");
        let message = last["msg"].as_str().expect("a message");
        assert_eq!((output.code, &last["level"]), (code, &json!("error")), "{output:#?}");
        assert!(message.contains(words), "{message}");
        if keel().is_ok() {
            assert_eq!(output.stderr, format!("keel: error: {message}\n"));
        }
    }

    fn log(&self) -> Vec<Value> {
        records(&self.file("log.json"))
    }
}

/// A JSON log, of which every line is checked.
fn records(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let record = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let keys: Vec<&String> = record.as_object().expect("an object").keys().collect();
        assert!(keys == ["level", "msg", "time"] || keel().is_err(), "{line}");
        let time = record["time"].as_str().expect("a time");
        humantime::parse_rfc3339(time).unwrap_or_else(|e| panic!("{e}: {line}"));
        record
    };
    text.lines().map(record).collect()
}

fn read_pid(path: &str) -> i32 {
    let text = fs::read_to_string(path).expect("read a pid file");
    assert!(text.bytes().all(|byte| byte.is_ascii_digit()), "{text:?}");
    text.parse().expect("a pid")
}

fn containerd_drives_a_container() {
    let mut c = Sandbox::new();
    c.acts("pause");
    let shim = Containerd::new(&c);
    let silent = |output: Output| assert_eq!(output.ok().stdout, "");
    silent(shim.create());
    let pid = read_pid(&shim.file("init.pid"));
    assert_eq!(shim.call(&["state", &c.id]).ok().json()["pid"], pid);
    silent(shim.call(&["start", &c.id]));
    silent(shim.exec("pause"));
    let added = read_pid(&shim.file("e1.pid"));

    let listed = shim.call(&["ps", "--format", "json", &c.id]).ok().stdout;
    let mut pids: Vec<i32> = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed, format!("[{},{}]\n", pids[0], pids[1]), "as Go prints it");
    pids.sort_unstable();
    assert_eq!(pids, [pid.min(added), pid.max(added)]);

    let resources = c.host_file("resources", r#"{"devices": [{"allow": true, "access": "rwm"}]}"#);
    let mut update = shim.command(&["update", "--resources=-", &c.id]);
    update.stdin(File::open(resources).expect("open the resources"));
    silent(c.execute(update));

    silent(shim.call(&["pause", &c.id]));
    assert_eq!(shim.call(&["state", &c.id]).ok().json()["status"], "paused");
    silent(shim.call(&["resume", &c.id]));
    silent(shim.call(&["kill", &c.id, "15"]));
    silent(shim.call(&["kill", "--all", &c.id, "9"]));
    c.wait_stopped();
    silent(shim.call(&["delete", &c.id]));
    silent(shim.call(&["delete", "--force", &c.id]));
    assert_eq!(shim.log(), Vec::<Value>::new());
    assert_eq!(c.left(), Vec::<String>::new());
}

fn containerd_gets_the_terminals() {
    let mut c = Sandbox::new();
    c.set("/process/terminal", true).acts("line ; echo first");
    let shim = Containerd::new(&c);
    let (path, pid_file) = (shim.file("pty.sock"), shim.file("init.pid"));
    let listener = UnixListener::bind(&path).expect("bind");
    let line =
        ["create", "--bundle", &shim.bundle, "--pid-file", &pid_file, "--console-socket", &path, &c.id];
    let creating = c.spawn(shim.command(&line));
    let first = receive(&listener);
    creating.wait().ok();
    shim.call(&["start", &c.id]).ok();

    let (process, pid_file) = (shim.process("echo added"), shim.file("e1.pid"));
    let line = [
        "exec",
        "--process",
        &process,
        "--console-socket",
        &path,
        "--detach",
        "--pid-file",
        &pid_file,
        &c.id,
    ];
    let adding = c.spawn(shim.command(&line));
    let added = receive(&listener);
    adding.wait().ok();
    assert_eq!((first.len(), added.len()), (1, 1));
    let [mut first, mut added] = [first, added].map(|fds| File::from(fds.into_iter().next().expect("one")));
    assert_eq!(read_all(&mut added), "added\n");
    first.write_all(b"go\n").expect("write to the terminal");
    assert_eq!(read_all(&mut first), "go\ngo\nfirst\n");
}

/// It shows the last error's message to its user, whatever stands on stderr.
fn containerd_finds_the_reason_in_the_log() {
    let mut c = Sandbox::new();
    c.args(&["nonesuch"]);
    let shim = Containerd::new(&c);
    shim.fails(shim.create(), 1, "executable file not found in $PATH");
    c.acts("pause").write_config();
    let shim = Containerd::new(&c);
    shim.create().ok();
    shim.fails(shim.create(), 1, "already exists");
    shim.call(&["start", &c.id]).ok();
    fs::write(c.rootfs().join("plain"), "").expect("write a file");
    let mut process = c.process("pause");
    for (program, words) in [
        ("nonesuch", "executable file not found in $PATH"),
        ("/no/such", "no such file or directory"),
        ("/plain", "permission denied"),
    ] {
        process["args"] = json!([program]);
        fs::write(shim.file("p"), process.to_string()).expect("write the process");
        let (file, pid_file) = (shim.file("p"), shim.file("e.pid"));
        let line = ["exec", "--process", &file, "--detach", "--pid-file", &pid_file, &c.id];
        shim.fails(shim.call(&line), 255, words);
        assert!(!fs::exists(&pid_file).expect("stat"), "no process, no pid file");
    }
    shim.call(&["kill", &c.id, "9"]).ok();
    c.wait_stopped();
    shim.fails(shim.call(&["kill", &c.id, "9"]), 1, "container not running");
    shim.fails(shim.exec("pause"), 255, "stopped");
    shim.call(&["delete", &c.id]).ok();
    shim.fails(shim.call(&["state", &c.id]), 1, "does not exist");
    shim.fails(shim.call(&["delete", &c.id]), 1, "does not exist");
    // Even a line that is wrong.
    shim.fails(shim.call(&["create", "--nonesuch", &c.id]), 1, "--nonesuch");
}

fn conmon_and_podman_drive_a_container() {
    let mut c = Sandbox::new();
    c.acts("await TERM ; exit 3").write_config();
    let (bundle, log, pid_file) = (c.bundle(), c.dir.join("oci-log"), c.dir.join("pidfile"));
    let [bundle, log, pid_file] = [&bundle, &log, &pid_file].map(|path| path.to_str().expect("UTF-8"));
    let conmon = |args: &[&str]| c.keel(&[&["--log", log, "--log-format=json"], args].concat());
    let line = ["create", "--bundle", bundle, "--pid-file", pid_file, "--no-new-keyring"];
    conmon(&[&line[..], &["--preserve-fds", "0", &c.id]].concat()).ok();
    let pid = read_pid(pid_file);
    c.keel(&["start", &c.id]).ok();
    c.wait_printed("waiting");
    assert_eq!(c.keel(&["state", &c.id]).ok().json()["pid"], pid);
    c.keel(&["pause", &c.id]).ok();
    c.keel(&["resume", &c.id]).ok();

    let process = c.host_file("process", &c.process("echo added").to_string());
    let (process, exec_pid) = (process.to_str().expect("UTF-8"), c.dir.join("exec.pid"));
    let exec_pid = exec_pid.to_str().expect("UTF-8");
    let output = conmon(&["exec", "--pid-file", exec_pid, "--process", process, "--detach", &c.id]).ok();
    c.wait_printed("added");
    assert_ne!(read_pid(exec_pid), pid);
    assert_eq!(output.stderr, "");

    let resources = c.host_file("resources", r#"{"devices": [{"allow": false, "access": "rwm"}]}"#);
    c.keel(&["update", &format!("--resources={}", resources.display()), &c.id]).ok();
    c.keel(&["kill", &c.id, "TERM"]).ok();
    c.wait_stopped();
    c.keel(&["delete", "--force", &c.id]).ok();
    c.keel(&["delete", "--force", &c.id]).ok();
    assert_eq!(records(log), Vec::<Value>::new());
}

fn podman_gets_the_terminal_of_an_exec_session() {
    let mut c = Sandbox::new();
    c.running();
    let mut process = c.process("echo added");
    process["terminal"] = json!(true);
    let process = c.host_file("process", &process.to_string());
    let (path, pid_file) = (c.dir.join("console"), c.dir.join("exec.pid"));
    let listener = UnixListener::bind(&path).expect("bind");
    let line = c.command(&[
        "exec".as_ref(),
        "--pid-file".as_ref(),
        pid_file.as_os_str(),
        "--process".as_ref(),
        process.as_os_str(),
        "--detach".as_ref(),
        "--console-socket".as_ref(),
        path.as_os_str(),
        c.id.as_ref(),
    ]);
    let adding = c.spawn(line);
    let fds = receive(&listener);
    adding.wait().ok();
    assert_eq!(fds.len(), 1);
    assert_eq!(read_all(&mut File::from(fds.into_iter().next().expect("one"))), "added\n");
}

fn buildkit_keeps_what_has_ended() {
    let mut c = Sandbox::new();
    c.acts("exit 7").write_config();
    let bundle = c.bundle().display().to_string();
    let output = c.keel(&["run", "--bundle", &bundle, "--keep", &c.id]);
    assert_eq!((output.code, &*output.stdout, &*output.stderr), (7, "", ""));
    let state = c.state();
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
    c.keel(&["delete", &c.id]).ok();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn buildkit_gets_the_exit_code() {
    for (acts, code) in [("exit 0", 0), ("exit 1", 1), ("exit 255", 255)] {
        let mut c = Sandbox::new();
        let output = c.acts(acts).run();
        assert_eq!((output.code, &*output.stderr), (code, ""), "{acts}");
    }
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        let mut c = Sandbox::new();
        // The first process of a pid namespace does not hear of what it does not handle.
        c.without_namespace("pid").acts("echo on ; pause");
        thread::scope(|scope| {
            let c = &c;
            let running = scope.spawn(|| c.run());
            eventually("it runs", || c.printed().contains("on"));
            c.kill(signal).ok();
            assert_eq!(running.join().expect("run").code, code, "{signal}");
        });
    }
}

/// In a mount namespace with a /run of its own, where the default root is.
fn the_oci_suite_names_no_root() {
    needs!(keel(), program("unshare"));
    let mut c = Sandbox::new();
    c.acts("pause").write_config();
    let script = r#"
        keel=$1 bundle=$2 id=$3
        mount -t tmpfs none /run
        $keel create --pid-file $bundle/pid --bundle $bundle $id
        test $($keel state $id | sed -n 's/.*"status": "\(.*\)",/\1/p') = created
        test -f /run/keel/$id/state.json
        $keel start $id
        test $($keel state $id | sed -n 's/.*"pid": \(.*\),/\1/p') = $(cat $bundle/pid)
        $keel kill $id KILL
        until $keel state $id | grep -q stopped; do :; done
        $keel delete $id
        $keel create --bundle $bundle $id
        $keel delete --force $id
        $keel delete --force $id
        ls /run/keel"#;
    let mut suite = Command::new("unshare");
    suite.args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"]);
    suite.arg(&c.runtime).arg(c.bundle()).arg(&c.id).env_remove("XDG_RUNTIME_DIR");
    assert_eq!(c.execute(suite).ok().stdout, "");
}

fn state_text(c: &Sandbox, state: &Value, annotations: &str) -> String {
    let created = state["created"].as_str().expect("a time");
    humantime::parse_rfc3339(created).unwrap_or_else(|e| panic!("{e}: {created}"));
    format!(
        "{{\n  \"ociVersion\": \"1.3.0\",\n  \"id\": \"{}\",\n  \"pid\": {},\n  \"status\": {},\n  \
         \"bundle\": \"{}\",\n  \"rootfs\": \"{}\",\n  \"created\": \"{created}\",\n{annotations}  \
         \"owner\": \"root\"\n}}",
        c.id,
        state["pid"],
        state["status"],
        c.bundle().display(),
        c.rootfs().display(),
    )
}

/// Go's decoders take any; scripts do not.
fn the_state_is_this_text() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.acts("pause").created();
    let text = c.keel(&["state", &c.id]).ok().stdout;
    let state: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(text.trim_end(), state_text(&c, &state, ""));
    assert_eq!(state["status"], "created");

    let mut c = Sandbox::new();
    c.set("/annotations", json!({"a": "b"})).running();
    let text = c.keel(&["state", &c.id]).ok().stdout;
    let state: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(text.trim_end(), state_text(&c, &state, "  \"annotations\": {\n    \"a\": \"b\"\n  },\n"));
    assert_eq!(state["status"], "running");
}

fn the_state_of_the_stopped_has_no_pid() {
    let mut c = Sandbox::new();
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    let text = c.keel(&["state", &c.id]).ok().stdout;
    assert!(text.contains("\n  \"pid\": 0,\n  \"status\": \"stopped\",\n"), "{text}");
}

fn the_list_has_what_the_state_has() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/annotations", json!({"a": "b"})).running();
    let list = c.keel(&["list", "--format", "json"]).ok();
    assert_eq!(list.stdout.lines().count(), 1, "runc's is one line");
    assert_eq!(list.json(), json!([c.state()]));
}

fn the_words_of_errors_are_those_that_callers_look_for() {
    let mut c = Sandbox::new();
    c.acts("exit 0").created();
    let says = |args: &[&str], words: &str| {
        let error = c.keel(args).fails();
        assert!(error.contains(words), "{args:?}: {error}");
    };
    says(&["create", &c.id], "already exists");
    c.start().ok();
    c.wait_stopped();
    says(&["kill", &c.id, "KILL"], "container not running");
    for command in ["start", "state", "kill", "delete", "pause", "resume", "ps", "events"] {
        says(&[command, "nonesuch"], "does not exist");
    }
    says(&["update", "--pids-limit", "9", "nonesuch"], "does not exist");
    for (name, mode, words) in
        [("/nonesuch", 0, "no such file or directory"), ("/plain", 0o644, "permission denied")]
    {
        let mut c = Sandbox::new();
        if mode != 0 {
            fs::set_permissions(c.write(name, ""), fs::Permissions::from_mode(mode)).expect("chmod");
        }
        let error = c.args(&[name]).create().fails();
        assert!(error.contains(words), "{error}");
    }
    let mut c = Sandbox::new();
    assert!(c.args(&["nonesuch"]).create().fails().contains("executable file not found"));
}

fn warnings_go_to_the_log_or_else_to_stderr() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.set("/process/capabilities/bounding/-", "CAP_FROBNICATE").acts("exit 0").write_config();
    let log = c.dir.join("log").display().to_string();
    c.keel(&["--log", &log, "--log-format", "json", "run", &c.id]).ok();
    let logged = records(&log);
    assert_eq!((logged.len(), &logged[0]["level"]), (1, &json!("warning")));
    let output = c.keel(&["run", &c.id]);
    let message = logged[0]["msg"].as_str().expect("a message");
    assert_eq!((output.code, output.stderr), (0, format!("keel: warning: {message}\n")));
}

/// As with runc the last counts: a caller may add its own to those that its user gave.
fn what_callers_give_twice_is_taken_once() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.acts("exit 0").write_config();
    let bundle = c.bundle().display().to_string();
    c.keel(&["run", "--bundle", "/nonexistent", "--bundle", &bundle, "-no-subreaper", &c.id]).ok();
}

fn every_character_of_an_id_is_taken() {
    for id in ["a", "A-b_c+d.e9", "...", "-x", "_", "+"] {
        let mut c = Sandbox::new();
        let line: &[&str] = if id.starts_with('-') { &["--"] } else { &[] };
        c.acts("exit 4").write_config();
        let output = c.keel(&[&["run"], line, &[id]].concat());
        assert_eq!((output.code, &*output.stderr), (4, ""), "{id}");
    }
}
