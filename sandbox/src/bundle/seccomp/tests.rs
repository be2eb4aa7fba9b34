use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::filter::{ARCHITECTURE, ARGUMENTS, AUDIT_I386, AUDIT_X86_64, NUMBER};
use super::program::{AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, LOAD, RETURN};
use super::syscalls::X32_BIT;
use super::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number.cast_unsigned()
}

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u32,
    architecture: u32,
    arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            NUMBER => self.number,
            ARCHITECTURE => self.architecture,
            offset => {
                let offset = offset.checked_sub(ARGUMENTS).expect("an offset that is used");
                let argument = self.arguments[offset as usize / 8];
                assert_eq!(offset % 4, 0);
                u32::try_from(argument >> (8 * (offset % 8)) & u64::from(u32::MAX)).unwrap()
            }
        }
    }
}

/// What the kernel makes of a call: a program without a result for it is a fault of the compiler.
fn run(program: &[Instruction], call: &Call) -> u32 {
    let (mut at, mut loaded) = (0, 0);
    loop {
        let Instruction {
            code,
            jump_true,
            jump_false,
            k,
        } = program[at];
        at += 1;
        let mut branch = |holds: bool| at += usize::from(if holds { jump_true } else { jump_false });
        match code {
            LOAD => loaded = call.word(k),
            AND => loaded &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => branch(loaded == k),
            JUMP_GREATER => branch(loaded > k),
            JUMP_GREATER_EQUAL => branch(loaded >= k),
            RETURN => return k,
            other => panic!("instruction {other:#x} is none of ours"),
        }
    }
}

fn compiled(profile: &Value) -> Vec<Instruction> {
    let profile = serde_json::from_value(profile.clone()).unwrap();
    filter(&profile).unwrap().compile().unwrap()
}

fn refusal(profile: &Value) -> String {
    let profile = serde_json::from_value(profile.clone()).unwrap();
    translate(&profile).unwrap_err().to_string()
}

fn call(number: u32, arguments: [u64; 6]) -> Call {
    Call {
        number,
        architecture: AUDIT_X86_64,
        arguments,
    }
}

fn i386(number: u32, arguments: [u64; 6]) -> Call {
    Call {
        architecture: AUDIT_I386,
        ..call(number, arguments)
    }
}

/// What a profile says of a call of x86_64 by its name.
fn says(profile: &Value, name: &str, arguments: [u64; 6]) -> u32 {
    let number = syscalls::of_x86_64(name).unwrap();
    run(&compiled(profile), &call(number, arguments))
}

const NO: [u64; 6] = [0; 6];

#[test]
fn actions_are_the_kernels() {
    for (action, errno_ret, expected) in [
        ("SCMP_ACT_KILL", None, KILL),
        ("SCMP_ACT_KILL_THREAD", None, KILL),
        ("SCMP_ACT_KILL_PROCESS", None, libc::SECCOMP_RET_KILL_PROCESS),
        ("SCMP_ACT_TRAP", None, libc::SECCOMP_RET_TRAP),
        ("SCMP_ACT_ERRNO", None, errno(libc::EPERM)),
        ("SCMP_ACT_ERRNO", Some(0), errno(0)),
        ("SCMP_ACT_ERRNO", Some(38), errno(38)),
        ("SCMP_ACT_ERRNO", Some(4095), errno(4095)),
        ("SCMP_ACT_TRACE", None, libc::SECCOMP_RET_TRACE | 1),
        ("SCMP_ACT_TRACE", Some(65_535), libc::SECCOMP_RET_TRACE | 65_535),
        ("SCMP_ACT_LOG", None, libc::SECCOMP_RET_LOG),
    ] {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": action, "errnoRet": errno_ret}],
        });
        assert_eq!(says(&profile, "mkdir", NO), expected, "{action} {errno_ret:?}");
        assert_eq!(says(&profile, "rmdir", NO), ALLOW, "{action}");
        let as_default = json!({"defaultAction": action, "defaultErrnoRet": errno_ret});
        assert_eq!(says(&as_default, "mkdir", NO), expected, "{action} {errno_ret:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_its_path() {
    let with = |entry: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ALLOW"}, entry]});
    for (profile, path) in [
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
            "linux.seccomp.defaultErrnoRet",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}),
            "linux.seccomp.defaultErrnoRet",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction",
        ),
        (
            with(json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"})),
            "linux.seccomp.syscalls[1].action",
        ),
        (
            with(json!({"names": ["mkdir"], "action": "SCMP_ACT_KILL", "errnoRet": 1})),
            "linux.seccomp.syscalls[1].errnoRet",
        ),
        (
            with(json!({"names": ["mkdir"], "action": "SCMP_ACT_TRACE", "errnoRet": 65_536})),
            "linux.seccomp.syscalls[1].errnoRet",
        ),
        (
            with(json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO",
                        "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "linux.seccomp.syscalls[1].args[0].index",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
            "linux.seccomp.flags[0]",
        ),
    ] {
        let message = refusal(&profile);
        assert!(message.contains(path), "{message}");
    }
}

