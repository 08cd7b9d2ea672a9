//! checkpoint and restore: what criu saves goes on in a container like any other.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::sandbox::{Output, Sandbox, controller, eventually, keel, program, readable};
use crate::terminal::receive;
use crate::{needs, tests};

tests![
    a_restored_container_goes_on_where_it_stood,
    a_container_that_is_left_running_runs_on,
    a_paused_container_is_saved_and_stays_paused,
    one_checkpoint_is_restored_twice,
    a_restored_container_is_saved_again,
    a_checkpoint_fits_another_bundle,
    bind_mounts_show_what_the_host_has,
    mounts_below_a_recursive_bind_come_along,
    a_terminal_goes_on_behind_a_new_master,
    a_network_namespace_is_joined_again,
    a_network_namespace_is_set_up_as_by_create,
    an_established_connection_goes_on,
    a_file_lock_is_kept,
    memory_is_saved_in_two_steps,
    lazy_pages_are_announced_and_served,
    restore_in_the_foreground_gives_the_exit_code,
    a_pipe_of_the_callers_takes_the_place_of_the_old,
    a_stream_that_was_dev_null_stays_that,
    hooks_run_as_in_create_and_delete,
    a_restored_container_is_limited,
    a_restored_container_is_in_its_namespaces,
    a_checkpoint_needs_processes_that_run,
    a_user_namespace_is_not_saved,
    without_criu_nothing_happens,
    directories_that_will_not_do_are_named,
    a_failure_of_criu_is_told_with_its_log,
    a_restore_that_fails_leaves_nothing,
    a_restore_whose_hook_fails_leaves_nothing,
    a_restore_that_is_killed_leaves_nothing_behind_delete,
    planted_links_do_not_lead_a_restore_out_of_the_root,
];

/// What counts, a number each few milliseconds, in a file of its tmpfs.
fn counting() -> Sandbox {
    let c = shell("i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo $i >/tmp/n; sleep 0.02; done; exit 7");
    c.write_config();
    c
}

fn shell(script: &str) -> Sandbox {
    let mut c = Sandbox::new();
    c.busybox();
    c.mount(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
    c.args(&["sh", "-c", script]);
    c
}

#[track_caller]
fn started(c: &Sandbox) {
    c.write_config();
    c.keel(&["run", "--detach", &c.id]).ok();
}

fn images(c: &Sandbox) -> PathBuf {
    c.dir.join("images")
}

fn command(c: &Sandbox, verb: &str, flags: &[&str], id: &str) -> Command {
    let images = images(c);
    let mut args =
        vec![verb, "--image-path", images.to_str().unwrap(), "--work-path", c.dir.to_str().unwrap()];
    args.extend(flags);
    args.push(id);
    c.command(&args)
}

#[track_caller]
fn checkpoint(c: &Sandbox, flags: &[&str]) -> Output {
    c.execute(command(c, "checkpoint", flags, &c.id))
}

#[track_caller]
fn restore(c: &Sandbox, flags: &[&str]) -> Output {
    c.execute(command(c, "restore", &[&["--detach"], flags].concat(), &c.id))
}

/// How far the container `id` has counted.
#[track_caller]
fn count_of(c: &Sandbox, id: &str) -> u64 {
    let mut count = None;
    // The shell has truncated the file and not written it yet.
    eventually("there is a number", || {
        count = exec(c, id, &["cat", "/tmp/n"]).stdout.trim().parse().ok();
        count.is_some()
    });
    count.unwrap()
}

#[track_caller]
fn exec(c: &Sandbox, id: &str, args: &[&str]) -> Output {
    c.keel(&[&["exec", id], args].concat())
}

#[track_caller]
fn counts_on(c: &Sandbox, id: &str, from: u64) {
    let first = count_of(c, id);
    assert!(first >= from, "{first} after {from}");
    eventually("it counts", || count_of(c, id) > first + 3);
}

#[track_caller]
fn has_content(c: &Sandbox, path: &str, text: &str) {
    eventually(&format!("{path} holds {text:?}"), || exec(c, &c.id, &["cat", path]).stdout == text);
}

fn a_restored_container_goes_on_where_it_stood() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    c.set("/annotations/a", "b");
    started(&c);
    eventually("it has counted", || count_of(&c, &c.id) > 10);
    let created = c.state()["created"].clone();
    checkpoint(&c, &[]).ok();
    assert_eq!(c.left(), Vec::<String>::new());
    let pid_file = c.dir.join("pid");
    restore(&c, &["--pid-file", pid_file.to_str().unwrap()]).ok();
    counts_on(&c, &c.id, 10);
    let state = c.state();
    assert_eq!((&state["status"], &state["annotations"]["a"]), (&json!("running"), &json!("b")));
    assert_eq!(fs::read_to_string(pid_file).unwrap(), state["pid"].to_string());
    assert!(state["created"].as_str() > created.as_str());
    c.keel(&["pause", &c.id]).ok();
    assert_eq!(c.status(), "paused");
    c.keel(&["resume", &c.id]).ok();
    c.kill("KILL").ok();
    c.wait_stopped();
    c.delete().ok();
}

