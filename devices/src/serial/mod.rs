//! The serial port (a 16550A) and the console on it.
//!
//! The [`Port`] lives on the bus, the [`Console`] in the event loop. They share the last 64 KiB
//! of output and the port's registers: what clients type must raise the port's interrupt.

mod console;
mod log;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{debug, error};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::console::Console;
use self::log::Log;
use crate::bus::BusDevice;
use crate::system_calls::{NONBLOCKING, SystemCall};

/// The port's length in I/O ports.
pub const PORTS: u64 = 8;

/// Why a serial port cannot be made.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SerialError {
    #[error("an event descriptor cannot be made")]
    Event(#[source] io::Error),
    #[error("the console's socket cannot be made non-blocking")]
    Listener(#[source] io::Error),
    #[error("the state is of version {0}, which this program does not read")]
    Version(u32),
    #[error("the state holds more input than the port has room for")]
    Input,
}

/// The registers as plain data, with the input that the guest has not read yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SerialState {
    /// The version of the program that saved.
    pub version: u32,
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub input: Vec<u8>,
}

const STATE_VERSION: u32 = 1;

/// What the console does in the event loop.
pub const SYSTEM_CALLS: &[SystemCall] = &[
    SystemCall::any(libc::SYS_accept4),
    NONBLOCKING,
    SystemCall::any(libc::SYS_recvfrom),
    SystemCall::any(libc::SYS_sendto),
];

/// Raises the port's interrupt.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the console when the guest has read all input.
struct InputRead(EventFd);

impl SerialEvents for InputRead {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if let Err(error) = self.0.write(1) {
            error!(%error, "the console cannot be told that its input was read");
        }
    }
}

type Uart = Serial<Line, InputRead, Log>;

/// The registers, shared between bus and console.
#[derive(Clone)]
struct SharedUart(Arc<Mutex<Uart>>);

impl SharedUart {
    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The serial port on the bus.
pub struct Port {
    uart: SharedUart,
}

/// A serial port whose interrupts write to `line`, in its state after reset or in a saved one, and the console that
/// serves the listener's clients.
///
/// # Errors
/// Descriptors are used up, or the state is none of this program's.
pub fn build(
    line: EventFd,
    listener: UnixListener,
    saved: Option<&SerialState>,
) -> Result<(Port, Console), SerialError> {
    let event = || EventFd::new(EFD_NONBLOCK).map_err(SerialError::Event);
    listener.set_nonblocking(true).map_err(SerialError::Listener)?;
    let log = Log::new(event()?);
    let read = event()?;
    let events = InputRead(read.try_clone().map_err(SerialError::Event)?);
    let state = saved.map_or_else(|| Ok(vm_superio::SerialState::default()), SerialState::unpack)?;
    let uart = Serial::from_state(&state, Line(line), events, log.clone()).map_err(|error| match error {
        vm_superio::serial::Error::FullFifo => SerialError::Input,
        vm_superio::serial::Error::Trigger(error) | vm_superio::serial::Error::IOError(error) => {
            SerialError::Event(error)
        }
    })?;
    let uart = SharedUart(Arc::new(Mutex::new(uart)));
    let console = Console::new(listener, uart.clone(), log, read);
    Ok((Port { uart }, console))
}

impl Port {
    /// The registers as plain data. What was said before is not part of it.
    #[must_use]
    pub fn save(&self) -> SerialState {
        SerialState::pack(self.uart.lock().state())
    }
}

impl BusDevice for Port {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (data, u8::try_from(offset)) {
            ([value], Ok(offset)) => *value = self.uart.lock().read(offset),
            (data, _) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (&[value], Ok(offset)) = (data, u8::try_from(offset))
            && let Err(error) = self.uart.lock().write(offset, value)
        {
            debug!(%error, offset, "a write to the serial port had no effect");
        }
    }
}

impl SerialState {
    fn pack(state: vm_superio::SerialState) -> Self {
        Self {
            version: STATE_VERSION,
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    fn unpack(&self) -> Result<vm_superio::SerialState, SerialError> {
        if self.version != STATE_VERSION {
            return Err(SerialError::Version(self.version));
        }
        Ok(vm_superio::SerialState {
            baud_divisor_low: self.baud_divisor_low,
            baud_divisor_high: self.baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.input.clone(),
        })
    }
}
