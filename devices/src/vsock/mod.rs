//! The socket device (section 5.10): streams between sockets of the guest and unix sockets of the host.
//!
//! # From the host to the guest
//! A client connects to the device's listening unix socket and writes `CONNECT <port>\n`. When the guest has accepted
//! the connection it reads `OK <host port>\n`, and from there on the stream is the guest's; when the guest refuses, or
//! does not answer within 5 seconds, the client's connection is closed. A client that comes before the guest's driver
//! is ready waits in the listener's queue.
//!
//! # From the guest to the host
//! For each port of the host that the guest may connect to, the device has one end of a pair of unix sockets. For each
//! connection it makes a pair of stream sockets and passes one of them over it with one byte of data. A connection to
//! any other port is refused.
//!
//! # How it works
//! The `device` is what the transport sees; it moves a `worker` into the event loop, which owns the queues. The
//! `muxer` finds the `connection` of each packet (`packet`, `buffers`) and gives the connections turns to send.
//! A connection keeps what the unix socket does not take, bounded by the window that the guest is told (`credit`),
//! and leaves in the unix socket what the guest has no room for. Sockets are registered once, for edges, so a stream
//! that cannot go on costs nothing until it can. Everything that waits has a limit (`deadlines`).
//!
//! # Pause, save, reset
//! A pause keeps the connections. They are not part of a saved state: a restored guest is told that all of them are
//! gone, and clients wait until it has noticed. When the driver resets the device all connections are closed.

mod buffers;
mod connection;
mod credit;
mod deadlines;
mod device;
mod greeting;
mod muxer;
mod packet;
mod socket;
mod system_calls;
mod worker;

#[cfg(test)]
mod tests;

use self::device::Limits;
pub use self::device::{Vsock, VsockError, VsockState};
pub use self::system_calls::SYSTEM_CALLS;

/// The context id of the host.
const HOST_CID: u64 = 2;

/// What an event of the loop is about.
type Token = u32;

/// The queue of packets to the guest.
const RX: Token = 0;
/// The queue of packets from the guest.
const TX: Token = 1;
/// The queue of events to the guest.
const EVENT: Token = 2;
/// The listening socket.
const LISTENER: Token = 3;
/// The timer.
const TIMER: Token = 4;
