//! /hooks: when, where, with what, and what a failure does.

use std::fs;

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, is_keel, keel};
use crate::{needs, tests};

tests![
    all_hooks_run_in_order,
    each_hook_reads_the_state_on_stdin,
    a_hooks_environment_is_exactly_the_configured_one,
    a_hooks_arguments_are_the_configured_ones,
    runtime_hooks_run_in_the_hosts_namespaces,
    create_container_hooks_see_the_hosts_files_in_the_containers_namespaces,
    start_container_hooks_run_inside,
    a_failing_hook_before_start_leaves_nothing,
    a_failing_start_container_hook_stops_the_container,
    a_failing_poststart_hook_stops_the_container,
    a_failing_poststop_hook_is_a_warning,
    poststop_hooks_run_after_the_container_is_gone,
    a_hook_that_exceeds_its_timeout_is_killed,
    a_hook_in_time_is_fine,
    a_hook_has_no_descriptor_of_the_runtime,
    a_hook_starts_with_default_signals,
    a_relative_path_is_refused,
    a_timeout_of_zero_is_refused,
    a_hook_without_a_path_is_refused,
    a_missing_hook_is_an_error_that_names_it,
    the_bundles_hooks_are_those_of_create,
    prestart_may_set_up_the_network,
    hooks_run_with_the_callers_umask,
    hooks_run_under_a_caller_that_ignores_sigchld,
    a_container_whose_hooks_run_is_creating,
    a_hook_cannot_start_the_container_that_is_being_created,
    a_run_whose_hook_hangs_can_be_interrupted,
    a_hook_has_no_descriptor_of_the_caller,
    the_children_of_a_hook_that_exceeds_its_timeout_are_killed,
    a_container_whose_hooks_run_is_creating_and_left_alone,
];

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

