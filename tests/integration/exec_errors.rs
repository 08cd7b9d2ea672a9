//! How `exec` fails: status 255, one line that names the place, and nothing left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::exec::{pids, running};
use crate::exec_process_file::refused;
use crate::sandbox::{Sandbox, eventually, keel, processes_of};
use crate::{needs, tests};

tests![
    wrong_usage_is_255_too,
    a_container_that_does_not_exist,
    a_container_that_has_stopped,
    a_container_that_is_paused,
    a_container_that_is_being_created,
    a_container_that_has_only_begun_to_be_created,
    a_container_that_ends_while_the_process_is_set_up,
    a_container_whose_config_has_no_process,
    a_program_that_cannot_be_executed_is_told_why,
    nothing_is_left_of_what_failed,
    a_pid_file_that_was_not_written_is_not_taken_away,
    the_log_has_the_error,
    flags_name_what_they_are_about,
    labels_without_their_security_module_are_refused,
    a_damaged_state_is_told,
];

fn wrong_usage_is_255_too() {
    needs!(keel());
    let c = running();
    for args in [
        &["exec"][..],
        &["exec", &c.id],
        &["exec", "--nonesuch", &c.id, "/payload"],
        &["exec", &c.id, "/payload", "--process"][..2],
        &["exec", "--preserve-fds", "x", &c.id, "/payload"],
        &["exec", "--preserve-fds", "-1", &c.id, "/payload"],
        &["exec", "--no-new-privs=maybe", &c.id, "/payload"],
        &["--log-format", "xml", "exec", &c.id, "/payload"],
        &["exec", "a/b", "/payload"],
        &["exec", "..", "/payload"],
        &["exec", "", "/payload"],
    ] {
        c.keel(args).exec_fails();
    }
    assert_eq!(
        c.keel(&["exec", "--help"]).ok().stdout.lines().next(),
        Some("Run another process in a container")
    );
}

fn a_container_that_does_not_exist() {
    let c = Sandbox::new();
    let error = c.exec(&[], "report").exec_fails();
    assert!(
        keel().is_err() || error.ends_with(&format!("container \"{}\" does not exist\n", c.id)),
        "{error}"
    );
}

fn a_container_that_has_stopped() {
    let mut c = Sandbox::new();
    c.acts("exit 0").created().start().ok();
    c.wait_stopped();
    let error = c.exec(&["--ignore-paused"], "report").exec_fails();
    assert!(keel().is_err() || error.contains("cannot exec in a stopped container"), "{error}");
}

fn a_container_that_is_paused() {
    let c = running();
    c.keel(&["pause", &c.id]).ok();
    let pid = c.dir.join("pid");
    let error = c.exec(&["--pid-file", pid.to_str().unwrap()], "report").exec_fails();
    assert!(keel().is_err() || error.contains("cannot exec in a paused container"), "{error}");
    assert!(!pid.exists());
    assert_eq!(pids(&c).len(), 1);
    c.keel(&["resume", &c.id]).ok();
    c.exec(&[], "exit 0").ok();
}

/// By a hook that waits for the test, which has been let in by then.
fn a_container_that_is_being_created() {
    needs!(keel());
    let mut c = Sandbox::new();
    let fifo = c.dir.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let hook = c.script("hook", "touch $D/waiting; cat $D/fifo");
    c.set("/hooks/createRuntime", json!([{"path": hook}])).acts("pause").write_config();
    let create = c.spawn(c.command(&["create", &c.id]));
    eventually("the hook runs", || c.dir.join("waiting").exists());
    let error = c.exec(&[], "report").exec_fails();
    fs::write(fifo, "").unwrap();
    create.wait().ok();
    assert!(error.contains("cannot exec in a container that is creating"), "{error}");
    c.exec(&[], "exit 0").ok();
}

/// Before there is a process, as another command sees it.
fn a_container_that_has_only_begun_to_be_created() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.acts("pause").created();
    let dir = c.dir.join("state").join(&c.id);
    let state = fs::read_to_string(dir.join("state.json")).unwrap();
    let mut early: Value = serde_json::from_str(&state).unwrap();
    early["pid"] = json!(0);
    fs::write(dir.join("state.json"), early.to_string()).unwrap();
    let lock = fs::File::open(&dir).unwrap();
    lock.lock().unwrap();
    let error = c.exec(&[], "report").exec_fails();
    assert!(error.contains("cannot exec in a container that is creating"), "{error}");
    fs::write(dir.join("state.json"), state).unwrap();
}

