//! The integration tests: keel, as built, against the real kernel; one file for each facility.
//!
//! `KEEL=/usr/bin/crun cargo test --test integration` is the control: what keel does as others do must pass there too.
//! With STRICT=1 a test that has to be skipped is a failure, unless MAY_SKIP has a line with just its reason.
#![deny(unsafe_code)]

#[path = "../../benches/profile/mod.rs"]
mod engine_profile;
#[path = "../harness/mod.rs"]
mod harness;
mod payload;
mod sandbox;
mod swap;

mod capabilities;
mod cgroup;
mod cgroup_disabled;
mod cgroup_mounts;
mod check;
mod checkpoint;
mod cli;
mod concurrency;
mod contract;
mod crash;
mod default_mounts;
mod delegation;
mod delete;
mod device_rules;
mod devices;
mod events;
mod exec;
mod exec_concurrency;
mod exec_errors;
mod exec_escape;
mod exec_process;
mod exec_process_file;
mod exec_terminal;
mod exec_user;
mod features;
mod hooks;
mod idmap;
mod keyring;
mod kill;
mod layers;
mod lifecycle;
mod limits;
mod limits_cpu;
mod limits_io;
mod limits_memory;
mod list;
mod log;
mod lsm;
mod manual;
mod memory_policy;
mod mount_options;
mod mounts;
mod names;
mod namespaces;
mod nested;
mod net_devices;
mod nginx;
mod notify;
mod oom;
mod paths;
mod pause;
mod personality;
mod process;
mod ps;
mod rdt;
mod rlimits;
mod root_mount;
mod rootfs;
mod rootless;
mod rootless_cgroup;
mod scheduling;
mod seccomp;
mod seccomp_libseccomp;
mod seccomp_notify;
mod spec;
mod state;
mod stdio_fds;
mod sysctl;
mod systemd;
mod systemd_units;
mod systemd_user;
mod terminal;
mod update;
mod user;
mod user_namespace;

use std::env;
use std::path::Path;
use std::process::ExitCode;

use harness::Test;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const TESTS: &[&[Test]] = &[
    lifecycle::TESTS,
    namespaces::TESTS,
    rootfs::TESTS,
    root_mount::TESTS,
    mounts::TESTS,
    mount_options::TESTS,
    default_mounts::TESTS,
    devices::TESTS,
    device_rules::TESTS,
    limits::TESTS,
    limits_memory::TESTS,
    limits_cpu::TESTS,
    limits_io::TESTS,
    pause::TESTS,
    ps::TESTS,
    events::TESTS,
    update::TESTS,
    cgroup::TESTS,
    cgroup_mounts::TESTS,
    cgroup_disabled::TESTS,
    delegation::TESTS,
    oom::TESTS,
    systemd::TESTS,
    systemd_units::TESTS,
    systemd_user::TESTS,
    paths::TESTS,
    sysctl::TESTS,
    names::TESTS,
    process::TESTS,
    user::TESTS,
    user_namespace::TESTS,
    idmap::TESTS,
    rootless::TESTS,
    rootless_cgroup::TESTS,
    nested::TESTS,
    rlimits::TESTS,
    capabilities::TESTS,
    scheduling::TESTS,
    memory_policy::TESTS,
    personality::TESTS,
    seccomp::TESTS,
    seccomp_notify::TESTS,
    seccomp_libseccomp::TESTS,
    lsm::TESTS,
    keyring::TESTS,
    layers::TESTS,
    hooks::TESTS,
    net_devices::TESTS,
    rdt::TESTS,
    terminal::TESTS,
    stdio_fds::TESTS,
    notify::TESTS,
    state::TESTS,
    exec::TESTS,
    exec_process::TESTS,
    exec_process_file::TESTS,
    exec_user::TESTS,
    exec_terminal::TESTS,
    exec_errors::TESTS,
    exec_escape::TESTS,
    exec_concurrency::TESTS,
    kill::TESTS,
    delete::TESTS,
    features::TESTS,
    list::TESTS,
    check::TESTS,
    spec::TESTS,
    checkpoint::TESTS,
    log::TESTS,
    cli::TESTS,
    contract::TESTS,
    manual::TESTS,
    crash::TESTS,
    concurrency::TESTS,
    nginx::TESTS,
];

/// Gives the host a user who has subordinate ids, as far as these tests see.
fn make_user() {
    let (user, name, (first, count)) = (sandbox::USER, sandbox::USER_NAME, sandbox::SUBIDS);
    let dir = env::temp_dir();
    for (file, line) in [
        ("passwd", format!("{name}:x:{user}:{user}::/nonexistent:/bin/sh")),
        ("group", format!("{name}:x:{user}:")),
        ("subuid", format!("{name}:{first}:{count}")),
        ("subgid", format!("{user}:{first}:{count}")),
    ] {
        let place = Path::new("/etc").join(file);
        if !place.exists() {
            // A host without the package of newuidmap, for which the tests ask.
            continue;
        }
        let text = std::fs::read_to_string(&place).expect("read a file of users");
        let copy = dir.join(format!("keel-{file}-{}", std::process::id()));
        std::fs::write(&copy, format!("{text}{line}\n")).expect("write a file of users");
        let bound = mount(Some(&copy), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        std::fs::remove_file(&copy).expect("remove what is bound");
        bound.expect("bind a file of users");
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if Path::new(&args[0]).file_name().is_some_and(|name| name == "payload") {
        payload::main(&args[1..]);
    }
    // Whatever a broken runtime mounts or names, it does not reach the host.
    if sandbox::root().is_ok() {
        let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
        unshare(own).expect("unshare namespaces");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make all mounts private");
        make_user();
        // Others look for cgroup2 there only.
        if let (false, Some(cgroups)) = (sandbox::is_keel(), sandbox::cgroup_root()) {
            let bind = mount(Some(&cgroups), "/sys/fs/cgroup", None::<&str>, MsFlags::MS_BIND, None::<&str>);
            bind.expect("bind cgroup2 to /sys/fs/cgroup");
        }
    }
    harness::run("integration", TESTS, sandbox::root).exit_code()
}
