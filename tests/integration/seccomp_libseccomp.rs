//! The seccomp compiler against libseccomp: thousands of profiles, each compiled by both, and both programs run over
//! all numbers of all architectures, with arguments around the values that the rules compare. They must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use keel::linux::seccomp::arch::{
    AARCH64_MACHINE, Architecture, Machine, RISCV64_MACHINE, X32_BIT, X86_64_MACHINE,
};
use keel::linux::seccomp::{ACTIONS, Seccomp};
use keel::spec::{Node, Report};
use serde_json::{Value, json};

use crate::{needs, tests};

tests![
    names_have_the_numbers_of_libseccomp,
    rules_without_conditions_decide_as_with_libseccomp,
    a_rule_with_conditions_decides_as_with_libseccomp,
    profiles_decide_as_with_libseccomp,
    all_rules_decide_where_libseccomp_overlooks_some,
    of_two_rules_the_same_decides_as_with_libseccomp,
    rules_of_different_actions_are_asked_in_the_order_of_libseccomp,
    the_profiles_of_engines_decide_as_with_libseccomp,
];

fn libseccomp() -> Result<(), String> {
    match Path::new("/usr/include/seccomp.h").exists() {
        true => Ok(()),
        false => Err("the headers of libseccomp are not installed".into()),
    }
}

/// What libseccomp.c answers.
struct Oracle {
    dir: PathBuf,
}

impl Drop for Oracle {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

impl Oracle {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("keel-libseccomp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let mut compiler = Command::new("gcc");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/libseccomp.c");
        compiler.args(["-O1", "-Wall", source, "-lseccomp", "-o"]).arg(dir.join("oracle"));
        assert!(compiler.status().unwrap().success());
        Self { dir }
    }

    fn ask(&self, questions: &str) -> Vec<u32> {
        let input = self.dir.join("questions");
        std::fs::write(&input, questions).unwrap();
        let mut oracle = Command::new(self.dir.join("oracle"));
        let answer = oracle.stdin(File::open(input).unwrap()).stderr(Stdio::inherit()).output().unwrap();
        assert!(answer.status.success(), "{:?}", answer.status);
        answer.stdout.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    /// The numbers that libseccomp knows for the names.
    fn numbers<'n>(&self, architecture: &Architecture, names: &[&'n str]) -> BTreeMap<&'n str, u32> {
        let answers = self.ask(&format!("names {} {}\n", libseccomps_name(architecture), names.join(" ")));
        let known = names.iter().copied().zip(answers);
        // Those below are of no call, or of one that this architecture lacks.
        known.filter(|&(_, number)| (number as i32) >= 0).collect()
    }
}

fn libseccomps_name(architecture: &Architecture) -> String {
    architecture.name.strip_prefix("SCMP_ARCH_").unwrap().to_lowercase()
}

/// A program as the kernel runs it: <https://www.kernel.org/doc/Documentation/networking/filter.txt>
#[derive(Clone, Copy)]
struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

type Call = [u32; 16]; // struct seccomp_data

fn call(architecture: &Architecture, number: u32, arguments: [u64; 6]) -> Call {
    let mut words = [0; 16];
    (words[0], words[1]) = (number, architecture.audit);
    for (i, argument) in arguments.into_iter().enumerate() {
        (words[4 + 2 * i], words[5 + 2 * i]) = (argument as u32, (argument >> 32) as u32);
    }
    words
}

