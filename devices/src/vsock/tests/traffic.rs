//! Much data, many connections, and every order of events on one.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::super::device::Limits;
use super::super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::guest::{Guest, Key, Layout, pattern, short_limits};
use crate::virtio::feature;

/// Moves data both ways at once between a guest that is slow and a host that is slow.
fn exchange(mut guest: Guest, from_guest: bool, length: usize) {
    let (key, host) = if from_guest { guest.connect(9) } else { guest.dial() };
    let (up, down) = (pattern(1, length), pattern(2, length));
    let (mut reader, mut writer) = (host.try_clone().unwrap(), host);
    let (to_write, to_read) = (down.clone(), up.clone());
    let writing = std::thread::spawn(move || {
        for (index, piece) in to_write.chunks(77_777).enumerate() {
            writer.write_all(piece).unwrap();
            if index % 8 == 0 {
                std::thread::yield_now();
            }
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut piece = vec![0; 30_011];
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => break,
                count => all.extend_from_slice(&piece[..count]),
            }
            std::thread::yield_now();
        }
        assert!(all == to_read, "the host got {} bytes of {}", all.len(), to_read.len());
    });
    let (mut sent, mut taken) = (0, Vec::new());
    guest.run_until(|guest| {
        if sent < up.len() {
            sent += guest.send_data(key, &up[sent..]);
            if sent == up.len() {
                guest.shutdown(key, SHUTDOWN_SEND);
            }
        }
        let count = 1 + taken.len() % 60_000;
        taken.extend(guest.take_data(key, count));
        sent == up.len() && taken.len() == down.len() && guest.socket(key).host_ended == SHUTDOWN_BOTH
    });
    assert!(taken == down);
    writing.join().unwrap();
    reading.join().unwrap();
    assert!(!guest.socket(key).reset);
}

#[test]
fn megabytes_go_both_ways_at_once() {
    exchange(Guest::new(), false, 6 << 20);
}

#[test]
fn megabytes_go_both_ways_in_many_small_pieces() {
    for layout in [Layout::Pieces, Layout::Indirect] {
        let mut guest = Guest::unstarted(Limits::default());
        guest.layout = layout;
        guest.buffer_size = 1024;
        guest.refill = false;
        guest.start();
        guest.refill = true;
        guest.offer(30);
        exchange(guest, true, 2 << 20);
    }
}

#[test]
fn megabytes_go_both_ways_without_event_indices() {
    let mut guest = Guest::unstarted(Limits::default());
    let features = guest.machine.offered() & !feature::EVENT_IDX;
    guest.start_with(features);
    exchange(guest, true, 2 << 20);
}

#[test]
fn a_guest_with_one_buffer_still_gets_everything() {
    let mut guest = Guest::unstarted(Limits::default());
    guest.refill = false;
    guest.start();
    guest.refill = true;
    guest.offer(1);
    exchange(guest, false, 1 << 20);
}

#[test]
fn an_end_behind_data_that_is_held_back_arrives_behind_it() {
    let mut guest = Guest::new();
    let (key, mut host) = guest.dial();
    let data = pattern(8, 1 << 20);
    let mut sent = 0;
    for _ in 0..10 {
        sent += guest.send_data(key, &data[sent..]);
        guest.pump();
    }
    guest.shutdown(key, SHUTDOWN_SEND);
    guest.pump();
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert!(all == data[..sent]);
    host.write_all(b"thanks").unwrap();
    guest.pump();
    assert_eq!(guest.take_data(key, 10), b"thanks");
}

#[test]
fn the_end_is_confirmed_when_the_host_has_everything() {
    let mut guest = Guest::new();
    let (key, mut host) = guest.dial();
    let data = pattern(8, 1 << 20);
    let mut sent = 0;
    for _ in 0..10 {
        sent += guest.send_data(key, &data[sent..]);
        guest.pump();
    }
    guest.close(key);
    guest.pump();
    assert!(!guest.socket(key).reset);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert!(all == data[..sent]);
    guest.pump();
    assert!(guest.socket(key).reset);
}

#[test]
fn a_connection_of_which_nothing_is_left_ends_by_itself() {
    let mut guest = Guest::with_limits(short_limits());
    let (key, host) = guest.dial();
    guest.shutdown(key, SHUTDOWN_RECEIVE);
    guest.pump();
    drop(host);
    guest.run_until(|guest| guest.socket(key).reset);
}

