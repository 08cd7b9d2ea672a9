//! The escapes that runtimes have had through `exec`: the container is hostile and knows that somebody comes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::exec::{pids, running};
use crate::sandbox::{Sandbox, copy, eventually, is_keel, keel, link, runtime};
use crate::{needs, tests};

tests![
    a_program_that_is_the_runtime_cannot_overwrite_it,
    the_runtime_cannot_be_overwritten_by_who_waits_for_it,
    a_working_directory_in_a_descriptor_of_the_runtime_is_refused,
    a_program_behind_a_descriptor_of_the_runtime_is_refused,
    a_newcomer_cannot_be_looked_into_before_it_executes,
    what_the_container_mounts_over_proc_is_not_written_to,
    a_passwd_that_is_a_link_or_a_pipe_is_read_inside_or_not_at_all,
    a_working_directory_that_is_swapped_never_leads_out,
];

/// A copy of the runtime, which the attack may hit, for a container with busybox.
fn with_copy(capabilities: serde_json::Value) -> Sandbox {
    let mut c = Sandbox::new();
    c.runtime = c.dir.join(runtime().file_name().unwrap());
    copy(&runtime(), &c.runtime);
    c.busybox();
    for set in ["bounding", "effective", "permitted"] {
        c.set(&format!("/process/capabilities/{set}"), capabilities.clone());
    }
    c.set("/process/noNewPrivileges", false);
    c
}

fn powers() -> [serde_json::Value; 2] {
    [
        json!(["CAP_KILL"]),
        json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE", "CAP_LINUX_IMMUTABLE"]),
    ]
}

/// CVE-2019-5736 as it was exploited: a process opens what others run as /proc/PID/exe, keeps it open, and writes to
/// it when nobody runs it any more. Gives whether it caught anything.
fn hunted(c: &mut Sandbox, exec: impl Fn(&Sandbox)) -> bool {
    let before = fs::read(&c.runtime).unwrap();
    c.acts("hunt /tmp/end").created().start().ok();
    c.wait_printed("hunting");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(700) {
        exec(c);
    }
    fs::write(c.rootfs().join("tmp/end"), "").unwrap();
    c.wait_printed(" wrote ");
    assert!(c.printed().contains(" wrote 0\n"), "{}", c.printed());
    assert!(fs::read(&c.runtime).unwrap() == before, "the runtime was overwritten");
    !c.printed().contains("caught 0 ")
}

/// What root is asked to exec is a script whose interpreter is the runtime itself.
fn a_program_that_is_the_runtime_cannot_overwrite_it() {
    needs!(keel());
    for capabilities in powers() {
        let mut c = with_copy(capabilities);
        let entry = c.write("/entry", "#!/proc/self/exe\n");
        fs::set_permissions(entry, fs::Permissions::from_mode(0o755)).unwrap();
        let caught = hunted(&mut c, |c| {
            for program in ["/entry", "/proc/self/exe"] {
                c.keel(&["exec", &c.id, program, "list"]);
            }
        });
        assert!(caught);
    }
}

/// Without CAP_SYS_PTRACE nothing of the newcomer can be opened to begin with (CVE-2016-9962).
fn the_runtime_cannot_be_overwritten_by_who_waits_for_it() {
    needs!(keel());
    for (capabilities, catches) in powers().into_iter().zip([false, true]) {
        let mut c = with_copy(capabilities);
        let caught = hunted(&mut c, |c| {
            c.exec(&[], "exit 0").ok();
        });
        assert_eq!(caught, catches);
    }
}

/// `exec` behind a shell that leaves it descriptors of the host's root, not close-on-exec.
fn leaky(c: &Sandbox, args: &[&str]) -> crate::sandbox::Output {
    let opens: String = (3..10).map(|fd| format!("exec {fd}</;")).collect();
    c.behind(&["sh", "-c", &format!("{opens} exec \"$@\""), "sh"], args)
}

