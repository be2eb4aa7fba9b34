//! How the guest turns the machine off and on again: the ACPI sleep registers of a hardware-reduced machine (ACPI 6.5,
//! section 4.8.3.7) and the reset register (section 4.8.3.6), in one window of ports.

use tracing::debug;

use crate::bus::BusDevice;

/// The window's length in ports.
pub const PORTS: u64 = 3;
/// The offset of the sleep control register (`SLEEP_CONTROL_REG` of the FADT), one byte.
pub const SLEEP_CONTROL: u64 = 0;
/// The offset of the sleep status register (`SLEEP_STATUS_REG` of the FADT), one byte.
pub const SLEEP_STATUS: u64 = 1;
/// The offset of the reset register (`RESET_REG` of the FADT), one byte.
pub const RESET: u64 = 2;
/// What the guest writes to the reset register (`RESET_VALUE` of the FADT).
pub const RESET_VALUE: u8 = 1;
/// The sleep type that the object `\_S5` must name.
pub const S5_TYPE: u8 = 5;

/// `SLP_EN` of the sleep control register: go to sleep now.
const SLEEP_ENABLE: u8 = 1 << 5;
/// `SLP_TYPx` of the sleep control register.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// What the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The guest has shut down (sleep state S5).
    Shutdown,
    /// The guest wants to be started anew.
    Reboot,
}

/// The registers. They have no state.
pub struct Power {
    notify: Box<dyn FnMut(Request) + Send>,
}

impl Power {
    /// Registers that call `notify`, on the vCPU's thread, when the guest asks for something.
    pub fn new(notify: impl FnMut(Request) + Send + 'static) -> Self {
        Self {
            notify: Box::new(notify),
        }
    }
}

impl BusDevice for Power {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        // The guest never wakes up (`WAK_STS` stays clear), and the rest is write-only.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == S5_TYPE => (self.notify)(Request::Shutdown),
            RESET if value == RESET_VALUE => (self.notify)(Request::Reboot),
            _ => debug!(offset, value, "a write to the power registers without effect"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn tells_shutdown_from_reboot_from_neither() {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let mut power = Power::new(move |request| seen.lock().unwrap().push(request));
        let s5 = S5_TYPE << 2 | 1 << 5;
        // S3, S5 without the enable bit, status, another reset value, a wide write.
        for (offset, data) in [
            (SLEEP_CONTROL, &[3 << 2 | 1 << 5][..]),
            (SLEEP_CONTROL, &[S5_TYPE << 2]),
            (SLEEP_STATUS, &[s5]),
            (RESET, &[0]),
            (SLEEP_CONTROL, &[s5, 0]),
            (SLEEP_CONTROL, &[]),
        ] {
            power.write(offset, data);
        }
        assert_eq!(*requests.lock().unwrap(), []);
        power.write(SLEEP_CONTROL, &[s5]);
        power.write(RESET, &[RESET_VALUE]);
        assert_eq!(*requests.lock().unwrap(), [Request::Shutdown, Request::Reboot]);
        let mut data = [0xff; 1];
        power.read(SLEEP_STATUS, &mut data);
        assert_eq!(data, [0]);
    }
}
