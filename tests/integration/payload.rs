//! The program in the container: it prints what it sees as JSON, or does small acts asked for by its arguments.
//!
//! It is the test binary itself, called by the name `payload`: static, so that it runs in an empty rootfs.
//! Acts are separated by an argument `;` and print one line each, unless said otherwise:
//!
//! ```text
//! report                    one JSON object: everything that a process can see of itself
//! stat PATH                 JSON: type, mode, uid, gid, rdev; or {"error": "ENOENT"}
//! cat PATH                  the file's bytes
//! ls PATH                   the sorted names, separated by blanks
//! write PATH TEXT           ok, or the errno's name; the file must exist
//! create PATH TEXT          ok, or the errno's name
//! open r|w PATH             ok, or the errno's name
//! mknod c|b PATH MAJ MIN    ok, or the errno's name
//! mkdir PATH                ok, or the errno's name
//! bind FROM TO              mount(2) MS_BIND; ok, or the errno's name
//! remount-rw PATH           mount(2) MS_REMOUNT|MS_BIND without MS_RDONLY; ok, or the errno's name
//! lock PATH                 flock(2) LOCK_EX of a file that is made, held to the end; ok, or the errno's name
//! sethostname NAME          ok, or the errno's name
//! echo TEXT                 TEXT
//! line                      one line read from stdin, echoed
//! env NAME                  the variable's value, or nothing
//! notify TEXT               sends TEXT to $NOTIFY_SOCKET; ok, or the errno's name
//! await SIGNAL...           prints "waiting", then the name of the first of these signals that arrives
//! size                      rows and columns of the terminal on stdin
//! spawn N                   starts N processes that pause; ok, or the errno's name and how many came before
//! child ACTS                a child does the acts that follow; ok, its exit code, or SIG and the signal's number
//! memory N                  touches N MiB, which stay; ok
//! huge N                    maps and touches N huge pages; ok, or the errno's name
//! burn MS                   keeps a CPU busy for so long; ok
//! count PATH                writes 1, 2, 3 ... into a file for ever
//! reopen r|w PATH           opens it until there is a file /stop or the outcome changes; "ok", or the errno's name
//! disk r|w PATH SIZE N      N direct reads or writes of SIZE bytes; the milliseconds they take, or the errno's name
//! hunt PATH                 opens what other processes run, as /proc/PID/exe, until PATH exists; then writes to all that
//!                           it caught; prints how many it caught, and how many it wrote to
//! run PATH ARG...           executes another program; takes all arguments that follow
//! pause                     for ever
//! syscall N ARG...          makes the system call of this number; what it returns, or the errno's name
//! thread N                  the same in a thread: "returned", or "killed" if the thread is gone for it
//! trap N                    the same with a handler of SIGSYS: "trapped", or "returned"
//! exit CODE
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod, umask};
use nix::unistd;
use serde_json::{Value, json};