#[test]
fn flags_are_the_kernels() {
    let flags = |flags: Value| {
        let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        if !flags.is_null() {
            profile["flags"] = flags;
        }
        translate(&serde_json::from_value(profile).unwrap()).unwrap().flags
    };
    assert_eq!(flags(json!(null)), 4, "as with runc, SPEC_ALLOW where nothing is said");
    assert_eq!(flags(json!([])), 0);
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_LOG"])), 2);
    assert_eq!(
        flags(json!([
            "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_LOG"
        ])),
        7
    );
}

fn with_args(args: Value) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_TRAP", "args": args}],
    })
}

#[test]
fn arguments_are_compared_in_all_their_bits() {
    let value: u64 = 0x1_0000_0005;
    for (operator, below, at, above, high_below, high_above) in [
        ("SCMP_CMP_EQ", false, true, false, false, false),
        ("SCMP_CMP_NE", true, false, true, true, true),
        ("SCMP_CMP_LT", true, false, false, true, false),
        ("SCMP_CMP_LE", true, true, false, true, false),
        ("SCMP_CMP_GT", false, false, true, false, true),
        ("SCMP_CMP_GE", false, true, true, false, true),
    ] {
        let profile = with_args(json!([{"index": 5, "value": value, "op": operator}]));
        for (argument, holds) in [
            (value - 1, below),
            (value, at),
            (value + 1, above),
            (0x0_ffff_ffff, high_below),
            (0x2_0000_0000, high_above),
        ] {
            let outcome = says(&profile, "mkdir", [0, 0, 0, 0, 0, argument]);
            assert_eq!(outcome == libc::SECCOMP_RET_TRAP, holds, "{argument:#x} {operator}");
        }
    }
    let masked = |mask: u64, value: u64, argument: u64| {
        let profile = with_args(json!([{"index": 0, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]));
        says(&profile, "mkdir", [argument, 0, 0, 0, 0, 0]) == libc::SECCOMP_RET_TRAP
    };
    assert!(masked(0xf0, 0x30, 0xffff_ffff_ffff_ff3f));
    assert!(!masked(0xf0, 0x30, 0x20));
    assert!(masked(0xf_0000_0000, 0x3_0000_0000, 0x33_ffff_ffff));
    assert!(!masked(0xf_0000_0000, 0x3_0000_0000, 0x3));
    // Bits of the value outside the mask do not count, and an empty mask holds of everything.
    assert!(masked(0xf0, 0x3f, 0x30));
    assert!(masked(0, 7, 1234));
}

#[test]
fn conditions_on_different_arguments_hold_together_and_on_the_same_one_alone() {
    let both = with_args(json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}
    ]));
    let trap = libc::SECCOMP_RET_TRAP;
    assert_eq!(says(&both, "mkdir", [1, 2, 0, 0, 0, 0]), trap);
    assert_eq!(says(&both, "mkdir", [1, 3, 0, 0, 0, 0]), ALLOW);
    assert_eq!(says(&both, "mkdir", [2, 2, 0, 0, 0, 0]), ALLOW);
    let either = with_args(json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 7, "op": "SCMP_CMP_EQ"}
    ]));
    for (arguments, outcome) in [
        ([1, 0, 0, 0, 0, 0], trap),
        ([5, 0, 0, 0, 0, 0], trap),
        ([9, 7, 0, 0, 0, 0], trap),
        (NO, ALLOW),
    ] {
        assert_eq!(says(&either, "mkdir", arguments), outcome, "{arguments:?}");
    }
}

