//! The entropy device.

use arbitrary::Unstructured;
use husk_devices::rng::Rng;

use crate::events;
use crate::machine::{Buffer, Machine};

pub fn run(data: &[u8]) {
    let mut machine = Machine::new(|| Box::new(Rng::new(events::handle())));
    let mut script = Unstructured::new(data);
    // A script that ends in the middle of a step has ended.
    let _ = machine.follow(
        &mut script,
        |_| events::settle(),
        |machine, script| {
            let request = Buffer {
                address: Machine::slot(script.arbitrary()?),
                length: script.int_in_range(0..=0x300)?,
                writable: true,
            };
            machine.submit(0, &[request]);
            machine.kick(0);
            Ok(())
        },
    );
    let request = Buffer {
        address: Machine::slot(0),
        length: 16,
        writable: true,
    };
    machine.answers(0, &[request]);
}
