//! The interrupt controllers: KVM's, not the machine monitor's.

use husk_test_guest::order::Order;
use husk_test_guest::random::Random;
use husk_test_guest::report::Outcome;

use super::super::memory::{read8, read16, read32, read64, write8, write16, write32, write64};
use super::super::{Failure, page};

const IO_APIC: u64 = 0xfec0_0000;
/// The register of the I/O controller behind [`IO_APIC`], which says which one is meant.
const WINDOW: u64 = IO_APIC + 0x10;
const LOCAL_APIC: u64 = 0xfee0_0000;
/// From here on, registers of the local controller say how an interrupt is delivered.
const DELIVERIES: u64 = LOCAL_APIC + 0x2f0;
/// How: zero is what a processor need not take, others are a reset or an interrupt that it must take.
const DELIVERY_MODE: u64 = 7 << 8;

/// Writes to and reads from both at random. With `spare` no processor gets what it must take.
pub(super) fn controllers(order: &Order<'_>) -> Result<Outcome, Failure> {
    let [seed, count, spare] = order.options([("seed", 1), ("count", 1000), ("spare", 1)])?;
    let mut random = Random::new(seed);
    let mut outcome = Outcome::default();
    for step in 0..count {
        let place = match random.below(8) {
            0 => LOCAL_APIC + random.below(0x1000 - 8),
            1 => IO_APIC + random.below(0x1000 - 8),
            2 | 3 => {
                // Entries of its table, mostly.
                write32(IO_APIC, random.next_u32() % 0x50);
                WINDOW
            }
            _ => LOCAL_APIC + 16 * random.below(0x40),
        };
        let mut value = random.number();
        if spare != 0 && !(LOCAL_APIC..DELIVERIES).contains(&place) {
            value &= !DELIVERY_MODE;
        }
        if random.once_in(3) {
            let value = match random.below(6) {
                0 => read8(place).into(),
                1 => read16(place).into(),
                2 => read64(place),
                _ => read32(place).into(),
            };
            outcome.checksum = outcome.checksum.rotate_left(1) ^ value;
        } else {
            let [low, high, ..] = value.to_le_bytes();
            match random.below(8) {
                0 => write8(place, low),
                1 => write16(place, u16::from_le_bytes([low, high])),
                2 => write64(place, value),
                _ => write32(place, super::super::virtio::halves(value)[0]),
            }
        }
        outcome.operations += 1;
        if step % 64 == 0 {
            page::pulse();
        }
    }
    Ok(outcome)
}
