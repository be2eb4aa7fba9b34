//! Programs of classic BPF, as seccomp(2) runs them.
//!
//! All jumps lead forwards, so a program is written from its end: what a jump leads to is there before the jump is.
//! A jump on a condition spans 255 instructions at most; what is further away gets a stepping stone.

use std::collections::HashMap;

/// `struct sock_filter` of `linux/filter.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) jump_true: u8,
    pub(super) jump_false: u8,
    pub(super) k: u32,
}

/// `BPF_LD | BPF_W | BPF_ABS`: a word of `struct seccomp_data`.
pub(super) const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub(super) const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`.
pub(super) const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub(super) const JUMP_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
pub(super) const JUMP_GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub(super) const JUMP_GREATER_EQUAL: u16 = 0x35;
/// `BPF_RET | BPF_K`.
pub(super) const RETURN: u16 = 0x06;

/// The longest program that the kernel takes (`BPF_MAXINSNS`), in instructions.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

/// The furthest that a jump on a condition leads, with room for the stepping stone of its other branch.
const REACH: usize = 254;

/// A place in a program to which a jump may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program that grows from its end to its beginning.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// The last instruction first.
    reversed: Vec<Instruction>,
    /// Where each result was last written.
    results: HashMap<u32, Label>,
}

impl Writer {
    /// Ends the program with a result; an end that is near enough is used again.
    pub(super) fn result(&mut self, result: u32) -> Label {
        match self.results.get(&result) {
            Some(label) if self.is_near(*label) => *label,
            _ => {
                let label = self.push(RETURN, result);
                self.results.insert(result, label);
                label
            }
        }
    }

    /// Loads the word at an offset of `struct seccomp_data`, then goes on at `next`.
    pub(super) fn load(&mut self, offset: u32, next: Label) -> Label {
        self.before(next);
        self.push(LOAD, offset)
    }

    /// Keeps the bits of `mask` of what is loaded, then goes on at `next`.
    pub(super) fn and(&mut self, mask: u32, next: Label) -> Label {
        self.before(next);
        self.push(AND, mask)
    }

    /// Goes on at `yes` if what is loaded compares to `k` as `code` says, at `no` otherwise.
    pub(super) fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        if yes == no {
            return yes;
        }
        let yes = self.near(yes);
        let no = self.near(no);
        let label = self.push(code, k);
        let (jump_true, jump_false) = (self.distance(label, yes), self.distance(label, no));
        // Both fit: `near` has seen to it.
        let short = |distance| u8::try_from(distance).unwrap_or(u8::MAX);
        let instruction = &mut self.reversed[label.0];
        (instruction.jump_true, instruction.jump_false) = (short(jump_true), short(jump_false));
        label
    }

    /// The program, which begins at `start`.
    pub(super) fn finish(mut self, start: Label) -> Vec<Instruction> {
        self.reversed.truncate(start.0 + 1);
        self.reversed.reverse();
        self.reversed
    }

    fn push(&mut self, code: u16, k: u32) -> Label {
        self.reversed.push(Instruction {
            code,
            jump_true: 0,
            jump_false: 0,
            k,
        });
        Label(self.reversed.len() - 1)
    }

    /// Sees to it that `next` is what comes after the instruction that is written next.
    fn before(&mut self, next: Label) {
        if next.0 + 1 != self.reversed.len() {
            self.stone(next);
        }
    }

    fn is_near(&self, label: Label) -> bool {
        self.reversed.len() - label.0 - 1 <= REACH
    }

    /// The label itself, or a stepping stone to it.
    fn near(&mut self, label: Label) -> Label {
        if self.is_near(label) { label } else { self.stone(label) }
    }

    fn stone(&mut self, label: Label) -> Label {
        let target = self.reversed[label.0];
        if target.code == RETURN {
            return self.push(RETURN, target.k);
        }
        let distance = self.reversed.len() - label.0 - 1;
        // No program is longer than this by far.
        self.push(JUMP, u32::try_from(distance).unwrap_or(u32::MAX))
    }

    fn distance(&self, from: Label, to: Label) -> usize {
        from.0 - to.0 - 1
    }
}