/// It waits at a pid file that is a pipe, while its process does the rest.
fn a_container_that_ends_while_the_process_is_set_up() {
    needs!(keel());
    for shared_pids in [false, true] {
        let mut c = Sandbox::new();
        if shared_pids {
            c.without_namespace("pid");
        }
        c.running();
        let pid_file = c.dir.join("pid");
        mkfifo(&c.dir.join(".pid"), Mode::S_IRWXU).unwrap();
        let exec = c.spawn(c.exec_command(&["--pid-file", pid_file.to_str().unwrap()], "report"));
        eventually("there are two", || pids(&c).len() == 2);
        c.kill("KILL").ok();
        eventually("all are dead", || pids(&c).is_empty());
        fs::read_to_string(c.dir.join(".pid")).unwrap();
        let output = exec.wait();
        let error = output.exec_fails();
        assert!(error.contains("the container ended"), "{error}");
        assert!(!pid_file.exists());
        eventually("nothing runs", || processes_of(&c.id).is_empty());
        c.wait_stopped();
        c.delete().ok();
    }
}

fn a_container_whose_config_has_no_process() {
    needs!(keel());
    let mut c = Sandbox::new();
    let process = c.process("echo up");
    c.unset("/process").created();
    let error = c.exec(&[], "echo up").exec_fails();
    assert!(error.contains("the container's config has no process: give --process"), "{error}");
    assert_eq!(c.exec_process(&process).ok().stdout, "up\n");
}

/// The same words at create and at exec: callers derive 126 and 127 from some of them.
fn a_program_that_cannot_be_executed_is_told_why() {
    needs!(keel());
    let c = running();
    let script = |name: &str, text: &str, mode: u32| {
        fs::set_permissions(c.write(name, text), fs::Permissions::from_mode(mode)).unwrap();
    };
    script("/plain", "#!/payload\n", 0o644);
    script("/bin/denied", "#!/payload\n", 0o644);
    script("/orphan", "#!/usr/bin/nonesuch -x\n", 0o755);
    script("/crlf", "#!/payload\r\necho\r\n", 0o755);
    script("/text", "just text", 0o755);
    script("/empty", "", 0o755);
    script("/noname", "#!\n", 0o755);
    script("/aarch64", "", 0o755);
    fs::write(c.rootfs().join("aarch64"), elf_for(183)).unwrap();
    script("/for-aarch64", "#!/aarch64\n", 0o755);
    c.symlink("loop", "/loop");
    let this = std::env::consts::ARCH;
    let wrong =
        format!("\"/aarch64\" is a program for aarch64, and this machine is {this}: exec format error");
    for (program, why) in [
        ("nonesuch", "executable file not found in $PATH"),
        ("denied", "\"/bin/denied\" has no execute permission for this user: permission denied"),
        ("/no/such", "stat /no/such: no such file or directory"),
        ("./no", "stat ./no: no such file or directory"),
        ("/tmp", "is a directory: permission denied"),
        ("/plain", "\"/plain\" has no execute permission for this user: permission denied"),
        ("/orphan", "its interpreter \"/usr/bin/nonesuch\" is missing: no such file or directory"),
        (
            "/crlf",
            "its first line ends in CRLF, so its interpreter would be \"/payload\\r\": no such file or directory",
        ),
        ("/text", "\"/text\" is neither an ELF program nor a script that starts with #!: exec format error"),
        ("/empty", "\"/empty\" is empty: exec format error"),
        ("/noname", "\"/noname\" has a first line with #! that names no interpreter: exec format error"),
        ("/aarch64", &wrong),
        ("/for-aarch64", &wrong),
        ("/payload/x", "Not a directory (20)"),
        ("/loop", "Too many symbolic links encountered (40)"),
        ("/dev/null", "is not a regular file"),
    ] {
        let said = format!("exec: {program:?}: ");
        for detach in [&["exec"][..], &["exec", "-d"]] {
            let error = c.keel(&[detach, &[&c.id, program]].concat()).exec_fails();
            assert!(error.contains(&said) && error.contains(why), "{program}: {error}");
            assert!(
                error.trim_end().ends_with("[process /args/0]")
                    || error.trim_end().ends_with("[process /args]")
            );
        }
        let mut fresh = Sandbox::new();
        fresh.set("/root/path", json!(c.rootfs())).args(&[program]);
        let error = fresh.never_runs();
        assert!(error.contains(&said) && error.contains(why), "{program}: {error}");
    }
    // MAX_ARG_STRLEN is 128 KiB.
    let error = c.exec_process(&c.process(&format!("echo {}", "x".repeat(200_000)))).exec_fails();
    assert!(error.contains("argument list too long"), "{error:.300}");
    assert_eq!(pids(&c).len(), 1);
}

