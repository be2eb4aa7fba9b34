//! The bare-metal guest attacks the real `husk-vmm` through its devices, its ports and the interrupt controllers.
//!
//! After each attack the machine still runs or has ended with a report, a reset mends the device that was attacked, the
//! owner is still answered, memory and descriptors have stayed within bounds, and a second machine beside it has done its
//! work without a fault. `HUSK_ATTACK_ROUNDS` multiplies the attacks' length, `HUSK_ATTACK_SEED` chooses others.

#![allow(clippy::unwrap_used)]

mod bare;
mod harness;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bare::{Guest, describe, kernel};
use harness::{Owned, Setup, file, kvm_is_there};
use husk_test_guest::checksum;
use husk_test_guest::order::pattern;
use husk_test_guest::report::{Outcome, Page, state};
use husk_vmm_config::{End, Request, Response, State};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, Shutdown, recvmsg, shutdown};

/// An attack may take this long, times the rounds; an owner's request, once.
const PATIENCE: Duration = Duration::from_secs(300);
const ANSWER: Duration = Duration::from_secs(30);
/// A guest whose pulse has not changed for so long stands still.
const STILL: Duration = Duration::from_secs(5);
/// What a machine monitor may need besides the guest's memory: in KiB, and in descriptors beside those at the start.
const PRIVATE: u64 = 16 << 10;
const DESCRIPTORS: usize = 64;
/// The same where the guest opens all the connections that it can: 1,024, with their windows.
const PRIVATE_WITH_STREAMS: u64 = 80 << 10;
const DESCRIPTORS_WITH_STREAMS: usize = 1100;

/// What a guest can make its machine monitor say, in bytes: what the log takes, its last line included.
const LOG: u64 = (1 << 20) + 100;

/// Few enough for the listener's queue: nobody accepts before the guest's driver is ready.
const SILENT_CLIENTS: usize = 100;

/// One at a time: what is measured is theirs alone, and two cores are enough.
static TURN: Mutex<()> = Mutex::new(());

fn from_environment(name: &str) -> u64 {
    std::env::var(name).map_or(1, |text| text.parse().expect(name))
}

/// A megabyte that has no two equal words.
fn content() -> Vec<u8> {
    (0..1u64 << 17)
        .flat_map(|word| pattern(5, 8 * word).to_le_bytes())
        .collect()
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
struct Holdings {
    /// Memory of its own, in KiB; the guest's is shared memory.
    private: u64,
    descriptors: usize,
}

impl Holdings {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let private = line.unwrap_or("0 kB").trim().trim_end_matches(" kB").parse().unwrap();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        Self { private, descriptors }
    }

    fn grow(&mut self, other: Self) {
        self.private = self.private.max(other.private);
        self.descriptors = self.descriptors.max(other.descriptors);
    }
}

/// A machine that does honest work beside the attack.
fn neighbour(data: &[u8]) -> Guest {
    let setup = Setup::with_kernel(kernel()).disk("data", true, Some(file(data)));
    let guest = Guest::start(
        setup,
        "+blk-read qd=4 count=4096 +rng count=500 +blk-read qd=32 count=4096",
    );
    guest.go();
    guest
}

fn check_neighbour(guest: Guest, data: &[u8]) {
    let (page, report, _) = guest.finish();
    assert_eq!(report.end, End::Shutdown);
    // 16 times round the disk.
    let expected = checksum::bytes(0, data).wrapping_mul(16);
    assert_eq!([page.results[1].checksum, page.results[3].checksum], [expected; 2]);
}

