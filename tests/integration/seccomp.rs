//! `linux.seccomp`: what becomes of a program's system calls.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use keel::linux::seccomp::arch::NATIVE;
use nix::libc;
use serde_json::{Value, json};

use crate::engine_profile;
use crate::sandbox::{Output, Sandbox, copy, keel};
use crate::{needs, tests};

tests![
    a_denied_call_fails_with_its_errno,
    a_call_that_is_not_listed_fails_with_the_default_errno,
    a_call_that_kills_the_process_ends_it_with_sigsys,
    a_call_that_kills_the_thread_leaves_the_others,
    a_trapped_call_is_a_signal_that_can_be_handled,
    a_logged_call_takes_place,
    a_traced_call_without_a_tracer_is_not_implemented,
    each_operator_compares_all_64_bits,
    conditions_on_different_arguments_must_all_hold,
    conditions_on_one_argument_are_alternatives,
    a_32_bit_program_is_killed_unless_its_architecture_is_listed,
    a_32_bit_program_has_its_own_call_numbers,
    an_x32_call_is_killed_unless_its_architecture_is_listed,
    calls_newer_than_the_profile_are_not_implemented,
    threads_start_without_clone3,
    a_setuid_program_gains_only_without_no_new_privileges,
    what_it_takes_to_load_a_filter_is_given_up_after_it,
    capabilities_of_the_config_outlive_the_load,
    no_filter_is_inherited_without_a_profile,
    exec_applies_the_same_filter,
    exec_with_privileges_of_its_own_applies_the_same_filter,
    start_container_hooks_are_not_filtered,
    a_filter_holds_from_create_on_for_a_program_started_later,
    a_profile_of_an_engine_does_not_keep_busybox_from_working,
    a_profile_that_blocks_the_way_to_the_program_is_refused,
    a_profile_need_not_allow_capset,
    a_profile_need_not_allow_personality,
    bad_profiles_are_refused_by_field,
    a_profile_that_is_too_long_is_refused,
    a_name_that_no_kernel_has_is_skipped_with_a_warning,
];

/// All calls but those named have this profile's rules; the others take place.
fn profiled(rules: Value) -> Sandbox {
    with(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
}

fn with(profile: Value) -> Sandbox {
    let mut c = Sandbox::new();
    c.set("/linux/seccomp", profile);
    c
}

/// What becomes of sched_yield(2), which nothing here needs and which returns 0.
fn on_yield(mut rule: Value) -> Sandbox {
    rule["names"] = json!(["sched_yield"]);
    profiled(json!([rule]))
}

fn act(name: &str) -> String {
    format!("{name} {}", libc::SYS_sched_yield)
}

/// The names of all calls whose native number and name are wanted.
fn calls(wanted: impl Fn(&str, u32) -> bool) -> Vec<&'static str> {
    let calls = NATIVE.calls(&NATIVE.architectures[0]);
    calls.filter(|(name, number)| wanted(name, *number)).map(|(name, _)| name).collect()
}

fn a_denied_call_fails_with_its_errno() {
    for (rule, outcome) in [
        (json!({"action": "SCMP_ACT_ERRNO"}), "EPERM"),
        (json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 95}), "EOPNOTSUPP"),
        (json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 0}), "0"),
    ] {
        let mut c = on_yield(rule.clone());
        // Only that call.
        assert_eq!(c.does(&format!("{} ; mkdir /tmp/a", act("syscall"))), [outcome, "ok"], "{rule}");
    }
}

fn a_call_that_is_not_listed_fails_with_the_default_errno() {
    for (errno, outcome) in [(json!(null), "EPERM"), (json!(77), "EBADFD"), (json!(0), "0")] {
        let listed = calls(|name, _| name != "sched_yield");
        let mut c = with(json!({"defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": listed, "action": "SCMP_ACT_ALLOW"}]}));
        if !errno.is_null() {
            c.set("/linux/seccomp/defaultErrnoRet", errno);
        }
        assert_eq!(c.does(&act("syscall")), [outcome]);
    }
}

fn ends_with_sigsys(output: &Output) {
    assert_eq!((output.code, &*output.stdout), (128 + libc::SIGSYS, ""), "{output:#?}");
}

fn a_call_that_kills_the_process_ends_it_with_sigsys() {
    let mut c = on_yield(json!({"action": "SCMP_ACT_KILL_PROCESS"}));
    for how in ["syscall", "thread", "trap"] {
        ends_with_sigsys(&c.acts(&format!("{} ; echo on", act(how))).run());
    }
}

