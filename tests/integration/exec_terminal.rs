//! `exec` with a terminal: on the caller's, over a console socket, and what the image plants in its way.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::sys::termios::tcgetattr;
use serde_json::{Value, json};

use crate::exec::running;
use crate::sandbox::{Running, Sandbox, keel};
use crate::terminal::{canonical, on_terminal, outer, read_all, read_until, receive};
use crate::{needs, tests};

tests![
    the_process_has_a_controlling_terminal,
    the_terminal_belongs_to_the_user,
    the_terminal_has_the_size_of_the_process_file,
    a_process_in_the_foreground_sends_its_terminal_nowhere,
    a_real_terminal_is_passed_through,
    the_exit_code_and_all_output_arrive,
    ctrl_c_reaches_the_process,
    the_callers_terminal_becomes_raw_and_comes_back,
    it_comes_back_when_exec_fails,
    window_changes_are_passed_on,
    input_that_is_no_terminal_is_passed_on,
    a_terminal_detached_without_a_console_socket_is_refused,
    a_console_socket_without_a_terminal_is_refused,
    a_console_socket_that_nobody_listens_on_is_refused,
    two_terminals_do_not_meet,
    without_a_devpts_there_is_none,
    planted_links_lead_nowhere,
    a_devpts_behind_a_link_is_the_containers_or_none,
];

/// `exec --detach --tty` with a console socket; gives the master.
#[track_caller]
fn detached(c: &Sandbox, options: &[&str], acts: &str) -> File {
    let path = c.dir.join(format!("console-{}.sock", options.len()));
    let listener = UnixListener::bind(&path).unwrap();
    let socket = ["--tty", "--detach", "--console-socket", path.to_str().unwrap()];
    let exec = c.spawn(c.exec_command(&[&socket, options].concat(), acts));
    let mut fds = receive(&listener);
    exec.wait().ok();
    fs::remove_file(path).unwrap();
    assert_eq!(fds.len(), 1, "one message with exactly one descriptor");
    fds.remove(0).into()
}

#[track_caller]
fn report(c: &Sandbox, options: &[&str]) -> Value {
    serde_json::from_str(&read_all(&mut detached(c, options, "report"))).expect("a report")
}

fn on(c: &Sandbox, options: &[&str], acts: &str, tty: &OwnedFd) -> Running {
    on_terminal(c, c.exec_command(options, acts), tty)
}

fn the_process_has_a_controlling_terminal() {
    needs!(keel());
    let seen = report(&running(), &[]);
    assert_eq!((&seen["tty"], &seen["controllingTty"]), (&json!([true, true, true]), &json!(true)));
    assert_eq!((&seen["sid"], &seen["foreground"]), (&seen["pid"], &seen["pid"]));
    assert_eq!(seen["fds"], json!({"0": "/dev/pts/0", "1": "/dev/pts/0", "2": "/dev/pts/0"}));
    // /dev/console is the first process's.
    assert_eq!(seen["dev"]["console"], json!(null));
}

fn the_terminal_belongs_to_the_user() {
    needs!(keel());
    let c = running();
    let seen = read_all(&mut detached(&c, &["-u", "1000:1000"], "stat /dev/pts/0"));
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!((&seen["uid"], &seen["gid"], &seen["mode"]), (&json!(1000), &json!(5), &json!("0620")));
}

fn the_terminal_has_the_size_of_the_process_file() {
    needs!(keel());
    let c = running();
    let mut process = c.process("size");
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": 45, "width": 132});
    assert_eq!(c.exec_process(&process).ok().stdout, "45 132\r\n");
    // Also on a terminal of another size.
    let pty = outer();
    let path = c.dir.join("host/process.json");
    let run = on_terminal(&c, c.command(&["exec", "-p", path.to_str().unwrap(), &c.id]), &pty.slave);
    // Open until the end, or keel is told that its terminal hung up.
    let mut master = File::from(pty.master);
    read_until(&mut master, "45 132\r\n");
    assert_eq!(run.wait().code, 0);
    process["consoleSize"] = json!({"height": 1 << 16, "width": 1});
    assert!(c.exec_process(&process).exec_fails().contains("process.json: /consoleSize/height: "));
}