/// The answer, and the number of instructions before it.
fn run(program: &[Insn], call: &Call) -> (u32, usize) {
    let (mut at, mut word, mut steps) = (0, 0, 0);
    loop {
        let Insn { code, jt, jf, k } = program[at];
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        at += 1;
        steps += 1;
        match code {
            0x20 => word = call[k as usize / 4],
            0x54 => word &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(word == k),
            0x25 => at += branch(word > k),
            0x35 => at += branch(word >= k),
            0x45 => at += branch(word & k != 0),
            0x06 => return (k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// A generator of numbers that gives the same ones each time: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

const OPERATORS: [(&str, u32); 7] = [
    ("SCMP_CMP_NE", 1),
    ("SCMP_CMP_LT", 2),
    ("SCMP_CMP_LE", 3),
    ("SCMP_CMP_EQ", 4),
    ("SCMP_CMP_GE", 5),
    ("SCMP_CMP_GT", 6),
    ("SCMP_CMP_MASKED_EQ", 7),
];

const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = ERRNO | 38;

fn action(entry: &Value, key: &str, errno_key: &str) -> u32 {
    let name = entry[key].as_str().unwrap();
    let action = ACTIONS.iter().find(|(known, _)| *known == name).unwrap().1;
    let takes_errno = ["SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"].contains(&name);
    action | if takes_errno { entry[errno_key].as_u64().unwrap_or(1) as u32 } else { 0 }
}

/// The profile as runc gives it to libseccomp.
fn question(profile: &Value, machine: &Machine, known: &BTreeSet<&str>) -> String {
    let default = action(profile, "defaultAction", "defaultErrnoRet");
    let mut text = format!("filter {default:#x}");
    for architecture in listed(profile, machine) {
        write!(text, " {}", libseccomps_name(architecture)).unwrap();
    }
    text.push('\n');
    for entry in profile["syscalls"].as_array().unwrap() {
        let action = action(entry, "action", "errnoRet");
        let conditions: Vec<(u64, String)> = entry["args"].as_array().map_or(vec![], |conditions| {
            conditions
                .iter()
                .map(|condition| {
                    let number = |key: &str| condition[key].as_u64().unwrap_or(0);
                    let operator = OPERATORS.iter().find(|(name, _)| condition["op"] == *name).unwrap().1;
                    let text =
                        format!(" {} {operator} {} {}", number("index"), number("value"), number("valueTwo"));
                    (number("index"), text)
                })
                .collect()
        });
        let arguments: BTreeSet<u64> = conditions.iter().map(|(index, _)| *index).collect();
        let together = arguments.len() == conditions.len();
        for name in entry["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()) {
            if action == default || !known.contains(name) {
                continue;
            }
            if together {
                let all: String = conditions.iter().map(|(_, text)| text.as_str()).collect();
                writeln!(text, "rule {action:#x} {name}{all}").unwrap();
            } else {
                for (_, one) in &conditions {
                    writeln!(text, "rule {action:#x} {name}{one}").unwrap();
                }
            }
        }
    }
    text.push_str("end\n");
    text
}

fn listed<'m>(profile: &Value, machine: &'m Machine) -> Vec<&'m Architecture> {
    let names = profile["architectures"].as_array().unwrap();
    let is_listed = |architecture: &&Architecture| names.iter().any(|name| name == architecture.name);
    let own = &machine.architectures[0];
    machine.architectures.iter().filter(|one| one.name == own.name || is_listed(one)).collect()
}

fn plan(profile: &Value, machine: &'static Machine) -> Result<Seccomp, String> {
    let linux = json!({"seccomp": profile});
    let report = Report::default();
    let planned = Seccomp::plan_for(machine, &Node::root(linux.as_object().unwrap(), &report));
    match report.finish() {
        Ok(_) => Ok(planned.unwrap()),
        Err(error) => Err(error.to_string()),
    }
}

struct Comparison<'a> {
    machine: &'static Machine,
    architectures: Vec<&'static Architecture>,
    known: BTreeSet<&'a str>,
    oracle: Oracle,
}

#[derive(Default, Debug)]
struct Tally {
    compared: usize,
    calls: usize,
    refused: usize,
    refused_by_libseccomp: usize,
    different: usize,
}

impl Comparison<'_> {
    fn new(machine: &'static Machine) -> Self {
        let oracle = Oracle::new();
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for architecture in X86_64_MACHINE.architectures.iter().chain(machine.architectures) {
            let on = [&X86_64_MACHINE, machine].into_iter().flat_map(|machine| machine.calls(architecture));
            names.extend(on.map(|(name, _)| name));
        }
        // Debian 12's library lacks this one on x32 alone.
        names.remove("map_shadow_stack");
        let names: Vec<&str> = names.into_iter().collect();
        let numbers = |one| oracle.ask(&format!("names {} {}\n", libseccomps_name(one), names.join(" ")));
        let known = machine
            .architectures
            .iter()
            .flat_map(|one| names.iter().copied().zip(numbers(one)))
            .filter(|&(_, number)| number != u32::MAX)
            .map(|(name, _)| name)
            .collect();
        Self { machine, architectures: machine.architectures.iter().collect(), known, oracle }
    }

    fn compare(&self, profiles: &[Value], may_differ: bool) -> Tally {
        let questions: String =
            profiles.iter().map(|profile| question(profile, self.machine, &self.known)).collect();
        let mut answers = self.oracle.ask(&questions).into_iter();
        let mut tally = Tally::default();
        for profile in profiles {
            let refused = answers.next().unwrap();
            let length = answers.next().unwrap();
            let theirs: Vec<Insn> = (0..length)
                .map(|_| {
                    let [a, b, jt, jf] = answers.next().unwrap().to_ne_bytes();
                    Insn { code: u16::from_ne_bytes([a, b]), jt, jf, k: answers.next().unwrap() }
                })
                .collect();
            match plan(profile, self.machine) {
                Ok(ours) if refused == 0 => {
                    let insn =
                        |i: &seccompiler::sock_filter| Insn { code: i.code, jt: i.jt, jf: i.jf, k: i.k };
                    let ours: Vec<Insn> = ours.program().iter().map(insn).collect();
                    tally.compared += 1;
                    tally.different +=
                        usize::from(!self.same(profile, &ours, &theirs, &mut tally, may_differ));
                }
                // Contradictions; libseccomp may also crash, or see one where there is none.
                Ok(_) => tally.refused_by_libseccomp += 1,
                Err(why) => {
                    assert!(refused != 0 || may_differ || why.contains("has another action"), "{why}");
                    tally.refused += 1;
                }
            }
        }
        tally
    }

    fn same(
        &self,
        profile: &Value,
        ours: &[Insn],
        theirs: &[Insn],
        tally: &mut Tally,
        may_differ: bool,
    ) -> bool {
        let default = action(profile, "defaultAction", "defaultErrnoRet");
        let all_arguments = arguments(profile);
        let mut same = true;
        for &architecture in &self.architectures {
            let rules = self.rules(profile, architecture);
            let is_listed = listed(profile, self.machine).contains(&architecture);
            let is_errno = default & 0xffff_0000 == ERRNO;
            let ordinary = rules.keys().filter(|number| *number & !X32_BIT < 0xf0000);
            let highest = ordinary.max().copied().filter(|_| is_listed && is_errno);
            let base = if architecture.name == "SCMP_ARCH_X32" { X32_BIT } else { 0 };
            let edges = [0x3fff_ffff, 0x4000_0000, 0x4000_0400, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
            let numbers = (0..=560).map(|number| base | number).chain(0xf0000..0xf0008).chain(edges);
            for number in numbers.filter(|number| belongs(*number, architecture, is_listed)) {
                let rules = rules.get(&number).map_or(&[][..], Vec::as_slice);
                let conditional = rules.iter().any(|(_, conditions)| !conditions.is_empty());
                for &arguments in if conditional { &all_arguments[..] } else { &all_arguments[..1] } {
                    let call = call(architecture, number, arguments);
                    let (mine, steps) = run(ours, &call);
                    let (mut right, _) = run(theirs, &call);
                    let is_newer = rules.is_empty() && highest.is_some_and(|highest| number > highest);
                    if is_newer {
                        assert_eq!(right, default);
                        right = ENOSYS;
                    }
                    if let Some(model) = model(rules, default, architecture, arguments)
                        && is_listed
                        && !is_newer
                    {
                        assert_eq!(
                            mine, model,
                            "{} {number:#x} {arguments:x?} {rules:x?}\n{profile:#}",
                            architecture.name
                        );
                    }
                    tally.calls += 1;
                    let depth = ours.len().next_power_of_two().ilog2() as usize;
                    assert!(
                        conditional || steps <= depth + 8,
                        "{steps} steps of {} instructions",
                        ours.len()
                    );
                    if mine != right {
                        let message = format!(
                            "{} {number:#x} {arguments:x?}: {mine:#x}, with libseccomp {right:#x}: {rules:x?}",
                            architecture.name
                        );
                        assert!(may_differ, "{message}\n{}", question(profile, self.machine, &self.known));
                        same = false;
                    }
                }
            }
        }
        same
    }

    /// The rules on each number that the profile names.
    fn rules<'p>(
        &self,
        profile: &'p Value,
        architecture: &Architecture,
    ) -> BTreeMap<u32, Vec<(u32, Vec<Compared<'p>>)>> {
        let default = action(profile, "defaultAction", "defaultErrnoRet");
        let mut rules: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for entry in profile["syscalls"].as_array().unwrap() {
            let action = action(entry, "action", "errnoRet");
            let conditions: Vec<Compared> = entry["args"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|condition| {
                    let number = |key: &str| condition[key].as_u64().unwrap_or(0);
                    (
                        number("index") as usize,
                        condition["op"].as_str().unwrap(),
                        number("value"),
                        number("valueTwo"),
                    )
                })
                .collect();
            let arguments: BTreeSet<usize> = conditions.iter().map(|condition| condition.0).collect();
            let alternatives: Vec<Vec<Compared>> = match arguments.len() == conditions.len() {
                true => vec![conditions],
                false => conditions.into_iter().map(|condition| vec![condition]).collect(),
            };
            let names = entry["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
            for name in names.filter(|name| self.known.contains(name)) {
                let found = self.machine.look_up(name).unwrap();
                let mut add = |number: u32, conditions: Vec<Vec<Compared<'p>>>| {
                    let of_number = rules.entry(number).or_default();
                    if action != default {
                        of_number.extend(conditions.into_iter().map(|conditions| (action, conditions)));
                    }
                };
                if let Some(number) = found.on(architecture) {
                    add(number, alternatives.clone());
                }
                if let Some((number, call)) = found.multiplexed_on(architecture) {
                    let which = (0, "SCMP_CMP_EQ", call.into(), 0);
                    let replaced = |conditions: &Vec<Compared<'p>>| {
                        conditions.iter().copied().filter(|one| one.0 != 0).chain([which]).collect()
                    };
                    add(number, alternatives.iter().map(replaced).collect());
                }
            }
        }
        rules
    }
}