#[test]
fn a_rule_without_conditions_decides() {
    let conditional = json!({"names": ["mkdir"], "action": "SCMP_ACT_TRAP",
                             "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]});
    let first = json!({"names": ["mkdir"], "action": "SCMP_ACT_LOG"});
    let second = json!({"names": ["mkdir"], "action": "SCMP_ACT_KILL"});
    for order in [[0, 1, 2], [1, 0, 2], [1, 2, 0]] {
        let entries = [&conditional, &first, &second];
        let syscalls: Vec<_> = order.map(|index| entries[index].clone()).into();
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls});
        let outcome = says(&profile, "mkdir", [1, 0, 0, 0, 0, 0]);
        assert_eq!(outcome, libc::SECCOMP_RET_LOG, "{order:?}");
    }
}

#[test]
fn a_rule_with_the_default_action_is_left_out() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["mkdir"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 7, "op": "SCMP_CMP_EQ"}]},
        ],
    });
    assert_eq!(says(&profile, "mkdir", [0, 7, 0, 0, 0, 0]), ALLOW);
    assert_eq!(says(&profile, "mkdir", NO), errno(libc::EPERM));
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let profile = |action: &str| {
        json!({
            "defaultAction": action, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{"names": ["read", "statx", "no_such_call"], "action": "SCMP_ACT_ALLOW"}],
        })
    };
    let program = compiled(&profile("SCMP_ACT_ERRNO"));
    for (call, outcome) in [
        (call(332, NO), ALLOW),
        (call(331, NO), errno(libc::EPERM)),
        (call(333, NO), errno(libc::ENOSYS)),
        (call(u32::MAX, NO), errno(libc::ENOSYS)),
        (call(X32_BIT, NO), KILL),
        (i386(383, NO), ALLOW),
        (i386(384, NO), errno(libc::ENOSYS)),
        (i386(u32::MAX, NO), errno(libc::ENOSYS)),
    ] {
        assert_eq!(run(&program, &call), outcome, "{call:?}");
    }
    for (action, outcome) in [
        ("SCMP_ACT_LOG", libc::SECCOMP_RET_LOG),
        ("SCMP_ACT_TRACE", libc::SECCOMP_RET_TRACE | 1),
    ] {
        assert_eq!(run(&compiled(&profile(action)), &call(333, NO)), outcome);
    }
    let mut own = profile("SCMP_ACT_ERRNO");
    own["defaultErrnoRet"] = json!(libc::ENOSYS);
    assert_eq!(run(&compiled(&own), &call(331, NO)), errno(libc::ENOSYS));
}

#[test]
fn an_architecture_has_its_own_numbers_and_others_kill() {
    let profile = |architectures: &[&str]| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
            "syscalls": [{"names": ["ioctl"], "action": "SCMP_ACT_TRAP"}],
        })
    };
    let trap = libc::SECCOMP_RET_TRAP;
    let all = compiled(&profile(&[
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_AARCH64",
    ]));
    for (call, outcome) in [
        (call(16, NO), trap),
        (call(54, NO), ALLOW),
        (i386(54, NO), trap),
        (i386(16, NO), ALLOW),
        (call(X32_BIT | 514, NO), trap),
        (call(X32_BIT | 16, NO), ALLOW),
        (call(u32::MAX, NO), ALLOW),
    ] {
        assert_eq!(run(&all, &call), outcome, "{call:?}");
    }
    for architectures in [
        &[][..],
        &["SCMP_ARCH_X86_64"],
        &["SCMP_ARCH_NATIVE"],
        &["SCMP_ARCH_ARM"],
    ] {
        let native = compiled(&profile(architectures));
        assert_eq!(run(&native, &call(16, NO)), trap);
        assert_eq!(run(&native, &i386(54, NO)), KILL);
        assert_eq!(run(&native, &call(X32_BIT | 514, NO)), KILL);
        assert_eq!(run(&native, &call(u32::MAX, NO)), ALLOW);
    }
    let foreign = Call {
        architecture: 0xc000_00b7,
        ..call(16, NO)
    };
    assert_eq!(run(&all, &foreign), KILL);
}

