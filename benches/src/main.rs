//! Measurements of husk. `cargo xtask bench` runs this program where each part can run, and makes one report of all.

mod about;
mod bounded;
mod bundle;
mod end;
mod exits;
mod guest_io;
mod idle;
mod monitor;
mod native;
mod plot;
mod proc;
mod qemu;
mod reads;
mod report;
mod resident;
mod rounds;
mod runtimes;
mod sandbox;
mod series;
mod stage;
mod start;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;

use series::Part;

const HELP: &str = "\
Measure husk; `cargo xtask bench` calls this program.

Usage: husk-bench native|hosted|icount --bin DIR --test-guest FILE --rootfs DIR --json FILE [--quick] [NAME]...
       husk-bench report --out DIR FILE...
       husk-bench reads FILE DEPTH COUNT [STATISTICS]";

/// What a measurement needs to know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Where `husk`, `husk-vmm` and `guest/` are.
    pub(crate) bin: PathBuf,
    /// The bare-metal test guest's kernel.
    pub(crate) test_guest: PathBuf,
    /// The root file system that containers get.
    pub(crate) rootfs: PathBuf,
    /// Each measurement once.
    pub(crate) quick: bool,
    /// Measurements whose names hold one of these; all when empty.
    pub(crate) names: Vec<String>,
}

impl Plan {
    /// Whether a measurement is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|asked| name.contains(asked.as_str()))
    }

    /// How often something is repeated.
    pub(crate) fn times(&self, full: usize) -> usize {
        if self.quick { 1 } else { full }
    }
}

type Measurement = (&'static str, fn(&Plan, &mut Part) -> Result<()>);

/// In this order: what leaves the machine quiet comes first.
const NATIVE: &[Measurement] = &[
    ("start", native::start),
    ("memory", native::memory),
    ("blk", native::blk),
    ("vsock", native::vsock),
];
const HOSTED: &[Measurement] = &[
    ("start", start::run),
    ("end", end::run),
    ("runtimes", runtimes::run),
    ("exits", exits::run),
    ("blk", guest_io::blk),
    ("vsock", guest_io::vsock),
    ("idle", idle::run),
    ("memory", resident::run),
];
const ICOUNT: &[Measurement] = &[("start", start::run)];

fn main() -> Result<()> {
    let mut arguments = lexopt::Parser::from_env();
    let Some(Value(mode)) = arguments.next()? else {
        bail!("{HELP}");
    };
    let mode = mode.string()?;
    let (mut plan, mut out, mut words) = (Plan::default(), PathBuf::new(), Vec::new());
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("bin") => plan.bin = arguments.value()?.into(),
            Long("test-guest") => plan.test_guest = arguments.value()?.into(),
            Long("rootfs") => plan.rootfs = arguments.value()?.into(),
            Long("json" | "out") => out = arguments.value()?.into(),
            Long("quick") => plan.quick = true,
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    match mode.as_str() {
        "report" => return report::make(&words, &out),
        reads::MODE => return reads::main(&words),
        _ => {}
    }
    plan.names = words;
    let measurements = match mode.as_str() {
        "native" => NATIVE,
        "hosted" => HOSTED,
        "icount" => ICOUNT,
        _ => bail!("{HELP}"),
    };
    let mut part = Part::new(&mode, about::machine(&plan)?, out);
    // Containers are measured from memory; natively there are none, and figures stay those of the machine.
    let (_stage, plan) = match mode.as_str() {
        "native" => (None, plan),
        _ => {
            // Memory, exits and ends are those of all machines that run.
            ensure!(
                proc::named("husk-vmm")?.is_empty(),
                "a husk-vmm runs already; measurements need a host without sandboxes"
            );
            let (stage, plan) = stage::copied(&plan).context("copying what is measured into memory")?;
            (Some(stage), plan)
        }
    };
    run(measurements, &plan, &mut part)
}

/// Runs what is asked for. What fails costs neither what was measured before nor what comes after it.
fn run(measurements: &[Measurement], plan: &Plan, part: &mut Part) -> Result<()> {
    let mut failed = Vec::new();
    for (name, measure) in measurements.iter().filter(|(name, _)| plan.wants(name)) {
        eprintln!("husk-bench: {}: {name}", part.place);
        if let Err(error) = measure(plan, part) {
            eprintln!("husk-bench: {name} failed: {error:#}");
            part.notes.push(format!("{name} failed: {error:#}"));
            failed.push(*name);
        }
        part.keep()?;
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
