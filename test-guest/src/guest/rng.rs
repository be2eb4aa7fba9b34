//! The entropy device (virtio 1.2, section 5.4): `rng`.

use husk_test_guest::checksum;
use husk_test_guest::layout::BUFFERS;
use husk_test_guest::order::Order;
use husk_test_guest::report::{Outcome, Reason};

use super::machine::ticks;
use super::memory::words;
use super::queue::WRITE;
use super::virtio::{ENTROPY, Machine};
use super::{Failure, page};

pub(super) fn read(order: &Order<'_>, machine: &Machine) -> Result<Outcome, Failure> {
    let [size, count] = order.options([("size", 64), ("count", 100)])?;
    let length = u32::try_from(size).ok().filter(|size| (8..=4096).contains(size));
    let length = length.ok_or(Failure::new(Reason::Option, size))?;
    let device = machine.of_kind(ENTROPY, 0)?;
    device.negotiate(0)?;
    let mut queue = device.queue(0, 8)?;
    device.start()?;
    queue.describe(0, BUFFERS, length, WRITE, 0);
    let mut outcome = Outcome::default();
    let start = ticks();
    for _ in 0..count {
        queue.publish(0);
        if queue.wants_notification() {
            device.kick(0);
        }
        let (_, written) = queue.wait()?;
        if written == 0 || written > length {
            return Err(Failure::new(Reason::Refused, written.into()));
        }
        let sum = checksum::words(outcome.bytes, words(BUFFERS, written.into()));
        outcome.checksum = outcome.checksum.wrapping_add(sum);
        outcome.bytes += u64::from(written);
        outcome.operations += 1;
        page::pulse();
    }
    outcome.ticks = ticks() - start;
    Ok(outcome)
}
