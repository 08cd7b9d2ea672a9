//! `/linux/resources/devices`: which devices the container may read, write and make.
//!
//! cgroup v2 has no file for this. The kernel runs a BPF program of the cgroup at each open and mknod of a
//! device node; it gets `{u32 access << 16 | type, u32 major, u32 minor}` and answers 1 (allow) or 0 (EPERM).
//! The rules become such a program. It has no branch: the verifier walks each side of every branch, and the
//! peers' way, one branch for each comparison, takes it 207 us for the default rules where this takes 37.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#configLinuxDeviceAllowedlist>

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::Cgroup;
use crate::error::{At, Context, Error, Field, Result};
use crate::spec::Node;
use crate::sys::bpf::{
    Insn, prog_attach_cgroup_device, prog_detach_cgroup_device, prog_get_fd_by_id, prog_load_cgroup_device,
    prog_query_cgroup_device,
};

/// The rules in order; for each kind of access the last one that matches decides, without one it is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    field: Field,
    rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    access: u8, // READ | WRITE | MKNOD
    devices: Set,
}

/// The devices whose [`key`] agrees with `value` in the bits of `mask`; `value` is 0 elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    mask: u64,
    value: u64,
}

// The kernel's BPF_DEVCG_ACC_* and BPF_DEVCG_DEV_*.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;
const BLOCK: u64 = 1;
const CHAR: u64 = 2;

const MINOR: u64 = (1 << 20) - 1;
const MAJOR: u64 = ((1 << 12) - 1) << 20;
const TYPE: u64 = 1 << 32;

/// A device as one number: 20 bits of minor, 12 of major, which are all that the kernel has, and the bit in which
/// BLOCK and CHAR differ.
const fn key(kind: u64, major: u64, minor: u64) -> u64 {
    (kind & 1) << 32 | major << 20 | minor
}

/// What every container may use besides its own rules, as with runc: its program expects the devices that the
/// spec has in every /dev, its terminals and /dev/net/tun; a node that it makes is still of no use unless allowed.
const DEFAULTS: [Rule; 11] = [
    allow(MKNOD, Set { mask: TYPE, value: key(CHAR, 0, 0) }),
    allow(MKNOD, Set { mask: TYPE, value: key(BLOCK, 0, 0) }),
    allow(ALL, char_device(1, 3)),                                    // null
    allow(ALL, char_device(1, 8)),                                    // random
    allow(ALL, char_device(1, 7)),                                    // full
    allow(ALL, char_device(5, 0)),                                    // tty
    allow(ALL, char_device(1, 5)),                                    // zero
    allow(ALL, char_device(1, 9)),                                    // urandom
    allow(ALL, Set { mask: TYPE | MAJOR, value: key(CHAR, 136, 0) }), // pts
    allow(ALL, char_device(5, 2)),                                    // ptmx
    allow(ALL, char_device(10, 200)),                                 // net/tun
];

const fn allow(access: u8, devices: Set) -> Rule {
    Rule { allow: true, access, devices }
}

const fn char_device(major: u64, minor: u64) -> Set {
    Set { mask: TYPE | MAJOR | MINOR, value: key(CHAR, major, minor) }
}

/// Reads `/linux/resources`. Without rules only the default devices are allowed; the devices of `/linux/devices`
/// need rules of their own, as with runc and crun.
pub fn plan(resources: Option<&Node<'_>>) -> Filter {
    let configured = resources.map(|resources| resources.objects("devices")).unwrap_or_default();
    let mut rules: Vec<Rule> = configured.iter().filter_map(plan_rule).collect();
    rules.extend(DEFAULTS);
    let field = resources.map_or_else(Field::root, |resources| resources.at("devices"));
    Filter { field, rules }
}

impl Filter {
    /// Whether any access is left for the kernel to refuse.
    pub fn denies_any(&self) -> bool {
        compile(&self.rules).is_some()
    }
}

