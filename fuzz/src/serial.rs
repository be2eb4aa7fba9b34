//! The serial port's registers and the console's clients.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use arbitrary::{Result, Unstructured};
use husk_devices::bus::BusDevice;
use husk_devices::serial::{self, Console, PORTS};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::events;
use crate::vsock::listener;

/// More than the console takes at a time.
const MAX_CLIENTS: usize = 18;
const MAX_STEPS: usize = 300;

pub fn run(data: &[u8]) {
    // A script that ends in the middle of a step has ended.
    let _ = follow(&mut Unstructured::new(data));
}

fn follow(script: &mut Unstructured<'_>) -> Result<()> {
    let line = || EventFd::new(EFD_NONBLOCK).unwrap();
    let (socket, mut address) = listener();
    let (mut port, console) = serial::build(line(), socket, None).unwrap();
    let mut id = events::handle().add(console).unwrap();
    let mut clients: Vec<UnixStream> = Vec::new();
    for _ in 0..MAX_STEPS {
        if script.is_empty() {
            break;
        }
        match script.int_in_range(0..=9_u8)? {
            0 => port.write(script.int_in_range(0..=PORTS + 1)?, &[script.arbitrary()?]),
            1 => {
                let mut data = [0; 4];
                let width = script.int_in_range(0..=4)?;
                port.read(script.int_in_range(0..=PORTS + 1)?, &mut data[..width]);
            }
            2 => {
                for _ in 0..script.int_in_range(0..=2000)? {
                    port.write(0, b"x");
                }
            }
            3 if clients.len() < MAX_CLIENTS => {
                if let Ok(client) = UnixStream::connect_addr(&address) {
                    client.set_nonblocking(true).unwrap();
                    clients.push(client);
                }
            }
            4 if !clients.is_empty() => {
                let index = script.choose_index(clients.len())?;
                clients.swap_remove(index);
            }
            5 if !clients.is_empty() => {
                let index = script.choose_index(clients.len())?;
                let length = script.int_in_range(0..=9000)?;
                // A client that was turned away types into nothing.
                let _ = clients[index].write(&[b'y'; 9000][..length]);
            }
            6 if !clients.is_empty() => {
                let index = script.choose_index(clients.len())?;
                let _ = clients[index].read(&mut [0; 8192]);
            }
            7 => {
                let state = port.save();
                drop(events::handle().take_back::<Console>(id).unwrap());
                clients.clear();
                let (socket, new) = listener();
                address = new;
                // What it has saved it takes back.
                let (again, console) = serial::build(line(), socket, Some(&state)).unwrap();
                assert_eq!(again.save(), state);
                port = again;
                id = events::handle().add(console).unwrap();
            }
            8 => {
                let mut byte = [0];
                for _ in 0..script.int_in_range(0..=200)? {
                    port.read(0, &mut byte);
                }
            }
            _ => events::settle(),
        }
    }
    events::settle();
    drop(events::handle().take_back::<Console>(id).unwrap());
    Ok(())
}
