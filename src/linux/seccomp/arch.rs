//! Architectures, and what they call their system calls.
//!
//! A machine executes programs of several architectures; each has numbers of its own for the same names. The tables
//! are made by build.rs.

use super::places::slots;

include!(concat!(env!("OUT_DIR"), "/syscalls.rs"));

/// A kind of machine.
pub struct Machine {
    /// All names, in order, even those that only other machines have; [`NONE`] for those.
    names: &'static [(&'static str, [u32; 4])],
    /// Those that it executes, its own first.
    pub architectures: &'static [Architecture],
}

#[derive(Debug, PartialEq, Eq)]
pub struct Architecture {
    /// As config.json names it.
    pub name: &'static str,
    /// By which the kernel tells a filter of it: AUDIT_ARCH_* of linux/audit.h. x32 has that of x86_64.
    pub audit: u32,
    /// Whether its calls take arguments of 64 bits; of others the upper halves are not compared, as by libseccomp.
    pub wide: bool,
    column: usize,
}

/// What one name is on a machine.
#[derive(Clone, Copy)]
pub struct Numbers(&'static [u32; 4]);

/// In the tables: no such call. As a number a tracer gives it to a call that is to be skipped.
pub const NONE: u32 = u32::MAX;

/// The bit that tells x32's numbers from those of x86_64.
pub const X32_BIT: u32 = 1 << 30;

const X86: usize = 1;
/// The second way in that some calls have on x86.
const MULTIPLEXED: usize = 3;

const LITTLE_ENDIAN_64: u32 = 0xc000_0000;
const LITTLE_ENDIAN_32: u32 = 0x4000_0000;

/// The numbers of ELF machines are those of linux/elf-em.h.
pub static X86_64_MACHINE: Machine = Machine {
    names: &X86_64,
    architectures: &[
        Architecture { name: "SCMP_ARCH_X86_64", audit: LITTLE_ENDIAN_64 | 62, wide: true, column: 0 },
        Architecture { name: "SCMP_ARCH_X86", audit: LITTLE_ENDIAN_32 | 3, wide: false, column: X86 },
        Architecture { name: "SCMP_ARCH_X32", audit: LITTLE_ENDIAN_64 | 62, wide: false, column: 2 },
    ],
};
pub static AARCH64_MACHINE: Machine = Machine {
    names: &AARCH64,
    architectures: &[
        Architecture { name: "SCMP_ARCH_AARCH64", audit: LITTLE_ENDIAN_64 | 183, wide: true, column: 0 },
        Architecture { name: "SCMP_ARCH_ARM", audit: LITTLE_ENDIAN_32 | 40, wide: false, column: 1 },
    ],
};
pub static RISCV64_MACHINE: Machine = Machine {
    names: &RISCV64,
    architectures: &[Architecture {
        name: "SCMP_ARCH_RISCV64",
        audit: LITTLE_ENDIAN_64 | 243,
        wide: true,
        column: 0,
    }],
};
pub static LOONGARCH64_MACHINE: Machine = Machine {
    names: &LOONGARCH64,
    architectures: &[Architecture {
        name: "SCMP_ARCH_LOONGARCH64",
        audit: LITTLE_ENDIAN_64 | 258,
        wide: true,
        column: 0,
    }],
};

/// The one that keel runs on.
#[cfg(target_arch = "x86_64")]
pub static NATIVE: &Machine = &X86_64_MACHINE;
#[cfg(target_arch = "aarch64")]
pub static NATIVE: &Machine = &AARCH64_MACHINE;
#[cfg(target_arch = "riscv64")]
pub static NATIVE: &Machine = &RISCV64_MACHINE;
#[cfg(target_arch = "loongarch64")]
pub static NATIVE: &Machine = &LOONGARCH64_MACHINE;

/// All that the spec knows. Those that a machine does not execute need no code: the kernel never reports them.
#[rustfmt::skip]
pub const KNOWN: [&str; 23] = [
    "SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64", "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_S390", "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC", "SCMP_ARCH_PARISC64", "SCMP_ARCH_RISCV64", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_M68K",
    "SCMP_ARCH_SH", "SCMP_ARCH_SHEB",
];

impl Machine {
    /// None if no architecture at all has a call of this name.
    pub fn look_up(&self, name: &str) -> Option<Numbers> {
        let places = slots(name).map(|slot| self.names.get(usize::from(PLACES[slot])));
        // A free slot has a place that there is none of.
        let (_, numbers) = places.map_while(|row| row).find(|(other, _)| *other == name)?;
        Some(Numbers(numbers))
    }

    /// Every name with its number on one of the architectures.
    pub fn calls(&self, on: &Architecture) -> impl Iterator<Item = (&'static str, u32)> {
        let column = on.column;
        self.names.iter().map(move |(name, row)| (*name, row[column])).filter(|&(_, number)| number != NONE)
    }
}

impl Architecture {
    pub fn first_number(&self) -> u32 {
        if self.name == "SCMP_ARCH_X32" { X32_BIT } else { 0 }
    }

    pub fn is_x86_64(&self) -> bool {
        self.name == "SCMP_ARCH_X86_64"
    }
}

impl Numbers {
    pub fn on(self, architecture: &Architecture) -> Option<u32> {
        Some(self.0[architecture.column]).filter(|&number| number != NONE)
    }

    /// On x86 a socket call can also be had as a call of socketcall(2), and one of System V's IPC as one of ipc(2):
    /// the number of that one, and its first argument then.
    pub fn multiplexed_on(self, architecture: &Architecture) -> Option<(u32, u8)> {
        if architecture.audit != X86_64_MACHINE.architectures[X86].audit {
            return None;
        }
        Some(self.0[MULTIPLEXED]).filter(|&both| both != NONE).map(|both| (both >> 16, both as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_architecture_has_numbers_of_its_own() {
        for (machine, name, numbers) in [
            (&X86_64_MACHINE, "read", vec![Some(0), Some(3), Some(X32_BIT)]),
            (&X86_64_MACHINE, "execve", vec![Some(59), Some(11), Some(X32_BIT | 520)]),
            (&X86_64_MACHINE, "pwritev2", vec![Some(328), Some(379), Some(X32_BIT | 547)]),
            (&X86_64_MACHINE, "_sysctl", vec![Some(156), Some(149), None]),
            (&X86_64_MACHINE, "socketcall", vec![None, Some(102), None]),
            (&X86_64_MACHINE, "file_setattr", vec![Some(469), Some(469), Some(X32_BIT | 469)]),
            (&X86_64_MACHINE, "riscv_flush_icache", vec![None, None, None]),
            (&AARCH64_MACHINE, "read", vec![Some(63), Some(3)]),
            (&AARCH64_MACHINE, "set_tls", vec![None, Some(0xf0005)]),
            (&AARCH64_MACHINE, "open", vec![None, Some(5)]),
            (&RISCV64_MACHINE, "riscv_flush_icache", vec![Some(259)]),
            (&LOONGARCH64_MACHINE, "execve", vec![Some(221)]),
        ] {
            let found = machine.look_up(name).unwrap();
            let on: Vec<_> =
                machine.architectures.iter().map(|architecture| found.on(architecture)).collect();
            assert_eq!(on, numbers, "{name}");
        }
        assert!(X86_64_MACHINE.look_up("reed").is_none());
    }

    #[test]
    fn the_native_numbers_are_those_of_the_c_library() {
        let native = &NATIVE.architectures[0];
        for (name, number) in [
            ("write", libc::SYS_write),
            ("execve", libc::SYS_execve),
            ("capset", libc::SYS_capset),
            ("clone3", libc::SYS_clone3),
            ("seccomp", libc::SYS_seccomp),
        ] {
            assert_eq!(NATIVE.look_up(name).unwrap().on(native).map(i64::from), Some(number), "{name}");
        }
    }

    #[test]
    fn socket_calls_of_x86_have_two_ways_in() {
        let [x86_64, x86, _] = X86_64_MACHINE.architectures else { panic!() };
        for (name, x86_number, second) in [
            ("socket", Some(359), Some((102, 1))),
            ("accept", None, Some((102, 5))),
            ("sendmmsg", Some(345), Some((102, 20))),
            ("shmctl", Some(396), Some((117, 24))),
            ("semop", None, Some((117, 1))),
            ("read", Some(3), None),
        ] {
            let found = X86_64_MACHINE.look_up(name).unwrap();
            assert_eq!((found.on(x86), found.multiplexed_on(x86)), (x86_number, second), "{name}");
            assert_eq!(found.multiplexed_on(x86_64), None);
        }
        let arm = &AARCH64_MACHINE.architectures[1];
        assert_eq!(AARCH64_MACHINE.look_up("socket").unwrap().multiplexed_on(arm), None);
    }
}
