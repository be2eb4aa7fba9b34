//! A guest that does not keep to the rules.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::super::packet::{Header, SHUTDOWN_SEND, op};
use super::at_end;
use super::guest::{AGENT, CID, EVENT, Guest, Key, RX, SERVICE, TX, answer, pattern};
use crate::testing::Buffer;
use crate::virtio::status;

#[test]
fn packets_that_belong_to_nothing_are_answered_with_a_reset() {
    let mut guest = Guest::new();
    let nowhere = (SERVICE, 60);
    let base = |op| Guest::header(nowhere, op);
    let foreign = 77;
    for header in [
        base(op::RESPONSE),
        base(op::SHUTDOWN),
        base(op::RW),
        base(op::CREDIT_UPDATE),
        base(op::CREDIT_REQUEST),
        base(0),
        base(8),
        base(u16::MAX),
        Header {
            dst_port: SERVICE + 1,
            ..base(op::REQUEST)
        },
        Header {
            len: 1,
            ..base(op::REQUEST)
        },
        Header {
            kind: 0,
            ..base(op::REQUEST)
        },
        Header {
            kind: 2,
            ..base(op::REQUEST)
        },
        Header {
            src_cid: foreign,
            ..base(op::REQUEST)
        },
        Header {
            src_cid: 1 << 40 | CID,
            ..base(op::REQUEST)
        },
        Header {
            dst_cid: foreign,
            ..base(op::REQUEST)
        },
        Header {
            dst_cid: CID,
            ..base(op::REQUEST)
        },
    ] {
        // The device answers to whatever address the packet claims to come from; the driver here takes only its own.
        let expected = header.reset_reply();
        guest.refill = true;
        guest.accept_foreign = true;
        guest.send_raw(&header, &[]);
        guest.pump();
        assert_eq!(guest.strays.pop(), Some(expected), "{header:?}");
        assert!(guest.strays.is_empty(), "one answer");
    }
    guest.send_raw(&base(op::RST), &[]);
    guest.pump();
    assert!(guest.strays.is_empty(), "a reset is never answered");
}

/// A change of a right header, with how many bytes of data follow it.
type Lie = fn(&mut Header) -> usize;

#[test]
fn a_lie_ends_its_connection_and_no_other() {
    let lies: [(&str, Lie); 11] = [
        ("asks again", |header| set(header, op::REQUEST)),
        ("answers without a question", |header| set(header, op::RESPONSE)),
        ("no operation", |header| set(header, 0)),
        ("unknown operation", |header| set(header, 99)),
        ("less data than said", |header| {
            header.op = op::RW;
            header.len = 101;
            100
        }),
        ("much less data than said", |header| {
            header.op = op::RW;
            header.len = u32::MAX;
            10
        }),
        ("data in a credit update", |header| {
            header.op = op::CREDIT_UPDATE;
            header.len = 5;
            5
        }),
        ("data in a shutdown", |header| {
            header.op = op::SHUTDOWN;
            header.len = 5;
            5
        }),
        ("takes what was not sent", |header| {
            header.op = op::CREDIT_UPDATE;
            header.fwd_cnt = header.fwd_cnt.wrapping_add(1);
            0
        }),
        ("takes much more than was sent", |header| {
            header.op = op::CREDIT_UPDATE;
            header.fwd_cnt = header.fwd_cnt.wrapping_add(1 << 30);
            0
        }),
        ("takes before anything was sent, as data", |header| {
            header.op = op::RW;
            header.len = 1;
            header.fwd_cnt = 7;
            1
        }),
    ];
    for (name, lie) in lies {
        for from_guest in [false, true] {
            let mut guest = Guest::new();
            let (bystander, mut other) = guest.dial();
            let (key, mut host) = if from_guest { guest.connect(5) } else { guest.dial() };
            let mut header = guest.header_of(key, op::RW);
            let count = lie(&mut header);
            guest.send_raw(&header, &vec![1; count]);
            guest.pump();
            assert!(guest.socket(key).reset, "{name}");
            assert!(at_end(&mut host), "{name}");
            other.write_all(b"alive").unwrap();
            guest.pump();
            assert_eq!(guest.take_data(bystander, 10), b"alive", "{name}");
        }
    }
}