/// Index, operator, value, second value.
type Compared<'p> = (usize, &'p str, u64, u64);

/// What the rules say by themselves, if that does not depend on their order.
fn model(
    rules: &[(u32, Vec<Compared>)],
    default: u32,
    architecture: &Architecture,
    arguments: [u64; 6],
) -> Option<u32> {
    let cut = |value: u64| if architecture.wide { value } else { value & 0xffff_ffff };
    let holds = |&(index, operator, value, second): &Compared| {
        let (argument, value, second) = (cut(arguments[index]), cut(value), cut(second));
        match operator {
            "SCMP_CMP_NE" => argument != value,
            "SCMP_CMP_LT" => argument < value,
            "SCMP_CMP_LE" => argument <= value,
            "SCMP_CMP_EQ" => argument == value,
            "SCMP_CMP_GE" => argument >= value,
            "SCMP_CMP_GT" => argument > value,
            _ => argument & value == second & value,
        }
    };
    let matches_all =
        |(_, operator, value, _): &Compared| *operator == "SCMP_CMP_MASKED_EQ" && cut(*value) == 0;
    if let Some((action, _)) = rules.iter().find(|(_, conditions)| conditions.iter().all(matches_all)) {
        return Some(*action);
    }
    let matching: BTreeSet<u32> = rules
        .iter()
        .filter(|(_, conditions)| conditions.iter().all(holds))
        .map(|(action, _)| *action)
        .collect();
    match matching.len() {
        0 => Some(default),
        1 => matching.first().copied(),
        _ => None,
    }
}

