//! Reads the profile: what is allowed in each of its fields, and what it asks of the compiler.

use super::arch::{Architecture, KNOWN, Machine, Numbers};
use super::compiler::{Conflict, Place, Use};
use super::conditions::{Condition, Operator, Rule};
use crate::log;
use crate::spec::Node;

#[rustfmt::skip]
pub const ACTIONS: [(&str, u32); 9] = [
    ("SCMP_ACT_ALLOW", libc::SECCOMP_RET_ALLOW),
    ("SCMP_ACT_ERRNO", libc::SECCOMP_RET_ERRNO),
    ("SCMP_ACT_KILL", libc::SECCOMP_RET_KILL_THREAD),
    ("SCMP_ACT_KILL_PROCESS", libc::SECCOMP_RET_KILL_PROCESS),
    ("SCMP_ACT_KILL_THREAD", libc::SECCOMP_RET_KILL_THREAD),
    ("SCMP_ACT_LOG", libc::SECCOMP_RET_LOG),
    ("SCMP_ACT_NOTIFY", libc::SECCOMP_RET_USER_NOTIF),
    ("SCMP_ACT_TRACE", libc::SECCOMP_RET_TRACE),
    ("SCMP_ACT_TRAP", libc::SECCOMP_RET_TRAP),
];

#[rustfmt::skip]
pub const OPERATORS: [(&str, Operator); 7] = [
    ("SCMP_CMP_EQ", Operator::Equal),
    ("SCMP_CMP_GE", Operator::GreaterOrEqual),
    ("SCMP_CMP_GT", Operator::Greater),
    ("SCMP_CMP_LE", Operator::LessOrEqual),
    ("SCMP_CMP_LT", Operator::Less),
    ("SCMP_CMP_MASKED_EQ", Operator::MaskedEqual),
    ("SCMP_CMP_NE", Operator::NotEqual),
];

// One of a filter with a listener may only be given together with SECCOMP_FILTER_FLAG_TSYNC_ESRCH.
#[rustfmt::skip]
pub const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", libc::SECCOMP_FILTER_FLAG_LOG as u32),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32),
    ("SECCOMP_FILTER_FLAG_TSYNC", (libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH) as u32),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", WAIT_KILLABLE_RECV),
];
pub const WAIT_KILLABLE_RECV: u32 = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32;

/// One of `/linux/seccomp/syscalls`.
pub struct Entry<'a> {
    /// Those that are known, with their indices.
    pub names: Vec<(u32, Numbers)>,
    /// None if the default action is the same.
    pub rules: Vec<Rule>,
    pub notifies: bool,
    node: Node<'a>,
}

pub fn plan_action(node: &Node, key: &str, errno_key: &str) -> Option<u32> {
    let name = node.required_string(key);
    let data = node.u32(errno_key);
    let Some(&(_, action)) = ACTIONS.iter().find(|(known, _)| Some(*known) == name) else {
        if let Some(name) = name {
            node.problem(key, format_args!("{name:?} is no action that keel knows"));
        }
        return None;
    };
    let most = match action {
        // The kernel would take the highest error number instead.
        libc::SECCOMP_RET_ERRNO => 4095,
        libc::SECCOMP_RET_TRACE => libc::SECCOMP_RET_DATA,
        _ => {
            if node.has(errno_key) {
                node.problem(errno_key, format_args!("has no meaning for {}", name.unwrap_or_default()));
            }
            return Some(action);
        }
    };
    let data = data.unwrap_or(libc::EPERM as u32);
    if data > most {
        node.problem(errno_key, format_args!("must be at most {most}, not {data}"));
        return None;
    }
    Some(action | data)
}

/// The machine's own is always among them, as with libseccomp: without it nothing could run.
pub fn plan_architectures(seccomp: &Node, machine: &Machine) -> Vec<&'static Architecture> {
    let mut listed = vec![machine.architectures[0].name];
    for (name, field) in seccomp.strings("architectures") {
        if !KNOWN.contains(&name) {
            seccomp.report().problem(field, format_args!("{name:?} is no architecture that keel knows"));
        }
        listed.push(name);
    }
    machine.architectures.iter().filter(|architecture| listed.contains(&architecture.name)).collect()
}

/// Without any of its own a profile gets the one that costs programs nothing, as with runc and crun.
pub fn plan_flags(seccomp: &Node, notifies: bool) -> u32 {
    if !seccomp.has("flags") {
        return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
    }
    let mut flags = 0;
    for (name, field) in seccomp.strings("flags") {
        match FLAGS.iter().find(|(known, _)| *known == name) {
            None => seccomp.report().problem(field, format_args!("{name:?} is no flag that keel knows")),
            Some((_, WAIT_KILLABLE_RECV)) if !notifies => {
                seccomp.report().problem(field, "has no meaning without a rule with SCMP_ACT_NOTIFY");
            }
            Some((_, flag)) => flags |= flag,
        }
    }
    flags
}

