//! The device as a guest and as the host's programs see it.

mod guest;
mod hostile;
mod life;
mod traffic;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use self::guest::{AGENT, Guest, Key, SERVICE, answer, seqpacket_pair, short_limits};
use super::device::{Limits, Vsock, VsockError};
use super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use crate::testing::LoopThread;

/// Whether the stream has come to its end.
fn at_end(stream: &mut UnixStream) -> bool {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(count) => count == 0,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            true
        }
    }
}

#[test]
fn the_guest_sees_its_context_id() {
    let guest = Guest::unstarted(Limits::default());
    let mut config = [0xff; 8];
    guest.machine.transport.read(0x100, &mut config);
    assert_eq!(config, 3_u64.to_le_bytes());
    let mut tail = [0xff; 8];
    guest.machine.transport.read(0x104, &mut tail);
    assert_eq!(tail, [0; 8], "the upper half, and nothing behind it");
    guest.machine.transport.read(0x1f0, &mut tail);
    assert_eq!(tail, [0; 8]);
}

#[test]
fn a_client_reaches_the_guest_and_both_talk() {
    let mut guest = Guest::new();
    let (key, mut client) = guest.dial();
    client.write_all(b"question").unwrap();
    guest.pump();
    assert_eq!(guest.take_data(key, 100), b"question");
    assert_eq!(guest.send_data(key, b"answer"), 6);
    guest.pump();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn data_behind_the_greeting_is_not_lost() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client
        .write_all(format!("CONNECT {AGENT}\nimpatient").as_bytes())
        .unwrap();
    guest.pump();
    let port = answer(&mut client).unwrap();
    assert_eq!(guest.take_data((port, AGENT), 100), b"impatient");
}

#[test]
fn each_client_has_a_port_of_its_own() {
    let mut guest = Guest::new();
    let (first, _first) = guest.dial();
    let (second, _second) = guest.dial();
    assert_ne!(first, second);
}

#[test]
fn a_client_whose_port_the_guest_refuses_is_closed() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    writeln!(client, "CONNECT {}", AGENT + 1).unwrap();
    guest.pump();
    assert_eq!(answer(&mut client), None);
}

#[test]
fn a_client_that_the_guest_does_not_answer_is_closed() {
    let mut guest = Guest::unstarted(short_limits());
    guest.refill = false;
    guest.start();
    guest.offer(1);
    let mut client = guest.asking();
    assert_eq!(answer(&mut client), None);
    // The guest answers too late and is told so.
    guest.offer(1);
    guest.pump();
    guest.sockets.clear();
    guest.offer(2);
    guest.pump();
    assert!(
        guest.strays.iter().any(|header| header.op == op::RST),
        "{:?}",
        guest.strays
    );
}

#[test]
fn a_client_without_a_greeting_is_closed() {
    let guest = Guest::with_limits(short_limits());
    let mut silent = guest.client();
    let mut slow = guest.client();
    slow.write_all(b"CONN").unwrap();
    assert!(at_end(&mut silent));
    assert!(at_end(&mut slow));
    let mut wrong = guest.client();
    wrong.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert!(at_end(&mut wrong));
}

#[test]
fn a_client_that_gives_up_leaves_nothing_behind() {
    let mut guest = Guest::unstarted(Limits {
        connections: 1,
        ..Limits::default()
    });
    guest.refill = false;
    guest.start();
    for _ in 0..3 {
        drop(guest.asking());
        guest.events.settle();
        guest.events.settle();
    }
    guest.refill = true;
    guest.offer(16);
    guest.pump();
    guest.dial();
}

#[test]
fn clients_that_come_before_the_driver_are_served_when_it_is_ready() {
    let mut guest = Guest::unstarted(Limits::default());
    let mut early: Vec<UnixStream> = (0..20).map(|_| guest.asking()).collect();
    guest.start();
    guest.pump();
    for client in &mut early {
        assert!(answer(client).is_some());
    }
}

#[test]
fn the_guest_reaches_a_service_of_the_host() {
    let mut guest = Guest::new();
    let (key, mut service) = guest.connect(5000);
    assert_eq!(guest.send_data(key, b"ready"), 5);
    guest.pump();
    let mut message = [0; 5];
    service.read_exact(&mut message).unwrap();
    assert_eq!(&message, b"ready");
    service.write_all(b"fine").unwrap();
    guest.pump();
    assert_eq!(guest.take_data(key, 100), b"fine");
}

#[test]
fn the_guest_reaches_no_other_port() {
    let mut guest = Guest::new();
    let key = (SERVICE + 1, 5000);
    guest.request(key);
    guest.pump();
    assert!(guest.socket(key).reset && !guest.socket(key).connected);
}

#[test]
fn a_service_that_is_gone_is_a_refusal() {
    let mut guest = Guest::new();
    guest.acceptor = seqpacket_pair().0;
    let key = (SERVICE, 5000);
    guest.request(key);
    guest.pump();
    assert!(guest.socket(key).reset);
}

#[test]
fn a_service_that_does_not_accept_does_not_hold_up_the_guest() {
    let mut guest = Guest::new();
    for guest_port in 0..900 {
        guest.request((SERVICE, guest_port));
        if guest_port % 32 == 0 {
            guest.pump();
        }
    }
    guest.pump();
    let refused = guest.sockets.values().filter(|socket| socket.reset).count();
    let connected = guest.sockets.values().filter(|socket| socket.connected).count();
    assert_eq!(refused + connected, 900);
    assert!(connected > 0 && refused > 0, "{connected} connected, {refused} refused");
}