/// Whether a number is one of the architecture, and not of the other one that the kernel reports alike.
fn belongs(number: u32, architecture: &Architecture, is_listed: bool) -> bool {
    let is_x32 = number >= X32_BIT && number != u32::MAX;
    match architecture.name {
        "SCMP_ARCH_X86_64" => !is_x32,
        "SCMP_ARCH_X32" => is_x32 || is_listed && number == u32::MAX,
        _ => true,
    }
}

/// Values around those that the profile compares, on all arguments.
fn arguments(profile: &Value) -> Vec<[u64; 6]> {
    let mut values: BTreeSet<u64> = [0, 1, u64::MAX].into();
    for entry in profile["syscalls"].as_array().unwrap() {
        for condition in entry["args"].as_array().into_iter().flatten() {
            for key in ["value", "valueTwo"] {
                if let Some(value) = condition[key].as_u64() {
                    let upper = 1 << 32;
                    values.extend([value, value.wrapping_sub(1), value.wrapping_add(1)]);
                    values.extend([value ^ upper, value | upper << 31, value & 0xffff_ffff, value & !0xff]);
                }
            }
        }
    }
    let values: Vec<u64> = values.into_iter().collect();
    let mut random = Random(values.len() as u64);
    let mut all: Vec<[u64; 6]> = Vec::new();
    // The first one is that of calls without conditions.
    all.push([0; 6]);
    for &value in &values {
        all.push([value; 6]);
    }
    for _ in 0..100 {
        all.push(std::array::from_fn(|_| random.one(&values)));
    }
    all
}

