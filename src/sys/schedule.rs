//! When and where a process runs: CPU and I/O scheduling, CPU affinity, NUMA memory.

use nix::unistd::Pid;

use super::{Result, check};

/// The kernel's `struct sched_attr` (SCHED_ATTR_SIZE_VER1).
#[repr(C)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,  // nanoseconds
    pub deadline: u64, // nanoseconds
    pub period: u64,   // nanoseconds
    pub util_min: u32,
    pub util_max: u32,
}

/// `sched_setattr(pid, attr, 0)` — sets how a thread is scheduled; 0 is the calling one. See `sched_setattr(2)`. Since Linux
/// 3.14.
pub fn sched_setattr(pid: Pid, attr: &SchedAttr) -> Result<()> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..attr.clone() };
    // SAFETY: attr lives across the call and says its own size; the kernel only writes to `size`, of E2BIG.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid.as_raw(), &raw const attr, 0) })?;
    Ok(())
}

/// `sched_setaffinity(0, sizeof mask, mask)` — the CPUs that the calling thread may use; bits beyond what the
/// kernel knows are ignored. See `sched_setaffinity(2)`.
pub fn sched_setaffinity(mask: &[u64]) -> Result<()> {
    // SAFETY: mask lives across the call and its size is given in bytes.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) })?;
    Ok(())
}

/// `ioprio_set(IOPRIO_WHO_PROCESS, pid, class << 13 | level)` — the I/O priority of a thread and of what it forks; 0
/// is the calling one. See `ioprio_set(2)`. Since Linux 2.6.13.
pub fn ioprio_set(pid: Pid, class: u8, level: u8) -> Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    let priority = i32::from(class) << 13 | i32::from(level);
    // SAFETY: no pointers are passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid.as_raw(), priority) })?;
    Ok(())
}

/// `set_mempolicy(mode, nodes, bits)` — from which NUMA nodes the calling thread gets its memory; survives fork
/// and execve. See `set_mempolicy(2)`.
pub fn set_mempolicy(mode: i32, nodes: &[u64]) -> Result<()> {
    let (mask, bits) = match nodes {
        [] => (std::ptr::null(), 0),
        // The kernel counts one bit less than it is told.
        nodes => (nodes.as_ptr(), nodes.len() * 64 + 1),
    };
    // SAFETY: mask is null or lives across the call, and holds at least the bits that are given.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })?;
    Ok(())
}