fn plan_rule(node: &Node<'_>) -> Option<Rule> {
    node.expect_keys(&["allow", "type", "major", "minor", "access"]);
    let allow = node.required_boolean("allow");
    let kind = match node.string("type").unwrap_or("a") {
        "a" => Some(Set { mask: 0, value: 0 }),
        "b" => Some(Set { mask: TYPE, value: key(BLOCK, 0, 0) }),
        "c" => Some(Set { mask: TYPE, value: key(CHAR, 0, 0) }),
        other => {
            node.problem("type", format_args!("must be \"a\", \"b\" or \"c\", not {other:?}"));
            None
        }
    };
    let major = plan_number(node, "major", MAJOR);
    let minor = plan_number(node, "minor", MINOR);
    let access = plan_access(node);
    let (kind, major, minor) = (kind?, major?, minor?);
    let devices =
        Set { mask: kind.mask | major.mask | minor.mask, value: kind.value | major.value | minor.value };
    Some(Rule { allow: allow?, access: access?, devices })
}

/// One number of a device, which stands at the bits `mask` of its key; absent and -1 are any.
fn plan_number(node: &Node<'_>, name: &str, mask: u64) -> Option<Set> {
    let shift = mask.trailing_zeros();
    match node.i64(name).unwrap_or(-1) {
        -1 => Some(Set { mask: 0, value: 0 }),
        number if (0..=(mask >> shift) as i64).contains(&number) => {
            Some(Set { mask, value: (number as u64) << shift })
        }
        other => {
            node.problem(name, format_args!("must be -1 (any) or 0 to {}, not {other}", mask >> shift));
            None
        }
    }
}

fn plan_access(node: &Node<'_>) -> Option<u8> {
    let Some(letters) = node.string("access") else { return Some(ALL) };
    let bits = letters.chars().try_fold(0, |bits, letter| match letter {
        'm' => Some(bits | MKNOD),
        'r' => Some(bits | READ),
        'w' => Some(bits | WRITE),
        _ => None,
    });
    let bits = bits.filter(|&bits| bits != 0);
    if bits.is_none() {
        node.problem("access", format_args!("must be made of the letters r, w and m, not {letters:?}"));
    }
    bits
}

/// Has the cgroup obey the filter instead of those that an earlier container or a manager left there; the kernel
/// would ask all of them.
pub fn apply(filter: &Filter, cgroup: &Cgroup) -> Result<()> {
    let old = if cgroup.is_new() { Vec::new() } else { attached(cgroup).at(&filter.field)? };
    let mut leftovers = old.as_slice();
    if let Some(insns) = compile(&filter.rules) {
        let program = load(&insns).at(&filter.field)?;
        let mut replace = None;
        // Only one for one is an exchange in one step; with more, all are obeyed until the old ones are gone.
        if let [only] = leftovers {
            (replace, leftovers) = (Some(only), &[]);
        }
        prog_attach_cgroup_device(cgroup, program, replace)
            .context(|| "attach the device filter to the cgroup")
            .at(&filter.field)?;
    }
    for program in leftovers {
        prog_detach_cgroup_device(cgroup, program)
            .context(|| "detach the old device filter from the cgroup")
            .at(&filter.field)?;
    }
    Ok(())
}

fn attached(cgroup: impl AsFd) -> Result<Vec<OwnedFd>> {
    let ids = prog_query_cgroup_device(cgroup).context(|| "list the device filters of the cgroup")?;
    let open = |id| match prog_get_fd_by_id(id) {
        // Detached since.
        Err(Errno::ENOENT) => None,
        other => Some(other.context(|| format!("open device filter {id} of the cgroup"))),
    };
    ids.into_iter().filter_map(open).collect()
}