pub fn main(args: &[String]) -> ! {
    for act in args.split(|arg| arg == ";") {
        let words: Vec<&str> = act.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["report"] => say(report()),
            ["stat", path] => say(stat(Path::new(path))),
            ["cat", path] => match fs::read(path) {
                Ok(bytes) => io::stdout().write_all(&bytes).expect("write to stdout"),
                Err(e) => say(errno_name(&e)),
            },
            ["ls", path] => {
                say(fs::read_dir(path).map_or_else(|e| errno_name(&e), |_| names(path).join(" ")))
            }
            ["write", path, text] => answer(
                OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(text.as_bytes())),
            ),
            ["create", path, text] => answer(fs::write(path, text)),
            ["open", "r", path] => answer(File::open(path)),
            ["open", "w", path] => answer(OpenOptions::new().write(true).open(path)),
            ["mknod", kind, path, major, minor] => {
                let kind = if *kind == "c" { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
                let device = makedev(number(major), number(minor));
                answer(mknod(*path, kind, Mode::from_bits_truncate(0o600), device).map_err(io::Error::from))
            }
            ["mkdir", path] => answer(fs::create_dir(path)),
            ["bind", from, to] => {
                let done = mount(Some(*from), *to, None::<&str>, MsFlags::MS_BIND, None::<&str>);
                answer(done.map_err(io::Error::from))
            }
            ["remount-rw", path] => {
                let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
                let done = mount(None::<&str>, *path, None::<&str>, flags, None::<&str>);
                answer(done.map_err(io::Error::from))
            }
            ["lock", path] => answer(File::create(path).and_then(|file| {
                let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
                // It ends with its descriptor.
                lock.map(std::mem::forget).map_err(|(_, errno)| errno.into())
            })),
            ["sethostname", name] => answer(unistd::sethostname(name).map_err(io::Error::from)),
            ["echo", text] => say(text),
            ["line"] => say(line()),
            ["env", name] => say(std::env::var(name).unwrap_or_default()),
            ["notify", text] => answer(notify(text)),
            ["await", signals @ ..] => say(await_signal(signals)),
            ["size"] => {
                say(raw::window_size(0).map_or("none".into(), |(rows, columns)| format!("{rows} {columns}")))
            }
            ["spawn", count] => spawn(number(count)),
            ["child", acts @ ..] => say(child(acts)),
            ["memory", mib] => memory(number(mib) as usize),
            ["huge", pages] => answer(raw::touch_huge_pages(number(pages) as usize)),
            ["burn", ms] => burn(Duration::from_millis(number(ms))),
            ["count", path] => count(path),
            ["reopen", access, path] => say(reopen(access, path)),
            ["disk", access, path, size, times] => {
                let took = disk(access, path, number(size) as usize, number(times));
                say(took.map_or_else(|e| errno_name(&e), |took| took.as_millis().to_string()));
            }
            ["hunt", end] => say(hunt(Path::new(end))),
            ["run", program, args @ ..] => {
                let error = Command::new(program).args(args).exec();
                say(errno_name(&error));
            }
            ["pause"] => loop {
                unistd::pause();
            },
            ["syscall", words @ ..] => {
                let called = raw::syscall(&words.iter().map(|word| number(word)).collect::<Vec<_>>());
                say(called.map_or_else(|e| errno_name(&e), |returned| returned.to_string()));
            }
            ["thread", call] => say(thread(number(call))),
            ["trap", call] => say(raw::trap(number(call))),
            ["exit", code] => std::process::exit(number(code) as i32),
            unknown => {
                eprintln!("payload: unknown act {unknown:?}");
                std::process::exit(99);
            }
        }
    }
    std::process::exit(0)
}

fn say(what: impl std::fmt::Display) {
    println!("{what}");
    io::stdout().flush().expect("write to stdout");
}

fn answer<T>(result: io::Result<T>) {
    say(result.map_or_else(|e| errno_name(&e), |_| "ok".into()));
}

fn errno_name(error: &io::Error) -> String {
    error.raw_os_error().map_or(error.to_string(), |e| format!("{:?}", Errno::from_raw(e)))
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("payload: {text} is not a number"))
}

