//! The virtqueue's promises, kept by a whole device behind its registers, against a model of the rings: what the driver
//! makes available comes back once and in order, and interrupts come where the driver wants them and nowhere else.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::feature;
use crate::rng::Rng;
use crate::testing::{Buffer, LoopThread, Machine};

/// The entropy device answers no more to one request.
const MOST: u32 = 256;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Make requests of these lengths available, through an indirect table or not, and notify.
    Submit { count: usize, length: u32, indirect: bool },
    /// Take so many of the used buffers.
    Take(usize),
    /// Ask for an interrupt when so many buffers more than have been taken are used.
    Arm(u16),
    /// Without `EVENT_IDX`: ask to be left alone, or not to be.
    Quiet(bool),
    /// Save the device and go on with another one.
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..6, 0_u32..400, any::<bool>())
            .prop_map(|(count, length, indirect)| Step::Submit { count, length, indirect }),
        3 => (1_usize..8).prop_map(Step::Take),
        2 => (0_u16..8).prop_map(Step::Arm),
        1 => any::<bool>().prop_map(Step::Quiet),
        1 => Just(Step::Move),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_made_available_comes_back_once_in_order_and_is_told_of_where_wanted(
        event_idx in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let events = LoopThread::new();
        let mut machine = Machine::new(Rng::new(events.handle()));
        let features = machine.offered();
        machine.start(if event_idx { features } else { features & !feature::EVENT_IDX });
        let place = machine.allocate(0x1000);
        let tables: Vec<u64> = (0..16).map(|_| machine.allocate(16)).collect();
        let mut under_way = VecDeque::new();
        // Positions in the used ring, as they wrap on the wire; and whether the device has told of anything before.
        let (mut used, mut taken, mut wanted_at, mut first, mut quiet) = (0_u16, 0_u16, 0_u16, true, false);
        for step in steps {
            match step {
                Step::Submit { count, length, indirect } => {
                    let count = count.min(machine.rings[0].free_descriptors());
                    if count == 0 {
                        continue;
                    }
                    for _ in 0..count {
                        let buffers = [Buffer::Write(place, length)];
                        let head = match indirect {
                            // A table of its own for each that can be under way.
                            true => machine.submit_through(tables[under_way.len()], 0, &buffers),
                            false => machine.submit(0, &buffers),
                        };
                        under_way.push_back((head, length.min(MOST)));
                    }
                    machine.notify(0);
                    events.settle();
                    let old = used;
                    used = used.wrapping_add(u16::try_from(count).unwrap());
                    // Section 2.7.10: an interrupt when the used index passes `used_event`, or without the feature
                    // where the driver's flag does not say otherwise. Of what was before a device's start it knows
                    // nothing and tells.
                    let passed = used.wrapping_sub(wanted_at).wrapping_sub(1) < used.wrapping_sub(old);
                    let told = machine.read(0x60) & 1 != 0;
                    if !event_idx {
                        prop_assert_eq!(told, !quiet, "told at {}", used);
                    } else if passed {
                        prop_assert!(told, "no interrupt at {} though wanted at {}", used, wanted_at);
                    } else if !first {
                        prop_assert!(!told, "an interrupt at {} though wanted at {}", used, wanted_at);
                    }
                    machine.write(0x64, 1);
                    first = false;
                }
                Step::Take(count) => {
                    for _ in 0..count.min(under_way.len()) {
                        // Everything is used by now.
                        prop_assert_eq!(machine.take_used(0), under_way.pop_front());
                        taken = taken.wrapping_add(1);
                    }
                    if under_way.is_empty() {
                        prop_assert_eq!(machine.take_used(0), None);
                    }
                }
                Step::Arm(ahead) => {
                    wanted_at = taken.wrapping_add(ahead);
                    machine.ask_for_interrupt(0, ahead);
                }
                Step::Quiet(wish) => {
                    machine.ask_for_quiet(0, wish);
                    quiet = wish;
                }
                Step::Move => {
                    machine = machine.moved_to(Rng::new(events.handle()));
                    events.settle();
                    machine.write(0x64, 1);
                    first = true;
                }
            }
        }
    }
}