fn a_container_that_is_left_running_runs_on() {
    needs!(keel(), program("criu"));
    let c = counting();
    started(&c);
    let pid = c.pid();
    checkpoint(&c, &["--leave-running"]).ok();
    assert_eq!(c.pid(), pid);
    counts_on(&c, &c.id, 1);
}

fn a_paused_container_is_saved_and_stays_paused() {
    needs!(keel(), program("criu"));
    let c = counting();
    started(&c);
    c.keel(&["pause", &c.id]).ok();
    checkpoint(&c, &["--leave-running"]).ok();
    assert_eq!(c.status(), "paused");
    checkpoint(&c, &[]).ok();
    assert_eq!(c.left(), Vec::<String>::new());
    restore(&c, &[]).ok();
    counts_on(&c, &c.id, 1);
}

fn one_checkpoint_is_restored_twice() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    started(&c);
    checkpoint(&c, &[]).ok();
    restore(&c, &[]).ok();
    let (id, second) = (c.id.clone(), format!("{}-b", c.id));
    c.set("/linux/cgroupsPath", format!("/{id}/b"));
    c.write_config();
    c.execute(command(&c, "restore", &["--detach"], &second)).ok();
    counts_on(&c, &id, 1);
    counts_on(&c, &second, 1);
    let cgroup = format!("/proc/{}/cgroup", c.keel(&["state", &second]).json()["pid"]);
    assert!(fs::read_to_string(cgroup).unwrap().contains(&format!("/{id}/b\n")));
    c.keel(&["delete", "--force", &second]).ok();
}

fn a_restored_container_is_saved_again() {
    needs!(keel(), program("criu"));
    let c = counting();
    started(&c);
    for _ in 0..2 {
        let count = count_of(&c, &c.id);
        checkpoint(&c, &[]).ok();
        restore(&c, &[]).ok();
        counts_on(&c, &c.id, count);
    }
}

fn a_checkpoint_fits_another_bundle() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    c.mount(json!({"destination": "/data", "source": "data", "options": ["rbind"]}));
    fs::create_dir(c.bundle().join("data")).unwrap();
    started(&c);
    checkpoint(&c, &[]).ok();
    fs::rename(c.bundle(), c.dir.join("other")).unwrap();
    fs::create_dir(c.bundle()).unwrap();
    fs::write(c.dir.join("other/data/f"), "moved").unwrap();
    // As in a root that no container has had yet.
    fs::remove_dir(c.dir.join("other/rootfs/data")).unwrap();
    restore(&c, &["--bundle", c.dir.join("other").to_str().unwrap()]).ok();
    counts_on(&c, &c.id, 1);
    has_content(&c, "/data/f", "moved");
    assert_eq!(c.state()["bundle"], json!(c.dir.join("other")));
}

