//! Why a file cannot be executed. The kernel says only ENOENT, EACCES or ENOEXEC, and means the file, its interpreter,
//! or the interpreter of that.
//!
//! Runs inside the container on files of the image: every number in them is bounded before it is used.

use std::env::consts::ARCH;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, stat};
use nix::sys::statvfs::{FsFlags, statvfs};

/// In words of which callers look for `no such file or directory` and `permission denied`, lower case.
pub fn reason(path: &CStr, errno: Errno) -> String {
    match errno {
        Errno::ENOENT => missing(path),
        Errno::EACCES => denied(path),
        Errno::ENOEXEC => not_executable(path),
        Errno::ETXTBSY => format!("{} is open for writing: text file busy", shown(path)),
        Errno::EAGAIN => "the user has as many processes as RLIMIT_NPROC allows".into(),
        _ => format!("{} ({})", errno.desc(), errno as i32),
    }
}

/// The kernel's two limits are on all together and on each one.
pub fn too_big(args: &[CString], env: &[CString]) -> String {
    let lengths = || args.iter().chain(env).map(|string| string.as_bytes_with_nul().len());
    let (total, longest) = (lengths().sum::<usize>(), lengths().max().unwrap_or(0));
    format!(
        "argument list too long: arguments and environment have {total} bytes and the longest has {longest}, while \
         together they may have a quarter of RLIMIT_STACK and each 131072 bytes"
    )
}

fn missing(path: &CStr) -> String {
    match chain(path).as_slice() {
        [_, .., Step { file, format: Err(Errno::ENOENT) }] if file.as_bytes().ends_with(b"\r") => {
            format!(
                "its first line ends in CRLF, so its interpreter would be {}: no such file or directory",
                shown(file)
            )
        }
        [_, .., Step { file, format: Err(Errno::ENOENT) }] => {
            format!("its interpreter {} is missing: no such file or directory", shown(file))
        }
        _ => "no such file or directory".into(),
    }
}

fn denied(path: &CStr) -> String {
    for Step { file, .. } in chain(path) {
        if matches!(super::check(&file), Err(Errno::EACCES | Errno::EISDIR)) {
            return format!("{} {}: permission denied", shown(&file), why_denied(&file));
        }
    }
    // All of the chain may be executed by its permissions: a security module has denied it.
    "permission denied".into()
}

fn why_denied(file: &CStr) -> &'static str {
    let noexec = || statvfs(file).is_ok_and(|mount| mount.flags().contains(FsFlags::ST_NOEXEC));
    match stat(file).map(|stat| SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())) {
        Err(_) => "is in a directory that this user may not enter",
        Ok(kind) if kind != SFlag::S_IFREG => "is not a regular file",
        Ok(_) if noexec() => "is on a mount with the option noexec",
        Ok(_) => "has no execute permission for this user",
    }
}

fn not_executable(path: &CStr) -> String {
    for Step { file, format } in chain(path) {
        let what = match format {
            Ok(Format::Empty) => "is empty".into(),
            Ok(Format::Other) => "is neither an ELF program nor a script that starts with #!".into(),
            Ok(Format::Script { interpreter: None }) => {
                "has a first line with #! that names no interpreter".into()
            }
            Ok(Format::Elf { machine, .. }) if machine != ARCH => {
                format!("is a program for {machine}, and this machine is {ARCH}")
            }
            // Not this one, but maybe its interpreter.
            _ => continue,
        };
        return format!("{} {what}: exec format error", shown(&file));
    }
    "exec format error".into()
}

fn shown(file: &CStr) -> String {
    format!("{:?}", file.to_string_lossy())
}

struct Step {
    file: CString,
    format: Result<Format, Errno>,
}

/// The file, its interpreter, the interpreter of that ... as far as the kernel goes.
fn chain(path: &CStr) -> Vec<Step> {
    const DEPTH: usize = 5;
    let mut steps = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(file) = next.take().filter(|_| steps.len() < DEPTH) {
        let format = inspect(&file);
        if let Ok(Format::Script { interpreter } | Format::Elf { interpreter, .. }) = &format {
            next = interpreter.clone();
        }
        steps.push(Step { file, format });
    }
    steps
}

#[derive(Debug, PartialEq, Eq)]
enum Format {
    Empty,
    Script { interpreter: Option<CString> },
    Elf { machine: String, interpreter: Option<CString> },
    Other,
}

fn inspect(path: &CStr) -> Result<Format, Errno> {
    // A FIFO, should that be it, must not keep us waiting.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let fd = open(Path::new(OsStr::from_bytes(path.to_bytes())), flags, Mode::empty())?;
    if SFlag::from_bits_truncate(fstat(&fd)?.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
        return Err(Errno::EACCES);
    }
    let file = File::from(fd);
    Ok(format(|at, length| {
        let mut bytes = vec![0; length];
        // What cannot be read is as good as not there: this is about an error that has happened already.
        let read = file.read_at(&mut bytes, at).unwrap_or(0);
        bytes.truncate(read);
        bytes
    }))
}

