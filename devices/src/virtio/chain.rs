//! Taking requests out of a queue, with every error of the ring told apart from its end.

use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::Memory;

/// What is wrong with a ring. Each is the driver's fault and none can be mended: the device needs a reset.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ChainError {
    #[error("the available ring cannot be used")]
    Ring(#[source] virtio_queue::Error),
    #[error("an entry of the available ring cannot be read")]
    Entry,
    #[error("the descriptor chain at {head} is empty, endless, longer than its queue or leaves its table")]
    Broken { head: u16 },
    #[error("the descriptor chain at {head} has a part for the device to read behind one for it to write")]
    Order { head: u16 },
}

/// The length of a descriptor in bytes.
const DESCRIPTOR: u32 = 16;

/// One request: the buffers of a descriptor chain. Meant to be used again for the next, so that it allocates once.
///
/// The addresses and lengths are the driver's word: they are checked when guest memory is accessed.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    descriptors: Vec<Descriptor>,
    /// How many descriptors, at the front, are for the device to read.
    readable: usize,
}

impl Chain {
    /// An empty chain.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The chain's first descriptor, by which it is returned to the driver.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The buffers that the device reads.
    #[must_use]
    pub fn readable(&self) -> &[Descriptor] {
        &self.descriptors[..self.readable]
    }

    /// The buffers that the device writes.
    #[must_use]
    pub fn writable(&self) -> &[Descriptor] {
        &self.descriptors[self.readable..]
    }

    /// Takes the next request out of the queue into this chain; returns whether there was one.
    ///
    /// # Errors
    /// The ring or the chain makes no sense; nothing more can be done with this queue.
    pub fn take(&mut self, queue: &mut Queue, memory: &Memory) -> Result<bool, ChainError> {
        self.descriptors.clear();
        self.readable = 0;
        let found = match queue.iter(memory).map_err(ChainError::Ring)?.next() {
            Some(found) => found,
            // It ends in the same way at the end of the ring and at an entry that it cannot read.
            None if queue.avail_idx(memory, Ordering::Acquire).map_err(ChainError::Ring)?.0 == queue.next_avail() => {
                return Ok(false);
            }
            // The driver may have added one meanwhile.
            None => queue
                .iter(memory)
                .map_err(ChainError::Ring)?
                .next()
                .ok_or(ChainError::Entry)?,
        };
        self.head = found.head_index();
        self.follow(Table::of(queue), memory)?;
        Ok(true)
    }

    /// Follows the chain from its head in the queue's table to its end.
    fn follow(&mut self, mut table: Table, memory: &Memory) -> Result<(), ChainError> {
        let head = self.head;
        let broken = ChainError::Broken { head };
        // Section 2.7.5.3.1: a chain is never longer than its queue, also in an indirect table.
        let (most, mut bytes) = (usize::from(table.length), 0_u32);
        let (mut index, mut indirect) = (head, false);
        loop {
            let Some(descriptor) = table.get(index, memory) else {
                return Err(broken);
            };
            if descriptor.refers_to_indirect_table() {
                let Some(other) = Table::indirect(&descriptor).filter(|_| !indirect) else {
                    return Err(broken);
                };
                (table, index, indirect) = (other, 0, true);
                continue;
            }
            // Section 2.7.5.2: what a chain describes is at most 2^32 bytes long.
            match bytes.checked_add(descriptor.len()) {
                Some(sum) if self.descriptors.len() < most => bytes = sum,
                _ => return Err(broken),
            }
            if !descriptor.is_write_only() {
                if self.readable < self.descriptors.len() {
                    // Section 2.7.4.2: what the device writes comes behind all that it reads.
                    return Err(ChainError::Order { head });
                }
                self.readable += 1;
            }
            self.descriptors.push(descriptor);
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }
}

/// A table of descriptors (section 2.7.5).
struct Table {
    address: u64,
    length: u16,
}

impl Table {
    fn of(queue: &Queue) -> Self {
        Self {
            address: queue.desc_table(),
            length: queue.size(),
        }
    }

