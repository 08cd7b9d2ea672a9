//! The system calls that a container has by default: those of Docker's profile for its default capabilities.
//!
//! What is not named is refused with EPERM, and what is newer than the list with ENOSYS, which is the runtime's affair.
//! Names that an architecture does not have are skipped by every runtime.
//!
//! <https://docs.docker.com/engine/security/seccomp/>, <https://github.com/moby/profiles>

use serde_json::{Value, json};

/// Allowed whatever their arguments are.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 \
    clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create \
    epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 \
    execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir \
    fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork \
    fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex \
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area \
    getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid \
    getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr \
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents \
    io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount \
    listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack \
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 \
    mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal \
    pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 \
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev \
    pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg \
    remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir \
    rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget \
    semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list \
    set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups \
    setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 \
    setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt \
    shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat \
    stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate \
    truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork \
    vmsplice wait4 waitid waitpid write writev";

/// Those of some architectures only.
const OF_ARCHITECTURES: [(&str, &str); 6] = [
    ("amd64", "arch_prctl modify_ldt"),
    ("386", "modify_ldt"),
    ("arm64", "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"),
    ("ppc64le", "sync_file_range2 swapcontext"),
    ("s390x", "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    ("riscv64", "riscv_flush_icache"),
];

/// With the capability SYS_CHROOT.
const OF_CAPABILITIES: &str = "chroot";

/// CLONE_NEW* but for time, which shares a bit with the exit signal.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// PER_LINUX, PER_LINUX32, with UNAME26 each, and the question.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
const ENOSYS: u32 = 38;

/// `/linux/seccomp` for an image of this architecture.
pub fn profile(architecture: &str) -> Value {
    let own = OF_ARCHITECTURES.iter().find(|(name, _)| *name == architecture).map_or("", |(_, own)| own);
    let names: Vec<_> =
        [ALLOWED, own, OF_CAPABILITIES].iter().flat_map(|list| list.split_whitespace()).collect();
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    let mut allow = |name: &str, argument: Value| {
        rules.push(json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]}));
    };
    // No sockets of the kernel's crypto, nor of the hypervisor.
    allow("socket", json!({"index": 0, "value": AF_ALG, "op": "SCMP_CMP_LT"}));
    allow("socket", json!({"index": 0, "value": AF_ALG + 1, "op": "SCMP_CMP_EQ"}));
    allow("socket", json!({"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_GT"}));
    for value in PERSONALITIES {
        allow("personality", json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"}));
    }
    let flags = if architecture == "s390x" { 1 } else { 0 };
    let masked = json!({"index": flags, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"});
    allow("clone", masked);
    // Its flags are behind a pointer; C libraries fall back to clone(2) then.
    rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    let architectures: &[&str] = match architecture {
        "amd64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "arm64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "s390x" => &["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
        // The runtime's own.
        _ => &[],
    };
    let mut profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": rules});
    if !architectures.is_empty() {
        profile["architectures"] = json!(architectures);
    }
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_out_of_a_container_is_not_allowed() {
        let profile = profile("amd64");
        let plain = &profile["syscalls"][0]["names"];
        let names: Vec<_> = plain.as_array().unwrap().iter().filter_map(Value::as_str).collect();
        for name in "mount umount2 setns unshare bpf keyctl add_key kexec_load open_by_handle_at init_module io_uring_setup \
                     userfaultfd perf_event_open clone clone3 socket personality reboot"
            .split_whitespace()
        {
            assert!(!names.contains(&name), "{name}");
        }
        for name in ["chroot", "openat2", "arch_prctl", "ptrace", "futex_waitv", "_llseek"] {
            assert!(names.contains(&name), "{name}");
        }
        assert_eq!(names.len(), 367);
    }
}
