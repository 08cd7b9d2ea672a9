//! /process: args, env, cwd, and what exec errors say.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde_json::json;

use crate::sandbox::{Sandbox, copy, is_keel, keel, runtime};
use crate::{needs, tests};

tests![
    the_payload_gets_its_arguments_unchanged,
    a_program_without_a_slash_is_found_by_the_containers_path,
    the_environment_is_the_configured_one,
    the_last_of_two_equal_variables_counts,
    home_is_added_when_it_is_not_there,
    the_working_directory_is_the_configured_one,
    a_missing_working_directory_is_made,
    signals_are_neither_ignored_nor_blocked,
    the_payload_is_one_thread_and_a_session_leader,
    a_missing_program_is_not_found_in_path,
    a_missing_path_is_no_such_file,
    a_program_without_the_execute_bit_is_permission_denied,
    a_directory_as_program_is_permission_denied,
    a_missing_interpreter_is_named,
    a_script_with_windows_line_ends_is_told,
    a_file_that_is_no_program_is_told,
    no_arguments_are_refused,
    a_relative_working_directory_is_refused,
    a_working_directory_that_is_a_file_is_refused,
    a_large_environment_arrives_whole,
    too_large_an_argument_is_an_error,
    a_working_directory_in_a_leaked_descriptor_is_refused,
    a_leaked_descriptor_of_a_host_directory_does_not_reach_the_payload,
    a_link_to_a_leaked_descriptor_is_no_working_directory,
    a_program_that_is_the_runtime_cannot_overwrite_it,
    init_runs_from_what_nobody_writes_to_wherever_the_runtime_is,
    a_runtime_that_cannot_protect_itself_before_the_c_library_does_so_later,
    a_word_that_names_a_command_elsewhere_changes_nothing,
    a_variable_without_a_name_is_refused,
    a_program_behind_a_descriptor_of_the_runtime_is_refused,
    init_cannot_be_looked_into_before_it_executes,
    a_working_directory_that_the_user_may_not_enter_is_entered,
    a_passwd_that_is_a_link_or_a_pipe_is_read_inside_or_not_at_all,
    the_runtime_cannot_be_overwritten_by_who_kept_it_open,
];

fn the_payload_gets_its_arguments_unchanged() {
    let mut c = Sandbox::new();
    c.args(&["/payload", "report", ";", "echo", "", ";", "echo", " a  b\t\"c'\\\n$D é "]);
    let output = c.run().ok();
    assert!(output.stdout.ends_with("\n\n a  b\t\"c'\\\n$D é \n"), "{output:#?}");
    let seen = c.report();
    assert_eq!(seen["argv"], json!(["/payload", "report"]));
}

fn a_program_without_a_slash_is_found_by_the_containers_path() {
    let mut c = Sandbox::new();
    fs::create_dir(c.rootfs().join("opt")).unwrap();
    fs::rename(c.rootfs().join("payload"), c.rootfs().join("opt/payload")).unwrap();
    c.args(&["payload", "echo", "found"]).set("/process/env", json!(["PATH=/nowhere:/opt"]));
    assert_eq!(c.run().ok().stdout, "found\n");
}

fn the_environment_is_the_configured_one() {
    let mut c = Sandbox::new();
    c.set("/process/env", json!(["PATH=/", "A=1", "EMPTY=", "B=x=y z", "HOME=/h"]));
    assert_eq!(c.report()["environ"], json!(["PATH=/", "A=1", "EMPTY=", "B=x=y z", "HOME=/h"]));
}

fn the_last_of_two_equal_variables_counts() {
    let mut c = Sandbox::new();
    c.set("/process/env", json!(["A=1", "B=2", "A=3"]));
    assert_eq!(c.report()["environ"], json!(["B=2", "A=3", "HOME=/"]));
}

fn home_is_added_when_it_is_not_there() {
    let mut c = Sandbox::new();
    c.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n");
    assert_eq!(c.does("env HOME"), ["/root"]);
    c.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    assert_eq!(c.does("env HOME"), ["/home/user"]);
    c.set("/process/user", json!({"uid": 1234, "gid": 1000}));
    assert_eq!(c.does("env HOME"), ["/"]);
    c.set("/process/env", json!(["HOME=/mine"]));
    assert_eq!(c.does("env HOME"), ["/mine"]);
}

fn the_working_directory_is_the_configured_one() {
    let mut c = Sandbox::new();
    assert_eq!(c.report()["cwd"], "/");
    assert_eq!(c.set("/process/cwd", "/dev/pts").report()["cwd"], "/dev/pts");
}