fn a_call_that_kills_the_thread_leaves_the_others() {
    for action in ["SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL"] {
        let mut c = on_yield(json!({"action": action}));
        assert_eq!(c.does(&format!("{} ; echo on", act("thread"))), ["killed", "on"], "{action}");
        // The last thread is the process.
        ends_with_sigsys(&c.acts(&format!("{} ; echo on", act("syscall"))).run());
    }
}

fn a_trapped_call_is_a_signal_that_can_be_handled() {
    let mut c = on_yield(json!({"action": "SCMP_ACT_TRAP"}));
    assert_eq!(c.does(&act("trap")), ["trapped"]);
    ends_with_sigsys(&c.acts(&act("syscall")).run());
}

fn a_logged_call_takes_place() {
    assert_eq!(on_yield(json!({"action": "SCMP_ACT_LOG"})).does(&act("syscall")), ["0"]);
}

fn a_traced_call_without_a_tracer_is_not_implemented() {
    let rule = json!({"action": "SCMP_ACT_TRACE", "errnoRet": 7});
    assert_eq!(on_yield(rule).does(&act("syscall")), ["ENOSYS"]);
}

/// What becomes of lseek(99, OFFSET, WHENCE), which fails with EBADF where it takes place.
fn seeks(args: Value, offsets_and_whences: &[(u64, u64)]) -> Vec<String> {
    let rule =
        json!({"names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOTTY, "args": args});
    let acts: Vec<String> = offsets_and_whences
        .iter()
        .map(|(offset, whence)| format!("syscall {} 99 {offset} {whence}", libc::SYS_lseek))
        .collect();
    profiled(json!([rule])).does(&acts.join(" ; "))
}

fn each_operator_compares_all_64_bits() {
    const BIG: u64 = 5 << 32;
    let offsets = [0, BIG - 1, BIG, BIG + 1, 5, 6 << 32, u64::MAX].map(|offset| (offset, 0));
    for (operator, value, second, matches) in [
        ("EQ", BIG, 0, [0, 0, 1, 0, 0, 0, 0]),
        ("NE", BIG, 0, [1, 1, 0, 1, 1, 1, 1]),
        ("LT", BIG, 0, [1, 1, 0, 0, 1, 0, 0]),
        ("LE", BIG, 0, [1, 1, 1, 0, 1, 0, 0]),
        ("GE", BIG, 0, [0, 0, 1, 1, 0, 1, 1]),
        ("GT", BIG, 0, [0, 0, 0, 1, 0, 1, 1]),
        // The mask, and what is under it.
        ("MASKED_EQ", 7 << 32 | 1, BIG | 1, [0, 0, 0, 1, 0, 0, 0]),
        ("MASKED_EQ", 7 << 32, BIG, [0, 0, 1, 1, 0, 0, 0]),
    ] {
        let condition = json!([{
            "index": 1, "value": value, "valueTwo": second, "op": format!("SCMP_CMP_{operator}"),
        }]);
        let expected = matches.map(|matches| if matches == 1 { "ENOTTY" } else { "EBADF" });
        assert_eq!(seeks(condition, &offsets), expected, "{operator} {value:x} {second:x}");
    }
}

fn conditions_on_different_arguments_must_all_hold() {
    let args = json!([
        {"index": 1, "value": 10, "op": "SCMP_CMP_GE"}, {"index": 2, "value": 1, "op": "SCMP_CMP_EQ"},
    ]);
    let seen = seeks(args, &[(10, 1), (9, 1), (10, 0), (9, 0)]);
    assert_eq!(seen, ["ENOTTY", "EBADF", "EBADF", "EBADF"]);
}

fn conditions_on_one_argument_are_alternatives() {
    let equal = |value: u64| json!({"index": 1, "value": value, "op": "SCMP_CMP_EQ"});
    let seen = seeks(json!([equal(3), equal(8), equal(1 << 40)]), &[(3, 0), (8, 0), (1 << 40, 0), (4, 0)]);
    assert_eq!(seen, ["ENOTTY", "ENOTTY", "ENOTTY", "EBADF"]);
}

/// A program of 32 bits without a libc: chdir("/"), then its error number is the exit code.
fn write_i386(path: &Path) {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let code: Vec<u8> = [
        vec![0xb8, 12, 0, 0, 0], // mov eax, __NR_chdir, which is brk on x86-64
        [vec![0xbb], (BASE + HEADERS + 23).to_le_bytes().to_vec()].concat(), // mov ebx, path
        vec![0xcd, 0x80],        // int 0x80
        vec![0xf7, 0xd8],        // neg eax
        vec![0x89, 0xc3],        // mov ebx, eax
        vec![0xb8, 1, 0, 0, 0],  // mov eax, __NR_exit
        vec![0xcd, 0x80],        // int 0x80
        b"/\0".to_vec(),
    ]
    .concat();
    let size = HEADERS + code.len() as u32;
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u8, 0, 3, 0, 1, 0, 0, 0]); // ET_EXEC, EM_386, EV_CURRENT
    for word in [BASE + HEADERS, 52, 0, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, no sections, no flags
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes()); // sizes and counts of headers
    }
    for word in [1u32, 0, BASE, BASE, size, size, 5, 0x1000] {
        elf.extend(word.to_le_bytes()); // PT_LOAD, readable and executable
    }
    elf.extend(code);
    fs::write(path, elf).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A machine that executes such programs.