fn bind_mounts_show_what_the_host_has() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    // Behind a link, which the container's own look-ups follow.
    c.symlink("/srv", "link");
    let (dir, file) = (c.host_dir("dir"), c.host_file("file", "old"));
    c.mount(json!({"destination": "/link/dir", "source": dir, "options": ["bind", "ro"]}));
    c.mount(json!({"destination": "/etc/file", "source": file, "options": ["bind"]}));
    c.mount(json!({"destination": "/tmp/inner", "source": dir, "options": ["bind"]}));
    started(&c);
    exec(&c, &c.id, &["touch", "/tmp/inner/made"]).ok();
    checkpoint(&c, &[]).ok();
    fs::write(dir.join("f"), "in").unwrap();
    fs::write(&file, "new").unwrap();
    restore(&c, &[]).ok();
    has_content(&c, "/link/dir/f", "in");
    has_content(&c, "/etc/file", "new");
    has_content(&c, "/tmp/inner/made", "");
    assert!(exec(&c, &c.id, &["touch", "/link/dir/x"]).stderr.contains("Read-only"));
}

fn mounts_below_a_recursive_bind_come_along() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    let dir = c.host_dir("dir");
    let sub = c.host_dir("dir/sub");
    let tmpfs = || mount(Some("tmpfs"), &sub, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    c.mount(json!({"destination": "/data", "source": dir, "options": ["rbind"]}));
    tmpfs();
    started(&c);
    checkpoint(&c, &[]).ok();
    umount2(&sub, MntFlags::MNT_DETACH).unwrap();
    tmpfs();
    fs::write(sub.join("f"), "new").unwrap();
    let restored = restore(&c, &[]);
    umount2(&sub, MntFlags::MNT_DETACH).unwrap();
    restored.ok();
    has_content(&c, "/data/sub/f", "new");
}

fn a_terminal_goes_on_behind_a_new_master() {
    needs!(keel(), program("criu"));
    let mut c = shell("read a; echo first $a; read b; echo second $b; sleep 1000");
    c.set("/process/terminal", true).write_config();
    let path = c.dir.join("console.sock");
    let socket = path.to_str().unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let run = c.spawn(c.command(&["run", "--detach", "--console-socket", socket, &c.id]));
    let mut master = File::from(receive(&listener).remove(0));
    run.wait().ok();
    master.write_all(b"one\n").unwrap();
    read_until(&mut master, "first one");
    checkpoint(&c, &[]).ok();
    drop(master);
    let restore = c.spawn(command(&c, "restore", &["--detach", "--console-socket", socket], &c.id));
    let mut master = File::from(receive(&listener).remove(0));
    restore.wait().ok();
    master.write_all(b"two\n").unwrap();
    read_until(&mut master, "second two");
}

#[track_caller]
fn read_until(from: &mut File, text: &str) {
    let (mut seen, mut chunk) = (String::new(), [0; 4096]);
    while !seen.contains(text) {
        assert!(readable(&*from), "no {text:?} in {seen:?}");
        let n = from.read(&mut chunk).unwrap();
        assert_ne!(n, 0, "no {text:?} in {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
}

fn a_network_namespace_is_joined_again() {
    needs!(keel(), program("criu"), program("unshare"));
    let mut c = counting();
    let holder = crate::sandbox::Running::of(
        Command::new("unshare").args(["--net", "sleep", "1000"]).stdin(Stdio::null()),
    );
    let path = format!("/proc/{}/ns/net", holder.pid());
    let namespace = || fs::read_link(&path).unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    eventually("it has its own network", || namespace() != own);
    c.without_namespace("network").set("/linux/namespaces/-", json!({"type": "network", "path": path}));
    started(&c);
    checkpoint(&c, &[]).ok();
    restore(&c, &[]).ok();
    counts_on(&c, &c.id, 1);
    assert_eq!(fs::read_link(format!("/proc/{}/ns/net", c.pid())).unwrap(), namespace());
}

fn a_network_namespace_is_set_up_as_by_create() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    c.set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "77", "kernel.msgmax": "5000"}));
    started(&c);
    checkpoint(&c, &[]).ok();
    restore(&c, &[]).ok();
    has_content(&c, "/proc/sys/net/ipv4/ip_unprivileged_port_start", "77\n");
    has_content(&c, "/proc/sys/kernel/msgmax", "5000\n");
    has_content(&c, "/sys/class/net/lo/operstate", "unknown\n");
}

