//! The socket device as a hostile driver sees it. Its connections are the matter of [`muxer`](crate::muxer).

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Unstructured;
use husk_devices::vsock::Vsock;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use vm_memory::{Bytes, GuestAddress};

use crate::events;
use crate::machine::{Buffer, Machine};

pub const CID: u32 = 3;
/// The host's port that the guest may connect to.
pub const SERVICE: u32 = 1024;
pub const HEADER: usize = 44;
pub const RX: usize = 0;
pub const TX: usize = 1;

/// A listening socket of no file system, and its address.
pub fn listener() -> (UnixListener, SocketAddr) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("husk-fuzz-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    (UnixListener::bind_addr(&address).unwrap(), address)
}

/// Both ends of the socket over which connections of the guest are passed.
pub fn acceptor() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

pub fn run(data: &[u8]) {
    let mut script = Unstructured::new(data);
    let mut machine = Machine::new(|| {
        let ports = vec![(SERVICE, acceptor().0)];
        Box::new(Vsock::new(CID, listener().0.into(), ports, events::handle()).unwrap())
    });
    let _ = machine.follow(
        &mut script,
        |_| events::settle(),
        |machine, script| {
            let length = script.int_in_range(0..=128)?;
            if script.arbitrary()? {
                offer(machine, script.arbitrary()?);
            } else {
                let bytes = script.bytes(HEADER.min(script.len()))?;
                machine
                    .memory
                    .write_slice(bytes, GuestAddress(Machine::slot(0)))
                    .unwrap();
                let packet = Buffer {
                    address: Machine::slot(0),
                    length,
                    writable: false,
                };
                machine.submit(TX, &[packet]);
                machine.kick(TX);
            }
            Ok(())
        },
    );
    // A packet for nobody is taken.
    let packet = Buffer {
        address: Machine::slot(0),
        length: HEADER as u32,
        writable: false,
    };
    machine.answers(TX, &[packet]);
}

/// Gives the device room for a packet.
pub fn offer(machine: &mut Machine, slot: u8) {
    let room = Buffer {
        address: Machine::slot(slot),
        length: 0x400,
        writable: true,
    };
    machine.submit(RX, &[room]);
    machine.kick(RX);
}