fn line() -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while io::stdin().read(&mut byte).is_ok_and(|n| n == 1) && byte[0] != b'\n' {
        bytes.push(byte[0]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A thread that the kernel has killed cannot be joined: the standard library waits for what it returns.
fn thread(call: u64) -> &'static str {
    let thread = std::thread::spawn(move || raw::syscall(&[call]).is_ok());
    while names("/proc/self/task").len() > 1 {
        // Not sched_yield(2), which tests deny.
        std::hint::spin_loop();
    }
    if thread.is_finished() { "returned" } else { "killed" }
}

fn notify(text: &str) -> io::Result<usize> {
    let path = std::env::var("NOTIFY_SOCKET").map_err(|_| io::Error::other("no NOTIFY_SOCKET"))?;
    UnixDatagram::unbound()?.send_to(text.as_bytes(), path)
}

#[allow(clippy::zombie_processes, reason = "they live as long as the container")]
fn spawn(count: u64) {
    for made in 0..count {
        if let Err(e) = Command::new("/payload").arg("pause").spawn() {
            return say(format_args!("{} after {made}", errno_name(&e)));
        }
    }
    say("ok");
}

fn child(acts: &[&str]) -> String {
    let status = Command::new("/payload").args(acts).status().expect("run /payload");
    match (status.code(), status.signal()) {
        (Some(0), _) => "ok".into(),
        (Some(code), _) => code.to_string(),
        (None, signal) => format!("SIG{}", signal.expect("a signal")),
    }
}

const PAGE: usize = 4096; // bytes

fn memory(mib: usize) {
    let bytes = vec![0_u8; mib << 20].leak();
    for page in bytes.chunks_mut(PAGE) {
        page[0] = 1;
    }
    say("ok");
}

fn burn(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
    say("ok");
}

fn count(path: &str) {
    let file = File::create(path).expect("create a file");
    for n in 1_u64.. {
        file.write_all_at(&n.to_ne_bytes(), 0).expect("write a number");
    }
}

fn reopen(access: &str, path: &str) -> String {
    let mut options = OpenOptions::new();
    options.read(access == "r").write(access == "w");
    let outcome = || options.open(path).map_or_else(|e| errno_name(&e), |_| "ok".into());
    let first = outcome();
    loop {
        let last = outcome();
        if last != first || Path::new("/stop").exists() {
            return last;
        }
    }
}

fn disk(access: &str, path: &str, size: usize, times: u64) -> io::Result<Duration> {
    let mut options = OpenOptions::new();
    let file = options.read(access == "r").write(access == "w").custom_flags(libc::O_DIRECT).open(path)?;
    let mut bytes = vec![0; size + PAGE];
    // The device takes whole pages only.
    let aligned = bytes.as_ptr().align_offset(PAGE);
    let block = &mut bytes[aligned..aligned + size];
    let start = Instant::now();
    for n in 0..times {
        let offset = n * size as u64;
        if access == "r" { file.read_exact_at(block, offset)? } else { file.write_all_at(block, offset)? }
    }
    Ok(start.elapsed())
}

/// As the exploits of CVE-2019-5736 did it, which kept the runtime's file open until nobody ran it any more.
fn hunt(end: &Path) -> String {
    say("hunting");
    let own = fs::metadata("/proc/self/exe").expect("stat /proc/self/exe").ino();
    let mut caught = Vec::new();
    while !end.exists() {
        for pid in names("/proc").iter().filter(|name| name.parse().is_ok_and(|pid: u32| pid > 1)) {
            let Ok(exe) = File::open(format!("/proc/{pid}/exe")) else { continue };
            // Some are enough, and there are 1024 descriptors.
            if caught.len() < 500 && exe.metadata().is_ok_and(|meta| meta.ino() != own) {
                caught.push(exe);
            }
        }
    }
    let writes = |exe: &&File| {
        let path = format!("/proc/self/fd/{}", exe.as_raw_fd());
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        // EPERM, EINVAL: it was worth trying.
        let _ = mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>);
        OpenOptions::new().write(true).open(path).is_ok_and(|mut file| file.write_all(b"overwritten").is_ok())
    };
    format!("caught {} wrote {}", caught.len(), caught.iter().filter(writes).count())
}

fn await_signal(names: &[&str]) -> String {
    let mut set = SigSet::empty();
    for name in names {
        set.add(format!("SIG{name}").parse::<Signal>().expect("a signal's name"));
    }
    set.thread_block().expect("block signals");
    say("waiting");
    set.wait().expect("sigwait").as_str().trim_start_matches("SIG").to_owned()
}

