//! bpf(2), as far as rules for devices need it: instructions, loading a program, attaching it to a cgroup.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

// linux/bpf.h and linux/bpf_common.h.
const CLASS_LDX: u8 = 0x01;
const CLASS_ALU: u8 = 0x04;
const CLASS_JMP: u8 = 0x05;
const CLASS_JMP32: u8 = 0x06;
const MODE_MEM: u8 = 0x60;
const FROM_REGISTER: u8 = 0x08;
const OP_OR: u8 = 0x40;
const OP_AND: u8 = 0x50;
const OP_RSH: u8 = 0x70;
const OP_XOR: u8 = 0xa0;
const OP_MOV: u8 = 0xb0;
const OP_JEQ: u8 = 0x10;
const OP_JNE: u8 = 0x50;
const OP_EXIT: u8 = 0x90;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups above this one count as well, and so do those that others add.
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// One instruction (`struct bpf_insn`); numbers are of 32 bits throughout.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    pub(crate) const EXIT: Self = Self::new(CLASS_JMP | OP_EXIT, 0, 0, 0, 0);

    const fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers: from << 4 | to,
            offset,
            immediate,
        }
    }

    /// `to` = the number at `offset` from where `from` points.
    pub(crate) const fn load(to: u8, from: u8, offset: i16) -> Self {
        Self::new(CLASS_LDX | MODE_MEM, to, from, offset, 0)
    }

    pub(crate) const fn set(to: u8, value: i32) -> Self {
        Self::new(CLASS_ALU | OP_MOV, to, 0, 0, value)
    }

    pub(crate) const fn copy(to: u8, from: u8) -> Self {
        Self::new(CLASS_ALU | OP_MOV | FROM_REGISTER, to, from, 0, 0)
    }

    pub(crate) const fn and(to: u8, value: i32) -> Self {
        Self::new(CLASS_ALU | OP_AND, to, 0, 0, value)
    }

    pub(crate) const fn xor(to: u8, value: i32) -> Self {
        Self::new(CLASS_ALU | OP_XOR, to, 0, 0, value)
    }

    pub(crate) const fn or(to: u8, from: u8) -> Self {
        Self::new(CLASS_ALU | OP_OR | FROM_REGISTER, to, from, 0, 0)
    }

    pub(crate) const fn shift_right(to: u8, bits: i32) -> Self {
        Self::new(CLASS_ALU | OP_RSH, to, 0, 0, bits)
    }

    /// Goes on after the next `count` instructions if the register holds this value.
    pub(crate) const fn skip_if_equal(register: u8, value: i32, count: i16) -> Self {
        Self::new(CLASS_JMP32 | OP_JEQ, register, 0, count, value)
    }

    /// Goes on after the next `count` instructions if the register holds another value.
    pub(crate) const fn skip_unless_equal(register: u8, value: i32, count: i16) -> Self {
        Self::new(CLASS_JMP32 | OP_JNE, register, 0, count, value)
    }
}

/// The part of `union bpf_attr` for BPF_PROG_LOAD that is used.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// That for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// Has the kernel check and keep a program about devices.
pub(crate) fn load_device_program(instructions: &[Instruction]) -> nix::Result<OwnedFd> {
    let attributes = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        instructions: instructions.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        expected_attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        ..Load::default()
    };
    let fd = call(PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a program about devices in force for a cgroup and what lies below it, in the place of a former one.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: &OwnedFd,
    former: Option<&OwnedFd>,
) -> nix::Result<()> {
    let number = |fd: RawFd| fd.cast_unsigned();
    let attributes = Attach {
        target: number(cgroup.as_raw_fd()),
        program: number(program.as_raw_fd()),
        kind: ATTACH_TYPE_CGROUP_DEVICE,
        flags: ALLOW_MULTI | if former.is_some() { REPLACE } else { 0 },
        replaced: former.map_or(0, |former| number(former.as_raw_fd())),
    };
    call(PROG_ATTACH, &attributes).map(drop)
}

fn call<T>(command: libc::c_int, attributes: &T) -> nix::Result<RawFd> {
    // SAFETY: pointer and length are of attributes that this command reads, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    Errno::result(result).map(|fd| RawFd::try_from(fd).unwrap_or(-1))
}

/// Does what the kernel does with a program, for tests.
#[cfg(test)]
pub(crate) fn interpret(program: &[Instruction], context: &[u32]) -> u32 {
    let mut registers = [0_u32; 11];
    let mut at = 0;
    loop {
        let instruction = program[at];
        at += 1;
        let (to, from) = (
            usize::from(instruction.registers & 0xf),
            usize::from(instruction.registers >> 4),
        );
        let value = instruction.immediate.cast_unsigned();
        let jump = usize::try_from(instruction.offset).unwrap();
        match instruction.code {
            code if code == CLASS_JMP | OP_EXIT => return registers[0],
            code if code == CLASS_LDX | MODE_MEM => registers[to] = context[jump / 4],
            code if code == CLASS_ALU | OP_MOV => registers[to] = value,
            code if code == CLASS_ALU | OP_MOV | FROM_REGISTER => registers[to] = registers[from],
            code if code == CLASS_ALU | OP_AND => registers[to] &= value,
            code if code == CLASS_ALU | OP_XOR => registers[to] ^= value,
            code if code == CLASS_ALU | OP_OR | FROM_REGISTER => registers[to] |= registers[from],
            code if code == CLASS_ALU | OP_RSH => registers[to] >>= value,
            code if code == CLASS_JMP32 | OP_JEQ => at += if registers[to] == value { jump } else { 0 },
            code if code == CLASS_JMP32 | OP_JNE => at += if registers[to] == value { 0 } else { jump },
            other => panic!("no such instruction: {other:#x}"),
        }
    }
}
