//! Drivers that do anything, against every device.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::blk;
use crate::rng::Rng;
use crate::testing::{LoopThread, Machine};
use crate::virtio::status;

const NEGOTIATED: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
const RUNNING: u32 = NEGOTIATED | status::DRIVER_OK;

/// What a hostile driver does.
#[derive(Clone, Debug)]
enum Act {
    Write(u64, u32),
    Wide(u64, Vec<u8>),
    Read(u64, usize),
    Poke(u64, Vec<u8>),
    Start,
    Pause,
    Resume,
    Save,
}

fn act() -> impl Strategy<Value = Act> {
    let register = (0_u64..0x48).prop_map(|index| index * 4);
    let value = prop_oneof![
        any::<u32>(),
        0_u32..16,
        (0_u32..64).prop_map(|page| page << 12),
        Just(RUNNING),
        Just(NEGOTIATED)
    ];
    let address = prop_oneof![
        0x10_0000_u64..0x12_0000,
        any::<u64>(),
        0_u64..0x4_0000,
        Just((16 << 20) - 2)
    ];
    prop_oneof![
        8 => (register, value).prop_map(|(offset, value)| Act::Write(offset, value)),
        1 => (0_u64..0x1000, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(offset, data)| Act::Wide(offset, data)),
        1 => (0_u64..0x1000, 0_usize..9).prop_map(|(offset, width)| Act::Read(offset, width)),
        6 => (address, prop::collection::vec(any::<u8>(), 1..32)).prop_map(|(address, data)| Act::Poke(address, data)),
        2 => Just(Act::Start),
        1 => Just(Act::Pause),
        1 => Just(Act::Resume),
        1 => Just(Act::Save),
    ]
}

/// Lets a hostile driver at a device and then expects that a well-behaved one can still use it.
fn attack(machine: &mut Machine, acts: Vec<Act>) {
    for act in acts {
        match act {
            Act::Write(offset, value) => machine.write(offset, value),
            Act::Wide(offset, data) => machine.transport.write(offset, &data),
            Act::Read(offset, width) => machine.transport.read(offset, &mut vec![0; width]),
            Act::Poke(address, data) => drop(machine.memory.write_slice(&data, GuestAddress(address))),
            Act::Start => {
                let offered = machine.offered();
                if machine.negotiate(offered) {
                    for index in 0..4 {
                        let mut ring = machine.rings[0].clone();
                        ring.size = 4 << index;
                        machine.enable(index, &ring);
                    }
                    machine.drive();
                    machine.write(0x50, 0);
                }
            }
            Act::Pause => machine.transport.pause().unwrap(),
            Act::Resume => machine.transport.resume(),
            Act::Save => drop(machine.transport.save().unwrap()),
        }
    }
    machine.transport.resume();
    let offered = machine.offered();
    machine.start(offered);
    assert_eq!(machine.status(), RUNNING);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn survives_any_driver_of_an_entropy_device(acts in prop::collection::vec(act(), 0..80)) {
        let events = LoopThread::new();
        let mut machine = Machine::started(Rng::new(events.handle()));
        attack(&mut machine, acts);
    }

    #[test]
    fn survives_any_driver_of_a_disk(acts in prop::collection::vec(act(), 0..80)) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let options = blk::Options { id: "disk".into(), read_only: false, queues: 2 };
        let (block, handle) = blk::Block::new(options, || Ok(())).unwrap();
        handle.attach(file).unwrap();
        let mut machine = Machine::started(block);
        attack(&mut machine, acts);
    }
}