/// Everything that a process can see of itself. What needs /proc is null where there is none.
fn report() -> Value {
    let status = status();
    let get = |key: &str| status.get(key).cloned();
    json!({
        "pid": std::process::id(),
        "ppid": unistd::getppid().as_raw(),
        "sid": unistd::getsid(None).map_or(-1, |pid| pid.as_raw()),
        "pgrp": unistd::getpgrp().as_raw(),
        "uid": ids(get("Uid")),
        "gid": ids(get("Gid")),
        "groups": unistd::getgroups().map(|gids| gids.iter().map(|g| g.as_raw()).collect::<Vec<_>>()).ok(),
        "umask": format!("{:04o}", umask(Mode::empty()).bits()),
        "cwd": std::env::current_dir().map(|path| path.display().to_string()).ok(),
        "env": std::env::vars().collect::<BTreeMap<_, _>>(),
        "environ": list0(fs::read("/proc/self/environ").ok()),
        "argv": list0(fs::read("/proc/self/cmdline").ok()),
        "capabilities": {
            "effective": capabilities(get("CapEff")),
            "permitted": capabilities(get("CapPrm")),
            "inheritable": capabilities(get("CapInh")),
            "bounding": capabilities(get("CapBnd")),
            "ambient": capabilities(get("CapAmb")),
        },
        "noNewPrivileges": get("NoNewPrivs").map(|v| v == "1"),
        "seccomp": get("Seccomp"),
        "seccompFilters": get("Seccomp_filters"),
        "threads": get("Threads"),
        "cpus": get("Cpus_allowed_list"),
        "memoryNodes": get("Mems_allowed_list"),
        "fds": links("/proc/self/fd"),
        "namespaces": links("/proc/self/ns"),
        "rlimits": rlimits(),
        "mounts": mounts(),
        "uname": raw::uname(),
        "personality": text("/proc/self/personality"),
        "oomScoreAdj": text("/proc/self/oom_score_adj"),
        "label": text("/proc/self/attr/current"),
        "cgroup": text("/proc/self/cgroup"),
        "timeOffsets": text("/proc/self/timens_offsets"),
        "keyring": raw::session_keyring(),
        "scheduler": raw::scheduler(),
        "ioPriority": raw::io_priority(),
        "memoryPolicy": raw::memory_policy(),
        "dev": names("/dev").into_iter().map(|n| (n.clone(), stat(&Path::new("/dev").join(n)))).collect::<BTreeMap<_, _>>(),
        "root": names("/"),
        "interfaces": names("/sys/class/net"),
        "tty": Vec::from([0, 1, 2].map(raw::is_tty)),
        "controllingTty": File::open("/dev/tty").is_ok(),
        "foreground": raw::foreground_group(0),
    })
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end_matches(['\n', '\0']).to_owned())
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn status() -> BTreeMap<String, String> {
    let text = text("/proc/self/status").unwrap_or_default();
    text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.into(), v.trim().into())).collect()
}

/// Real, effective, saved and file-system id.
fn ids(line: Option<String>) -> Value {
    line.map_or(Value::Null, |line| line.split_whitespace().map(number).collect::<Vec<_>>().into())
}

fn capabilities(hex: Option<String>) -> Option<Vec<String>> {
    let set = u64::from_str_radix(&hex?, 16).ok()?;
    let mut names: Vec<_> =
        caps::all().into_iter().filter(|c| set & (1 << c.index()) != 0).map(|c| c.to_string()).collect();
    names.sort();
    Some(names)
}

/// The strings of a file whose strings end in NUL.
fn list0(bytes: Option<Vec<u8>>) -> Option<Vec<String>> {
    let bytes = bytes?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.split_terminator('\0').map(str::to_owned).collect())
}

/// Each link of a directory with its target; not the descriptor that reads the directory.
fn links(directory: &str) -> BTreeMap<String, String> {
    let targets = names(directory).into_iter().filter_map(|name| {
        let target = fs::read_link(Path::new(directory).join(&name)).ok()?.display().to_string();
        Some((name, target))
    });
    targets.collect()
}

