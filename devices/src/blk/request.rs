//! One request (section 5.2.6): what it asks, and its answer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use libc::iovec;
use tracing::{debug, warn};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::backend::{Backend, BackendError, SECTOR, STEP};
use super::config;
use super::slot::Slot;
use super::sys::Direction;
use crate::virtio::Memory;
use crate::virtio::chain::Chain;

/// Request types.
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// The length of a request's header: type, a reserved word, sector.
const HEADER: usize = 16;
/// The length of a serial (section 5.2.6.1).
pub(super) const ID_LENGTH: usize = 20;
/// The length of a range: sector, number of sectors, flags.
const RANGE: usize = 16;
/// The flag of a range that may be deallocated.
const FLAG_UNMAP: u32 = 1;

/// Values of the status byte.
const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// Why a request is not done.
enum Failure {
    /// Answered with `VIRTIO_BLK_S_IOERR`.
    Io,
    /// Answered with `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// Not answered: the worker shall stop, and the request can be done again.
    Stopped,
    /// Not answered: that may take long. The request can be done again.
    Slow,
}

/// What a chain asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// None if it has no whole header in memory.
    kind: Option<u32>,
    sector: u64,
    /// How many bytes it has behind its header for the device to read.
    length: u64,
    /// Where its status goes.
    status: Option<GuestAddress>,
    /// How many bytes it has before its status for the device to write.
    room: u64,
}

impl Request {
    /// How many of the requests from the first on are reads of which each goes on where the one before it ends, `most`
    /// bytes together; the first alone is always one.
    pub(super) fn run(requests: &[Self], most: u64) -> usize {
        let mut length = 0_u64;
        let follows = |pair: &&[Self]| {
            let [first, second] = pair else { return false };
            length = length.saturating_add(first.room);
            let next = first.sector.checked_add(first.room / SECTOR);
            first.is_whole_read()
                && second.is_whole_read()
                && next == Some(second.sector)
                && length + second.room <= most
        };
        1 + requests.windows(2).take_while(follows).count()
    }

    fn is_whole_read(&self) -> bool {
        self.kind == Some(T_IN) && self.status.is_some() && self.room.is_multiple_of(SECTOR)
    }
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is answered, with so many bytes written to guest memory.
    Given(u32),
    /// The worker shall stop; the request is to be done again when it goes on.
    Stopped,
    /// It was to be answered at once, and that cannot be.
    Slow,
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Stopped => Self::Stopped,
            BackendError::NotCached => Self::Slow,
            BackendError::Io(error) if error.kind() == std::io::ErrorKind::Unsupported => Self::Unsupported,
            error => {
                warn!(%error, "a disk's storage fails");
                Self::Io
            }
        }
    }
}

/// What one worker needs to answer requests.
pub(super) struct Service {
    memory: Memory,
    slot: Arc<Slot>,
    features: u64,
    stopping: Arc<AtomicBool>,
    /// Kept to be used again.
    vectors: Vec<iovec>,
}

impl Service {
    pub(super) fn new(memory: Memory, slot: Arc<Slot>, features: u64, stopping: Arc<AtomicBool>) -> Self {
        Self {
            memory,
            slot,
            features,
            stopping,
            vectors: Vec::new(),
        }
    }

    /// Looks at what a chain asks.
    pub(super) fn look(&self, chain: &Chain) -> Request {
        let (mut kind, mut sector) = ([0; 8], [0; 8]);
        // In two pieces of eight bytes, which need no call to copy them.
        let whole = self.copy_in(chain.readable(), 0, &mut kind).is_ok()
            && self.copy_in(chain.readable(), 8, &mut sector).is_ok();
        let [t0, t1, t2, t3, ..] = kind;
        let kind = whole.then_some(u32::from_le_bytes([t0, t1, t2, t3]));
        let sector = u64::from_le_bytes(sector);
        Request {
            kind,
            sector,
            length: total(chain.readable()).saturating_sub(HEADER as u64),
            // The status is the last byte that the device may write, however the buffers are cut (section 2.7.4.3).
            status: last_byte(chain.writable()),
            room: total(chain.writable()).saturating_sub(1),
        }
    }

    /// Does a request and writes its status byte; only if it needs no waiting, where it is to be answered `at_once`.
    pub(super) fn serve(&mut self, chain: &Chain, request: &Request, at_once: bool) -> Answer {
        let mut written = 0;
        let status = match self.execute(chain, request, at_once, &mut written) {
            Ok(()) => S_OK,
            Err(Failure::Io) => S_IOERR,
            Err(Failure::Unsupported) => S_UNSUPP,
            Err(Failure::Stopped) => return Answer::Stopped,
            Err(Failure::Slow) => return Answer::Slow,
        };
        Answer::Given(self.conclude(request, status, written))
    }