fn an_established_connection_goes_on() {
    needs!(keel(), program("criu"));
    let c = shell(
        // A sleep ends at a restore: criu lets a call that it has interrupted give EINTR.
        "busybox tail -f /dev/null | busybox nc -l -p 7 >/tmp/got & sleep 0.2
         (while [ ! -e /tmp/go ]; do sleep 0.02; done; echo over) | busybox nc 127.0.0.1 7 & touch /tmp/up; wait",
    );
    started(&c);
    has_content(&c, "/tmp/up", "");
    // The client; its server listens by IPv6.
    eventually("they are connected", || exec(&c, &c.id, &["cat", "/proc/net/tcp"]).stdout.contains(" 01 "));
    let error = checkpoint(&c, &[]).fails();
    assert!(error.contains("--tcp-established") && error.contains("/dump.log"), "{error}");
    checkpoint(&c, &["--tcp-established"]).ok();
    restore(&c, &["--tcp-established"]).ok();
    exec(&c, &c.id, &["touch", "/tmp/go"]).ok();
    has_content(&c, "/tmp/got", "over\n");
}

/// A container that holds a lock; and who else tries to take it.
#[track_caller]
fn with_lock() -> Sandbox {
    let mut c = Sandbox::new();
    c.mount(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
    c.acts("lock /tmp/lock ; pause").write_config();
    quietly(&c, c.command(&["run", "--detach", &c.id]));
    eventually("it is locked", || try_lock(&c) == "EAGAIN\n");
    c
}

/// Not into a file, which criu would want to be as long as it was.
#[track_caller]
fn quietly(c: &Sandbox, command: Command) {
    let null = File::options().write(true).open("/dev/null").unwrap();
    c.spawn_to(command, null.into()).wait().ok();
}

#[track_caller]
fn try_lock(c: &Sandbox) -> String {
    exec(c, &c.id, &["/payload", "lock", "/tmp/lock"]).stdout
}

fn a_file_lock_is_kept() {
    needs!(keel(), program("criu"));
    let c = with_lock();
    checkpoint(&c, &["--file-locks"]).ok();
    quietly(&c, command(&c, "restore", &["--detach", "--file-locks"], &c.id));
    assert_eq!(try_lock(&c), "EAGAIN\n");
}

fn memory_is_saved_in_two_steps() {
    needs!(keel(), program("criu"));
    let c = counting();
    started(&c);
    let first = c.dir.join("first");
    let id = c.id.as_str();
    c.keel(&["checkpoint", "--pre-dump", "--image-path", first.to_str().unwrap(), id]).ok();
    counts_on(&c, id, 1);
    assert!(first.join("pages-1.img").exists() && !first.join("core-1.img").exists());
    let count = count_of(&c, id);
    checkpoint(&c, &["--parent-path", "../first"]).ok();
    assert_eq!(fs::read_link(images(&c).join("parent")).unwrap(), Path::new("../first"));
    restore(&c, &[]).ok();
    counts_on(&c, id, count);
}

fn lazy_pages_are_announced_and_served() {
    needs!(keel(), program("criu"), program("sh"));
    let mut c = counting();
    started(&c);
    let count = count_of(&c, &c.id);
    // A port of this test's alone.
    let port = (20000 + std::process::id() % 10000).to_string();
    let dump = command(
        &c,
        "checkpoint",
        &["--lazy-pages", "--status-fd", "4", "--page-server", &format!("127.0.0.1:{port}")],
        &c.id,
    );
    let (ready, writer) = nix::unistd::pipe().unwrap();
    let mut ready = File::from(ready);
    let mut behind = Command::new("sh");
    behind.args(["-c", "exec \"$@\" 4>&0 </dev/null", "sh"]).arg(dump.get_program()).args(dump.get_args());
    behind.env_clear().envs(dump.get_envs().filter_map(|(key, value)| Some((key, value?)))).stdin(writer);
    let dump = c.spawn(behind);
    assert!(readable(&ready));
    let mut bytes = Vec::new();
    ready.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [0]);

    let mut pages = Command::new("criu");
    pages.args(["lazy-pages", "--page-server", "--address", "127.0.0.1", "--port", &port]).arg("-D");
    pages.arg(images(&c)).arg("-W").arg(&c.dir).args(["-o", "pages.log", "--status-fd", "1"]);
    let (ready, writer) = nix::unistd::pipe().unwrap();
    let pages = c.spawn_to(pages, writer);
    assert!(readable(&ready));
    // The container is there until its last page has been asked for.
    let id = format!("{}-b", c.id);
    c.set("/linux/cgroupsPath", format!("/{id}")).write_config();
    c.execute(command(&c, "restore", &["--detach", "--lazy-pages"], &id)).ok();
    counts_on(&c, &id, count);
    assert_eq!((pages.wait().code, dump.wait().code), (0, 0));
    assert_eq!(c.containers(), [id.as_str()]);
    c.keel(&["delete", "--force", &id]).ok();
}

