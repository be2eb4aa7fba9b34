//! What a container has used, from its cgroup's files.

use std::collections::HashMap;
use std::fs;

use husk_protocol::agent::{HugepageStats, IoStats, Pressure, PressureLine, StatsResponse};

use super::Cgroup;
use crate::sys;

impl Cgroup {
    /// What the container has used.
    pub(crate) fn stats(&self) -> StatsResponse {
        let read = |file: &str| self.read(file);
        let number = |file: &str| limit(&read(file)).unwrap_or(0);
        let cpu = flat(&read("cpu.stat"));
        let cpu = |key: &str| cpu.get(key).copied().unwrap_or(0);
        let (cpu_quota_us, cpu_period_us) = bandwidth(&read("cpu.max"));
        let io = io(&read("io.stat"));
        let sum = |bytes: fn(&IoStats) -> u64| io.iter().map(bytes).fold(0, u64::saturating_add);
        let memory_events = flat(&read("memory.events"));
        StatsResponse {
            cpu_usage_us: cpu("usage_usec"),
            cpu_user_us: cpu("user_usec"),
            cpu_system_us: cpu("system_usec"),
            cpu_periods: cpu("nr_periods"),
            cpu_throttled_periods: cpu("nr_throttled"),
            cpu_throttled_us: cpu("throttled_usec"),
            cpu_bursts: cpu("nr_bursts"),
            cpu_burst_us: cpu("burst_usec"),
            cpu_quota_us,
            cpu_period_us,
            memory_current: number("memory.current"),
            memory_peak: number("memory.peak"),
            // "max" is no number: no limit.
            memory_limit: number("memory.max"),
            memory: flat(&read("memory.stat")),
            oom_kills: memory_events.get("oom_kill").copied().unwrap_or(0),
            memory_events,
            swap_current: number("memory.swap.current"),
            swap_peak: number("memory.swap.peak"),
            swap_limit: limit(&read("memory.swap.max")),
            pids_current: number("pids.current"),
            pids_peak: number("pids.peak"),
            pids_limit: number("pids.max"),
            pids_refused: flat(&read("pids.events")).get("max").copied().unwrap_or(0),
            io_read_bytes: sum(|io| io.read_bytes),
            io_written_bytes: sum(|io| io.written_bytes),
            io,
            cpu_pressure: pressure(&read("cpu.pressure")).into(),
            memory_pressure: pressure(&read("memory.pressure")).into(),
            io_pressure: pressure(&read("io.pressure")).into(),
            hugepages: self.hugepages(),
            read_at_ns: sys::wall_clock_ns(),
            ..StatsResponse::default()
        }
    }

    /// The sizes are those of which there are files: "hugetlb.2MB.current".
    fn hugepages(&self) -> Vec<HugepageStats> {
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten();
        let mut sizes: Vec<String> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
                (!size.contains('.')).then(|| size.to_owned())
            })
            .collect();
        sizes.sort_unstable();
        let stats = |size: String| HugepageStats {
            current: limit(&self.read(&format!("hugetlb.{size}.current"))).unwrap_or(0),
            max: limit(&self.read(&format!("hugetlb.{size}.max"))).unwrap_or(0),
            failures: flat(&self.read(&format!("hugetlb.{size}.events")))
                .get("max")
                .copied()
                .unwrap_or(0),
            size,
            ..HugepageStats::default()
        };
        sizes.into_iter().map(stats).collect()
    }
}

/// "key number" lines.
pub(super) fn flat(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// A number, or none where there is no limit ("max") or no file.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// "quota period" in microseconds.
fn bandwidth(text: &str) -> (Option<u64>, u64) {
    let (quota, period) = text.trim().split_once(' ').unwrap_or_default();
    (quota.parse().ok(), period.parse().unwrap_or(0))
}

/// "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6" lines; devices without any numbers are left out.
fn io(text: &str) -> Vec<IoStats> {
    text.lines().filter_map(io_line).collect()
}

fn io_line(line: &str) -> Option<IoStats> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut stats = IoStats {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..IoStats::default()
    };
    let mut any = false;
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            continue;
        };
        let field = match key {
            "rbytes" => &mut stats.read_bytes,
            "wbytes" => &mut stats.written_bytes,
            "dbytes" => &mut stats.discarded_bytes,
            "rios" => &mut stats.reads,
            "wios" => &mut stats.writes,
            "dios" => &mut stats.discards,
            _ => continue,
        };
        *field = value.parse().ok()?;
        any = true;
    }
    any.then_some(stats)
}

/// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the same for "full" (Documentation/accounting/psi.rst).
fn pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let some = line("some")?;
    Some(Pressure {
        some: Some(pressure_line(some)).into(),
        full: line("full").map(pressure_line).into(),
        ..Pressure::default()
    })
}

fn pressure_line(line: &str) -> PressureLine {
    let word = |key: &str| {
        line.split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let average = |key: &str| word(key).and_then(|value| value.parse().ok()).unwrap_or(0.0);
    PressureLine {
        avg10: average("avg10"),
        avg60: average("avg60"),
        avg300: average("avg300"),
        total_us: word("total").and_then(|value| value.parse().ok()).unwrap_or(0),
        ..PressureLine::default()
    }
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::Resources;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn statistics_are_read_from_their_files() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::create(root.path(), "a", "", &Resources::default(), None).unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n\
                 nr_bursts 5\nburst_usec 6\n",
            ),
            ("cpu.max", "50000 100000\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.swap.max", "0\n"),
            ("memory.stat", "anon 5\nfile 6\n"),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n",
            ),
            ("pids.current", "7\n"),
            ("pids.max", "8\n"),
            ("pids.events", "max 3\n"),
            (
                "io.stat",
                "254:0 rbytes=100 wbytes=1 rios=5\n254:16 rbytes=11 wbytes=2 dbytes=0\n7:0 \nrubbish\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
            ),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 4\n"),
        ] {
            fs::write(cgroup.path().join(file), text).unwrap();
        }
        let stats = cgroup.stats();
        assert_eq!(
            (stats.cpu_usage_us, stats.cpu_user_us, stats.cpu_system_us),
            (30, 20, 10)
        );
        assert_eq!(
            (stats.cpu_periods, stats.cpu_throttled_periods, stats.cpu_throttled_us),
            (4, 3, 2)
        );
        assert_eq!((stats.cpu_bursts, stats.cpu_burst_us), (5, 6));
        assert_eq!((stats.cpu_quota_us, stats.cpu_period_us), (Some(50_000), 100_000));
        assert_eq!(
            (stats.memory_current, stats.memory_limit, stats.memory_peak),
            (4096, 0, 0)
        );
        assert_eq!(stats.memory, [("anon".to_owned(), 5), ("file".to_owned(), 6)].into());
        assert_eq!((stats.oom_kills, stats.memory_events["max"]), (1, 9));
        assert_eq!((stats.swap_limit, stats.swap_current), (Some(0), 0));
        assert_eq!((stats.pids_current, stats.pids_limit, stats.pids_refused), (7, 8, 3));
        assert_eq!((stats.io_read_bytes, stats.io_written_bytes), (111, 3));
        assert_eq!((stats.io.len(), stats.io[1].minor, stats.io[0].reads), (2, 16, 5));
        let cpu = &stats.cpu_pressure;
        assert!((cpu.some.avg10 - 1.5).abs() < 1e-9 && (cpu.some.avg60 - 0.25).abs() < 1e-9);
        assert_eq!((cpu.some.total_us, cpu.full.total_us), (77, 9));
        assert!(stats.memory_pressure.is_none());
        let [pages] = &stats.hugepages[..] else { panic!() };
        assert_eq!(
            (pages.size.as_str(), pages.current, pages.max, pages.failures),
            ("2MB", 2_097_152, 0, 4)
        );
    }

    proptest! {
        #[test]
        fn rubbish_is_no_reason_to_fall(text in "[a-z0-9 :=.\n]{0,60}") {
            flat(&text);
            io(&text);
            pressure(&text);
            bandwidth(&text);
        }
    }
}