/// What random profiles are made of.
struct Shape {
    entries: usize,
    operators: &'static [&'static str],
    /// Of one rule, at most.
    conditions: usize,
    /// So many arguments are compared.
    arguments: usize,
    /// Whether the rules with conditions of one name have different actions, so that their order matters.
    mixed: bool,
    /// All rules are of one name.
    one_name: bool,
    /// Conditions of one rule are of different arguments.
    together: bool,
    /// Rules with conditions are of calls that not all architectures have, too.
    anywhere: bool,
    /// The values compared have 32 bits.
    narrow: bool,
}

const ALL: &[&str] = &[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];
const ACTIONS_USED: [(&str, Option<u32>); 10] = [
    ("SCMP_ACT_ALLOW", None),
    ("SCMP_ACT_ERRNO", None),
    ("SCMP_ACT_ERRNO", Some(38)),
    ("SCMP_ACT_LOG", None),
    ("SCMP_ACT_ERRNO", Some(4094)),
    ("SCMP_ACT_KILL", None),
    ("SCMP_ACT_TRAP", None),
    ("SCMP_ACT_KILL_PROCESS", None),
    ("SCMP_ACT_TRACE", Some(7)),
    ("SCMP_ACT_KILL_THREAD", None),
];

impl Shape {
    /// The rules with conditions are for `everywhere` only.
    fn profile(
        &self,
        random: &mut Random,
        names: &[&str],
        everywhere: &[&str],
        architectures: &[&str],
    ) -> Value {
        let usual = if random.below(3) == 0 { ACTIONS_USED.len() } else { 3 };
        let (default, default_errno) = random.one(&ACTIONS_USED[..usual]);
        let conditional: Vec<&str> =
            (0..if self.one_name { 1 } else { 8 }).map(|_| random.one(everywhere)).collect();
        let mut syscalls = Vec::new();
        for _ in 0..1 + random.below(self.entries) {
            let with_conditions = self.one_name || self.conditions > 0 && random.below(2) == 0;
            let chosen = random.below(conditional.len());
            let mut entry = json!({"names": [conditional[chosen]]});
            let mut action = random.one(&ACTIONS_USED);
            if with_conditions {
                if !self.mixed {
                    action = ACTIONS_USED
                        [everywhere.iter().position(|name| *name == conditional[chosen]).unwrap() % 10];
                }
                entry["args"] = self.conditions(random);
            } else if random.below(10) > 0 {
                entry["names"] =
                    json!((0..random.below(40) + 1).map(|_| random.one(names)).collect::<Vec<_>>());
            }
            entry["action"] = json!(action.0);
            if let Some(errno) = action.1 {
                entry["errnoRet"] = json!(errno);
            }
            syscalls.push(entry);
        }
        let architectures: Vec<&str> =
            architectures.iter().copied().filter(|_| random.below(3) > 0).collect();
        let mut profile =
            json!({"defaultAction": default, "architectures": architectures, "syscalls": syscalls});
        if let Some(errno) = default_errno {
            profile["defaultErrnoRet"] = json!(errno);
        }
        profile
    }

    fn conditions(&self, random: &mut Random) -> Value {
        let values =
            [0, 1, 2, 7, 8, 0x20000, 0x7e020000, 0xffff_ffff, 1 << 32, (1 << 32) + 1, 5 << 40, u64::MAX];
        let values = &values[..if self.narrow { 8 } else { values.len() }];
        let first = random.below(self.arguments);
        let condition = |i: usize, random: &mut Random| {
            let operator = random.one(self.operators);
            let index =
                if self.together { (first + i) % self.arguments } else { random.below(self.arguments) };
            let mut condition = json!({"index": index, "value": random.one(values), "op": operator});
            if operator == "SCMP_CMP_MASKED_EQ" {
                condition["valueTwo"] = json!(random.one(values));
            }
            condition
        };
        (0..1 + random.below(self.conditions)).map(|i| condition(i, random)).collect()
    }
}

