use std::sync::{Arc, Mutex};

use super::*;
use crate::rng::RngState;
use crate::testing::{self, Machine, PATIENCE};
use crate::virtio::{ActivateError, Activation, DeviceState, TransportState};

const ACKNOWLEDGED: u32 = status::ACKNOWLEDGE;
const DRIVEN: u32 = ACKNOWLEDGED | status::DRIVER;
const NEGOTIATED: u32 = DRIVEN | status::FEATURES_OK;
const RUNNING: u32 = NEGOTIATED | status::DRIVER_OK;

/// A feature of the probe's own, and one that it does not offer.
const OFFERED: u64 = 1 << 3;
const FOREIGN: u64 = 1 << 4;

/// What the transport did to a probe.
#[derive(Default)]
struct Record {
    activation: Option<Activation>,
    activations: u32,
    deactivations: u32,
    config: Vec<(u64, Vec<u8>)>,
    generation: u32,
    /// What `activate` answers, and what `deactivate` does.
    refuses: bool,
    stuck: bool,
}

/// A device that does nothing but remember.
#[derive(Clone, Default)]
struct Probe(Arc<Mutex<Record>>);

impl Probe {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.0.lock().unwrap()
    }

    fn active(&self) -> bool {
        self.record().activation.is_some()
    }
}

impl Device for Probe {
    fn kind(&self) -> u32 {
        4
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 64]
    }
    fn features(&self) -> u64 {
        OFFERED | feature::EVENT_IDX
    }
    fn config_generation(&self) -> u32 {
        self.record().generation
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if let Some(first) = data.first_mut() {
            *first = offset.to_le_bytes()[0];
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.record().config.push((offset, data.to_vec()));
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut record = self.record();
        if record.refuses {
            return Err(ActivateError::Stuck);
        }
        assert!(record.activation.is_none(), "activated twice");
        record.activation = Some(activation);
        record.activations += 1;
        Ok(())
    }
    fn deactivate(&mut self) -> Vec<Queue> {
        let mut record = self.record();
        record.deactivations += 1;
        let queues = record.activation.take().map(|activation| activation.queues);
        if record.stuck {
            Vec::new()
        } else {
            queues.unwrap_or_default()
        }
    }
    fn save(&mut self) -> DeviceState {
        assert!(!self.active(), "saved while active");
        DeviceState::Rng(RngState { version: 1 })
    }
    fn restore(&mut self, _: DeviceState) -> Result<(), StateError> {
        Ok(())
    }
}

fn probe() -> (Machine, Probe) {
    let probe = Probe::default();
    (Machine::new(probe.clone()), probe)
}

fn running() -> (Machine, Probe) {
    let (mut machine, probe) = self::probe();
    machine.start(OFFERED | feature::VERSION_1);
    assert!(probe.active());
    (machine, probe)
}

#[test]
fn shows_what_it_is() {
    let (mut machine, _) = probe();
    assert_eq!(machine.read(0x000), 0x7472_6976);
    assert_eq!(machine.read(0x004), 2);
    assert_eq!(machine.read(0x008), 4);
    assert_eq!(machine.offered(), OFFERED | feature::EVENT_IDX | feature::VERSION_1);
    machine.write(0x14, 2);
    assert_eq!(machine.read(0x10), 0);
    for (queue, size) in [(0, 16), (1, 64), (2, 0), (u32::MAX, 0)] {
        machine.write(0x30, queue);
        assert_eq!(machine.read(0x34), size);
    }
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(machine.read(offset), u32::MAX);
    }
    // Registers that only the driver writes, or nobody knows.
    for offset in [0x020, 0x030, 0x050, 0x064, 0x080, 0x0c0, 0x0f8] {
        assert_eq!(machine.read(offset), 0, "{offset:#x}");
    }
}

#[test]
fn answers_control_registers_only_aligned_and_32_bits_wide() {
    let (mut machine, _) = probe();
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 4), (3, 1), (0xfe, 4)] {
        let mut data = vec![0xaa; width];
        machine.transport.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x} {width}");
    }
    for (offset, data) in [(0x70, &[1][..]), (0x70, &[1, 0]), (0x71, &[1; 4]), (0x70, &[1; 8])] {
        machine.transport.write(offset, data);
        assert_eq!(machine.status(), 0);
    }
}

