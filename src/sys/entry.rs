//! The program's first instructions, before those of the C library.
//!
//! glibc's start-up (relocations, CPU features, locale, stdio) makes up most of what it costs to start a small
//! program. One that will only execute another is best done before: what runs from here has a stack, its
//! arguments and [`super::raw`], and nothing else. Then `_start` finds all as the kernel left it.

use std::ffi::{CStr, c_char};

use super::raw::Arguments;

/// What the kernel leaves on the stack of a program that starts: the number of arguments, the arguments, a null
/// pointer, the environment, a null pointer, and the auxiliary vector.
pub struct Start {
    argc: usize,
    argv: *const *const c_char,
    envp: *const *const c_char,
    auxv: *const [usize; 2],
}

impl Start {
    /// # Safety
    /// It is the stack pointer at the program's entry.
    #[inline(always)]
    pub unsafe fn at(stack: *const usize) -> Self {
        // SAFETY: the number of arguments comes first.
        let argc = unsafe { stack.read() };
        let argv = stack.wrapping_add(1).cast::<*const c_char>();
        let envp = argv.wrapping_add(argc).wrapping_add(1);
        let mut end = envp;
        // SAFETY: the environment ends with a null pointer.
        while !unsafe { end.read_volatile() }.is_null() {
            end = end.wrapping_add(1);
        }
        Self { argc, argv, envp, auxv: end.wrapping_add(1).cast() }
    }

    #[inline(always)]
    pub fn arguments(&self) -> Arguments<'static> {
        // SAFETY: so they are on the stack, where they stay.
        unsafe { Arguments::new(self.argv, self.envp) }
    }

    /// Whether one of the arguments is this word.
    #[inline(always)]
    pub fn has_argument(&self, word: &CStr) -> bool {
        let mut at = 0usize;
        while at < self.argc {
            // SAFETY: there are argc of them.
            let argument = unsafe { self.argv.wrapping_add(at).read() };
            // SAFETY: each is a C string.
            if unsafe { starts_with(argument, word.to_bytes_with_nul()) } {
                return true;
            }
            at = at.wrapping_add(1);
        }
        false
    }

    /// `getauxval(AT_EUID) == 0` — whether the effective user is root. See `getauxval(3)`.
    #[inline(always)]
    pub fn is_root(&self) -> bool {
        matches!(self.auxiliary(libc::AT_EUID), Some(0))
    }

    /// `getauxval(AT_EXECFN)` — whether the path that the kernel was given to run this begins so; None if it does not
    /// tell. See `getauxval(3)`.
    #[inline(always)]
    pub fn exec_path_starts_with(&self, prefix: &[u8]) -> Option<bool> {
        // SAFETY: it is a C string.
        self.auxiliary(libc::AT_EXECFN).map(|path| unsafe { starts_with(path as *const c_char, prefix) })
    }

    #[inline(always)]
    fn auxiliary(&self, key: libc::c_ulong) -> Option<usize> {
        let mut at = self.auxv;
        loop {
            // SAFETY: the vector ends with AT_NULL.
            let entry = unsafe { at.read() };
            if entry[0] == key as usize {
                return Some(entry[1]);
            }
            if entry[0] == libc::AT_NULL as usize {
                return None;
            }
            at = at.wrapping_add(1);
        }
    }
}

/// # Safety
/// `text` is a C string.
#[inline(always)]
unsafe fn starts_with(text: *const c_char, prefix: &[u8]) -> bool {
    let prefix_start = prefix.as_ptr();
    let mut at = 0usize;
    while at < prefix.len() {
        // SAFETY: all bytes before were those of the prefix, and only its last can be a NUL.
        let byte = unsafe { text.wrapping_add(at).read_volatile() } as u8;
        // SAFETY: at is within the prefix.
        if byte != unsafe { prefix_start.wrapping_add(at).read_volatile() } {
            return false;
        }
        at = at.wrapping_add(1);
    }
    true
}

/// `void keel_entry()` — where the kernel enters the program, as build.rs tells the linker. Calls `$first` with the
/// [`Start`], and goes on to the C library's own entry with stack and registers as they were.
#[macro_export]
macro_rules! entry {
    ($first:path) => {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        extern "C" fn first(stack: *const usize) {
            // SAFETY: keel_entry alone calls this.
            #[allow(unsafe_code)]
            let start = unsafe { $crate::sys::entry::Start::at(stack) };
            $first(&start);
        }

        // SAFETY: the name is nobody else's. The stack is aligned as a call wants it, and ends where it did; rdx and
        // x0 hold what _start is to run at exit, and are kept; the other registers have no meaning yet.
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        extern "C" fn keel_entry() -> ! {
            #[cfg(target_arch = "x86_64")]
            std::arch::naked_asm!(
                "mov rbx, rdx",
                "mov rdi, rsp",
                "call {first}",
                "mov rdx, rbx",
                "xor ebx, ebx",
                "jmp _start",
                first = sym first,
            );
            #[cfg(target_arch = "aarch64")]
            std::arch::naked_asm!(
                "mov x19, x0",
                "mov x0, sp",
                "bl {first}",
                "mov x0, x19",
                "mov x19, xzr",
                "b _start",
                first = sym first,
            );
        }
    };
}