fn a_missing_working_directory_is_made() {
    let mut c = Sandbox::new();
    assert_eq!(c.set("/process/cwd", "/work/deep").report()["cwd"], "/work/deep");
    assert!(c.rootfs().join("work/deep").is_dir());
}

fn signals_are_neither_ignored_nor_blocked() {
    let mut c = Sandbox::new();
    // Not the payload: Rust's start-up code ignores SIGPIPE.
    c.busybox();
    let output = c.args(&["/bin/cat", "/proc/self/status"]).run().ok();
    for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
        assert!(output.lines().contains(&line), "{output:#?}");
    }
}

fn the_payload_is_one_thread_and_a_session_leader() {
    let seen = Sandbox::new().report();
    assert_eq!((&seen["threads"], &seen["pid"], &seen["ppid"]), (&json!("1"), &json!(1), &json!(0)));
}

#[track_caller]
fn exec_error(c: &Sandbox, text: &str) {
    let error = c.never_runs();
    assert!(error.contains(text), "{error}");
    // So that the caller hears of it before start.
    assert!(!is_keel() || c.create().code == 1);
}

fn a_missing_program_is_not_found_in_path() {
    exec_error(Sandbox::new().args(&["nonesuch"]), "executable file");
    if is_keel() {
        exec_error(Sandbox::new().args(&["nonesuch"]), "executable file not found");
    }
}

fn a_missing_path_is_no_such_file() {
    let mut c = Sandbox::new();
    let error = c.args(&["/no/such/program"]).never_runs().to_lowercase();
    assert!(error.contains("no such file or directory") && error.contains("/no/such/program"), "{error}");
}

fn a_program_without_the_execute_bit_is_permission_denied() {
    let mut c = Sandbox::new();
    c.write("/script", "#!/payload\n");
    let error = c.args(&["/script"]).never_runs().to_lowercase();
    assert!(error.contains("permission denied"), "{error}");
}

fn a_directory_as_program_is_permission_denied() {
    let error = Sandbox::new().args(&["/tmp"]).never_runs().to_lowercase();
    assert!(error.contains("permission denied") || error.contains("is a directory"), "{error}");
}

fn script(text: &str) -> Sandbox {
    let mut c = Sandbox::new();
    let path = c.write("/script", text);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    c.args(&["/script"]);
    c
}

fn a_missing_interpreter_is_named() {
    needs!(keel());
    let error = script("#!/usr/bin/nonesuch -x\n").never_runs();
    assert!(error.contains("/usr/bin/nonesuch"), "{error}");
}

fn a_script_with_windows_line_ends_is_told() {
    needs!(keel());
    let error = script("#!/payload\r\necho\r\n").never_runs();
    assert!(error.contains("CRLF") || error.contains("\\r") || error.contains("carriage return"), "{error}");
}

fn a_file_that_is_no_program_is_told() {
    let error = script("just text").never_runs().to_lowercase();
    assert!(error.contains("exec format error") || error.contains("not a program"), "{error}");
}

fn no_arguments_are_refused() {
    Sandbox::new().args(&[]).refused("/process/args");
    Sandbox::new().unset("/process/args").refused("/process/args");
}

fn a_relative_working_directory_is_refused() {
    Sandbox::new().set("/process/cwd", "tmp").refused("/process/cwd");
    Sandbox::new().unset("/process/cwd").refused("/process/cwd");
}

fn a_working_directory_that_is_a_file_is_refused() {
    Sandbox::new().set("/process/cwd", "/payload").refused("/process/cwd");
}

fn a_large_environment_arrives_whole() {
    let mut c = Sandbox::new();
    let large = "x".repeat(70_000);
    let names = (0..200).map(|i| format!("V{i}={}", "y".repeat(i)));
    let env: Vec<String> = names.chain([format!("LARGE={large}")]).collect();
    c.set("/process/env", json!(env));
    let seen = c.report();
    assert_eq!(seen["env"]["LARGE"], large.as_str());
    assert_eq!(seen["env"]["V199"], "y".repeat(199));
}

fn too_large_an_argument_is_an_error() {
    let mut c = Sandbox::new();
    // MAX_ARG_STRLEN is 128 KiB.
    c.args(&["/payload", "echo", &"x".repeat(200_000)]);
    let error = c.never_runs().to_lowercase();
    assert!(error.contains("too long") || error.contains("(7)"), "{error}");
}