#[test]
fn the_guest_is_asked_for_credit_once_each_time_it_runs_out() {
    let mut guest = Guest::new();
    let (key, mut host) = guest.dial();
    guest.socket(key).window = 1000;
    guest.send(key, op::CREDIT_UPDATE, 0, &[]);
    guest.pump();
    let data = pattern(9, 5000);
    host.write_all(&data).unwrap();
    let mut taken = Vec::new();
    for round in 1..=4 {
        guest.pump();
        assert_eq!(guest.socket(key).inbox.len(), 1000);
        assert_eq!(guest.socket(key).asked, round);
        taken.extend(guest.take_data(key, 1000));
    }
    guest.pump();
    taken.extend(guest.take_data(key, 1000));
    assert!(taken == data);
}

/// A host's end that never blocks, and what it has to say and has heard.
struct Talker {
    key: Key,
    stream: UnixStream,
    says: Vec<u8>,
    said: usize,
    heard: Vec<u8>,
}

impl Talker {
    fn talk(&mut self) {
        if let Ok(count) = self.stream.write(&self.says[self.said..]) {
            self.said += count;
        }
        let mut piece = [0; 4096];
        while let Ok(count) = self.stream.read(&mut piece) {
            self.heard.extend_from_slice(&piece[..count]);
            if count == 0 {
                break;
            }
        }
    }
}

#[test]
fn hundreds_of_connections_echo_at_once() {
    let mut guest = Guest::new();
    let mut talkers: Vec<Talker> = (0..300)
        .map(|index| {
            let (key, stream) = if index % 2 == 0 {
                guest.dial()
            } else {
                guest.connect(10_000 + index)
            };
            stream.set_nonblocking(true).unwrap();
            let says = pattern(u64::from(index), 30_000 + index as usize);
            Talker {
                key,
                stream,
                says,
                said: 0,
                heard: Vec::new(),
            }
        })
        .collect();
    let mut echoes: Vec<Vec<u8>> = vec![Vec::new(); talkers.len()];
    let mut rounds = 0;
    while talkers.iter().any(|talker| talker.heard.len() < talker.says.len()) {
        rounds += 1;
        assert!(rounds < 1000, "the echo does not come to its end");
        for (talker, echo) in talkers.iter_mut().zip(&mut echoes) {
            talker.talk();
            echo.extend(guest.take_data(talker.key, usize::MAX));
            let sent = guest.send_data(talker.key, echo);
            echo.drain(..sent);
            guest.poll();
        }
        guest.pump();
    }
    for talker in &talkers {
        assert!(talker.heard == talker.says);
    }
    drop(talkers);
    guest.pump();
    assert!(guest.sockets.values().all(|socket| socket.host_ended == SHUTDOWN_BOTH));
}

#[test]
fn a_busy_connection_does_not_hold_up_a_quiet_one() {
    let mut guest = Guest::unstarted(Limits::default());
    guest.refill = false;
    guest.start();
    guest.offer(2);
    let (busy, mut host) = guest.dial();
    let (quiet, mut other) = guest.dial();
    host.set_nonblocking(true).unwrap();
    while host.write(&[1; 4096]).is_ok() {}
    guest.events.settle();
    other.write_all(b"me too").unwrap();
    // As many as the busy one may get in one turn, and one more.
    guest.offer(17);
    guest.pump();
    assert_eq!(guest.take_data(quiet, 10), b"me too");
    assert!(guest.socket(busy).inbox.len() > 4000);
}

#[test]
fn what_the_guest_sent_before_its_reset_arrives() {
    let mut guest = Guest::new();
    for from_guest in [false, true] {
        let (key, mut host) = if from_guest { guest.connect(3) } else { guest.dial() };
        let data = pattern(5, 2 << 20);
        let mut sent = 0;
        for _ in 0..20 {
            sent += guest.send_data(key, &data[sent..]);
            guest.pump();
        }
        assert!(sent > 300_000, "more than the unix socket takes: {sent}");
        guest.send(key, op::RST, 0, &[]);
        guest.sockets.remove(&key);
        guest.pump();
        let mut all = Vec::new();
        host.read_to_end(&mut all).unwrap();
        assert!(all == data[..sent]);
        guest.pump();
        assert!(guest.strays.is_empty());
    }
}

#[test]
fn a_host_that_vanishes_in_the_middle_ends_the_guests_stream() {
    let mut guest = Guest::new();
    let (key, mut host) = guest.dial();
    host.write_all(&[1; 10_000]).unwrap();
    let data = pattern(5, 1 << 20);
    let mut sent = guest.send_data(key, &data);
    guest.pump();
    drop(host);
    guest.pump();
    assert_eq!(guest.take_data(key, 20_000), [1; 10_000]);
    assert_eq!(guest.socket(key).host_ended, SHUTDOWN_BOTH);
    // What is still under way is swallowed.
    sent += guest.send_data(key, &data[sent..]);
    guest.pump();
    assert!(sent > 0 && !guest.socket(key).reset);
    guest.close(key);
    guest.pump();
    assert!(guest.socket(key).reset);
}