fn i386() -> Result<(), String> {
    let path = std::env::temp_dir().join(format!("keel-i386-{}", std::process::id()));
    write_i386(&path);
    let executed = Command::new(&path).status().is_ok_and(|status| status.success());
    fs::remove_file(path).unwrap();
    executed.then_some(()).ok_or("needs a kernel that executes 32-bit x86 programs".into())
}

fn runs_i386(architectures: Value, denied: &str) -> i32 {
    let rules = json!([{"names": [denied], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]);
    let mut c = profiled(rules);
    c.set("/linux/seccomp/architectures", architectures);
    write_i386(&c.rootfs().join("i386"));
    c.args(&["/i386"]).run().code
}

fn a_32_bit_program_is_killed_unless_its_architecture_is_listed() {
    needs!(i386());
    assert_eq!(runs_i386(json!(["SCMP_ARCH_X86_64"]), "sched_yield"), 128 + libc::SIGSYS);
    assert_eq!(runs_i386(json!([]), "sched_yield"), 128 + libc::SIGSYS);
    assert_eq!(runs_i386(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]), "sched_yield"), 0);
}

fn a_32_bit_program_has_its_own_call_numbers() {
    needs!(i386());
    let both = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    assert_eq!(runs_i386(both.clone(), "chdir"), 95);
    // 12 on x86-64, where it is denied only to the program of 64 bits that there is none of.
    assert_eq!(runs_i386(both, "setrlimit"), 0);
}

fn an_x32_call_is_killed_unless_its_architecture_is_listed() {
    needs!(x86_64());
    let call = format!("syscall {}", 0x4000_0000 | libc::SYS_sched_yield);
    let mut c = profiled(json!([]));
    ends_with_sigsys(&c.acts(&call).run());
    let mut c = on_yield(json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 95}));
    c.set("/linux/seccomp/architectures", json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]));
    assert_eq!(c.does(&call), ["EOPNOTSUPP"]);
}

fn x86_64() -> Result<(), String> {
    cfg!(target_arch = "x86_64").then_some(()).ok_or("needs x86-64".into())
}

/// Else glibc does not fall back on what was there before.
fn calls_newer_than_the_profile_are_not_implemented() {
    let newest = libc::SYS_landlock_create_ruleset as u32;
    let listed = calls(|name, number| number < newest && name != "sched_yield");
    let mut c = with(json!({"defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": listed, "action": "SCMP_ACT_ALLOW"}]}));
    let acts = format!("{} ; syscall {newest} 0 0 1 ; syscall 1000", act("syscall"));
    assert_eq!(c.does(&acts), ["EPERM", "ENOSYS", "ENOSYS"]);
}

fn threads_start_without_clone3() {
    let older = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": calls(|_, number| number < libc::SYS_clone3 as u32), "action": "SCMP_ACT_ALLOW"},
    ]});
    let refusing = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": calls(|name, _| name != "clone3"), "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ]});
    for profile in [older, refusing] {
        let acts = format!("syscall {} 0 0 ; {}", libc::SYS_clone3, act("thread"));
        assert_eq!(with(profile).does(&acts), ["ENOSYS", "returned"]);
    }
}

/// A container of uid 1000, whose /suid/payload is root's.
fn unprivileged(no_new_privileges: bool) -> Sandbox {
    let mut c = on_yield(json!({"action": "SCMP_ACT_ERRNO"}));
    c.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    c.set("/process/noNewPrivileges", no_new_privileges);
    let program = c.rootfs().join("suid/payload");
    fs::create_dir(program.parent().unwrap()).unwrap();
    copy(&c.rootfs().join("payload"), &program);
    fs::set_permissions(program, fs::Permissions::from_mode(0o4755)).unwrap();
    c
}

