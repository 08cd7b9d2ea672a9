//! /process/terminal and /process/consoleSize: the pty, the console socket, and `run` on a real terminal.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use serde_json::{Value, json};

use crate::sandbox::{Running, Sandbox, keel, readable};
use crate::{needs, tests};

tests![
    the_payload_has_a_controlling_terminal,
    the_console_is_the_pty,
    the_terminal_has_the_configured_size,
    a_terminal_without_a_size_has_none,
    a_size_without_a_terminal_is_ignored,
    what_is_typed_reaches_the_payload,
    the_terminal_belongs_to_the_user,
    the_pty_is_of_the_containers_devpts,
    a_terminal_without_a_console_socket_is_refused,
    a_console_socket_without_a_terminal_is_refused,
    a_console_socket_that_nobody_listens_on_is_refused,
    a_planted_console_never_redirects_to_the_host,
    run_passes_a_real_terminal_through,
    run_in_a_terminal_gives_the_exit_code,
    run_passes_ctrl_c_to_the_payload,
    run_puts_its_terminal_into_raw_mode_and_back,
    run_passes_window_changes_on,
    a_read_only_dev_has_its_console,
    run_detached_sends_its_terminal_to_the_console_socket,
    run_takes_a_console_socket_only_when_it_detaches,
];

