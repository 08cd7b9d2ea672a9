//! The profile as one program: first the architecture, then the call's number, then its arguments.
//!
//! Rules of one call follow libseccomp, for which profiles are written: the first rule without conditions decides
//! alone; without one, the order of [`Rule::insert`] does.

use seccompiler::BpfProgram;

use super::arch::{Architecture, NONE, Numbers, X32_BIT};
use super::assembler::{Assembler, EQUAL, Range, Target, merged};
use super::conditions::{Condition, Operator, Rule, write};

pub const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// For architectures that the profile does not list.
pub const FOREIGN: u32 = libc::SECCOMP_RET_KILL_THREAD;

/// What the profile says of one name.
pub struct Use<'p> {
    pub numbers: Numbers,
    /// Of its entry in the profile, all with the same action; none if that is the default one anyway.
    pub rules: &'p [Rule],
    /// Which of the entries, and which of its names.
    pub place: (usize, usize),
}

/// Rules of which some have no effect, since those of another place decide all that they would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// The same conditions with another action.
    Contradiction { place: (usize, usize), earlier: (usize, usize) },
    /// A rule without conditions decides instead of those with some.
    Shadowed { place: (usize, usize), by: (usize, usize) },
    /// The first one without conditions decides. Podman's own profile has such: worth no warning at each start.
    Repeated { place: (usize, usize), by: (usize, usize) },
}

pub struct Compiled {
    pub program: BpfProgram,
    /// For each architecture that the kernel tells apart.
    pub sizes: Vec<(&'static str, usize)>,
    pub conflicts: Vec<Conflict>,
}

struct Compiler<'p> {
    uses: &'p [Use<'p>],
    default: u32,
    program: Assembler,
    /// The code for rules is written once.
    written: Vec<(bool, Vec<Rule>, Target)>,
    conflicts: Vec<Conflict>,
}

/// What decides about one number: the rules of a name, or those under which one name of a multiplexed call stands.
struct At {
    number: u32,
    user: usize,
    first_argument: Option<u32>,
}

