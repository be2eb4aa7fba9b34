//! Many sandboxes one after the other, then many at once, beside one that lives all the while: what is there afterwards
//! that was not there before?
//!
//! `cargo xtask soak` builds it and what it runs, and starts it where /dev/kvm is real, with the number of sandboxes and
//! the number of those at once as its arguments. Everything that waits has the bounds of the tests' harness.

mod figures;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use figures::Figures;
use husk_tests::{Bundle, Container, Host, Husk, Process, Running, Snapshot, busybox};

/// The container that lives from the beginning to the end.
const LONG: &str = "long";
/// Twenty guests that boot at once on one processor, which may be an emulated one, take their time.
const PATIENCE: Duration = Duration::from_secs(1200);
/// So many sandboxes are told about in one line.
const REPORTED: u32 = 50;

fn main() -> ExitCode {
    let numbers = std::env::args().skip(1).map(|word| word.parse());
    let numbers: Result<Vec<u32>, _> = numbers.collect();
    let Ok([count, at_once]) = numbers.as_deref() else {
        eprintln!("two numbers are needed: run `cargo xtask soak`");
        return ExitCode::FAILURE;
    };
    let host = Host::with_own_image_cache();
    let is_sound = Soak::begin(&host).run(*count, *at_once);
    host.husk().command(["rm", "--force", LONG]).exits(0);
    // Whatever is there now that was not there at the very beginning is named, and fails.
    drop(host);
    match is_sound {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

struct Soak<'h> {
    host: &'h Host,
    residents: Vec<Process>,
    bundle: Bundle,
    begun: Instant,
    failures: u32,
}

impl<'h> Soak<'h> {
    /// Starts the container that stays, and does everything once: what is made once and kept is there then.
    fn begin(host: &'h Host) -> Self {
        let script = "while :; do sleep 1000; done";
        let stays = host.husk().rootfs(busybox()).name(LONG).option("--detach");
        stays.run(["sh", "-c", script]).exits(0);
        let soak = Self {
            host,
            residents: figures::residents(&host.new_processes()),
            bundle: Bundle::of_script(host, busybox(), "exit 7"),
            begun: Instant::now(),
            failures: 0,
        };
        soak.run_one();
        soak.create_one();
        soak.enter();
        soak
    }

    /// Whether all of it went as it should and nothing is left.
    fn run(mut self, count: u32, at_once: u32) -> bool {
        let directories = [&self.host.run_directory(), self.host.image_cache()];
        let before = Figures::take(&self.residents);
        let things = Snapshot::take(&directories);
        println!("{count} sandboxes one after the other");
        self.begun = Instant::now();
        for number in 1..=count {
            self.attempt(|soak| match number % 10 {
                0 => soak.create_one(),
                _ => soak.run_one(),
            });
            if number % 5 == 0 {
                self.attempt(Self::enter);
            }
            if number % REPORTED == 0 || number == count {
                self.tell(number);
                // Told now too, so that a run that is broken off has said what it knows.
                println!("       {}", figures::line(&self.residents));
                print!("{}", things.leftovers());
            }
        }
        println!("{at_once} sandboxes at once");
        self.begun = Instant::now();
        self.attempt(|soak| soak.run_many(at_once));
        self.attempt(Self::enter);
        self.tell(at_once);
        // First, since it waits until connections to the container that stays are closed.
        let after = Figures::take(&self.residents);
        let left = things.leftovers();
        let now = Snapshot::take(&directories);
        let counts = things.counts().into_iter().zip(now.counts());
        println!("\n{}", figures::HEAD);
        for ((kind, then), (_, now)) in counts {
            println!("{}", figures::row(kind, then, now, Some(0)));
        }
        let grown = after.compare(&before);
        for (what, names) in [("left behind", &left), ("grown", &grown)] {
            if !names.is_empty() {
                print!("\n{what}:\n{names}");
            }
        }
        println!("\n{} failed", self.failures);
        self.failures == 0 && left.is_empty() && grown.is_empty()
    }

    /// Lets one that fails be told and counted: what is left behind is of interest all the more.
    fn attempt(&mut self, work: impl FnOnce(&Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.failures += 1;
        }
    }

    fn tell(&self, number: u32) {
        let seconds = self.begun.elapsed().as_secs();
        println!("{number:>6} after {seconds} s, {} failed", self.failures);
    }

    fn husk(&self) -> Husk<'h> {
        self.host.husk().rootfs(busybox())
    }

    fn run_one(&self) {
        self.husk().run(["true"]).exits(0).prints("").is_quiet();
    }

    fn create_one(&self) {
        let container = Container::create(self.host, &self.bundle, "created");
        container.husk("start").exits(0);
        assert_eq!(container.wait(), 7);
        container.delete();
    }

    fn enter(&self) {
        self.host.husk().exec(LONG, ["echo", "in"]).exits(0).prints("in\n");
    }

    /// Each with an exit code of its own, so that none is taken for another.
    fn run_many(&self, number: u32) {
        let patience = PATIENCE.as_secs().to_string();
        let start = |code: u32| {
            let husk = self.husk().memory("128M").within(PATIENCE);
            let husk = husk.variable("HUSK_TIMEOUT", &patience);
            husk.start(["sh", "-c", &format!("exit {code}")])
        };
        let running: Vec<Running<'_>> = (1..=number).map(start).collect();
        for (running, code) in running.into_iter().zip(1..) {
            running.finish().exits(code).prints("").is_quiet();
        }
    }
}