fn names_have_the_numbers_of_libseccomp() {
    needs!(libseccomp());
    let oracle = Oracle::new();
    for machine in [&X86_64_MACHINE, &AARCH64_MACHINE, &RISCV64_MACHINE] {
        for architecture in machine.architectures {
            let ours: BTreeMap<&str, u32> = machine.calls(architecture).collect();
            let names: Vec<&str> = ours.keys().copied().collect();
            let theirs = oracle.numbers(architecture, &names);
            for (name, number) in &theirs {
                assert_eq!(ours[name], *number, "{name} on {}", architecture.name);
            }
            assert!(theirs.len() > 300, "{}", architecture.name);
        }
    }
}

const PLAIN: Shape = Shape {
    entries: 40,
    operators: ALL,
    conditions: 0,
    arguments: 3,
    mixed: false,
    one_name: false,
    together: false,
    anywhere: false,
    narrow: false,
};

fn compare(machine: &'static Machine, count: usize, may_differ: usize, shape: &Shape) {
    let comparison = Comparison::new(machine);
    let names: Vec<&str> = comparison.known.iter().copied().collect();
    // Where one of the architectures lacks a call or has a second way in, libseccomp may not load the number that it
    // compares.
    let is_everywhere = |name: &&&str| {
        let found = machine.look_up(name).unwrap();
        machine.architectures.iter().all(|one| found.on(one).is_some() && found.multiplexed_on(one).is_none())
    };
    let everywhere: Vec<&str> = names.iter().filter(is_everywhere).copied().collect();
    let everywhere = if shape.anywhere { &names } else { &everywhere };
    let architectures: Vec<&str> = machine.architectures.iter().map(|one| one.name).collect();
    let mut random = Random(count as u64);
    let count = count * env::var("PROFILES").map_or(1, |factor| factor.parse().unwrap());
    let profiles: Vec<Value> =
        (0..count).map(|_| shape.profile(&mut random, &names, everywhere, &architectures)).collect();
    let tally = comparison.compare(&profiles, may_differ > 0);
    assert!(tally.compared > count / 4, "{tally:?}");
    assert!(tally.different <= tally.compared * may_differ / 100, "{tally:?}");
}

fn rules_without_conditions_decide_as_with_libseccomp() {
    needs!(libseccomp());
    compare(&X86_64_MACHINE, 200, 0, &PLAIN);
    compare(&AARCH64_MACHINE, 50, 0, &PLAIN);
    compare(&RISCV64_MACHINE, 50, 0, &PLAIN);
}

fn a_rule_with_conditions_decides_as_with_libseccomp() {
    needs!(libseccomp());
    let shape = Shape { entries: 1, conditions: 3, one_name: true, together: true, ..PLAIN };
    compare(&X86_64_MACHINE, 800, 0, &shape);
    compare(&AARCH64_MACHINE, 300, 0, &shape);
}

const EQUALITY: &[&str] = &["SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_MASKED_EQ"];

fn profiles_decide_as_with_libseccomp() {
    needs!(libseccomp());
    compare(&X86_64_MACHINE, 250, 0, &Shape { operators: EQUALITY, conditions: 1, ..PLAIN });
    compare(&AARCH64_MACHINE, 100, 0, &Shape { operators: EQUALITY, conditions: 1, ..PLAIN });
    compare(&X86_64_MACHINE, 250, 0, &Shape { conditions: 1, arguments: 1, narrow: true, ..PLAIN });
}

/// libseccomp overlooks rules when some compare several arguments or values of more than 32 bits, in one profile of a
/// hundred; what is right is then known from the rules.
fn all_rules_decide_where_libseccomp_overlooks_some() {
    needs!(libseccomp());
    compare(&X86_64_MACHINE, 250, 20, &Shape { conditions: 3, anywhere: true, ..PLAIN });
}

fn of_two_rules_the_same_decides_as_with_libseccomp() {
    needs!(libseccomp());
    let condition = |(index, operator, value): (u32, &str, u32)| json!([{"index": index, "op": format!("SCMP_CMP_{operator}"), "value": value}]);
    let mut profiles = Vec::new();
    for (one, other) in [
        ((0, "LT", 8), (0, "LT", 100)),
        ((0, "LE", 8), (0, "LT", 100)),
        ((0, "GT", 8), (0, "GT", 100)),
        ((0, "GE", 8), (0, "GT", 100)),
        ((0, "EQ", 8), (0, "LT", 100)),
        ((0, "EQ", 8), (0, "GE", 3)),
        ((0, "LT", 100), (0, "GT", 8)),
        ((0, "EQ", 8), (1, "EQ", 8)),
        ((0, "EQ", 8), (2, "GT", 1)),
        ((1, "LT", 8), (2, "GT", 1)),
        ((0, "NE", 8), (0, "EQ", 100)),
        ((0, "NE", 100), (0, "EQ", 8)),
    ] {
        for (first, second) in [(one, other), (other, one)] {
            profiles.push(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [], "syscalls": [
                {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": condition(first)},
                {"names": ["mount"], "action": "SCMP_ACT_TRAP", "args": condition(second)},
            ]}));
        }
    }
    let tally = Comparison::new(&X86_64_MACHINE).compare(&profiles, false);
    assert_eq!((tally.compared, tally.different), (profiles.len(), 0), "{tally:?}");
}

