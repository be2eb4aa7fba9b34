//! Reset, pause, save and end of the device, in the middle of traffic.

use std::io::{Read, Write};
use std::time::Duration;

use super::super::device::{Limits, VsockState};
use super::super::packet::op;
use super::at_end;
use super::guest::{AGENT, Guest, answer, pattern, short_limits};
use crate::testing::wait_readable;
use crate::virtio::{Device, DeviceState, StateError};

#[test]
fn a_reset_of_the_driver_closes_all_connections() {
    let mut guest = Guest::new();
    let (_, mut client) = guest.dial();
    let (key, mut service) = guest.connect(4);
    let silent = guest.client();
    guest.send_data(key, b"unread");
    guest.pump();
    guest.start();
    assert!(at_end(&mut client));
    let mut rest = String::new();
    service.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "unread");
    assert!(at_end(&mut { silent }));
    guest.pump();
    assert!(
        guest.strays.is_empty(),
        "the new driver hears nothing of the old connections"
    );
    assert!(guest.take_event().is_none());
    guest.dial();
}

#[test]
fn the_end_of_the_machine_closes_all_sockets() {
    let mut guest = Guest::new();
    let (_, mut client) = guest.dial();
    let (_, mut service) = guest.connect(4);
    let mut silent = guest.client();
    guest.events.settle();
    drop(guest);
    assert!(at_end(&mut client));
    assert!(at_end(&mut service));
    assert!(at_end(&mut silent));
}

#[test]
fn a_pause_in_the_middle_of_traffic_loses_nothing() {
    let mut guest = Guest::new();
    let (key, host) = guest.dial();
    let (up, down) = (pattern(1, 2 << 20), pattern(2, 2 << 20));
    let (mut reader, mut writer) = (host.try_clone().unwrap(), host);
    let expected = up.clone();
    let writing = std::thread::spawn({
        let down = down.clone();
        move || writer.write_all(&down).unwrap()
    });
    let reading = std::thread::spawn(move || {
        let mut all = vec![0; expected.len()];
        reader.read_exact(&mut all).unwrap();
        assert!(all == expected);
    });
    let (mut sent, mut taken) = (0, Vec::new());
    let mut round = 0_u32;
    guest.run_until(|guest| {
        round += 1;
        if round.is_multiple_of(7) {
            guest.machine.transport.pause().unwrap();
            // Nothing may happen now, and what happens on the other side must not be missed.
            guest.machine.transport.resume();
        }
        sent += guest.send_data(key, &up[sent..]);
        taken.extend(guest.take_data(key, 50_000));
        sent == up.len() && taken.len() == down.len()
    });
    assert!(taken == down);
    writing.join().unwrap();
    reading.join().unwrap();
}

#[test]
fn a_pause_does_not_eat_the_time_of_a_request() {
    let mut guest = Guest::unstarted(Limits {
        answer: Duration::from_millis(300),
        ..Limits::default()
    });
    guest.refill = false;
    guest.start();
    let mut client = guest.asking();
    guest.events.settle();
    guest.events.settle();
    guest.machine.transport.pause().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    guest.machine.transport.resume();
    guest.refill = true;
    guest.offer(4);
    guest.pump();
    assert!(answer(&mut client).is_some());
}

#[test]
fn a_guest_that_is_restored_in_the_middle_of_traffic_starts_anew() {
    let mut guest = Guest::new();
    let (key, mut client) = guest.dial();
    let (other, mut service) = guest.connect(4);
    // Data under way in both directions, and held back in the device.
    client.set_nonblocking(true).unwrap();
    while client.write(&[7; 4096]).is_ok() {}
    client.set_nonblocking(false).unwrap();
    let data = pattern(3, 1 << 20);
    let mut sent = 0;
    for _ in 0..4 {
        sent += guest.send_data(other, &data[sent..]);
        guest.pump();
    }
    guest.take_data(key, 100_000);
    let mut guest = guest.moved();
    let mut seen = vec![0; 0];
    service.read_to_end(&mut seen).unwrap();
    assert!(seen == data[..seen.len()], "what the process still had is in order");
    drop((client, service));

    // A client comes at once; the guest has not noticed yet that its old connections are gone.
    let mut early = guest.asking();
    guest.pump();
    assert!(!wait_readable(&early, Duration::from_millis(20)));
    assert_eq!(guest.take_event(), Some(0));
    guest.sockets.clear();
    guest.pump();
    assert!(!wait_readable(&early, Duration::from_millis(20)));
    guest.offer_event_buffer();
    guest.pump();
    let port = answer(&mut early).unwrap();
    assert_ne!((port, AGENT), key, "the port is not used again");
    early.write_all(b"hello").unwrap();
    guest.pump();
    assert_eq!(guest.take_data((port, AGENT), 10), b"hello");
    assert!(guest.take_event().is_none(), "the news came once");

    // Packets for a connection of the former life have no place any more.
    guest.strays.clear();
    guest.send_raw(&Guest::header(key, op::RW), &[]);
    guest.pump();
    assert_eq!(guest.strays.len(), 1);
    assert_eq!(guest.strays[0].op, op::RST);
}

#[test]
fn the_news_waits_for_a_buffer_and_survives_a_second_save() {
    let mut guest = Guest::unstarted(Limits::default());
    guest.events_offered = 0;
    guest.start();
    let mut guest = guest.moved();
    guest.pump();
    assert!(guest.take_event().is_none());
    guest.machine.transport.pause().unwrap();
    guest.machine.transport.resume();
    let mut guest = guest.moved();
    guest.offer_event_buffer();
    guest.pump();
    assert_eq!(guest.take_event(), Some(0));
}

#[test]
fn a_guest_that_never_notices_is_served_after_a_while() {
    let guest = Guest::with_limits(short_limits());
    let mut guest = guest.moved_with(short_limits());
    let client = guest.asking();
    guest.run_until(|guest| !guest.sockets.is_empty());
    drop(client);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let fits = VsockState {
        version: VsockState::VERSION,
        next_host_port: 1 << 30,
    };
    let restore = |state| Guest::unstarted_device(|device| device.restore(state));
    assert!(restore(DeviceState::Vsock(fits.clone())).is_ok());
    let version = VsockState {
        version: 2,
        ..fits.clone()
    };
    let version = restore(DeviceState::Vsock(version));
    assert!(matches!(version, Err(StateError::Version { found: 2, supported: 1 })));
    for port in [0, 1024, u32::MAX] {
        let range = VsockState {
            next_host_port: port,
            ..fits.clone()
        };
        assert!(matches!(restore(DeviceState::Vsock(range)), Err(StateError::Range(_))));
    }
    let rng = DeviceState::Rng(crate::rng::RngState { version: 1 });
    assert!(matches!(restore(rng), Err(StateError::Configuration(_))));
}
