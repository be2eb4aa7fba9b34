//! Containers, where KVM carries Linux: how long a start takes, and what it costs, with husk and with other runtimes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Plan;
use crate::series::Part;

/// What `husk run --timings=json` prints.
#[derive(Debug, Deserialize)]
struct Timings {
    points: Vec<Point>,
    exits: Vec<(String, BTreeMap<String, u64>)>,
}

#[derive(Debug, Deserialize)]
struct Point {
    at_ns: u64,
    name: String,
}

pub(crate) fn run(plan: &Plan, part: &mut Part) -> Result<()> {
    if plan.wants("start") {
        starts(plan, part)?;
    }
    if plan.wants("runtimes") {
        runtimes(plan, part)?;
    }
    Ok(())
}

/// A husk command, with its state in memory.
pub(crate) fn husk(plan: &Plan, words: &[&str]) -> Command {
    let mut command = Command::new(plan.bin.join("husk"));
    command
        .args(words)
        .env("HUSK_ROOT", "/run/husk-bench")
        .env("HUSK_IMAGE_CACHE", "/tmp/husk-bench-images")
        .stdin(Stdio::null());
    command
}

/// The phases of `husk run`, and the exits to husk-vmm by then.
pub(crate) fn starts(plan: &Plan, part: &mut Part) -> Result<()> {
    let (rootfs, count) = (plan.rootfs.to_string_lossy(), plan.times(7));
    for round in 0..=count {
        let words = [
            "run",
            "--timings=json",
            "--memory",
            "128M",
            "--rootfs",
            &*rootfs,
            "--",
            "true",
        ];
        let started = Instant::now();
        let output = husk(plan, &words).output().context("husk run")?;
        let whole = started.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "husk run: {}: {said}", output.status);
        // The first round makes the image and warms the caches.
        if round == 0 {
            continue;
        }
        let line = said.lines().find(|line| line.starts_with('{')).context("no timings")?;
        let mut timings: Timings = serde_json::from_str(line)?;
        timings.points.sort_by_key(|point| point.at_ns);
        record(part, &timings);
        part.add(
            "start: husk run true, seen by its caller",
            "ms",
            whole.as_secs_f64() * 1e3,
        );
    }
    Ok(())
}

fn record(part: &mut Part, timings: &Timings) {
    let at = |name: &str| {
        timings
            .points
            .iter()
            .find(|point| point.name == name)
            .map(|point| point.at_ns)
    };
    let mut last = None;
    for Point { at_ns, name } in &timings.points {
        let step = at_ns - last.unwrap_or(*at_ns);
        part.add(&format!("start: {name}"), "ms", step as f64 / 1e6);
        last = Some(*at_ns);
    }
    for (name, from, to) in [
        ("husk-vmm's start to guest entered", "process started", "guest entered"),
        ("guest entered to agent ready", "guest entered", "agent ready"),
        (
            "husk's start to process's first instruction",
            "husk started",
            "process's first instruction",
        ),
    ] {
        if let (Some(from), Some(to)) = (at(from), at(to)) {
            part.add(&format!("start: {name}"), "ms", to.saturating_sub(from) as f64 / 1e6);
        }
    }
    for (point, counts) in &timings.exits {
        part.add(
            &format!("exits: to husk-vmm, {point}"),
            "exits",
            counts.values().sum::<u64>() as f64,
        );
        for (kind, count) in counts {
            part.add(&format!("exits: to husk-vmm, {point}, {kind}"), "exits", *count as f64);
        }
    }
}

/// create, start and delete of /bin/true on the same tree, by each runtime that is there.
fn runtimes(plan: &Plan, part: &mut Part) -> Result<()> {
    let bundle = tempfile::tempdir()?;
    write_bundle(bundle.path(), &plan.rootfs)?;
    let names = ["husk", "runc", "crun"];
    for round in 0..=plan.times(7) {
        let mut times = BTreeMap::new();
        for name in names {
            let program = match name {
                "husk" => plan.bin.join("husk"),
                other => other.into(),
            };
            if Command::new(&program).arg("--version").output().is_err() {
                continue;
            }
            let took = life(&program, bundle.path()).with_context(|| format!("a container of {name}"))?;
            times.insert(name, took);
        }
        if round == 0 {
            continue;
        }
        for (name, took) in &times {
            part.add(&format!("runtimes: {name} create, start, wait, delete"), "ms", *took);
        }
        for other in ["runc", "crun"] {
            if let (Some(husk), Some(took)) = (times.get("husk"), times.get(other)) {
                part.add(&format!("runtimes: husk's time over {other}'s"), "times", husk / took);
            }
        }
    }
    Ok(())
}

/// The time of a container's life in ms: its process ends when the pipe that is its stdout does.
fn life(program: &Path, bundle: &Path) -> Result<f64> {
    let command = |words: &[&str]| {
        let mut command = Command::new(program);
        command
            .args(words)
            .env("HUSK_ROOT", "/run/husk-bench")
            .env("HUSK_IMAGE_CACHE", "/tmp/husk-bench-images");
        command.stdin(Stdio::null()).current_dir(bundle);
        command
    };
    let (mut read, write) = std::io::pipe()?;
    let started = Instant::now();
    let mut create = command(&["create", "bench"]);
    let status = create.stdout(write).status()?;
    // Ends this side's hold on the pipe.
    drop(create);
    ensure!(status.success(), "create: {status}");
    let status = command(&["start", "bench"]).status()?;
    ensure!(status.success(), "start: {status}");
    std::io::Read::read_to_end(&mut read, &mut Vec::new())?;
    let status = command(&["delete", "--force", "bench"]).status()?;
    ensure!(status.success(), "delete: {status}");
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

/// A bundle of /bin/true with what every runtime takes.
fn write_bundle(directory: &Path, rootfs: &Path) -> Result<()> {
    let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin:/usr/bin"],
        },
        "root": { "path": rootfs, "readonly": true },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "annotations": { "dev.husk.memory": "128M" },
        "linux": { "namespaces": namespaces },
    });
    Ok(fs::write(directory.join("config.json"), config.to_string())?)
}