/// CVE-2024-21626.
fn a_working_directory_in_a_descriptor_of_the_runtime_is_refused() {
    let c = running();
    for fd in 3..65 {
        let cwd = format!("/proc/self/fd/{fd}");
        let output = leaky(&c, &["exec", "--cwd", &cwd, &c.id, "/payload", "ls", "."]);
        assert!(output.code != 0 && output.stdout.is_empty(), "{output:#?}");
        assert!(!is_keel() || output.stderr.contains("[process /cwd]"), "{output:#?}");
    }
    for fd in [3, 5, 7, 8, 9] {
        c.symlink(&format!("/proc/self/fd/{fd}"), "/link");
        let output = leaky(&c, &["exec", "--cwd", "/link", &c.id, "/payload", "ls", "."]);
        assert!(output.code != 0 && output.stdout.is_empty(), "{output:#?}");
        fs::remove_file(c.rootfs().join("link")).unwrap();
    }
    assert_eq!(pids(&c).len(), 1);
}

fn a_program_behind_a_descriptor_of_the_runtime_is_refused() {
    let mut c = Sandbox::new();
    link(&c.rootfs().join("payload"), &c.host_dir("").join("payload"));
    c.running();
    for fd in 3..32 {
        for climb in ["..", "../..", "../../.."] {
            let program = format!("/proc/self/fd/{fd}/{climb}/host/payload");
            for args in [&["exec"][..], &["exec", "--log", "../log"]] {
                let output = c.keel(&[args, &[&c.id, &program, "echo", "escaped"]].concat());
                assert!(output.code != 0 && output.stdout.is_empty(), "{output:#?}");
            }
        }
    }
}

/// CVE-2016-9962: the newcomer is in the container's pid namespace, and still has the host's descriptors, the
/// runtime's memory and its environment. A pid file that is a pipe holds it up when it is all set up.
fn a_newcomer_cannot_be_looked_into_before_it_executes() {
    needs!(keel());
    for user in [0, 1000] {
        let mut c = Sandbox::new();
        // All but those from which nothing can be hidden: for the kernel who may profile the host may read /proc/PID/maps.
        let all = caps::read(None, caps::CapSet::Bounding).unwrap();
        let seers = ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_PERFMON"];
        let all: Vec<String> =
            all.iter().map(ToString::to_string).filter(|cap| !seers.contains(&&**cap)).collect();
        for set in ["bounding", "effective", "permitted"] {
            c.set(&format!("/process/capabilities/{set}"), json!(all));
        }
        c.set("/process/user/uid", user);
        let looks = "await USR1 ; open r /proc/2/exe ; ls /proc/2/root ; open r /proc/2/mem ; open r /proc/2/environ ; \
            open r /proc/2/maps ; open r /proc/2/fd/0 ; open r /proc/2/ns/net ; ls /proc/2/cwd ; echo end";
        c.acts(looks).created().start().ok();
        c.wait_printed("waiting");
        mkfifo(&c.dir.join(".pid"), Mode::S_IRWXU).unwrap();
        let exec = c.spawn(c.exec_command(&["--pid-file", c.dir.join("pid").to_str().unwrap()], "exit 7"));
        let newcomer = || pids(&c).into_iter().find(|pid| *pid != c.pid().to_string());
        eventually("it has come", || newcomer().is_some());
        // It waits for its parent's word, all set up.
        let wchan = format!("/proc/{}/syscall", newcomer().unwrap());
        eventually("it waits", || {
            fs::read_to_string(&wchan)
                .unwrap_or_default()
                .starts_with(&format!("{} ", nix::libc::SYS_recvmsg))
        });
        c.kill("USR1").ok();
        c.wait_printed("end\n");
        let printed = c.printed();
        let seen: Vec<&str> = printed.lines().skip_while(|line| *line != "USR1").skip(1).take(9).collect();
        // The container has ended, all but its first process's end, which waits for the newcomer's.
        fs::read_to_string(c.dir.join(".pid")).unwrap();
        exec.wait();
        assert_eq!(seen, [&["EACCES"; 8][..], &["end"]].concat(), "as user {user}");
    }
}

