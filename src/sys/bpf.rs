//! Programs that the kernel runs for a cgroup: <https://man7.org/linux/man-pages/man2/bpf.2.html>

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{Result, check, check_fd};

/// The kernel's `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    code: u8,
    registers: u8,
    offset: i16, // bytes from a source register's address
    imm: i32,
}

impl Insn {
    pub const fn new(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Self {
        // The two are C bit fields, whose order follows the machine's byte order.
        let registers = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
        Self { code, registers, offset, imm }
    }

    pub const fn code(self) -> u8 {
        self.code
    }

    pub const fn dst(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 0xf } else { self.registers >> 4 }
    }

    pub const fn src(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 0xf }
    }

    pub const fn offset(self) -> i16 {
        self.offset
    }

    pub const fn imm(self) -> i32 {
        self.imm
    }
}

/// `bpf(BPF_PROG_LOAD, {BPF_PROG_TYPE_CGROUP_DEVICE, insns, name, log})` — verifies and compiles a device filter.
/// The verifier's text is left in `log`, NUL-terminated, unless that is empty. See `bpf(2)`. Since Linux 4.15.
pub fn prog_load_cgroup_device(insns: &[Insn], log: &mut [u8]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
    }
    let attr = Attr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: insns.len() as u32,
        insns: insns.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"keel_devices\0\0\0\0",
    };
    // SAFETY: insns and log live across the call with the lengths given; the license is a static C string.
    check_fd(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &attr, size_of::<Attr>()) })
}

/// `bpf(BPF_PROG_ATTACH, {cgroup, program, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI})` — has the cgroup ask this
/// program too. With `replace`, it takes that one's place in the same instant. See `bpf(2)`. Since Linux 4.15
/// (replacing: 5.6).
pub fn prog_attach_cgroup_device(
    cgroup: impl AsFd,
    program: impl AsFd,
    replace: Option<&OwnedFd>,
) -> Result<()> {
    let flags = ALLOW_MULTI | if replace.is_some() { REPLACE } else { 0 };
    attachment(PROG_ATTACH, cgroup, program, flags, replace.map_or(0, |fd| fd.as_raw_fd() as u32))
}

/// `bpf(BPF_PROG_DETACH, {cgroup, program, BPF_CGROUP_DEVICE})` — has the cgroup no longer ask this program. See
/// `bpf(2)`. Since Linux 4.15.
pub fn prog_detach_cgroup_device(cgroup: impl AsFd, program: impl AsFd) -> Result<()> {
    attachment(PROG_DETACH, cgroup, program, 0, 0)
}

fn attachment(command: u32, cgroup: impl AsFd, program: impl AsFd, flags: u32, replace: u32) -> Result<()> {
    #[repr(C)]
    struct Attr {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
        replace_bpf_fd: u32,
    }
    let attr = Attr {
        target_fd: cgroup.as_fd().as_raw_fd() as u32,
        attach_bpf_fd: program.as_fd().as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        attach_flags: flags,
        replace_bpf_fd: replace,
    };
    // SAFETY: attr lives across the call and holds no pointers.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, &attr, size_of::<Attr>()) })?;
    Ok(())
}

/// `bpf(BPF_PROG_QUERY, {cgroup, BPF_CGROUP_DEVICE})` — the ids of the device filters attached to this very
/// cgroup. See `bpf(2)`. Since Linux 4.15.
pub fn prog_query_cgroup_device(cgroup: impl AsFd) -> Result<Vec<u32>> {
    #[repr(C)]
    struct Attr {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        unused: u32,
    }
    // The kernel attaches no more than 64 to a cgroup.
    let mut ids = vec![0u32; 64];
    let mut attr = Attr {
        target_fd: cgroup.as_fd().as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        unused: 0,
    };
    // SAFETY: attr and ids live across the call; the kernel writes at most prog_cnt ids.
    check(unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &mut attr, size_of::<Attr>()) })?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}

/// `bpf(BPF_PROG_GET_FD_BY_ID, {id})` — opens a loaded program; ENOENT when it is gone. See `bpf(2)`. Since Linux
/// 4.13.
pub fn prog_get_fd_by_id(id: u32) -> Result<OwnedFd> {
    let attr: [u32; 3] = [id, 0, 0];
    // SAFETY: attr lives across the call and holds no pointers.
    check_fd(unsafe { libc::syscall(libc::SYS_bpf, PROG_GET_FD_BY_ID, &attr, size_of_val(&attr)) })
}

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const PROG_QUERY: u32 = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;
