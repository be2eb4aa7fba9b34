//! Packets in guest memory: those that the guest sent, and the buffers that it offers for packets to it.

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemory, GuestMemoryError, Permissions, VolatileSlice};

use super::packet::{HEADER_LEN, Header};
use crate::virtio::Memory;
use crate::virtio::chain::{Chain, ChainError};

/// What the driver did wrong with a queue, beyond repair.
#[derive(Debug, Error)]
pub(super) enum RingError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a buffer of {len} bytes at {address:#x} does not lie in guest memory")]
    Address {
        address: u64,
        len: u32,
        source: GuestMemoryError,
    },
    #[error("a buffer of {0} bytes cannot hold what it is for")]
    Short(usize),
    #[error("a buffer in the {0} queue is for the other direction")]
    Direction(&'static str),
    #[error("the used ring cannot be written")]
    Used(#[source] virtio_queue::Error),
}

/// Pieces of guest memory that together hold one thing.
#[derive(Debug)]
pub(super) struct Segments<'m>(Vec<VolatileSlice<'m>>);

impl<'m> Segments<'m> {
    /// The memory that descriptors refer to.
    pub(super) fn of(memory: &'m Memory, descriptors: &[Descriptor]) -> Result<Self, RingError> {
        let mut slices = Vec::with_capacity(descriptors.len());
        for descriptor in descriptors {
            let len = descriptor.len();
            let outside = |source| RingError::Address {
                address: descriptor.addr().0,
                len,
                source,
            };
            // All guest memory can be read and written; the kind of access makes no difference.
            let found = memory.get_slices(descriptor.addr(), len as usize, Permissions::ReadWrite);
            for slice in found.map_err(outside)? {
                slices.push(slice.map_err(outside)?);
            }
        }
        Ok(Self(slices))
    }

    /// The pieces, in order.
    pub(super) fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.0
    }

    /// How many bytes they are together.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// Cuts off the first `count` bytes, or all if there are fewer.
    pub(super) fn split_front(&mut self, count: usize) -> Self {
        let mut front = Vec::new();
        let mut missing = count;
        let mut whole = 0;
        while missing > 0 && whole < self.0.len() {
            let slice = self.0[whole];
            match slice.split_at(missing.min(slice.len())) {
                Ok((first, rest)) if !rest.is_empty() => {
                    front.push(first);
                    self.0[whole] = rest;
                    missing = 0;
                }
                _ => {
                    front.push(slice);
                    missing -= slice.len();
                    whole += 1;
                }
            }
        }
        self.0.drain(..whole);
        Self(front)
    }

    /// Copies the bytes into `target` as far as both go.
    pub(super) fn read(&self, mut target: &mut [u8]) {
        for slice in &self.0 {
            let count = slice.copy_to(target);
            target = &mut target[count..];
        }
    }

    /// Copies `source` into the memory as far as both go.
    fn write(&self, mut source: &[u8]) {
        for slice in &self.0 {
            let count = slice.len().min(source.len());
            slice.copy_from(&source[..count]);
            source = &source[count..];
        }
    }
}

/// Takes the guest's next packet: its header and all that follows the header in the chain.
pub(super) fn next_packet<'m>(
    chain: &mut Chain,
    queue: &mut Queue,
    memory: &'m Memory,
) -> Result<Option<(Header, Segments<'m>)>, RingError> {
    if !chain.take(queue, memory)? {
        return Ok(None);
    }
    if !chain.writable().is_empty() {
        return Err(RingError::Direction("transmit"));
    }
    let mut payload = Segments::of(memory, chain.readable())?;
    let front = payload.split_front(HEADER_LEN);
    if front.len() < HEADER_LEN {
        return Err(RingError::Short(front.len()));
    }
    let mut bytes = [0; HEADER_LEN];
    front.read(&mut bytes);
    Ok(Some((Header::from_bytes(&bytes), payload)))
}

