//! `husk-vmm --config-fd N`: runs one machine until its end. `husk-vmm --confinement` confines itself as it would for a
//! machine and prints how far that goes on this host, as JSON.
//!
//! | exit code | end |
//! |---|---|
//! | 0 | the guest shut down |
//! | 1 | the machine could not be built, or failed |
//! | 2 | the command line or the configuration cannot be used; there is no report |
//! | 10 | the guest asked for a reboot |
//! | 11 | the guest's kernel panicked |
//! | 12 | the guest triple-faulted |
//! | 13 | KVM cannot continue a vCPU |
//! | 14 | the owner stopped the machine |
//! | 15 | the owner is gone |
//! | 16 | a thread made a system call that its filter does not allow |

#![deny(unsafe_code)]

mod log;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use husk_vmm::confinement::filters::{self, Kind};
use husk_vmm::confinement::{self, ConfinementError, limits, violation};
use husk_vmm::control::Control;
use husk_vmm::ending::{Ending, chain};
use husk_vmm::machine::Machine;
use husk_vmm::report::{Reporter, exit_code};
use husk_vmm::resources::{self, Resources};
use husk_vmm::threads::panic_text;
use husk_vmm::timeline::{Timeline, now};
use husk_vmm_config::{Config, Descriptor, End, ExitCounts, Report};

const USAGE: &str = "usage: husk-vmm --config-fd N\n       husk-vmm --confinement\n       husk-vmm --version";
const UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let started = now();
    match run(started) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("husk-vmm: {error:#}");
            ExitCode::from(UNUSABLE)
        }
    }
}

fn run(started: u64) -> anyhow::Result<u8> {
    let config_fd = match parse_arguments()? {
        Task::Machine(config_fd) => config_fd,
        Task::Confinement => {
            println!("{}", serde_json::to_string(&confinement::measure()?)?);
            return Ok(0);
        }
        Task::Version => {
            println!("husk-vmm {}", env!("CARGO_PKG_VERSION"));
            return Ok(0);
        }
    };
    log::start();
    let timeline = Arc::new(Timeline::new());
    timeline.note("process started", started);

    let config = read_config(config_fd)?;
    let reporter = Arc::new(Reporter::new(take(config.report, "report")?));
    report_panics(&reporter);
    violation::report_to(&reporter).context("violations cannot be reported")?;
    timeline.reach("configuration read");

    let (report, machine) = live(&config, &timeline);
    tracing::info!("{}", report.end);
    if let Err(error) = reporter.write(&report) {
        tracing::warn!(%error, "nobody takes the report");
    }
    drop(machine);
    Ok(exit_code(&report.end))
}

/// Boots the machine and controls it until its end. The machine is handed back so that the report need not wait for
/// it to be taken down.
fn live(config: &Config, timeline: &Arc<Timeline>) -> (Report, Option<Machine>) {
    let failed = |error: &dyn std::error::Error| Report {
        end: End::Failed { reason: chain(error) },
        exits: ExitCounts::default(),
        phases: timeline.phases(),
    };
    // SAFETY: nothing else in this process uses the descriptors it was started with.
    #[allow(unsafe_code)]
    let Resources {
        parts,
        control,
        lifeline,
    } = match unsafe { Resources::take(config) } {
        Ok(resources) => resources,
        Err(error) => return (failed(&error), None),
    };
    // Nothing else has been opened yet: what the configuration does not name is closed.
    if let Err(error) = confine(config) {
        return (failed(&error), None);
    }
    timeline.reach("process confined");
    let ending = match Ending::new() {
        Ok(ending) => Arc::new(ending),
        Err(error) => return (failed(&error), None),
    };
    let mut machine = match Machine::build(config, parts, &ending, timeline) {
        Ok(machine) => machine,
        Err(error) => return (failed(&error), None),
    };
    let mut control = match Control::new(control, lifeline, &ending) {
        Ok(control) => control,
        Err(error) => return (failed(&error), None),
    };
    if let Err(error) = limits::built(config) {
        return (failed(&error), None);
    }
    if let Err(error) = filters::enter(Kind::Main) {
        return (failed(&error), None);
    }
    timeline.reach("main thread confined");
    machine.run();
    if let Err(error) = control.run(&mut machine, &ending) {
        ending.fail(&error);
    }
    (machine.stop(), Some(machine))
}

/// Gives up what the process does not need for its descriptors.
fn confine(config: &Config) -> Result<(), ConfinementError> {
    let kept: Vec<_> = config.descriptors().map(|Descriptor(fd)| fd).collect();
    let measures = confinement::enter(&kept, limits::most_descriptors(config), config.keep_network)?;
    confinement::log(&measures);
    Ok(())
}

/// What the command line asks for.
enum Task {
    Machine(Descriptor),
    Confinement,
    Version,
}

fn parse_arguments() -> anyhow::Result<Task> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    match words.as_slice() {
        ["--version"] => Ok(Task::Version),
        ["--confinement"] => Ok(Task::Confinement),
        ["--config-fd", number] => {
            let number = number
                .parse()
                .with_context(|| format!("{number:?} is not the number of a descriptor\n{USAGE}"))?;
            Ok(Task::Machine(Descriptor(number)))
        }
        _ => bail!("{USAGE}"),
    }
}

fn read_config(fd: Descriptor) -> anyhow::Result<Config> {
    Config::read(File::from(take(fd, "configuration")?)).context("the configuration cannot be used")
}

fn take(fd: Descriptor, what: &str) -> anyhow::Result<OwnedFd> {
    // SAFETY: nothing else in this process uses the descriptors it was started with.
    #[allow(unsafe_code)]
    let owned = unsafe { resources::take(fd, what) }?;
    Ok(owned)
}

/// A panic ends the process; the owner is told why before that.
fn report_panics(reporter: &Arc<Reporter>) {
    let reporter = Arc::clone(reporter);
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let thread = std::thread::current();
        let reason = format!(
            "the thread {} panicked: {}",
            thread.name().unwrap_or("without a name"),
            panic_text(panic.payload())
        );
        // Without a trace: to tell functions by name, a process must read its own program.
        match panic.location() {
            Some(location) => eprintln!("husk-vmm: {reason} ({location})"),
            None => eprintln!("husk-vmm: {reason}"),
        }
        let end = End::Failed { reason };
        let code = exit_code(&end);
        // If the owner does not take it, there is nobody left to tell.
        let _ = reporter.write(&Report {
            end,
            exits: ExitCounts::default(),
            phases: Vec::new(),
        });
        std::process::exit(code.into());
    }));
}
