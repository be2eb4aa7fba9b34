use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::testing::{LoopThread, PATIENCE, wait_readable};

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const LINE_STATUS: u64 = 5;

/// A serial port, its console in an event loop, and the guest's and the clients' ends.
struct Bench {
    port: Port,
    line: EventFd,
    path: PathBuf,
    _directory: TempDir,
    _events: LoopThread,
}

impl Bench {
    fn new(saved: Option<&SerialState>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let listener = UnixListener::bind(&path).unwrap();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let (port, console) = build(line.try_clone().unwrap(), listener, saved).unwrap();
        let events = LoopThread::new();
        events.handle().add(console).unwrap();
        Self {
            port,
            line,
            path,
            _directory: directory,
            _events: events,
        }
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn say(&mut self, text: &[u8]) {
        for byte in text {
            self.port.write(DATA, &[*byte]);
        }
    }

    fn register(&mut self, offset: u64) -> u8 {
        let mut data = [0];
        self.port.read(offset, &mut data);
        data[0]
    }

    /// What was typed, as an interrupt-driven guest reads it.
    fn hear(&mut self, length: usize) -> Vec<u8> {
        self.port.write(INTERRUPT_ENABLE, &[1]);
        let mut heard = Vec::new();
        while heard.len() < length {
            assert!(
                wait_readable(&self.line, PATIENCE),
                "no interrupt after {} bytes",
                heard.len()
            );
            let _ = self.line.read();
            while self.register(LINE_STATUS) & 1 != 0 {
                heard.push(self.register(DATA));
            }
        }
        heard
    }
}

fn receive(client: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    client.read_exact(&mut data).unwrap();
    data
}

/// Text in which no part is like another.
fn text(length: usize) -> Vec<u8> {
    (0_u32..)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_be_bytes())
        .take(length)
        .collect()
}

#[test]
fn sends_the_past_and_then_the_present_to_every_client() {
    let mut bench = Bench::new(None);
    bench.say(b"before ");
    let mut first = bench.connect();
    assert_eq!(receive(&mut first, 7), b"before ");
    bench.say(b"between ");
    assert_eq!(receive(&mut first, 8), b"between ");
    let mut second = bench.connect();
    assert_eq!(receive(&mut second, 15), b"before between ");
    bench.say(b"after");
    assert_eq!(receive(&mut first, 5), b"after");
    assert_eq!(receive(&mut second, 5), b"after");
}

#[test]
fn keeps_only_the_last_64_kib() {
    let mut bench = Bench::new(None);
    let all = text(100_000);
    bench.say(&all);
    let mut client = bench.connect();
    assert!(receive(&mut client, 64 << 10) == all[100_000 - (64 << 10)..]);
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn never_waits_for_a_client_that_does_not_read() {
    let mut bench = Bench::new(None);
    let mut slow = bench.connect();
    let mut quick = bench.connect();
    let all = text(3 << 20);
    for piece in all.chunks(1 << 10) {
        bench.say(piece);
        assert!(receive(&mut quick, piece.len()) == piece);
    }
    // The slow one finds the beginning, misses text, and is there for the end.
    slow.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = Vec::new();
    let mut piece = [0; 4096];
    while !got.ends_with(&all[all.len() - (32 << 10)..]) {
        let count = slow.read(&mut piece).unwrap();
        assert_ne!(count, 0);
        got.extend_from_slice(&piece[..count]);
    }
    assert!(got.len() < all.len() / 2);
    // How much its socket held depends on how finely it was cut.
    assert!(got[..256] == all[..256]);
    bench.say(b"goes on");
    assert_eq!(receive(&mut slow, 7), b"goes on");
}

#[test]
fn types_what_clients_write_no_faster_than_the_guest_reads() {
    let mut bench = Bench::new(None);
    let all = text(20_000);
    let mut client = bench.connect();
    let mut writer = client.try_clone().unwrap();
    let sent = all.clone();
    let thread = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    assert!(bench.hear(all.len()) == all);
    thread.join().unwrap();
    // The line is still good in both directions.
    bench.say(b"ok");
    assert_eq!(receive(&mut client, 2), b"ok");
    client.write_all(b"q").unwrap();
    assert_eq!(bench.hear(1), b"q");
}

#[test]
fn types_what_a_client_wrote_before_it_left() {
    let mut bench = Bench::new(None);
    for round in 0..20 {
        let mut client = bench.connect();
        client.write_all(b"reboot\n").unwrap();
        drop(client);
        assert_eq!(bench.hear(7), b"reboot\n", "{round}");
    }
}

#[test]
fn lets_go_of_clients_that_left_and_turns_away_too_many() {
    let mut bench = Bench::new(None);
    bench.say(b"x");
    let mut clients: Vec<UnixStream> = (0..console::MAX_CLIENTS).map(|_| bench.connect()).collect();
    for client in &mut clients {
        assert_eq!(receive(client, 1), b"x");
    }
    assert_eq!(bench.connect().read(&mut [0]).unwrap(), 0);
    // Those that will type nothing more still follow.
    for client in clients.iter().step_by(2) {
        client.shutdown(std::net::Shutdown::Write).unwrap();
    }
    bench.say(b"y");
    for client in &mut clients {
        assert_eq!(receive(client, 1), b"y");
    }
    drop(clients);
    // The loop may see a new client before it sees that the others left, but not for long.
    let deadline = std::time::Instant::now() + PATIENCE;
    while bench.connect().read(&mut [0]).unwrap() == 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "clients that left keep their places"
        );
    }
}

#[test]
fn goes_on_from_a_saved_state() {
    let mut bench = Bench::new(None);
    bench.port.write(INTERRUPT_ENABLE, &[1]);
    bench.port.write(7, &[0x5a]);
    let mut client = bench.connect();
    client.write_all(b"abc").unwrap();
    assert!(wait_readable(&bench.line, PATIENCE));
    assert_eq!(bench.register(DATA), b'a');
    let state = serde_json::to_string(&bench.port.save()).unwrap();
    let state: SerialState = serde_json::from_str(&state).unwrap();
    let mut bench = Bench::new(Some(&state));
    assert_eq!(bench.register(7), 0x5a);
    assert_eq!(bench.register(INTERRUPT_ENABLE), 1);
    assert_eq!(bench.register(DATA), b'b');
    assert_eq!(bench.register(LINE_STATUS) & 1, 1);
    assert_eq!(bench.register(DATA), b'c');
    assert_eq!(bench.register(LINE_STATUS) & 1, 0);
}

#[test]
fn refuses_states_that_are_not_its_own() {
    let bench = Bench::new(None);
    let good = bench.port.save();
    for (state, version) in [
        (
            SerialState {
                version: 9,
                ..good.clone()
            },
            true,
        ),
        (
            SerialState {
                input: vec![0; 65],
                ..good
            },
            false,
        ),
    ] {
        let listener = UnixListener::bind(bench.path.with_extension(version.to_string())).unwrap();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let error = build(line, listener, Some(&state)).err().unwrap();
        assert!(if version {
            matches!(error, SerialError::Version(9))
        } else {
            matches!(error, SerialError::Input)
        });
    }
}

#[test]
fn ignores_accesses_that_are_not_a_byte_wide() {
    let mut bench = Bench::new(None);
    bench.port.write(7, &[1, 2]);
    bench.port.write(0x107, &[9]);
    bench.port.write(7, &[]);
    assert_eq!(bench.register(7), 0);
    let mut wide = [0; 2];
    bench.port.read(7, &mut wide);
    assert_eq!(wide, [0xff; 2]);
}