/// `read(offset, length)` gives what the file has there, at most `length` bytes.
fn format(read: impl Fn(u64, usize) -> Vec<u8>) -> Format {
    // BINPRM_BUF_SIZE: all that the kernel looks at to choose.
    let head = read(0, 256);
    match head.as_slice() {
        [] => Format::Empty,
        [b'#', b'!', line @ ..] => Format::Script { interpreter: script_interpreter(line) },
        [0x7f, b'E', b'L', b'F', ..] => elf(&head, read).unwrap_or(Format::Other),
        _ => Format::Other,
    }
}

/// The word after `#!`.
fn script_interpreter(line: &[u8]) -> Option<CString> {
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let line = line.split(|&b| b == b'\n' || b == 0).next()?;
    let word = line.split(blank).find(|word| !word.is_empty())?;
    CString::new(word).ok()
}

/// Both sizes of ELF in both byte orders: <https://man7.org/linux/man-pages/man5/elf.5.html>
fn elf(head: &[u8], read: impl Fn(u64, usize) -> Vec<u8>) -> Option<Format> {
    const PT_INTERP: u64 = 3;
    let wide = *head.get(4)? == 2;
    let little = *head.get(5)? == 1;
    let number = |bytes: &[u8], at: usize, length: usize| {
        let bytes = bytes.get(at..at + length)?;
        let digit = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if little { bytes.iter().rev().fold(0, digit) } else { bytes.iter().fold(0, digit) })
    };
    let machine = machine(number(head, 18, 2)?);
    let (table, entry, count) = if wide {
        (number(head, 32, 8)?, number(head, 54, 2)?, number(head, 56, 2)?)
    } else {
        (number(head, 28, 4)?, number(head, 42, 2)?, number(head, 44, 2)?)
    };
    // The kernel takes no larger table, and entries of this size only.
    let size = if wide { 56 } else { 32 };
    let length = usize::try_from(entry * count).ok().filter(|&length| entry == size && length <= 65536);
    let table = length.map_or(Vec::new(), |length| read(table, length));
    let interpreter =
        table.chunks_exact(size as usize).find(|header| number(header, 0, 4) == Some(PT_INTERP));
    let interpreter = interpreter.and_then(|header| {
        let (offset, length) = if wide {
            (number(header, 8, 8)?, number(header, 32, 8)?)
        } else {
            (number(header, 4, 4)?, number(header, 16, 4)?)
        };
        let path =
            read(offset, usize::try_from(length).ok().filter(|&length| length <= libc::PATH_MAX as usize)?);
        Some(CStr::from_bytes_until_nul(&path).ok()?.to_owned())
    });
    Some(Format::Elf { machine, interpreter })
}

