//! What is done once, when keel is built, instead of at each of its starts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

#[path = "src/linux/seccomp/places.rs"]
mod places;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/linux/seccomp/places.rs");
    println!("cargo::rerun-if-env-changed=RUSTFLAGS");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    entry_point();
    let tables = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("syscalls.rs");
    fs::write(&tables, system_calls()).expect("OUT_DIR is for us to write to");
}

/// Lets the program begin at `keel_entry` (src/sys/entry.rs) instead of the C library's `_start`.
///
/// Only at a fixed address, as .cargo/config.toml has it: a static program that relocates itself has not done so
/// by then, and calls and constants could lead anywhere. Others start as usual, only slower.
fn entry_point() {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if ["x86_64", "aarch64"].contains(&architecture.as_str()) && flags.contains("relocation-model=static") {
        println!("cargo::rustc-link-arg-bin=keel=-Wl,--entry=keel_entry");
    }
}

/// Names and numbers of one architecture, out of the `syscalls` crate.
macro_rules! numbers {
    ($architecture:ident) => {{
        use syscalls::$architecture::Sysno;
        // Not Sysno::iter(), which leaves out the last.
        let all = (0..=Sysno::last().id()).filter_map(|id| Sysno::new(id as usize));
        let number = |call: Sysno| (call.name().trim_start_matches("r#"), call.id() as u32);
        all.map(number).collect::<Numbers>()
    }};
}

type Numbers = BTreeMap<&'static str, u32>;

/// Tables for src/linux/seccomp/arch.rs to search: for each kind of machine the names of all system calls in order,
/// each with its numbers on the architectures that the machine executes; and where among the names each stands.
fn system_calls() -> String {
    let x86_64 = newer(numbers!(x86_64));
    let arm = newer(numbers!(arm)).into_iter().chain(ARM_PRIVATE).collect();
    let machines = [
        ("X86_64", vec![x86_64.clone(), newer(numbers!(x86)), x32(&x86_64), multiplexed()]),
        ("AARCH64", vec![generic(newer(numbers!(aarch64))), arm]),
        ("RISCV64", vec![newer(numbers!(riscv64))]),
        ("LOONGARCH64", vec![generic(newer(numbers!(loongarch64)))]),
    ];
    // Profiles name calls that only others have, too.
    let others = [
        numbers!(mips),
        numbers!(mips64),
        numbers!(powerpc),
        numbers!(powerpc64),
        numbers!(riscv32),
        numbers!(s390x),
        numbers!(sparc),
        numbers!(sparc64),
    ];
    let mut names: Vec<&str> = machines
        .iter()
        .flat_map(|(_, columns)| columns)
        .chain(&others)
        .flat_map(BTreeMap::keys)
        .copied()
        .chain(ELSEWHERE)
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut places = vec![u16::MAX; places::SLOTS];
    for (place, name) in names.iter().enumerate() {
        let free = places::slots(name).find(|slot| places[*slot] == u16::MAX);
        places[free.expect("there are more slots than names")] = place as u16;
    }
    let mut text = format!("static PLACES: [u16; {}] = {places:?};\n", places::SLOTS);
    for (machine, columns) in machines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "static {machine}: [(&str, [u32; 4]); {}] = [", names.len());
        for name in &names {
            let mut row = [u32::MAX; 4];
            row.iter_mut().zip(&columns).for_each(|(number, column)| {
                *number = column.get(name).copied().unwrap_or(u32::MAX);
            });
            let _ = writeln!(text, "    ({name:?}, {row:?}),");
        }
        text.push_str("];\n");
    }
    text
}

/// Calls since Linux 6.19 have one number on all architectures.
fn newer(numbers: Numbers) -> Numbers {
    numbers.into_iter().chain([("listns", 470), ("rseq_slice_yield", 471)]).collect()
}

/// include/uapi/asm-generic/unistd.h for 64 bits: the crate has the calls of 32 bits there, too, and number 79 under
/// the name that it has on those.
fn generic(mut numbers: Numbers) -> Numbers {
    numbers.retain(|_, number| !(403..=423).contains(number));
    numbers.remove("fstatat");
    numbers.insert("newfstatat", 79);
    numbers
}

/// arch/arm/include/uapi/asm/unistd.h: the ones that the table of ordinary calls does not have.
const ARM_PRIVATE: [(&str, u32); 6] = [
    ("breakpoint", 0xf0001),
    ("cacheflush", 0xf0002),
    ("usr26", 0xf0003),
    ("usr32", 0xf0004),
    ("set_tls", 0xf0005),
    ("get_tls", 0xf0006),
];

/// Of m68k, sh, parisc and s390, which the crate lacks.
const ELSEWHERE: [&str; 3] = ["atomic_barrier", "atomic_cmpxchg_32", "lws_entry"];

/// arch/x86/entry/syscalls/syscall_64.tbl, "x32": x86_64's numbers, but for those below, with bit 30 set.
fn x32(x86_64: &Numbers) -> Numbers {
    let own = [
        "rt_sigaction",
        "rt_sigreturn",
        "ioctl",
        "readv",
        "writev",
        "recvfrom",
        "sendmsg",
        "recvmsg",
        "execve",
        "ptrace",
        "rt_sigpending",
        "rt_sigtimedwait",
        "rt_sigqueueinfo",
        "sigaltstack",
        "timer_create",
        "mq_notify",
        "kexec_load",
        "waitid",
        "set_robust_list",
        "get_robust_list",
        "vmsplice",
        "move_pages",
        "preadv",
        "pwritev",
        "rt_tgsigqueueinfo",
        "recvmmsg",
        "sendmmsg",
        "process_vm_readv",
        "process_vm_writev",
        "setsockopt",
        "getsockopt",
        "io_setup",
        "io_submit",
        "execveat",
        "preadv2",
        "pwritev2",
    ];
    let lacking = [
        "_sysctl",
        "create_module",
        "epoll_ctl_old",
        "epoll_wait_old",
        "get_kernel_syms",
        "get_thread_area",
        "nfsservctl",
        "query_module",
        "set_thread_area",
        "uselib",
        "vserver",
    ];
    let mut numbers = x86_64.clone();
    numbers.retain(|name, _| !lacking.contains(name));
    numbers.extend(own.into_iter().zip(512..));
    numbers.values_mut().for_each(|number| *number |= 1 << 30);
    numbers
}

/// On x86 these can be had through socketcall(2) and ipc(2), too: that one's number, and which of its calls it is.
fn multiplexed() -> Numbers {
    let sockets = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    let ipc = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    let of = |multiplexer: u32| move |(name, call): (&'static str, u32)| (name, multiplexer << 16 | call);
    sockets.into_iter().zip(1..).map(of(102)).chain(ipc.into_iter().map(of(117))).collect()
}