fn set(header: &mut Header, op: u16) -> usize {
    header.op = op;
    0
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset_and_what_fitted_arrives() {
    let mut guest = Guest::new();
    let (key, mut host) = guest.dial();
    // The host does not read: first its socket fills up, then the window.
    let data = pattern(1, 4 << 20);
    let mut sent = 0;
    loop {
        guest.pump();
        let count = guest.send_data(key, &data[sent..]);
        sent += count;
        if count == 0 {
            break;
        }
    }
    assert!(sent < data.len());
    let header = Header {
        len: 1,
        ..guest.header_of(key, op::RW)
    };
    guest.send_raw(&header, &[0]);
    guest.pump();
    assert!(guest.socket(key).reset);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        host.read_to_end(&mut all).unwrap();
        all
    });
    assert!(reader.join().unwrap() == data[..sent]);
}

#[test]
fn data_behind_the_end_is_a_reset() {
    let mut guest = Guest::new();
    let (key, _host) = guest.dial();
    guest.shutdown(key, SHUTDOWN_SEND);
    guest.pump();
    assert!(!guest.socket(key).reset);
    guest.send_data(key, b"x");
    guest.pump();
    assert!(guest.socket(key).reset);
}

#[test]
fn an_answer_before_the_question_is_a_reset() {
    let mut guest = Guest::unstarted(super::Limits::default());
    guest.refill = false;
    guest.start();
    let mut client = guest.asking();
    guest.events.settle();
    guest.events.settle();
    guest.send_raw(&Guest::header((1 << 30, AGENT), op::RESPONSE), &[]);
    assert_eq!(answer(&mut client), None);
}

#[test]
fn data_before_the_answer_is_a_reset() {
    let mut guest = Guest::unstarted(super::Limits::default());
    guest.refill = false;
    guest.start();
    let key = (SERVICE, 8);
    guest.request(key);
    let header = Header {
        len: 1,
        ..guest.header_of(key, op::RW)
    };
    guest.send_raw(&header, &[0]);
    guest.events.settle();
    guest.refill = true;
    guest.offer(8);
    guest.pump();
    assert!(guest.socket(key).reset && !guest.socket(key).connected);
    assert!(at_end(&mut guest.accepted()));
}

#[test]
fn packets_without_a_connection_wait_when_their_answers_pile_up() {
    let mut guest = Guest::unstarted(super::Limits::default());
    guest.refill = false;
    guest.start();
    let flood = 128 + 30;
    for port in 0..flood {
        guest.send_raw(&Guest::header((SERVICE, port), op::RW), &[]);
    }
    guest.events.settle();
    guest.poll();
    assert_eq!(
        guest.machine.rings[TX].free_descriptors(),
        98,
        "30 packets were not taken"
    );
    guest.refill = true;
    guest.offer(4);
    guest.pump();
    assert_eq!(guest.strays.len(), flood as usize, "all are answered in the end");
    assert_eq!(guest.machine.rings[TX].free_descriptors(), 128);
}

/// A way to break a queue.
type Breakage = fn(&mut Guest);

