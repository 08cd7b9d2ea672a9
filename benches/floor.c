// The floor: a container with nothing but the kernel work that a runtime cannot do without, to measure keel against.
//
// It takes a runtime's command line (floor --root DIR COMMAND ...) and does for every bundle what `keel spec` writes
// down, without reading it; `run` executes /bin/true, `create` /bin/sleep. One step follows the other, by mount(2), and
// the child is a copy of the parent as with fork(2): a runtime may beat it where it overlaps steps. A rootfs that is not
// root's gets a user namespace, whose root its owner is.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

// Says what failed, and ends.
static void fail(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    _exit(1);
}

// The result of a system call that must not fail.
static int ok(long result, const char *what) {
    if (result < 0) fail(what);
    return result;
}

// ---- the container's process ----

static const struct { const char *type, *target; unsigned long flags; const char *data; } MOUNTS[] = {
    {"proc", "proc", 0, NULL},
    {"tmpfs", "dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"},
    {"devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
    {"tmpfs", "dev/shm", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k"},
    {"mqueue", "dev/mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL},
    {"sysfs", "sys", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL},
    {"cgroup2", "sys/fs/cgroup", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY | MS_RELATIME, NULL},
};
static const struct { const char *path; int major, minor; } DEVICES[] = {
    {"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7},
    {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0},
};
static const struct { const char *path, *target; } LINKS[] = {
    {"dev/fd", "/proc/self/fd"}, {"dev/stdin", "/proc/self/fd/0"}, {"dev/stdout", "/proc/self/fd/1"},
    {"dev/stderr", "/proc/self/fd/2"}, {"dev/core", "/proc/kcore"}, {"dev/ptmx", "pts/ptmx"},
};
static const char *const MASKED[] = {
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
};
static const char *const READONLY[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
static const uint64_t CAPABILITIES = 1ull << CAP_AUDIT_WRITE | 1ull << CAP_KILL | 1ull << CAP_NET_BIND_SERVICE;

static unsigned owner;   // of the rootfs
static int mapped[2];    // a pipe: the ids of the user namespace are mapped

static void make_device(const char *path, int major, int minor) {
    if (!owner) {
        ok(mknod(path, S_IFCHR | 0666, makedev(major, minor)), path);
        return;
    }
    char host[32];
    snprintf(host, sizeof host, "/%s", path);
    close(ok(open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666), path));
    ok(mount(host, path, NULL, MS_BIND, NULL), path);
}

static void mount_all(const char *rootfs) {
    ok(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "make / a slave");
    ok(mount(rootfs, rootfs, NULL, MS_BIND | MS_REC, NULL), "bind the rootfs");
    ok(chdir(rootfs), "chdir rootfs");
    umask(0);
    for (size_t i = 0; i < LENGTH(MOUNTS); i++) {
        const char *target = MOUNTS[i].target, *type = MOUNTS[i].type;
        if (!strncmp(target, "dev/", 4)) ok(mkdir(target, 0755), target);
        ok(mount(type, target, type, MOUNTS[i].flags, MOUNTS[i].data), target);
    }
    for (size_t i = 0; i < LENGTH(DEVICES); i++) {
        make_device(DEVICES[i].path, DEVICES[i].major, DEVICES[i].minor);
    }
    for (size_t i = 0; i < LENGTH(LINKS); i++) ok(symlink(LINKS[i].target, LINKS[i].path), LINKS[i].path);

    ok(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    ok(umount2(".", MNT_DETACH), "umount the old root");
    ok(chdir("/"), "chdir /");

    for (size_t i = 0; i < LENGTH(MASKED); i++) {
        if (!mount("/dev/null", MASKED[i], NULL, MS_BIND, NULL) || errno == ENOENT) continue;
        if (errno != ENOTDIR) fail(MASKED[i]);
        ok(mount("tmpfs", MASKED[i], "tmpfs", MS_RDONLY, NULL), MASKED[i]);
    }
    for (size_t i = 0; i < LENGTH(READONLY); i++) {
        if (mount(READONLY[i], READONLY[i], NULL, MS_BIND | MS_REC, NULL)) {
            if (errno == ENOENT) continue;
            fail(READONLY[i]);
        }
        ok(mount(NULL, READONLY[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), READONLY[i]);
    }
    ok(mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), "make / read-only");
}

static void loopback_up(void) {
    int fd = ok(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    ok(ioctl(fd, SIOCSIFFLAGS, &lo), "set lo up");
    close(fd);
}

static void become_root(void) {
    ok(syscall(SYS_setgroups, 0, NULL), "setgroups");
    ok(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
    ok(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
}

static void drop_privileges(void) {
    struct rlimit files = {1024, 1024};
    ok(setrlimit(RLIMIT_NOFILE, &files), "set RLIMIT_NOFILE");
    ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs");
    for (int cap = 0; cap <= CAP_LAST_CAP; cap++) {
        if (!(CAPABILITIES >> cap & 1)) ok(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "drop from the bounding set");
    }
    become_root();
    umask(022);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {
        {(uint32_t)CAPABILITIES, (uint32_t)CAPABILITIES, 0},
        {CAPABILITIES >> 32, CAPABILITIES >> 32, 0},
    };
    ok(syscall(SYS_capset, &header, sets), "capset");
}

static void execute(const char *program, const char *argument) {
    char *const args[] = {(char *)program, (char *)argument, NULL};
    char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", NULL};
    execve(program, args, env);
    fail(program);
}

// From the clone to execve. With a `gate`, a FIFO, it says so on `ready` and waits there for `start`.
static void init(const char *rootfs, int ready, int gate) {
    ok(unshare(CLONE_NEWCGROUP), "unshare the cgroup namespace");
    ok(setsid(), "setsid");
    if (owner) {
        char byte;
        close(mapped[1]);
        if (read(mapped[0], &byte, 1) != 1) fail("the runtime's process ended");
        close(mapped[0]);
        become_root();
    }
    mount_all(rootfs);
    ok(sethostname("keel", 4), "sethostname");
    loopback_up();
    drop_privileges();
    if (gate >= 0) {
        ok(write(ready, "", 1), "tell create");
        close(ready);
        char gate_path[32];
        snprintf(gate_path, sizeof gate_path, "/proc/self/fd/%d", gate);
        int opened = ok(open(gate_path, O_WRONLY | O_CLOEXEC), "open the gate");
        ok(write(opened, "", 1), "tell start");
    }
    if (gate >= 0) execute("/bin/sleep", "1000");
    execute("/bin/true", NULL);
}

// ---- the runtime's process ----

// Allows mknod, and the use of the default devices. A bit for each minor number of a major one is all it takes.
static void filter_devices(int cgroup) {
#define INSN(op, d, s, o, i) {.code = (op), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)}
    const struct bpf_insn program[] = {
        INSN(BPF_LDX | BPF_MEM | BPF_W, 2, 1, 0, 0),  // access << 16 | type
        INSN(BPF_LDX | BPF_MEM | BPF_W, 3, 1, 4, 0),  // major
        INSN(BPF_LDX | BPF_MEM | BPF_W, 4, 1, 8, 0),  // minor
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 1),
        INSN(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 11, BPF_DEVCG_ACC_MKNOD << 16 | BPF_DEVCG_DEV_CHAR),
        INSN(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 10, BPF_DEVCG_ACC_MKNOD << 16 | BPF_DEVCG_DEV_BLOCK),
        INSN(BPF_ALU64 | BPF_AND | BPF_K, 2, 0, 0, 0xffff),
        INSN(BPF_JMP | BPF_JNE | BPF_K, 2, 0, 9, BPF_DEVCG_DEV_CHAR),
        INSN(BPF_JMP | BPF_JEQ | BPF_K, 3, 0, 7, 136),  // /dev/pts/*
        INSN(BPF_JMP | BPF_JGT | BPF_K, 4, 0, 7, 31),
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9),
        INSN(BPF_JMP | BPF_JEQ | BPF_K, 3, 0, 2, 1),
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 1 << 0 | 1 << 1 | 1 << 2),  // tty, console, ptmx
        INSN(BPF_JMP | BPF_JNE | BPF_K, 3, 0, 3, 5),
        INSN(BPF_ALU64 | BPF_RSH | BPF_X, 0, 4, 0, 0),
        INSN(BPF_ALU64 | BPF_AND | BPF_K, 0, 0, 0, 1),
        INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0),
        INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    union bpf_attr load = {
        .prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
        .insns = (uintptr_t)program,
        .insn_cnt = LENGTH(program),
        .license = (uintptr_t)"GPL",
    };
    int filter = ok(syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load), "load the device filter");
    union bpf_attr attach = {
        .target_fd = cgroup,
        .attach_bpf_fd = filter,
        .attach_type = BPF_CGROUP_DEVICE,
        .attach_flags = BPF_F_ALLOW_MULTI,
    };
    ok(syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach), "attach the device filter");
    close(filter);
}

static char cgroup_path[512], state_dir[512], state_file[600], gate_file[600];

static void map_ids(pid_t pid, const char *file) {
    char path[64], text[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    int length = snprintf(text, sizeof text, "0 %u 65536\n", owner);
    int fd = ok(open(path, O_WRONLY | O_CLOEXEC), path);
    ok(write(fd, text, length), path);
    close(fd);
}

static pid_t spawn(const char *rootfs, int ready, int gate) {
    ok(mkdir(cgroup_path, 0755), cgroup_path);
    int cgroup = ok(open(cgroup_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), cgroup_path);
    filter_devices(cgroup);
    struct stat rootfs_stat;
    ok(stat(rootfs, &rootfs_stat), rootfs);
    owner = rootfs_stat.st_uid;
    if (owner) ok(pipe2(mapped, O_CLOEXEC), "pipe");
    int pidfd;
    struct clone_args args = {
        .flags = (owner ? CLONE_NEWUSER : 0) | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD |
                 CLONE_INTO_CGROUP,
        .pidfd = (uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = cgroup,
    };
    pid_t pid = ok(syscall(SYS_clone3, &args, sizeof args), "clone3");
    if (pid == 0) init(rootfs, ready, gate);
    if (owner) {
        map_ids(pid, "uid_map");
        map_ids(pid, "gid_map");
        ok(write(mapped[1], "", 1), "tell init");
        close(mapped[0]);
        close(mapped[1]);
    }
    return pid;
}

// The cgroup of processes that are about to be gone; they leave it just before they count as dead.
static void remove_cgroup(void) {
    while (rmdir(cgroup_path)) {
        if (errno != EBUSY) fail(cgroup_path);
        sched_yield();
    }
}

// Field 22 of /proc/PID/stat, which tells a process from a later one with its number; 0 for none.
static unsigned long long start_time(pid_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) return 0;
    text[length] = 0;
    char *field = strrchr(text, ')');
    for (int n = 2; field && n < 22; n++) field = strchr(field + 1, ' ');
    return field ? strtoull(field, NULL, 10) : 0;
}

static int await(pid_t pid) {
    int status;
    ok(waitpid(pid, &status, 0), "waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run(const char *rootfs) {
    int code = await(spawn(rootfs, -1, -1));
    remove_cgroup();
    return code;
}

static void create(const char *rootfs) {
    ok(mkdir(state_dir, 0700), state_dir);
    ok(mkfifo(gate_file, 0600), gate_file);
    int gate = ok(open(gate_file, O_PATH | O_CLOEXEC), gate_file), ready[2];
    ok(pipe2(ready, O_CLOEXEC), "pipe");
    pid_t pid = spawn(rootfs, ready[1], gate);
    close(ready[1]);
    char text[64];
    int length = snprintf(text, sizeof text, "%d %llu\n", pid, start_time(pid));
    int fd = ok(open(state_file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), state_file);
    ok(write(fd, text, length), state_file);
    if (read(ready[0], text, 1) != 1) fail("the container's process ended");
}

// A pidfd of the container's process, or -1 if it is gone.
static int open_process(pid_t *pid) {
    char text[64];
    int fd = ok(open(state_file, O_RDONLY | O_CLOEXEC), state_file);
    ssize_t length = ok(read(fd, text, sizeof text - 1), state_file);
    close(fd);
    text[length] = 0;
    unsigned long long started;
    if (sscanf(text, "%d %llu", pid, &started) != 2) fail(state_file);
    int pidfd = syscall(SYS_pidfd_open, *pid, 0);
    if (pidfd >= 0 && start_time(*pid) != started) {
        close(pidfd);
        return -1;
    }
    return pidfd;
}

static void state(const char *id) {
    pid_t pid;
    int alive = open_process(&pid) >= 0;
    printf("{\"id\": \"%s\", \"status\": \"%s\", \"pid\": %d}\n", id, alive ? "running" : "stopped", pid);
}

static void start(void) {
    char byte;
    int gate = ok(open(gate_file, O_RDONLY | O_CLOEXEC), gate_file);
    if (read(gate, &byte, 1) != 1) fail("the container's process ended");
    ok(unlink(gate_file), gate_file);
}

// Runs true in the container.
static int exec_true(void) {
    pid_t first;
    int first_fd = open_process(&first);
    if (first_fd < 0) fail("the container's process");
    ok(setns(first_fd, CLONE_NEWPID), "join the pid namespace");
    int cgroup = ok(open(cgroup_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), cgroup_path);
    struct clone_args args = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = cgroup};
    pid_t pid = ok(syscall(SYS_clone3, &args, sizeof args), "clone3");
    if (pid == 0) {
        ok(setsid(), "setsid");
        ok(setns(first_fd, CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP), "setns");
        drop_privileges();
        execute("/bin/true", NULL);
    }
    return await(pid);
}

static int kill_process(void) {
    pid_t pid;
    int pidfd = open_process(&pid);
    if (pidfd >= 0) ok(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0), "kill");
    return pidfd;
}

static void delete(int force) {
    pid_t pid;
    int pidfd = force ? kill_process() : open_process(&pid);
    if (pidfd >= 0) {
        struct pollfd dead = {.fd = pidfd, .events = POLLIN};
        ok(poll(&dead, 1, force ? 10000 : 0), "poll");
        if (!dead.revents) fail("the container's process runs");
    }
    remove_cgroup();
    ok(unlink(state_file), state_file);
    unlink(gate_file);
    ok(rmdir(state_dir), state_dir);
}

int main(int argc, char **argv) {
    if (argc < 5 || strcmp(argv[1], "--root")) {
        fprintf(stderr, "usage: floor --root DIR {run|create} --bundle DIR ID\n"
                        "       floor --root DIR {state|start|kill|delete|delete --force} ID\n"
                        "       floor --root DIR exec ID true\n");
        return 2;
    }
    const char *command = argv[3], *id = argv[4], *bundle = NULL;
    int force = argc > 5 && !strcmp(argv[4], "--force");
    if (force) id = argv[5];
    if (argc > 6 && !strcmp(argv[4], "--bundle")) bundle = argv[5], id = argv[6];
    snprintf(cgroup_path, sizeof cgroup_path, "/sys/fs/cgroup/%s", id);
    snprintf(state_dir, sizeof state_dir, "%s/%s", argv[2], id);
    snprintf(state_file, sizeof state_file, "%s/state", state_dir);
    snprintf(gate_file, sizeof gate_file, "%s/gate", state_dir);
    char rootfs[512];
    snprintf(rootfs, sizeof rootfs, "%s/rootfs", bundle ? bundle : ".");

    if (!strcmp(command, "run")) return run(rootfs);
    if (!strcmp(command, "create")) create(rootfs);
    else if (!strcmp(command, "state")) state(id);
    else if (!strcmp(command, "start")) start();
    else if (!strcmp(command, "exec")) return exec_true();
    else if (!strcmp(command, "kill")) kill_process();
    else if (!strcmp(command, "delete")) delete(force);
    else return 2;
    return 0;
}