/// Takes the guest's connections as its owner would, and keeps the last of them; ends with the machine.
fn take_connections(acceptor: &OwnedFd) {
    let mut kept = VecDeque::new();
    loop {
        let mut byte = [0];
        let mut parts = [std::io::IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let message = recvmsg::<()>(acceptor.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty());
        let Ok(message) = message else { return };
        if message.bytes == 0 {
            return;
        }
        for rights in message.cmsgs().unwrap() {
            let ControlMessageOwned::ScmRights(descriptors) = rights else {
                continue;
            };
            for fd in descriptors {
                // SAFETY: the descriptor was just received, and nobody else has it.
                let mut stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
                stream.set_nonblocking(true).unwrap();
                // The guest may not want it.
                let _ = stream.write_all(&[7; 10_000]);
                kept.push_back(stream);
            }
        }
        while kept.len() > 64 {
            kept.pop_front();
        }
    }
}

/// Clients of the host that the guest never answers.
fn silent_clients(machine: &Owned) -> Vec<UnixStream> {
    let mut clients = Vec::new();
    for _ in 0..SILENT_CLIENTS {
        let mut client = UnixStream::connect(&machine.vsock_path).unwrap();
        // One in two does not even say what it wants.
        if clients.len() % 2 == 0 {
            // It may have been closed already, because there are too many.
            let _ = client.write_all(b"CONNECT 1024\n");
        }
        clients.push(client);
    }
    clients
}

/// Ends [`take_connections`], however a test ends.
struct Hangup<'a>(&'a OwnedFd);

impl Drop for Hangup<'_> {
    fn drop(&mut self) {
        shutdown(self.0.as_raw_fd(), Shutdown::Both).unwrap();
    }
}

/// What an attack is to be like.
struct Assault<'a> {
    orders: &'a str,
    vcpus: u32,
    memory_mib: u32,
    /// Whether it opens as many connections as it can.
    floods: bool,
    /// Whether the machine has a serial console.
    console: bool,
}

impl<'a> Assault<'a> {
    fn new(orders: &'a str) -> Self {
        Self {
            orders,
            vcpus: 1,
            memory_mib: 32,
            floods: false,
            console: false,
        }
    }

    /// Attacks, checks all that must hold afterwards, and gives what came of the attacks.
    fn run(self) -> Vec<Outcome> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let data = content();
        let honest = neighbour(&data);
        let mut setup = Setup::with_kernel(kernel()).disk("data", true, Some(file(&data))).disk(
            "scratch",
            false,
            Some(file(&vec![0; 1 << 20])),
        );
        setup.vcpus.count = self.vcpus;
        setup.memory_mib = self.memory_mib;
        setup.console = self.console;
        let log = file(b"");
        setup.log = Some(log.try_clone().unwrap());
        let mended = "+blk-read disk=0 count=256 +rng count=10";
        let guest = Guest::start(setup, &format!("{} {mended} +idle", self.orders));
        let start = Holdings::of(guest.machine.pid());
        guest.go();
        let witness = Witness {
            guest: &guest,
            log: &log,
        };
        let (page, most) = thread::scope(|scope| {
            let acceptor = guest.machine.accept.try_clone().unwrap();
            let _end = Hangup(&guest.machine.accept);
            scope.spawn(move || take_connections(&acceptor));
            let clients = if self.floods {
                silent_clients(&guest.machine)
            } else {
                Vec::new()
            };
            let seen = self.watch(&guest);
            drop(clients);
            answers(&guest.machine);
            assert_eq!(guest.machine.request(&Request::Stop), Response::Done);
            seen
        });
        eprintln!("{}: {:?}, at most {most:?}", self.orders, &page.results[1..6]);
        drop(witness);
        assert_eq!(page.state, state::DONE, "{}", describe(&page));
        let (private, descriptors) = match self.floods {
            true => (PRIVATE_WITH_STREAMS, DESCRIPTORS_WITH_STREAMS),
            false => (PRIVATE, DESCRIPTORS),
        };
        assert!(most.private <= private, "{most:?} after {start:?}");
        assert!(
            most.descriptors <= start.descriptors + descriptors,
            "{most:?} after {start:?}"
        );
        let done = usize::try_from(page.done).unwrap();
        assert_eq!(
            page.results[done - 2].checksum,
            checksum::bytes(0, &data),
            "the disk works again"
        );
        let (report, _) = guest.machine.end();
        assert_eq!(report.end, End::Stopped);
        assert!(log.metadata().unwrap().len() <= LOG);
        check_neighbour(honest, &data);
        page.results[1..done - 2].to_vec()
    }

    /// Follows the attack to its end, and has requests meanwhile; the page, and the most that the process held.
    fn watch(&self, guest: &Guest) -> (Page, Holdings) {
        let rounds = u32::try_from(from_environment("HUSK_ATTACK_ROUNDS")).unwrap();
        let (start, mut most) = (Instant::now(), Holdings::default());
        for turn in 0.. {
            let page = guest.page();
            if page.state != state::RUNNING && page.state != state::WAITING {
                return (page, most);
            }
            assert!(!guest.machine.has_ended(), "the machine ended: {}", describe(&page));
            assert!(start.elapsed() < PATIENCE * rounds, "{}", describe(&page));
            most.grow(Holdings::of(guest.machine.pid()));
            if turn % 16 == 0 {
                answers(&guest.machine);
            }
            thread::sleep(Duration::from_millis(20));
        }
        unreachable!("it returns or asserts")
    }
}

