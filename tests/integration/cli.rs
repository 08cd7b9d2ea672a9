//! The command line: what callers of runc write must work unchanged.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use crate::sandbox::{Sandbox, keel};
use crate::{needs, tests};

tests![
    options_may_stand_before_and_after_the_id,
    a_pid_file_holds_the_digits_only,
    a_failed_create_writes_no_pid_file,
    a_run_that_cannot_execute_takes_its_pid_file_back,
    a_pid_file_that_cannot_be_written_leaves_nothing,
    the_version_names_program_and_spec,
    help_lists_the_commands,
    an_unknown_command_is_refused,
    an_unknown_flag_is_refused,
    a_missing_id_is_refused,
    a_container_line_of_containerd_works,
    a_container_line_of_conmon_works,
    long_options_with_one_dash_work,
    a_pidfd_socket_receives_the_containers_pidfd,
    equals_signs_are_accepted,
    a_pid_file_that_is_there_is_replaced_and_not_overwritten,
];

fn options_may_stand_before_and_after_the_id() {
    for after in [false, true] {
        let mut c = Sandbox::new();
        c.acts("pause").write_config();
        let (bundle, pid) = (c.bundle(), c.dir.join("pid"));
        let flags = ["-b", bundle.to_str().unwrap(), "--pid-file", pid.to_str().unwrap()];
        let id = [&*c.id];
        let args = if after {
            [&["create"], &id[..], &flags].concat()
        } else {
            [&["create"], &flags[..], &id].concat()
        };
        let mut command = c.command(&args);
        c.execute({
            command.current_dir("/");
            command
        })
        .ok();
        assert_eq!(fs::read_to_string(pid).unwrap(), c.pid().to_string());
        if after {
            c.keel(&["delete", &c.id, "--force"]).ok();
        }
    }
}

fn a_pid_file_holds_the_digits_only() {
    let mut c = Sandbox::new();
    let path = c.dir.join("pid");
    fs::write(&path, "an old and longer text").unwrap();
    c.acts("pause").write_config();
    c.keel(&["run", "-d", "--pid-file", path.to_str().unwrap(), &c.id]).ok();
    assert_eq!(fs::read_to_string(path).unwrap(), c.pid().to_string());
}

fn a_failed_create_writes_no_pid_file() {
    let mut c = Sandbox::new();
    let path = c.dir.join("pid");
    c.args(&["/no/such/program"]).write_config();
    let created = c.keel(&["create", "--pid-file", path.to_str().unwrap(), &c.id]);
    assert!(created.code == 0 || !path.exists(), "{created:#?}");
}

fn a_run_that_cannot_execute_takes_its_pid_file_back() {
    needs!(keel());
    let mut c = Sandbox::new();
    // Found and executable, but no program.
    let path = c.write("/garbage", "\u{1}\u{2}");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    c.args(&["/garbage"]).write_config();
    let pid = c.dir.join("pid");
    let error = c.keel(&["run", "--pid-file", pid.to_str().unwrap(), &c.id]).fails();
    assert!(error.contains("/garbage") && !pid.exists(), "{error}");
}