/// Where libseccomp refuses the rules, or gives up its order for values of more than 32 bits, there is nothing to follow.
fn rules_of_different_actions_are_asked_in_the_order_of_libseccomp() {
    needs!(libseccomp());
    let shape = Shape { entries: 3, conditions: 3, mixed: true, one_name: true, ..PLAIN };
    compare(&X86_64_MACHINE, 400, 0, &Shape { operators: &["SCMP_CMP_EQ"], narrow: true, ..shape });
    compare(&X86_64_MACHINE, 400, 2, &Shape { conditions: 1, narrow: true, ..shape });
    compare(&X86_64_MACHINE, 400, 10, &Shape { conditions: 1, ..shape });
}

/// As those of the engines: hundreds of calls allowed, few refused in another way, few by their arguments. And those of
/// the configs in $SECCOMP_CONFIGS, with all their names that libseccomp knows.
fn the_profiles_of_engines_decide_as_with_libseccomp() {
    needs!(libseccomp());
    let comparison = Comparison::new(&X86_64_MACHINE);
    let refused = |name: &&str| {
        [
            "mount",
            "umount",
            "swap",
            "kexec",
            "module",
            "keyctl",
            "time64",
            "set_",
            "clone",
            "socket",
            "personality",
        ]
        .iter()
        .any(|part| name.contains(part))
    };
    let (refused, allowed): (Vec<&str>, Vec<&str>) = comparison.known.iter().copied().partition(refused);
    let one = |name: &str, action: &str, index: u32, operator: &str, value: u64| {
        let condition = json!({"index": index, "value": value, "valueTwo": 0, "op": operator});
        json!({"names": [name], "action": action, "args": [condition]})
    };
    let profile = |default_errno: u32, socket: Vec<Value>| {
        let mut rules = vec![
            json!({"names": refused[..refused.len() / 2], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}),
            json!({"names": allowed, "action": "SCMP_ACT_ALLOW"}),
            json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}),
            one("clone", "SCMP_ACT_ALLOW", 0, "SCMP_CMP_MASKED_EQ", 0x7e02_0000),
        ];
        let allow = |value| one("personality", "SCMP_ACT_ALLOW", 0, "SCMP_CMP_EQ", value);
        rules.extend([0, 8, 0x20000, 0x20008, 0xffff_ffff].map(allow));
        rules[0]["names"].as_array_mut().unwrap().retain(|name| name != "clone" && name != "personality");
        rules.extend(socket);
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": default_errno, "syscalls": rules,
               "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]})
    };
    let mut profiles = vec![
        profile(1, vec![one("socket", "SCMP_ACT_ALLOW", 0, "SCMP_CMP_NE", 40)]),
        profile(
            38,
            vec![
                one("socket", "SCMP_ACT_ALLOW", 0, "SCMP_CMP_LT", 38),
                one("socket", "SCMP_ACT_ALLOW", 0, "SCMP_CMP_EQ", 39),
                one("socket", "SCMP_ACT_ALLOW", 0, "SCMP_CMP_GT", 40),
            ],
        ),
    ];
    for path in env::var("SECCOMP_CONFIGS").iter().flat_map(|paths| paths.split(':')) {
        let mut config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut profile = config["linux"]["seccomp"].take();
        for entry in profile["syscalls"].as_array_mut().unwrap() {
            let known = |name: &Value| comparison.known.contains(name.as_str().unwrap());
            entry["names"].as_array_mut().unwrap().retain(known);
        }
        profile["syscalls"].as_array_mut().unwrap().retain(|entry| entry["names"] != json!([]));
        profiles.push(profile);
    }
    let tally = comparison.compare(&profiles, false);
    assert_eq!((tally.compared, tally.different), (profiles.len(), 0), "{tally:?}");
}
