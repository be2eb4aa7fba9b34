//! What a container uses, in containerd's form for cgroup v2, which the guest has whatever its host has.

use std::collections::BTreeMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat,
};
use husk_sandbox::agent::{HugepageStats, IoStats, Pressure, PressureLine, StatsResponse};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

/// The most disks and sizes of huge pages that are told of: containerd keeps series of figures for each, for as long as the
/// guest likes.
const MOST: usize = 64;
/// The longest name of a size of huge pages, such as `1GB`.
const LONGEST_SIZE: usize = 16;
/// containerd's name of the form.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// What a container uses, as containerd passes it on.
pub(crate) fn message(stats: &StatsResponse) -> Any {
    Any {
        type_url: TYPE.into(),
        // A message that this program has made itself can be written.
        value: metrics(stats).write_to_bytes().unwrap_or_default(),
        ..Default::default()
    }
}

fn metrics(stats: &StatsResponse) -> Metrics {
    let event = |name: &str| stats.memory_events.get(name).copied().unwrap_or_default();
    Metrics {
        pids: Some(PidsStat {
            current: stats.pids_current,
            limit: or_none(stats.pids_limit),
            ..Default::default()
        })
        .into(),
        cpu: Some(CPUStat {
            usage_usec: stats.cpu_usage_us,
            user_usec: stats.cpu_user_us,
            system_usec: stats.cpu_system_us,
            nr_periods: stats.cpu_periods,
            nr_throttled: stats.cpu_throttled_periods,
            throttled_usec: stats.cpu_throttled_us,
            nr_bursts: stats.cpu_bursts,
            burst_usec: stats.cpu_burst_us,
            psi: pressure(&stats.cpu_pressure),
            ..Default::default()
        })
        .into(),
        memory: Some(memory(stats)).into(),
        io: Some(IOStat {
            usage: once(&stats.io, |stats| (stats.major, stats.minor))
                .map(device)
                .collect(),
            psi: pressure(&stats.io_pressure),
            ..Default::default()
        })
        .into(),
        hugetlb: once(&stats.hugepages, |stats| stats.size.clone())
            .filter(|stats| stats.size.len() <= LONGEST_SIZE)
            .map(hugepages)
            .collect(),
        memory_events: Some(MemoryEvents {
            low: event("low"),
            high: event("high"),
            max: event("max"),
            oom: event("oom"),
            oom_kill: event("oom_kill"),
            oom_group_kill: event("oom_group_kill"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

/// Not too many of a guest's list, and none twice: two series of figures with one name break those of all containers.
fn once<T, N: Ord>(list: &[T], name: impl Fn(&T) -> N) -> impl Iterator<Item = &T> {
    let named = list.iter().take(MOST).map(|entry| (name(entry), entry));
    named.collect::<BTreeMap<_, _>>().into_values()
}

/// A limit, and the greatest number where there is none, as containerd reads it off a cgroup.
fn or_none(limit: u64) -> u64 {
    if limit == 0 { u64::MAX } else { limit }
}

fn memory(stats: &StatsResponse) -> MemoryStat {
    let of = |name: &str| stats.memory.get(name).copied().unwrap_or_default();
    MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        workingset_refault: of("workingset_refault_anon").saturating_add(of("workingset_refault_file")),
        workingset_activate: of("workingset_activate_anon").saturating_add(of("workingset_activate_file")),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: stats.memory_current,
        usage_limit: or_none(stats.memory_limit),
        swap_usage: stats.swap_current,
        swap_limit: stats.swap_limit.unwrap_or(u64::MAX),
        max_usage: stats.memory_peak,
        swap_max_usage: stats.swap_peak,
        psi: pressure(&stats.memory_pressure),
        ..Default::default()
    }
}

fn device(stats: &IoStats) -> IOEntry {
    IOEntry {
        major: stats.major.into(),
        minor: stats.minor.into(),
        rbytes: stats.read_bytes,
        wbytes: stats.written_bytes,
        rios: stats.reads,
        wios: stats.writes,
        ..Default::default()
    }
}

fn hugepages(stats: &HugepageStats) -> HugeTlbStat {
    HugeTlbStat {
        current: stats.current,
        max: stats.max,
        pagesize: stats.size.clone(),
        failcnt: stats.failures,
        ..Default::default()
    }
}

fn finite(figure: f64) -> f64 {
    if figure.is_finite() { figure } else { 0.0 }
}

fn pressure(pressure: &MessageField<Pressure>) -> MessageField<PSIStats> {
    let line = |line: &MessageField<PressureLine>| {
        let data = line.as_ref().map(|line| PSIData {
            avg10: finite(line.avg10),
            avg60: finite(line.avg60),
            avg300: finite(line.avg300),
            total: line.total_us,
            ..Default::default()
        });
        MessageField::from(data)
    };
    let stats = pressure.as_ref().map(|pressure| PSIStats {
        some: line(&pressure.some),
        full: line(&pressure.full),
        ..Default::default()
    });
    stats.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_lists_are_short_and_name_nothing_twice() {
        let disk = |minor| IoStats {
            major: 254,
            minor,
            ..Default::default()
        };
        let size = |size: &str| HugepageStats {
            size: size.into(),
            ..Default::default()
        };
        let hostile = StatsResponse {
            io: (0..100_000).map(|number| disk(number / 2)).collect(),
            hugepages: vec![size("2MB"), size("2MB"), size(&"x".repeat(1000))],
            cpu_pressure: Some(Pressure {
                some: Some(PressureLine {
                    avg10: f64::NAN,
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let metrics = metrics(&hostile);
        let minors: Vec<_> = metrics.io.usage.iter().map(|entry| entry.minor).collect();
        assert_eq!(minors, (0..32).collect::<Vec<_>>());
        assert_eq!((metrics.hugetlb.len(), metrics.cpu.psi.some.avg10), (1, 0.0));
    }

    #[test]
    fn figures_arrive_in_their_places() {
        let stats = StatsResponse {
            cpu_usage_us: 7,
            memory_current: 4096,
            pids_current: 3,
            memory: [("anon".to_owned(), 11)].into(),
            memory_events: [("oom_kill".to_owned(), 2)].into(),
            ..Default::default()
        };
        let any = message(&stats);
        assert_eq!(any.type_url, TYPE);
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.cpu.usage_usec, metrics.pids.current), (7, 3));
        assert_eq!(metrics.pids.limit, u64::MAX);
        assert_eq!((metrics.memory.usage, metrics.memory.anon), (4096, 11));
        assert_eq!(
            (metrics.memory.usage_limit, metrics.memory_events.oom_kill),
            (u64::MAX, 2)
        );
    }
}