/// keel with descriptors 3 to 9 open on `/`, not close-on-exec, as a careless caller leaves them.
fn leaky(c: &Sandbox, command: &str) -> Command {
    let keel = c.command(&[command, &c.id]);
    let opens: String = (3..10).map(|fd| format!("exec {fd}</;")).collect();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{opens} exec \"$@\""), "sh"]).arg(keel.get_program()).args(keel.get_args());
    shell
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("SANDBOX", &c.id)
        .current_dir(c.bundle());
    shell
}

/// CVE-2024-21626.
fn a_working_directory_in_a_leaked_descriptor_is_refused() {
    for fd in 3..64 {
        let mut c = Sandbox::new();
        c.set("/process/cwd", format!("/proc/self/fd/{fd}")).acts("ls .").write_config();
        let output = c.execute(leaky(&c, "run"));
        assert_ne!(output.code, 0, "{output:#?}");
        assert!(!is_keel() || output.stderr.contains("/process/cwd"), "{output:#?}");
        assert_eq!(c.left(), Vec::<String>::new());
    }
}

fn a_leaked_descriptor_of_a_host_directory_does_not_reach_the_payload() {
    let mut c = Sandbox::new();
    c.acts("report").write_config();
    let seen = c.execute(leaky(&c, "run")).ok().json();
    let fds: Vec<&String> = seen["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2"]);
}

fn a_link_to_a_leaked_descriptor_is_no_working_directory() {
    for fd in [3, 5, 7, 8, 9] {
        let mut c = Sandbox::new();
        symlink(format!("/proc/self/fd/{fd}"), c.rootfs().join("link")).unwrap();
        c.set("/process/cwd", "/link").acts("ls .").write_config();
        let output = c.execute(leaky(&c, "run"));
        assert!(output.code != 0 && output.stdout.is_empty(), "{output:#?}");
    }
}

/// CVE-2019-5736: the entrypoint is the runtime's own binary, so that the container can reach it as /proc/PID/exe
/// of a process of its own. The runtime here is a copy.
fn a_program_that_is_the_runtime_cannot_overwrite_it() {
    let mut c = Sandbox::new();
    c.runtime = c.dir.join(runtime().file_name().unwrap());
    copy(&runtime(), &c.runtime);
    let before = fs::read(&c.runtime).unwrap();
    c.busybox();
    // Waits until a process executes /proc/self/exe, keeps that file open, and writes once it may be written.
    let attack = r#"
        /proc/self/exe list >/dev/null 2>&1
        for try in 1 2 3 4 5; do
            for exe in /proc/[0-9]*/exe; do
                /bin/busybox mount -o remount,rw,bind "$exe" 2>/dev/null
                (echo overwritten >"$exe") 2>/dev/null
            done
        done
        echo tried"#;
    let entry = c.write("/entry", "#!/proc/self/exe\n");
    fs::set_permissions(entry, fs::Permissions::from_mode(0o755)).unwrap();
    for capabilities in [json!(["CAP_KILL"]), json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE"])]
    {
        for set in ["bounding", "effective", "permitted"] {
            c.set(&format!("/process/capabilities/{set}"), capabilities.clone());
        }
        c.args(&["/entry"]).run();
        assert_eq!(c.args(&["/bin/sh", "-c", attack]).run().stdout, "tried\n");
    }
    assert!(fs::read(&c.runtime).unwrap() == before, "the runtime was overwritten");
}

const TMPFS: i64 = 0x0102_1994;

/// The kind of file system that init's binary is on, before the program runs.
fn kind_of_init(c: &Sandbox) -> i64 {
    statfs(format!("/proc/{}/exe", c.pid()).as_str()).unwrap().filesystem_type().0
}

fn init_runs_from_what_nobody_writes_to_wherever_the_runtime_is() {
    needs!(keel());
    let long = ["a".repeat(200), "b".repeat(200)].join("/");
    for dir in [b"plain".as_slice(), b"a:b,c\\d", b"not\xffutf8", long.as_bytes()] {
        let mut c = Sandbox::new();
        let dir = c.host_dir("").join(OsStr::from_bytes(dir));
        fs::create_dir_all(&dir).unwrap();
        c.runtime = dir.join(OsStr::from_bytes(b"ke:el,\\\xff"));
        copy(&runtime(), &c.runtime);
        c.acts("true").created();
        assert_eq!(kind_of_init(&c), OVERLAYFS_SUPER_MAGIC.0, "{}", c.runtime.display());
    }
}

fn a_runtime_that_cannot_protect_itself_before_the_c_library_does_so_later() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.acts("true").write_config();
    // A binary without a name has no directory to make an overlay of.
    let unnamed = c.host_dir("").join("keel");
    copy(&runtime(), &unnamed);
    let binary = fs::File::open(&unnamed).unwrap();
    fs::remove_file(&unnamed).unwrap();
    c.runtime = format!("/proc/{}/fd/{}", std::process::id(), binary.as_raw_fd()).into();
    c.keel(&["create", &c.id]).ok();
    assert_eq!(kind_of_init(&c), TMPFS);
    c.runtime = runtime();
    c.start().ok();
}

