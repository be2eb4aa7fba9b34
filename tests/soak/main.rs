//! Many sandboxes one after the other, then many at once, beside one that lives all the while: what is there afterwards
//! that was not there before?
//!
//! `cargo xtask soak` builds it and what it runs, and starts it where /dev/kvm is real, with the number of sandboxes, the
//! number of those at once, and who runs them as its arguments. Everything that waits has the bounds of the tests' harness.

mod containerd;
mod figures;
mod shell;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use containerd::ThroughContainerd;
use figures::Figures;
use husk_tests::{Host, Process, Snapshot};
use shell::FromShell;

/// The container that lives from the beginning to the end.
const LONG: &str = "long";
/// What it executes.
const STAYS: &str = "while :; do sleep 1000; done";
/// Twenty guests that boot at once on one processor, which may be an emulated one, take their time.
const PATIENCE: Duration = Duration::from_secs(1200);
/// So many sandboxes are told about in one line.
const REPORTED: u32 = 50;

/// Who is asked for containers. Each panics when something does not go as it should.
trait Way {
    /// Starts the container that stays; gives the names of its processes.
    fn begin(&self) -> &'static [&'static str];
    /// Runs a container to its end.
    fn run(&self);
    /// Creates, starts and deletes one.
    fn create(&self);
    /// Runs a command in the container that stays.
    fn enter(&self);
    /// Runs several at once, each with an exit code of its own, so that none is taken for another.
    fn run_many(&self, number: u32);
    /// Ends the container that stays.
    fn end(&self);
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let numbers: Result<Vec<u32>, _> = words.iter().take(2).map(|word| word.parse()).collect();
    let (Ok([count, at_once]), Some(way)) = (numbers.as_deref(), words.get(2)) else {
        eprintln!("two numbers and a way are needed: run `cargo xtask soak`");
        return ExitCode::FAILURE;
    };
    let host = Host::with_own_image_cache();
    let is_sound = match way.as_str() {
        "containerd" => soak(&host, &ThroughContainerd::start(&host), *count, *at_once),
        _ => soak(&host, &FromShell::new(&host), *count, *at_once),
    };
    // Whatever is there now that was not there at the very beginning is named, and fails.
    drop(host);
    match is_sound {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn soak(host: &Host, way: &dyn Way, count: u32, at_once: u32) -> bool {
    let is_sound = Soak::begin(host, way).run(count, at_once);
    way.end();
    is_sound
}

struct Soak<'h> {
    host: &'h Host,
    way: &'h dyn Way,
    residents: Vec<Process>,
    begun: Instant,
    failures: u32,
}

impl<'h> Soak<'h> {
    /// Starts the container that stays, and does everything once: what is made once and kept is there then.
    fn begin(host: &'h Host, way: &'h dyn Way) -> Self {
        let names = way.begin();
        let soak = Self {
            host,
            way,
            residents: figures::residents(&host.new_processes(), names),
            begun: Instant::now(),
            failures: 0,
        };
        way.run();
        way.create();
        way.enter();
        soak
    }

    /// Whether all of it went as it should and nothing is left.
    fn run(mut self, count: u32, at_once: u32) -> bool {
        let directories = [&self.host.run_directory(), self.host.image_cache()];
        let before = Figures::take(&self.residents, at_once);
        let things = Snapshot::take(&directories);
        println!("{count} sandboxes one after the other");
        self.begun = Instant::now();
        for number in 1..=count {
            self.attempt(|soak| match number % 10 {
                0 => soak.way.create(),
                _ => soak.way.run(),
            });
            if number % 5 == 0 {
                self.attempt(|soak| soak.way.enter());
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
        self.attempt(|soak| soak.way.run_many(at_once));
        self.attempt(|soak| soak.way.enter());
        self.tell(at_once);
        // First, since it waits until connections to the container that stays are closed.
        let after = Figures::take(&self.residents, at_once);
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
}
