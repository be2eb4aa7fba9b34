//! Orders to attack the machine monitor and KVM through their devices; the same for the same seed.
//!
//! Nothing here lets a device write to the guest's own image, or to the shared page: the guest is to outlive it all.

mod controllers;
mod packets;
mod ports;
mod registers;
mod requests;
mod rings;

use husk_test_guest::layout::{BUFFERS, BUFFERS_END, RINGS};
use husk_test_guest::order::Order;
use husk_test_guest::random::Random;
use husk_test_guest::report::{Outcome, Reason};

use super::machine::ticks;
use super::memory::read16;
use super::queue::Queue;
use super::virtio::{BLOCK, Device, ENTROPY, INDIRECT_DESC, Machine, SOCKET, VERSION_1};
use super::{Failure, page};

/// How long the attack waits before it asks a device how it is, in ticks: a fraction of a millisecond.
const PAUSE: u64 = 500_000;
/// How often it asks before it goes on: some attacks are answered by nothing.
const PAUSES: u32 = 8;
/// Of the devices that are attacked none has more queues.
const MOST_QUEUES: usize = 3;
/// Flag of virtio: the driver wants interrupts and notifications by index.
const EVENT_IDX: u64 = 1 << 29;

/// An attack on one device.
struct Attack<'a> {
    machine: &'a Machine,
    device: Device,
    kind: u32,
    random: Random,
    count: u64,
    outcome: Outcome,
}

pub(super) fn attack(order: &Order<'_>, machine: &Machine) -> Result<Outcome, Failure> {
    match order.name {
        "attack-packets" => return packets::packets(order, machine),
        "attack-flood" => return packets::flood(order, machine),
        "attack-ports" => return ports::ports(order),
        "attack-controllers" => return controllers::controllers(order),
        _ => {}
    }
    let [device, seed, count] = order.options([("device", 0), ("seed", 1), ("count", 100)])?;
    let device = machine.device(device)?;
    let mut attack = Attack {
        machine,
        device,
        kind: device.kind(),
        random: Random::new(seed),
        count,
        outcome: Outcome::default(),
    };
    match order.name {
        "attack-registers" => attack.registers(),
        "attack-queues" => attack.queues(),
        "attack-chains" => attack.chains()?,
        "attack-reset" => attack.reset()?,
        "attack-kicks" => attack.kicks()?,
        "attack-race" => attack.race()?,
        _ => return Err(Failure::new(Reason::UnknownOrder, 0)),
    }
    // Whatever it was, a reset mends the device.
    attack.start(0)?;
    attack.device.write(super::virtio::STATUS, 0);
    Ok(attack.outcome)
}

impl Attack<'_> {
    /// The device with all its queues, as a driver starts it, with some of these features.
    fn start(&mut self, features: u64) -> Result<[Option<Queue>; MOST_QUEUES], Failure> {
        self.device.negotiate(features)?;
        let mut queues = [None; MOST_QUEUES];
        for (place, index) in queues.iter_mut().zip(0..self.queue_count()) {
            *place = Some(self.device.queue(index, 1024)?);
        }
        self.device.start()?;
        Ok(queues)
    }

    fn queue_count(&self) -> u32 {
        match self.kind {
            SOCKET => 3,
            BLOCK | ENTROPY => 1,
            _ => 0,
        }
    }

    /// Any of the features, with those of the transport more often.
    fn features(&mut self) -> u64 {
        let transport = self
            .random
            .one_of(&[0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX], 0);
        VERSION_1 | transport | self.random.number() & 0xff_ffff
    }

    /// Gives the device time to do something with a queue, and counts what it did. Returns whether it asks for a reset.
    fn settle(&mut self, queue: &Queue) -> bool {
        self.outcome.operations += 1;
        page::pulse();
        let used = queue.used_ring() + 2;
        let before = read16(used);
        let mut broken = false;
        for _ in 0..PAUSES {
            let start = ticks();
            while ticks() - start < PAUSE && read16(used) == before {
                core::hint::spin_loop();
            }
            broken = self.device.needs_reset();
            if broken || read16(used) != before {
                break;
            }
        }
        let completed = read16(used).wrapping_sub(before);
        // A used ring that lies somewhere else counts what it likes.
        if completed <= queue.size {
            self.outcome.completed += u64::from(completed);
        }
        self.outcome.needs_reset += u64::from(broken);
        broken
    }
}

/// An address to make a device stumble. In memory it is behind the guest's image.
pub(super) fn address(random: &mut Random, memory_end: u64) -> u64 {
    match random.below(12) {
        0 => u64::MAX - random.below(32),
        1 => memory_end - 1 - random.below(64),
        2 => memory_end - 4096,
        3 => memory_end + random.below(1 << 40),
        4 => 0xd000_0000 + random.below(0x1000_0000),
        5 => random.number() | 1 << 40,
        6 | 7 => RINGS + random.below(BUFFERS - RINGS),
        8 => (RINGS + random.below(BUFFERS - RINGS)) & !0xfff,
        _ => BUFFERS + random.below(BUFFERS_END - BUFFERS),
    }
}

/// A length to make a device stumble.
fn length(random: &mut Random) -> u32 {
    match random.below(10) {
        0 => 0,
        1 => u32::MAX,
        2 => u32::MAX - random.next_u32() % 4096,
        3 => 1 << 31,
        4 => random.next_u32(),
        5 => 1,
        6 => 16,
        7 => 512,
        8 => 4096,
        _ => random.next_u32() % 70_000,
    }
}