fn a_pid_file_that_cannot_be_written_leaves_nothing() {
    let mut c = Sandbox::new();
    c.acts("pause").write_config();
    let error = c.keel(&["create", "--pid-file", "/nonexistent/pid", &c.id]).fails();
    assert!(error.contains("/nonexistent/pid"), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn the_version_names_program_and_spec() {
    needs!(keel());
    for flag in ["--version", "-v"] {
        let output = Sandbox::new().keel(&[flag]).ok();
        assert_eq!(output.lines()[0], format!("keel version {}", env!("CARGO_PKG_VERSION")));
        assert!(output.lines().iter().any(|line| line.starts_with("spec: 1.")), "{output:#?}");
    }
}

fn help_lists_the_commands() {
    let output = Sandbox::new().keel(&["--help"]).ok();
    for command in ["create", "start", "state", "kill", "delete", "run", "list", "spec"] {
        assert!(output.stdout.contains(command), "{command}");
    }
}

fn an_unknown_command_is_refused() {
    let output = Sandbox::new().keel(&["nonesuch"]);
    assert!(
        output.code != 0 && output.stderr.contains("nonesuch") || !crate::sandbox::is_keel(),
        "{output:#?}"
    );
}

fn an_unknown_flag_is_refused() {
    let c = Sandbox::new();
    c.write_config();
    let output = c.keel(&["create", "--nonesuch", &c.id]);
    assert!(output.code != 0 && output.stderr.contains("nonesuch"), "{output:#?}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_missing_id_is_refused() {
    let c = Sandbox::new();
    c.write_config();
    for command in ["create", "start", "state", "kill", "delete", "run"] {
        assert_ne!(c.keel(&[command]).code, 0, "{command}");
    }
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_container_line_of_containerd_works() {
    let mut c = Sandbox::new();
    c.acts("pause").write_config();
    let (log, bundle) = (c.dir.join("log.json"), c.bundle());
    let (log, bundle) = (log.to_str().unwrap(), bundle.to_str().unwrap());
    let pid = format!("{bundle}/init.pid");
    let globals = ["--log", log, "--log-format", "json"];
    let call = |args: &[&str]| c.keel(&[&globals, args].concat());
    call(&["create", "--bundle", bundle, "--pid-file", &pid, &c.id]).ok();
    call(&["start", &c.id]).ok();
    assert_eq!(call(&["state", &c.id]).ok().json()["pid"].to_string(), fs::read_to_string(pid).unwrap());
    call(&["kill", "--all", &c.id, "9"]).ok();
    c.wait_stopped();
    call(&["delete", &c.id]).ok();
    assert_eq!(fs::read_to_string(log).unwrap_or_default(), "");
}

fn a_container_line_of_conmon_works() {
    let mut c = Sandbox::new();
    c.acts("exit 0").write_config();
    let (bundle, pid) = (c.bundle(), c.dir.join("pid"));
    let flags = ["--bundle", bundle.to_str().unwrap(), "--pid-file", pid.to_str().unwrap()];
    c.keel(&[&["create"], &flags[..], &["--no-new-keyring", "--preserve-fds", "0", &c.id]].concat()).ok();
    c.start().ok();
    c.wait_stopped();
    c.delete_force().ok();
}

fn long_options_with_one_dash_work() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.acts("exit 0").write_config();
    c.keel(&["run", "-no-subreaper", &c.id]).ok();
}

fn a_pidfd_socket_receives_the_containers_pidfd() {
    needs!(keel());
    let mut c = Sandbox::new();
    let path = c.dir.join("pidfd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    c.acts("pause").write_config();
    let create = c.spawn(c.command(&["create", "--pidfd-socket", path.to_str().unwrap(), &c.id]));
    let fds = crate::terminal::receive(&listener);
    create.wait().ok();
    assert_eq!(fds.len(), 1);
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&fds[0])))
        .unwrap();
    assert!(info.lines().any(|line| line == format!("Pid:\t{}", c.pid())), "{info}");
}

fn equals_signs_are_accepted() {
    let mut c = Sandbox::new();
    c.acts("exit 0").write_config();
    c.keel(&["--log-format=json", "run", &format!("--bundle={}", c.bundle().display()), &c.id]).ok();
}

/// A reader sees the whole of it or the old one.
fn a_pid_file_that_is_there_is_replaced_and_not_overwritten() {
    let mut c = Sandbox::new();
    let (old, pid) = (c.host_file("old", "another"), c.dir.join("pid"));
    fs::hard_link(&old, &pid).unwrap();
    c.acts("pause").write_config();
    c.keel(&["create", "--pid-file", pid.to_str().unwrap(), &c.id]).ok();
    let read = |path| fs::read_to_string(path).unwrap();
    assert_eq!((read(old), read(pid)), ("another".into(), c.pid().to_string()));
}