fn load(insns: &[Insn]) -> Result<OwnedFd> {
    let refused = match prog_load_cgroup_device(insns, &mut []) {
        Ok(program) => return Ok(program),
        Err(errno) => errno,
    };
    // Only the verifier knows what it dislikes, and asking it for text would slow every load.
    let mut log = vec![0; 64 << 10];
    let reason = match (refused, prog_load_cgroup_device(insns, &mut log)) {
        (_, Ok(program)) => return Ok(program),
        (Errno::EPERM, _) => "the caller has no CAP_BPF and CAP_NET_ADMIN on the host".into(),
        (Errno::E2BIG, _) => format!("the rules need {} instructions, too many for the kernel", insns.len()),
        _ => {
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches('\0').trim_end();
            log.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("; ")
        }
    };
    Err(Error::from(refused)).context(|| format!("load the device filter: {reason}"))
}

impl Rule {
    fn overlaps(&self, other: &Rule) -> bool {
        let (a, b) = (self.devices, other.devices);
        self.access & other.access != 0 && (a.value ^ b.value) & a.mask & b.mask == 0
    }

    fn covers(&self, other: &Rule) -> bool {
        let (a, b) = (self.devices, other.devices);
        self.access & other.access == other.access && a.mask & b.mask == a.mask && b.value & a.mask == a.value
    }

    fn is_everything(&self) -> bool {
        self.access == ALL && self.devices.mask == 0
    }

    /// Both in one, when their devices differ in a single bit, as 1:8 and 1:9 do.
    fn merged(&self, other: &Rule) -> Option<Rule> {
        let (a, b) = (self.devices, other.devices);
        let differing = a.value ^ b.value;
        let mergeable = self.access == other.access && a.mask == b.mask && differing.is_power_of_two();
        let devices = Set { mask: a.mask & !differing, value: a.value & !differing };
        mergeable.then_some(Rule { devices, ..*self })
    }
}

/// Fewer rules of the same effect, and the kinds of access that are denied before the first of them.
///
/// Configs begin with "deny everything" and name many of the default devices once more.
fn simplify(rules: &[Rule]) -> (u8, Vec<Rule>) {
    let mut denied = ALL;
    let mut kept: Vec<Rule> = Vec::new();
    for &rule in rules {
        let unchanged = if rule.allow { denied & rule.access == 0 } else { !denied & rule.access == 0 };
        if unchanged && !kept.iter().any(|k| k.allow != rule.allow && k.overlaps(&rule)) {
            continue;
        }
        // Rules of one verdict may be reordered among themselves, but not across one of the other verdict.
        let run = kept.iter().rposition(|k| k.allow != rule.allow).map_or(0, |last| last + 1);
        if kept[run..].iter().any(|k| k.covers(&rule)) {
            continue;
        }
        let mut rule = rule;
        while let Some((i, both)) = (run..kept.len()).find_map(|i| Some((i, kept[i].merged(&rule)?))) {
            kept.swap_remove(i);
            rule = both;
        }
        if rule.is_everything() {
            kept.clear();
            denied = if rule.allow { 0 } else { ALL };
        } else {
            kept.push(rule);
        }
    }
    (denied, kept)
}

// Registers. The verifier wants the result in 0 and gives the request's address in 1.
const DENIED: u8 = 0; // the kinds of access denied by the rules so far
const REQUEST: u8 = 1;
const SCRATCH: u8 = 1; // the request has been read by then
const ACCESS: u8 = 2;
const KEY: u8 = 3;
const NO_MATCH: u8 = 4; // all ones unless a rule of the group matches
const DIFFERENCE: u8 = 5;

// Instructions on 64 bits with a constant; `| REGISTER` takes another register instead.
const OR: u8 = 0x47;
const AND: u8 = 0x57;
const LSH: u8 = 0x67;
const RSH: u8 = 0x77;
const NEG: u8 = 0x87;
const XOR: u8 = 0xa7;
const SUB: u8 = 0x17;
const MOV: u8 = 0xb7;
const ARSH: u8 = 0xc7; // keeps the sign
const REGISTER: u8 = 0x08;
const LOAD32: u8 = 0x61;
const LOAD_CONSTANT: u8 = 0x18; // 64 bits, over two instructions
const EXIT: u8 = 0x95;