/// All descriptors of the first message on a connection.
#[allow(unsafe_code)]
#[track_caller]
pub fn receive(listener: &UnixListener) -> Vec<OwnedFd> {
    assert!(readable(listener), "nobody connects");
    let (socket, _) = listener.accept().expect("accept");
    let mut bytes = [0; 4096];
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([i32; 8]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = message.expect("recvmsg");
    let mut fds = Vec::new();
    for control in message.cmsgs().expect("control messages") {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel just made these descriptors for this process.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    fds
}

fn with_terminal() -> Sandbox {
    let mut c = Sandbox::new();
    c.set("/process/terminal", true);
    c
}

/// Creates the container and gives the master that came over the console socket.
#[track_caller]
fn created(c: &Sandbox) -> File {
    let path = c.dir.join("console.sock");
    let listener = UnixListener::bind(&path).expect("bind the console socket");
    c.write_config();
    let create = c.spawn(c.command(&["create", "--console-socket", path.to_str().unwrap(), &c.id]));
    let mut fds = receive(&listener);
    create.wait().ok();
    assert_eq!(fds.len(), 1, "one message with exactly one descriptor");
    File::from(fds.remove(0))
}

/// Everything until the last process closes the terminal.
#[track_caller]
pub fn read_all(master: &mut File) -> String {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    // EIO: no process has the other end.
    while let Ok(n @ 1..) = read(master, &mut chunk) {
        text.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8_lossy(&text).replace("\r\n", "\n")
}

fn read(master: &mut File, chunk: &mut [u8]) -> std::io::Result<usize> {
    if readable(&*master) { master.read(chunk) } else { Err(std::io::ErrorKind::TimedOut.into()) }
}

fn report(c: &mut Sandbox) -> Value {
    c.acts("report");
    let mut master = created(c);
    c.start().ok();
    serde_json::from_str(&read_all(&mut master)).expect("a report")
}

fn acts(c: &mut Sandbox, acts: &str) -> String {
    c.acts(acts);
    let mut master = created(c);
    c.start().ok();
    read_all(&mut master)
}

fn the_payload_has_a_controlling_terminal() {
    let seen = report(&mut with_terminal());
    assert_eq!(seen["tty"], json!([true, true, true]));
    assert_eq!(seen["controllingTty"], true);
    assert_eq!((&seen["sid"], &seen["pgrp"], &seen["foreground"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(seen["fds"].as_object().unwrap().len(), 3);
}

fn the_console_is_the_pty() {
    let seen = report(&mut with_terminal());
    let console = &seen["dev"]["console"];
    assert_eq!((&console["type"], &console["rdev"]), (&json!("c"), &json!("136:0")));
    let mounts = seen["mounts"].as_array().unwrap();
    assert!(mounts.iter().any(|m| m["at"] == "/dev/console" && m["type"] == "devpts"), "{mounts:?}");
}

fn the_terminal_has_the_configured_size() {
    let mut c = with_terminal();
    c.set("/process/consoleSize", json!({"height": 45, "width": 132}));
    assert_eq!(acts(&mut c, "size"), "45 132\n");
}

fn a_terminal_without_a_size_has_none() {
    assert_eq!(acts(&mut with_terminal(), "size"), "0 0\n");
}

fn a_size_without_a_terminal_is_ignored() {
    let mut c = Sandbox::new();
    c.set("/process/consoleSize", json!({"height": 45, "width": 132}));
    assert_eq!(c.does("size"), ["none"]);
}

fn what_is_typed_reaches_the_payload() {
    let mut c = with_terminal();
    c.acts("line ; echo end");
    let mut master = created(&c);
    c.start().ok();
    master.write_all(b"typed\n").unwrap();
    // Once by the terminal's echo, once by the payload.
    assert_eq!(read_all(&mut master), "typed\ntyped\nend\n");
}

fn the_terminal_belongs_to_the_user() {
    let mut c = with_terminal();
    c.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let seen = report(&mut c);
    assert_eq!(
        (&seen["dev"]["console"]["uid"], &seen["dev"]["console"]["mode"]),
        (&json!(1000), &json!("0620"))
    );
    // The group stays that of the devpts mount: gid=5, so that write(1) keeps working.
    assert_eq!(seen["dev"]["console"]["gid"], 5);
}

fn the_pty_is_of_the_containers_devpts() {
    let seen = report(&mut with_terminal());
    assert_eq!(seen["fds"]["0"], "/dev/pts/0");
}

fn a_terminal_without_a_console_socket_is_refused() {
    let error = with_terminal().refused("/process/terminal");
    assert!(error.contains("console"), "{error}");
}

fn a_console_socket_without_a_terminal_is_refused() {
    needs!(keel());
    let c = Sandbox::new();
    let path = c.dir.join("console.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    c.write_config();
    c.keel(&["create", "--console-socket", path.to_str().unwrap(), &c.id]).fails();
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_console_socket_that_nobody_listens_on_is_refused() {
    let c = with_terminal();
    c.write_config();
    for name in ["nobody.sock", "bundle/config.json"] {
        let path = c.dir.join(name);
        let error = c.keel(&["create", "--console-socket", path.to_str().unwrap(), &c.id]).fails();
        assert!(error.contains(name), "{error}");
        assert_eq!(c.left(), Vec::<String>::new());
    }
}

/// CVE-2025-52565: /dev/console of the image leads the runtime's bind or its chown elsewhere.
fn a_planted_console_never_redirects_to_the_host() {
    for link in ["/proc/sys/kernel/domainname", "/etc/decoy"] {
        let mut c = with_terminal();
        for destination in ["/dev", "/dev/shm", "/dev/mqueue", "/dev/pts"] {
            c.without_mount(destination);
        }
        c.mount(json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]}));
        let decoy = c.write("/etc/decoy", "kept");
        c.symlink(link, "/dev/console");
        c.acts("exit 0").write_config();
        let path = c.dir.join("console.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = c.keel(&["create", "--console-socket", path.to_str().unwrap(), &c.id]).fails();
        assert!(error.contains("/process/terminal"), "{error}");
        assert_eq!(std::fs::read_to_string(&decoy).unwrap(), "kept");
        assert_eq!(std::fs::metadata(&decoy).unwrap().uid(), 0);
        assert_eq!(c.left(), Vec::<String>::new());
    }
}

/// A terminal as a user has one, 30 lines of 100 columns.
pub fn outer() -> OpenptyResult {
    openpty(&Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }, None).expect("openpty")
}

fn run_on(c: &Sandbox, tty: &OwnedFd) -> Running {
    c.write_config();
    on_terminal(c, c.command(&["run", &c.id]), tty)
}

/// A command in a session of its own on that terminal.
pub fn on_terminal(c: &Sandbox, keel: Command, tty: &OwnedFd) -> Running {
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(keel.get_program()).args(keel.get_args()).current_dir(c.bundle());
    let stdio = || Stdio::from(tty.try_clone().expect("dup"));
    Running::of(command.stdin(stdio()).stdout(stdio()).stderr(stdio()))
}

#[track_caller]
pub fn read_until(master: &mut File, text: &str) -> String {
    let (mut seen, mut chunk) = (String::new(), [0; 4096]);
    while !seen.contains(text) {
        let n = read(master, &mut chunk).unwrap_or_else(|e| panic!("{e} after {seen:?}"));
        seen.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
    seen
}

fn run_passes_a_real_terminal_through() {
    let mut c = with_terminal();
    let pty = outer();
    c.acts("size ; line");
    let run = run_on(&c, &pty.slave);
    let mut master = File::from(pty.master);
    read_until(&mut master, "30 100\r\n");
    master.write_all(b"hello\r").unwrap();
    assert_eq!(read_until(&mut master, "hello\r\nhello\r\n"), "hello\r\nhello\r\n");
    assert_eq!(run.wait().code, 0);
}

fn run_in_a_terminal_gives_the_exit_code() {
    let mut c = with_terminal();
    let pty = outer();
    c.acts("exit 42");
    assert_eq!(run_on(&c, &pty.slave).wait().code, 42);
    assert_eq!(c.left(), Vec::<String>::new());
}

fn run_passes_ctrl_c_to_the_payload() {
    let mut c = with_terminal();
    let pty = outer();
    c.acts("await INT");
    let run = run_on(&c, &pty.slave);
    let mut master = File::from(pty.master);
    read_until(&mut master, "waiting");
    master.write_all(b"\x03").unwrap();
    read_until(&mut master, "INT\r\n");
    assert_eq!(run.wait().code, 0);
}

pub fn canonical(settings: &Termios) -> bool {
    settings.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
}

fn run_puts_its_terminal_into_raw_mode_and_back() {
    let mut c = with_terminal();
    let pty = outer();
    let before = tcgetattr(&pty.slave).unwrap();
    assert!(canonical(&before));
    c.acts("await TERM");
    let run = run_on(&c, &pty.slave);
    let mut master = File::from(pty.master);
    read_until(&mut master, "waiting");
    assert!(!canonical(&tcgetattr(&pty.slave).unwrap()));
    c.kill("TERM").ok();
    run.wait();
    assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
}

fn run_passes_window_changes_on() {
    let mut c = with_terminal();
    let pty = outer();
    c.acts("await WINCH ; size");
    let run = run_on(&c, &pty.slave);
    let mut master = File::from(pty.master);
    read_until(&mut master, "waiting");
    // Rows only: stty sets them and the columns one after the other, and the payload waits for one change.
    let stty = Command::new("stty").args(["rows", "50"]).stdin(pty.slave.try_clone().unwrap()).status();
    assert!(stty.unwrap().success());
    read_until(&mut master, "50 100\r\n");
    assert_eq!(run.wait().code, 0);
}

fn a_read_only_dev_has_its_console() {
    let mut c = with_terminal();
    c.set("/mounts/1/options", json!(["ro", "nosuid", "mode=755"]));
    assert_eq!(report(&mut c)["dev"]["console"]["rdev"], "136:0");
}

fn run_detached_sends_its_terminal_to_the_console_socket() {
    let mut c = with_terminal();
    let path = c.dir.join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    c.acts("echo up").write_config();
    let run = c.spawn(c.command(&["run", "--detach", "--console-socket", path.to_str().unwrap(), &c.id]));
    let mut master = File::from(receive(&listener).remove(0));
    assert_eq!(read_all(&mut master), "up\n");
    run.wait().ok();
}

fn run_takes_a_console_socket_only_when_it_detaches() {
    needs!(keel());
    let c = with_terminal();
    let path = c.dir.join("console.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    c.write_config();
    for args in [&["run", "--console-socket", path.to_str().unwrap(), &c.id][..], &["run", "--detach", &c.id]]
    {
        assert!(c.keel(args).fails().contains("/process/terminal"));
        assert_eq!(c.left(), Vec::<String>::new());
    }
}