#[test]
fn connections_beyond_the_limit_are_refused_until_one_ends() {
    let mut guest = Guest::with_limits(Limits {
        connections: 3,
        ..Limits::default()
    });
    let (_, service) = guest.connect(1);
    let (_, _second) = guest.connect(2);
    let (key, _client) = guest.dial();
    guest.request((SERVICE, 4));
    let mut refused = guest.asking();
    guest.pump();
    assert!(guest.socket((SERVICE, 4)).reset);
    assert!(at_end(&mut refused));
    guest.close((SERVICE, 1));
    guest.pump();
    drop(service);
    guest.dial();
    assert!(!guest.socket(key).reset);
}

#[test]
fn the_host_ends_its_direction_and_the_guest_goes_on() {
    let mut guest = Guest::new();
    for guest_first in [false, true] {
        let (key, mut host) = if guest_first { guest.connect(9) } else { guest.dial() };
        host.write_all(b"last words").unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        guest.pump();
        assert_eq!(guest.take_data(key, 100), b"last words");
        assert_eq!(guest.socket(key).host_ended, SHUTDOWN_SEND);
        assert_eq!(guest.send_data(key, b"still here"), 10);
        guest.close(key);
        guest.pump();
        let mut rest = String::new();
        host.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "still here");
        assert!(guest.socket(key).reset, "the end is confirmed");
    }
}

#[test]
fn the_guest_ends_its_direction_and_the_host_goes_on() {
    let mut guest = Guest::new();
    let (key, mut host) = guest.dial();
    guest.send_data(key, b"last words");
    guest.shutdown(key, SHUTDOWN_SEND);
    guest.pump();
    let mut rest = String::new();
    host.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "last words");
    host.write_all(b"still here").unwrap();
    guest.pump();
    assert_eq!(guest.take_data(key, 100), b"still here");
    drop(host);
    guest.pump();
    assert_eq!(guest.socket(key).host_ended, SHUTDOWN_BOTH);
    assert!(!guest.socket(key).reset);
    guest.close(key);
    guest.pump();
    assert!(guest.socket(key).reset);
}

#[test]
fn a_guest_that_receives_no_more_stops_the_host() {
    let mut guest = Guest::new();
    let (key, mut host) = guest.dial();
    guest.shutdown(key, SHUTDOWN_RECEIVE);
    guest.pump();
    let error = host.write_all(b"unheard").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(guest.send_data(key, b"but speaks"), 10);
    guest.pump();
    let mut heard = [0; 10];
    host.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"but speaks");
}

#[test]
fn a_host_that_receives_no_more_stops_the_guest() {
    let mut guest = Guest::new();
    let (key, mut host) = guest.dial();
    host.shutdown(std::net::Shutdown::Read).unwrap();
    for _ in 0..3 {
        guest.send_data(key, &[7; 100_000]);
        guest.pump();
    }
    assert_eq!(guest.socket(key).host_ended, SHUTDOWN_RECEIVE);
    host.write_all(b"but speaks").unwrap();
    guest.pump();
    assert_eq!(guest.take_data(key, 100), b"but speaks");
}

#[test]
fn a_guest_that_does_not_confirm_the_end_is_reset() {
    let mut guest = Guest::with_limits(short_limits());
    let (key, host) = guest.dial();
    drop(host);
    guest.run_until(|guest| guest.socket(key).reset);
    assert_eq!(guest.socket(key).host_ended, SHUTDOWN_BOTH);
}

#[test]
fn an_idle_device_does_not_wake_the_loop() {
    let mut guest = Guest::unstarted(Limits::default());
    guest.refill = false;
    guest.start();
    guest.offer(40);
    let mut hosts: Vec<(Key, UnixStream)> = (0..10).map(|_| guest.dial()).collect();
    guest.pump();
    // More than the guest has buffers for: every stream is held up.
    for (_, host) in &mut hosts {
        host.set_nonblocking(true).unwrap();
        while host.write(&[1; 4096]).is_ok() {}
    }
    guest.pump();
    let before = guest.events.rounds();
    std::thread::sleep(Duration::from_millis(50));
    // The last round may not have been counted before.
    assert!(guest.events.rounds() - before <= 1);
}

#[test]
fn wrong_descriptors_are_told_apart() {
    let events = LoopThread::new();
    let directory = tempfile::tempdir().unwrap();
    let listener = || {
        let path = directory.path().join(format!("{:?}", Instant::now()));
        UnixListener::bind(path).unwrap().into()
    };
    let build = |cid, listener, ports| Vsock::new(cid, listener, ports, events.handle()).err();
    assert!(build(3, listener(), vec![]).is_none());
    assert!(matches!(build(2, listener(), vec![]), Some(VsockError::Cid(2))));
    let stream = UnixStream::pair().unwrap().0;
    assert!(matches!(build(3, stream.into(), vec![]), Some(VsockError::Listener)));
    let stream = UnixStream::pair().unwrap().0;
    let wrong = build(3, listener(), vec![(7, stream.into())]);
    assert!(matches!(wrong, Some(VsockError::Acceptor(7))));
    let twice = vec![(7, seqpacket_pair().0), (7, seqpacket_pair().1)];
    assert!(matches!(build(3, listener(), twice), Some(VsockError::PortTwice(7))));
}