/// The rules as a program; None when they allow everything.
fn compile(rules: &[Rule]) -> Option<Vec<Insn>> {
    let (denied, rules) = simplify(rules);
    if denied == 0 && rules.is_empty() {
        return None;
    }
    let mut program = Program(Vec::new());
    program.read_request();
    program.constant(MOV, DENIED, denied.into());
    for run in rules.chunk_by(|a, b| a.allow == b.allow) {
        for access in 1..=ALL {
            let mut group = run.iter().filter(|rule| rule.access == access).peekable();
            if group.peek().is_some() {
                let unless_matched = program.unless_any_matches(group);
                program.decide(run[0].allow, access, unless_matched);
            }
        }
    }
    program.answer();
    Some(program.0)
}

struct Program(Vec<Insn>);

impl Program {
    fn read_request(&mut self) {
        self.push(LOAD32, ACCESS, REQUEST, 0, 0);
        self.push(LOAD32, KEY, REQUEST, 4, 0);
        self.constant(LSH, KEY, 20);
        self.push(LOAD32, DIFFERENCE, REQUEST, 8, 0);
        self.register(OR, KEY, DIFFERENCE);
        self.register(MOV, DIFFERENCE, ACCESS);
        self.constant(AND, DIFFERENCE, 1);
        self.constant(LSH, DIFFERENCE, 32);
        self.register(OR, KEY, DIFFERENCE);
        self.constant(RSH, ACCESS, 16);
    }