/// Something that happens to a connection.
#[derive(Clone, Copy, Debug)]
enum Step {
    HostWrites(usize),
    HostReads(usize),
    HostEndsWriting,
    HostEndsReading,
    HostCloses,
    GuestSends(usize),
    GuestTakes(usize),
    GuestResizes(u32),
    GuestEnds(u32),
    GuestResets,
    GuestOffers(usize),
    Pause,
}

fn step() -> impl Strategy<Value = Step> {
    let amount = prop_oneof![1..100_usize, 1..10_000_usize, 1..400_000_usize];
    prop_oneof![
        8 => amount.clone().prop_map(Step::HostWrites),
        8 => amount.clone().prop_map(Step::HostReads),
        1 => Just(Step::HostEndsWriting),
        1 => Just(Step::HostEndsReading),
        1 => Just(Step::HostCloses),
        8 => amount.clone().prop_map(Step::GuestSends),
        8 => amount.prop_map(Step::GuestTakes),
        2 => prop_oneof![Just(0), 1..300_000_u32].prop_map(Step::GuestResizes),
        2 => (1..=3_u32).prop_map(Step::GuestEnds),
        1 => Just(Step::GuestResets),
        4 => (1..20_usize).prop_map(Step::GuestOffers),
        1 => Just(Step::Pause),
    ]
}

/// What a connection should do: two streams of bytes, each with an end.
struct Model {
    guest: Guest,
    key: Key,
    host: Option<UnixStream>,
    host_wrote: Vec<u8>,
    guest_got: Vec<u8>,
    guest_sent: Vec<u8>,
    host_got: Vec<u8>,
    host_ended: u32,
    guest_ended: u32,
    guest_reset: bool,
    host_at_end: bool,
    seed: u64,
}

impl Model {
    fn new(from_guest: bool) -> Self {
        let mut guest = Guest::unstarted(Limits::default());
        guest.refill = false;
        guest.start();
        guest.offer(4);
        let (key, host) = if from_guest { guest.connect(6) } else { guest.dial() };
        host.set_nonblocking(true).unwrap();
        Self {
            guest,
            key,
            host: Some(host),
            host_wrote: Vec::new(),
            guest_got: Vec::new(),
            guest_sent: Vec::new(),
            host_got: Vec::new(),
            host_ended: 0,
            guest_ended: 0,
            guest_reset: false,
            host_at_end: false,
            seed: 0,
        }
    }

