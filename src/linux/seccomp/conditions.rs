//! Rules on a call's arguments, and the code that decides between them.
//!
//! The kernel gives arguments of 64 bits, BPF compares 32. A comparison of one argument is a set of ranges of its
//! values, so that all rules that compare the same argument become one search in its upper half and one in its
//! lower. (seccompiler writes each condition on its own, and two jumps before each rule: three times as much for the
//! profiles of Docker and Podman; the tests compare with it.)

use super::assembler::{ANY_BIT, Assembler, EQUAL, Range, Target, merged};

/// The action for the calls whose arguments meet all of the conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub action: u32,
    /// Of different arguments, in their order.
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    pub argument: u8, // 0 to 5
    pub operator: Operator,
    pub value: u64,
    /// All ones, unless the operator is MaskedEqual.
    pub mask: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    MaskedEqual,
}

impl Rule {
    /// The rule as it is for an architecture with or without arguments of 64 bits.
    pub fn narrowed(&self, wide: bool) -> Self {
        let conditions = self.conditions.iter().map(|condition| condition.narrowed(wide));
        Self { action: self.action, conditions: conditions.filter(|condition| condition.mask != 0).collect() }
    }

    /// The argument that it compares, if that is all it does.
    fn compares(&self) -> Option<u8> {
        match self.conditions[..] {
            [Condition { operator: Operator::MaskedEqual, .. }] => None,
            [Condition { argument, .. }] => Some(argument),
            _ => None,
        }
    }

    /// Puts the rule among others. The first that applies decides; where several with different actions do, that is the
    /// one that libseccomp asks first: that of a later argument, of the same one that of a value before that of what
    /// lies below a value, then above one; of those the narrower.
    pub fn insert(self, rules: &mut Vec<Self>) {
        let at = rules.iter().position(|other| other.yields_to(&self)).unwrap_or(rules.len());
        rules.insert(at, self);
    }

    fn yields_to(&self, new: &Self) -> bool {
        let differing = self.conditions.iter().zip(&new.conditions).find(|(mine, new)| mine != new);
        differing.is_some_and(|(mine, new)| mine.yields_to(new))
    }
}

impl Condition {
    fn narrowed(self, wide: bool) -> Self {
        let all = if wide { u64::MAX } else { u32::MAX.into() };
        let mask = self.mask & all;
        Self { mask, value: self.value & mask, ..self }
    }

    fn yields_to(&self, new: &Self) -> bool {
        use Operator::*;
        let rank = |condition: &Self| match condition.operator {
            Equal | MaskedEqual | NotEqual => 2,
            Less | LessOrEqual => 1,
            GreaterOrEqual | Greater => 0,
        };
        let (mine, others) = ((self.argument, rank(self)), (new.argument, rank(new)));
        if mine != others {
            return mine < others;
        }
        // Those with different masks are told apart by the upper halves alone.
        let half = if self.mask == new.mask || self.mask.max(new.mask) <= u32::MAX.into() { 0 } else { 32 };
        let (mine, others) = (self.value >> half, new.value >> half);
        if rank(self) == 1 { mine > others } else { mine < others }
    }

    fn holds(&self, value: u64) -> bool {
        match self.operator {
            Operator::NotEqual => value != self.value,
            Operator::Less => value < self.value,
            Operator::LessOrEqual => value <= self.value,
            Operator::Equal => value == self.value,
            Operator::GreaterOrEqual => value >= self.value,
            Operator::Greater => value > self.value,
            Operator::MaskedEqual => value & self.mask == self.value,
        }
    }
}

/// The code for a call with these rules, the first of which that applies decides.
pub fn write(program: &mut Assembler, rules: &[Rule], otherwise: u32, wide: bool) -> Target {
    let alike = |a: &Rule, b: &Rule| a.compares().is_some() && a.compares() == b.compares();
    rules.chunk_by(alike).rev().fold(Target::Return(otherwise), |otherwise, rules| match rules {
        [rule] => rule.conditions.iter().rev().fold(Target::Return(rule.action), |then, condition| {
            write_condition(program, condition, then, otherwise, wide)
        }),
        _ => {
            let decides = |rule: &Rule| (rule.conditions[0], Target::Return(rule.action));
            write_search(program, &rules.iter().map(decides).collect::<Vec<_>>(), otherwise, wide)
        }
    })
}

fn write_condition(
    program: &mut Assembler,
    condition: &Condition,
    then: Target,
    otherwise: Target,
    wide: bool,
) -> Target {
    if condition.operator != Operator::MaskedEqual {
        return write_search(program, &[(*condition, then)], otherwise, wide);
    }
    let [low, high] = offsets(condition.argument);
    let Condition { mask, value, .. } = *condition;
    let then = write_masked(program, low, mask as u32, value as u32, then, otherwise);
    write_masked(program, high, (mask >> 32) as u32, (value >> 32) as u32, then, otherwise)
}

fn write_masked(
    program: &mut Assembler,
    offset: u32,
    mask: u32,
    value: u32,
    then: Target,
    otherwise: Target,
) -> Target {
    if mask == 0 || then == otherwise {
        return then;
    }
    let test = if value == 0 {
        program.compare(ANY_BIT, mask, otherwise, then)
    } else {
        let test = program.compare(EQUAL, value, then, otherwise);
        program.and(mask, test)
    };
    program.load(offset, test)
}

