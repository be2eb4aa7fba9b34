//! `linux.seccomp` to a program for the guest's kernel.
//!
//! The program is compiled on the host: the guest loads it as it is. What a profile means is what it means under runc
//! and libseccomp, down to the corners: a rule whose action is the default one is left out; a rule that names an
//! argument twice holds when any of its conditions does; a rule without conditions takes the place of a call's other
//! rules; calls newer than every call that the profile names do not exist (`ENOSYS`), so that programs fall back to
//! older ones instead of giving up.

mod filter;
mod program;
mod syscalls;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use husk_protocol::agent;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

use super::BundleError;
use filter::{Comparison, Condition, Filter, Rule, Table};
use program::Instruction;

/// The greatest error number (`MAX_ERRNO` of the kernel's `include/linux/err.h`).
const MAX_ERRNO: u32 = 4095;
/// The number of arguments that a call has at most.
const MAX_ARGUMENTS: usize = 6;

/// Translates a profile.
pub(super) fn translate(seccomp: &LinuxSeccomp) -> Result<agent::Seccomp, BundleError> {
    let filter = filter(seccomp)?;
    let program = filter.compile().map_err(|_| BundleError::Invalid {
        path: "linux.seccomp".into(),
        fault: "makes a longer program than the kernel takes",
    })?;
    Ok(agent::Seccomp {
        program: bytes(&program),
        flags: flags(seccomp)?,
        ..Default::default()
    })
}

/// The program as seccomp(2) reads it on x86_64.
fn bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 * program.len());
    for instruction in program {
        bytes.extend(instruction.code.to_le_bytes());
        bytes.extend([instruction.jump_true, instruction.jump_false]);
        bytes.extend(instruction.k.to_le_bytes());
    }
    bytes
}

/// Flags of seccomp(2).
fn flags(seccomp: &LinuxSeccomp) -> Result<u32, BundleError> {
    let flag = |flag: libc::c_ulong| u32::try_from(flag).unwrap_or(0);
    let Some(list) = seccomp.flags() else {
        // What runc does where the profile does not say: mitigations that cost more than they bring stay off.
        return Ok(flag(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW));
    };
    let mut flags = 0;
    for (index, entry) in list.iter().enumerate() {
        flags |= match entry {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => flag(libc::SECCOMP_FILTER_FLAG_LOG),
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flag(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => flag(libc::SECCOMP_FILTER_FLAG_TSYNC),
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(BundleError::UnsupportedValue {
                    path: format!("linux.seccomp.flags[{index}]"),
                    value: format!("{:?}", entry.to_string()),
                });
            }
        };
    }
    Ok(flags)
}

fn filter(seccomp: &LinuxSeccomp) -> Result<Filter, BundleError> {
    let default = outcome(
        ["linux.seccomp.defaultAction", "linux.seccomp.defaultErrnoRet"],
        seccomp.default_action(),
        seccomp.default_errno_ret(),
    )?;
    let architectures = seccomp.architectures().as_deref().unwrap_or_default();
    let table = || Table {
        calls: BTreeMap::new(),
        default,
        newer: None,
    };
    let mut filter = Filter {
        // The native architecture is always there, as with libseccomp. One that the guest does not have makes no calls.
        x86_64: table(),
        x32: architectures.contains(&Arch::ScmpArchX32).then(table),
        i386: architectures.contains(&Arch::ScmpArchX86).then(table),
        other: libc::SECCOMP_RET_KILL_THREAD,
    };
    let mut unknown = Vec::new();
    let mut largest = [None; 3];
    for (index, entry) in seccomp.syscalls().iter().flatten().enumerate() {
        let path = |field: &str| format!("linux.seccomp.syscalls[{index}].{field}");
        let [action, errno] = [path("action"), path("errnoRet")];
        let outcome = outcome([&action, &errno], entry.action(), entry.errno_ret())?;
        let rules = rules(&path("args"), entry, outcome)?;
        for name in entry.names() {
            let numbers = [
                syscalls::of_x86_64(name),
                syscalls::of_x32(name),
                syscalls::of_i386(name),
            ];
            let is_multiplexed = syscalls::multiplexed_in_i386(name).is_some();
            if numbers == [None; 3] && !is_multiplexed && !syscalls::is_of_another_architecture(name) {
                unknown.push(name.as_str());
            }
            for (largest, number) in largest.iter_mut().zip(numbers) {
                *largest = (*largest).max(number);
            }
            if outcome != default {
                add(&mut filter, name, numbers, &rules);
            }
        }
    }
    if !unknown.is_empty() {
        tracing::warn!(
            names = unknown.join(" "),
            "linux.seccomp names unknown system calls, which are skipped"
        );
    }
    let says_enosys = seccomp.default_errno_ret() == Some(libc::ENOSYS.cast_unsigned());
    if !says_enosys && !is_permissive(seccomp.default_action()) {
        let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
        let tables = [Some(&mut filter.x86_64), filter.x32.as_mut(), filter.i386.as_mut()];
        for (table, largest) in tables.into_iter().zip(largest) {
            if let (Some(table), Some(largest)) = (table, largest) {
                table.newer = Some((largest + 1, enosys));
            }
        }
    }
    Ok(filter)
}