/// The header of an ELF program for another machine, and nothing more.
fn elf_for(machine: u16) -> Vec<u8> {
    let mut elf = vec![0u8; 120];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2;
    elf[18..20].copy_from_slice(&machine.to_le_bytes());
    elf[20] = 1;
    elf
}

fn nothing_is_left_of_what_failed() {
    needs!(keel());
    let c = running();
    let script = c.write("/late", "#!/nonesuch\n");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    let pid = c.host_dir("").join("pid");
    let nobody = c.dir.join("nobody.sock");
    let [pid_file, socket] = [&pid, &nobody].map(|path| path.to_str().unwrap());
    for args in [
        &["--pid-file", pid_file, &c.id, "/nonesuch"][..],
        &["--pid-file", pid_file, &c.id, "/late"],
        &["--pid-file", pid_file, "--cwd", "/nonesuch", &c.id, "/payload", "pause"],
        &["--pid-file", pid_file, "--pidfd-socket", socket, &c.id, "/payload", "pause"],
        &["--pid-file", "/nonesuch/pid", &c.id, "/payload", "pause"],
        &["--pid-file", "/", &c.id, "/payload", "pause"],
    ] {
        for detach in [&["exec"][..], &["exec", "--detach"]] {
            c.keel(&[detach, args].concat()).exec_fails();
            assert_eq!(fs::read_dir(c.host_dir("")).unwrap().count(), 0, "{args:?}");
            assert_eq!(pids(&c).len(), 1);
        }
    }
}

fn a_pid_file_that_was_not_written_is_not_taken_away() {
    needs!(keel());
    let c = running();
    let pid_file = c.host_file("pid", "1234");
    // In the way of the new file.
    c.host_dir(".pid");
    let error = c.exec(&["--pid-file", pid_file.to_str().unwrap()], "pause").exec_fails();
    assert!(error.contains("write pid file"), "{error}");
    assert_eq!(fs::read_to_string(pid_file).unwrap(), "1234");
}

fn the_log_has_the_error() {
    needs!(keel());
    let c = running();
    let log = c.dir.join("log");
    let global = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    c.keel(&[&global[..], &["exec", &c.id, "nonesuch"]].concat()).exec_fails();
    c.keel(&[&global[..], &["exec", "--user", "root", &c.id, "x"]].concat()).exec_fails();
    let text = fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines.iter().all(|line| line["level"] == "error"));
    assert!(lines[0]["msg"].as_str().unwrap().contains("executable file not found in $PATH"), "{text}");
}

fn flags_name_what_they_are_about() {
    needs!(keel());
    let c = running();
    for (options, why) in [
        (&["--env", "A"][..], "/env/2: must have the form NAME=value"),
        (&["--env", "=1"], "/env/2: must have a name before the ="),
        (&["--cwd", "tmp"], "/cwd: must be an absolute path"),
    ] {
        let error = c.exec(options, "report").exec_fails();
        assert!(error.contains(&format!("invalid process: {why}")), "{error}");
    }
}

fn labels_without_their_security_module_are_refused() {
    needs!(keel());
    let c = running();
    for (module, option, key) in [
        ("/sys/kernel/security/apparmor", "--apparmor", "apparmorProfile"),
        ("/sys/fs/selinux/enforce", "--process-label", "selinuxLabel"),
    ] {
        if std::path::Path::new(module).exists() {
            continue;
        }
        let error = c.exec(&[option, "x"], "report").exec_fails();
        assert!(
            error.contains(&format!("invalid process: /{key}: ")) && error.contains("is not enabled"),
            "{error}"
        );
        let mut process = c.process("report");
        process[key] = json!("x");
        assert!(refused(&c, process.to_string()).contains(&format!("process: /{key}: ")));
        c.exec(&[option, ""], "exit 0").ok();
    }
}

fn a_damaged_state_is_told() {
    needs!(keel());
    let c = running();
    let [state, config] =
        ["state.json", "config.json"].map(|name| c.dir.join("state").join(&c.id).join(name));
    let kept = fs::read(&config).unwrap();
    for damage in ["", "{", "[]", "{\"process\": 5}"] {
        fs::write(&config, damage).unwrap();
        let error = c.exec(&[], "report").exec_fails();
        assert!(error.contains("config") && !error.contains("panicked"), "{error}");
    }
    fs::write(&config, kept).unwrap();
    let kept = fs::read(&state).unwrap();
    for damage in ["", "{", "[]"] {
        fs::write(&state, damage).unwrap();
        let error = c.exec(&[], "report").exec_fails();
        assert!(error.contains("state.json") || error.contains("does not exist"), "{error}");
    }
    fs::write(&state, kept).unwrap();
    c.exec(&[], "exit 0").ok();
}
