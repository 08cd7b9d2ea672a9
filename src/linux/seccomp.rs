//! `/linux/seccomp`: which system calls the program may make, and with which arguments.
//!
//! The profile becomes a BPF program that the kernel runs at each system call of the container. Its load takes as long
//! as the program is, at every start of a container, so that it is made to be short. What a profile means is what
//! libseccomp makes of it; unlike there, a call that is newer than the profile fails with ENOSYS when the default
//! action is an error, as runc has it.
//!
//! Spec: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp>,
//! [seccomp(2)](https://man7.org/linux/man-pages/man2/seccomp.2.html)

pub mod arch;
mod assembler;
mod compiler;
mod conditions;
mod listener;
mod places;
mod profile;
mod verdict;

use std::fmt;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use seccompiler::{BpfProgram, sock_filter};

use self::arch::{Architecture, Machine, NATIVE};
use self::compiler::{Compiled, compile};
pub use self::listener::Listener;
pub use self::profile::{ACTIONS, FLAGS, OPERATORS};
use self::profile::{
    Entry, WAIT_KILLABLE_RECV, plan_action, plan_architectures, plan_entry, plan_flags, report, uses,
};
use self::verdict::{Call, answers};
use crate::error::{At, Context, Error, Field, Result};
use crate::log;
use crate::spec::Node;
use crate::sys::seccomp::{knows_flags, set_mode_filter, set_mode_filter_listener};

/// A filter, ready for the kernel.
pub struct Seccomp {
    program: BpfProgram,
    /// Instructions for each architecture that the kernel tells apart.
    sizes: Vec<(&'static str, usize)>,
    machine: &'static Machine,
    architectures: Vec<&'static Architecture>,
    flags: u32, // SECCOMP_FILTER_FLAG_*
    notifies: bool,
    listener: Option<Listener>,
    field: Field,
}

/// What becomes of a call: SECCOMP_RET_* of linux/seccomp.h, with an error number or a tracer's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action(u32);

/// The kernel's BPF_MAXINSNS.
const MOST_INSTRUCTIONS: usize = 4096;

impl Seccomp {
    pub fn plan(linux: &Node) -> Option<Self> {
        Self::plan_for(NATIVE, linux)
    }

    /// The filter for another kind of machine.
    pub fn plan_for(machine: &'static Machine, linux: &Node) -> Option<Self> {
        let node = linux.object("seccomp")?;
        node.expect_keys(&[
            "defaultAction",
            "defaultErrnoRet",
            "architectures",
            "flags",
            "listenerPath",
            "listenerMetadata",
            "syscalls",
        ]);
        let default = plan_action(&node, "defaultAction", "defaultErrnoRet");
        if default == Some(libc::SECCOMP_RET_USER_NOTIF) {
            let reason =
                "must not be SCMP_ACT_NOTIFY: the write(2) that tells of the listener would wait for it";
            node.problem("defaultAction", reason);
        }
        let architectures = plan_architectures(&node, machine);
        let entries: Vec<Entry> =
            node.objects("syscalls").into_iter().map(|entry| plan_entry(entry, machine, default)).collect();
        let notifies = entries.iter().any(|entry| entry.notifies);
        let flags = plan_flags(&node, notifies);
        let listener = Listener::plan(&node, notifies);
        let Compiled { program, sizes, conflicts } = compile(&architectures, &uses(&entries), default?);
        conflicts.iter().for_each(|conflict| report(conflict, &entries));
        log_size(&program, &sizes);
        if program.len() > MOST_INSTRUCTIONS {
            let most = format!("more than the {MOST_INSTRUCTIONS} that the kernel takes");
            linux.problem("seccomp", format_args!("needs {} BPF instructions, {most}", program.len()));
        }
        let field = node.field().clone();
        Some(Self { program, sizes, machine, architectures, flags, notifies, listener, field })
    }

    /// The agent to which the filter leaves calls.
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    /// Puts the calling thread and its descendants under the filter. Without no_new_privs that takes CAP_SYS_ADMIN.
    /// With rules that notify, what is returned is where the calls are read: the agent's.
    pub fn load(&self) -> Result<Option<OwnedFd>> {
        let loaded = if self.notifies {
            set_mode_filter_listener(self.flags, &self.program).map(Some)
        } else {
            set_mode_filter(self.flags, &self.program).map(|()| None)
        };
        loaded
            .map_err(|errno| self.explain(errno))
            .context(|| format!("load the seccomp filter of {} instructions", self.program.len()))
            .at(&self.field)
    }