fn hook(c: &mut Sandbox, kind: &str, script: &str) {
    let count = c.config["hooks"][kind].as_array().map_or(0, Vec::len);
    let path = c.script(&format!("{kind}-{count}"), script);
    c.set(&format!("/hooks/{kind}/-"), json!({"path": path, "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}));
}

/// A hook inside the container: the payload does something.
fn inside(c: &mut Sandbox, acts: &[&str]) {
    let args: Vec<&str> = ["/payload"].iter().chain(acts).copied().collect();
    c.set("/hooks/startContainer/-", json!({"path": "/payload", "args": args}));
}

fn read(c: &Sandbox, name: &str) -> String {
    fs::read_to_string(c.dir.join(name)).unwrap_or_default()
}

fn all_hooks_run_in_order() {
    let mut c = Sandbox::new();
    for kind in KINDS.into_iter().filter(|kind| *kind != "startContainer") {
        for number in [1, 2] {
            hook(&mut c, kind, &format!("echo {kind} {number} >>$D/log"));
        }
    }
    c.host_dir("shared");
    let log = c.host_file("log", "");
    c.mount(json!({"destination": "/log", "source": log, "options": ["bind"]}));
    inside(&mut c, &["create", "/started", "yes"]);
    c.acts("echo up").created();
    let until_created =
        "prestart 1\nprestart 2\ncreateRuntime 1\ncreateRuntime 2\ncreateContainer 1\ncreateContainer 2\n";
    assert_eq!(read(&c, "log"), until_created);
    assert!(!c.rootfs().join("started").exists());
    c.start().ok();
    assert!(c.rootfs().join("started").exists());
    assert_eq!(read(&c, "log"), format!("{until_created}poststart 1\npoststart 2\n"));
    c.wait_stopped();
    c.delete().ok();
    assert_eq!(read(&c, "log"), format!("{until_created}poststart 1\npoststart 2\npoststop 1\npoststop 2\n"));
}

fn each_hook_reads_the_state_on_stdin() {
    let mut c = Sandbox::new();
    c.set("/annotations", json!({"a": "b"}));
    for kind in KINDS.into_iter().filter(|kind| *kind != "startContainer") {
        hook(&mut c, kind, &format!("cat >$D/{kind}"));
    }
    c.acts("pause").created().start().ok();
    let pid = c.pid();
    c.delete_force().ok();
    for (kind, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let state: Value = serde_json::from_str(&read(&c, kind)).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert_eq!((&state["id"], &state["bundle"]), (&json!(c.id), &json!(c.bundle())), "{kind}");
        assert_eq!(state["annotations"], json!({"a": "b"}), "{kind}");
        assert!(state["ociVersion"].is_string(), "{kind}");
        // runc 1.1 says "created" to createRuntime hooks.
        assert!(state["status"] == status || !is_keel(), "{kind}: {state}");
        match kind {
            // In the container's pid namespace, or the runtime's: the spec has it that it is the container's.
            "createContainer" => assert!(state["pid"] == 1 || state["pid"] == pid, "{kind}: {state}"),
            "poststop" => (),
            _ => assert_eq!(state["pid"], pid, "{kind}"),
        }
    }
}

fn a_hooks_environment_is_exactly_the_configured_one() {
    let mut c = Sandbox::new();
    // The shell adds PWD of its own accord.
    let print = "cat /proc/$$/environ | tr '\\0' '\\n' | grep -v ^PWD=";
    let path = c.script("environment", &format!("{print} >$D/environment"));
    c.set("/hooks/createRuntime/-", json!({"path": path, "env": ["A=1", "B=two words"]}));
    let path = c.script("none", &format!("{print} >$D/none; true"));
    c.set("/hooks/createRuntime/-", json!({"path": path}));
    c.acts("exit 0").run().ok();
    assert_eq!(read(&c, "environment"), "A=1\nB=two words\n");
    assert!(c.dir.join("none").exists());
    assert_eq!(read(&c, "none"), "");
}

fn a_hooks_arguments_are_the_configured_ones() {
    let mut c = Sandbox::new();
    let path = c.script("arguments", "printf '%s|' \"$@\" >$D/arguments");
    c.set("/hooks/createRuntime", json!([{"path": path, "args": ["name", "a b", ""]}]));
    c.acts("exit 0").run().ok();
    assert_eq!(read(&c, "arguments"), "a b||");
}

fn runtime_hooks_run_in_the_hosts_namespaces() {
    let mut c = Sandbox::new();
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        hook(
            &mut c,
            kind,
            &format!("readlink /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/uts >$D/{kind}"),
        );
    }
    c.acts("exit 0").run().ok();
    let own = ["mnt", "net", "uts"]
        .map(|ns| fs::read_link(format!("/proc/self/ns/{ns}")).unwrap().display().to_string());
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        assert_eq!(read(&c, kind).lines().collect::<Vec<_>>(), own, "{kind}");
    }
}

fn create_container_hooks_see_the_hosts_files_in_the_containers_namespaces() {
    let mut c = Sandbox::new();
    hook(
        &mut c,
        "createContainer",
        "readlink /proc/self/ns/mnt >$D/ns; ls / >$D/root; grep -c rootfs/dev/pts /proc/self/mountinfo >$D/mounts; mkdir $D/bundle/rootfs/tmp/x; mount -t tmpfs t $D/bundle/rootfs/tmp/x",
    );
    let seen = c.report();
    assert_ne!(read(&c, "ns").trim(), fs::read_link("/proc/self/ns/mnt").unwrap().display().to_string());
    assert_eq!(read(&c, "ns").trim(), seen["namespaces"]["mnt"]);
    assert!(read(&c, "root").lines().any(|name| name == "usr"), "it sees the host's root");
    assert_eq!(read(&c, "mounts"), "1\n", "the container's mounts are made");
    assert!(
        seen["mounts"].as_array().unwrap().iter().any(|m| m["at"] == "/tmp/x"),
        "its mounts are the container's"
    );
}

fn start_container_hooks_run_inside() {
    let mut c = Sandbox::new();
    inside(&mut c, &["create", "/hook", "inside"]);
    c.acts("cat /hook").run();
    assert_eq!(c.acts("exit 0").run().code, 0);
    assert_eq!(fs::read_to_string(c.rootfs().join("hook")).unwrap(), "inside");
}

fn a_failing_hook_before_start_leaves_nothing() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut c = Sandbox::new();
        hook(&mut c, kind, "echo complaint >&2; exit 3");
        hook(&mut c, "poststop", "echo poststop >>$D/poststop");
        let error = c.refused(&format!("/hooks/{kind}/0"));
        assert!(!is_keel() || error.contains("complaint") && error.contains('3'), "{kind}: {error}");
        assert!(!is_keel() || read(&c, "poststop") == "poststop\n", "{kind}");
    }
}

