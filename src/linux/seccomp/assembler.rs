//! Writes BPF from its end to its beginning: all jumps go forward, so a target is there before who jumps to it.
//!
//! Only loads of a word, comparisons and returns: for calls that are always allowed the kernel finds that out once, at
//! load, and then asks the program no more, as long as it is made of these and looks at the number and the
//! architecture alone.

use seccompiler::{BpfProgram, sock_filter};

/// Where a program goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// It ends with this answer.
    Return(u32),
    /// At the instruction that has so many from itself to the end.
    At(usize),
}

/// Values from the number on, up to where the next range begins.
pub type Range = (u32, Target);

#[derive(Default)]
pub struct Assembler {
    /// The last instruction first.
    backwards: BpfProgram,
    /// The foremost copy of each return and of each long jump.
    copies: Vec<(Target, usize)>,
}

// Instructions: linux/bpf_common.h.
const LOAD: u16 = 0x20; // a word of struct seccomp_data
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
pub const EQUAL: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
pub const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// A comparison skips at most 255 instructions; one may still come between it and its first target.
const REACH: usize = 254;

/// So many values are compared one after another before a tree branches once more: each saves an instruction.
const EXCEPTIONS: usize = 3;

impl Assembler {
    pub fn len(&self) -> usize {
        self.backwards.len()
    }

    pub fn finish(mut self) -> BpfProgram {
        self.backwards.reverse();
        self.backwards
    }

    fn push(&mut self, code: u16, k: u32, jt: usize, jf: usize) -> Target {
        debug_assert!(jt.max(jf) <= u8::MAX.into());
        self.backwards.push(sock_filter { code, jt: jt as u8, jf: jf as u8, k });
        Target::At(self.len())
    }

    /// Makes `target` the program's next instruction, or its only one.
    pub fn begin(&mut self, target: Target) {
        if target != Target::At(self.len()) {
            self.go(target);
        }
    }

    fn go(&mut self, target: Target) -> Target {
        match target {
            Target::Return(answer) => self.push(RETURN, answer, 0, 0),
            Target::At(label) => self.push(JUMP, (self.len() - label) as u32, 0, 0),
        }
    }

    /// Loads the word at `offset` for what has just been written. What has not needs none: it loads for itself.
    pub fn load(&mut self, offset: u32, target: Target) -> Target {
        if target == Target::At(self.len()) { self.push(LOAD, offset, 0, 0) } else { target }
    }

    /// Takes bits from the loaded word for what has just been written.
    pub fn and(&mut self, mask: u32, target: Target) -> Target {
        if mask == u32::MAX { target } else { self.push(AND, mask, 0, 0) }
    }

    /// Compares the loaded word with `value`.
    pub fn compare(&mut self, how: u16, value: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        let yes = self.within_reach(yes);
        let no = self.within_reach(no);
        self.push(how, value, self.len() - yes, self.len() - no)
    }

    fn within_reach(&mut self, target: Target) -> usize {
        if let Target::At(label) = target
            && self.len() - label <= REACH
        {
            return label;
        }
        let copy = self.copies.iter().position(|(of, _)| *of == target);
        if let Some(copy) = copy
            && self.len() - self.copies[copy].1 <= REACH
        {
            return self.copies[copy].1;
        }
        self.go(target);
        match copy {
            Some(copy) => self.copies[copy].1 = self.len(),
            None => self.copies.push((target, self.len())),
        }
        self.len()
    }

    /// Finds the range of the loaded word. They are in order, from 0 on, and neighbours differ.
    pub fn tree(&mut self, ranges: &[Range]) -> Target {
        self.branch(&groups(ranges))
    }

    fn branch(&mut self, groups: &[&[Range]]) -> Target {
        if let [group] = groups {
            return self.exceptions(group);
        }
        let (low, high) = groups.split_at(groups.len() / 2);
        let above = self.branch(high);
        // Written last, it is next to the comparison: one with a target next to it is one machine instruction, not two.
        let below = self.branch(low);
        self.compare(AT_LEAST, high[0][0].0, above, below)
    }