#[test]
fn a_queue_without_sense_needs_a_reset_and_then_all_is_well_again() {
    let breakages: [(&str, Breakage); 11] = [
        ("a packet shorter than a header", |guest| {
            submit(guest, TX, &[Buffer::Read(0x1000, 43)])
        }),
        ("a packet outside of memory", |guest| {
            submit(guest, TX, &[Buffer::Read(0x4000_0000, 100)])
        }),
        ("a packet that wraps around", |guest| {
            submit(guest, TX, &[Buffer::Read(u64::MAX - 10, 100)])
        }),
        ("a packet to be written", |guest| {
            submit(guest, TX, &[Buffer::Write(0x1000, 100)])
        }),
        ("a packet to be read and written", |guest| {
            submit(guest, TX, &[Buffer::Read(0x1000, 100), Buffer::Write(0x2000, 100)]);
        }),
        ("a head outside of the table", |guest| {
            guest.machine.make_available(TX, 4000);
            guest.machine.notify(TX);
        }),
        ("more available than there can be", |guest| {
            for _ in 0..200 {
                guest.machine.make_available(TX, 0);
            }
            guest.machine.notify(TX);
        }),
        ("an endless chain", |guest| {
            let table = guest.machine.rings[TX].descriptors;
            guest.machine.write_descriptor(table, 7, 0x1000, 10, 1, 7);
            guest.machine.make_available(TX, 7);
            guest.machine.notify(TX);
        }),
        ("a receive buffer without room for data", |guest| {
            submit(guest, RX, &[Buffer::Write(0x1000, 44)])
        }),
        ("a receive buffer to be read", |guest| {
            submit(guest, RX, &[Buffer::Read(0x1000, 4096)])
        }),
        ("a receive buffer outside of memory", |guest| {
            submit(guest, RX, &[Buffer::Write(0x4000_0000, 4096)])
        }),
    ];
    for (name, breakage) in breakages {
        let mut guest = Guest::unstarted(super::Limits::default());
        guest.refill = false;
        guest.start();
        guest.offer(1);
        let mut client = guest.asking();
        guest.pump();
        guest.refill = true;
        assert!(answer(&mut client).is_some());
        // What is in the receive queue matters when there is something to send.
        client.write_all(b"data").unwrap();
        guest.events.settle();
        breakage(&mut guest);
        guest.machine.wait_needs_reset();
        assert!(at_end(&mut client), "{name}");
        let waiting = guest.asking();
        guest.start();
        guest.pump();
        guest.dial();
        drop(waiting);
        assert_eq!(guest.machine.status() & status::NEEDS_RESET, 0, "{name}");
    }
}

fn submit(guest: &mut Guest, queue: usize, buffers: &[Buffer]) {
    guest.machine.submit(queue, buffers);
    guest.machine.notify(queue);
}

#[test]
fn an_event_buffer_that_is_too_short_needs_a_reset() {
    let mut guest = Guest::unstarted(super::Limits::default());
    guest.events_offered = 0;
    guest.start();
    let mut guest = guest.moved();
    let address = guest.machine.allocate(8);
    submit(&mut guest, EVENT, &[Buffer::Write(address, 3)]);
    guest.machine.wait_needs_reset();
}

/// Any header, most of them near to one that means something.
fn header() -> impl Strategy<Value = Header> {
    let number = prop_oneof![Just(0_u32), Just(1), Just(100), Just(u32::MAX), any::<u32>()];
    let cid = prop_oneof![8 => Just(CID), 8 => Just(2), 1 => any::<u64>()];
    let guest_port = prop_oneof![4 => Just(AGENT), 4 => 0..4_u32, 1 => any::<u32>()];
    let host_port = prop_oneof![4 => Just(SERVICE), 4 => 1 << 30..(1 << 30) + 4_u32, 1 => any::<u32>()];
    let cids = prop_oneof![8 => Just((CID, 2)), 1 => (cid.clone(), cid)];
    (
        (
            cids,
            host_port,
            guest_port,
            prop_oneof![8 => Just(1_u16), 1 => any::<u16>()],
        ),
        (
            prop_oneof![8 => 0..9_u16, 1 => any::<u16>()],
            number.clone(),
            number.clone(),
        ),
        (number.clone(), prop_oneof![4 => Just(0_u32), 1 => number]),
    )
        .prop_map(
            |(((src_cid, dst_cid), dst_port, src_port, kind), (op, len, flags), (buf_alloc, fwd_cnt))| Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                kind,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_packets_keep_the_device_from_serving_others(
        packets in proptest::collection::vec((header(), prop_oneof![Just(0_usize), Just(1), Just(100), 0..5000_usize]), 1..60),
    ) {
        let mut guest = Guest::new();
        guest.accept_foreign = true;
        let clients = [guest.dial(), guest.dial()];
        for (_, client) in &clients {
            (&*client).write_all(b"something to send").unwrap();
        }
        for (header, count) in packets {
            guest.send_raw(&header, &vec![0; count]);
            guest.pump();
        }
        drop(clients);
        guest.pump();
        prop_assert_eq!(guest.machine.status() & status::NEEDS_RESET, 0);
        guest.accept_foreign = false;
        guest.sockets.clear();
        // The lies may have used up the ports that the guest's sockets would have.
        let (key, mut client): (Key, _) = guest.dial();
        client.write_all(b"hello").unwrap();
        guest.pump();
        prop_assert_eq!(guest.take_data(key, 10), b"hello");
    }
}