fn a_failing_start_container_hook_stops_the_container() {
    let mut c = Sandbox::new();
    inside(&mut c, &["exit", "4"]);
    c.acts("create /ran yes").created();
    let error = c.start().fails();
    assert!(!is_keel() || error.contains("/hooks/startContainer/0"), "{error}");
    assert!(!c.rootfs().join("ran").exists());
    assert!(c.containers().is_empty() || c.status() == "stopped");
}

fn a_failing_poststart_hook_stops_the_container() {
    let mut c = Sandbox::new();
    hook(&mut c, "poststart", "exit 5");
    c.acts("pause").created();
    let error = c.start().fails();
    assert!(!is_keel() || error.contains("/hooks/poststart/0"), "{error}");
    assert!(c.containers().is_empty() || c.status() == "stopped");
}

fn a_failing_poststop_hook_is_a_warning() {
    let mut c = Sandbox::new();
    hook(&mut c, "poststop", "exit 6");
    hook(&mut c, "poststop", "echo second >$D/second");
    let log = c.dir.join("log");
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    assert_eq!(c.keel(&["--log", log.to_str().unwrap(), "delete", &c.id]).code, 0);
    assert_eq!(read(&c, "second"), "second\n");
    assert!(read(&c, "log").contains("warn"), "{}", read(&c, "log"));
    assert_eq!(c.left(), Vec::<String>::new());
}

fn poststop_hooks_run_after_the_container_is_gone() {
    let mut c = Sandbox::new();
    let (cgroup, state) = (c.cgroup(), c.dir.join("state").join(&c.id));
    let gone = format!("[ ! -e {} ] && [ ! -e {} ]", cgroup.display(), state.display());
    hook(&mut c, "poststop", &format!("{gone} && [ ! -e /proc/$(cat $D/pid)/exe ] && echo gone >$D/order"));
    c.running();
    fs::write(c.dir.join("pid"), c.state()["pid"].to_string()).unwrap();
    c.delete_force().ok();
    assert_eq!(read(&c, "order"), "gone\n");
}

fn a_hook_that_exceeds_its_timeout_is_killed() {
    let mut c = Sandbox::new();
    let path = c.script("slow", "echo $$ >$D/pid; exec sleep 100");
    c.set("/hooks/createRuntime", json!([{"path": path, "timeout": 1}]));
    let error = c.refused("/hooks/createRuntime/0");
    assert!(error.contains("time") || error.contains("deadline"), "{error}");
    let stat = fs::read_to_string(format!("/proc/{}/stat", read(&c, "pid").trim()));
    assert!(stat.is_err() || stat.unwrap().contains(") Z"), "the hook lives on");
}

fn a_hook_in_time_is_fine() {
    let mut c = Sandbox::new();
    let path = c.script("quick", "echo done >$D/done");
    c.set("/hooks/createRuntime", json!([{"path": path, "timeout": 20}]));
    c.acts("exit 0").run().ok();
    assert_eq!(read(&c, "done"), "done\n");
}

fn a_hook_has_no_descriptor_of_the_runtime() {
    let mut c = Sandbox::new();
    for kind in ["createRuntime", "createContainer", "poststart", "poststop"] {
        // sh itself has the script open at 10.
        hook(
            &mut c,
            kind,
            &format!("for fd in /proc/$$/fd/*; do readlink $fd; done | grep -v {kind} >$D/{kind}; true"),
        );
    }
    c.busybox();
    let list = "/bin/busybox ls /proc/self/fd >/fds";
    c.set("/hooks/startContainer", json!([{"path": "/bin/sh", "args": ["sh", "-c", list]}]));
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    c.delete().ok();
    // The last is of the directory itself.
    assert_eq!(fs::read_to_string(c.rootfs().join("fds")).unwrap(), "0\n1\n2\n3\n");
    for kind in ["createRuntime", "createContainer", "poststart", "poststop"] {
        let fds = read(&c, kind);
        assert!(fds.lines().count() <= 3, "{kind}: {fds}");
        for line in fds.lines() {
            assert!(!line.contains("state") && !line.contains("cgroup") && line != "/", "{kind}: {fds}");
        }
    }
}

