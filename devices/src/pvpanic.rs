//! The pvpanic device (QEMU's specification "PVPANIC DEVICE", ACPI id `QEMU0001`): by it the guest says that its
//! kernel panicked.

use tracing::debug;

use crate::bus::BusDevice;

/// The device's length in ports or bytes.
pub const LENGTH: u64 = 1;

/// Bits of the register: read, they are the events that the device knows; written, the one that happened.
const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;

/// What happened in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel panicked.
    Panicked,
    /// The kernel panicked and starts its crash kernel.
    CrashLoaded,
}

/// The register. It has no state.
pub struct PvPanic {
    notify: Box<dyn FnMut(Event) + Send>,
}

impl PvPanic {
    /// A register that calls `notify`, on the vCPU's thread, when something happened.
    pub fn new(notify: impl FnMut(Event) + Send + 'static) -> Self {
        Self {
            notify: Box::new(notify),
        }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        match data.first() {
            Some(value) if value & PANICKED != 0 => (self.notify)(Event::Panicked),
            Some(value) if value & CRASH_LOADED != 0 => (self.notify)(Event::CrashLoaded),
            _ => debug!(?data, "an unknown pvpanic event"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn tells_its_events() {
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        let mut device = PvPanic::new(move |event| seen.lock().unwrap().push(event));
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!(data, [3]);
        for value in [0, 2, 4, 3, 1] {
            device.write(0, &[value]);
        }
        device.write(0, &[]);
        assert_eq!(
            *events.lock().unwrap(),
            [Event::CrashLoaded, Event::Panicked, Event::Panicked]
        );
    }
}