/// CVE-2019-16884, CVE-2025-52881: by a container that may mount.
fn what_the_container_mounts_over_proc_is_not_written_to() {
    needs!(keel());
    let mut c = Sandbox::new();
    let capabilities = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    for set in ["bounding", "effective", "permitted"] {
        c.set(&format!("/process/capabilities/{set}"), capabilities.clone());
    }
    c.unset("/linux/maskedPaths").unset("/linux/readonlyPaths");
    c.set("/process/oomScoreAdj", 123);
    let decoy = c.write("/decoy/self/attr/exec", "kept");
    for path in [
        "thread-self/attr/exec",
        "thread-self/attr/apparmor/exec",
        "self/oom_score_adj",
        "self/attr/keycreate",
    ] {
        c.write(&format!("/decoy/{path}"), "kept");
    }
    c.acts("bind /decoy /proc ; await TERM").created().start().ok();
    c.wait_printed("ok\nwaiting");
    assert_eq!(c.exec(&[], "ls /proc").ok().stdout, "self thread-self\n");
    let seen = c.exec_report(&[]);
    assert!(seen["keyring"].as_str().unwrap().ends_with(&format!("_ses.{}", c.id)));
    let error = c.exec(&["--apparmor", "x"], "report");
    assert!(error.code == 255, "{error:#?}");
    assert_eq!(fs::read_to_string(decoy).unwrap(), "kept");
    for path in [
        "thread-self/attr/exec",
        "thread-self/attr/apparmor/exec",
        "self/oom_score_adj",
        "self/attr/keycreate",
    ] {
        assert_eq!(fs::read_to_string(c.rootfs().join("decoy").join(path)).unwrap(), "kept");
    }
}

fn a_passwd_that_is_a_link_or_a_pipe_is_read_inside_or_not_at_all() {
    let mut c = Sandbox::new();
    let outside = c.host_file("passwd", "root:x:0:0::/of-the-host:\n");
    c.running();
    let passwd = c.rootfs().join("etc/passwd");
    for target in [
        outside.to_str().unwrap(),
        "/proc/self/fd/3",
        "/proc/1/root/../../etc/passwd",
        "../../../../etc/passwd",
    ] {
        c.symlink(target, "/etc/passwd");
        assert_eq!(c.exec(&[], "env HOME").ok().stdout, "/\n", "{target}");
        fs::remove_file(&passwd).unwrap();
    }
    mkfifo(&passwd, Mode::S_IRUSR).unwrap();
    assert_eq!(c.exec(&[], "env HOME").ok().stdout, "/\n");
    fs::remove_file(&passwd).unwrap();
    c.symlink("/dev/zero", "/etc/passwd");
    assert_eq!(c.exec(&[], "env HOME").ok().stdout, "/\n");
}

/// The container exchanges a directory and a link all the while.
fn a_working_directory_that_is_swapped_never_leads_out() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.busybox();
    c.host_file("here", "");
    fs::create_dir(c.rootfs().join("a")).unwrap();
    let swap = "echo ready; while :; do /bin/busybox mv /a /b; /bin/busybox ln -s /proc/1/cwd/../../../../host /a; \
        /bin/busybox rm /a; /bin/busybox mv /b /a; done";
    c.args(&["/bin/sh", "-c", swap]).created().start().ok();
    c.wait_printed("ready");
    let begun = Instant::now();
    let (mut entered, mut refused) = (0, 0);
    while begun.elapsed() < Duration::from_millis(1500) {
        let output = c.exec(&["--cwd", "/a"], "ls .");
        match output.code {
            0 => entered += 1,
            255 => refused += 1,
            _ => panic!("{output:#?}"),
        }
        assert!(!output.stdout.contains("here"), "{output:#?}");
    }
    assert!(entered > 0, "{entered} {refused}");
}
