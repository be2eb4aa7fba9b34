//! The project's tasks, run as `cargo xtask TASK`.

mod bench;
mod build;
mod cache;
mod demo;
mod each_test;
mod every_test;
mod fuzz;
mod go;
mod host;
mod peers;
mod place;
mod process;
mod setup;
mod size;
mod soak;
mod suite;
mod trees;
mod workspace;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;

const HELP: &str = "\
The tasks of husk's developers.

Usage: cargo xtask TASK [OPTIONS]

Tasks:
  demo   Build everything and run a container in a microVM
  test   Run every test
  fuzz   Give the parts that face a guest or an image whatever they may be given
  soak   Run hundreds of sandboxes and look for what is left of them
  suite  Run another project's test suite for container runtimes with runc and with husk, and tell where they differ
  bench  Measure husk: start and end, exits, memory, disk, vsock; table, JSON and pictures
  build  Build husk, husk-vmm, containerd's shim, the agent and the guest's kernel
  setup  Install what demo, build and test need; they also do it themselves
  peers  Build other projects' programs that the tests run husk with; `test` builds those that it needs
  host   Run a command in the emulated host, a machine with KVM in software

`cargo xtask TASK --help` tells more of tasks that take options.";

const HOST_HELP: &str = "\
Boot the emulated host, a machine with KVM in software, and run COMMAND in it as root, in the same directory.

Usage: cargo xtask host [OPTIONS] [-- COMMAND...]

The machine's root file system is visible. Writes to the checkout and to the build output go through; all others go to
memory and are gone at the end. /tmp and /run are empty. stdin, stdout, stderr and the exit code pass through. Without
COMMAND: a shell.

Options:
      --cpus N           Virtual processors [default: 1; with more, QEMU now and then loses a guest inside]
      --memory SIZE      Memory, such as 512M or 4G [default: 4G]
      --timeout SECONDS  End it after this time, with exit code 124
  -t, --tty              Give COMMAND a terminal
      --icount           Let the clock count instructions: slow, one processor, hardly any noise in timings
      --gdb PORT         Let a debugger attach to the machine at localhost:PORT
  -h, --help             This text

Exit code: COMMAND's; 128 + n when signal n ended it; 127 or 126 when it was not found or could not be run; 125 when
the emulated host failed; 124 when the time was over.

Examples:
  cargo xtask host
  cargo xtask host -- ls -l /dev/kvm
  cargo xtask host --timeout 60 -- target/x86_64-unknown-linux-musl/release/husk doctor";

const TEST_HELP: &str = "\
Run every test: the units on this machine, the end-to-end tests where /dev/kvm is real.

Usage: cargo xtask test [OPTIONS] [FILTER]...

Without hardware virtualization the end-to-end tests run in the emulated host, all in one boot of it. Each test is a
process of its own. Up to three that fail are tried once more at the end; both tries are shown.

Options:
      --only unit|e2e    One kind alone
      --runc             Run the cases of containerd and docker with runc's shim too, first
      --containerd PEER  The containerd of the tests, besides Debian's [default: containerd-2.4]
  -h, --help             This text

Examples:
  cargo xtask test
  cargo xtask test --only e2e exec
  cargo xtask test --only e2e --containerd containerd-1.7 containerd";

const PEERS_HELP: &str = "\
Build programs of other projects, of pinned versions, that the end-to-end tests run husk with, and print the directories
in which they are. What is built already is not built again. Without NAME: all.

Usage: cargo xtask peers [NAME]...

Names: the directories in tests/peers. Needs Go; where none that is new enough is installed it is downloaded.

Options:
  -h, --help  This text

Examples:
  cargo xtask peers
  cargo xtask peers containerd-1.7";

const FUZZ_HELP: &str = "\
Fuzz the targets of fuzz/, one after the other, until one fails.

Usage: cargo xtask fuzz [OPTIONS] [TARGET]...

Options:
      --seconds N   How long each target runs [default: 20]
      --input FILE  Run the one target with this input alone
  -h, --help        This text

Examples:
  cargo xtask fuzz
  cargo xtask fuzz vsock muxer --seconds 600
  cargo xtask fuzz layer --input fuzz/artifacts/layer/crash-0123";

const SOAK_HELP: &str = "\
Run sandboxes one after the other, then at once, beside one that lives all the while, and compare the machine before
and after: processes, mounts, cgroups, sockets, files, network namespaces, open files, the kernel's memory, and the
descriptors, threads and memory of the one that stays. Every tenth is created, started and deleted rather than run;
after every fifth a command enters the one that stays. Prints a table, and fails with the names of what is left.

Without hardware virtualization it runs in the emulated host, where 500 take about half an hour.

Usage: cargo xtask soak [OPTIONS]

Options:
      --count N    Sandboxes one after the other [default: 500]
      --at-once N  Sandboxes at once, up to 100 [default: 20]
      --containerd Through containerd and its shim; for each sandbox one more container runs in the pod that stays
  -h, --help       This text

