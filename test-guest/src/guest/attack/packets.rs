//! Vsock packets of every kind in every state, and more connections than there is room for.

use husk_test_guest::order::Order;
use husk_test_guest::random::Random;
use husk_test_guest::report::{Outcome, Reason};

use super::super::virtio::Machine;
use super::super::vsock::{Driver, HOST, Header, REQUEST, STREAM};
use super::super::{Failure, page};

/// Packets after which the device is started anew, at the latest.
const LIFE: u64 = 512;

/// Packets at random. The host's port 1024 takes connections, so that some of them live.
pub(super) fn packets(order: &Order<'_>, machine: &Machine) -> Result<Outcome, Failure> {
    let [seed, count] = order.options([("seed", 1), ("count", 1000)])?;
    let mut random = Random::new(seed);
    let mut outcome = Outcome::default();
    while outcome.operations < count {
        let mut driver = Driver::start(machine)?;
        let mut known = [1024; 8];
        for _ in 0..LIFE {
            let Some(slot) = driver.slot_hearing()? else {
                break;
            };
            let header = header(&mut random, &known);
            let (from, to) = match random.below(12) {
                0 => (random.number(), HOST),
                1 => (driver.cid, random.number()),
                _ => (driver.cid, HOST),
            };
            header.write(Driver::place(slot), from, to);
            let bytes = match random.below(8) {
                0 => random.next_u32() % 64,
                1 => 44,
                _ => 44 + header.length.min(4096),
            };
            driver.send(slot, bytes);
            outcome.operations += 1;
            // What the host says is heard now and then; then its ports are known.
            while !random.once_in(4) {
                let Some(port) = driver.receive(|header, _| header.source) else {
                    break;
                };
                outcome.completed += 1;
                let place = usize::try_from(random.below(8)).unwrap_or(0);
                known[place] = port;
            }
            page::pulse();
            if driver.device.needs_reset() {
                break;
            }
        }
        outcome.needs_reset += u64::from(driver.device.needs_reset());
    }
    Ok(outcome)
}

fn header(random: &mut Random, known: &[u32]) -> Header {
    let credit = [0, 1, 4096, 0x1_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    let lengths = [0, 0, 1, 44, 4096, 4097, 0x1_0000, 0x1_0001, 0x8000_0000, u32::MAX];
    Header {
        source: if random.once_in(8) {
            random.next_u32()
        } else {
            3000 + random.next_u32() % 8
        },
        destination: if random.once_in(8) {
            random.next_u32()
        } else {
            random.one_of(known, 1024)
        },
        length: random.one_of(&lengths, 0),
        kind: if random.once_in(10) { random.next_u16() } else { STREAM },
        operation: if random.once_in(10) {
            random.next_u16()
        } else {
            random.next_u16() % 9
        },
        flags: if random.once_in(4) {
            random.next_u32()
        } else {
            random.next_u32() % 4
        },
        window: if random.once_in(4) {
            random.next_u32()
        } else {
            random.one_of(&credit, 0)
        },
        forwarded: if random.once_in(4) {
            random.next_u32()
        } else {
            random.one_of(&credit, 0)
        },
    }
}

/// Asks for connections and never says more; what the host answers is not taken either once the buffers are full.
pub(super) fn flood(order: &Order<'_>, machine: &Machine) -> Result<Outcome, Failure> {
    let [port, seed, count] = order.options([("port", 1024), ("seed", 1), ("count", 5000)])?;
    let port = u32::try_from(port).map_err(|_| Failure::new(Reason::Option, port))?;
    let mut random = Random::new(seed);
    let mut outcome = Outcome::default();
    let mut driver = Driver::start(machine)?;
    for number in 0..count {
        let Some(slot) = driver.slot_hearing()? else {
            return Err(Failure::new(Reason::Refused, number));
        };
        let header = Header {
            source: u32::try_from(10_000 + number).unwrap_or(u32::MAX),
            destination: port,
            kind: STREAM,
            operation: REQUEST,
            window: random.next_u32(),
            ..Header::default()
        };
        header.write(Driver::place(slot), driver.cid, HOST);
        driver.send(slot, 44);
        outcome.operations += 1;
        page::pulse();
        // Half of the flood is heard, so that it gets further than the buffers' number.
        if number < count / 2 {
            while driver.receive(|_, _| ()).is_some() {
                outcome.completed += 1;
            }
        }
    }
    Ok(outcome)
}