fn restore_in_the_foreground_gives_the_exit_code() {
    needs!(keel(), program("criu"));
    let c = counting();
    started(&c);
    checkpoint(&c, &[]).ok();
    let restored = c.spawn(command(&c, "restore", &[], &c.id));
    eventually("it runs", || c.containers().len() == 1 && c.status() == "running");
    exec(&c, &c.id, &["touch", "/tmp/stop"]).ok();
    assert_eq!(restored.wait().code, 7);
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_pipe_of_the_callers_takes_the_place_of_the_old() {
    needs!(keel(), program("criu"));
    let c = shell("while [ ! -e /tmp/go ]; do sleep 0.02; done; echo went on; sleep 1000");
    c.write_config();
    let (old, writer) = nix::unistd::pipe().unwrap();
    let output = |command: Command, writer: OwnedFd| c.spawn_to(command, writer).wait().ok();
    output(c.command(&["run", "--detach", &c.id]), writer);
    checkpoint(&c, &[]).ok();
    drop(old);
    let (new, writer) = nix::unistd::pipe().unwrap();
    output(command(&c, "restore", &["--detach"], &c.id), writer);
    exec(&c, &c.id, &["touch", "/tmp/go"]).ok();
    read_until(&mut File::from(new), "went on\n");
}

fn a_stream_that_was_dev_null_stays_that() {
    needs!(keel(), program("criu"));
    let c = counting();
    started(&c);
    let count = count_of(&c, &c.id);
    checkpoint(&c, &[]).ok();
    // The caller's standard input then is none of the container's: criu could not set its position.
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let mut again = command(&c, "restore", &["--detach"], &c.id);
    again.stdin(pipe);
    c.execute(again).ok();
    counts_on(&c, &c.id, count);
    assert_eq!(exec(&c, &c.id, &["/bin/busybox", "readlink", "/proc/1/fd/0"]).ok().stdout, "/dev/null\n");
}

fn hooks_run_as_in_create_and_delete() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    let script = c.script("hook", "echo $1 $(cat) >>$D/hooks");
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        if kind != "createContainer" && kind != "startContainer" {
            c.set(&format!("/hooks/{kind}"), json!([{"path": script, "args": ["hook", kind]}]));
        }
    }
    started(&c);
    let hooks = || {
        let text = fs::read_to_string(c.dir.join("hooks")).unwrap();
        fs::remove_file(c.dir.join("hooks")).unwrap();
        let lines = text.lines().map(|line| line.split_once(' ').unwrap());
        lines.map(|(kind, state)| (kind.to_owned(), state.to_owned())).collect::<Vec<_>>()
    };
    let kinds = |hooks: &[(String, String)]| hooks.iter().map(|(kind, _)| kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&hooks()), ["prestart", "createRuntime", "poststart"]);
    checkpoint(&c, &[]).ok();
    assert_eq!(kinds(&hooks()), ["poststop"]);
    restore(&c, &[]).ok();
    let ran = hooks();
    assert_eq!(kinds(&ran), ["prestart", "createRuntime"]);
    assert!(ran[1].1.contains(&format!("\"pid\":{},", c.pid())), "{ran:?}");
    c.delete_force().ok();
    assert_eq!(kinds(&hooks()), ["poststop"]);
}