fn a_setuid_program_gains_only_without_no_new_privileges() {
    for (no_new_privileges, ids) in [(false, json!([1000, 0, 0, 0])), (true, json!([1000, 1000, 1000, 1000]))]
    {
        let mut c = unprivileged(no_new_privileges);
        let seen = c.acts("run /suid/payload report").run().ok().json();
        assert_eq!((&seen["uid"], &seen["seccomp"]), (&ids, &json!("2")));
    }
}

/// Without no_new_privs seccomp(2) takes CAP_SYS_ADMIN.
fn what_it_takes_to_load_a_filter_is_given_up_after_it() {
    for (user, kept) in
        [(0, json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"])), (1000, json!([]))]
    {
        let mut c = unprivileged(false);
        c.set("/process/user/uid", user);
        let seen = c.report();
        let sets = &seen["capabilities"];
        assert_eq!((&sets["effective"], &sets["permitted"]), (&kept, &kept), "{user}");
        assert_eq!((&sets["inheritable"], &sets["ambient"]), (&json!([]), &json!([])), "{user}");
        assert_eq!(sets["bounding"], c.config["process"]["capabilities"]["bounding"], "{user}");
        assert_eq!((&seen["seccomp"], &seen["noNewPrivileges"]), (&json!("2"), &json!(false)), "{user}");
    }
}

fn capabilities_of_the_config_outlive_the_load() {
    for capability in ["CAP_KILL", "CAP_SYS_ADMIN"] {
        let mut c = unprivileged(false);
        for set in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
            c.set(&format!("/process/capabilities/{set}"), json!([capability]));
        }
        let seen = c.report();
        let sets = &seen["capabilities"];
        assert_eq!((&sets["effective"], &sets["ambient"]), (&json!([capability]), &json!([capability])));
    }
}

fn no_filter_is_inherited_without_a_profile() {
    let mut c = Sandbox::new();
    assert_eq!(c.report()["seccomp"], "0");
}

fn exec_applies_the_same_filter() {
    let mut c = on_yield(json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 95}));
    let status = |report: &Value| [report["seccomp"].clone(), report["seccompFilters"].clone()];
    assert_eq!(status(&c.report()), ["2", "1"]);
    c.running();
    for options in [&[][..], &["-u", "1000:1000"], &["--cap", "CAP_SYS_ADMIN"]] {
        assert_eq!(status(&c.exec_report(options)), ["2", "1"], "{options:?}");
        assert_eq!(c.exec(options, &act("syscall")).ok().stdout, "EOPNOTSUPP\n", "{options:?}");
    }
}

fn exec_with_privileges_of_its_own_applies_the_same_filter() {
    for (first, added) in [(true, false), (false, true)] {
        let mut c = on_yield(json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 95}));
        c.set("/process/noNewPrivileges", first).running();
        let mut process = c.process(&format!("{} ; report", act("syscall")));
        process["noNewPrivileges"] = json!(added);
        process["user"] = json!({"uid": 1000, "gid": 1000});
        let output = c.exec_process(&process).ok();
        let (outcome, report) = output.stdout.split_once('\n').unwrap();
        let seen: Value = serde_json::from_str(report).unwrap();
        assert_eq!((outcome, &seen["noNewPrivileges"]), ("EOPNOTSUPP", &json!(added)));
        assert_eq!(seen["capabilities"]["effective"], json!([]));
    }
}

/// They are the runtime's, not the program's.
fn start_container_hooks_are_not_filtered() {
    needs!(keel());
    let mut c = on_yield(json!({"action": "SCMP_ACT_KILL_PROCESS"}));
    let number = libc::SYS_sched_yield.to_string();
    c.set("/hooks/startContainer", json!([{"path": "/payload", "args": ["payload", "syscall", number]}]));
    // A hook that is killed would be an error.
    let output = c.acts(&act("syscall")).run();
    assert_eq!((output.code, &*output.stderr), (128 + libc::SIGSYS, ""), "{output:#?}");
}

fn a_filter_holds_from_create_on_for_a_program_started_later() {
    for no_new_privileges in [false, true] {
        let mut c = on_yield(json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 95}));
        c.set("/process/noNewPrivileges", no_new_privileges).acts(&act("syscall")).created().start().ok();
        c.wait_printed("EOPNOTSUPP");
        c.wait_stopped();
        c.delete().ok();
    }
}

fn a_profile_of_an_engine_does_not_keep_busybox_from_working() {
    needs!(crate::sandbox::program("busybox"));
    for no_new_privileges in [false, true] {
        let mut c = with(engine_profile::profile());
        c.busybox();
        c.set("/process/noNewPrivileges", no_new_privileges);
        let script = "echo a >/tmp/f; cat /tmp/f | /bin/cat; sleep 0.01; busybox mount -t tmpfs none /tmp 2>&1; echo $?";
        let output = c.args(&["/bin/sh", "-c", script]).run().ok();
        let lines = output.lines();
        assert!(lines[0] == "a" && lines[1].contains("permission denied"), "{output:#?}");
        assert_ne!(*lines.last().unwrap(), "0");
    }
}

