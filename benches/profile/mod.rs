//! A seccomp profile as large as those of the engines, and much like them.

use keel::linux::seccomp::arch::{Architecture, NATIVE};
use serde_json::{Value, json};

/// All calls but those that engines keep from containers, three of them with conditions.
pub fn profile() -> Value {
    let allowed = |architecture: &'static Architecture| NATIVE.calls(architecture).map(|(name, _)| name);
    let mut names: Vec<&str> = NATIVE.architectures.iter().flat_map(allowed).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !DENIED.contains(name));
    let personality = |value: u32| {
        let condition = json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"});
        json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [condition]})
    };
    let mut rules = vec![
        json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW",
               "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}),
        json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW",
               "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}),
    ];
    rules.extend([0, 8, 0x20000, 0x20008, 0xffff_ffff].map(personality));
    let architectures: Vec<&str> = NATIVE.architectures.iter().map(|one| one.name).collect();
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": architectures,
           "syscalls": rules})
}

#[rustfmt::skip]
const DENIED: [&str; 77] = [
    "_sysctl", "acct", "add_key", "afs_syscall", "bpf", "break", "clock_adjtime", "clock_adjtime64", "clock_settime",
    "clock_settime64", "clone", "clone3", "create_module", "delete_module", "fanotify_init", "finit_module", "fsconfig",
    "fsmount", "fsopen", "fspick", "get_kernel_syms", "get_mempolicy", "getpmsg", "gtty", "idle", "init_module",
    "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load",
    "keyctl", "lock", "lookup_dcookie", "mbind", "mount", "mount_setattr", "move_mount", "move_pages", "mpx",
    "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open", "personality", "pivot_root", "prof", "profil",
    "putpmsg", "query_module", "quotactl", "quotactl_fd", "reboot", "request_key", "set_mempolicy", "setdomainname",
    "sethostname", "setns", "settimeofday", "socket", "stime", "stty", "swapoff", "swapon", "sysfs", "syslog",
    "tuxcall", "umount", "umount2", "unshare", "uselib", "userfaultfd", "vhangup", "vserver",
];