    /// The table that a descriptor refers to: whole descriptors, as many as an index reaches.
    fn indirect(descriptor: &Descriptor) -> Option<Self> {
        let length = descriptor.len();
        let whole = length.is_multiple_of(DESCRIPTOR);
        Some(Self {
            address: descriptor.addr().0,
            length: u16::try_from(length / DESCRIPTOR).ok().filter(|_| whole)?,
        })
    }

    /// The descriptor with this index, if it is in the table and the table in memory. It is read in two pieces of eight
    /// bytes, which need no call to copy them: this is done three times for a small request.
    fn get(&self, index: u16, memory: &Memory) -> Option<Descriptor> {
        if index >= self.length {
            return None;
        }
        let address = self.address.checked_add(u64::from(DESCRIPTOR) * u64::from(index))?;
        let place: u64 = memory.read_obj(GuestAddress(address)).ok()?;
        let rest: u64 = memory.read_obj(GuestAddress(address.checked_add(8)?)).ok()?;
        let [l0, l1, l2, l3, f0, f1, n0, n1] = u64::from_le(rest).to_le_bytes();
        Some(Descriptor::new(
            u64::from_le(place),
            u32::from_le_bytes([l0, l1, l2, l3]),
            u16::from_le_bytes([f0, f1]),
            u16::from_le_bytes([n0, n1]),
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::QueueState;

    use super::*;

    const SIZE: u16 = 8;
    const DESCRIPTORS: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    /// Behind the queue's own table, for indirect ones.
    const MEMORY: usize = 0x4000;

    fn queue() -> Queue {
        Queue::try_from(QueueState {
            max_size: SIZE,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: false,
            size: SIZE,
            ready: true,
            desc_table: DESCRIPTORS,
            avail_ring: AVAILABLE,
            used_ring: 0x3000,
        })
        .unwrap()
    }

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
    }

    /// Descriptors as a hostile driver writes them, near to sense.
    fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
        let address = prop_oneof![Just(DESCRIPTORS), Just(DESCRIPTORS + 64), any::<u64>()];
        let length = prop_oneof![(0_u32..12).prop_map(|count| count * 16), any::<u32>()];
        (address, length, 0_u16..8, 0_u16..SIZE + 2)
    }

    proptest! {
        #[test]
        fn takes_what_makes_sense_and_refuses_the_rest(
            table in prop::collection::vec(descriptor(), usize::from(SIZE)),
            heads in prop::collection::vec(0..SIZE + 1, 1..12),
        ) {
            let (memory, mut queue, mut chain) = (memory(), queue(), Chain::new());
            for (index, (address, length, flags, next)) in table.iter().enumerate() {
                let base = DESCRIPTORS + index as u64 * 16;
                memory.write_obj(*address, GuestAddress(base)).unwrap();
                memory.write_obj(*length, GuestAddress(base + 8)).unwrap();
                memory.write_obj(*flags, GuestAddress(base + 12)).unwrap();
                memory.write_obj(*next, GuestAddress(base + 14)).unwrap();
            }
            for (index, head) in heads.iter().enumerate() {
                let entry = AVAILABLE + 4 + index as u64 % u64::from(SIZE) * 2;
                memory.write_obj(*head, GuestAddress(entry)).unwrap();
            }
            let count = u16::try_from(heads.len()).unwrap();
            memory.write_obj(count, GuestAddress(AVAILABLE + 2)).unwrap();
            let mut taken = 0;
            loop {
                match chain.take(&mut queue, &memory) {
                    Ok(true) => {
                        taken += 1;
                        prop_assert!(chain.head() < SIZE);
                        let length = chain.readable().len() + chain.writable().len();
                        prop_assert!((1..=usize::from(SIZE)).contains(&length));
                        prop_assert!(chain.readable().iter().all(|part| !part.is_write_only()));
                        prop_assert!(chain.writable().iter().all(|part| part.is_write_only()));
                    }
                    Ok(false) => {
                        prop_assert_eq!(taken, heads.len());
                        break;
                    }
                    Err(_) => break,
                }
            }
            if heads.len() > usize::from(SIZE) {
                prop_assert_eq!(taken, 0);
            }
        }
    }

    #[test]
    fn finds_an_empty_ring_empty() {
        let (memory, mut queue) = (memory(), queue());
        assert!(!Chain::new().take(&mut queue, &memory).unwrap());
    }
}