/// In the words of [`std::env::consts::ARCH`].
fn machine(number: u64) -> String {
    let name = match number {
        3 => "x86",
        8 => "mips",
        20 => "powerpc",
        21 => "powerpc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        258 => "loongarch64",
        _ => return format!("machine type {number}"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file system of a test: `format` of these bytes.
    fn format_of(bytes: &[u8]) -> Format {
        format(|at, length| {
            let from = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            bytes[from..from.saturating_add(length).min(bytes.len())].to_vec()
        })
    }

    /// An ELF file with one PT_INTERP header, which says that its path has `length` bytes.
    fn elf_file(wide: bool, little: bool, machine: u16, length: u64, path: &[u8]) -> Vec<u8> {
        let number = |value: u64, size: usize| {
            let mut bytes = value.to_le_bytes()[..size].to_vec();
            if !little {
                bytes.reverse();
            }
            bytes
        };
        let word = if wide { 8 } else { 4 };
        let (header, entry) = if wide { (64, 56) } else { (52, 32) };
        let mut file = b"\x7fELF".to_vec();
        file.extend([if wide { 2 } else { 1 }, if little { 1 } else { 2 }]);
        file.resize(16, 0);
        file.extend([number(2, 2), number(machine.into(), 2), number(1, 4), number(0, word)].concat());
        file.extend([number(header, word), number(0, word), number(0, 4), number(header, 2)].concat());
        file.extend([number(entry, 2), number(1, 2)].concat());
        file.resize(header as usize, 0);
        let (offset, zero) = (number(header + entry, word), number(0, word));
        let rest = [offset, zero.clone(), zero, number(length, word)].concat();
        file.extend([number(3, 4), if wide { number(0, 4) } else { vec![] }, rest].concat());
        file.resize((header + entry) as usize, 0);
        file.extend(path);
        file
    }

    #[test]
    fn the_interpreter_of_a_script_is_the_first_word_after_the_mark() {
        for (file, interpreter) in [
            ("#!/bin/sh\necho", Some(c"/bin/sh")),
            ("#! \t/bin/sh -e\n", Some(c"/bin/sh")),
            ("#!/bin/sh", Some(c"/bin/sh")),
            ("#!/bin/sh\r\n", Some(c"/bin/sh\r")),
            ("#!\n/bin/sh", None),
            ("#!", None),
        ] {
            let interpreter = interpreter.map(CStr::to_owned);
            assert_eq!(format_of(file.as_bytes()), Format::Script { interpreter }, "{file:?}");
        }
        assert_eq!(format_of(b""), Format::Empty);
        assert_eq!(format_of(b"echo"), Format::Other);
    }

    #[test]
    fn the_interpreter_of_a_program_is_found_in_each_kind_of_elf() {
        for (wide, little, machine, name) in [
            (true, true, 183, "aarch64"),
            (true, false, 22, "s390x"),
            (false, true, 3, "x86"),
            (false, false, 999, "machine type 999"),
        ] {
            let file = elf_file(wide, little, machine, 12, b"/lib/ld.so.2\0");
            let expected = |interpreter| Format::Elf { machine: name.into(), interpreter };
            // Without its NUL it is none.
            assert_eq!(format_of(&file), expected(None));
            let file = elf_file(wide, little, machine, 13, b"/lib/ld.so.2\0");
            assert_eq!(format_of(&file), expected(Some(c"/lib/ld.so.2".to_owned())));
        }
    }

    #[test]
    fn a_hostile_program_header_is_no_harm() {
        let file = elf_file(true, true, 62, 1 << 40, b"/lib/ld.so.2\0");
        assert_eq!(format_of(&file), Format::Elf { machine: "x86_64".into(), interpreter: None });
        // A table longer than the kernel would read: its program headers number 1171.
        let mut long = elf_file(true, true, 62, 13, b"/lib/ld.so.2\0");
        long[56..58].copy_from_slice(&1171u16.to_le_bytes());
        assert_eq!(format_of(&long), Format::Elf { machine: "x86_64".into(), interpreter: None });
        for length in 0..file.len() {
            format_of(&file[..length]);
        }
        // Every field in turn as large as it gets.
        for at in 4..file.len() {
            for size in [1, 2, 4, 8] {
                let mut file = file.clone();
                let end = file.len().min(at + size);
                file[at..end].fill(0xff);
                format_of(&file);
            }
        }
    }

    #[test]
    fn the_reason_names_the_file_that_the_kernel_stumbled_over() {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("keel-explain-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let shown = dir.to_str().unwrap();
        let foreign = if cfg!(target_arch = "aarch64") { (62, "x86_64") } else { (183, "aarch64") };
        let no_interpreter = elf_file(true, true, 62, 10, b"/no/ld.so\0");
        let foreign_file = elf_file(true, true, foreign.0, 10, b"/no/ld.so\0");
        let wrong_machine = format!(
            "\"DIR/f\" is a program for {}, and this machine is {}: exec format error",
            foreign.1,
            std::env::consts::ARCH
        );
        for (name, content, errno, expected) in [
            (
                "a",
                &b"#!/no/sh\n"[..],
                Errno::ENOENT,
                "its interpreter \"/no/sh\" is missing: no such file or directory",
            ),
            (
                "b",
                b"#!DIR/a\n",
                Errno::ENOENT,
                "its interpreter \"/no/sh\" is missing: no such file or directory",
            ),
            (
                "c",
                b"#!/bin/sh\r\n",
                Errno::ENOENT,
                "its first line ends in CRLF, so its interpreter would be \"/bin/sh\\r\": no such file or directory",
            ),
            (
                "d",
                &no_interpreter,
                Errno::ENOENT,
                "its interpreter \"/no/ld.so\" is missing: no such file or directory",
            ),
            (
                "e",
                b"echo",
                Errno::ENOEXEC,
                "\"DIR/e\" is neither an ELF program nor a script that starts with #!: exec format error",
            ),
            ("f", &foreign_file, Errno::ENOEXEC, &wrong_machine),
            ("g", b"#!DIR/f\n", Errno::ENOEXEC, &wrong_machine),
            ("h", b"", Errno::ENOEXEC, "\"DIR/h\" is empty: exec format error"),
            (
                "i",
                b"#!/etc/passwd\n",
                Errno::EACCES,
                "\"/etc/passwd\" has no execute permission for this user: permission denied",
            ),
            ("j", b"#!/dev\n", Errno::EACCES, "\"/dev\" is not a regular file: permission denied"),
            ("k", b"x", Errno::ETXTBSY, "\"DIR/k\" is open for writing: text file busy"),
            ("l", b"x", Errno::ELOOP, "Too many symbolic links encountered (40)"),
        ] {
            let path = dir.join(name);
            let content: Vec<u8> = match content.strip_prefix(b"#!DIR") {
                Some(rest) => [b"#!", shown.as_bytes(), rest].concat(),
                None => content.to_vec(),
            };
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let path = CString::new(path.as_os_str().as_bytes()).unwrap();
            assert_eq!(reason(&path, errno).replace(shown, "DIR"), expected, "{name}");
        }
        let missing = CString::new(format!("{shown}/none")).unwrap();
        assert_eq!(reason(&missing, Errno::ENOENT), "no such file or directory");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn too_big_says_how_big() {
        let text = too_big(&[c"a".into(), c"bcd".into()], &[c"E=f".into()]);
        assert!(text.starts_with(
            "argument list too long: arguments and environment have 10 bytes and the longest has 4,"
        ));
    }
}
