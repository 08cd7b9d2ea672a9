//! sd_notify: READY=1 of the payload reaches the caller's NOTIFY_SOCKET.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::json;

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    ready_is_relayed_by_run,
    run_waits_until_the_host_has_read_all_of_it,
    ready_is_relayed_by_start_which_waits_for_it,
    a_payload_that_dies_unready_does_not_hang_start,
    without_a_socket_the_payload_has_none,
    the_socket_is_open_to_the_containers_user_whatever_the_umask,
    a_relative_state_root_will_do,
    a_second_start_is_told_that_it_is_one,
    nothing_but_ready_and_the_pid_is_relayed,
    another_word_is_not_taken_for_ready,
    the_container_can_only_write_to_its_socket,
];

fn socket(c: &Sandbox) -> UnixDatagram {
    let socket = UnixDatagram::bind(c.dir.join("notify.sock")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

/// Waits for READY=1, and goes on reading as systemd does: a barrier ends when its descriptor is received.
fn ready(socket: UnixDatagram) {
    let mut bytes = [0; 4096];
    let mut receive = move || {
        let n = socket.recv(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes[..n]).into_owned())
    };
    while !receive().expect("READY=1 within the time").contains("READY=1") {}
    thread::spawn(move || while receive().is_ok() {});
}

fn ready_is_relayed_by_run() {
    needs!(keel());
    let mut c = Sandbox::new();
    let host = socket(&c);
    c.acts("notify READY=1 ; await TERM").write_config();
    let mut command = c.command(&["run", &c.id]);
    command.env("NOTIFY_SOCKET", c.dir.join("notify.sock"));
    let run = c.spawn(command);
    ready(host);
    c.wait_printed("waiting");
    c.kill("TERM").ok();
    assert_eq!(run.wait().ok().stdout, "ok\nwaiting\nTERM\n");
}

fn ready_is_relayed_by_start_which_waits_for_it() {
    needs!(keel());
    let mut c = Sandbox::new();
    let host = socket(&c);
    c.acts("await USR1 ; notify READY=1 ; pause").write_config();
    let with_socket = |name: &str| {
        let mut command = c.command(&[name, &c.id]);
        command.env("NOTIFY_SOCKET", c.dir.join("notify.sock"));
        command
    };
    c.execute(with_socket("create")).ok();
    let start = c.spawn(with_socket("start"));
    c.wait_printed("waiting");
    assert!(std::path::Path::new(&format!("/proc/{}", start.pid())).exists());
    c.kill("USR1").ok();
    ready(host);
    start.wait().ok();
}

fn a_payload_that_dies_unready_does_not_hang_start() {
    needs!(keel());
    let mut c = Sandbox::new();
    let _host = socket(&c);
    c.acts("exit 0").write_config();
    for name in ["create", "start"] {
        let mut command = c.command(&[name, &c.id]);
        command.env("NOTIFY_SOCKET", c.dir.join("notify.sock"));
        c.execute(command);
    }
    c.wait_stopped();
}

fn without_a_socket_the_payload_has_none() {
    assert_eq!(Sandbox::new().does("env NOTIFY_SOCKET"), [""]);
}

fn run_with_socket(c: &Sandbox, before: &str, root: &str) {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("{before}; exec \"$@\""), "sh"]).arg(&c.runtime).args(["--root", root]);
    shell.args(["run", "--bundle"]).arg(c.bundle()).arg(&c.id).current_dir(&c.dir);
    shell.env_clear().env("PATH", "/usr/bin:/bin").env("SANDBOX", &c.id);
    shell.env("NOTIFY_SOCKET", c.dir.join("notify.sock"));
    assert_eq!(c.execute(shell).ok().stdout, "ok\n");
}

fn the_socket_is_open_to_the_containers_user_whatever_the_umask() {
    needs!(keel());
    let mut c = Sandbox::new();
    let host = socket(&c);
    c.set("/process/user", serde_json::json!({"uid": 1000, "gid": 1000}));
    c.acts("notify READY=1 ; exit 0").write_config();
    run_with_socket(&c, "umask 077", c.dir.join("state").to_str().unwrap());
    ready(host);
}