    fn data(&mut self, length: usize) -> Vec<u8> {
        self.seed += 1;
        pattern(self.seed, length)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::HostWrites(length) => self.host_writes(length),
            Step::HostReads(length) => self.host_reads(length),
            Step::HostEndsWriting => self.host_ends(Shutdown::Write, SHUTDOWN_SEND),
            Step::HostEndsReading => self.host_ends(Shutdown::Read, SHUTDOWN_RECEIVE),
            Step::HostCloses => {
                self.host = None;
                self.host_ended = SHUTDOWN_BOTH;
            }
            Step::GuestSends(length) => self.guest_sends(length),
            Step::GuestTakes(length) => self.guest_takes(length),
            Step::GuestResizes(window) => self.guest_resizes(window),
            Step::GuestEnds(flags) => self.guest_ends(flags),
            Step::GuestResets => {
                if !self.guest.socket(self.key).reset {
                    self.guest.send(self.key, op::RST, 0, &[]);
                    self.guest.socket(self.key).reset = true;
                    self.guest_reset = true;
                }
            }
            Step::GuestOffers(count) => {
                let room = self.guest.machine.rings[0].free_descriptors();
                self.guest.offer(count.min(room).min(40));
            }
            Step::Pause => {
                self.guest.machine.transport.pause().unwrap();
                self.guest.machine.transport.resume();
            }
        }
        self.guest.pump();
        self.check();
    }

    fn host_writes(&mut self, length: usize) {
        let data = self.data(length);
        if let Some(host) = &mut self.host
            && self.host_ended & SHUTDOWN_SEND == 0
        {
            match host.write(&data) {
                Ok(count) => self.host_wrote.extend_from_slice(&data[..count]),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    assert!(
                        self.guest_ended & SHUTDOWN_RECEIVE != 0 || self.guest_reset,
                        "the host is cut off"
                    );
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }

    fn host_reads(&mut self, length: usize) {
        let Some(host) = &mut self.host else { return };
        if self.host_ended & SHUTDOWN_RECEIVE != 0 {
            return;
        }
        let mut data = vec![0; length];
        match host.read(&mut data) {
            Ok(0) => self.host_at_end = true,
            Ok(count) => {
                assert!(!self.host_at_end);
                self.host_got.extend_from_slice(&data[..count]);
            }
            // The device closed without having read everything, as it may when the guest reads no more.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.host_at_end = true,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn host_ends(&mut self, how: Shutdown, flag: u32) {
        if let Some(host) = &self.host {
            host.shutdown(how).unwrap();
            self.host_ended |= flag;
        }
    }

    fn guest_sends(&mut self, length: usize) {
        let data = self.data(length);
        let socket = self.guest.socket(self.key);
        if socket.reset || self.guest_ended & SHUTDOWN_SEND != 0 || socket.host_ended & SHUTDOWN_RECEIVE != 0 {
            return;
        }
        let count = self.guest.send_data(self.key, &data);
        self.guest_sent.extend_from_slice(&data[..count]);
    }

    fn guest_takes(&mut self, length: usize) {
        let data = self.guest.take_data(self.key, length);
        self.guest_got.extend(data);
    }

    fn guest_resizes(&mut self, window: u32) {
        let socket = self.guest.socket(self.key);
        // What was promised stays promised.
        socket.window = socket.window.max(window);
        if !socket.reset {
            self.guest.send(self.key, op::CREDIT_UPDATE, 0, &[]);
        }
    }

    fn guest_ends(&mut self, flags: u32) {
        if !self.guest.socket(self.key).reset {
            self.guest.shutdown(self.key, flags);
            self.guest_ended |= flags;
        }
    }

    /// What is true at any time.
    fn check(&mut self) {
        let socket = self.guest.socket(self.key);
        let mut arrived = self.guest_got.clone();
        arrived.extend_from_slice(&socket.inbox);
        assert!(
            self.host_wrote.starts_with(&arrived),
            "the guest gets what the host wrote"
        );
        assert!(
            self.guest_sent.starts_with(&self.host_got),
            "the host gets what the guest sent"
        );
        let over = self.guest_reset || self.guest_ended == SHUTDOWN_BOTH;
        assert!(!socket.reset || over, "a reset that the guest did not ask for");
        if socket.host_ended & SHUTDOWN_SEND != 0 && self.guest_ended & SHUTDOWN_RECEIVE == 0 {
            assert!(self.host_ended & SHUTDOWN_SEND != 0);
            assert_eq!(
                arrived.len(),
                self.host_wrote.len(),
                "the end comes behind the last byte"
            );
        }
        if self.host_at_end {
            let ended = over || self.guest_ended & SHUTDOWN_SEND != 0;
            assert!(ended, "an end that the guest did not ask for");
            assert_eq!(
                self.host_got.len(),
                self.guest_sent.len(),
                "the end comes behind the last byte"
            );
        }
    }

    /// Lets both sides take all they can, and checks that it is all there is.
    fn finish(mut self) {
        self.guest.refill = true;
        for _ in 0..30 {
            let room = self.guest.machine.rings[0].free_descriptors();
            self.guest.offer(room.min(20));
            self.guest.pump();
            self.step(Step::GuestTakes(usize::MAX));
            for _ in 0..3 {
                self.step(Step::HostReads(1 << 20));
            }
        }
        let over = self.guest_reset || self.guest_ended == SHUTDOWN_BOTH;
        if !over && self.guest_ended & SHUTDOWN_RECEIVE == 0 {
            assert_eq!(self.guest_got.len(), self.host_wrote.len(), "all arrives at the guest");
            let told = self.guest.socket(self.key).host_ended & SHUTDOWN_SEND != 0;
            assert_eq!(told, self.host_ended & SHUTDOWN_SEND != 0, "and so does the end");
        }
        if self.host_ended & SHUTDOWN_RECEIVE == 0 {
            assert_eq!(self.host_got.len(), self.guest_sent.len(), "all arrives at the host");
            let ended = over || self.guest_ended & SHUTDOWN_SEND != 0;
            assert_eq!(self.host_at_end, ended, "and so does the end");
        }
        if self.guest_ended == SHUTDOWN_BOTH {
            assert!(self.guest.socket(self.key).reset, "the end is confirmed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_connection_agrees_with_two_streams_of_bytes(
        from_guest in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut model = Model::new(from_guest);
        for step in steps {
            model.step(step);
        }
        model.finish();
    }
}
