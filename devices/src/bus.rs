//! Address ranges and the devices behind them.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// A device whose registers are reached by address. Called on vCPU threads, one access at a time.
pub trait BusDevice: Send {
    /// Answers a read of `data.len()` bytes at `offset` from the device's base; fills `data` whole.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes a write of `data` at `offset` from the device's base.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a device cannot be put on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum BusError {
    #[error("the address range {base:#x} of {length:#x} bytes is empty or runs past the end of the address space")]
    Range { base: u64, length: u64 },
    #[error("the address range {base:#x} of {length:#x} bytes overlaps the one at {other:#x}")]
    Overlap { base: u64, length: u64, other: u64 },
}

/// Addresses of guest memory.
pub type MmioBus = Bus;
/// Addresses of ports.
pub type PioBus = Bus;

/// An address space with devices, found by binary search. Built once, then read by all vCPUs without a lock of its
/// own; each device has one.
#[derive(Clone, Default)]
pub struct Bus {
    /// Sorted by base, without overlaps.
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    base: u64,
    /// The last address that belongs to the device.
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

impl Bus {
    /// An address space without devices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `base`, `length` bytes long.
    ///
    /// # Errors
    /// A range that is empty, wraps around, or overlaps another device's.
    pub fn insert(&mut self, base: u64, length: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), BusError> {
        let last = length
            .checked_sub(1)
            .and_then(|reach| base.checked_add(reach))
            .ok_or(BusError::Range { base, length })?;
        let index = self.entries.partition_point(|entry| entry.last < base);
        if let Some(next) = self.entries.get(index)
            && next.base <= last
        {
            return Err(BusError::Overlap {
                base,
                length,
                other: next.base,
            });
        }
        self.entries.insert(index, Entry { base, last, device });
        Ok(())
    }

    /// Reads from the device at `address`. Where there is none, `data` becomes all ones, as on a bus that nobody
    /// drives, and false is returned.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((entry, offset)) => {
                // A device that panicked on another vCPU's access still has registers to answer with.
                let mut device = entry.device.lock().unwrap_or_else(PoisonError::into_inner);
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes to the device at `address`; returns false, and nothing happens, where there is none.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((entry, offset)) => {
                let mut device = entry.device.lock().unwrap_or_else(PoisonError::into_inner);
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    /// The entry in which the whole access lies, and the offset in it.
    fn find(&self, address: u64, length: usize) -> Option<(&Entry, u64)> {
        let reach = u64::try_from(length).ok()?.checked_sub(1)?;
        let last = address.checked_add(reach)?;
        let index = self.entries.partition_point(|entry| entry.last < address);
        let entry = self.entries.get(index)?;
        (entry.base <= address && last <= entry.last).then(|| (entry, address - entry.base))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_list()
            .entries(self.entries.iter().map(|entry| entry.base..=entry.last))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every byte with its mark and remembers what was last written.
    struct Marked(u8, Vec<(u64, Vec<u8>)>);

    impl BusDevice for Marked {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.1.push((offset, data.to_vec()));
        }
    }

    fn marked(mark: u8) -> Arc<Mutex<Marked>> {
        Arc::new(Mutex::new(Marked(mark, Vec::new())))
    }

    #[test]
    fn finds_the_device_of_an_address() {
        let mut bus = Bus::new();
        for base in [0x3000_u64, 0x1000, 0x2000] {
            let mark = u8::try_from(base >> 12).unwrap();
            bus.insert(base, 0x800, marked(mark)).unwrap();
        }
        for (address, expected) in [(0x1000, 1), (0x17fc, 1), (0x2000, 2), (0x37fc, 3)] {
            let mut data = [0; 4];
            assert!(bus.read(address, &mut data));
            assert_eq!(data, [expected; 4]);
        }
        for address in [0, 0xffe, 0x17fe, 0x1800, 0x3800, u64::MAX - 1] {
            let mut data = [0; 4];
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert_eq!(data, [0xff; 4]);
        }
    }

    #[test]
    fn passes_writes_with_the_offset() {
        let mut bus = Bus::new();
        let device = marked(0);
        bus.insert(0x3f8, 8, device.clone()).unwrap();
        assert!(bus.write(0x3fb, &[7]));
        assert!(!bus.write(0x400, &[7]));
        assert!(!bus.write(0x3ff, &[7, 8]));
        assert_eq!(device.lock().unwrap().1, [(3, vec![7])]);
    }

    #[test]
    fn refuses_overlaps_and_empty_ranges() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x1000, marked(0)).unwrap();
        for (base, length) in [(0x1000, 1), (0x1fff, 1), (0x800, 0x801), (0, 0x10000), (0x1800, 0x10)] {
            assert!(
                matches!(
                    bus.insert(base, length, marked(1)),
                    Err(BusError::Overlap { other: 0x1000, .. })
                ),
                "{base:#x}"
            );
        }
        for (base, length) in [(0x5000, 0), (u64::MAX, 2)] {
            assert_eq!(
                bus.insert(base, length, marked(1)),
                Err(BusError::Range { base, length })
            );
        }
        bus.insert(0xfff, 1, marked(1)).unwrap();
        bus.insert(0x2000, 1, marked(1)).unwrap();
        bus.insert(u64::MAX, 1, marked(1)).unwrap();
    }
}
