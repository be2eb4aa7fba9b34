//! `husk stats`: what containers use, for people.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use husk_sandbox::agent::StatsResponse;
use husk_sandbox::lifecycle::{Container, LifecycleError, Status};
use husk_sandbox::rundir::RunRoot;

use crate::args::{Global, StatsArgs};
use crate::table::{aligned, size};
use crate::{answer, events};

/// Clears a terminal and begins at its top (ECMA-48: ED, CUP).
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

pub(crate) fn stats(global: &Global, args: &StatsArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    let mut before = read(global, &root, &args.names)?;
    if args.json {
        let all: BTreeMap<_, _> = before.iter().map(|(name, stats)| (name, events::data(stats))).collect();
        answer::json(&all)?;
        return Ok(0);
    }
    loop {
        // A share of processor time is one of a time that has passed.
        std::thread::sleep(args.interval);
        let now = read(global, &root, &args.names)?;
        let clear = if args.follow && std::io::stdout().is_terminal() {
            CLEAR
        } else {
            ""
        };
        answer::text(&format!("{clear}{}", table(&before, &now)))?;
        if !args.follow || now.is_empty() {
            return Ok(0);
        }
        before = now;
    }
}

/// The figures of the named containers, or of all that run.
fn read(global: &Global, root: &RunRoot, names: &[String]) -> Result<BTreeMap<String, StatsResponse>> {
    let mut all = BTreeMap::new();
    for name in names {
        let container = Container::find(root, name, global.patience())?;
        all.insert(name.clone(), container.stats()?);
    }
    if !names.is_empty() {
        return Ok(all);
    }
    for found in root.list()? {
        let container = Container::new(found, global.patience());
        if matches!(container.status()?, Status::Creating | Status::Stopped) {
            continue;
        }
        match container.stats() {
            Ok(stats) => drop(all.insert(container.name().to_owned(), stats)),
            Err(LifecycleError::RunDir(_)) => {}
            // It has ended since it was found.
            Err(error) if error.means_stopped() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

fn table(before: &BTreeMap<String, StatsResponse>, now: &BTreeMap<String, StatsResponse>) -> String {
    let mut rows = vec![["NAME", "CPU %", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN"].map(str::to_owned)];
    for (name, stats) in now {
        rows.push([
            name.clone(),
            before
                .get(name)
                .map_or_else(|| "-".into(), |before| share(before, stats)),
            size(stats.memory_current),
            match stats.memory_limit {
                0 => "-".into(),
                limit => size(limit),
            },
            stats.pids_current.to_string(),
            size(stats.io_read_bytes),
            size(stats.io_written_bytes),
        ]);
    }
    aligned(&rows)
}

/// Processor time in percent of the time that has passed in the guest; several processors make more than 100.
fn share(before: &StatsResponse, now: &StatsResponse) -> String {
    let used = Duration::from_micros(now.cpu_usage_us.saturating_sub(before.cpu_usage_us));
    let passed = Duration::from_nanos(now.read_at_ns.saturating_sub(before.read_at_ns));
    match passed {
        Duration::ZERO => "-".into(),
        passed => format!("{:.1}", 100.0 * used.as_secs_f64() / passed.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_short() {
        let reading = |cpu_usage_us: u64, read_at_ns: u64| StatsResponse {
            cpu_usage_us,
            read_at_ns,
            ..Default::default()
        };
        assert_eq!(share(&reading(0, 0), &reading(1_500_000, 1_000_000_000)), "150.0");
        assert_eq!(share(&reading(0, 5), &reading(1, 5)), "-");
    }
}