    fn explain(&self, errno: Errno) -> Error {
        let error = Error::from(errno);
        match errno {
            Errno::EACCES => error.because("it takes noNewPrivileges or CAP_SYS_ADMIN".into()),
            Errno::EBUSY => error.because("a filter of the caller has a listener already".into()),
            Errno::ENOMEM => error.because("with the filters of the caller it may be too long".into()),
            Errno::EINVAL => {
                let unknown = FLAGS.iter().filter(|(_, flag)| self.flags & flag != 0 && !knows_flags(*flag));
                let names: Vec<&str> = unknown.map(|(name, _)| *name).collect();
                match names.is_empty() {
                    true => error,
                    false => error.because(format!("this kernel does not know {}", names.join(", "))),
                }
            }
            _ => error,
        }
    }

    pub fn program(&self) -> &[sock_filter] {
        &self.program
    }

    /// The instructions for each architecture that the kernel tells apart.
    pub fn sizes(&self) -> &[(&'static str, usize)] {
        &self.sizes
    }

    /// What may become of a call, by name or number, on each of the filter's architectures that have it. Arguments that
    /// are not given may have any value. None if no architecture at all has a call of this name.
    pub fn verdicts(
        &self,
        call: &str,
        arguments: &[Option<u64>],
    ) -> Option<Vec<(&'static str, Vec<Action>)>> {
        let number: Option<u32> = call.parse().ok();
        let numbers = self.machine.look_up(call);
        if number.is_none() && numbers.is_none() {
            return None;
        }
        let verdict = |architecture: &&'static Architecture| {
            let number = number.map(|number| architecture.first_number() | number);
            let number = number.or_else(|| numbers?.on(architecture))?;
            let call = Call::new(architecture.audit, number, arguments);
            let mut answers = answers(&self.program, &call);
            // The strictest first, as the kernel compares them.
            answers.sort_unstable_by_key(|answer| *answer as i32);
            Some((architecture.name, answers.into_iter().map(Action).collect()))
        };
        Some(self.architectures.iter().filter_map(verdict).collect())
    }

    /// What becomes of the first of the native calls that is kept from taking place, whatever its arguments are. An
    /// agent may let a call through, unless it is one without which the agent would not be there yet.
    pub fn first_blocked<'n>(&self, calls: &[&'n str], agent_is_there: bool) -> Option<(&'n str, Action)> {
        calls.iter().find_map(|name| {
            let verdicts = self.verdicts(name, &[])?;
            let (_, actions) = verdicts.first()?;
            let passes = |action: &Action| action.lets_pass() || agent_is_there && action.notifies();
            (!actions.iter().any(passes)).then(|| (*name, actions[0]))
        })
    }
}

impl Action {
    pub fn lets_pass(self) -> bool {
        matches!(self.0, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG)
    }

    pub fn notifies(self) -> bool {
        self.0 == libc::SECCOMP_RET_USER_NOTIF
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (action, data) = (self.0 & libc::SECCOMP_RET_ACTION_FULL, self.0 & libc::SECCOMP_RET_DATA);
        let name =
            ACTIONS.iter().find(|(_, value)| *value == action).map_or("an unknown action", |(name, _)| name);
        match action {
            libc::SECCOMP_RET_ERRNO => write!(f, "{name} ({:?}, {data})", Errno::from_raw(data as i32)),
            libc::SECCOMP_RET_TRACE => write!(f, "{name} ({data})"),
            _ => f.write_str(name),
        }
    }
}

/// Those of [`FLAGS`] that this kernel knows.
pub fn supported_flags() -> impl Iterator<Item = &'static str> {
    // The kernel takes one of them for filters with a listener only.
    let with = |flag| {
        flag | if flag == WAIT_KILLABLE_RECV { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 } else { 0 }
    };
    FLAGS.iter().filter(move |(_, flag)| knows_flags(with(*flag))).map(|(name, _)| *name)
}

