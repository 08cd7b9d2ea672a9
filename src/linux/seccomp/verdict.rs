//! What a program answers, found by walking through it as the kernel does, with some of its input unknown.

use seccompiler::sock_filter;

/// One system call: the words of the kernel's struct seccomp_data, None where any value is meant.
pub struct Call([Option<u32>; 16]);

impl Call {
    /// Arguments that are not given are unknown.
    pub fn new(audit: u32, number: u32, arguments: &[Option<u64>]) -> Self {
        let mut words = [None; 16];
        words[0] = Some(number);
        words[1] = Some(audit);
        for (i, argument) in arguments.iter().enumerate() {
            let halves = argument.map(|argument| (argument as u32, (argument >> 32) as u32));
            let (low, high) = if cfg!(target_endian = "little") { (0, 1) } else { (1, 0) };
            words[4 + 2 * i + low] = halves.map(|(low, _)| low);
            words[4 + 2 * i + high] = halves.map(|(_, high)| high);
        }
        Self(words)
    }
}

/// All answers that a program may give to such a call, each once.
pub fn answers(program: &[sock_filter], call: &Call) -> Vec<u32> {
    let mut answers = Vec::new();
    let mut seen: Vec<(usize, Option<u32>)> = Vec::new();
    let mut open: Vec<(usize, Option<u32>)> = vec![(0, Some(0))];
    while let Some((at, word)) = open.pop() {
        if seen.contains(&(at, word)) {
            continue;
        }
        seen.push((at, word));
        let Some(instruction) = program.get(at) else { continue };
        let k = instruction.k;
        let (yes, no) = (at + 1 + usize::from(instruction.jt), at + 1 + usize::from(instruction.jf));
        let holds = match instruction.code {
            // Load a word; AND; jump; return: linux/bpf_common.h.
            0x20 => {
                open.push((at + 1, call.0.get(k as usize / 4).copied().flatten()));
                continue;
            }
            0x54 => {
                open.push((at + 1, word.map(|word| word & k)));
                continue;
            }
            0x05 => {
                open.push((at + 1 + k as usize, word));
                continue;
            }
            0x06 => {
                if !answers.contains(&k) {
                    answers.push(k);
                }
                continue;
            }
            // Comparisons: equal, greater, at least, any bit.
            0x15 => word.map(|word| word == k),
            0x25 => word.map(|word| word > k),
            0x35 => word.map(|word| word >= k),
            0x45 => word.map(|word| word & k != 0),
            // The compiler writes no others.
            _ => continue,
        };
        if holds != Some(true) {
            open.push((no, word));
        }
        if holds != Some(false) {
            open.push((yes, word));
        }
    }
    answers
}