#[test]
fn passes_the_configuration_of_any_width() {
    let (mut machine, probe) = probe();
    for width in [1, 2, 4, 8] {
        let mut data = vec![0xaa; width];
        machine.transport.read(0x107, &mut data);
        assert_eq!(data[0], 7);
        assert!(data[1..].iter().all(|byte| *byte == 0));
    }
    probe.record().generation = 77;
    assert_eq!(machine.read(0xfc), 77);
    machine.transport.write(0x104, &[1]);
    assert_eq!(probe.record().config, [], "written before the features were agreed on");
    machine.negotiate(feature::VERSION_1);
    machine.transport.write(0x104, &[1, 2]);
    assert_eq!(probe.record().config, [(4, vec![1, 2])]);
}

#[test]
fn takes_status_bits_in_order_and_never_back() {
    let (mut machine, probe) = probe();
    for early in [status::DRIVER, status::FEATURES_OK, status::DRIVER_OK, 12, 64] {
        machine.write(0x70, early);
        assert_eq!(machine.status(), 0, "{early}");
    }
    machine.write(0x70, ACKNOWLEDGED);
    machine.write(0x70, ACKNOWLEDGED | status::DRIVER_OK);
    assert_eq!(machine.status(), ACKNOWLEDGED);
    machine.write(0x70, DRIVEN);
    machine.write(0x70, status::DRIVER);
    assert_eq!(machine.status(), DRIVEN);
    machine.write(0x24, 1);
    machine.write(0x20, 1);
    machine.write(0x70, NEGOTIATED);
    assert_eq!(machine.status(), NEGOTIATED);
    machine.write(0x70, DRIVEN);
    assert_eq!(machine.status(), NEGOTIATED);
    assert!(!probe.active());
    machine.write(0x70, RUNNING);
    assert_eq!(machine.status(), RUNNING);
    assert!(probe.active());
    machine.write(0x70, 0);
    assert_eq!(machine.status(), 0);
    assert!(!probe.active());
}

#[test]
fn takes_all_bits_in_one_write_if_nothing_is_missing() {
    let (mut machine, probe) = probe();
    machine.write(0x70, RUNNING);
    assert_eq!(machine.status(), DRIVEN, "without VERSION_1 the features are refused");
    machine.write(0x24, 1);
    machine.write(0x20, 1);
    machine.write(0x70, RUNNING);
    assert_eq!(machine.status(), RUNNING);
    assert!(probe.active());
}

#[test]
fn refuses_features_that_it_does_not_offer() {
    let (mut machine, _) = probe();
    for (features, accepted) in [
        (feature::VERSION_1, true),
        (feature::VERSION_1 | OFFERED, true),
        (OFFERED, false),
        (0, false),
        (feature::VERSION_1 | FOREIGN, false),
        (feature::VERSION_1 | 1 << 63, false),
    ] {
        assert_eq!(machine.negotiate(features), accepted, "{features:#x}");
    }
    // A driver may try again with less.
    assert!(!machine.negotiate(feature::VERSION_1 | FOREIGN));
    machine.write(0x24, 0);
    machine.write(0x20, 0);
    machine.write(0x70, NEGOTIATED);
    assert_eq!(machine.status(), NEGOTIATED);
}

#[test]
fn takes_features_only_while_they_are_negotiated() {
    let (mut machine, probe) = probe();
    machine.write(0x24, 0);
    machine.write(0x20, u32::try_from(FOREIGN).unwrap());
    machine.write(0x70, ACKNOWLEDGED);
    machine.write(0x20, u32::try_from(FOREIGN).unwrap());
    machine.write(0x70, DRIVEN);
    machine.write(0x24, 1);
    machine.write(0x20, 1);
    machine.write(0x24, 2);
    machine.write(0x20, u32::MAX);
    machine.write(0x70, NEGOTIATED);
    assert_eq!(machine.status(), NEGOTIATED);
    machine.write(0x24, 0);
    machine.write(0x20, u32::MAX);
    machine.drive();
    assert_eq!(probe.record().activation.as_ref().unwrap().features, feature::VERSION_1);
}