    /// Computes NO_MATCH, unless a rule matches every device.
    fn unless_any_matches<'r>(&mut self, rules: impl Iterator<Item = &'r Rule>) -> bool {
        let mut first = true;
        for Rule { devices: Set { mask, value }, .. } in rules {
            if *mask == 0 {
                return false;
            }
            let ignored = (TYPE | MAJOR | MINOR) & !mask;
            self.register(MOV, DIFFERENCE, KEY);
            if ignored != 0 {
                self.constant(OR, DIFFERENCE, ignored);
            }
            self.constant(XOR, DIFFERENCE, value | ignored);
            // It has 33 bits at most, so that its negative has the sign set unless it is 0.
            self.push(NEG, DIFFERENCE, 0, 0, 0);
            self.register(if first { MOV } else { AND }, NO_MATCH, DIFFERENCE);
            first = false;
        }
        self.constant(ARSH, NO_MATCH, 63);
        true
    }

    /// Takes `access` out of what is denied, or puts it in, unless nothing matched.
    fn decide(&mut self, allow: bool, access: u8, unless_matched: bool) {
        match (allow, unless_matched) {
            (true, false) => self.constant(AND, DENIED, !u64::from(access)),
            (true, true) => {
                if access != ALL {
                    self.constant(OR, NO_MATCH, !u64::from(access));
                }
                self.register(AND, DENIED, NO_MATCH);
            }
            (false, false) => self.constant(OR, DENIED, access.into()),
            (false, true) => {
                self.constant(XOR, NO_MATCH, u64::MAX);
                self.constant(AND, NO_MATCH, access.into());
                self.register(OR, DENIED, NO_MATCH);
            }
        }
    }

    /// 1 if nothing of what is asked is denied: only 0 - 1 has the highest bit set.
    fn answer(&mut self) {
        self.register(AND, DENIED, ACCESS);
        self.constant(SUB, DENIED, 1);
        self.constant(RSH, DENIED, 63);
        self.push(EXIT, 0, 0, 0, 0);
    }

    fn constant(&mut self, operation: u8, dst: u8, value: u64) {
        match i32::try_from(value as i64) {
            Ok(value) => self.push(operation, dst, 0, 0, value),
            Err(_) => {
                self.push(LOAD_CONSTANT, SCRATCH, 0, 0, value as i32);
                self.push(0, 0, 0, 0, (value >> 32) as i32);
                self.register(operation, dst, SCRATCH);
            }
        }
    }

    fn register(&mut self, operation: u8, dst: u8, src: u8) {
        self.push(operation | REGISTER, dst, src, 0, 0);
    }

    fn push(&mut self, code: u8, dst: u8, src: u8, offset: i16, imm: i32) {
        self.0.push(Insn::new(code, dst, src, offset, imm));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Report, parse};

    fn planned(json: &str) -> std::result::Result<Filter, Vec<String>> {
        let report = Report::default();
        let map = parse(json.as_bytes(), &report).unwrap();
        let filter = plan(Some(&Node::root(&map, &report)));
        match report.finish() {
            Ok(_) => Ok(filter),
            Err(e) => Err(e.problems().iter().map(ToString::to_string).collect()),
        }
    }

    fn allowed(program: &Option<Vec<Insn>>, kind: u64, major: u64, minor: u64, access: u8) -> bool {
        program.as_ref().is_none_or(|insns| run(insns, [u64::from(access) << 16 | kind, major, minor]) == 1)
    }

    fn config(json: &str) -> Option<Vec<Insn>> {
        compile(&planned(json).unwrap().rules)
    }

    /// What the kernel does with the instructions that are used.
    fn run(insns: &[Insn], request: [u64; 3]) -> u64 {
        let mut r = [0xdead_beef_u64; 6];
        let mut at = 0;
        loop {
            let insn = insns[at];
            let (dst, imm) = (usize::from(insn.dst()), insn.imm() as i64 as u64);
            let operand = if insn.code() & REGISTER != 0 { r[usize::from(insn.src())] } else { imm };
            match insn.code() {
                EXIT => return r[0],
                LOAD32 => r[dst] = request[insn.offset() as usize / 4],
                LOAD_CONSTANT => {
                    at += 1;
                    r[dst] = (insns[at].imm() as u64) << 32 | u64::from(insn.imm() as u32);
                }
                NEG => r[dst] = r[dst].wrapping_neg(),
                code => {
                    r[dst] = match code & !REGISTER {
                        OR => r[dst] | operand,
                        AND => r[dst] & operand,
                        XOR => r[dst] ^ operand,
                        LSH => r[dst] << operand,
                        RSH => r[dst] >> operand,
                        ARSH => (r[dst] as i64 >> operand) as u64,
                        SUB => r[dst].wrapping_sub(operand),
                        MOV => operand,
                        other => panic!("instruction {other:#x}"),
                    }
                }
            }
            at += 1;
        }
    }

    /// The rules as the spec says them: in order, each for its kinds of access.
    fn naive(rules: &[Rule], kind: u64, major: u64, minor: u64, access: u8) -> bool {
        let mut allowed = 0;
        for rule in rules {
            let Set { mask, value } = rule.devices;
            if key(kind, major, minor) & mask == value {
                allowed = if rule.allow { allowed | rule.access } else { allowed & !rule.access };
            }
        }
        access & !allowed == 0
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }

        fn of(&mut self, choices: &[u64]) -> u64 {
            choices[self.below(choices.len() as u64) as usize]
        }

        fn rule(&mut self) -> Rule {
            let mut devices = Set { mask: 0, value: 0 };
            for (mask, value) in [
                (TYPE, key(1 + self.below(2), 0, 0)),
                (MAJOR, key(0, self.of(&MAJORS), 0)),
                (MINOR, key(0, 0, self.of(&MINORS))),
            ] {
                if self.below(3) != 0 {
                    devices = Set { mask: devices.mask | mask, value: devices.value | value };
                }
            }
            Rule { allow: self.below(2) == 0, access: 1 + self.below(7) as u8, devices }
        }
    }

    /// The extremes, the sign bit of a constant, and neighbours that merge.
    const MAJORS: [u64; 6] = [0, 1, 5, 136, 2048, 4095];
    const MINORS: [u64; 6] = [0, 1, 2, 3, 1 << 19, MINOR];

    #[test]
    fn the_program_decides_as_the_rules_do() {
        let mut random = Random(1);
        let mut programs = 0;
        for round in 0..3000 {
            let mut rules: Vec<Rule> = (0..random.below(12)).map(|_| random.rule()).collect();
            if round % 3 == 0 {
                rules.extend(DEFAULTS);
            }
            let program = compile(&rules);
            programs += usize::from(program.is_some());
            for _ in 0..200 {
                let (kind, access) = (1 + random.below(2), 1 + random.below(7) as u8);
                let (major, minor) = (random.of(&MAJORS), random.of(&MINORS));
                assert_eq!(
                    allowed(&program, kind, major, minor, access),
                    naive(&rules, kind, major, minor, access),
                    "{rules:?}: {kind} {major}:{minor} {access}"
                );
            }
        }
        assert!(programs > 2500);
    }

    #[test]
    fn without_rules_the_default_devices_are_allowed_and_no_others() {
        for json in ["{}", r#"{"devices": []}"#, r#"{"devices": [{"allow": false}]}"#] {
            let program = config(json);
            assert_eq!(program.as_ref().map(Vec::len), Some(46), "{json}");
            let default =
                [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 77), (10, 200)];
            for major in 0..256 {
                for minor in 0..256 {
                    let expected = default.contains(&(major, minor)) || major == 136;
                    assert_eq!(allowed(&program, CHAR, major, minor, ALL), expected, "c {major}:{minor}");
                    assert!(!allowed(&program, BLOCK, major, minor, READ), "b {major}:{minor}");
                }
            }
            assert!(allowed(&program, BLOCK, 8, 0, MKNOD) && !allowed(&program, BLOCK, 8, 0, MKNOD | READ));
        }
    }

    #[test]
    fn a_config_that_repeats_the_defaults_costs_nothing() {
        let docker = r#"{"devices": [{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 9, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 8, "access": "rwm"},
            {"allow": true, "type": "c", "major": 5, "minor": 0, "access": "rwm"},
            {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]}"#;
        assert_eq!(config(docker).unwrap().len(), 46);
    }

    #[test]
    fn allowing_everything_needs_no_program() {
        assert_eq!(config(r#"{"devices": [{"allow": false}, {"allow": true, "access": "mrw"}]}"#), None);
        let both =
            r#"{"devices": [{"allow": true, "type": "c"}, {"allow": true, "type": "b", "major": -1}]}"#;
        assert_eq!(config(both), None);
    }

    #[test]
    fn the_last_matching_rule_decides_for_each_kind_of_access() {
        let program = config(
            r#"{"devices": [{"allow": true}, {"allow": false, "type": "b", "major": 8, "access": "w"},
                {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "w"}]}"#,
        );
        assert!(allowed(&program, BLOCK, 8, 0, READ));
        assert!(!allowed(&program, BLOCK, 8, 0, WRITE));
        assert!(!allowed(&program, BLOCK, 8, 0, READ | WRITE));
        assert!(allowed(&program, BLOCK, 8, 1, READ | WRITE));
        assert!(allowed(&program, CHAR, 8, 0, ALL));
    }

    #[test]
    fn every_wrong_value_is_named() {
        let wrong = r#"{"devices": [{"type": "u"}, {"allow": true, "access": "rx"}, {"allow": true, "access": ""},
            {"allow": true, "major": 4096, "minor": -2}, {"allow": "yes", "minor": 1048576}]}"#;
        assert_eq!(
            planned(wrong).unwrap_err(),
            [
                "/devices/0/allow: is required",
                "/devices/0/type: must be \"a\", \"b\" or \"c\", not \"u\"",
                "/devices/1/access: must be made of the letters r, w and m, not \"rx\"",
                "/devices/2/access: must be made of the letters r, w and m, not \"\"",
                "/devices/3/major: must be -1 (any) or 0 to 4095, not 4096",
                "/devices/3/minor: must be -1 (any) or 0 to 1048575, not -2",
                "/devices/4/allow: must be true or false, not \"yes\"",
                "/devices/4/minor: must be -1 (any) or 0 to 1048575, not 1048576",
            ]
        );
    }
}