#[test]
fn arguments_of_a_32_bit_abi_have_32_bits() {
    let mut profile = with_args(json!([{"index": 0, "value": u64::MAX, "op": "SCMP_CMP_EQ"}]));
    profile["architectures"] = json!(["SCMP_ARCH_X86"]);
    assert_eq!(
        run(&compiled(&profile), &i386(39, [0xffff_ffff, 0, 0, 0, 0, 0])),
        libc::SECCOMP_RET_TRAP
    );
    assert_eq!(run(&compiled(&profile), &i386(39, NO)), ALLOW);
}

#[test]
fn calls_behind_another_one_are_found_there_in_i386() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]},
            {"names": ["semop"], "action": "SCMP_ACT_LOG"},
        ],
    });
    let program = compiled(&profile);
    for (call, outcome) in [
        (i386(359, [40, 0, 0, 0, 0, 0]), libc::SECCOMP_RET_TRAP),
        (i386(359, [2, 0, 0, 0, 0, 0]), ALLOW),
        (i386(102, [1, 0, 0, 0, 0, 0]), libc::SECCOMP_RET_TRAP),
        (i386(102, [2, 0, 0, 0, 0, 0]), ALLOW),
        (i386(117, [1, 0, 0, 0, 0, 0]), libc::SECCOMP_RET_LOG),
        (i386(117, [2, 0, 0, 0, 0, 0]), ALLOW),
    ] {
        assert_eq!(run(&program, &call), outcome, "{call:?}");
    }
}

/// The default profiles of docker (github.com/moby/profiles 0.3.0), containerd (2.4.2) and podman (Debian 12's
/// containers-common 0.50.1), as they stand in the `config.json` of a container with the usual capabilities.
const DEFAULTS: [(&str, &str); 3] = [
    ("docker", include_str!("profiles/docker.json")),
    ("containerd", include_str!("profiles/containerd.json")),
    ("podman", include_str!("profiles/podman.json")),
];