#[test]
fn hands_over_queues_as_the_driver_laid_them_out() {
    let (mut machine, probe) = probe();
    assert!(machine.negotiate(feature::VERSION_1 | feature::EVENT_IDX));
    let ring = machine.lay_out(32, true);
    machine.enable(1, &ring);
    machine.drive();
    let record = probe.record();
    let queues = &record.activation.as_ref().unwrap().queues;
    assert_eq!(queues.len(), 2);
    assert!(!queues[0].ready());
    assert!(queues[1].ready());
    assert!(queues[1].event_idx_enabled());
    assert_eq!((queues[1].size(), queues[1].max_size()), (32, 64));
    assert_eq!(queues[1].desc_table(), ring.descriptors);
    assert_eq!(queues[1].avail_ring(), ring.available);
    assert_eq!(queues[1].used_ring(), ring.used);
}

#[test]
fn needs_a_reset_for_a_queue_that_cannot_be() {
    let end = 16 << 20;
    let (mut machine, probe) = probe();
    let good = (0x1000, 0x2000, 0x3000);
    for (size, (descriptors, available, used)) in [
        (0, good),
        (3, good),
        (32, good),
        (0x1_0010, good),
        (u32::MAX, good),
        (16, (0x1008, 0x2000, 0x3000)),
        (16, (0x1000, 0x2001, 0x3000)),
        (16, (0x1000, 0x2000, 0x3002)),
        (16, (end, 0x2000, 0x3000)),
        (16, (end - 16 * 15, 0x2000, 0x3000)),
        (16, (0x1000, end - 16, 0x3000)),
        (16, (0x1000, 0x2000, end - 16)),
        (16, (0x1000, 0x2000, u64::MAX - 3)),
        (16, (u64::MAX - 15, 0x2000, 0x3000)),
        (16, (0x1000, 0, 0x3000)),
    ] {
        assert!(machine.negotiate(feature::VERSION_1));
        let mut ring = machine.lay_out(16, false);
        (ring.descriptors, ring.available, ring.used) = (descriptors, available, used);
        machine.enable(0, &ring);
        machine.write(0x38, size);
        if size == 16 {
            assert_eq!(machine.read(0x44), 0);
            assert_eq!(machine.status(), NEGOTIATED | status::NEEDS_RESET, "{ring:?}");
        } else {
            // The good queue was enabled above, so that its size cannot be changed any more.
            assert_eq!(machine.read(0x44), 1);
            machine.write(0x44, 0);
            machine.write(0x38, size);
            machine.write(0x44, 1);
            assert_eq!(machine.read(0x44), 0);
            assert_eq!(machine.status(), NEGOTIATED | status::NEEDS_RESET, "{size}");
        }
        machine.drive();
        assert!(!probe.active(), "a device that needs a reset was started");
    }
    machine.start(feature::VERSION_1);
    assert_eq!(machine.status(), RUNNING);
}

#[test]
fn keeps_queue_registers_closed_outside_of_set_up() {
    let (mut machine, probe) = probe();
    let ring = machine.lay_out(8, false);
    for early in [0, ACKNOWLEDGED, DRIVEN] {
        machine.write(0x70, early);
        machine.enable(0, &ring);
        assert_eq!(machine.read(0x44), 0);
    }
    assert_eq!(machine.status(), DRIVEN);
    assert!(machine.negotiate(feature::VERSION_1));
    machine.enable(0, &ring);
    machine.enable(7, &ring);
    let other = machine.lay_out(4, false);
    machine.enable(0, &other);
    machine.drive();
    machine.enable(1, &other);
    assert_eq!(machine.read(0x44), 0);
    let record = probe.record();
    let queues = &record.activation.as_ref().unwrap().queues;
    assert_eq!((queues[0].size(), queues[0].used_ring()), (8, ring.used));
    assert!(!queues[1].ready());
}

#[test]
fn takes_a_queue_back_from_a_device_at_work() {
    let (mut machine, probe) = running();
    for queue in &mut probe.record().activation.as_mut().unwrap().queues {
        queue.set_next_avail(5);
        queue.set_next_used(3);
    }
    machine.write(0x30, 0);
    machine.write(0x44, 0);
    assert_eq!(machine.read(0x44), 0);
    assert_eq!(machine.status(), RUNNING);
    let record = probe.record();
    let queues = &record.activation.as_ref().unwrap().queues;
    assert!(!queues[0].ready());
    assert!(queues[1].ready());
    assert_eq!((queues[1].next_avail(), queues[1].next_used()), (5, 3));
}

