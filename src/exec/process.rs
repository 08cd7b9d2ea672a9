//! The process that `exec` is asked to run, as JSON in the form of `/process`: that of `--process`, or the
//! container's own with another command; then what single flags say.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use caps::Capability;
use serde_json::{Map, Value, json};

use crate::cli::ExecOptions;
use crate::error::{Context, Error, Field, Result};
use crate::spec::{self, Report};

type Object = Map<String, Value>;

pub fn to_run(containers: Option<&Value>, options: &ExecOptions, report: &Report) -> Result<Object> {
    let mut process = match &options.process {
        Some(path) => read(path, report).context(|| format!("read process {}", path.display()))?,
        None => of_container(containers, options)?,
    };
    if !options.command.is_empty() {
        if options.process.is_some() {
            return Err(Error::new("give --process or a command, not both"));
        }
        process.insert("args".into(), json!(options.command));
    }
    override_by_flags(&mut process, options)?;
    Ok(process)
}

/// Far more than any caller writes; a wrong file must not fill the memory.
const MAX_PROCESS: u64 = 16 << 20; // bytes

fn read(path: &Path, report: &Report) -> Result<Object> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_PROCESS + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_PROCESS {
        return Err(Error::new(format!("it is larger than {} MiB", MAX_PROCESS >> 20)));
    }
    spec::parse_at(&text, Field::root().child("process"), report)
}

/// Without the terminal of the container's own, which a command has only if it is asked for.
fn of_container(containers: Option<&Value>, options: &ExecOptions) -> Result<Object> {
    if options.command.is_empty() {
        return Err(Error::new("there is no command to run: give one, or --process"));
    }
    let Some(Value::Object(process)) = containers else {
        return Err(Error::new("the container's config has no process: give --process"));
    };
    let mut process = process.clone();
    process.insert("terminal".into(), false.into());
    process.remove("consoleSize");
    Ok(process)
}

fn override_by_flags(process: &mut Object, options: &ExecOptions) -> Result<()> {
    let strings = [
        ("cwd", &options.cwd),
        ("apparmorProfile", &options.apparmor),
        ("selinuxLabel", &options.process_label),
    ];
    for (key, value) in strings {
        if let Some(value) = value {
            process.insert(key.into(), json!(value));
        }
    }
    if options.tty {
        process.insert("terminal".into(), true.into());
    }
    if let Some(value) = options.no_new_privs {
        process.insert("noNewPrivileges".into(), value.into());
    }
    push(process, "env", options.env.iter().map(|entry| json!(entry)));
    if options.user.is_some() || !options.additional_gids.is_empty() {
        let user = object(process, "user");
        if let Some((uid, gid)) = options.user {
            user.insert("uid".into(), uid.into());
            // As with runc a user alone keeps the group, and the default is root's.
            let gid = gid.map_or_else(|| user.get("gid").cloned().unwrap_or(json!(0)), Value::from);
            user.insert("gid".into(), gid);
        }
        push(user, "additionalGids", options.additional_gids.iter().map(|&gid| json!(gid)));
    }
    if !options.caps.is_empty() {
        add_capabilities(object(process, "capabilities"), &options.caps);
    }
    Ok(())
}

/// Never inheritable: a program with file capabilities could then gain them anew (CVE-2022-29162). So they are ambient,
/// and outlive the change to another user, only if the config has them inheritable.
fn add_capabilities(capabilities: &mut Object, added: &[Capability]) {
    let inheritable = capabilities.get("inheritable").cloned();
    for capability in added.iter().map(|capability| json!(capability.to_string())) {
        for set in ["bounding", "effective", "permitted"] {
            push(capabilities, set, [capability.clone()]);
        }
        if inheritable.as_ref().and_then(Value::as_array).is_some_and(|set| set.contains(&capability)) {
            push(capabilities, "ambient", [capability]);
        }
    }
}

/// What is of another type stays as it is, and is then refused by the plan.
fn push(object: &mut Object, key: &str, values: impl IntoIterator<Item = Value>) {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return;
    }
    let place = object.entry(key).or_insert(Value::Null);
    if place.is_null() {
        *place = json!([]);
    }
    if let Value::Array(array) = place {
        array.extend(values);
    }
}

fn object<'o>(parent: &'o mut Object, key: &str) -> &'o mut Object {
    let place = parent.entry(key).or_insert_with(|| json!({}));
    if !place.is_object() {
        *place = json!({});
    }
    place.as_object_mut().expect("it has just been made one")
}