Examples:
  cargo xtask soak
  cargo xtask soak --count 20 --at-once 4";

const BENCH_HELP: &str = "\
Measure husk: on this machine's KVM what needs no Linux guest, and the rest where /dev/kvm is real.

Usage: cargo xtask bench [OPTIONS] [NAME]...

Without hardware virtualization the rest runs in the emulated host, all in one boot of it, and the starts once more in
a second boot in which the clock counts instructions. Prints a table; results.json and pictures go to a directory.

Names: start, end, runtimes, exits, blk, vsock, idle, memory.

What is measured is kept as it comes: what fails, or takes longer than 45 minutes, ends its part alone, with exit code 125.

Options:
      --out DIR  Where the results go [default: bench in the build output]
      --quick    Each measurement once: shows that all works, and no figures worth keeping
      --native   Only what runs on this machine's own KVM
  -h, --help     This text

Examples:
  cargo xtask bench
  cargo xtask bench --native start blk";

fn main() {
    let code = run(lexopt::Parser::from_env()).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        host::OWN_FAILURE
    });
    std::process::exit(code);
}

fn run(mut arguments: lexopt::Parser) -> Result<i32> {
    match arguments.next()? {
        Some(Value(task)) if task == "host" => match host_options(&mut arguments)? {
            Some(options) => host::run(&options),
            None => help(HOST_HELP),
        },
        Some(Value(task)) if task == "test" => match test_options(&mut arguments)? {
            Some(options) => every_test::run(&options),
            None => help(TEST_HELP),
        },
        Some(Value(task)) if task == "bench" => match bench_options(&mut arguments)? {
            Some(options) => bench::run(&options),
            None => help(BENCH_HELP),
        },
        Some(Value(task)) if task == "soak" => match soak_options(&mut arguments)? {
            Some(options) => soak::run(&options),
            None => help(SOAK_HELP),
        },
        Some(Value(task)) if task == "suite" => match suite_options(&mut arguments)? {
            Some(options) => suite::run(&options),
            None => help(suite::HELP),
        },
        // Not for people: what `suite` runs where /dev/kvm is real.
        Some(Value(task)) if task == "each-suite" => suite::compare(&arguments.raw_args()?.collect::<Vec<_>>()),
        // Not for people: what `test` runs where /dev/kvm is real.
        Some(Value(task)) if task == "each-test" => {
            let (programs, filter) = each_test::split(arguments.raw_args()?.collect());
            each_test::run(&programs, &filter)
        }
        Some(Value(task)) if task == "fuzz" => fuzz_task(&mut arguments),
        Some(Value(task)) if task == "peers" => peers_task(&mut arguments),
        Some(Value(task)) if task == "demo" => end_of(&mut arguments).and_then(|()| demo::run()),
        Some(Value(task)) if task == "build" => {
            end_of(&mut arguments)?;
            let programs = build::run()?;
            step(&format!("built: {0}/husk, {0}/husk-vmm, {0}/guest", programs.display()));
            Ok(0)
        }
        Some(Value(task)) if task == "setup" => {
            end_of(&mut arguments)?;
            workspace::ensure_space()?;
            let needs = [setup::BUILD, setup::DEMO, setup::UNIT, setup::TEST].concat();
            setup::ensure(&needs)?;
            setup::ensure_rust_target(workspace::TARGET)?;
            setup::ensure_rust_target(workspace::BARE_TARGET)?;
            host::ensure()?;
            Ok(0)
        }
        Some(Long("help") | Short('h')) => help(HELP),
        Some(Value(other)) => bail!("there is no task {other:?}; see `cargo xtask --help`"),
        Some(other) => Err(other.unexpected().into()),
        None => bail!("which task? See `cargo xtask --help`"),
    }
}

fn help(text: &str) -> Result<i32> {
    // Whoever has read enough of it closes the pipe.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(0)
}

/// For a task without options.
fn end_of(arguments: &mut lexopt::Parser) -> Result<()> {
    match arguments.next()? {
        None => Ok(()),
        Some(other) => Err(other.unexpected().into()),
    }
}

fn fuzz_task(arguments: &mut lexopt::Parser) -> Result<i32> {
    let mut input = None;
    let mut options = fuzz::Options {
        targets: Vec::new(),
        seconds: 20,
    };
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("seconds") => options.seconds = arguments.value()?.parse().context("--seconds")?,
            Long("input") => input = Some(PathBuf::from(arguments.value()?)),
            Long("help") | Short('h') => return help(FUZZ_HELP),
            Value(target) => options.targets.push(target.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    // Fuzzing for no time would be for ever.
    ensure!(options.seconds > 0, "--seconds is 0; at least 1 is needed");
    match (input, options.targets.as_slice()) {
        (None, _) => fuzz::run(&options),
        (Some(input), [target]) => fuzz::reproduce(target, &input),
        (Some(_), _) => bail!("--input goes with one target"),
    }
}

fn peers_task(arguments: &mut lexopt::Parser) -> Result<i32> {
    let mut names = Vec::new();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("help") | Short('h') => return help(PEERS_HELP),
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    peers::run(&names)
}

/// None: help was asked for.
fn test_options(arguments: &mut lexopt::Parser) -> Result<Option<every_test::Options>> {
    let mut options = every_test::Options::default();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("only") => {
                options.only = match arguments.value()?.string()?.as_str() {
                    "unit" => every_test::Only::Unit,
                    "e2e" => every_test::Only::EndToEnd,
                    other => bail!("--only is unit or e2e, not {other:?}"),
                }
            }
            Long("runc") => options.runc = true,
            Long("containerd") => options.containerd = arguments.value()?.string()?,
            Long("help") | Short('h') => return Ok(None),
            Value(word) => options.filter.push(word),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(options))
}