fn a_relative_state_root_will_do() {
    needs!(keel());
    let mut c = Sandbox::new();
    let host = socket(&c);
    c.acts("notify READY=1 ; exit 0").write_config();
    run_with_socket(&c, ":", "state");
    ready(host);
}

fn a_second_start_is_told_that_it_is_one() {
    needs!(keel());
    let mut c = Sandbox::new();
    let host = socket(&c);
    c.acts("notify READY=1 ; pause").write_config();
    let with_socket = |name: &str| {
        let mut command = c.command(&[name, &c.id]);
        command.env("NOTIFY_SOCKET", c.dir.join("notify.sock"));
        command
    };
    c.execute(with_socket("create")).ok();
    let start = c.spawn(with_socket("start"));
    ready(host);
    start.wait().ok();
    let error = c.execute(with_socket("start")).fails();
    assert!(error.contains("cannot start an already running"), "{error}");
}

/// The container must not speak to the host's service manager in its own words.
fn nothing_but_ready_and_the_pid_is_relayed() {
    needs!(keel());
    let mut c = Sandbox::new();
    let host = socket(&c);
    let acts = ["/payload", "notify", "STATUS=mine", ";", "notify", "READY=1\nMAINPID=1", ";", "pause"];
    c.args(&acts).write_config();
    let mut command = c.command(&["run", "--detach", &c.id]);
    command.env("NOTIFY_SOCKET", c.dir.join("notify.sock"));
    let run = c.spawn(command);
    let mut bytes = [0; 4096];
    let length = host.recv(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes[..length]), format!("READY=1\nMAINPID={}\n", c.pid()));
    thread::spawn(move || while host.recv(&mut bytes).is_ok() {});
    run.wait().ok();
    c.delete_force().ok();
}

fn another_word_is_not_taken_for_ready() {
    needs!(keel());
    let mut c = Sandbox::new();
    let host = socket(&c);
    c.acts("notify STATUS=READY=1 ; notify READY=10").write_config();
    let mut command = c.command(&["run", &c.id]);
    command.env("NOTIFY_SOCKET", c.dir.join("notify.sock"));
    assert_eq!(c.execute(command).ok().lines(), ["ok", "ok"]);
    host.set_nonblocking(true).unwrap();
    assert_eq!(host.recv(&mut [0; 64]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

fn the_container_can_only_write_to_its_socket() {
    needs!(keel());
    let mut c = Sandbox::new();
    let host = socket(&c);
    c.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    c.acts("ls /run/notify ; create /run/notify/x y ; notify READY=1").write_config();
    let mut command = c.command(&["run", &c.id]);
    command.env("NOTIFY_SOCKET", c.dir.join("notify.sock"));
    assert_eq!(c.execute(command).ok().lines(), ["notify.sock", "EROFS", "ok"]);
    ready(host);
}

/// systemd looks a sender up by its pid when it reads.
fn run_waits_until_the_host_has_read_all_of_it() {
    needs!(keel());
    let mut c = Sandbox::new();
    let host = socket(&c);
    c.acts("notify READY=1 ; await TERM").write_config();
    let mut command = c.command(&["run", "--detach", &c.id]);
    command.env("NOTIFY_SOCKET", c.dir.join("notify.sock"));
    let run = c.spawn(command);
    let (text, fds) = datagram(&host);
    assert!(text.contains("READY=1") && fds.is_empty(), "{text}");
    let (text, fds) = datagram(&host);
    assert_eq!((&*text, fds.len()), ("BARRIER=1", 1));
    assert!(std::path::Path::new(&format!("/proc/{}/exe", run.pid())).exists());
    drop(fds);
    run.wait().ok();
}

#[allow(unsafe_code)]
fn datagram(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut bytes = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([i32; 4]);
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let mut fds = Vec::new();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel just made these descriptors for this process.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    (String::from_utf8_lossy(&bytes[..length]).into_owned(), fds)
}