#[test]
fn the_usual_default_profiles_are_short_programs() {
    for (name, profile) in DEFAULTS {
        let profile: Value = serde_json::from_str(profile).unwrap();
        let program = compiled(&profile);
        assert!(program.len() < 900, "{name}: {} instructions", program.len());
        for (call, arguments, outcome) in [
            ("execve", NO, ALLOW),
            ("openat2", NO, ALLOW),
            ("clone", [0x0001_0000, 0, 0, 0, 0, 0], ALLOW),
            ("swapon", NO, errno(libc::EPERM)),
            ("bpf", NO, errno(libc::EPERM)),
            ("personality", [0, 0, 0, 0, 0, 0], ALLOW),
            ("personality", [8, 0, 0, 0, 0, 0], ALLOW),
            ("kexec_load", NO, errno(libc::EPERM)),
        ] {
            assert_eq!(says(&profile, call, arguments), outcome, "{name}: {call} {arguments:?}");
        }
        assert_eq!(run(&program, &call(10_000, NO)), errno(libc::ENOSYS), "{name}");
        assert_eq!(run(&program, &i386(11, NO)), ALLOW, "{name}");
        assert_eq!(run(&program, &call(X32_BIT | 520, NO)), ALLOW, "{name}");
    }
    let profile: Value = serde_json::from_str(DEFAULTS[0].1).unwrap();
    // A new user namespace, by clone(2) and clone3(2), whose flags no filter sees; vsock; an unusual personality.
    assert_eq!(
        says(&profile, "clone", [0x1000_0000, 0, 0, 0, 0, 0]),
        errno(libc::EPERM)
    );
    assert_eq!(says(&profile, "clone3", NO), errno(libc::ENOSYS));
    assert_eq!(says(&profile, "socket", [40, 0, 0, 0, 0, 0]), errno(libc::EPERM));
    assert_eq!(says(&profile, "socket", [2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(
        says(&profile, "personality", [0x0004_0000, 0, 0, 0, 0, 0]),
        errno(libc::EPERM)
    );
}

fn comparison() -> impl Strategy<Value = Comparison> {
    prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessEqual),
        Just(Comparison::Greater),
        Just(Comparison::GreaterEqual),
        word().prop_map(Comparison::Masked),
    ]
}

/// Values whose halves are often the same as another's.
fn word() -> impl Strategy<Value = u64> {
    let half = prop_oneof![Just(0), Just(1), Just(u32::MAX), Just(0x7fff_ffff), any::<u32>()];
    (half.clone(), half).prop_map(|(high, low)| u64::from(high) << 32 | u64::from(low))
}

prop_compose! {
    fn rule()(conditions in proptest::collection::vec((0..6_u32, comparison(), word()), 0..4), outcome in 0..4_u32) -> Rule {
        let conditions = conditions
            .into_iter()
            .map(|(argument, comparison, value)| Condition { argument, comparison, value })
            .collect();
        Rule { conditions, outcome }
    }
}

prop_compose! {
    fn table(begin: u32)(
        rules in proptest::collection::vec((0..500_u32, rule()), 0..90), default in 0..4_u32, newer in any::<bool>(),
    ) -> Table {
        let mut table = Table { calls: BTreeMap::new(), default, newer: newer.then_some((begin + 500, 9)) };
        for (number, rule) in rules {
            table.add(begin + number, rule);
        }
        table
    }
}

fn holds(condition: &Condition, call: &Call, mask: u64) -> bool {
    let argument = call.arguments[condition.argument as usize] & mask;
    let value = condition.value & mask;
    match condition.comparison {
        Comparison::Equal => argument == value,
        Comparison::NotEqual => argument != value,
        Comparison::Less => argument < value,
        Comparison::LessEqual => argument <= value,
        Comparison::Greater => argument > value,
        Comparison::GreaterEqual => argument >= value,
        Comparison::Masked(mask) => argument & mask == value & mask,
    }
}

/// What a filter says, looked up without a program.
fn meant(filter: &Filter, call: &Call) -> u32 {
    let is_x32 = call.architecture == AUDIT_X86_64 && call.number >= X32_BIT && call.number != u32::MAX;
    let (table, mask) = match call.architecture {
        AUDIT_X86_64 if is_x32 => (filter.x32.as_ref(), u32::MAX.into()),
        AUDIT_X86_64 => (Some(&filter.x86_64), u64::MAX),
        AUDIT_I386 => (filter.i386.as_ref(), u32::MAX.into()),
        _ => (None, 0),
    };
    let Some(table) = table else { return filter.other };
    let default = match table.newer {
        Some((first, outcome)) if call.number >= first => outcome,
        _ => table.default,
    };
    let rules = table.calls.get(&call.number).into_iter().flatten();
    let rule = rules
        .into_iter()
        .find(|rule| rule.conditions.iter().all(|condition| holds(condition, call, mask)));
    rule.map_or(default, |rule| rule.outcome)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_program_says_what_its_filter_says(
        x86_64 in table(0), x32 in proptest::option::of(table(X32_BIT)), i386 in proptest::option::of(table(0)),
        arguments in proptest::collection::vec(word(), 6), shift in 0..600_u32,
    ) {
        let filter = Filter { x86_64, x32, i386, other: 77 };
        let program = filter.compile().unwrap();
        let arguments: [u64; 6] = arguments.try_into().unwrap();
        for architecture in [AUDIT_X86_64, AUDIT_I386, 5] {
            let near = (0..520).chain(X32_BIT..X32_BIT + 520);
            for number in near.chain([u32::MAX, u32::MAX - 1, X32_BIT - 1, 0x8000_0000 + shift]) {
                // Arguments that some rule looks for, as far as there is one.
                let mut call = Call { number, architecture, arguments };
                prop_assert_eq!(run(&program, &call), meant(&filter, &call), "{:?}", call);
                let rules = [Some(&filter.x86_64), filter.x32.as_ref(), filter.i386.as_ref()];
                for rule in rules.into_iter().flatten().flat_map(|table| table.calls.get(&number)).flatten() {
                    for condition in &rule.conditions {
                        call.arguments[condition.argument as usize] = condition.value;
                    }
                    prop_assert_eq!(run(&program, &call), meant(&filter, &call), "{:?}", call);
                }
            }
        }
    }

    #[test]
    fn any_profile_is_translated_or_refused(
        names in proptest::collection::vec("[a-z_0-9]{0,12}", 0..4), errno in proptest::option::of(0..70_000_u32),
        index in 0..8_usize, value in any::<u64>(),
    ) {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno,
            "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW",
                          "args": [{"index": index, "value": value, "op": "SCMP_CMP_GE"}]}],
        });
        let _ = translate(&serde_json::from_value(profile).unwrap());
    }
}
