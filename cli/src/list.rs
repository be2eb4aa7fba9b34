//! `husk list`: the containers that there are.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use husk_sandbox::lifecycle::{Container, Status};
use husk_sandbox::rundir::{Found, RunRoot};
use serde::Serialize;

use crate::args::{Global, ListArgs, TableFormat};
use crate::failure::print_out;
use crate::state::State;

/// How long each guest may take to tell its container's status.
const PATIENCE: Duration = Duration::from_secs(5);

/// A longer command is cut in the table.
const MAX_COMMAND: usize = 40;

/// A container in the list.
#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    state: State,
    cpus: u32,
    #[serde(rename = "memoryMib")]
    memory_mib: u32,
    #[serde(rename = "vmmPid")]
    vmm_pid: u32,
    args: Vec<String>,
    #[serde(skip)]
    age: Duration,
}

pub(crate) fn list(global: &Global, args: &ListArgs) -> Result<u8> {
    let found = RunRoot::open(&global.root())?.list()?;
    let text = if args.quiet {
        found.iter().map(|one| format!("{}\n", one.state.name)).collect()
    } else {
        let patience = PATIENCE.min(global.patience());
        let entries: Vec<_> = found.into_iter().map(|one| entry(one, patience)).collect();
        match args.json || args.format == TableFormat::Json {
            true => format!("{}\n", serde_json::to_string_pretty(&entries)?),
            false => table(&entries),
        }
    };
    print_out(&text)?;
    Ok(0)
}

fn entry(found: Found, patience: Duration) -> Entry {
    let container = Container::new(found, patience);
    // One guest that does not answer keeps no other from being listed: its owner lives, or it would have stopped.
    let status = container.status().unwrap_or_else(|error| {
        tracing::warn!(%error, "{} does not tell its status", container.name());
        Status::Running
    });
    let state = State::of(&container, status);
    let sandbox = &container.found().state;
    let age = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let process = sandbox.containers.first().map(|container| &container.process);
    Entry {
        cpus: sandbox.cpus,
        memory_mib: sandbox.memory_mib,
        vmm_pid: sandbox.vmm_pid,
        args: process.map(|process| process.args.clone()).unwrap_or_default(),
        age: age.saturating_sub(Duration::from_secs(sandbox.created)),
        state,
    }
}

fn table(entries: &[Entry]) -> String {
    let mut rows = vec![["NAME", "PID", "STATUS", "CREATED", "CPUS", "MEMORY", "COMMAND"].map(str::to_owned)];
    for entry in entries {
        let command = entry.args.join(" ");
        rows.push([
            entry.state.id.clone(),
            entry.state.pid.to_string(),
            entry.state.status.to_string(),
            format!("{} ago", rough(entry.age)),
            entry.cpus.to_string(),
            format!("{}M", entry.memory_mib),
            shortened(if command.is_empty() { "(starting)" } else { &command }),
        ]);
    }
    aligned(&rows)
}

/// Columns as wide as their widest cell.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A text of a guest's without control characters, which might command the terminal.
pub(crate) fn clean(text: &str) -> String {
    let visible = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().map(visible).collect()
}

/// A command in one line.
pub(crate) fn shortened(command: &str) -> String {
    let clean = clean(command);
    if clean.chars().count() <= MAX_COMMAND {
        clean
    } else {
        clean.chars().take(MAX_COMMAND - 3).chain("...".chars()).collect()
    }
}

/// A duration as people say it.
pub(crate) fn rough(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let text = aligned(&[row(["NAME", "PID", "X"]), row(["a-long-name-indeed", "1", "y"])]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].find("PID"), lines[1].find("1  "));
        assert_eq!(lines[0].find('X'), lines[1].find('y'));
    }

    #[test]
    fn commands_and_ages_are_short() {
        assert_eq!(shortened("a\nb"), "a b");
        assert_eq!(shortened(&"x".repeat(100)).len(), MAX_COMMAND);
        let ages = [5, 600, 7_200, 200_000].map(|seconds| rough(Duration::from_secs(seconds)));
        assert_eq!(ages, ["5s", "10m", "2h", "2d"]);
    }
}
