//! What a filter says, and the program that says it to the kernel.
//!
//! The program looks at the architecture, then finds the call's number in a balanced tree over ranges of numbers with
//! the same outcome, and then, where the outcome hangs on them, looks at the arguments. The kernel finds out by itself
//! which calls are always allowed and does not run the program for them, so what counts is that it is short.

use std::collections::BTreeMap;

use super::program::{Instruction, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, Label, MAX_INSTRUCTIONS, Writer};
use super::syscalls::X32_BIT;

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
pub(super) const AUDIT_X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`.
pub(super) const AUDIT_I386: u32 = 0x4000_0003;

/// Offsets in `struct seccomp_data` (`linux/seccomp.h`), in bytes.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
/// The first argument's lower half; each argument has eight bytes.
pub(super) const ARGUMENTS: u32 = 16;

/// How an argument compares to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// Equal in the bits of this mask.
    Masked(u64),
}

/// What an argument must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u32,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// An outcome (`SECCOMP_RET_*`) for a call all of whose conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) outcome: u32,
}

/// The rules of one ABI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// The rules of a call in the order in which they are tried. One without conditions is the only one of its call.
    pub(super) calls: BTreeMap<u32, Vec<Rule>>,
    /// Outcome of a call that has no rule, and of one none of whose rules holds.
    pub(super) default: u32,
    /// From this number on calls have that outcome instead of the default one.
    pub(super) newer: Option<(u32, u32)>,
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) x86_64: Table,
    pub(super) x32: Option<Table>,
    pub(super) i386: Option<Table>,
    /// Outcome of a call of another ABI.
    pub(super) other: u32,
}

/// The program is longer than the kernel takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Table {
    /// Adds a rule as libseccomp does: one without conditions takes the place of all others, whichever came first.
    pub(super) fn add(&mut self, number: u32, rule: Rule) {
        let rules = self.calls.entry(number).or_default();
        if rules.iter().any(|rule| rule.conditions.is_empty()) {
            return;
        }
        if rule.conditions.is_empty() {
            rules.clear();
        }
        rules.push(rule);
    }

    /// The outcomes from each number on, up to `end`, in the order of the numbers.
    fn ranges(&self, begin: u32, end: u32) -> Vec<(u32, Outcome<'_>)> {
        let mut ranges = Vec::new();
        let mut add = |from: u32, outcome| {
            if from < end && ranges.last().is_none_or(|(_, last)| *last != outcome) {
                ranges.push((from, outcome));
            }
        };
        let default_at = |number| match self.newer {
            Some((first, outcome)) if number >= first => outcome,
            _ => self.default,
        };
        add(begin, Outcome::of(&[], default_at(begin)));
        let mut turns: Vec<u32> = self.calls.keys().flat_map(|number| [*number, number + 1]).collect();
        turns.extend(self.newer.map(|(first, _)| first));
        turns.sort_unstable();
        turns.dedup();
        for number in turns.into_iter().filter(|number| *number >= begin) {
            let rules = self.calls.get(&number).map_or(&[][..], Vec::as_slice);
            add(number, Outcome::of(rules, default_at(number)));
        }
        ranges
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome<'a> {
    rules: &'a [Rule],
    otherwise: u32,
}

impl<'a> Outcome<'a> {
    fn of(rules: &'a [Rule], default: u32) -> Self {
        match rules {
            [rule] if rule.conditions.is_empty() => Self {
                rules: &[],
                otherwise: rule.outcome,
            },
            rules => Self {
                rules,
                otherwise: default,
            },
        }
    }
}

impl Filter {
    /// The program.
    pub(super) fn compile(&self) -> Result<Vec<Instruction>, TooLong> {
        let mut writer = Writer::default();
        let other = writer.result(self.other);
        let i386 = self
            .i386
            .as_ref()
            .map(|table| tree_of(&mut writer, &table.ranges(0, u32::MAX), Width::Half));
        let mut ranges = self.x86_64.ranges(0, X32_BIT);
        // The number -1 is no call of x32: a tracer sets it to have none made.
        let after = Outcome::of(
            &[],
            self.x86_64.newer.map_or(self.x86_64.default, |(_, outcome)| outcome),
        );
        let x32_begins = ranges.len();
        match &self.x32 {
            Some(table) => ranges.extend(table.ranges(X32_BIT, u32::MAX)),
            None => ranges.push((X32_BIT, Outcome::of(&[], self.other))),
        }
        ranges.push((u32::MAX, after));
        let x86_64 = tree(&mut writer, &ranges, &|from| match from >= x32_begins {
            true => Width::Half,
            false => Width::Whole,
        });
        let x86_64 = writer.load(NUMBER, x86_64);
        let not_x86_64 = match i386 {
            Some(i386) => writer.branch(JUMP_EQUAL, AUDIT_I386, i386, other),
            None => other,
        };
        let is_x86_64 = writer.branch(JUMP_EQUAL, AUDIT_X86_64, x86_64, not_x86_64);
        let start = writer.load(ARCHITECTURE, is_x86_64);
        let program = writer.finish(start);
        if program.len() > MAX_INSTRUCTIONS {
            return Err(TooLong);
        }
        Ok(program)
    }
}

/// How much of an argument an ABI has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Half,
    Whole,
}

fn tree_of(writer: &mut Writer, ranges: &[(u32, Outcome<'_>)], width: Width) -> Label {
    let tree = tree(writer, ranges, &|_| width);
    writer.load(NUMBER, tree)
}

/// Finds the range in which the loaded number lies. `width` tells a range's ABI by its index.
fn tree(writer: &mut Writer, ranges: &[(u32, Outcome<'_>)], width: &dyn Fn(usize) -> Width) -> Label {
    subtree(writer, ranges, 0, width)
}

fn subtree(writer: &mut Writer, ranges: &[(u32, Outcome<'_>)], first: usize, width: &dyn Fn(usize) -> Width) -> Label {
    match ranges {
        [(_, outcome)] => leaf(writer, outcome, width(first)),
        ranges => {
            let middle = ranges.len() / 2;
            let (low, high) = ranges.split_at(middle);
            let upper = subtree(writer, high, first + middle, width);
            let lower = subtree(writer, low, first, width);
            let (begin, _) = high[0];
            writer.branch(JUMP_GREATER_EQUAL, begin, upper, lower)
        }
    }
}

fn leaf(writer: &mut Writer, outcome: &Outcome<'_>, width: Width) -> Label {
    let mut next = writer.result(outcome.otherwise);
    for rule in outcome.rules.iter().rev() {
        let mut holds = writer.result(rule.outcome);
        for condition in rule.conditions.iter().rev() {
            holds = compare(writer, condition, width, holds, next);
        }
        next = holds;
    }
    next
}

/// Goes on at `yes` if the condition holds, at `no` otherwise.
fn compare(writer: &mut Writer, condition: &Condition, width: Width, yes: Label, no: Label) -> Label {
    let Condition {
        argument,
        comparison,
        value,
    } = *condition;
    let lower = ARGUMENTS + 8 * argument;
    let upper = (width == Width::Whole).then_some(lower + 4);
    let (high, low) = halves(value);
    match comparison {
        Comparison::Equal => equal(writer, lower, upper, u64::MAX, value, [yes, no]),
        Comparison::NotEqual => equal(writer, lower, upper, u64::MAX, value, [no, yes]),
        Comparison::Masked(mask) => equal(writer, lower, upper, mask, value & mask, [yes, no]),
        Comparison::GreaterEqual => ordered(writer, lower, upper, JUMP_GREATER_EQUAL, [high, low], [yes, no]),
        Comparison::Greater => ordered(writer, lower, upper, JUMP_GREATER, [high, low], [yes, no]),
        Comparison::Less => ordered(writer, lower, upper, JUMP_GREATER_EQUAL, [high, low], [no, yes]),
        Comparison::LessEqual => ordered(writer, lower, upper, JUMP_GREATER, [high, low], [no, yes]),
    }
}

fn equal(writer: &mut Writer, lower: u32, upper: Option<u32>, mask: u64, value: u64, [yes, no]: [Label; 2]) -> Label {
    let (high_mask, low_mask) = halves(mask);
    let (high, low) = halves(value);
    let mut half = |offset, mask, value, yes| match mask {
        // Nothing is looked at, so nothing can differ.
        0 => yes,
        u32::MAX => {
            let label = writer.branch(JUMP_EQUAL, value, yes, no);
            writer.load(offset, label)
        }
        mask => {
            let label = writer.branch(JUMP_EQUAL, value, yes, no);
            let label = writer.and(mask, label);
            writer.load(offset, label)
        }
    };
    let low = half(lower, low_mask, low, yes);
    match upper {
        Some(upper) => half(upper, high_mask, high, low),
        None => low,
    }
}

fn ordered(
    writer: &mut Writer,
    lower: u32,
    upper: Option<u32>,
    code: u16,
    [high, low]: [u32; 2],
    [yes, no]: [Label; 2],
) -> Label {
    let label = writer.branch(code, low, yes, no);
    let low = writer.load(lower, label);
    let Some(upper) = upper else { return low };
    let not_greater = writer.branch(JUMP_EQUAL, high, low, no);
    let label = writer.branch(JUMP_GREATER, high, yes, not_greater);
    writer.load(upper, label)
}

#[allow(clippy::cast_possible_truncation, reason = "that is what halves are")]
fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}