#[test]
fn notifies_only_a_device_at_work() {
    let (mut machine, _) = probe();
    machine.write(0x50, 0);
    assert!(machine.transport.kicks()[0].read().is_err());
    machine.start(feature::VERSION_1);
    for nothing in [2, u32::MAX] {
        machine.write(0x50, nothing);
    }
    machine.write(0x50, 1);
    assert!(machine.transport.kicks()[0].read().is_err());
    assert_eq!(machine.transport.kicks()[1].read().unwrap(), 1);
    machine.transport.kick();
    assert_eq!(machine.transport.kicks()[0].read().unwrap(), 1);
    // A notification of one life is not heard in the next.
    machine.write(0x50, 1);
    machine.write(0x70, 0);
    assert!(machine.transport.kicks()[1].read().is_err());
}

#[test]
fn raises_and_acknowledges_interrupts() {
    let (mut machine, probe) = running();
    let interrupt = probe.record().activation.as_ref().unwrap().interrupt.clone();
    interrupt.signal_queue();
    interrupt.signal_config();
    assert_eq!(machine.read(0x60), 3);
    machine.write(0x64, 1);
    assert_eq!(machine.read(0x60), 2);
    machine.write(0x64, u32::MAX);
    assert_eq!(machine.read(0x60), 0);
    assert_eq!(machine.wait_interrupt(std::time::Duration::ZERO), 0);
    interrupt.signal_queue();
    assert_eq!(machine.wait_interrupt(PATIENCE), 1);
}

#[test]
fn tells_a_driver_at_work_that_a_reset_is_needed() {
    let (mut machine, probe) = running();
    let interrupt = probe.record().activation.as_ref().unwrap().interrupt.clone();
    interrupt.needs_reset();
    interrupt.needs_reset();
    assert_eq!(machine.status(), RUNNING | status::NEEDS_RESET);
    assert_eq!(machine.wait_interrupt(PATIENCE), 2);
    // The driver writes back what it read before.
    machine.write(0x70, RUNNING);
    assert_eq!(machine.status(), RUNNING | status::NEEDS_RESET);
    machine.start(feature::VERSION_1);
    assert_eq!(machine.status(), RUNNING);
    assert_eq!(probe.record().activations, 2);
}

#[test]
fn needs_a_reset_when_the_device_cannot_start() {
    let (mut machine, probe) = probe();
    probe.record().refuses = true;
    assert!(machine.negotiate(feature::VERSION_1));
    machine.drive();
    assert_eq!(machine.status(), RUNNING | status::NEEDS_RESET);
    assert_eq!(machine.wait_interrupt(PATIENCE), 2);
    probe.record().refuses = false;
    machine.start(feature::VERSION_1);
    assert_eq!(machine.status(), RUNNING);
}

#[test]
fn stops_the_device_when_the_driver_gives_up() {
    let (mut machine, probe) = running();
    machine.write(0x70, RUNNING | status::FAILED);
    assert_eq!(machine.status(), RUNNING | status::FAILED);
    assert!(!probe.active());
    machine.write(0x70, RUNNING | status::FAILED);
    machine.transport.pause().unwrap();
    machine.transport.resume();
    assert!(!probe.active());
    machine.start(feature::VERSION_1);
    assert!(probe.active());
}

#[test]
fn keeps_positions_over_a_pause() {
    let (mut machine, probe) = running();
    probe.record().activation.as_mut().unwrap().queues[1].set_next_avail(9);
    machine.transport.pause().unwrap();
    machine.transport.pause().unwrap();
    assert!(!probe.active());
    assert_eq!(machine.status(), RUNNING);
    machine.transport.resume();
    machine.transport.resume();
    assert_eq!(probe.record().activations, 2);
    assert_eq!(probe.record().activation.as_ref().unwrap().queues[1].next_avail(), 9);
    // What may have been lost is made up for: a notification of each queue and an interrupt.
    assert_eq!(machine.transport.kicks()[0].read().unwrap(), 1);
    assert_eq!(machine.wait_interrupt(PATIENCE), 1);
}

