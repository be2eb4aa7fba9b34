//! The processor: its tables, its clock, and the way out.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use husk_test_guest::layout::{BUFFERS, BUFFERS_END};
use husk_test_guest::report::Reason;

use super::{Failure, page};

global_asm!(include_str!("../boot.s"), options(att_syntax));

unsafe extern "C" {
    safe fn exception_stubs();
    safe fn service_gate();
}

/// The exception of `ud2`, by which ring 3 asks ring 0 for something.
const INVALID_OPCODE: usize = 6;
/// The first service's number, as boot.s knows it.
const SERVICE: u64 = 0x5652_5300_4b53_5548;
const EXCEPTIONS: usize = 32;
/// The distance of two stubs of boot.s.
const STUB: u64 = 16;
/// Ring 0's 64-bit code.
const CODE: u64 = 0x08;
/// Present, 64-bit interrupt gate.
const GATE: u64 = 0x8e00;

/// The interrupt descriptor table, which the processor reads.
#[repr(C, align(16))]
struct Table(UnsafeCell<[[u64; 2]; EXCEPTIONS]>);

// SAFETY: it is written once, by the first processor, before there is another.
unsafe impl Sync for Table {}

#[unsafe(export_name = "interrupt_table")]
static INTERRUPT_TABLE: Table = Table(UnsafeCell::new([[0; 2]; EXCEPTIONS]));

/// Fills the interrupt table; once, at the start. boot.s has told the processor where it is.
pub(super) fn prepare() {
    let stubs = exception_stubs as *const () as u64;
    let mut table = [[0; 2]; EXCEPTIONS];
    for (entry, number) in table.iter_mut().zip(0..EXCEPTIONS as u64) {
        *entry = gate(stubs + STUB * number);
    }
    table[INVALID_OPCODE] = gate(service_gate as *const () as u64);
    // SAFETY: see the type; no interrupt comes meanwhile, as none is enabled.
    unsafe { INTERRUPT_TABLE.0.get().write_volatile(table) };
}

/// An interrupt gate (Intel SDM volume 3, 6.14.1).
fn gate(address: u64) -> [u64; 2] {
    let low = address & 0xffff | CODE << 16 | GATE << 32 | (address >> 16 & 0xffff) << 48;
    [low, address >> 32]
}

/// The time stamp counter.
#[inline]
pub(super) fn ticks() -> u64 {
    // SAFETY: the instruction exists on every x86-64 processor and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn service(number: u64) -> ! {
    // SAFETY: the gate is there since `prepare` and does not come back.
    unsafe { asm!("ud2", in("rax") SERVICE + number, options(noreturn)) }
}

/// Halts this processor for good.
pub(super) fn idle() -> ! {
    service(0)
}

/// Switches the machine off.
pub(super) fn off() -> ! {
    service(1)
}

/// What is done with a port. The order is that of boot.s.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(super) enum PortAccess {
    /// A byte, a word and a double word out, then as much in.
    All,
    /// The same without the byte out.
    AllButByteOut,
    /// Many bytes, words or double words out of memory, or into it.
    BytesOut,
    WordsOut,
    DoublesOut,
    BytesIn,
    WordsIn,
    DoublesIn,
}

/// Accesses a port with a value, or `count` times with what is at `place`, which must be in the room for buffers. Gives
/// what came in.
pub(super) fn port(access: PortAccess, port: u16, value: u32, place: u64, count: u64) -> u64 {
    assert!(place >= BUFFERS && place.saturating_add(4 * count) <= BUFFERS_END);
    let came;
    // SAFETY: the gate comes back behind the instruction, and memory is only touched where no Rust object is.
    unsafe {
        asm!("ud2", inout("rax") SERVICE + 3 => _, in("rdx") u64::from(port), inout("rcx") count => _,
            inout("rsi") place => _, inout("rdi") place => _, inout("r8") access as u64 => _,
            inout("r9") u64::from(value) => came, out("r11") _, options(nostack));
    }
    came
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let line = info.location().map_or(0, core::panic::Location::line);
    page::failed(Failure::new(Reason::Panic, line.into()));
    service(2)
}
