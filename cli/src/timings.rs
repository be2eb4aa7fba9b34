//! Where the time of a run went, host and guest in one table.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use husk_sandbox::agent::Ready;
use husk_sandbox::vmm::{ExitCounts, Phase};
use serde::Serialize;

/// The point at which both clocks are known: the host's when the ready message was read.
const READY: &str = "agent ready";

/// How timings are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For a person
    Table,
    /// For a program: one line
    Json,
}

/// The machine's exits to husk-vmm since its start, as they were at some points.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Exits(Vec<(&'static str, ExitCounts)>);

impl Exits {
    /// The exits at a point that is reached now.
    pub(crate) fn push(&mut self, point: &'static str, counts: ExitCounts) {
        self.0.push((point, counts));
    }
}

/// A point in time and where it was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Point {
    at_ns: u64,
    side: &'static str,
    name: String,
}

/// All points of a run, on the host's `CLOCK_MONOTONIC`.
#[derive(Debug, Serialize)]
pub(crate) struct Timings {
    points: Vec<Point>,
    exits: Exits,
}

impl Timings {
    /// The points that husk itself has reached.
    pub(crate) fn new(phases: Vec<Phase>, exits: Exits) -> Self {
        let mut timings = Self {
            points: Vec::new(),
            exits,
        };
        timings.add("husk", phases);
        timings
    }

    /// Prints everything on stderr.
    pub(crate) fn print(&self, format: Format) -> Result<()> {
        match format {
            Format::Table => eprint!("{self}"),
            Format::Json => eprintln!("{}", serde_json::to_string(self)?),
        }
        Ok(())
    }

    /// The points that the machine monitor has reached.
    pub(crate) fn vmm(&mut self, phases: Vec<Phase>) {
        self.add("vmm", phases);
    }

    fn add(&mut self, side: &'static str, phases: Vec<Phase>) {
        self.points.extend(phases.into_iter().map(|phase| Point {
            at_ns: phase.at_ns,
            side,
            name: phase.name,
        }));
    }

    /// The points that the guest has reached by its own clock. It is set by the ready message, which therefore seems to
    /// have taken no time on its way.
    pub(crate) fn guest(&mut self, ready: &Ready, started_ns: u64, exited_ns: u64) {
        let Some(host) = self.points.iter().find(|point| point.name == READY) else {
            return;
        };
        let Some(boot) = host.at_ns.checked_sub(ready.ready_ns) else {
            return;
        };
        for (name, at_ns) in [
            ("kernel's clock started", 0),
            ("agent started", ready.agent_started_ns),
            ("agent listening", ready.ready_ns),
            ("process's first instruction", started_ns),
            ("process exited", exited_ns),
        ] {
            // A guest's word is not trusted to be a time of this run.
            if let Some(at_ns) = boot.checked_add(at_ns) {
                self.points.push(Point {
                    at_ns,
                    side: "guest",
                    name: name.into(),
                });
            }
        }
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut points = self.points.clone();
        points.sort_by_key(|point| point.at_ns);
        let Some(first) = points.first().map(|point| point.at_ns) else {
            return Ok(());
        };
        writeln!(f, "{:>10} {:>10}  {:5}  reached", "at ms", "+ ms", "where")?;
        let mut last = first;
        for point in points {
            let (at, step) = (millis(point.at_ns - first), millis(point.at_ns - last));
            writeln!(f, "{at:>10} {step:>10}  {:5}  {}", point.side, point.name)?;
            last = point.at_ns;
        }
        for (point, counts) in &self.exits.0 {
            writeln!(f, "exits to husk-vmm, {point}: {} {:?}", counts.total(), counts.0)?;
        }
        Ok(())
    }
}

fn millis(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, at_ns: u64) -> Phase {
        Phase {
            name: name.into(),
            at_ns,
        }
    }

    #[test]
    fn both_clocks_are_laid_over_each_other() {
        let mut timings = Timings::new(
            vec![phase("husk started", 1_000_000), phase(READY, 9_000_000)],
            Exits::default(),
        );
        timings.vmm(vec![phase("first guest entry", 2_500_000)]);
        let ready = Ready {
            agent_started_ns: 4_000_000,
            ready_ns: 6_000_000,
            ..Default::default()
        };
        timings.guest(&ready, 8_000_000, u64::MAX);
        let text = timings.to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..3], ["0.000", "0.000", "husk"]);
        assert_eq!(lines[2][..3], ["1.500", "1.500", "vmm"]);
        assert_eq!(lines[3][..4], ["2.000", "0.500", "guest", "kernel's"]);
        assert_eq!(lines.last().unwrap()[..4], ["10.000", "2.000", "guest", "process's"]);
        assert_eq!(lines.len(), 8, "the absurd time is left out: {text}");
    }
}
