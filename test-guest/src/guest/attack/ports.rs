//! Ports: every one at every width, and many accesses by one instruction.

use husk_test_guest::layout::{BUFFERS, BUFFERS_END};
use husk_test_guest::order::Order;
use husk_test_guest::random::Random;
use husk_test_guest::report::Outcome;

use super::super::machine::{PortAccess, port};
use super::super::{Failure, page};

/// A byte that is written to one of these may be the machine's end, as the ACPI tables say: the panic notifier's, sleep
/// control, and reset.
const ENDS: [u16; 3] = [0x505, 0x600, 0x602];
/// Accesses by one instruction: of double words, several pages.
const MOST: u64 = 5000;

/// Reads and writes them all, `rounds` times, but for what would end the machine.
pub(super) fn ports(order: &Order<'_>) -> Result<Outcome, Failure> {
    let [seed, rounds] = order.options([("seed", 1), ("rounds", 1)])?;
    let mut random = Random::new(seed);
    let mut outcome = Outcome::default();
    for _ in 0..rounds {
        for number in 0..=u16::MAX {
            let access = match ENDS.contains(&number) {
                true => PortAccess::AllButByteOut,
                false => PortAccess::All,
            };
            let came = port(access, number, random.next_u32(), BUFFERS, 0);
            outcome.checksum = outcome.checksum.rotate_left(1) ^ came;
            outcome.operations += 1;
            if number % 256 == 0 {
                many(&mut random);
                page::pulse();
            }
        }
    }
    Ok(outcome)
}

/// Many accesses by one instruction, around what is there more often.
fn many(random: &mut Random) {
    let number = match random.below(4) {
        0 => 0x3f8 + random.next_u16() % 8,
        1 => 0x504 + random.next_u16() % 3,
        2 => 0x5fd + random.next_u16() % 6,
        _ => random.next_u16(),
    };
    let access = match random.below(6) {
        0 if !ENDS.contains(&number) => PortAccess::BytesOut,
        1 => PortAccess::WordsOut,
        2 => PortAccess::DoublesOut,
        3 => PortAccess::BytesIn,
        4 => PortAccess::WordsIn,
        _ => PortAccess::DoublesIn,
    };
    let place = BUFFERS + random.below(BUFFERS_END - BUFFERS - 4 * MOST);
    port(access, number, 0, place, random.below(MOST));
}