fn add(filter: &mut Filter, name: &str, numbers: [Option<u32>; 3], rules: &[Rule]) {
    let tables = [Some(&mut filter.x86_64), filter.x32.as_mut(), filter.i386.as_mut()];
    for (table, number) in tables.into_iter().zip(numbers) {
        if let (Some(table), Some(number)) = (table, number) {
            for rule in rules {
                table.add(number, rule.clone());
            }
        }
    }
    let Some(table) = &mut filter.i386 else { return };
    // libseccomp adds a rule for the other way to the same call, with the call's number instead of its own condition
    // on the first argument.
    if let Some((through, call)) = syscalls::multiplexed_in_i386(name)
        && let Some(number) = syscalls::of_i386(through)
    {
        for rule in rules {
            let mut conditions = vec![Condition {
                argument: 0,
                comparison: Comparison::Equal,
                value: call.into(),
            }];
            conditions.extend(rule.conditions.iter().filter(|condition| condition.argument != 0));
            let outcome = rule.outcome;
            table.add(number, Rule { conditions, outcome });
        }
    }
}

/// The rules of one entry of the profile, the same for each of its names.
fn rules(path: &str, entry: &LinuxSyscall, outcome: u32) -> Result<Vec<Rule>, BundleError> {
    let mut conditions = Vec::new();
    let mut count = [0; MAX_ARGUMENTS];
    for (index, argument) in entry.args().iter().flatten().enumerate() {
        let Some(count) = count.get_mut(argument.index()) else {
            return Err(BundleError::Value {
                path: format!("{path}[{index}].index"),
                value: argument.index().to_string(),
                expected: "0 to 5 is expected",
            });
        };
        *count += 1;
        conditions.push(condition(argument));
    }
    let alternatives = if count.iter().any(|count| *count > 1) {
        conditions.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![conditions]
    };
    Ok(alternatives
        .into_iter()
        .map(|conditions| Rule { conditions, outcome })
        .collect())
}

fn condition(argument: &LinuxSeccompArg) -> Condition {
    let (comparison, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Comparison::NotEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Comparison::Less, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Comparison::LessEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Comparison::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Comparison::GreaterEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Comparison::Greater, argument.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            Comparison::Masked(argument.value()),
            argument.value_two().unwrap_or_default(),
        ),
    };
    Condition {
        // At most 5, as has been checked.
        argument: u32::try_from(argument.index()).unwrap_or_default(),
        comparison,
        value,
    }
}

/// What the filter returns for an action (`SECCOMP_RET_*`).
fn outcome(paths: [&str; 2], action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, BundleError> {
    let [action_path, errno_path] = paths.map(str::to_owned);
    let with_data = |outcome: u32, data: u32| match errno {
        Some(value) if value > data => Err(BundleError::Value {
            path: errno_path.clone(),
            value: value.to_string(),
            expected: "an error number is expected",
        }),
        value => Ok(outcome | value.unwrap_or(libc::EPERM.cast_unsigned())),
    };
    let plain = match action {
        LinuxSeccompAction::ScmpActErrno => return with_data(libc::SECCOMP_RET_ERRNO, MAX_ERRNO),
        LinuxSeccompAction::ScmpActTrace => return with_data(libc::SECCOMP_RET_TRACE, libc::SECCOMP_RET_DATA),
        LinuxSeccompAction::ScmpActNotify => {
            return Err(BundleError::UnsupportedValue {
                path: action_path,
                value: format!("{:?}", action.to_string()),
            });
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
    };
    match errno {
        None => Ok(plain),
        // The specification has it an error.
        Some(_) => Err(BundleError::Invalid {
            path: errno_path,
            fault: "is set for an action that returns no error number",
        }),
    }
}

/// Whether calls that nothing names are made all the same.
fn is_permissive(action: LinuxSeccompAction) -> bool {
    matches!(
        action,
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    )
}