fn a_word_that_names_a_command_elsewhere_changes_nothing() {
    needs!(keel());
    let c = Sandbox::new();
    let complaint = c.keel(&["state", "run"]).fails();
    assert!(complaint.contains("container \"run\" does not exist"), "{complaint}");
}

fn a_variable_without_a_name_is_refused() {
    needs!(keel());
    Sandbox::new().set("/process/env", json!(["A=1", 5])).refused("/process/env/1");
}

/// CVE-2024-21626, by a descriptor that keel itself has open: of the state directory, for instance.
fn a_program_behind_a_descriptor_of_the_runtime_is_refused() {
    let mut c = Sandbox::new();
    crate::sandbox::link(&c.rootfs().join("payload"), &c.host_dir("").join("payload"));
    for fd in 3..32 {
        for climb in ["..", "../..", "../../.."] {
            c.args(&[&format!("/proc/self/fd/{fd}/{climb}/host/payload"), "echo", "escaped"]).write_config();
            let output = c.keel(&["run", &c.id]);
            assert!(output.code != 0 && output.stdout.is_empty(), "{output:#?}");
        }
    }
}

/// CVE-2016-9962: by a container that shares its pid namespace and has all the capabilities that it has itself.
fn init_cannot_be_looked_into_before_it_executes() {
    let (mut created, mut other) = (Sandbox::new(), Sandbox::new());
    let pid = created.acts("pause").created().pid();
    let path = format!("/proc/{pid}/ns/pid");
    other.without_namespace("pid").set("/linux/namespaces/-", json!({"type": "pid", "path": path}));
    assert_eq!(other.does("open r /proc/1/fd/0 ; ls /proc/1/root"), ["EACCES", "EACCES"]);
    created.start().ok();
    assert_eq!(other.does("ls /proc/1/root"), ["dev payload proc sys tmp"]);
}

fn a_working_directory_that_the_user_may_not_enter_is_entered() {
    let mut c = Sandbox::new();
    fs::create_dir(c.rootfs().join("private")).unwrap();
    fs::set_permissions(c.rootfs().join("private"), fs::Permissions::from_mode(0o700)).unwrap();
    c.set("/process/user", json!({"uid": 1000, "gid": 1000})).set("/process/cwd", "/private");
    assert_eq!(c.does("ls /private ; ls /proc/self/cwd"), ["EACCES", "EACCES"]);
}

fn a_passwd_that_is_a_link_or_a_pipe_is_read_inside_or_not_at_all() {
    let mut c = Sandbox::new();
    let outside = c.host_file("passwd", "root:x:0:0::/of-the-host:\n");
    c.symlink(outside.to_str().unwrap(), "/etc/passwd");
    assert_eq!(c.does("env HOME"), ["/"]);
    fs::remove_file(c.rootfs().join("etc/passwd")).unwrap();
    nix::unistd::mkfifo(&c.rootfs().join("etc/passwd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(c.does("env HOME"), ["/"]);
}

/// CVE-2019-5736, by whoever gets hold of /proc/PID/exe and waits until nobody runs it. The runtime here is a copy.
fn the_runtime_cannot_be_overwritten_by_who_kept_it_open() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.runtime = c.dir.join("keel");
    copy(&runtime(), &c.runtime);
    let reopens = |exe: fs::File| {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&exe));
        fs::OpenOptions::new().write(true).open(path).is_ok()
    };
    let init = fs::File::open(format!("/proc/{}/exe", c.acts("pause").created().pid())).unwrap();
    c.delete_force().ok();
    let run = c.acts("await TERM").run_in_background();
    c.wait_printed("waiting");
    let runs = fs::File::open(format!("/proc/{}/exe", run.pid())).unwrap();
    c.kill("TERM").ok();
    run.wait().ok();
    assert_eq!([reopens(init), reopens(runs)], [false, false]);
}
