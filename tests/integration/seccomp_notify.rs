//! `linux.seccomp` with SCMP_ACT_NOTIFY: calls about which an agent of the host decides. (As a control runc is of little
//! use here: it makes directories itself after the load, and waits for the agent then.)

use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keel, readable};
use crate::{needs, tests};

tests![
    the_agent_is_told_of_a_created_container,
    the_agent_is_told_of_a_container_that_runs_at_once,
    the_agent_is_told_of_an_added_process,
    the_metadata_is_left_out_where_there_is_none,
    an_agent_decides_what_a_call_returns,
    an_agent_can_let_a_call_take_place,
    the_program_does_not_get_the_descriptor,
    a_non_root_program_has_an_agent_too,
    a_created_container_waits_without_what_the_load_takes,
    start_container_hooks_have_the_agent_too,
    a_call_without_an_agent_any_more_is_not_implemented,
    an_agent_that_hangs_up_does_not_keep_a_container_from_starting,
    no_agent_is_an_error_that_leaves_nothing,
    no_agent_for_an_added_process_is_an_error,
    a_profile_that_leaves_calls_of_the_start_to_an_agent_is_refused,
    a_listener_path_without_a_rule_that_notifies_has_no_effect,
];

const MAKES_DIRECTORIES: [&str; 2] = ["mkdir", "mkdirat"];

/// What becomes of a call: its return value, or a negative error number; None lets it take place.
type Answer = fn() -> Option<i64>;

struct Agent {
    listener: UnixListener,
    path: PathBuf,
}

/// What an agent has seen.
struct Seen {
    told: Value,
    /// The process that made each call, as the host sees it.
    pids: Vec<i32>,
}

/// A container whose mkdir(2) and getpriority(2) are left to an agent.
fn with_agent() -> (Sandbox, Agent) {
    let mut c = Sandbox::new();
    let path = c.dir.join("agent.sock");
    let names = [&MAKES_DIRECTORIES[..], &["getpriority"]].concat();
    c.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "for the \"agent\"",
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
        }),
    );
    let listener = UnixListener::bind(&path).expect("bind the agent's socket");
    (c, Agent { listener, path })
}

impl Agent {
    /// Serves one process in the background: takes its descriptor and answers so many calls.
    fn serve(&self, calls: usize, answer: Answer) -> JoinHandle<Seen> {
        let listener = self.listener.try_clone().expect("dup");
        thread::spawn(move || {
            assert!(readable(&listener), "nobody connects");
            let (told, notifier) = receive(listener.accept().expect("accept").0);
            let pids = (0..calls).map(|_| raw::answer(&notifier, answer)).collect();
            Seen { told, pids }
        })
    }
}