fn stat(path: &Path) -> Value {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) => return json!({"error": errno_name(&e)}),
    };
    let kind = meta.file_type();
    let kind = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "link",
        () if kind.is_char_device() => "c",
        () if kind.is_block_device() => "b",
        () if kind.is_fifo() => "p",
        () if kind.is_socket() => "socket",
        () => "file",
    };
    let mut seen = json!({
        "type": kind,
        "mode": format!("{:04o}", meta.mode() & 0o7777),
        "uid": meta.uid(),
        "gid": meta.gid(),
    });
    if kind == "c" || kind == "b" {
        seen["rdev"] = json!(format!("{}:{}", major(meta.rdev()), minor(meta.rdev())));
    }
    if kind == "link" {
        seen["target"] = json!(fs::read_link(path).map(|t| t.display().to_string()).ok());
    }
    seen
}

/// `[soft, hard]` of each.
fn rlimits() -> Value {
    let all = [
        ("RLIMIT_AS", Resource::RLIMIT_AS),
        ("RLIMIT_CORE", Resource::RLIMIT_CORE),
        ("RLIMIT_CPU", Resource::RLIMIT_CPU),
        ("RLIMIT_DATA", Resource::RLIMIT_DATA),
        ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
        ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
        ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
        ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
        ("RLIMIT_NICE", Resource::RLIMIT_NICE),
        ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
        ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
        ("RLIMIT_RSS", Resource::RLIMIT_RSS),
        ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
        ("RLIMIT_RTTIME", Resource::RLIMIT_RTTIME),
        ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
        ("RLIMIT_STACK", Resource::RLIMIT_STACK),
    ];
    let of = |resource| getrlimit(resource).map(|(soft, hard)| json!([soft, hard])).unwrap_or_default();
    all.into_iter()
        .map(|(name, resource)| (name.to_owned(), of(resource)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// /proc/self/mountinfo, in its order.
fn mounts() -> Vec<Value> {
    let text = text("/proc/self/mountinfo").unwrap_or_default();
    text.lines().map(|line| mountinfo(line).expect("a mountinfo line")).collect()
}

pub fn mountinfo(line: &str) -> Option<Value> {
    let (mount, fs) = line.split_once(" - ")?;
    let mount: Vec<&str> = mount.split(' ').collect();
    let fs: Vec<&str> = fs.splitn(3, ' ').collect();
    Some(json!({
        "id": mount[0],
        "parent": mount[1],
        "device": mount[2],
        "root": mount[3],
        "at": mount[4],
        "options": mount[5].split(',').collect::<Vec<_>>(),
        "propagation": mount[6..].join(" "),
        "type": fs[0],
        "source": fs[1],
        "super": fs[2].split(',').collect::<Vec<_>>(),
    }))
}

/// The system calls for which neither std nor nix has a function.
#[allow(unsafe_code)]
mod raw {
    use std::mem::MaybeUninit;
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::{io, ptr};

    use serde_json::{Value, json};

    /// The number of a system call and up to six arguments.
    pub fn syscall(words: &[u64]) -> io::Result<i64> {
        let word = |i: usize| words.get(i).map_or(0, |word| *word as libc::c_long);
        // SAFETY: the tests ask for calls whose arguments are numbers.
        let returned =
            unsafe { libc::syscall(word(0), word(1), word(2), word(3), word(4), word(5), word(6)) };
        if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(returned) }
    }

    static TRAPPED: AtomicI32 = AtomicI32::new(0);

    /// Makes a system call, whose filter may answer with SIGSYS.
    pub fn trap(number: u64) -> &'static str {
        extern "C" fn trapped(signal: i32) {
            TRAPPED.store(signal, Ordering::Relaxed);
        }
        // SAFETY: the handler only stores a number.
        unsafe { libc::signal(libc::SIGSYS, trapped as *const () as libc::sighandler_t) };
        // What it returns is what was in the register.
        let _ = syscall(&[number]);
        if TRAPPED.load(Ordering::Relaxed) == libc::SIGSYS { "trapped" } else { "returned" }
    }

    pub fn uname() -> Value {
        let mut name = MaybeUninit::<libc::utsname>::zeroed();
        // SAFETY: uname fills the structure it is given.
        unsafe { libc::uname(name.as_mut_ptr()) };
        // SAFETY: all-zero bytes are a valid utsname, and uname only wrote more bytes.
        let name = unsafe { name.assume_init() };
        let text = |field: &[libc::c_char]| {
            let bytes: Vec<u8> = field.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        json!({"hostname": text(&name.nodename), "domainname": text(&name.domainname), "machine": text(&name.machine)})
    }

    /// Of the default size, which is 2 MiB on x86-64 and on arm64 with small pages.
    pub fn touch_huge_pages(pages: usize) -> io::Result<()> {
        let size = 2 << 20; // bytes
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping touches no memory that is in use.
        let start = unsafe { libc::mmap(ptr::null_mut(), pages * size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for page in 0..pages {
            let page = start.cast::<u8>().wrapping_add(page * size);
            // SAFETY: it is inside the mapping, which is never unmapped.
            unsafe { page.write_volatile(1) };
        }
        Ok(())
    }

    /// Rows and columns.
    pub fn window_size(fd: i32) -> Option<(u16, u16)> {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCGWINSZ writes one winsize.
        let done = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) };
        (done == 0).then_some((size.ws_row, size.ws_col))
    }

    pub fn is_tty(fd: i32) -> bool {
        // SAFETY: isatty takes any number.
        unsafe { libc::isatty(fd) == 1 }
    }

    pub fn foreground_group(fd: i32) -> i32 {
        // SAFETY: tcgetpgrp takes any number.
        unsafe { libc::tcgetpgrp(fd) }
    }

    /// `type;uid;gid;permissions;name` of the session keyring.
    pub fn session_keyring() -> Option<String> {
        let mut text = [0u8; 256];
        let (describe, session) = (libc::KEYCTL_DESCRIBE, libc::KEY_SPEC_SESSION_KEYRING);
        // SAFETY: KEYCTL_DESCRIBE writes at most the length it is given.
        let n = unsafe { libc::syscall(libc::SYS_keyctl, describe, session, text.as_mut_ptr(), text.len()) };
        let n = usize::try_from(n).ok()?.min(text.len());
        Some(String::from_utf8_lossy(&text[..n]).trim_end_matches('\0').to_owned())
    }

    /// sched_getattr(2).
    pub fn scheduler() -> Value {
        #[repr(C)]
        #[derive(Default)]
        struct Attr {
            size: u32,
            policy: u32,
            flags: u64,
            nice: i32,
            priority: u32,
            runtime: u64,
            deadline: u64,
            period: u64,
            util_min: u32,
            util_max: u32,
        }
        let mut attr = Attr::default();
        // SAFETY: sched_getattr writes at most the size it is given.
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &mut attr, size_of::<Attr>(), 0) };
        json!({
            "policy": attr.policy, "flags": attr.flags, "nice": attr.nice, "priority": attr.priority,
            "runtime": attr.runtime, "deadline": attr.deadline, "period": attr.period,
            "utilMin": attr.util_min, "utilMax": attr.util_max,
        })
    }

    /// Class and level.
    pub fn io_priority() -> [i64; 2] {
        const IOPRIO_WHO_PROCESS: i32 = 1;
        // SAFETY: ioprio_get takes two numbers.
        let value = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) };
        [value >> 13, value & 0x1fff]
    }

    /// Mode (flags included) and the mask of nodes; null on a kernel without NUMA.
    pub fn memory_policy() -> Option<[u64; 2]> {
        let (mut mode, mut nodes) = (0i32, [0u64; 16]);
        // SAFETY: get_mempolicy writes one int and as many bits as it is told.
        let done = unsafe { libc::syscall(libc::SYS_get_mempolicy, &mut mode, &mut nodes, 1024, 0, 0) };
        (done == 0).then_some([mode as u64, nodes[0]])
    }
}