/// Tells what is known of a machine when a test fails.
struct Witness<'a> {
    guest: &'a Guest,
    log: &'a File,
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        eprintln!("the guest: {}", describe(&self.guest.page()));
        eprintln!("the machine's last words: {}", last_words(self.log));
    }
}

/// The end of a log.
fn last_words(log: &File) -> String {
    let mut tail = vec![0; 1000];
    let start = log.metadata().unwrap().len().saturating_sub(1000);
    let length = log.read_at(&mut tail, start).unwrap();
    String::from_utf8_lossy(&tail[..length]).into_owned()
}

/// The owner is answered, and the machine can be paused.
fn answers(machine: &Owned) {
    let start = Instant::now();
    let client = machine.control();
    assert_eq!(client.status().state, State::Running);
    assert_eq!(client.request(&Request::Pause), Response::Done);
    assert_eq!(client.request(&Request::Resume), Response::Done);
    assert!(start.elapsed() < ANSWER);
}

/// The order for each of the machine's devices: vsock, random numbers, the two disks.
fn on_each_device(name: &str, count: u64) -> String {
    let count = count * from_environment("HUSK_ATTACK_ROUNDS");
    let seed = from_environment("HUSK_ATTACK_SEED");
    let order = |device| format!("+{name} device={device} seed={} count={count}", seed + device);
    (0..4).map(order).collect::<Vec<_>>().join(" ")
}

fn attack_each_device(name: &str, count: u64) -> Vec<Outcome> {
    let outcomes = Assault::new(&on_each_device(name, count)).run();
    assert!(outcomes.iter().all(|outcome| outcome.operations >= count));
    outcomes
}

#[test]
fn registers_at_every_width_place_and_order() {
    if kvm_is_there() {
        attack_each_device("attack-registers", 5000);
    }
}

#[test]
fn queues_of_impossible_places_and_sizes() {
    if kvm_is_there() {
        let outcomes = attack_each_device("attack-queues", 150);
        assert!(
            outcomes.iter().all(|outcome| outcome.needs_reset > 0),
            "impossible queues are refused"
        );
    }
}

#[test]
fn chains_and_tables_without_sense() {
    if kvm_is_there() {
        let outcomes = attack_each_device("attack-chains", 80);
        assert!(
            outcomes.iter().all(|outcome| outcome.needs_reset > 0),
            "broken chains are told"
        );
        assert!(
            outcomes.iter().any(|outcome| outcome.completed > 0),
            "others are answered"
        );
    }
}

#[test]
fn resets_in_the_middle_of_requests() {
    if kvm_is_there() {
        attack_each_device("attack-reset", 50);
    }
}

#[test]
fn notifications_at_full_speed() {
    if kvm_is_there() {
        attack_each_device("attack-kicks", 20_000);
    }
}

#[test]
fn packets_of_every_kind_in_every_state() {
    if kvm_is_there() {
        let count = 10_000 * from_environment("HUSK_ATTACK_ROUNDS");
        let seed = from_environment("HUSK_ATTACK_SEED");
        let orders = format!("+attack-packets seed={seed} count={count}");
        let outcomes = Assault {
            floods: true,
            ..Assault::new(&orders)
        }
        .run();
        assert!(outcomes[0].operations >= count && outcomes[0].completed > 0);
    }
}

