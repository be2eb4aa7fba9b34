//! Rules for devices as a BPF program of the cgroup, which the kernel asks whenever a device is opened or a node is
//! made (Documentation/admin-guide/cgroup-v2.rst, "Device controller").
//!
//! The program keeps those kinds of access that no rule has decided about yet, and goes through the rules from the last
//! to the first: one that allows takes its kinds away, and where none is left the access is allowed; one that denies a
//! kind that is left ends it. So the last rule that fits decides, for each kind of access by itself.
//!
//! The kernel checks a program by following both ways of each branch, with what is known on each: with a branch for each
//! number of a rule it would go through all the other rules anew for each number that it then knows, and take millions of
//! instructions. So whether a rule fits is one branch, on the differences between what is asked for and what the rule is
//! about, and a rule about all kinds of access answers at once.

use std::os::fd::{BorrowedFd, OwnedFd};

use husk_protocol::agent::DeviceRule;
use husk_protocol::agent::device_rule::Kind;

use crate::sys::bpf::{self, Instruction};

// linux/bpf.h, struct bpf_cgroup_dev_ctx: kind of device and kinds of access, major number, minor number.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;

// Registers.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;
const OTHER: u8 = 7;

/// Makes the rules count for a cgroup, in the place of those that a former program holds.
pub(super) fn attach(cgroup: BorrowedFd<'_>, rules: &[DeviceRule], former: Option<&OwnedFd>) -> nix::Result<OwnedFd> {
    let program = bpf::load_device_program(&compile(rules))?;
    bpf::attach_device_program(cgroup, &program, former)?;
    Ok(program)
}

fn compile(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        Instruction::load(KIND, CONTEXT, 0),
        Instruction::copy(ACCESS, KIND),
        Instruction::and(KIND, 0xffff),
        Instruction::shift_right(ACCESS, 16),
        Instruction::load(MAJOR, CONTEXT, 4),
        Instruction::load(MINOR, CONTEXT, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(compile_one(rule));
        if is_everything(rule) {
            // It has decided about all that was left, and the kernel refuses instructions that nothing leads to.
            return program;
        }
    }
    program.extend(answer(0));
    program
}

fn compile_one(rule: &DeviceRule) -> Vec<Instruction> {
    let access = access(rule);
    let mut body = Vec::new();
    if access == ALL {
        body.extend(answer(rule.allow.into()));
    } else if rule.allow {
        body.push(Instruction::and(ACCESS, !access));
        body.push(Instruction::skip_unless_equal(ACCESS, 0, 2));
        body.extend(answer(1));
    } else {
        body.push(Instruction::copy(SCRATCH, ACCESS));
        body.push(Instruction::and(SCRATCH, access));
        body.push(Instruction::skip_if_equal(SCRATCH, 0, 2));
        body.extend(answer(0));
    }
    let kind = match rule.kind.enum_value_or_default() {
        Kind::ALL => None,
        Kind::BLOCK => Some(BLOCK),
        Kind::CHARACTER => Some(CHARACTER),
    };
    let conditions = [
        kind.map(|kind| (KIND, kind)),
        rule.major.map(|major| (MAJOR, major.cast_signed())),
        rule.minor.map(|minor| (MINOR, minor.cast_signed())),
    ];
    let conditions: Vec<_> = conditions.into_iter().flatten().collect();
    let mut program = Vec::new();
    for (register, value) in conditions {
        let difference = if program.is_empty() { SCRATCH } else { OTHER };
        program.push(Instruction::copy(difference, register));
        program.push(Instruction::xor(difference, value));
        if difference == OTHER {
            program.push(Instruction::or(SCRATCH, OTHER));
        }
    }
    if !program.is_empty() {
        let rest = i16::try_from(body.len()).unwrap_or(i16::MAX);
        program.push(Instruction::skip_unless_equal(SCRATCH, 0, rest));
    }
    program.extend(body);
    program
}

fn access(rule: &DeviceRule) -> i32 {
    [(rule.make, MAKE), (rule.read, READ), (rule.write, WRITE)]
        .into_iter()
        .filter_map(|(is_set, bit)| is_set.then_some(bit))
        .sum()
}

fn is_everything(rule: &DeviceRule) -> bool {
    rule.kind.enum_value_or_default() == Kind::ALL
        && rule.major.is_none()
        && rule.minor.is_none()
        && access(rule) == ALL
}

fn answer(value: i32) -> [Instruction; 2] {
    [Instruction::set(RESULT, value), Instruction::EXIT]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the program answers.
    fn run(program: &[Instruction], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let context = [(access << 16 | kind).cast_unsigned(), major, minor];
        bpf::interpret(program, &context) == 1
    }

    /// What the rules say, read as people read them.
    fn decide(rules: &[DeviceRule], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        [MAKE, READ, WRITE].iter().filter(|bit| access & **bit != 0).all(|bit| {
            let fits = |rule: &&DeviceRule| {
                let of_kind = match rule.kind.enum_value_or_default() {
                    Kind::ALL => true,
                    Kind::BLOCK => kind == BLOCK,
                    Kind::CHARACTER => kind == CHARACTER,
                };
                of_kind
                    && rule.major.is_none_or(|number| number == major)
                    && rule.minor.is_none_or(|number| number == minor)
                    && super::access(rule) & bit != 0
            };
            rules.iter().rev().find(fits).is_some_and(|rule| rule.allow)
        })
    }

    fn rule() -> impl Strategy<Value = DeviceRule> {
        let number = || proptest::option::of(prop_oneof![0u32..3, Just(u32::MAX)]);
        let kind = prop_oneof![Just(Kind::ALL), Just(Kind::BLOCK), Just(Kind::CHARACTER)];
        (any::<bool>(), kind, number(), number(), 0i32..8).prop_map(|(allow, kind, major, minor, access)| DeviceRule {
            allow,
            kind: kind.into(),
            major,
            minor,
            read: access & READ != 0,
            write: access & WRITE != 0,
            make: access & MAKE != 0,
            ..DeviceRule::default()
        })
    }

    proptest! {
        #[test]
        fn the_program_says_what_the_rules_say(
            rules in proptest::collection::vec(rule(), 0..8),
            kind in 1i32..3,
            access in 1i32..8,
            major in prop_oneof![0u32..3, Just(u32::MAX)],
            minor in 0u32..3,
        ) {
            let program = compile(&rules);
            prop_assert_eq!(
                run(&program, kind, access, major, minor),
                decide(&rules, kind, access, major, minor)
            );
        }
    }

    #[test]
    fn the_kernel_takes_as_many_rules_as_are_allowed() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let rules: Vec<_> = (0..500)
            .map(|number| DeviceRule {
                allow: number % 3 == 0,
                kind: Kind::BLOCK.into(),
                major: Some(number),
                minor: Some(number),
                read: true,
                ..DeviceRule::default()
            })
            .collect();
        for count in [0, 1, rules.len()] {
            bpf::load_device_program(&compile(&rules[..count])).unwrap();
        }
    }
}