fn a_restored_container_is_limited() {
    needs!(keel(), program("criu"), controller("pids"));
    let mut c = counting();
    c.set("/linux/resources/pids", json!({"limit": 40}));
    c.set("/process/capabilities/bounding/-", "CAP_MKNOD");
    started(&c);
    checkpoint(&c, &[]).ok();
    restore(&c, &[]).ok();
    assert_eq!(fs::read_to_string(c.cgroup().join("pids.max")).unwrap(), "40\n");
    let processes = fs::read_to_string(c.cgroup().join("cgroup.procs")).unwrap();
    assert!(processes.lines().any(|pid| pid == c.pid().to_string()), "{processes}");
    let made = exec(
        &c,
        &c.id,
        &[
            "--cap",
            "CAP_MKNOD",
            "/payload",
            "mknod",
            "c",
            "/tmp/kmsg",
            "1",
            "11",
            ";",
            "open",
            "r",
            "/tmp/kmsg",
        ],
    );
    assert_eq!(made.lines(), ["ok", "EPERM"]);
}

fn a_restored_container_is_in_its_namespaces() {
    needs!(keel(), program("criu"));
    let c = counting();
    started(&c);
    checkpoint(&c, &[]).ok();
    restore(&c, &[]).ok();
    let exec = exec(&c, &c.id, &["/payload", "report"]).json();
    for kind in ["pid", "net", "mnt", "ipc", "uts", "cgroup", "time"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let (own, its) = (link("self"), link(&c.pid().to_string()));
        assert_ne!(own, its, "{kind}");
        assert_eq!(exec["namespaces"][kind], json!(its), "{kind}");
    }
    assert_eq!(exec["uname"]["hostname"], "sandbox");
}

fn a_checkpoint_needs_processes_that_run() {
    needs!(keel());
    let mut c = Sandbox::new();
    let error = checkpoint(&c, &[]).fails();
    assert!(error.contains(&format!("container \"{}\" does not exist", c.id)), "{error}");
    c.acts("exit 0").created();
    for status in ["created", "stopped"] {
        let error = checkpoint(&c, &[]).fails();
        assert!(error.contains(&format!("container cannot be checkpointed in {status} state")), "{error}");
        if status == "created" {
            c.start().ok();
            c.wait_stopped();
        }
    }
    assert!(!images(&c).exists());
}

fn a_user_namespace_is_not_saved() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.user_namespace().running();
    assert!(checkpoint(&c, &[]).fails().contains("none of the devices of /dev can be made"));
    assert_eq!(c.status(), "running");
    assert!(restore(&c, &[]).fails().contains("with a user namespace cannot be saved and restored"));
}

