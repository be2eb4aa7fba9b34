//! The block device (virtio 1.2, section 5.2): `blk-read` and `blk-write`.

use husk_test_guest::checksum;
use husk_test_guest::layout::{BUFFERS, BUFFERS_END};
use husk_test_guest::order::{Order, pattern};
use husk_test_guest::report::{Outcome, Reason};

use super::machine::ticks;
use super::memory::{read8, words, write8, write32, write64};
use super::queue::{NEXT, Queue, WRITE};
use super::virtio::{BLOCK, CONFIG, Device, Machine};
use super::{Failure, page};

/// Request types.
const IN: u32 = 0;
const OUT: u32 = 1;
const SECTOR: u64 = 512;
/// Descriptors of a request: header, data, status.
const PARTS: u16 = 3;
/// Headers and status bytes: a cache line for each request, or two processors would fight for the one of neighbours.
const HEADERS: u64 = BUFFERS;
const STATUS: u64 = 16;
const DATA: u64 = BUFFERS + 0x1_0000;
const QUEUE_SIZE: u16 = 256;

/// A disk at work.
struct Disk {
    device: Device,
    queue: Queue,
    kind: u32,
    /// The length of a request.
    size: u64,
    /// Requests that go round in the disk.
    places: u64,
}

impl Disk {
    fn start(machine: &Machine, disk: u64, kind: u32, size: u64) -> Result<Self, Failure> {
        if size == 0 || !size.is_multiple_of(SECTOR) || size > 1 << 20 {
            return Err(Failure::new(Reason::Option, size));
        }
        let device = machine.of_kind(BLOCK, disk)?;
        device.negotiate(0)?;
        let queue = device.queue(0, QUEUE_SIZE)?;
        device.start()?;
        let low = u64::from(device.read(CONFIG));
        let capacity = u64::from(device.read(CONFIG + 4)) << 32 | low;
        let places = capacity * SECTOR / size;
        if places == 0 {
            return Err(Failure::new(Reason::Refused, capacity));
        }
        Ok(Self {
            device,
            queue,
            kind,
            size,
            places,
        })
    }

    /// Prepares the descriptors of `depth` requests.
    fn prepare(&self, depth: u16) -> Result<(), Failure> {
        let room = DATA + u64::from(depth) * self.size <= BUFFERS_END;
        if depth == 0 || depth > self.queue.size / PARTS || !room {
            return Err(Failure::new(Reason::Option, depth.into()));
        }
        let length = u32::try_from(self.size).unwrap_or(0);
        let direction = if self.kind == IN { WRITE } else { 0 };
        for slot in 0..depth {
            let head = PARTS * slot;
            self.queue.describe(head, header(slot), 16, NEXT, head + 1);
            self.queue
                .describe(head + 1, self.data(slot), length, NEXT | direction, head + 2);
            self.queue.describe(head + 2, header(slot) + STATUS, 1, WRITE, 0);
            write32(header(slot), self.kind);
            write32(header(slot) + 4, 0);
        }
        Ok(())
    }

    fn data(&self, slot: u16) -> u64 {
        DATA + u64::from(slot) * self.size
    }

    fn submit(&mut self, slot: u16, position: u64) {
        write64(header(slot) + 8, position / SECTOR);
        write8(header(slot) + STATUS, 0xff);
        self.queue.enter(PARTS * slot);
    }

    /// Does `count` requests, `depth` of them at a time. `before` and `after` are given each request's position and its
    /// data's address.
    fn run(
        &mut self,
        depth: u16,
        count: u64,
        before: impl Fn(u64, u64),
        mut after: impl FnMut(u64, u64),
    ) -> Result<(u64, u64), Failure> {
        self.prepare(depth)?;
        let mut positions = [0; QUEUE_SIZE as usize];
        // The slots that wait for a request, the last one first.
        let mut free = [0; QUEUE_SIZE as usize];
        for (place, slot) in free.iter_mut().zip(0..depth) {
            *place = slot;
        }
        let mut waiting = usize::from(depth);
        let (mut next, mut done) = (0, 0);
        let start = ticks();
        while done < count {
            let submitted = waiting > 0 && next < count;
            while waiting > 0 && next < count {
                waiting -= 1;
                let slot = free[waiting];
                let position = next % self.places * self.size;
                before(position, self.data(slot));
                self.submit(slot, position);
                positions[usize::from(slot)] = position;
                next += 1;
            }
            if submitted {
                self.queue.announce();
                if self.queue.wants_notification() {
                    self.device.kick(0);
                }
            }
            let mut completed = Some(self.queue.wait()?);
            while let Some((head, _)) = completed {
                let slot = head / PARTS;
                let status = read8(header(slot) + STATUS);
                if status != 0 || slot >= depth {
                    return Err(Failure::new(Reason::Refused, status.into()));
                }
                after(positions[usize::from(slot)], self.data(slot));
                free[waiting] = slot;
                waiting += 1;
                done += 1;
                completed = self.queue.take();
            }
            page::pulse();
        }
        Ok((done, ticks() - start))
    }
}

fn header(slot: u16) -> u64 {
    HEADERS + 64 * u64::from(slot)
}

fn depth(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(0)
}

pub(super) fn read(order: &Order<'_>, machine: &Machine) -> Result<Outcome, Failure> {
    let known = [("disk", 0), ("qd", 32), ("size", 4096), ("count", 1000), ("check", 1)];
    let [disk, qd, size, count, check] = order.options(known)?;
    let mut disk = Disk::start(machine, disk, IN, size)?;
    let mut sum = 0u64;
    let (done, ticks) = disk.run(
        depth(qd),
        count,
        |_, _| {},
        |position, data| {
            if check != 0 {
                sum = sum.wrapping_add(checksum::words(position, words(data, size)));
            }
        },
    )?;
    Ok(Outcome {
        operations: done,
        bytes: done * size,
        ticks,
        checksum: sum,
        ..Outcome::default()
    })
}

pub(super) fn write(order: &Order<'_>, machine: &Machine) -> Result<Outcome, Failure> {
    let known = [("disk", 0), ("qd", 32), ("size", 4096), ("count", 1000), ("seed", 1)];
    let [disk, qd, size, count, seed] = order.options(known)?;
    let mut disk = Disk::start(machine, disk, OUT, size)?;
    let fill = |position, data| {
        for offset in (0..size).step_by(8) {
            write64(data + offset, pattern(seed, position + offset));
        }
    };
    let (done, ticks) = disk.run(depth(qd), count, fill, |_, _| {})?;
    Ok(Outcome {
        operations: done,
        bytes: done * size,
        ticks,
        ..Outcome::default()
    })
}