#[test]
fn half_open_connections_without_end() {
    if kvm_is_there() {
        let orders = "+attack-flood count=6000 +attack-flood count=6000 seed=2";
        let outcomes = Assault {
            floods: true,
            ..Assault::new(orders)
        }
        .run();
        assert!(
            outcomes
                .iter()
                .all(|outcome| outcome.operations == 6000 && outcome.completed > 1024)
        );
    }
}

#[test]
fn every_port_at_every_width() {
    if kvm_is_there() {
        let rounds = from_environment("HUSK_ATTACK_ROUNDS");
        let seed = from_environment("HUSK_ATTACK_SEED");
        let orders = format!("+attack-ports seed={seed} rounds={rounds}");
        let outcomes = Assault {
            console: true,
            ..Assault::new(&orders)
        }
        .run();
        assert_eq!(outcomes[0].operations, rounds * 65_536);
    }
}

#[test]
fn interrupt_controllers_but_for_what_a_processor_must_take() {
    if kvm_is_there() {
        let count = 20_000 * from_environment("HUSK_ATTACK_ROUNDS");
        let seed = from_environment("HUSK_ATTACK_SEED");
        let orders = format!("+attack-controllers seed={seed} count={count}");
        let outcomes = Assault::new(&orders).run();
        assert_eq!(outcomes[0].operations, count);
    }
}

/// A guest that resets its processors, or lets them have what they must take, ends itself or stands still. Its owner sees
/// either.
#[test]
fn interrupt_controllers_without_mercy() {
    if !kvm_is_there() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let first = from_environment("HUSK_ATTACK_SEED");
    for seed in first..first + 4 * from_environment("HUSK_ATTACK_ROUNDS") {
        let mut setup = Setup::with_kernel(kernel()).disk("data", true, Some(file(&content())));
        setup.vcpus.count = 2;
        let guest = Guest::start(
            setup,
            &format!("+attack-controllers seed={seed} count=20000 spare=0 +idle"),
        );
        let start = Holdings::of(guest.machine.pid());
        guest.go();
        let (mut most, mut last) = (start, (Instant::now(), guest.page().pulse));
        while !guest.machine.has_ended() && last.0.elapsed() < STILL && guest.page().state != state::DONE {
            most.grow(Holdings::of(guest.machine.pid()));
            let pulse = guest.page().pulse;
            if pulse != last.1 {
                last = (Instant::now(), pulse);
            }
            thread::sleep(Duration::from_millis(20));
        }
        if !guest.machine.has_ended() {
            answers(&guest.machine);
            assert_eq!(guest.machine.request(&Request::Stop), Response::Done);
        }
        let (page, report, _) = guest.end();
        eprintln!("seed {seed}: {:?}, {}, at most {most:?}", report.end, describe(&page));
        let is_the_guests = matches!(
            report.end,
            End::Stopped | End::Panic | End::TripleFault | End::Reboot | End::Shutdown | End::Vcpu { .. }
        );
        assert!(is_the_guests, "{:?}", report.end);
        assert!(
            most.private <= PRIVATE && most.descriptors <= start.descriptors + DESCRIPTORS,
            "{most:?}"
        );
    }
}

#[test]
fn rings_that_a_second_processor_changes() {
    if kvm_is_there() {
        let orders = on_each_device("attack-race", 300);
        let outcomes = Assault {
            vcpus: 2,
            ..Assault::new(&orders)
        }
        .run();
        assert!(
            outcomes.iter().all(|outcome| outcome.checksum > 0),
            "the second processor writes"
        );
        let told = outcomes.iter().filter(|outcome| outcome.needs_reset > 0);
        assert!(told.count() > 0, "broken rings are told");
    }
}

#[test]
fn queues_and_chains_around_the_hole_in_memory() {
    if kvm_is_there() {
        let queues = on_each_device("attack-queues", 50);
        let orders = queues + " " + &on_each_device("attack-chains", 20);
        Assault {
            memory_mib: 4096,
            ..Assault::new(&orders)
        }
        .run();
    }
}
