//! Measurements of husk. `cargo xtask bench` runs this program where each part can run, and makes one report of all.

mod about;
mod containers;
mod monitor;
mod native;
mod plot;
mod proc;
mod qemu;
mod report;
mod resident;
mod series;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use lexopt::prelude::*;

use series::Part;

const HELP: &str = "\
Measure husk; `cargo xtask bench` calls this program.

Usage: husk-bench native|hosted|icount --bin DIR --test-guest FILE --rootfs DIR --json FILE [--quick] [NAME]...
       husk-bench report --out DIR FILE...";

/// What a measurement needs to know.
#[derive(Debug, Default)]
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
    if mode == "report" {
        return report::make(&words, &out);
    }
    plan.names = words;
    let mut part = Part::new(&mode, about::machine(&plan)?);
    let outcome = match mode.as_str() {
        "native" => native::run(&plan, &mut part),
        "hosted" => containers::run(&plan, &mut part).and_then(|()| resident::run(&plan, &mut part)),
        "icount" => containers::starts(&plan, &mut part),
        _ => bail!("{HELP}"),
    };
    // What was measured before a failure is worth as much as without it.
    let text = serde_json::to_string(&part)?;
    std::fs::write(&out, text).with_context(|| format!("writing {}", out.display()))?;
    outcome
}