    /// Does reads of which each goes on where the one before it ends, by one system call, and adds for each its chain's
    /// head and the number of bytes written to `answered`. False says that nothing is answered: they are to be done one
    /// by one, as one of them needs waiting or fails.
    #[allow(unsafe_code)]
    pub(super) fn read_together(
        &mut self,
        chains: &[Chain],
        requests: &[Request],
        answered: &mut Vec<(u16, u32)>,
    ) -> bool {
        let Some(backend) = self.slot.backend() else {
            return false;
        };
        let length = requests.iter().map(|request| request.room).sum();
        let Ok(offset) = locate(&backend, requests[0].sector, length) else {
            return false;
        };
        self.vectors.clear();
        for (chain, request) in chains.iter().zip(requests) {
            if self
                .gather(chain.writable(), 0, request.room, Permissions::Write)
                .is_err()
            {
                return false;
            }
        }
        let mut moved = 0;
        // SAFETY: as in `read`.
        let result = unsafe {
            backend.transfer(
                Direction::FromCache,
                &mut self.vectors,
                offset,
                &self.stopping,
                &mut moved,
            )
        };
        if result.is_err() {
            return false;
        }
        for (chain, request) in chains.iter().zip(requests) {
            answered.push((chain.head(), self.conclude(request, S_OK, request.room)));
        }
        true
    }

    /// Writes a request's status byte; returns with how many bytes the request is given back.
    fn conclude(&self, request: &Request, status: u8, written: u64) -> u32 {
        let written = match request.status.map(|address| self.memory.write_obj(status, address)) {
            Some(Ok(())) => written + 1,
            Some(Err(error)) => {
                debug!(disk = self.slot.id, %error, "a request's status byte is not in memory");
                written
            }
            None => {
                debug!(disk = self.slot.id, "a request has no room for its status");
                written
            }
        };
        u32::try_from(written).unwrap_or(u32::MAX)
    }

    fn execute(&mut self, chain: &Chain, request: &Request, at_once: bool, written: &mut u64) -> Result<(), Failure> {
        let Request {
            kind,
            sector,
            length,
            room,
            ..
        } = *request;
        // Without a place for its status nobody would know what became of it.
        let kind = kind.filter(|_| request.status.is_some()).ok_or(Failure::Io)?;
        if kind == T_GET_ID {
            return self.get_id(chain, room, written);
        }
        let Some(backend) = self.slot.backend() else {
            debug!(disk = self.slot.id, "a request to an empty slot");
            return Err(Failure::Io);
        };
        match kind {
            T_IN => {
                let direction = if at_once {
                    Direction::FromCache
                } else {
                    Direction::FromFile
                };
                self.read(&backend, direction, chain, sector, room, written)
            }
            _ if at_once => Err(Failure::Slow),
            T_OUT => self.write(&backend, chain, sector, length),
            T_FLUSH => Ok(backend.flush()?),
            T_DISCARD => self.discard(&backend, chain, length),
            T_WRITE_ZEROES => self.write_zeroes(&backend, chain, length),
            _ => Err(Failure::Unsupported),
        }
    }