    fn exceptions(&mut self, group: &[Range]) -> Target {
        let exceptions = group[1..].iter().step_by(2);
        exceptions
            .rev()
            .fold(group[0].1, |others, &(value, target)| self.compare(EQUAL, value, target, others))
    }
}

/// Ranges of one target with single values of others between them; or one range.
fn groups(ranges: &[Range]) -> Vec<&[Range]> {
    let mut groups = Vec::new();
    let mut begin = 0;
    while begin < ranges.len() {
        let is_exception = |i: usize| {
            i + 1 < ranges.len() && ranges[i + 1].1 == ranges[begin].1 && ranges[i + 1].0 - ranges[i].0 == 1
        };
        let mut end = begin + 1;
        while is_exception(end) && end - begin < 2 * EXCEPTIONS {
            end += 2;
        }
        // The next group may as well begin with what this one ends with.
        end -= usize::from(is_exception(end));
        groups.push(&ranges[begin..end]);
        begin = end;
    }
    groups
}

/// Without the ranges that only continue the one before.
pub fn merged<N, T: PartialEq>(mut ranges: Vec<(N, T)>) -> Vec<(N, T)> {
    ranges.dedup_by(|next, previous| next.1 == previous.1);
    ranges
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{Call, answers};
    use super::*;

    /// A program that decides by the call's number.
    fn program(ranges: &[Range]) -> BpfProgram {
        let mut assembler = Assembler::default();
        let tree = assembler.tree(ranges);
        let tree = assembler.load(0, tree);
        assembler.begin(tree);
        assembler.finish()
    }

    fn answer(program: &[sock_filter], number: u32) -> u32 {
        let answers = answers(program, &Call::new(0, number, &[]));
        assert_eq!(answers.len(), 1, "{number}");
        answers[0]
    }

    /// The longest way to an answer.
    fn depth(program: &[sock_filter]) -> u32 {
        let mut depths = vec![1; program.len()];
        for (i, insn) in program.iter().enumerate().rev() {
            depths[i] = 1 + match insn.code {
                RETURN => 0,
                LOAD => depths[i + 1],
                JUMP => depths[i + 1 + insn.k as usize],
                _ => depths[i + 1 + usize::from(insn.jt)].max(depths[i + 1 + usize::from(insn.jf)]),
            };
        }
        depths[0]
    }

    #[test]
    fn every_range_gets_its_answer_within_few_comparisons() {
        // More answers need more returns, and thousands of ranges jumps that are too long for a comparison.
        for answers in [2, 3, 7, 1000] {
            for count in [1_u32, 2, 3, 10, 100, 1000, 3000] {
                let begin = |i: u32| i * 3 - i % 3 * 2;
                let mut ranges: Vec<Range> =
                    (0..count).map(|i| (begin(i), Target::Return(i * i % answers))).collect();
                ranges.dedup_by_key(|range| range.0);
                let ranges = merged(ranges);
                let program = program(&ranges);
                for number in 0..begin(count) + 3 {
                    let (_, target) = ranges.iter().rev().find(|(begin, _)| *begin <= number).unwrap();
                    assert_eq!(Target::Return(answer(&program, number)), *target, "{number} of {count}");
                }
                let length = ranges.len() as u32;
                let most = length.next_power_of_two().ilog2() + 6 + EXCEPTIONS as u32;
                assert!(depth(&program) <= most, "{} of {length}", depth(&program));
                let longest = if answers == 1000 { 3 * length } else { length + length / 8 };
                assert!(program.len() as u32 <= longest + 2 + answers, "{} of {length}", program.len());
            }
        }
    }

    #[test]
    fn single_values_among_others_cost_one_comparison_each() {
        let (allow, deny) = (Target::Return(1), Target::Return(2));
        let ranges = [(0, allow), (5, deny), (6, allow), (9, deny), (10, allow), (20, deny), (21, allow)];
        // A load, three comparisons, two returns.
        assert_eq!(program(&ranges).len(), 6);
        assert_eq!(program(&ranges[..1]).len(), 1);
    }
}
