//! The way of a container from `husk run` to its first instruction, and the exits to husk-vmm on it.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::series::Part;
use crate::{Plan, bounded, rounds};

/// Of a sandbox, as `husk run --memory` takes it.
pub(crate) const MEMORY: &str = "128M";
/// Where husk keeps the state of what is measured.
pub(crate) const STATE: &str = "/run/husk-bench";

/// What `husk run --timings=json` prints.
#[derive(Debug, Deserialize)]
pub(crate) struct Timings {
    points: Vec<Point>,
    exits: Vec<(String, BTreeMap<String, u64>)>,
}

#[derive(Debug, Deserialize)]
struct Point {
    at_ns: u64,
    side: String,
    name: String,
}

impl Timings {
    /// Finds them in what husk has said.
    pub(crate) fn of(said: &str) -> Result<Self> {
        let line = said.lines().find(|line| line.starts_with('{')).context("no timings")?;
        let mut timings: Self = serde_json::from_str(line)?;
        timings.points.sort_by_key(|point| point.at_ns);
        Ok(timings)
    }

    /// When a point was reached, by `CLOCK_MONOTONIC`.
    pub(crate) fn at(&self, name: &str) -> Option<u64> {
        let point = self.points.iter().find(|point| point.name == name)?;
        Some(point.at_ns)
    }
}

/// A husk command, with its state in memory and with patience.
pub(crate) fn husk(plan: &Plan, words: &[&str]) -> Command {
    let mut command = Command::new(plan.bin.join("husk"));
    command.args(words);
    at_home(&mut command);
    command
}

/// Husk's state and images in memory; and husk has nearly as much patience with a guest as this program has with husk: a
/// machine that does other work besides is slow and has no fault.
pub(crate) fn at_home(command: &mut Command) {
    let patience = bounded::LIMIT.as_secs() - 30;
    command
        .env("HUSK_ROOT", STATE)
        .env("HUSK_IMAGE_CACHE", "/tmp/husk-bench-images")
        .env("HUSK_TIMEOUT", patience.to_string());
}

/// The phases of `husk run`, and the exits to husk-vmm by then.
pub(crate) fn run(plan: &Plan, part: &mut Part) -> Result<()> {
    let rootfs = plan.rootfs.to_string_lossy();
    // Counted instructions hardly spread, and counting is slow.
    let full = if part.place == "icount" { 3 } else { 7 };
    rounds::run(plan, part, full, |part| {
        let words = [
            "run",
            "--timings=json",
            "--memory",
            MEMORY,
            "--rootfs",
            &*rootfs,
            "--",
            "true",
        ];
        let started = Instant::now();
        let said = bounded::output(&mut husk(plan, &words))?;
        let whole = started.elapsed();
        record(part, &Timings::of(&said.stderr)?);
        part.add(
            "start: husk run true, seen by its caller",
            "ms",
            whole.as_secs_f64() * 1e3,
        );
        Ok(())
    })
}

fn record(part: &mut Part, timings: &Timings) {
    // The sides work at the same time: a phase lasts from the point before on its own side.
    let mut last = BTreeMap::new();
    let start = timings.points.first().map_or(0, |point| point.at_ns);
    for Point { at_ns, side, name } in &timings.points {
        let step = at_ns - last.insert(side, *at_ns).unwrap_or(start);
        part.add(&format!("start, {side}: {name}"), "ms", step as f64 / 1e6);
        // What follows is the end, which is measured by itself.
        if name == "process's first instruction" {
            break;
        }
    }
    for (name, from, to) in [
        ("husk's start to guest entered", "husk started", "guest entered"),
        ("guest entered to agent ready", "guest entered", "agent ready"),
        (
            "agent ready to process's first instruction",
            "agent ready",
            "process's first instruction",
        ),
        (
            "husk's start to process's first instruction",
            "husk started",
            "process's first instruction",
        ),
    ] {
        if let (Some(from), Some(to)) = (timings.at(from), timings.at(to)) {
            part.add(&format!("start: {name}"), "ms", to.saturating_sub(from) as f64 / 1e6);
        }
    }
    for (point, counts) in &timings.exits {
        let sum = counts.values().sum::<u64>() as f64;
        part.add(&format!("exits: to husk-vmm, {point}"), "exits", sum);
        for (kind, count) in counts {
            part.add(&format!("exits: to husk-vmm, {point}, {kind}"), "exits", *count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn phases_end_with_the_first_instruction() {
        let said = "husk: words\n{\"points\":[{\"at_ns\":9000000,\"side\":\"guest\",\"name\":\"process exited\"},\
                    {\"at_ns\":1000000,\"side\":\"husk\",\"name\":\"husk started\"},\
                    {\"at_ns\":4000000,\"side\":\"guest\",\"name\":\"process's first instruction\"}],\
                    \"exits\":[[\"agent ready\",{\"mmio\":5,\"port\":2}]]}\n";
        let timings = Timings::of(said).unwrap();
        assert_eq!(timings.at("process exited"), Some(9_000_000));
        let mut part = Part::new("here", BTreeMap::new(), PathBuf::new());
        record(&mut part, &timings);
        let value = |name: &str| {
            part.series
                .iter()
                .find(|series| series.name == name)
                .map(|series| series.values[0])
        };
        assert_eq!(value("start, guest: process's first instruction"), Some(3.0));
        assert_eq!(value("start, guest: process exited"), None);
        assert_eq!(value("start: husk's start to process's first instruction"), Some(3.0));
        assert_eq!(value("exits: to husk-vmm, agent ready"), Some(7.0));
    }
}
