//! `husk list`: the sandboxes that run.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use husk_sandbox::rundir::{RunRoot, State};

use crate::args::{Global, ListArgs};

/// A longer command is cut in the table.
const MAX_COMMAND: usize = 40;

pub(crate) fn list(global: &Global, args: &ListArgs) -> Result<u8> {
    let states = RunRoot::open(&global.root())?.list()?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&states)?)
    } else if args.quiet {
        states.iter().map(|state| format!("{}\n", state.name)).collect()
    } else {
        rows(&states)
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("stdout cannot be written to")?;
    Ok(0)
}

fn rows(states: &[State]) -> String {
    let mut rows = vec![["NAME", "PID", "CREATED", "CPUS", "MEMORY", "COMMAND"].map(str::to_owned)];
    for state in states {
        let age = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let command = state
            .containers
            .first()
            .map(|container| container.process.args.join(" "));
        rows.push([
            state.name.clone(),
            state.pid.to_string(),
            format!("{} ago", rough(age.saturating_sub(Duration::from_secs(state.created)))),
            state.cpus.to_string(),
            format!("{}M", state.memory_mib),
            shortened(&command.unwrap_or_else(|| "(starting)".into())),
        ]);
    }
    table(&rows)
}

/// Rows with aligned columns.
pub(crate) fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..COLUMNS).map(width).collect();
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

/// A command in one line without control characters.
pub(crate) fn shortened(command: &str) -> String {
    let clean = command
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter });
    if command.chars().count() <= MAX_COMMAND {
        clean.collect()
    } else {
        clean.take(MAX_COMMAND - 3).chain("...".chars()).collect()
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
        let state = State {
            name: "a-long-name-indeed".into(),
            pid: 1,
            vmm_pid: 2,
            created: 0,
            cpus: 2,
            memory_mib: 512,
            console: false,
            containers: Vec::new(),
        };
        let text = rows(&[state]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].find("PID"), lines[1].find("1  "));
        assert_eq!(lines[0].find("COMMAND"), lines[1].find("(starting)"));
    }

    #[test]
    fn commands_and_ages_are_short() {
        assert_eq!(shortened("a\nb"), "a b");
        assert_eq!(shortened(&"x".repeat(100)).len(), MAX_COMMAND);
        let ages = [5, 600, 7_200, 200_000].map(|seconds| rough(Duration::from_secs(seconds)));
        assert_eq!(ages, ["5s", "10m", "2h", "2d"]);
    }
}
