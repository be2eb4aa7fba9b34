use super::*;
use crate::testing::{Buffer, LoopThread, Machine};
use crate::virtio::status;

#[test]
fn gives_random_bytes_into_all_buffers() {
    let events = LoopThread::new();
    let mut machine = Machine::started(Rng::new(events.handle()));
    let address = machine.allocate(64);
    machine.submit(0, &[Buffer::Write(address, 30), Buffer::Write(address + 30, 34)]);
    machine.notify(0);
    assert_eq!(machine.wait_used(0).1, 64);
    let first = machine.bytes(address, 64);
    machine.submit_indirect(0, &[Buffer::Write(address, 64)]);
    machine.notify(0);
    assert_eq!(machine.wait_used(0).1, 64);
    // The chance of a false alarm is 2 to the power of -64.
    assert_ne!(machine.bytes(address, 8), first[..8]);
    assert_ne!(first[56..], [0; 8]);
}

#[test]
fn bounds_what_one_request_is_given() {
    let events = LoopThread::new();
    let mut machine = Machine::started(Rng::new(events.handle()));
    machine.submit(0, &[Buffer::Write(0x10_0000, u32::MAX)]);
    machine.notify(0);
    assert_eq!(machine.wait_used(0).1, 256);
}

#[test]
fn answers_senseless_requests_with_nothing() {
    let events = LoopThread::new();
    let mut machine = Machine::started(Rng::new(events.handle()));
    for buffer in [
        Buffer::Write(u64::MAX - 8, 64),
        Buffer::Write(0x8000_0000, 64),
        Buffer::Read(0x10_0000, 64),
        Buffer::Write(0x10_0000, 0),
    ] {
        machine.submit(0, &[buffer]);
        machine.notify(0);
        assert_eq!(machine.wait_used(0).1, 0, "{buffer:?}");
    }
}

#[test]
fn answers_more_than_a_batch_and_across_a_pause() {
    let events = LoopThread::new();
    let mut machine = Machine::started(Rng::new(events.handle()));
    let address = machine.allocate(4096);
    for round in 0..200 {
        for index in 0..16 {
            machine.submit(0, &[Buffer::Write(address + index * 64, 64)]);
        }
        machine.notify(0);
        match round % 3 {
            0 => machine = machine.moved_to(Rng::new(events.handle())),
            1 => {
                machine.transport.pause().unwrap();
                machine.transport.resume();
            }
            _ => {}
        }
        for _ in 0..16 {
            assert_eq!(machine.wait_used(0).1, 64);
        }
    }
}

#[test]
fn needs_a_reset_after_a_senseless_ring_and_works_again_after_it() {
    let events = LoopThread::new();
    let mut machine = Machine::started(Rng::new(events.handle()));
    machine.make_available(0, 999);
    machine.notify(0);
    machine.wait_needs_reset();
    let offered = machine.offered();
    machine.start(offered);
    assert_eq!(machine.status() & status::NEEDS_RESET, 0);
    let address = machine.allocate(64);
    machine.submit(0, &[Buffer::Write(address, 64)]);
    machine.notify(0);
    assert_eq!(machine.wait_used(0).1, 64);
}

#[test]
fn refuses_a_state_of_another_version() {
    let events = LoopThread::new();
    let mut rng = Rng::new(events.handle());
    assert!(matches!(
        rng.restore(DeviceState::Rng(RngState { version: 9 })),
        Err(StateError::Version { found: 9, supported: 1 })
    ));
}
