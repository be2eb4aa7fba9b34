//! The block device: a slot with a small disk, which comes and goes.

use std::fs::File;
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use arbitrary::Unstructured;
use husk_devices::blk::{Block, Handle, Options};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use crate::machine::{Buffer, Machine};

const SECTORS: u64 = 64;

static DISK: LazyLock<File> = LazyLock::new(|| {
    let file = File::from(memfd_create("disk", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(SECTORS * 512).unwrap();
    file
});

fn disk() -> File {
    DISK.try_clone().unwrap()
}

pub fn run(data: &[u8]) {
    let mut script = Unstructured::new(data);
    let read_only = script.arbitrary().unwrap_or(false);
    let handle: Arc<Mutex<Option<Handle>>> = Arc::default();
    let newest = Arc::clone(&handle);
    let mut machine = Machine::new(move || {
        let options = Options {
            id: "disk".into(),
            read_only,
            queues: 2,
        };
        let (block, handle) = Block::new(options, || Ok(())).unwrap();
        handle.attach(disk()).unwrap();
        *newest.lock().unwrap() = Some(handle);
        Box::new(block)
    });
    let settle = |_: &mut Machine| thread::sleep(Duration::from_micros(200));
    let _ = machine.follow(&mut script, settle, |machine, script| {
        match script.int_in_range(0..=15_u8)? {
            0 => drop(handle.lock().unwrap().as_ref().map(|handle| handle.attach(disk()))),
            1 => drop(handle.lock().unwrap().as_ref().map(Handle::detach)),
            _ => {
                let kind = *script.choose(&[0_u32, 1, 4, 8, 11, 13, 99])?;
                let sector = match script.int_in_range(0..=7_u8)? {
                    0 => script.arbitrary()?,
                    _ => script.int_in_range(0..=SECTORS)?,
                };
                let length = script.int_in_range(0..=3)? * 512 + script.int_in_range(0..=1)?;
                let writable = matches!(kind, 0 | 8) != script.ratio(1, 16)?;
                request(machine, script.int_in_range(0..=1)?, kind, sector, length, writable);
            }
        }
        Ok(())
    });
    // The disk may have gone: the request is answered in any case.
    let header = Machine::slot(0);
    machine.memory.write_slice(&[0; 16], GuestAddress(header)).unwrap();
    machine.answers(0, &chain(512, true));
}

fn request(machine: &mut Machine, queue: usize, kind: u32, sector: u64, length: u32, writable: bool) {
    let header = GuestAddress(Machine::slot(0));
    machine.memory.write_obj(kind, header).unwrap();
    machine.memory.write_obj(sector, GuestAddress(header.0 + 8)).unwrap();
    machine.submit(queue, &chain(length, writable));
    machine.kick(queue);
}

/// A request's header, data and status.
fn chain(length: u32, writable: bool) -> [Buffer; 3] {
    let buffer = |slot, length, writable| Buffer {
        address: Machine::slot(slot),
        length,
        writable,
    };
    [buffer(0, 16, false), buffer(1, length, writable), buffer(8, 1, true)]
}
