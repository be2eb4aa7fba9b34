//! `husk events`: what happens to a container, one JSON object a line, as runc writes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use husk_sandbox::agent::event::Kind;
use husk_sandbox::agent::{HugepageStats, IoStats, Pressure, PressureLine, StatsResponse};
use husk_sandbox::guest::Guest;
use serde_json::{Value, json};

use crate::answer;
use crate::args::{EventsArgs, Global};

/// How much is heard ahead of what is said: a guest may tell of more than is read.
const HEARD: usize = 64;

/// What the listening thread has heard.
enum Heard {
    Oom,
    End,
}

pub(crate) fn events(global: &Global, args: &EventsArgs) -> Result<u8> {
    let container = global.container(&args.id)?;
    let say =
        |kind: &str, data: Value| answer::text(&format!("{}\n", json!({"type": kind, "id": args.id, "data": data})));
    say("stats", data(&container.stats()?))?;
    if args.stats {
        return Ok(0);
    }
    let name = container.definition()?.name.clone();
    let guest = Arc::new(container.guest()?);
    let (sender, receiver) = sync_channel(HEARD);
    let (listening, of) = (Arc::clone(&guest), name.clone());
    thread::Builder::new()
        .name("events".into())
        .spawn(move || listen(&listening, &of, &sender))?;
    let mut next = Instant::now() + args.interval;
    loop {
        match receiver.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Heard::Oom) => say("oom", Value::Null)?,
            Ok(Heard::End) | Err(RecvTimeoutError::Disconnected) => return Ok(0),
            Err(RecvTimeoutError::Timeout) => {
                next += args.interval.max(Duration::from_millis(1));
                match guest.stats(&name) {
                    Ok(stats) => say("stats", data(&stats))?,
                    Err(error) if error.is_lost() => return Ok(0),
                    Err(error) => bail!(error),
                }
            }
        }
    }
}

/// Hears what the agent tells of a container until it has ended.
fn listen(guest: &Guest, container: &str, heard: &SyncSender<Heard>) {
    let mut after = 0;
    // The end of the sandbox is an error here and the end of the thread, of which the other hears.
    while let Ok(response) = guest.events(after) {
        for event in response.events {
            after = after.max(event.sequence);
            let told = match event.kind.enum_value_or_default() {
                _ if event.container != container => Ok(()),
                Kind::OOM => heard.send(Heard::Oom),
                Kind::EXIT if event.exec.is_empty() => heard.send(Heard::End),
                _ => Ok(()),
            };
            if told.is_err() {
                return;
            }
        }
    }
}

/// What a container uses, as runc says it: times in nanoseconds, sizes in bytes; no limit is the greatest number.
pub(crate) fn data(stats: &StatsResponse) -> Value {
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    let limit = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let failures = stats.memory_events.get("max").copied().unwrap_or(0);
    let io = |value: fn(&IoStats) -> [(&'static str, u64); 3]| -> Vec<Value> {
        let entry = |device: &IoStats, op: &str, value: u64| json!({"major": device.major, "minor": device.minor, "op": op, "value": value});
        let devices = stats.io.iter();
        devices
            .flat_map(|device| value(device).map(|(op, value)| entry(device, op, value)))
            .collect()
    };
    let hugepages: BTreeMap<_, _> = stats.hugepages.iter().map(hugepages).collect();
    json!({
        "cpu": {
            "usage": {
                "total": nanoseconds(stats.cpu_usage_us),
                "kernel": nanoseconds(stats.cpu_system_us),
                "user": nanoseconds(stats.cpu_user_us),
            },
            "throttling": {
                "periods": stats.cpu_periods,
                "throttledPeriods": stats.cpu_throttled_periods,
                "throttledTime": nanoseconds(stats.cpu_throttled_us),
            },
            "psi": stats.cpu_pressure.as_ref().map(pressure),
        },
        "memory": {
            "cache": stats.memory.get("file").copied().unwrap_or(0),
            "usage": {
                "limit": limit((stats.memory_limit > 0).then_some(stats.memory_limit)),
                "usage": stats.memory_current,
                "max": stats.memory_peak,
                "failcnt": failures,
            },
            "swap": {
                "limit": limit(stats.swap_limit),
                "usage": stats.swap_current,
                "max": stats.swap_peak,
                "failcnt": 0,
            },
            "raw": stats.memory.iter().collect::<BTreeMap<_, _>>(),
            "psi": stats.memory_pressure.as_ref().map(pressure),
        },
        "pids": {"current": stats.pids_current, "limit": stats.pids_limit},
        "blkio": {
            "ioServiceBytesRecursive": io(|device| [
                ("Read", device.read_bytes), ("Write", device.written_bytes), ("Discard", device.discarded_bytes),
            ]),
            "ioServicedRecursive": io(|device| [
                ("Read", device.reads), ("Write", device.writes), ("Discard", device.discards),
            ]),
            "psi": stats.io_pressure.as_ref().map(pressure),
        },
        "hugetlb": hugepages,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn hugepages(stats: &HugepageStats) -> (String, Value) {
    let value = json!({"usage": stats.current, "max": stats.max, "failcnt": stats.failures});
    (stats.size.clone(), value)
}

fn pressure(pressure: &Pressure) -> Value {
    let line = |line: &PressureLine| json!({"avg10": line.avg10, "avg60": line.avg60, "avg300": line.avg300, "total": line.total_us});
    json!({"some": pressure.some.as_ref().map(line), "full": pressure.full.as_ref().map(line)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_runcs_names_and_units() {
        let stats = StatsResponse {
            cpu_usage_us: 5,
            memory_current: 6,
            io: vec![IoStats {
                major: 254,
                written_bytes: 7,
                ..Default::default()
            }],
            ..Default::default()
        };
        let data = data(&stats);
        assert_eq!(data["cpu"]["usage"]["total"], 5000);
        assert_eq!(data["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(data["memory"]["usage"]["usage"], 6);
        let io = &data["blkio"]["ioServiceBytesRecursive"][1];
        assert_eq!(
            (&io["op"], &io["value"], &io["major"]),
            (&"Write".into(), &7.into(), &254.into())
        );
    }
}