fn a_hook_starts_with_default_signals() {
    let mut c = Sandbox::new();
    let path = c.script("signals", "grep -E '^Sig(Blk|Ign)' /proc/self/status >$D/signals");
    c.set("/hooks/createRuntime", json!([{"path": path, "env": ["PATH=/usr/bin:/bin"]}]));
    c.acts("exit 0").run().ok();
    assert_eq!(read(&c, "signals"), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

fn a_relative_path_is_refused() {
    for kind in KINDS {
        Sandbox::new()
            .set(&format!("/hooks/{kind}"), json!([{"path": "bin/true"}]))
            .refused(&format!("/hooks/{kind}/0/path"));
    }
}

fn a_timeout_of_zero_is_refused() {
    for timeout in [0, -1] {
        let hooks = json!([{"path": "/bin/true", "timeout": timeout}]);
        Sandbox::new().set("/hooks/poststart", hooks).refused("/hooks/poststart/0/timeout");
    }
}

fn a_hook_without_a_path_is_refused() {
    Sandbox::new().set("/hooks/poststop", json!([{"args": ["x"]}])).refused("/hooks/poststop/0/path");
}

fn a_missing_hook_is_an_error_that_names_it() {
    let mut c = Sandbox::new();
    let error =
        c.set("/hooks/createRuntime", json!([{"path": "/no/such/hook"}])).refused("/hooks/createRuntime/0");
    assert!(error.contains("/no/such/hook"), "{error}");
}

fn the_bundles_hooks_are_those_of_create() {
    let mut c = Sandbox::new();
    hook(&mut c, "poststop", "echo original >>$D/log");
    c.acts("exit 0").created();
    c.unset("/hooks").write_config();
    c.delete_force().ok();
    assert_eq!(read(&c, "log"), "original\n");
}

fn prestart_may_set_up_the_network() {
    needs!(keel(), crate::sandbox::program("ip"), crate::sandbox::program("nsenter"));
    let mut c = Sandbox::new();
    let script = "pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p'); nsenter -t $pid -n ip link add br7 type veth peer name br8";
    hook(&mut c, "prestart", script);
    assert_eq!(c.report()["interfaces"], json!(["br7", "br8", "lo"]));
}

/// Init makes its own files with 0, which would leave what a hook writes writable for all.
fn hooks_run_with_the_callers_umask() {
    let mut c = Sandbox::new();
    for kind in ["createRuntime", "createContainer"] {
        hook(&mut c, kind, &format!("umask >$D/{kind}"));
    }
    c.acts("exit 0").write_config();
    let mut shell = shell(&c, "umask 027");
    c.execute({
        shell.arg("run").arg(&c.id);
        shell
    })
    .ok();
    for kind in ["createRuntime", "createContainer"] {
        assert_eq!(read(&c, kind), "0027\n", "{kind}");
    }
}

/// The kernel then throws the status of children away.
fn hooks_run_under_a_caller_that_ignores_sigchld() {
    let mut c = Sandbox::new();
    for kind in KINDS.into_iter().filter(|kind| *kind != "startContainer") {
        hook(&mut c, kind, &format!("echo {kind} >>$D/log"));
    }
    c.acts("pause").write_config();
    for words in [&["create"][..], &["start"], &["delete", "--force"]] {
        let mut shell = shell(&c, "set -- env --ignore-signal=CHLD \"$@\"");
        shell.args(words).arg(&c.id);
        c.execute(shell).ok();
    }
    assert_eq!(read(&c, "log"), "prestart\ncreateRuntime\ncreateContainer\npoststart\npoststop\n");
}

/// keel behind a shell that does something first.
fn shell(c: &Sandbox, first: &str) -> std::process::Command {
    let keel = c.command::<&str>(&[]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("{first}; exec \"$@\""), "sh"]).arg(keel.get_program()).args(keel.get_args());
    shell
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("SANDBOX", &c.id)
        .current_dir(c.bundle());
    shell
}

/// A hook that asks keel something about its own container.
fn ask(c: &mut Sandbox, command: &str) {
    let keel = format!("{} --root $D/state {command} {}", c.runtime.display(), c.id);
    hook(c, "createRuntime", &format!("{keel} >$D/answer 2>&1; true"));
}

fn a_container_whose_hooks_run_is_creating() {
    needs!(keel());
    for command in ["create", "run"] {
        let mut c = Sandbox::new();
        ask(&mut c, "state");
        c.acts("exit 0").write_config();
        c.keel(&[command, &c.id]).ok();
        assert!(read(&c, "answer").contains(r#""status": "creating""#), "{command}: {}", read(&c, "answer"));
    }
}

/// It would wait for itself.
fn a_hook_cannot_start_the_container_that_is_being_created() {
    needs!(keel());
    let mut c = Sandbox::new();
    ask(&mut c, "start");
    c.acts("pause").created();
    assert!(
        read(&c, "answer").contains("cannot start a container that is creating"),
        "{}",
        read(&c, "answer")
    );
    assert_eq!(c.status(), "created");
}

fn a_run_whose_hook_hangs_can_be_interrupted() {
    needs!(keel());
    for kind in ["createRuntime", "createContainer"] {
        let mut c = Sandbox::new();
        hook(&mut c, kind, "touch $D/hangs; exec sleep 100");
        let run = c.run_in_background();
        crate::sandbox::eventually("the hook runs", || c.dir.join("hangs").exists());
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(run.pid() as i32),
            nix::sys::signal::Signal::SIGINT,
        )
        .unwrap();
        let error = run.wait().fails();
        assert!(error.contains("interrupted"), "{kind}: {error}");
        assert_eq!(c.left(), Vec::<String>::new());
    }
}

fn a_hook_has_no_descriptor_of_the_caller() {
    needs!(keel());
    let mut c = Sandbox::new();
    for kind in ["createRuntime", "poststart", "poststop"] {
        hook(
            &mut c,
            kind,
            &format!("[ ! -e /proc/$$/fd/3 ] && [ ! -e /proc/$$/fd/4 ] && echo none >$D/{kind}"),
        );
    }
    c.acts("exit 0").write_config();
    let leaky = ["sh", "-c", "exec 3</ 4</dev/null; exec \"$@\"", "sh"];
    for args in
        [&["create", "--preserve-fds", "1", &c.id][..], &["start", &c.id], &["delete", "--force", &c.id]]
    {
        c.behind(&leaky, args).ok();
    }
    for kind in ["createRuntime", "poststart", "poststop"] {
        assert_eq!(read(&c, kind), "none\n", "{kind}");
    }
}

fn the_children_of_a_hook_that_exceeds_its_timeout_are_killed() {
    needs!(keel());
    let mut c = Sandbox::new();
    let path = c.script("slow", "sleep 100 & echo $! >$D/pid; wait");
    c.set("/hooks/createRuntime", json!([{"path": path, "timeout": 1, "env": ["PATH=/bin"]}]));
    c.refused("/hooks/createRuntime/0");
    let stat = format!("/proc/{}/stat", read(&c, "pid").trim());
    let ended = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z"));
    crate::sandbox::eventually("the hook's child ends", ended);
}

fn a_container_whose_hooks_run_is_creating_and_left_alone() {
    needs!(keel());
    let mut c = Sandbox::new();
    let keel = format!("{} --root $D/state", c.runtime.display());
    let call = |command: &str| format!("{keel} {command} {} >>$D/said 2>&1; echo $? >>$D/codes", c.id);
    let script = ["state", "kill", "start", "delete"].map(call).join("\n");
    hook(&mut c, "createRuntime", &script);
    c.acts("pause").created();
    assert_eq!(read(&c, "codes"), "0\n1\n1\n1\n", "{}", read(&c, "said"));
    assert!(read(&c, "said").contains("\"status\": \"creating\""), "{}", read(&c, "said"));
    assert_eq!(c.status(), "created");
}