/// The architectures are those of one machine, its own first.
pub fn compile(architectures: &[&'static Architecture], uses: &[Use], default: u32) -> Compiled {
    let mut compiler =
        Compiler { uses, default, program: Assembler::default(), written: Vec::new(), conflicts: Vec::new() };
    let mut sizes = Vec::new();
    let mut next = Target::Return(FOREIGN);
    // The machine's own comes last and so lies first.
    for (i, architecture) in architectures.iter().enumerate().rev() {
        let same = |other: &&&Architecture| other.audit == architecture.audit;
        if architectures[..i].iter().any(|other| same(&other)) {
            continue;
        }
        let before = compiler.program.len();
        let alike: Vec<&Architecture> = architectures.iter().filter(same).copied().collect();
        let ranges = compiler.numbers(&alike);
        let tree = compiler.program.tree(&ranges);
        let tree = compiler.program.load(NUMBER, tree);
        next = compiler.program.compare(EQUAL, architecture.audit, tree, next);
        sizes.push((architecture.name, compiler.program.len() - before));
    }
    let next = compiler.program.load(ARCHITECTURE, next);
    compiler.program.begin(next);
    sizes.reverse();
    compiler.conflicts.sort_unstable();
    compiler.conflicts.dedup();
    Compiled { program: compiler.program.finish(), sizes, conflicts: compiler.conflicts }
}

/// __ARM_NR_BASE of arch/arm/include/uapi/asm/unistd.h.
const ARM_PRIVATE: u32 = 0xf0000;

/// In struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

impl Compiler<'_> {
    /// The verdicts on all numbers, of architectures that only the numbers tell apart.
    fn numbers(&mut self, architectures: &[&Architecture]) -> Vec<Range> {
        let mut ranges = Vec::new();
        let default = Target::Return(self.default);
        let mut beyond = default;
        for architecture in architectures {
            ranges.push((architecture.first_number(), default));
            beyond = self.known_numbers(architecture, &mut ranges);
        }
        let own = architectures[0];
        if architectures.len() == 1 && own.is_x86_64() {
            ranges.push((X32_BIT, Target::Return(FOREIGN)));
            // Not a program's, but a tracer's, which has the call skipped.
            ranges.push((NONE, beyond));
        }
        // The later one of two that begin together is right, and stays so.
        ranges.sort_by_key(|range| range.0);
        ranges.dedup_by(|next, previous| {
            let same = next.0 == previous.0;
            if same {
                previous.1 = next.1;
            }
            same
        });
        merged(ranges)
    }

    /// Adds the numbers that the profile names, and returns the verdict on those beyond: a program that tries a call
    /// which is newer than the profile must learn that it does not exist, not that it may not be used. C libraries fall
    /// back to older calls only then.
    fn known_numbers(&mut self, architecture: &Architecture, ranges: &mut Vec<Range>) -> Target {
        let default = Target::Return(self.default);
        let mut all = Vec::with_capacity(self.uses.len());
        let mut highest = None;
        for (user, one) in self.uses.iter().enumerate() {
            let direct = one.numbers.on(architecture).map(|number| (number, None));
            let multiplexed =
                one.numbers.multiplexed_on(architecture).map(|(number, call)| (number, Some(call)));
            for (number, first_argument) in direct.into_iter().chain(multiplexed) {
                // ARM's own calls are far beyond those that Linux adds.
                highest = highest.max(Some(number).filter(|number| number & !X32_BIT < ARM_PRIVATE));
                if !one.rules.is_empty() {
                    all.push(At { number, user, first_argument });
                }
            }
        }
        let is_errno = self.default & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO;
        let beyond = if is_errno && highest.is_some() { Target::Return(ENOSYS) } else { default };
        ranges.extend(highest.map(|highest| (highest + 1, beyond)));
        // Stable: the profile's order counts.
        all.sort_by_key(|at| at.number);
        for of_one in all.chunk_by(|a, b| a.number == b.number) {
            let number = of_one[0].number;
            // Before the next one's.
            ranges.push((number + 1, if Some(number) < highest { default } else { beyond }));
            let target = self.verdict(of_one, architecture.wide);
            ranges.push((number, target));
        }
        beyond
    }

    fn verdict(&mut self, all: &[At], wide: bool) -> Target {
        if let [At { user, first_argument: None, .. }] = all
            && let [Rule { action, conditions }] = self.uses[*user].rules
            && conditions.is_empty()
        {
            return Target::Return(*action);
        }
        let mut rules: Vec<(Rule, &At)> = Vec::new();
        for at in all {
            for rule in self.uses[at.user].rules {
                let mut rule = rule.narrowed(wide);
                if let Some(call) = at.first_argument {
                    rule.multiplex(call);
                }
                rules.push((rule, at));
            }
        }
        // A second way in is nothing that the profile names.
        let place = |at: &At| Some(self.uses[at.user].place).filter(|_| at.first_argument.is_none());
        if let Some((alone, by)) = rules.iter().find(|(rule, _)| rule.conditions.is_empty()) {
            for (rule, at) in rules.iter().filter(|(rule, _)| rule.action != alone.action) {
                self.conflicts.extend(place(at).zip(place(by)).map(|(place, by)| {
                    if rule.conditions.is_empty() {
                        Conflict::Repeated { place, by }
                    } else {
                        Conflict::Shadowed { place, by }
                    }
                }));
            }
            return Target::Return(alone.action);
        }
        let mut kept: Vec<(Rule, &At)> = Vec::new();
        for (rule, at) in rules {
            match kept.iter().find(|(earlier, _)| earlier.conditions == rule.conditions) {
                None => kept.push((rule, at)),
                Some((earlier, by)) if earlier.action != rule.action => {
                    let both = place(at).zip(place(by));
                    let contradiction = |(place, earlier)| Conflict::Contradiction { place, earlier };
                    self.conflicts.extend(both.map(contradiction));
                }
                Some(_) => {}
            }
        }
        let mut rules = Vec::with_capacity(kept.len());
        kept.into_iter().for_each(|(rule, _)| rule.insert(&mut rules));
        let known = self.written.iter().find(|(of_wide, of, _)| *of_wide == wide && *of == rules);
        if let Some((_, _, target)) = known {
            return *target;
        }
        let target = write(&mut self.program, &rules, self.default, wide);
        self.written.push((wide, rules, target));
        target
    }
}

impl Rule {
    /// The rule as it is for socketcall(2) and ipc(2): their first argument says which call it is, so that a condition
    /// on its own first argument is lost. The others are where nothing can tell what they are, as in libseccomp.
    fn multiplex(&mut self, call: u32) {
        self.conditions.retain(|condition| condition.argument != 0);
        let which =
            Condition { argument: 0, operator: Operator::Equal, value: call.into(), mask: u32::MAX.into() };
        self.conditions.insert(0, which);
    }
}
