//! The second processor: while the first says so, it changes a queue's rings at random.

use core::sync::atomic::{AtomicU64, Ordering};

use husk_test_guest::layout::TRAMPOLINE;
use husk_test_guest::random::Random;
use husk_test_guest::report::Reason;

use super::attack::address;
use super::memory::{copy, write16, write32, write64};
use super::queue::{AVAILABLE, USED};
use super::{Failure, machine, wait};

/// Registers of the local interrupt controller.
const SPURIOUS: u64 = 0xfee0_00f0;
const COMMAND_LOW: u64 = 0xfee0_0300;
const COMMAND_HIGH: u64 = 0xfee0_0310;
const ENABLE: u32 = 0x1ff;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
/// The second processor's identifier, where the command register has it.
const DESTINATION: u32 = 1 << 24;

/// The descriptors that the attack uses.
const DESCRIPTORS: u64 = 32;

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

static ALIVE: AtomicU64 = AtomicU64::new(0);
/// The queue's room to write to; zero: none.
static TARGET: AtomicU64 = AtomicU64::new(0);
static MEMORY_END: AtomicU64 = AtomicU64::new(0);
/// Counts the writes.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// What the second processor does, for ever.
pub(super) fn run() -> ! {
    ALIVE.store(1, Ordering::SeqCst);
    let mut random = Random::new(machine::ticks());
    loop {
        let target = TARGET.load(Ordering::SeqCst);
        if target == 0 {
            core::hint::spin_loop();
            continue;
        }
        match random.below(8) {
            0 => scribble(&mut random, target + AVAILABLE),
            1 => scribble(&mut random, target + USED),
            2 => scribble(&mut random, target),
            _ => {
                let end = MEMORY_END.load(Ordering::SeqCst);
                let descriptor = target + 16 * random.below(DESCRIPTORS);
                write64(descriptor, address(&mut random, end));
                write16(descriptor + 12 + 2 * random.below(2), random.next_u16() & 0x1f);
            }
        }
        WRITES.fetch_add(1, Ordering::Relaxed);
    }
}

/// One write to the first words of a structure; to those of a descriptor table only lengths, flags and successors.
fn scribble(random: &mut Random, place: u64) {
    let word = place + 16 * random.below(8) + 8;
    match random.below(4) {
        0 => write64(word, random.number()),
        1 => write32(word, random.next_u32()),
        2 => write16(word + 2 * random.below(4), random.next_u16() & 0x1f),
        // A ring's flags and its index; of a table, the lowest bits of an address, which do not lead to the image.
        _ => write16(place + 2 * random.below(2), random.next_u16() & 0x1f),
    }
}

/// Starts the second processor, unless it lives.
pub(super) fn start() -> Result<(), Failure> {
    if ALIVE.load(Ordering::SeqCst) != 0 {
        return Ok(());
    }
    let begin = &raw const trampoline;
    let length = (&raw const trampoline_end).addr() - begin.addr();
    // SAFETY: boot.s has the two labels around the code, which nothing writes to.
    copy(unsafe { core::slice::from_raw_parts(begin, length) }, TRAMPOLINE);
    write32(SPURIOUS, ENABLE);
    write32(COMMAND_HIGH, DESTINATION);
    write32(COMMAND_LOW, INIT);
    write32(COMMAND_HIGH, DESTINATION);
    write32(COMMAND_LOW, STARTUP | u32::try_from(TRAMPOLINE >> 12).unwrap_or(0));
    wait(|| (ALIVE.load(Ordering::SeqCst) != 0).then_some(())).map_err(|_| Failure::new(Reason::Processor, 1))
}

/// Lets the second processor write to the queue whose room begins here.
pub(super) fn disturb(target: u64, memory_end: u64) {
    MEMORY_END.store(memory_end, Ordering::SeqCst);
    TARGET.store(target, Ordering::SeqCst);
}

/// Makes it stop, and tells how often it has written. A last write may still come.
pub(super) fn stop() -> u64 {
    TARGET.store(0, Ordering::SeqCst);
    WRITES.load(Ordering::SeqCst)
}
