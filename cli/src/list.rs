//! `husk list`: the containers that there are.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use husk_sandbox::lifecycle::{Container, Status};
use husk_sandbox::rundir::{Found, RunRoot};
use serde::Serialize;

use crate::answer;
use crate::args::{Global, ListArgs, TableFormat};
use crate::state::State;
use crate::table::{aligned, rough, shortened};

/// How long each guest may take to tell its container's status.
const PATIENCE: Duration = Duration::from_secs(5);

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
    if args.quiet {
        let names: String = found.iter().map(|one| format!("{}\n", one.state.name)).collect();
        answer::text(&names)?;
        return Ok(0);
    }
    let patience = PATIENCE.min(global.patience());
    let entries: Vec<_> = found.into_iter().map(|one| entry(one, patience)).collect();
    match args.json || args.format == TableFormat::Json {
        true => answer::json(&entries)?,
        false => answer::text(&table(&entries))?,
    }
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