/// Decides between comparisons of one argument; the first that holds does.
fn write_search(
    program: &mut Assembler,
    comparisons: &[(Condition, Target)],
    otherwise: Target,
    wide: bool,
) -> Target {
    let most = if wide { u64::MAX } else { u32::MAX.into() };
    let mut begins = vec![0];
    for (Condition { value, .. }, _) in comparisons {
        begins.push(*value);
        begins.extend(value.checked_add(1).filter(|&next| next <= most));
    }
    begins.sort_unstable();
    begins.dedup();
    let target = |value: u64| {
        comparisons
            .iter()
            .find(|(condition, _)| condition.holds(value))
            .map_or(otherwise, |&(_, target)| target)
    };
    let ranges = merged(begins.into_iter().map(|begin| (begin, target(begin))).collect());
    let [low, high] = offsets(comparisons[0].0.argument);
    if !wide {
        return write_half(program, low, ranges.into_iter().map(|(begin, target)| (begin as u32, target)));
    }
    let mut uppers: Vec<Range> = Vec::new();
    let mut before = ranges[0].1;
    for of_upper in ranges.chunk_by(|a, b| a.0 >> 32 == b.0 >> 32) {
        let upper = (of_upper[0].0 >> 32) as u32;
        uppers.pop_if(|(begin, _)| *begin == upper);
        let first = Some((0, before)).filter(|_| of_upper[0].0 as u32 != 0);
        let lowers = first.into_iter().chain(of_upper.iter().map(|&(begin, target)| (begin as u32, target)));
        uppers.push((upper, write_half(program, low, lowers)));
        before = of_upper[of_upper.len() - 1].1;
        uppers.extend(upper.checked_add(1).map(|next| (next, before)));
    }
    write_half(program, high, uppers.into_iter())
}

fn write_half(program: &mut Assembler, offset: u32, ranges: impl Iterator<Item = Range>) -> Target {
    let tree = program.tree(&merged(ranges.collect()));
    program.load(offset, tree)
}

/// Of the lower and the upper half of an argument in struct seccomp_data, whose words lie as the machine has them.
fn offsets(argument: u8) -> [u32; 2] {
    let offset = 16 + 8 * u32::from(argument);
    if cfg!(target_endian = "little") { [offset, offset + 4] } else { [offset + 4, offset] }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{Call, answers};
    use super::*;
    use seccompiler::{
        BpfProgram, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule, sock_filter,
    };

    const VALUES: [u64; 9] = [0, 1, 7, 0xffff_fffe, 0xffff_ffff, 1 << 32, 1 << 32 | 7, 5 << 40, u64::MAX];

    fn conditions(argument: u8) -> impl Iterator<Item = Condition> {
        use Operator::*;
        let of = move |operator| VALUES.map(|value| Condition { argument, operator, value, mask: u64::MAX });
        let plain = [NotEqual, Less, LessOrEqual, Equal, GreaterOrEqual, Greater].into_iter().flat_map(of);
        let masks = VALUES.into_iter().skip(1).flat_map(|mask| VALUES.map(|value| (mask, value & mask)));
        plain.chain(masks.map(move |(mask, value)| Condition {
            argument,
            operator: MaskedEqual,
            value,
            mask,
        }))
    }

    /// The same by seccompiler: a match falls through, a mismatch skips one instruction.
    fn seccompilers(conditions: &[Condition]) -> BpfProgram {
        let condition = |one: &Condition| {
            let operator = match one.operator {
                Operator::NotEqual => SeccompCmpOp::Ne,
                Operator::Less => SeccompCmpOp::Lt,
                Operator::LessOrEqual => SeccompCmpOp::Le,
                Operator::Equal => SeccompCmpOp::Eq,
                Operator::GreaterOrEqual => SeccompCmpOp::Ge,
                Operator::Greater => SeccompCmpOp::Gt,
                Operator::MaskedEqual => SeccompCmpOp::MaskedEq(one.mask),
            };
            SeccompCondition::new(one.argument, SeccompCmpArgLen::Qword, operator, one.value).unwrap()
        };
        let mut program =
            BpfProgram::from(SeccompRule::new(conditions.iter().map(condition).collect()).unwrap());
        program.extend([1, 0].map(|k| sock_filter { code: 0x06, jt: 0, jf: 0, k }));
        program
    }

    fn ours(conditions: &[Condition]) -> BpfProgram {
        let mut program = Assembler::default();
        let rule = Rule { action: 1, conditions: conditions.to_vec() };
        let target = write(&mut program, &[rule], 0, true);
        program.begin(target);
        program.finish()
    }

    fn agree(conditions: &[Condition]) {
        let (mine, theirs) = (ours(conditions), seccompilers(conditions));
        assert!(mine.len() <= theirs.len(), "{conditions:?}");
        for first in VALUES {
            for second in VALUES {
                let call = Call::new(0, 0, &[Some(first), Some(second)]);
                let both = (answers(&mine, &call), answers(&theirs, &call));
                assert_eq!(both.0, both.1, "{conditions:x?} of {first:x} and {second:x}: {mine:?}");
            }
        }
    }

    #[test]
    fn conditions_mean_what_they_mean_to_seccompiler() {
        for first in conditions(0) {
            agree(&[first]);
            for second in conditions(1).step_by(11) {
                agree(&[first, second]);
            }
        }
    }

    #[test]
    fn all_comparisons_of_one_argument_are_one_search() {
        let equal = |value| Rule {
            action: 1,
            conditions: vec![Condition { argument: 0, operator: Operator::Equal, value, mask: u64::MAX }],
        };
        // Docker's rules on personality(2): seccompiler's conditions would be 35 instructions.
        let rules: Vec<Rule> = [0, 8, 0x20000, 0x20008, 0xffff_ffff].into_iter().rev().map(equal).collect();
        let mut program = Assembler::default();
        let target = write(&mut program, &rules, 0, true);
        program.begin(target);
        assert_eq!(program.finish().len(), 10);
    }
}