    fn get_id(&self, chain: &Chain, room: u64, written: &mut u64) -> Result<(), Failure> {
        let mut id = [0; ID_LENGTH];
        let length = self.slot.id.len().min(ID_LENGTH);
        id[..length].copy_from_slice(&self.slot.id.as_bytes()[..length]);
        let mut rest = &id[..];
        for (address, length) in spans(chain.writable(), 0, room.min(ID_LENGTH as u64)) {
            let (part, behind) = rest.split_at(length);
            self.memory.write_slice(part, address).map_err(|_| Failure::Io)?;
            *written += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    #[allow(unsafe_code)]
    fn read(
        &mut self,
        backend: &Backend,
        direction: Direction,
        chain: &Chain,
        sector: u64,
        length: u64,
        written: &mut u64,
    ) -> Result<(), Failure> {
        let offset = locate(backend, sector, length)?;
        self.vectors.clear();
        self.gather(chain.writable(), 0, length, Permissions::Write)?;
        // SAFETY: `gather` made the vectors of guest memory, which stays mapped as long as `self.memory`, and to
        // which there are no references.
        unsafe { backend.transfer(direction, &mut self.vectors, offset, &self.stopping, written) }?;
        Ok(())
    }

    #[allow(unsafe_code)]
    fn write(&mut self, backend: &Backend, chain: &Chain, sector: u64, length: u64) -> Result<(), Failure> {
        if self.slot.read_only {
            return Err(Failure::Io);
        }
        let offset = locate(backend, sector, length)?;
        self.vectors.clear();
        self.gather(chain.readable(), HEADER as u64, length, Permissions::Read)?;
        let mut moved = 0;
        // SAFETY: as in `read`.
        unsafe { backend.transfer(Direction::ToFile, &mut self.vectors, offset, &self.stopping, &mut moved) }?;
        if self.features & config::F_FLUSH == 0 {
            // Section 5.2.6.2: a driver that cannot flush takes a completed write for stable.
            backend.flush()?;
        }
        Ok(())
    }

    fn discard(&self, backend: &Backend, chain: &Chain, length: u64) -> Result<(), Failure> {
        if self.features & config::F_DISCARD == 0 {
            return Err(Failure::Unsupported);
        }
        self.each_range(backend, chain, length, |offset, length, flags| {
            // Section 5.2.6.2: to unmap is what a discard does; the flag is not for it.
            if flags != 0 {
                return Err(Failure::Unsupported);
            }
            Ok(backend.discard(offset, length)?)
        })
    }

    fn write_zeroes(&self, backend: &Backend, chain: &Chain, length: u64) -> Result<(), Failure> {
        if self.features & config::F_WRITE_ZEROES == 0 {
            return Err(Failure::Unsupported);
        }
        self.each_range(backend, chain, length, |offset, length, flags| {
            if flags & !FLAG_UNMAP != 0 {
                return Err(Failure::Unsupported);
            }
            Ok(backend.write_zeroes(offset, length, flags & FLAG_UNMAP != 0, &self.stopping)?)
        })?;
        if self.features & config::F_FLUSH == 0 {
            backend.flush()?;
        }
        Ok(())
    }

    /// Calls `act` with byte offset, length in bytes and flags of each range of the request.
    fn each_range(
        &self,
        backend: &Backend,
        chain: &Chain,
        length: u64,
        act: impl Fn(u64, u64, u32) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        const LIMIT: u64 = RANGE as u64 * config::MAX_RANGES as u64;
        if length == 0 || !length.is_multiple_of(RANGE as u64) || length > LIMIT {
            return Err(Failure::Io);
        }
        for index in 0..length / RANGE as u64 {
            let mut range = [0; RANGE];
            self.copy_in(chain.readable(), HEADER as u64 + index * RANGE as u64, &mut range)?;
            let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = range;
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            if sectors > config::MAX_RANGE_SECTORS {
                return Err(Failure::Io);
            }
            let length = u64::from(sectors) * SECTOR;
            let offset = locate(backend, u64::from_le_bytes(sector), length)?;
            if length > 0 {
                act(offset, length, u32::from_le_bytes([f0, f1, f2, f3]))?;
            }
        }
        Ok(())
    }

    /// Copies bytes of the buffers, from `from` on, into `target`.
    fn copy_in(&self, buffers: &[Descriptor], from: u64, target: &mut [u8]) -> Result<(), Failure> {
        let mut rest = target;
        for (address, length) in spans(buffers, from, rest.len() as u64) {
            let (part, behind) = rest.split_at_mut(length);
            self.memory.read_slice(part, address).map_err(|_| Failure::Io)?;
            rest = behind;
        }
        if rest.is_empty() { Ok(()) } else { Err(Failure::Io) }
    }

    /// Adds the buffers' bytes, `length` from `from` on, to `self.vectors`, all of them in guest memory.
    fn gather(&mut self, buffers: &[Descriptor], from: u64, length: u64, access: Permissions) -> Result<(), Failure> {
        for (address, length) in spans(buffers, from, length) {
            let slices = self
                .memory
                .get_slices(address, length, access)
                .map_err(|_| Failure::Io)?;
            for slice in slices {
                let slice = slice.map_err(|_| Failure::Io)?;
                let base = slice.ptr_guard_mut().as_ptr();
                for start in (0..slice.len()).step_by(STEP) {
                    self.vectors.push(iovec {
                        iov_base: base.wrapping_add(start).cast(),
                        iov_len: STEP.min(slice.len() - start),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The byte offset of a transfer of whole sectors that lie on the disk.
fn locate(backend: &Backend, sector: u64, length: u64) -> Result<u64, Failure> {
    if !length.is_multiple_of(SECTOR) {
        return Err(Failure::Io);
    }
    backend.locate(sector, length).ok_or(Failure::Io)
}

/// The length of all buffers.
fn total(buffers: &[Descriptor]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len())).sum()
}

/// The address of the last byte.
fn last_byte(buffers: &[Descriptor]) -> Option<GuestAddress> {
    let last = buffers.iter().rfind(|buffer| buffer.len() > 0)?;
    let address = last.addr().0.checked_add(u64::from(last.len()) - 1)?;
    Some(GuestAddress(address))
}

/// The parts of the buffers that hold their bytes from `from` on, at most `length` of them.
fn spans(buffers: &[Descriptor], from: u64, length: u64) -> impl Iterator<Item = (GuestAddress, usize)> {
    let (mut skip, mut left) = (from, length);
    buffers.iter().filter_map(move |buffer| {
        let whole = u64::from(buffer.len());
        let start = skip.min(whole);
        skip -= start;
        let length = (whole - start).min(left);
        left -= length;
        // An address that wraps around is in no memory; it must not become one that is.
        let address = buffer.addr().0.saturating_add(start);
        usize::try_from(length)
            .ok()
            .filter(|length| *length > 0)
            .map(|length| (GuestAddress(address), length))
    })
}