fn a_profile_that_blocks_the_way_to_the_program_is_refused() {
    needs!(keel());
    for no_new_privileges in [true, false] {
        for action in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_TRAP"] {
            let mut c = profiled(json!([{"names": ["execve"], "action": action}]));
            c.set("/process/noNewPrivileges", no_new_privileges);
            let error = c.refused("/linux/seccomp");
            assert!(error.contains("keeps the runtime from execve, "), "{error}");
        }
    }
}

/// Nor does execve let the program keep the CAP_SYS_ADMIN that the load takes.
fn a_profile_need_not_allow_capset() {
    for no_new_privileges in [true, false] {
        let mut c = profiled(json!([{"names": ["capset"], "action": "SCMP_ACT_KILL"}]));
        c.set("/process/noNewPrivileges", no_new_privileges);
        let plain = Sandbox::new().report()["capabilities"].take();
        assert_eq!(c.report()["capabilities"], plain, "{no_new_privileges}");
    }
}

fn bad_profiles_are_refused_by_field() {
    needs!(keel());
    let rule = |more: Value| {
        let mut rule = json!({"names": ["mount"], "action": "SCMP_ACT_ERRNO"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    };
    let args = |index: u32, op: &str| rule(json!({"args": [{"index": index, "value": 1, "op": op}]}));
    let default = |more: Value| {
        let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        profile.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        profile
    };
    let equal = json!({"index": 3, "value": 1, "op": "SCMP_CMP_EQ"});
    let contradiction = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": [equal]},
        {"names": ["bind", "mount"], "action": "SCMP_ACT_KILL", "args": [equal]},
    ]});
    for (profile, field) in [
        (json!({}), "defaultAction"),
        (default(json!({"defaultAction": "SCMP_ACT_NOTIFY"})), "defaultAction"),
        (default(json!({"defaultAction": "allow"})), "defaultAction"),
        (default(json!({"defaultErrnoRet": 1})), "defaultErrnoRet"),
        (default(json!({"architectures": ["SCMP_ARCH_PDP11"]})), "architectures/0"),
        (default(json!({"flags": ["SECCOMP_FILTER_FLAG_FAST"]})), "flags/0"),
        (default(json!({"listenerMetadata": "x"})), "listenerMetadata"),
        (rule(json!({"action": "SCMP_ACT_DENY"})), "syscalls/0/action"),
        (rule(json!({"action": "SCMP_ACT_NOTIFY"})), "listenerPath"),
        (rule(json!({"errnoRet": 5000})), "syscalls/0/errnoRet"),
        (rule(json!({"names": []})), "syscalls/0/names"),
        (args(6, "SCMP_CMP_EQ"), "syscalls/0/args/0/index"),
        (args(0, "SCMP_CMP_LIKE"), "syscalls/0/args/0/op"),
        (contradiction, "syscalls/1/names/1"),
    ] {
        with(profile).refused(&format!("/linux/seccomp/{field}"));
    }
}

fn a_profile_that_is_too_long_is_refused() {
    needs!(keel());
    let condition = |index: u32, value: u32| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let rules: Vec<Value> = (0..1000)
        .map(|n| {
            json!({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": [condition(0, n), condition(1, n)]})
        })
        .collect();
    let error = profiled(rules.into()).refused("/linux/seccomp");
    assert!(error.contains("BPF instructions, more than the 4096 that the kernel takes"), "{error}");
}

fn a_name_that_no_kernel_has_is_skipped_with_a_warning() {
    needs!(keel());
    let mut c = profiled(json!([{"names": ["sched_yield", "frobnicate"], "action": "SCMP_ACT_ERRNO"}]));
    let output = c.acts(&act("syscall")).run();
    assert_eq!((output.code, &*output.stdout), (0, "EPERM\n"), "{output:#?}");
    assert!(output.stderr.contains("/linux/seccomp/syscalls/0/names/1: \"frobnicate\""), "{output:#?}");
}

/// It is set before the filter is there, for a container as for exec.
fn a_profile_need_not_allow_personality() {
    let mut c = profiled(json!([{"names": ["personality"], "action": "SCMP_ACT_ERRNO"}]));
    c.set("/linux/personality", json!({"domain": "LINUX32"}));
    assert_eq!(c.report()["personality"], "00000008");
    c.running();
    assert_eq!(c.exec_report(&[])["personality"], "00000008");
}