/// Everything until the other side closes the connection, and the one descriptor.
fn receive(mut socket: UnixStream) -> (Value, OwnedFd) {
    let mut bytes = [0; 4096];
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([i32; 8]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = message.expect("recvmsg");
    let numbers: Vec<i32> = message
        .cmsgs()
        .expect("control messages")
        .flat_map(|control| match control {
            ControlMessageOwned::ScmRights(numbers) => numbers,
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(numbers.len(), 1, "one descriptor, as fds has one name");
    let length = message.bytes;
    let mut text = bytes[..length].to_vec();
    socket.read_to_end(&mut text).expect("read the state");
    (serde_json::from_slice(&text).expect("JSON"), raw::own(numbers[0]))
}

/// The container process state, whose order of keys has no meaning.
fn check_told(told: &Value, c: &Sandbox, pid: i32, status: &str, init: i32) {
    let version = told["ociVersion"].as_str().expect("an ociVersion");
    assert!(version.starts_with("1."), "{told}");
    let state = json!({
        "ociVersion": version, "id": c.id, "status": status, "pid": init, "bundle": c.bundle(),
    });
    let mut seen = told.clone();
    if let Some(state) = seen["state"].as_object_mut() {
        state.remove("annotations");
    }
    assert_eq!(
        seen,
        json!({
            "ociVersion": version, "fds": ["seccompFd"], "pid": pid, "metadata": "for the \"agent\"",
            "state": state,
        })
    );
}

const OVERFLOW: Answer = || Some(-i64::from(libc::EOVERFLOW));

fn the_agent_is_told_of_a_created_container() {
    for no_new_privileges in [false, true] {
        let (mut c, agent) = with_agent();
        c.set("/process/noNewPrivileges", no_new_privileges).set("/annotations", json!({"a": "b"}));
        let serving = agent.serve(1, OVERFLOW);
        c.acts("mkdir /tmp/a").created();
        let pid = c.pid();
        c.start().ok();
        let seen = serving.join().expect("the agent");
        check_told(&seen.told, &c, pid, "creating", pid);
        assert_eq!(seen.told["state"]["annotations"], json!({"a": "b"}));
        assert_eq!(seen.pids, [pid]);
        c.wait_printed("EOVERFLOW");
        c.wait_stopped();
    }
}

fn the_agent_is_told_of_a_container_that_runs_at_once() {
    for no_new_privileges in [false, true] {
        let (mut c, agent) = with_agent();
        c.set("/process/noNewPrivileges", no_new_privileges);
        let serving = agent.serve(1, OVERFLOW);
        assert_eq!(c.does("mkdir /tmp/a"), ["EOVERFLOW"]);
        let seen = serving.join().expect("the agent");
        check_told(&seen.told, &c, seen.pids[0], "creating", seen.pids[0]);
    }
}

fn the_agent_is_told_of_an_added_process() {
    for no_new_privileges in [false, true] {
        let (mut c, agent) = with_agent();
        c.set("/process/noNewPrivileges", no_new_privileges);
        let first = agent.serve(0, OVERFLOW);
        c.running();
        first.join().expect("the agent");
        let serving = agent.serve(1, OVERFLOW);
        assert_eq!(c.exec(&[], "mkdir /tmp/a").ok().stdout, "EOVERFLOW\n");
        let seen = serving.join().expect("the agent");
        assert_ne!(seen.pids[0], c.pid());
        check_told(&seen.told, &c, seen.pids[0], "running", c.pid());
    }
}

fn the_metadata_is_left_out_where_there_is_none() {
    let (mut c, agent) = with_agent();
    c.unset("/linux/seccomp/listenerMetadata");
    let serving = agent.serve(0, OVERFLOW);
    c.does("echo on");
    assert_eq!(serving.join().expect("the agent").told.get("metadata"), None);
}

fn an_agent_decides_what_a_call_returns() {
    let (mut c, agent) = with_agent();
    let serving = agent.serve(2, || Some(4242));
    let acts = format!("syscall {} ; mkdir /tmp/a ; stat /tmp/a", libc::SYS_getpriority);
    let lines = c.does(&acts);
    // Zero and more is success; nothing was made.
    assert_eq!(lines, ["4242", "ok", r#"{"error":"ENOENT"}"#]);
    serving.join().expect("the agent");
}

fn an_agent_can_let_a_call_take_place() {
    let (mut c, agent) = with_agent();
    let serving = agent.serve(1, || None);
    assert_eq!(c.does("mkdir /tmp/a ; ls /tmp"), ["ok", "a"]);
    serving.join().expect("the agent");
}

fn the_program_does_not_get_the_descriptor() {
    for no_new_privileges in [false, true] {
        let (mut c, agent) = with_agent();
        c.set("/process/noNewPrivileges", no_new_privileges);
        let serving = agent.serve(0, OVERFLOW);
        let fds = c.report()["fds"].clone();
        let mut numbers: Vec<&String> = fds.as_object().expect("an object").keys().collect();
        numbers.sort();
        assert_eq!(numbers, ["0", "1", "2"], "{fds}");
        serving.join().expect("the agent");
    }
}

fn a_non_root_program_has_an_agent_too() {
    for no_new_privileges in [false, true] {
        let (mut c, agent) = with_agent();
        c.set("/process/noNewPrivileges", no_new_privileges);
        c.set("/process/user", json!({"uid": 1000, "gid": 1000}));
        let serving = agent.serve(1, || Some(4242));
        let output = c.acts(&format!("syscall {} ; report", libc::SYS_getpriority)).run().ok();
        let (number, report) = output.stdout.split_once('\n').expect("two lines");
        let seen: Value = serde_json::from_str(report).expect("JSON");
        assert_eq!(number, "4242");
        assert_eq!(seen["capabilities"]["effective"], json!([]));
        assert_eq!(seen["capabilities"]["permitted"], json!([]));
        assert_eq!((&seen["seccomp"], &seen["noNewPrivileges"]), (&json!("2"), &json!(no_new_privileges)));
        serving.join().expect("the agent");
    }
}

/// Execve would take CAP_SYS_ADMIN, but `start` may be long in coming.
fn a_created_container_waits_without_what_the_load_takes() {
    let (mut c, agent) = with_agent();
    c.set("/process/noNewPrivileges", false);
    let serving = agent.serve(0, OVERFLOW);
    c.acts("pause").created();
    serving.join().expect("the agent");
    let status = fs::read_to_string(format!("/proc/{}/status", c.pid())).expect("read its status");
    let set = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("a set").trim();
    // CAP_KILL, CAP_NET_BIND_SERVICE and CAP_AUDIT_WRITE.
    assert_eq!([set("CapEff:"), set("CapPrm:")], ["0000000020000420"; 2]);
    assert_eq!(set("Seccomp:"), "2");
}

/// The filter is loaded while the agent can still be told, and so before them.
fn start_container_hooks_have_the_agent_too() {
    needs!(keel());
    let (mut c, agent) = with_agent();
    c.set("/hooks/startContainer", json!([{"path": "/payload", "args": ["payload", "mkdir", "/tmp/a"]}]));
    let serving = agent.serve(1, || None);
    c.acts("ls /tmp").run().ok();
    assert_eq!(serving.join().expect("the agent").pids.len(), 1);
}

fn a_call_without_an_agent_any_more_is_not_implemented() {
    let (mut c, agent) = with_agent();
    let serving = agent.serve(1, OVERFLOW);
    c.acts("mkdir /tmp/a ; line ; mkdir /tmp/b");
    let [input, to_container] = pipe();
    c.write_config();
    let mut command = c.command(&["run", &c.id]);
    let running = c.spawn({
        command.stdin(input);
        command
    });
    c.wait_printed("EOVERFLOW");
    serving.join().expect("the agent");
    drop(to_container);
    assert_eq!(running.wait().ok().lines(), ["EOVERFLOW", "", "ENOSYS"]);
}

fn pipe() -> [File; 2] {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe2");
    [read, write].map(File::from)
}

fn an_agent_that_hangs_up_does_not_keep_a_container_from_starting() {
    let (mut c, agent) = with_agent();
    let serving = thread::spawn(move || {
        assert!(readable(&agent.listener), "nobody connects");
        drop(agent.listener.accept().expect("accept"));
    });
    let output = c.acts("mkdir /tmp/a").run();
    serving.join().expect("the agent");
    // Whether the message was there before it hung up is a race.
    if output.code == 0 {
        assert_eq!(output.stdout, "ENOSYS\n");
    } else {
        assert!(output.fails().contains("[config.json /linux/seccomp/listenerPath]"));
    }
}

fn no_agent_is_an_error_that_leaves_nothing() {
    for no_new_privileges in [false, true] {
        let (mut c, agent) = with_agent();
        c.set("/process/noNewPrivileges", no_new_privileges);
        let path = agent.path.display().to_string();
        drop(agent);
        // Nobody listens any more; then there is not even a socket.
        let error = c.refused("/linux/seccomp/listenerPath");
        assert!(keel().is_err() || error.contains(&path) && error.contains("Connection refused"), "{error}");
        fs::remove_file(&path).expect("remove the socket");
        let error = c.refused("/linux/seccomp/listenerPath");
        assert!(keel().is_err() || error.contains("No such file or directory"), "{error}");
    }
}

fn no_agent_for_an_added_process_is_an_error() {
    needs!(keel());
    let (mut c, agent) = with_agent();
    let serving = agent.serve(0, OVERFLOW);
    c.running();
    serving.join().expect("the agent");
    drop(agent);
    let error = c.exec(&[], "mkdir /tmp/a").exec_fails();
    assert!(error.contains("Connection refused"), "{error}");
    assert_eq!(c.limit("cgroup.procs").lines().count(), 1, "the added process is gone");
    assert_eq!(c.status(), "running");
}

fn a_profile_that_leaves_calls_of_the_start_to_an_agent_is_refused() {
    needs!(keel());
    for (call, action) in [
        ("write", "NOTIFY"),
        ("write", "ERRNO"),
        ("sendto", "ERRNO"),
        ("recvmsg", "KILL"),
        ("execve", "TRAP"),
    ] {
        let (mut c, agent) = with_agent();
        let rule = json!({"names": [call], "action": format!("SCMP_ACT_{action}")});
        c.set("/linux/seccomp/syscalls/-", rule);
        let error = c.refused("/linux/seccomp");
        assert!(error.contains(call) || error.contains("syscalls/1/names/0"), "{call}: {error}");
        agent.listener.set_nonblocking(true).expect("fcntl");
        assert!(agent.listener.accept().is_err(), "refused before anything exists");
    }
}

fn a_listener_path_without_a_rule_that_notifies_has_no_effect() {
    let (mut c, agent) = with_agent();
    drop(agent);
    c.set("/linux/seccomp/syscalls/0/action", "SCMP_ACT_ERRNO");
    assert_eq!(c.does("mkdir /tmp/a"), ["EPERM"]);
}

/// The agent's side of seccomp_unotify(2).
#[allow(unsafe_code)]
mod raw {
    use std::os::fd::FromRawFd;

    use super::*;
    use nix::libc::{seccomp_notif, seccomp_notif_resp};

    nix::ioctl_readwrite!(notif_recv, b'!', 0, seccomp_notif);
    nix::ioctl_readwrite!(notif_send, b'!', 1, seccomp_notif_resp);

    pub fn own(number: i32) -> OwnedFd {
        // SAFETY: the kernel just made this descriptor for this process.
        unsafe { OwnedFd::from_raw_fd(number) }
    }

    /// Takes the next call, answers it, and gives the pid of its process.
    pub fn answer(notifier: &OwnedFd, answer: Answer) -> i32 {
        assert!(readable(notifier.as_fd()), "no call comes");
        // SAFETY: all-zero bytes are a valid seccomp_notif, and the kernel wants them.
        let mut call: seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one seccomp_notif.
        unsafe { notif_recv(notifier.as_raw_fd(), &mut call) }.expect("SECCOMP_IOCTL_NOTIF_RECV");
        let mut response = seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: 0 };
        match answer() {
            Some(value) if value < 0 => response.error = value as i32,
            Some(value) => response.val = value,
            None => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        }
        // SAFETY: the kernel reads one seccomp_notif_resp.
        unsafe { notif_send(notifier.as_raw_fd(), &mut response) }.expect("SECCOMP_IOCTL_NOTIF_SEND");
        call.pid as i32
    }
}