/// None: help was asked for.
fn soak_options(arguments: &mut lexopt::Parser) -> Result<Option<soak::Options>> {
    let mut options = soak::Options::default();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("count") => options.count = arguments.value()?.parse().context("--count")?,
            Long("at-once") => options.at_once = arguments.value()?.parse().context("--at-once")?,
            Long("containerd") => options.containerd = true,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(
        options.at_once <= 100,
        "--at-once is {}, more than 100",
        options.at_once
    );
    Ok(Some(options))
}

/// None: help was asked for.
fn suite_options(arguments: &mut lexopt::Parser) -> Result<Option<suite::Options>> {
    let mut words = Vec::new();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let mut words = words.into_iter();
    let suite = words.next().context("which suite? See `cargo xtask suite --help`")?;
    Ok(Some(suite::Options {
        suite,
        filter: words.collect(),
    }))
}

/// None: help was asked for.
fn bench_options(arguments: &mut lexopt::Parser) -> Result<Option<bench::Options>> {
    let mut options = bench::Options::default();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("out") => options.out = Some(std::path::absolute(arguments.value()?)?),
            Long("quick") => options.quick = true,
            Long("native") => options.native = true,
            Long("help") | Short('h') => return Ok(None),
            Value(name) => options.names.push(name),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(options))
}

/// None: help was asked for.
fn host_options(arguments: &mut lexopt::Parser) -> Result<Option<host::Options>> {
    let mut options = host::Options::default();
    let mut cpus = None;
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("cpus") => cpus = Some(arguments.value()?.parse().context("--cpus")?),
            Long("memory") => options.memory = size::parse(&arguments.value()?.string()?).context("--memory")?,
            Long("timeout") => options.timeout = Some(seconds(arguments.value()?).context("--timeout")?),
            Long("icount") => options.icount = true,
            Long("gdb") => options.gdb = Some(arguments.value()?.parse().context("--gdb")?),
            Long("tty") | Short('t') => options.tty = true,
            Long("help") | Short('h') => return Ok(None),
            Value(program) => {
                options.command.push(program);
                options.command.extend(arguments.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if let Some(cpus) = cpus {
        ensure!((1..=64).contains(&cpus), "--cpus is {cpus}, not 1 to 64");
        ensure!(
            cpus == 1 || !options.icount,
            "--icount has one processor, so --cpus {cpus} does not go with it"
        );
        options.cpus = cpus;
    }
    Ok(Some(options))
}

fn seconds(text: OsString) -> Result<Duration> {
    let seconds: f64 = text.parse()?;
    let duration = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero());
    duration.with_context(|| format!("{seconds} is no time in seconds"))
}

/// Says what is being done, on stderr: stdout belongs to commands that are run.
fn step(what: &str) {
    eprintln!("xtask: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Option<host::Options>> {
        host_options(&mut lexopt::Parser::from_args(words))
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let options = parse(&["--cpus=3", "--memory", "1G", "--timeout", "1.5", "--", "ls", "--help"])
            .unwrap()
            .unwrap();
        assert_eq!((options.cpus, options.memory), (3, 1 << 30));
        assert_eq!(options.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(options.command, ["ls", "--help"]);
        assert_eq!(
            parse(&["ls", "--cpus", "0"]).unwrap().unwrap().command,
            ["ls", "--cpus", "0"]
        );
    }

    #[test]
    fn a_soak_has_numbers_of_its_own() {
        let parse = |words: &[&str]| soak_options(&mut lexopt::Parser::from_args(words));
        let asked = soak::Options {
            count: 7,
            at_once: 100,
            containerd: true,
        };
        let options = parse(&["--count", "7", "--at-once=100", "--containerd"]).unwrap();
        assert_eq!(options, Some(asked));
        assert_eq!(parse(&["--help"]).unwrap(), None);
        for words in [&["--at-once", "101"][..], &["--count", "-1"], &["7"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for words in [
            &["--cpus", "0"][..],
            &["--cpus", "65"],
            &["--cpus", "two"],
            &["--cpus", "2", "--icount"],
            &["--memory", "much"],
            &["--timeout", "0"],
            &["--timeout", "-1"],
            &["--timeout", "soon"],
            &["--gdb", "65536"],
            &["--unknown"],
            &["--cpus"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