#[test]
fn starts_a_device_that_became_ready_in_a_pause_only_after_it() {
    let (mut machine, probe) = probe();
    machine.transport.pause().unwrap();
    machine.start(feature::VERSION_1);
    assert!(!probe.active());
    machine.transport.resume();
    assert!(probe.active());
}

#[test]
fn reports_a_device_that_does_not_stop() {
    let (mut machine, probe) = running();
    probe.record().stuck = true;
    assert_eq!(machine.transport.pause(), Err(PauseError));
    assert_eq!(machine.status(), RUNNING | status::NEEDS_RESET);
    machine.transport.resume();
    assert!(!probe.active());
}

#[test]
fn goes_on_from_a_saved_state() {
    let (mut machine, probe) = running();
    probe.record().activation.as_mut().unwrap().queues[1].set_next_used(4);
    let interrupt = probe.record().activation.as_ref().unwrap().interrupt.clone();
    interrupt.signal_config();
    machine.write(0x30, 1);
    let probe = Probe::default();
    let mut machine = machine.moved_to(probe.clone());
    assert_eq!(machine.status(), RUNNING);
    assert_eq!(machine.read(0x34), 64);
    assert_eq!(machine.wait_interrupt(PATIENCE) & 2, 2);
    let record = probe.record();
    let activation = record.activation.as_ref().unwrap();
    assert_eq!(activation.features, OFFERED | feature::VERSION_1);
    assert_eq!(activation.queues[1].next_used(), 4);
    assert_eq!(activation.queues[0].desc_table(), machine.rings[0].descriptors);
}

#[test]
fn goes_on_from_a_state_in_the_middle_of_negotiation() {
    let (mut machine, _) = probe();
    assert!(machine.negotiate(feature::VERSION_1));
    let ring = machine.lay_out(16, false);
    machine.enable(0, &ring);
    let probe = Probe::default();
    let mut machine = machine.moved_to(probe.clone());
    assert_eq!(machine.status(), NEGOTIATED);
    assert!(!probe.active());
    machine.drive();
    assert!(probe.record().activation.as_ref().unwrap().queues[0].ready());
}

#[test]
fn refuses_states_that_do_not_fit() {
    let (mut machine, _) = running();
    let good = machine.transport.save().unwrap();
    let refusal = |change: fn(&mut TransportState)| {
        let mut state = good.clone();
        change(&mut state);
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        match Transport::restore(state, Box::new(Probe::default()), testing::memory(), line) {
            Err(TransportError::State(error)) => error,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("the state was taken"),
        }
    };
    assert!(matches!(
        refusal(|state| state.version = 2),
        StateError::Version { found: 2, supported: 1 }
    ));
    assert!(matches!(
        refusal(|state| state.kind = 2),
        StateError::Kind { found: 2, expected: 4 }
    ));
    assert!(matches!(
        refusal(|state| state.driver_features |= FOREIGN),
        StateError::Configuration("features")
    ));
    assert!(matches!(
        refusal(|state| state.queues.truncate(1)),
        StateError::Configuration(_)
    ));
    assert!(matches!(
        refusal(|state| state.queues[0].size = 17),
        StateError::Range("queue")
    ));
    assert!(matches!(
        refusal(|state| state.queues[0].used = 16 << 20),
        StateError::Range("queue")
    ));
    assert!(matches!(
        refusal(|state| state.status = status::DRIVER_OK),
        StateError::Range("status")
    ));
}

#[test]
fn refuses_a_device_with_an_impossible_queue() {
    struct Odd;
    impl Device for Odd {
        fn kind(&self) -> u32 {
            4
        }
        fn queue_sizes(&self) -> &[u16] {
            &[16, 24]
        }
        fn features(&self) -> u64 {
            0
        }
        fn read_config(&self, _: u64, _: &mut [u8]) {}
        fn activate(&mut self, _: Activation) -> Result<(), ActivateError> {
            Ok(())
        }
        fn deactivate(&mut self) -> Vec<Queue> {
            Vec::new()
        }
        fn save(&mut self) -> DeviceState {
            DeviceState::Rng(RngState { version: 1 })
        }
        fn restore(&mut self, _: DeviceState) -> Result<(), StateError> {
            Ok(())
        }
    }
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    assert!(matches!(
        Transport::new(Box::new(Odd), testing::memory(), line),
        Err(TransportError::QueueSize(24))
    ));
}
