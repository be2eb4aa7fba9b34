//! Connections: packets of the guest and deeds of the host's programs, in any order.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::{Arc, Mutex};

use arbitrary::{Result, Unstructured};
use husk_devices::vsock::Vsock;
use vm_memory::{Bytes, GuestAddress};

use crate::events;
use crate::machine::{Buffer, Machine};
use crate::vsock::{CID, HEADER, RX, SERVICE, TX, acceptor, listener, offer};

/// The most clients at a time.
const MAX_CLIENTS: usize = 16;
/// A context id that is not the guest's.
const STRANGER: u32 = 9;
const MAX_STEPS: usize = 200;
/// The first of the slots into which the device puts packets.
const FIRST_ROOM: u8 = 16;
/// The first port of the host's end of a client's connection.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// The host's side.
struct Host {
    address: SocketAddr,
    /// Open as long as the guest's connections shall be taken.
    _acceptor: OwnedFd,
    clients: Vec<UnixStream>,
}

pub fn run(data: &[u8]) {
    let mut script = Unstructured::new(data);
    let host: Arc<Mutex<Option<Host>>> = Arc::default();
    let newest = Arc::clone(&host);
    let mut machine = Machine::new(move || {
        let (listener, address) = listener();
        let (device, acceptor) = acceptor();
        *newest.lock().unwrap() = Some(Host {
            address,
            _acceptor: acceptor,
            clients: Vec::new(),
        });
        Box::new(Vsock::new(CID, listener.into(), vec![(SERVICE, device)], events::handle()).unwrap())
    });
    start(&mut machine);
    // A script that ends in the middle of a step has ended.
    let _ = follow(&mut machine, &host, &mut script);
}

fn start(machine: &mut Machine) {
    machine.start(u64::MAX, 5);
    for slot in FIRST_ROOM..32 {
        offer(machine, slot);
    }
}

fn follow(machine: &mut Machine, host: &Mutex<Option<Host>>, script: &mut Unstructured<'_>) -> Result<()> {
    for _ in 0..MAX_STEPS {
        if script.is_empty() {
            break;
        }
        match script.int_in_range(0..=31_u8)? {
            0 => start(machine),
            1 => machine.move_on(),
            step if step % 2 == 0 => packet(machine, script)?,
            _ => {
                if let Some(host) = host.lock().unwrap().as_mut() {
                    host.act(script)?;
                }
            }
        }
        events::settle();
        take_packets(machine);
    }
    Ok(())
}

impl Host {
    fn act(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        let kind = script.int_in_range(0..=7_u8)?;
        if kind == 0 {
            if self.clients.len() < MAX_CLIENTS
                && let Ok(mut client) = UnixStream::connect_addr(&self.address)
            {
                client.set_nonblocking(true).unwrap();
                match script.int_in_range(0..=3_u8)? {
                    0 => drop(client.write(script.bytes(script.len().min(8))?)),
                    port => drop(client.write(format!("CONNECT {port}\n").as_bytes())),
                }
                self.clients.push(client);
            }
            return Ok(());
        }
        if self.clients.is_empty() {
            return Ok(());
        }
        let index = script.choose_index(self.clients.len())?;
        let client = &mut self.clients[index];
        // What a client cannot do any more, because its connection is gone, it does not.
        match kind {
            1 => drop(self.clients.swap_remove(index)),
            2 => drop(client.shutdown(Shutdown::Write)),
            3 => drop(client.shutdown(Shutdown::Read)),
            4 => drop(client.read(&mut [0; 4096])),
            _ => drop(client.write(&[7; 3000][..script.int_in_range(0..=3000)?])),
        }
        Ok(())
    }
}

/// A packet of the guest, whose fields are likely to mean something.
fn packet(machine: &mut Machine, script: &mut Unstructured<'_>) -> Result<()> {
    let port = |script: &mut Unstructured<'_>| {
        Ok(match script.int_in_range(0..=7_u8)? {
            0 => script.arbitrary()?,
            1 | 2 => SERVICE,
            other => FIRST_HOST_PORT + u32::from(other) - 3,
        })
    };
    let length = match script.int_in_range(0..=7_u8)? {
        0 => script.arbitrary()?,
        1..=4 => 0,
        _ => script.int_in_range(0..=900)?,
    };
    let mut header = Vec::with_capacity(HEADER);
    header.extend(u64::from(if script.ratio(1, 32)? { STRANGER } else { CID }).to_le_bytes());
    header.extend(2_u64.to_le_bytes());
    // The guest's port, then the host's.
    header.extend(script.int_in_range(1..=4_u32)?.to_le_bytes());
    header.extend(port(script)?.to_le_bytes());
    header.extend(u32::to_le_bytes(length));
    header.extend(u16::to_le_bytes(if script.ratio(1, 32)? { 2 } else { 1 }));
    header.extend(script.int_in_range(0..=8_u16)?.to_le_bytes());
    header.extend(script.int_in_range(0..=4_u32)?.to_le_bytes());
    header.extend(script.choose(&[0_u32, 1, 4096, 262_144, u32::MAX])?.to_le_bytes());
    header.extend(script.choose(&[0_u32, 1, 100, 1000, 3000, u32::MAX])?.to_le_bytes());
    machine
        .memory
        .write_slice(&header, GuestAddress(Machine::slot(0)))
        .unwrap();
    let sent = if script.ratio(1, 16)? { 100 } else { length.min(900) };
    let packet = Buffer {
        address: Machine::slot(0),
        length: HEADER as u32 + sent,
        writable: false,
    };
    machine.submit(TX, &[packet]);
    machine.kick(TX);
    Ok(())
}

/// Takes what the device has sent, which is sound whatever it was sent, and gives the room back.
fn take_packets(machine: &mut Machine) {
    while let Some((head, length)) = machine.take_used(RX) {
        let address = machine.buffer_of(RX, head).unwrap();
        let mut header = [0; HEADER];
        machine.memory.read_slice(&mut header, GuestAddress(address)).unwrap();
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        // Who says to be somebody else is answered as that.
        assert!(
            word(0) == 2 && matches!(word(8), CID | STRANGER),
            "from the host to the guest"
        );
        assert_eq!(word(24) as usize + HEADER, length as usize, "the length of the data");
        offer(machine, Machine::slot_at(address).unwrap());
    }
}
