//! The profile as one program: first the architecture, then the call's number, then its arguments.
//!
//! Rules of one call follow libseccomp, for which profiles are written: the first rule without conditions decides
//! alone; without one, the order of [`Rule::insert`] does.

use seccompiler::BpfProgram;

use super::arch::{Architecture, NONE, Numbers, X32_BIT};
use super::assembler::{Assembler, EQUAL, Range, Target};
use super::conditions::{Condition, Operator, Rule, write};

pub const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// For architectures that the profile does not list.
pub const FOREIGN: u32 = libc::SECCOMP_RET_KILL_THREAD;

/// What the profile says of some names.
pub struct Use<'p> {
    /// Each with its index in the entry.
    pub names: &'p [(u32, Numbers)],
    /// All with the same action; none if that is the default one anyway.
    pub rules: &'p [Rule],
}

/// Which of the entries, and which of its names.
pub type Place = (u32, u32);

/// Rules of which some have no effect, since those of another place decide all that they would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// The same conditions with another action.
    Contradiction { place: Place, earlier: Place },
    /// A rule without conditions decides instead of those with some.
    Shadowed { place: Place, by: Place },
    /// The first one without conditions decides. Podman's own profile has such: worth no warning at each start.
    Repeated { place: Place, by: Place },
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
/// There are hundreds, and a page that is touched for the first time costs more than what is computed on it.
struct At {
    number: u32,
    place: Place,
    first_argument: Option<u8>,
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
            add(&mut ranges, architecture.first_number(), default);
            beyond = self.known_numbers(architecture, &mut ranges);
        }
        let own = architectures[0];
        if architectures.len() == 1 && own.is_x86_64() {
            add(&mut ranges, X32_BIT, Target::Return(FOREIGN));
            // Not a program's, but a tracer's, which has the call skipped.
            add(&mut ranges, NONE, beyond);
        }
        ranges
    }

    /// Adds the numbers that the profile names, and returns the verdict on those beyond: a program that tries a call
    /// which is newer than the profile must learn that it does not exist, not that it may not be used. C libraries fall
    /// back to older calls only then.
    fn known_numbers(&mut self, architecture: &Architecture, ranges: &mut Vec<Range>) -> Target {
        let default = Target::Return(self.default);
        let mut all = Vec::new();
        let mut highest = None;
        for (entry, one) in (0..).zip(self.uses) {
            for (name, (_, numbers)) in (0..).zip(one.names) {
                let direct = numbers.on(architecture).map(|number| (number, None));
                let multiplexed =
                    numbers.multiplexed_on(architecture).map(|(number, call)| (number, Some(call)));
                for (number, first_argument) in direct.into_iter().chain(multiplexed) {
                    // ARM's own calls are far beyond those that Linux adds.
                    highest = highest.max(Some(number).filter(|number| number & !X32_BIT < ARM_PRIVATE));
                    if !one.rules.is_empty() {
                        all.push(At { number, place: (entry, name), first_argument });
                    }
                }
            }
        }
        let is_errno = self.default & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO;
        let beyond = if is_errno && highest.is_some() { Target::Return(ENOSYS) } else { default };
        // Of one number the profile's order counts.
        all.sort_unstable_by_key(|at| (at.number, at.place));
        let (known, private) = all.split_at(all.partition_point(|at| Some(at.number) <= highest));
        self.add_numbers(architecture, known, default, ranges);
        if let Some(highest) = highest {
            add(ranges, highest + 1, beyond);
        }
        self.add_numbers(architecture, private, beyond, ranges);
        beyond
    }

    fn add_numbers(
        &mut self,
        architecture: &Architecture,
        all: &[At],
        others: Target,
        ranges: &mut Vec<Range>,
    ) {
        let mut next = None;
        for of_one in all.chunk_by(|a, b| a.number == b.number) {
            let number = of_one[0].number;
            if let Some(next) = next.filter(|next| *next != number) {
                add(ranges, next, others);
            }
            add(ranges, number, self.verdict(of_one, architecture.wide));
            next = Some(number + 1);
        }
        if let Some(next) = next {
            add(ranges, next, others);
        }
    }

    fn verdict(&mut self, all: &[At], wide: bool) -> Target {
        if let [At { place: (entry, _), first_argument: None, .. }] = all
            && let [Rule { action, conditions }] = self.uses[*entry as usize].rules
            && conditions.is_empty()
        {
            return Target::Return(*action);
        }
        let mut rules: Vec<(Rule, &At)> = Vec::new();
        for at in all {
            for rule in self.uses[at.place.0 as usize].rules {
                let mut rule = rule.narrowed(wide);
                if let Some(call) = at.first_argument {
                    rule.multiplex(call);
                }
                rules.push((rule, at));
            }
        }
        // A second way in is nothing that the profile names.
        let place = |at: &At| Some(at.place).filter(|_| at.first_argument.is_none());
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

/// From the number on, which is not before the last one's; of two that begin together the later is right.
fn add(ranges: &mut Vec<Range>, begin: u32, target: Target) {
    ranges.pop_if(|(before, _)| *before == begin);
    if ranges.last().is_none_or(|(_, before)| *before != target) {
        ranges.push((begin, target));
    }
}

impl Rule {
    /// The rule as it is for socketcall(2) and ipc(2): their first argument says which call it is, so that a condition
    /// on its own first argument is lost. The others are where nothing can tell what they are, as in libseccomp.
    fn multiplex(&mut self, call: u8) {
        self.conditions.retain(|condition| condition.argument != 0);
        let which =
            Condition { argument: 0, operator: Operator::Equal, value: call.into(), mask: u32::MAX.into() };
        self.conditions.insert(0, which);
    }
}