fn log_size(program: &[sock_filter], sizes: &[(&str, usize)]) {
    if log::debug_enabled() {
        let parts: Vec<String> = sizes.iter().map(|(name, size)| format!("{size} for {name}")).collect();
        log::debug(format_args!("seccomp filter: {} instructions, {}", program.len(), parts.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::arch::{AARCH64_MACHINE, X32_BIT, X86_64_MACHINE};
    use super::*;
    use crate::spec::{Report, parse, planned};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use nix::sys::stat::{Mode, umask};

    fn plan(json: &str) -> Seccomp {
        let (seccomp, problems) =
            planned(&format!(r#"{{"seccomp": {json}}}"#), |linux| Seccomp::plan_for(&X86_64_MACHINE, linux));
        assert_eq!(problems, Vec::<String>::new(), "{json}");
        seccomp.unwrap()
    }

    fn problems(json: &str) -> Vec<String> {
        planned(&format!(r#"{{"seccomp": {json}}}"#), |linux| {
            Seccomp::plan_for(&X86_64_MACHINE, linux);
        })
        .1
    }

    /// The profile {names, action} of one rule with these conditions.
    fn conditional(default: &str, action: &str, conditions: &str) -> Seccomp {
        plan(&format!(
            r#"{{"defaultAction": "SCMP_ACT_{default}", "syscalls":
                [{{"names": ["mount"], "action": "SCMP_ACT_{action}", "args": [{conditions}]}}]}}"#
        ))
    }

    /// On the architecture, what becomes of a call.
    fn verdict(seccomp: &Seccomp, architecture: &str, name: &str, arguments: &[u64]) -> String {
        let arguments: Vec<Option<u64>> = arguments.iter().copied().map(Some).collect();
        let verdicts = seccomp.verdicts(name, &arguments).unwrap();
        let architecture = format!("SCMP_ARCH_{architecture}");
        let (_, actions) = verdicts.iter().find(|(name, _)| *name == architecture).unwrap();
        actions
            .iter()
            .map(|action| action.to_string().replace("SCMP_ACT_", ""))
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn number(seccomp: &Seccomp, architecture: usize, number: u32) -> String {
        let call = Call::new(X86_64_MACHINE.architectures[architecture].audit, number, &[]);
        answers(&seccomp.program, &call).into_iter().map(|answer| Action(answer).to_string()).collect()
    }

    #[test]
    fn every_problem_of_a_profile_is_named_at_once() {
        let json = r#"{
            "defaultAction": "SCMP_ACT_NOTIFY", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86", "x86"],
            "flags": ["SECCOMP_FILTER_FLAG_NEW"], "listenerMetadata": "x",
            "syscalls": [
                {"names": [], "action": "SCMP_ACT_ALLOW", "errnoRet": 0},
                {"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"},
                {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096, "args": [
                    {"index": 6, "value": 1, "op": "SCMP_CMP_EQ"},
                    {"index": 0, "value": 1, "op": "=="},
                    {"index": 0, "value": -1, "valueTwo": 2, "op": "SCMP_CMP_NE"},
                    {}
                ]},
                {"action": "ALLOW"}, {"names": [1], "action": "SCMP_ACT_TRACE", "errnoRet": 65536}
            ]}"#;
        assert_eq!(
            problems(json),
            [
                "/seccomp/defaultErrnoRet: has no meaning for SCMP_ACT_NOTIFY",
                "/seccomp/defaultAction: must not be SCMP_ACT_NOTIFY: the write(2) that tells of the listener would wait for it",
                "/seccomp/architectures/1: \"x86\" is no architecture that keel knows",
                "/seccomp/syscalls/0/errnoRet: has no meaning for SCMP_ACT_ALLOW",
                "/seccomp/syscalls/0/names: must have at least one name",
                "/seccomp/syscalls/1/names/1: must not be left to an agent: with it the runtime tells of the agent's descriptor",
                "/seccomp/syscalls/2/errnoRet: must be at most 4095, not 4096",
                "/seccomp/syscalls/2/args/0/index: must be 0 to 5, not 6",
                "/seccomp/syscalls/2/args/1/op: \"==\" is no operator that keel knows",
                "/seccomp/syscalls/2/args/2/value: must be a whole number of at least 0, not -1",
                "/seccomp/syscalls/2/args/2/valueTwo: has no meaning for SCMP_CMP_NE",
                "/seccomp/syscalls/2/args/3/index: is required",
                "/seccomp/syscalls/2/args/3/value: is required",
                "/seccomp/syscalls/2/args/3/op: is required",
                "/seccomp/syscalls/3/action: \"ALLOW\" is no action that keel knows",
                "/seccomp/syscalls/3/names: must have at least one name",
                "/seccomp/syscalls/4/errnoRet: must be at most 65535, not 65536",
                "/seccomp/syscalls/4/names/0: must be a string, not 1",
                "/seccomp/flags/0: \"SECCOMP_FILTER_FLAG_NEW\" is no flag that keel knows",
                "/seccomp/listenerMetadata: must not be set without listenerPath",
                "/seccomp/listenerPath: is required: SCMP_ACT_NOTIFY leaves calls to the agent behind it",
            ]
        );
        assert_eq!(problems("{}"), ["/seccomp/defaultAction: is required"]);
    }

    #[test]
    fn a_listener_is_where_rules_notify_only() {
        let with = |action: &str| {
            plan(&format!(
                r#"{{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent", "listenerMetadata": "m",
                     "syscalls": [{{"names": ["mount"], "action": "SCMP_ACT_{action}"}}]}}"#
            ))
        };
        assert!(with("NOTIFY").listener().is_some());
        assert!(with("ERRNO").listener().is_none());
        let flags = |action: &str| {
            format!(
                r#"{{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x",
                     "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
                     "syscalls": [{{"names": ["mount"], "action": "SCMP_ACT_{action}"}}]}}"#
            )
        };
        assert_eq!(plan(&flags("NOTIFY")).flags, WAIT_KILLABLE_RECV);
        assert_eq!(
            problems(&flags("TRAP")),
            ["/seccomp/flags/0: has no meaning without a rule with SCMP_ACT_NOTIFY"]
        );
    }

    #[test]
    fn flags_are_those_of_the_profile_or_spec_allow() {
        let flags = |flags: &str| plan(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW" {flags}}}"#)).flags;
        assert_eq!(flags(""), 4);
        assert_eq!(flags(r#", "flags": []"#), 0);
        assert_eq!(
            flags(r#", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]"#),
            1 | 2 | 16
        );
    }

    #[test]
    fn every_action_is_what_the_kernel_calls_it() {
        for (action, shown) in [
            ("KILL", "KILL"),
            ("KILL_PROCESS", "KILL_PROCESS"),
            ("KILL_THREAD", "KILL"),
            ("TRAP", "TRAP"),
            ("ERRNO", "ERRNO (EPERM, 1)"),
            ("TRACE", "TRACE (1)"),
            ("LOG", "LOG"),
        ] {
            let profile = format!(
                r#"{{"defaultAction": "SCMP_ACT_ALLOW",
                     "syscalls": [{{"names": ["mount"], "action": "SCMP_ACT_{action}"}}]}}"#
            );
            let seccomp = plan(&profile);
            assert_eq!(verdict(&seccomp, "X86_64", "mount", &[]), shown);
            assert_eq!(verdict(&seccomp, "X86_64", "read", &[]), "ALLOW");
        }
        let seccomp = plan(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13, "syscalls": [
                {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4095},
                {"names": ["write"], "action": "SCMP_ACT_TRACE", "errnoRet": 65535}]}"#,
        );
        assert_eq!(verdict(&seccomp, "X86_64", "open", &[]), "ERRNO (EACCES, 13)");
        assert_eq!(verdict(&seccomp, "X86_64", "mount", &[]), "ERRNO (UnknownErrno, 4095)");
        assert_eq!(verdict(&seccomp, "X86_64", "write", &[]), "TRACE (65535)");
    }

    #[test]
    fn every_operator_compares_all_64_bits() {
        const UPPER: u64 = 1 << 32;
        for (operator, value, second, holds, not) in [
            ("EQ", UPPER | 5, 0, vec![UPPER | 5], vec![5, UPPER, UPPER << 1 | 5]),
            ("NE", UPPER | 5, 0, vec![5, UPPER], vec![UPPER | 5]),
            ("LT", UPPER | 5, 0, vec![0, 7, UPPER | 4], vec![UPPER | 5, UPPER << 1]),
            ("LE", UPPER | 5, 0, vec![0, 7, UPPER | 5], vec![UPPER | 6, UPPER << 1]),
            ("GE", UPPER | 5, 0, vec![UPPER | 5, UPPER << 1], vec![7, UPPER | 4]),
            ("GT", UPPER | 5, 0, vec![UPPER | 6, UPPER << 1], vec![7, UPPER | 5]),
            ("GT", u64::MAX, 0, vec![], vec![0, u64::MAX]),
            ("LT", 0, 0, vec![], vec![0, u64::MAX]),
            ("GE", 0, 0, vec![0, u64::MAX], vec![]),
            ("MASKED_EQ", UPPER | 6, UPPER | 2, vec![UPPER | 2, UPPER | 3, u64::MAX - 4], vec![2, UPPER | 6]),
            ("MASKED_EQ", 0x7e020000, 0, vec![0, 0x11, UPPER], vec![0x20000, 0x40000000]),
            ("MASKED_EQ", 0, 7, vec![0, u64::MAX], vec![]),
        ] {
            let condition = format!(
                r#"{{"index": 2, "op": "SCMP_CMP_{operator}", "value": {value}, "valueTwo": {second}}}"#
            );
            let seccomp = conditional("ERRNO", "ALLOW", &condition);
            for (values, right) in [(holds, "ALLOW"), (not, "ERRNO (EPERM, 1)")] {
                for argument in values {
                    let found = verdict(&seccomp, "X86_64", "mount", &[0, 0, argument]);
                    assert_eq!(found, right, "{operator} {value:#x} {second:#x}: {argument:#x}");
                }
            }
        }
    }

    #[test]
    fn architectures_of_32_bits_compare_the_lower_half() {
        let seccomp = plan(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": [
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 1, "value": 4294967301, "op": "SCMP_CMP_EQ"}]}]}"#,
        );
        let allowed =
            |architecture, argument| verdict(&seccomp, architecture, "mount", &[0, argument]) == "ALLOW";
        assert_eq!((allowed("X86_64", 5), allowed("X86_64", 1 << 32 | 5)), (false, true));
        assert_eq!((allowed("X86", 5), allowed("X32", 5), allowed("X86", 6)), (true, true, false));
    }

    #[test]
    fn conditions_are_all_to_be_met_unless_one_argument_has_several() {
        let eq = |index, value| format!(r#"{{"index": {index}, "value": {value}, "op": "SCMP_CMP_EQ"}}"#);
        let both = conditional("ERRNO", "ALLOW", &[eq(0, 1), eq(1, 2)].join(","));
        let allowed = |seccomp: &Seccomp, a, b| verdict(seccomp, "X86_64", "mount", &[a, b]) == "ALLOW";
        assert_eq!((allowed(&both, 1, 2), allowed(&both, 1, 3), allowed(&both, 3, 2)), (true, false, false));
        let any = conditional("ERRNO", "ALLOW", &[eq(0, 1), eq(1, 2), eq(0, 3)].join(","));
        assert_eq!((allowed(&any, 1, 9), allowed(&any, 9, 2), allowed(&any, 3, 9)), (true, true, true));
        assert!(!allowed(&any, 9, 9));
        assert_eq!(verdict(&any, "X86_64", "mount", &[]).matches(',').count(), 2, "depends on its arguments");
    }

    #[test]
    fn the_first_rule_without_conditions_decides_alone_and_a_warning_names_those_with_some() {
        let json = r#"{"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["open"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["read", "open"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["open"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
            {"names": ["open", "openn"], "action": "SCMP_ACT_TRAP"}]}}"#;
        let report = Report::default();
        let config = parse(json.as_bytes(), &report).unwrap();
        let seccomp = Seccomp::plan(&Node::root(&config, &report)).unwrap();
        assert_eq!(verdict(&seccomp, "X86_64", "open", &[1]), "ALLOW");
        let warnings: Vec<String> =
            report.finish().unwrap().iter().map(|warning| warning.to_string()).collect();
        assert_eq!(
            warnings,
            [
                "/seccomp/syscalls/3/names/1: \"openn\" is no system call that keel knows, ignored",
                "/seccomp/syscalls/0/names/0: no effect: /seccomp/syscalls/1 decides about every open",
            ]
        );
    }

    #[test]
    fn the_same_conditions_with_two_actions_are_a_problem() {
        let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["open"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["read", "open"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["open"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
        // The last one is the default action, and so no rule.
        assert_eq!(
            problems(json),
            [
                "/seccomp/syscalls/1/names/1: open has another action on the same conditions in /seccomp/syscalls/0"
            ]
        );
    }

    #[test]
    fn calls_newer_than_the_profile_do_not_exist() {
        let profile = |default: &str| {
            plan(&format!(
                r#"{{"defaultAction": "SCMP_ACT_{default}", "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                     "syscalls": [{{"names": ["pidfd_open", "getrandom"], "action": "SCMP_ACT_ALLOW"}},
                                  {{"names": ["clone3"], "action": "SCMP_ACT_{default}"}}]}}"#
            ))
        };
        let seccomp = profile("ERRNO");
        for architecture in ["X86_64", "X86", "X32"] {
            assert_eq!(verdict(&seccomp, architecture, "pidfd_open", &[]), "ALLOW");
            assert_eq!(verdict(&seccomp, architecture, "mount", &[]), "ERRNO (EPERM, 1)");
            // Named, if only to say that it gets what all others get.
            assert_eq!(verdict(&seccomp, architecture, "clone3", &[]), "ERRNO (EPERM, 1)");
            assert_eq!(verdict(&seccomp, architecture, "close_range", &[]), "ERRNO (ENOSYS, 38)");
        }
        for number in [436, 0x3fff_ffff] {
            assert_eq!(self::number(&seccomp, 0, number), "SCMP_ACT_ERRNO (ENOSYS, 38)");
        }
        assert_eq!(verdict(&profile("KILL"), "X86_64", "close_range", &[]), "KILL");
        assert_eq!(verdict(&profile("TRACE"), "X86_64", "close_range", &[]), "TRACE (1)");
        let nothing = plan(r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#);
        assert_eq!(verdict(&nothing, "X86_64", "close_range", &[]), "ERRNO (EPERM, 1)");
    }

    #[test]
    fn calls_of_arm_alone_hide_no_newer_ones() {
        let json = r#"{"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_ARM"],
            "syscalls": [{"names": ["set_tls", "clone3"], "action": "SCMP_ACT_ALLOW"}]}}"#;
        let seccomp = planned(json, |linux| Seccomp::plan_for(&AARCH64_MACHINE, linux)).0.unwrap();
        assert_eq!(verdict(&seccomp, "ARM", "set_tls", &[]), "ALLOW");
        assert_eq!(verdict(&seccomp, "ARM", "clone3", &[]), "ALLOW");
        assert_eq!(verdict(&seccomp, "ARM", "pidfd_open", &[]), "ERRNO (EPERM, 1)");
        assert_eq!(verdict(&seccomp, "ARM", "close_range", &[]), "ERRNO (ENOSYS, 38)");
        assert_eq!(verdict(&seccomp, "ARM", "get_tls", &[]), "ERRNO (ENOSYS, 38)");
    }

    #[test]
    fn architectures_that_are_not_listed_are_killed() {
        let seccomp = plan(r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_AARCH64"]}"#);
        for (architecture, number, right) in [
            (0, 0, "SCMP_ACT_ALLOW"),
            (0, X32_BIT - 1, "SCMP_ACT_ALLOW"),
            (0, X32_BIT, "SCMP_ACT_KILL"),
            (0, u32::MAX - 1, "SCMP_ACT_KILL"),
            // A tracer's, which has the call skipped.
            (0, u32::MAX, "SCMP_ACT_ALLOW"),
            (1, 0, "SCMP_ACT_KILL"),
        ] {
            assert_eq!(self::number(&seccomp, architecture, number), right, "{architecture} {number:#x}");
        }
        let call = Call::new(AARCH64_MACHINE.architectures[0].audit, 0, &[]);
        assert_eq!(answers(&seccomp.program, &call), [libc::SECCOMP_RET_KILL_THREAD]);
    }

    #[test]
    fn on_x86_a_socket_rule_holds_for_socketcall_too() {
        let seccomp = plan(
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
                "syscalls": [{"names": ["socket", "shmget"], "action": "SCMP_ACT_ERRNO"}]}"#,
        );
        for (name, first, right) in [
            ("socket", 0, "ERRNO (EPERM, 1)"),
            ("socketcall", 1, "ERRNO (EPERM, 1)"),
            ("socketcall", 2, "ALLOW"),
            ("ipc", 23, "ERRNO (EPERM, 1)"),
            ("ipc", 24, "ALLOW"),
        ] {
            assert_eq!(verdict(&seccomp, "X86", name, &[first]), right, "{name} {first}");
        }
    }

    #[test]
    fn a_filter_that_the_kernel_would_not_take_is_a_problem() {
        let conditions: Vec<String> = (0..5000)
            .map(|i| format!(r#"{{"index": 0, "value": {}, "op": "SCMP_CMP_EQ"}}"#, i * 2))
            .collect();
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls":
                [{{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{}]}}]}}"#,
            conditions.join(",")
        );
        let found = problems(&json);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("/seccomp: needs 67"), "{found:?}");
        assert!(
            found[0].ends_with(" BPF instructions, more than the 4096 that the kernel takes"),
            "{found:?}"
        );
    }

    #[test]
    fn the_call_that_a_filter_blocks_is_named() {
        let seccomp = plan(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/x", "syscalls": [
                {"names": ["write", "close"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["capset"], "action": "SCMP_ACT_NOTIFY"},
                {"names": ["prctl"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 22, "op": "SCMP_CMP_NE"}]}]}"#,
        );
        let blocked = |calls: &[&'static str], agent| {
            seccomp.first_blocked(calls, agent).map(|(name, action)| format!("{name} {action}"))
        };
        assert_eq!(blocked(&["write", "prctl", "close"], false), None);
        assert_eq!(blocked(&["write", "execve", "exit"], true).unwrap(), "execve SCMP_ACT_ERRNO (EPERM, 1)");
        assert_eq!(blocked(&["capset"], true), None);
        assert_eq!(blocked(&["capset"], false).unwrap(), "capset SCMP_ACT_NOTIFY");
    }

    /// In a thread, which takes the filter with it.
    fn under<T: Send>(seccomp: &Seccomp, then: impl FnOnce(Result<Option<OwnedFd>>) -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| then(seccomp.load())).join().unwrap())
    }

    fn native(json: &str) -> Seccomp {
        planned(&format!(r#"{{"seccomp": {json}}}"#), Seccomp::plan).0.unwrap()
    }

    #[test]
    fn the_kernel_obeys() {
        let seccomp = native(
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
                {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99,
                 "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_GE"}]},
                {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 98,
                 "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
                          {"index": 1, "value": 15, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#,
        );
        let sockets = under(&seccomp, |loaded| {
            assert!(loaded.unwrap().is_none());
            let before = umask(Mode::from_bits_truncate(0o777));
            assert_eq!((before, umask(Mode::empty())), (Mode::empty(), Mode::empty()));
            let open = |family, kind| socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map(drop);
            [
                open(AddressFamily::Vsock, SockType::Stream),
                open(AddressFamily::Unix, SockType::Datagram),
                open(AddressFamily::Unix, SockType::Stream),
            ]
        });
        assert_eq!(sockets, [Err(Errno::from_raw(99)), Err(Errno::from_raw(98)), Ok(())]);
    }

    #[test]
    fn a_refusal_says_why() {
        let notifying = native(
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x",
                "syscalls": [{"names": ["umask"], "action": "SCMP_ACT_NOTIFY"}]}"#,
        );
        let second = under(&notifying, |loaded| {
            // It is one for as long as somebody holds it.
            let _listener = loaded.unwrap().unwrap();
            notifying.load().unwrap_err().to_string()
        });
        assert_eq!(
            second,
            format!(
                "load the seccomp filter of {} instructions: a filter of the caller has a listener already: \
                 Device or resource busy (16) [config.json /seccomp]",
                notifying.program.len()
            )
        );
        let unknown = Seccomp { flags: 1 << 30, ..native(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#) };
        assert_eq!(under(&unknown, |loaded| loaded.unwrap_err().errno()), Some(Errno::EINVAL));
    }

    #[test]
    fn all_flags_are_known_to_a_kernel_since_5_19() {
        let known: Vec<&str> = supported_flags().collect();
        assert_eq!(known, FLAGS.map(|(name, _)| name));
        assert!(!knows_flags(1 << 30));
    }
}