pub fn plan_entry<'a>(node: Node<'a>, machine: &Machine, default: Option<u32>) -> Entry<'a> {
    node.expect_keys(&["names", "action", "errnoRet", "args"]);
    let action = plan_action(&node, "action", "errnoRet");
    let notifies = action == Some(libc::SECCOMP_RET_USER_NOTIF);
    if node.value("names").is_none_or(|names| names.as_array().is_some_and(Vec::is_empty)) {
        node.problem("names", "must have at least one name");
    }
    let mut names = Vec::new();
    for (i, name) in node.indexed_strings("names") {
        match machine.look_up(name) {
            Some(numbers) => names.push((i as u32, numbers)),
            None => {
                let reason = format_args!("{name:?} is no system call that keel knows, ignored");
                node.report().warning(node.at("names").child(i), reason);
            }
        }
        if notifies && name == "write" {
            let reason = "must not be left to an agent: with it the runtime tells of the agent's descriptor";
            node.report().problem(node.at("names").child(i), reason);
        }
    }
    let conditions: Vec<Option<Condition>> = node.objects("args").iter().map(plan_condition).collect();
    let rules = match (action, conditions.into_iter().collect()) {
        (Some(action), Some(conditions)) if Some(action) != default => rules(action, conditions),
        _ => Vec::new(),
    };
    Entry { names, rules, notifies, node }
}

fn plan_condition(node: &Node) -> Option<Condition> {
    node.expect_keys(&["index", "value", "valueTwo", "op"]);
    let argument = node.required_u32("index");
    if let Some(index) = argument.filter(|index| *index > 5) {
        node.problem("index", format_args!("must be 0 to 5, not {index}"));
    }
    let value = node.required_u64("value");
    let second = node.u64("valueTwo").unwrap_or(0);
    let name = node.required_string("op")?;
    let Some(&(_, operator)) = OPERATORS.iter().find(|(known, _)| *known == name) else {
        node.problem("op", format_args!("{name:?} is no operator that keel knows"));
        return None;
    };
    let is_masked = operator == Operator::MaskedEqual;
    // Zero is how some write that there is none.
    if second != 0 && !is_masked {
        node.problem("valueTwo", format_args!("has no meaning for {name}"));
    }
    let argument = u8::try_from(argument.filter(|index| *index <= 5)?).ok()?;
    let value = value?;
    let (value, mask) = if is_masked { (second & value, value) } else { (value, u64::MAX) };
    Some(Condition { argument, operator, value, mask })
}

/// Conditions on different arguments must all be met; if one argument has several, any one of all, as with runc.
fn rules(action: u32, mut conditions: Vec<Condition>) -> Vec<Rule> {
    conditions.sort_by_key(|condition| condition.argument);
    if conditions.windows(2).any(|pair| pair[0].argument == pair[1].argument) {
        return conditions.into_iter().map(|one| Rule { action, conditions: vec![one] }).collect();
    }
    vec![Rule { action, conditions }]
}

pub fn uses<'e>(entries: &'e [Entry]) -> Vec<Use<'e>> {
    entries.iter().map(|Entry { names, rules, .. }| Use { names, rules }).collect()
}

pub fn report(conflict: &Conflict, entries: &[Entry]) {
    let named = |(entry, name): Place| {
        let Entry { node, names, .. } = &entries[entry as usize];
        let i = names[name as usize].0 as usize;
        let name = node.indexed_strings("names").find(|(j, _)| *j == i).map_or("", |(_, name)| name);
        (node, name, node.at("names").child(i))
    };
    match *conflict {
        Conflict::Contradiction { place, earlier } => {
            let ((node, name, field), (other, ..)) = (named(place), named(earlier));
            let reason =
                format_args!("{name} has another action on the same conditions in {}", other.field());
            node.report().problem(field, reason);
        }
        Conflict::Shadowed { place, by } => {
            let ((node, name, field), (other, ..)) = (named(place), named(by));
            let reason = format_args!("no effect: {} decides about every {name}", other.field());
            node.report().warning(field, reason);
        }
        Conflict::Repeated { place, by } if log::debug_enabled() => {
            let ((_, name, field), (other, ..)) = (named(place), named(by));
            log::debug(format_args!(
                "config.json {field}: no effect: {name} is decided in {}",
                other.field()
            ));
        }
        Conflict::Repeated { .. } => {}
    }
}