/// A buffer that the guest offers for one packet to it.
pub(super) struct PacketBuffer<'m> {
    head: u16,
    header: Segments<'m>,
    /// Where the packet's data goes; at least one byte.
    pub(super) payload: Segments<'m>,
}

/// The receive queue during one run: packets to the guest go in here.
pub(super) struct Receiver<'q, 'm> {
    queue: &'q mut Queue,
    memory: &'m Memory,
    chain: &'q mut Chain,
    /// Whether the guest was given a packet.
    pub(super) used: bool,
}

impl<'q, 'm> Receiver<'q, 'm> {
    /// The receive queue, with a chain to work with.
    pub(super) fn new(queue: &'q mut Queue, memory: &'m Memory, chain: &'q mut Chain) -> Self {
        Self {
            queue,
            memory,
            chain,
            used: false,
        }
    }

    /// Takes the next buffer, if the guest has offered one.
    pub(super) fn take(&mut self) -> Result<Option<PacketBuffer<'m>>, RingError> {
        if !self.chain.take(self.queue, self.memory)? {
            return Ok(None);
        }
        if !self.chain.readable().is_empty() {
            return Err(RingError::Direction("receive"));
        }
        let mut payload = Segments::of(self.memory, self.chain.writable())?;
        let header = payload.split_front(HEADER_LEN);
        let room = payload.len();
        if room == 0 {
            // Section 5.10.6.4 has the driver offer buffers for whole packets; without room for data none would fit.
            return Err(RingError::Short(header.len()));
        }
        Ok(Some(PacketBuffer {
            head: self.chain.head(),
            header,
            payload,
        }))
    }

    /// Puts back the buffers that were taken last.
    pub(super) fn put_back(&mut self, buffers: &[PacketBuffer<'m>]) {
        // No more than were taken, and so no more than the queue's size.
        let count = u16::try_from(buffers.len()).unwrap_or(u16::MAX);
        let next = self.queue.next_avail().wrapping_sub(count);
        self.queue.set_next_avail(next);
    }

    /// Gives the guest a packet whose data, `header.len` bytes, already lies in `buffer`.
    pub(super) fn give(&mut self, buffer: &PacketBuffer<'m>, header: Header) -> Result<(), RingError> {
        buffer.header.write(&header.to_bytes());
        #[allow(clippy::cast_possible_truncation)] // 44
        let len = header.len + HEADER_LEN as u32;
        self.queue
            .add_used(self.memory, buffer.head, len)
            .map_err(RingError::Used)?;
        self.used = true;
        Ok(())
    }

    /// Asks to be notified of the next buffer; returns whether there is one already.
    pub(super) fn wait(&mut self) -> Result<bool, RingError> {
        self.queue
            .enable_notification(self.memory)
            .map_err(|error| ChainError::Ring(error).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments<'m>(parts: &'m mut [Vec<u8>]) -> Segments<'m> {
        Segments(
            parts
                .iter_mut()
                .map(|part| VolatileSlice::from(&mut part[..]))
                .collect(),
        )
    }

    #[test]
    fn a_front_is_cut_off_within_and_between_pieces() {
        for count in 0..=8 {
            let mut parts = vec![vec![1, 2], vec![], vec![3, 4, 5], vec![6, 7]];
            let mut rest = segments(&mut parts);
            let front = rest.split_front(count);
            let mut bytes = [0; 7];
            let expected = count.min(7);
            assert_eq!(front.len(), expected);
            assert_eq!(rest.len(), 7 - expected);
            front.read(&mut bytes[..expected]);
            rest.read(&mut bytes[expected..]);
            assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7], "cut at {count}");
        }
    }

    #[test]
    fn bytes_are_written_across_pieces() {
        let mut parts = vec![vec![0; 2], vec![0; 3]];
        segments(&mut parts).write(&[1, 2, 3, 4]);
        assert_eq!(parts, [vec![1, 2], vec![3, 4, 0]]);
    }
}