fn a_process_in_the_foreground_sends_its_terminal_nowhere() {
    needs!(keel());
    let c = running();
    let socket = c.dir.join("console.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = c.exec(&["--tty", "--console-socket", socket.to_str().unwrap()], "report").exec_fails();
    assert!(error.contains("/terminal: cannot use --console-socket"), "{error}");
}

fn a_real_terminal_is_passed_through() {
    needs!(keel());
    let mut c = Sandbox::new();
    // That of the container's own terminal, if it had one.
    c.set("/process/consoleSize", json!({"height": 45, "width": 132})).running();
    let pty = outer();
    let run = on(&c, &["-t"], "size ; line", &pty.slave);
    let mut master = File::from(pty.master);
    read_until(&mut master, "30 100\r\n");
    master.write_all(b"hello\r").unwrap();
    assert_eq!(read_until(&mut master, "hello\r\nhello\r\n"), "hello\r\nhello\r\n");
    assert_eq!(run.wait().code, 0);
}

fn the_exit_code_and_all_output_arrive() {
    needs!(keel());
    let c = running();
    c.busybox();
    let pty = outer();
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exit 42";
    let run = on_terminal(&c, c.command(&["exec", "-t", &c.id, "/bin/sh", "-c", script]), &pty.slave);
    let mut master = File::from(pty.master);
    let seen = read_until(&mut master, "line 1999\r\n");
    assert_eq!(seen.lines().count(), 2000);
    assert_eq!(run.wait().code, 42);
}

fn ctrl_c_reaches_the_process() {
    needs!(keel());
    let c = running();
    let pty = outer();
    let run = on(&c, &["-t"], "await INT", &pty.slave);
    let mut master = File::from(pty.master);
    read_until(&mut master, "waiting");
    master.write_all(b"\x03").unwrap();
    read_until(&mut master, "INT\r\n");
    assert_eq!(run.wait().code, 0);
}

fn the_callers_terminal_becomes_raw_and_comes_back() {
    needs!(keel());
    let c = running();
    let pty = outer();
    let before = tcgetattr(&pty.slave).unwrap();
    let run = on(&c, &["-t"], "await USR1 ; line", &pty.slave);
    let mut master = File::from(pty.master);
    read_until(&mut master, "waiting");
    assert!(!canonical(&tcgetattr(&pty.slave).unwrap()));
    c.delete_force().ok();
    assert_eq!(run.wait().code, 137);
    assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
}

/// The terminal is made raw before the program is executed, which can still fail.
fn it_comes_back_when_exec_fails() {
    needs!(keel());
    let c = running();
    let script = c.write("/script", "#!/no/such/interpreter\n");
    fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for program in ["/script", "/nonesuch"] {
        let pty = outer();
        let before = tcgetattr(&pty.slave).unwrap();
        let run = on_terminal(&c, c.command(&["exec", "-t", &c.id, program]), &pty.slave);
        let mut master = File::from(pty.master);
        let said = read_until(&mut master, "\n");
        assert!(said.contains("error") && said.ends_with("\r\n"), "{said:?}");
        assert_eq!(run.wait().code, 255);
        assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
    }
}

fn window_changes_are_passed_on() {
    needs!(keel());
    let c = running();
    let pty = outer();
    let run = on(&c, &["-t"], "await WINCH ; size", &pty.slave);
    let mut master = File::from(pty.master);
    read_until(&mut master, "waiting");
    let stty = Command::new("stty").args(["rows", "50"]).stdin(pty.slave.try_clone().unwrap()).status();
    assert!(stty.unwrap().success());
    read_until(&mut master, "50 100\r\n");
    assert_eq!(run.wait().code, 0);
}

/// `echo x | keel exec -t c cat`, as scripts do it.
fn input_that_is_no_terminal_is_passed_on() {
    needs!(keel());
    let c = running();
    let args = ["exec", "-t", &c.id, "/payload", "line"];
    let output = c.behind(&["sh", "-c", "echo typed | \"$@\"", "sh"], &args).ok();
    assert_eq!(output.stdout, "typed\r\ntyped\r\n");
    assert_eq!(c.exec(&["-t"], "exit 3").code, 3);
}

fn a_terminal_detached_without_a_console_socket_is_refused() {
    needs!(keel());
    let c = running();
    let error = c.exec(&["-d", "-t"], "report").exec_fails();
    assert!(error.contains("invalid process: /terminal: cannot allocate tty"), "{error}");
    let mut process = c.process("report");
    process["terminal"] = json!(true);
    let path = c.host_file("p", &process.to_string());
    let error = c.keel(&["exec", "-d", "-p", path.to_str().unwrap(), &c.id]).exec_fails();
    assert!(error.contains("/p: /terminal: cannot allocate tty"), "{error}");
}

fn a_console_socket_without_a_terminal_is_refused() {
    needs!(keel());
    let c = running();
    let path = c.dir.join("console.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = c.exec(&["--detach", "--console-socket", path.to_str().unwrap()], "report").exec_fails();
    assert!(error.contains("/terminal: cannot use --console-socket"), "{error}");
}

fn a_console_socket_that_nobody_listens_on_is_refused() {
    needs!(keel());
    let c = running();
    let pid = c.dir.join("pid");
    for name in ["nobody.sock", "bundle/config.json"] {
        let path = c.dir.join(name);
        let options =
            ["-d", "-t", "--pid-file", pid.to_str().unwrap(), "--console-socket", path.to_str().unwrap()];
        let error = c.exec(&options, "report").exec_fails();
        assert!(error.contains(name) && !pid.exists(), "{error}");
    }
    assert_eq!(crate::exec::pids(&c).len(), 1);
}

fn two_terminals_do_not_meet() {
    needs!(keel());
    let c = running();
    let (mut a, mut b) = (detached(&c, &[], "line ; echo a"), detached(&c, &["-e", "A=1"], "line ; echo b"));
    b.write_all(b"to b\n").unwrap();
    a.write_all(b"to a\n").unwrap();
    assert_eq!([read_all(&mut a), read_all(&mut b)], ["to a\nto a\na\n", "to b\nto b\nb\n"]);
}

fn without_a_devpts_there_is_none() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.without_mount("/dev/pts").running();
    let error = c.exec(&["-t"], "report").exec_fails();
    assert!(error.contains("no devpts is mounted there [process /terminal]"), "{error}");
}

/// CVE-2025-52565: what the container puts at the terminal's names must not be opened, bound or given away.
fn planted_links_lead_nowhere() {
    needs!(keel());
    let mut c = without_dev();
    let options = ["newinstance", "ptmxmode=0666"];
    c.mount(json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options}));
    c.running();
    let decoys = [c.write("/etc/decoy", "kept"), c.host_file("decoy", "kept")];
    let outside = decoys[1].to_str().unwrap();
    for target in ["/etc/decoy", outside, "/proc/sys/kernel/domainname", "/proc/1/fd/1"] {
        for name in ["console", "ptmx", "tty"] {
            replace_by_link(&c.rootfs().join("dev").join(name), target);
        }
        assert_eq!(c.exec(&["-t", "-u", "1000"], "echo up").ok().stdout, "up\r\n", "{target}");
    }
    for decoy in decoys {
        let owner = fs::metadata(&decoy).unwrap().uid();
        assert_eq!((fs::read_to_string(&decoy).unwrap().as_str(), owner), ("kept", 0));
    }
}

fn a_devpts_behind_a_link_is_the_containers_or_none() {
    needs!(keel());
    let mut c = without_dev();
    c.running();
    for target in ["/etc", "/proc/1/root/dev/pts", "/proc/self/fd/0", "../../../../dev/pts", "/proc/self/cwd"]
    {
        replace_by_link(&c.rootfs().join("dev/pts"), target);
        let error = c.exec(&["-t"], "echo up").exec_fails();
        assert!(error.contains("[process /terminal]"), "{target}: {error}");
    }
}

fn without_dev() -> Sandbox {
    let mut c = Sandbox::new();
    for destination in ["/dev", "/dev/shm", "/dev/mqueue", "/dev/pts"] {
        c.without_mount(destination);
    }
    c
}

fn replace_by_link(path: &Path, target: &str) {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => panic!("remove {}: {e}", path.display()),
        _ => symlink(target, path).unwrap(),
    }
}