fn without_criu_nothing_happens() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.running();
    let mut dump = command(&c, "checkpoint", &[], &c.id);
    dump.env("PATH", "/nowhere:/nonexistent");
    let error = c.execute(dump).fails();
    assert!(
        error.contains("criu is not installed: no directory of PATH has it (/nowhere:/nonexistent)"),
        "{error}"
    );
    assert_eq!(c.status(), "running");
    c.delete_force().ok();

    fs::write(images(&c).join("descriptors.json"), "[]").unwrap();
    let mut load = command(&c, "restore", &["--detach"], &c.id);
    load.env("PATH", "/nowhere");
    let error = c.execute(load).fails();
    assert!(error.contains("criu is not installed"), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn directories_that_will_not_do_are_named() {
    needs!(keel());
    let mut c = Sandbox::new();
    c.running();
    let file = c.host_file("file", "");
    let file = file.to_str().unwrap();
    let dump = |flags: &[&str]| c.execute(command(&c, "checkpoint", flags, &c.id)).fails();
    assert!(dump(&["--image-path", file]).contains(&format!("create image directory {file}: File exists")));
    assert!(dump(&["--work-path", file]).contains(&format!("open work directory {file}: File exists")));
    assert!(dump(&["--parent-path", "/"]).contains("image directory /: it must be relative"));
    assert!(dump(&["--parent-path", "../x"]).contains("open parent image directory ../x: No such file"));
    assert!(dump(&["--lazy-pages", "--status-fd", "77"]).contains("--status-fd 77: Bad file number"));
    c.delete_force().ok();
    let load = |flags: &[&str]| c.execute(command(&c, "restore", flags, &c.id)).fails();
    assert!(
        load(&["--image-path", "/nonexistent"]).contains("open image directory /nonexistent: No such file")
    );
    assert!(load(&[]).contains("the images have no descriptors.json"));
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_failure_of_criu_is_told_with_its_log() {
    needs!(keel(), program("criu"));
    let c = with_lock();
    let error = checkpoint(&c, &[]).fails();
    assert!(error.contains("criu failed: ") && error.contains("--file-locks"), "{error}");
    assert!(error.contains(&format!("(its log is {}/dump.log)", c.dir.display())), "{error}");
    assert_eq!(c.status(), "running");
}

fn a_restore_that_fails_leaves_nothing() {
    needs!(keel(), program("criu"));
    let c = counting();
    started(&c);
    checkpoint(&c, &[]).ok();
    let pid_file = c.dir.join("pid");
    // At the very beginning, and when there are processes and mounts.
    for image in ["inventory.img", "mm-1.img"] {
        let image = images(&c).join(image);
        let bytes = fs::read(&image).unwrap();
        fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
        let error = restore(&c, &["--pid-file", pid_file.to_str().unwrap()]).fails();
        assert!(error.contains("criu failed: ") && error.contains("/restore.log)"), "{error}");
        assert_eq!(c.left(), Vec::<String>::new(), "{error}");
        assert!(!pid_file.exists());
        fs::write(&image, &bytes).unwrap();
    }
    restore(&c, &[]).ok();
    let error = restore(&c, &[]).fails();
    assert!(error.contains("already exists"), "{error}");
    counts_on(&c, &c.id, 1);
}

fn a_restore_whose_hook_fails_leaves_nothing() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    started(&c);
    checkpoint(&c, &[]).ok();
    let script = c.script("hook", "echo no >&2; exit 1");
    c.set("/hooks/createRuntime", json!([{"path": script}])).write_config();
    let error = restore(&c, &[]).fails();
    assert!(error.contains("exited with status 1: no [config.json /hooks/createRuntime/0]"), "{error}");
    assert_eq!(c.left(), Vec::<String>::new());
}

fn a_restore_that_is_killed_leaves_nothing_behind_delete() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    started(&c);
    checkpoint(&c, &[]).ok();
    let script = c.script("hook", "kill -KILL $PPID");
    c.set("/hooks/createRuntime", json!([{"path": script}])).write_config();
    assert_eq!(restore(&c, &[]).code, 128 + 9);
    c.delete_force().ok();
    eventually("all has ended", || c.left().is_empty());
}

fn planted_links_do_not_lead_a_restore_out_of_the_root() {
    needs!(keel(), program("criu"));
    let mut c = counting();
    let dir = c.host_dir("dir");
    c.mount(json!({"destination": "/data/deep", "source": dir, "options": ["bind"]}));
    started(&c);
    checkpoint(&c, &[]).ok();
    let decoy = c.host_dir("decoy");
    fs::remove_dir_all(c.rootfs().join("data")).unwrap();
    c.symlink(decoy.to_str().unwrap(), "data");
    // Whether criu then finds the mount's place or not, the host has nothing new.
    restore(&c, &[]);
    assert_eq!(fs::read_dir(&decoy).unwrap().count(), 0);
    assert_eq!(c.host_mounts(), Vec::<String>::new());
    c.delete_force().ok();
}
