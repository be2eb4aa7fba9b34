//! CPU, memory, processes and huge pages.

use std::ops::RangeInclusive;

use husk_protocol::agent::CgroupSetting;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids};

use super::super::BundleError;
use super::{Before, out_of_range, setting};

/// Bounds of a period of `cpu.max` in microseconds (kernel/sched/core.c: `min_cfs_quota_period`, `max_cfs_quota_period`).
const PERIOD: RangeInclusive<u64> = 1000..=1_000_000;
/// The least quota in microseconds.
const MIN_QUOTA: i64 = 1000;

/// `linux.resources.cpu`.
pub(super) fn cpu(cpu: &LinuxCpu, before: &Before) -> Result<Vec<CgroupSetting>, BundleError> {
    let mut settings = Vec::new();
    match cpu.idle() {
        None => {}
        Some(idle @ (0 | 1)) => settings.push(setting("cpu.idle", idle)),
        Some(other) => return Err(out_of_range("cpu.idle", other, "0 or 1 is expected")),
    }
    // A weight cannot be written to an idle group, and 0 shares mean "not set".
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0)
        && cpu.idle() != Some(1)
    {
        settings.push(setting("cpu.weight", weight(shares)));
    }
    let bandwidth = bandwidth(cpu, before)?;
    if bandwidth.is_some() && cpu.burst().is_some() && before.quota.is_some() {
        // The burst so far may exceed the new quota.
        settings.push(setting("cpu.max.burst", 0));
    }
    settings.extend(bandwidth);
    // After the quota, which it may not exceed.
    if let Some(burst) = cpu.burst() {
        settings.push(setting("cpu.max.burst", burst));
    }
    for (field, file, list) in [
        ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("cpu.mems", "cpuset.mems", cpu.mems()),
    ] {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else {
            continue;
        };
        if !list.chars().all(|byte| byte.is_ascii_digit() || ",-:/ ".contains(byte)) {
            return Err(out_of_range(
                field,
                list,
                "numbers and ranges such as 0-1,3 are expected",
            ));
        }
        settings.push(setting(file, list));
    }
    Ok(settings)
}

/// `cpu.max`: the kernel keeps the period where only a quota is written, but not the other way round.
fn bandwidth(cpu: &LinuxCpu, before: &Before) -> Result<Option<CgroupSetting>, BundleError> {
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if let Some(period) = period.filter(|period| !PERIOD.contains(period)) {
        return Err(out_of_range(
            "cpu.period",
            period,
            "1000 to 1000000 microseconds are expected",
        ));
    }
    let quota = match quota {
        Some(quota @ 1..MIN_QUOTA) => {
            return Err(out_of_range(
                "cpu.quota",
                quota,
                "at least 1000 microseconds are expected",
            ));
        }
        Some(quota) => Some(limited("cpu.quota", quota)?),
        None => None,
    };
    let kept = || before.quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
    Ok(match (quota, period) {
        (None, None) => None,
        (Some(quota), None) => Some(setting("cpu.max", quota)),
        (quota, Some(period)) => Some(setting("cpu.max", format!("{} {period}", quota.unwrap_or_else(kept)))),
    })
}

/// `cpu.shares` (2 to 262,144, 1,024 by default) to `cpu.weight` (1 to 10,000, 100 by default).
///
/// The curve of `github.com/opencontainers/cgroups` from 0.0.5 on, which runc and crun use: quadratic between the
/// logarithms, through both scales' ends and defaults.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // Between 1 and 10,000 for every argument that gets here.
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// `linux.resources.memory`.
pub(super) fn memory(memory: &LinuxMemory, before: &Before) -> Result<Vec<CgroupSetting>, BundleError> {
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return Err(out_of_range("memory.swappiness", swappiness, "0 to 100 is expected"));
        }
        tracing::warn!("linux.resources.memory.swappiness has no effect with cgroup v2");
    }
    if memory.disable_oom_killer() == Some(true) {
        tracing::warn!("linux.resources.memory.disableOOMKiller has no effect with cgroup v2");
    }
    if memory.kernel().is_some() || memory.kernel_tcp().is_some() {
        tracing::warn!("linux.resources.memory.kernel and kernelTCP have no effect with cgroup v2");
    }
    let limit = memory.limit().filter(|limit| *limit != 0);
    let mut settings = Vec::new();
    if let Some(swap) = swap(memory.swap().filter(|swap| *swap != 0), limit, before)? {
        // Without swap there is nothing to forbid, and nothing to allow without a limit.
        let optional = matches!(swap.as_str(), "0" | "max");
        settings.push(CgroupSetting {
            optional,
            ..setting("memory.swap.max", swap)
        });
    }
    if let Some(limit) = limit {
        settings.push(setting("memory.max", limited("memory.limit", limit)?));
    }
    if let Some(reservation) = memory.reservation().filter(|bytes| *bytes != 0) {
        settings.push(setting("memory.low", limited("memory.reservation", reservation)?));
    }
    Ok(settings)
}

/// `memory.swap.max`: v1 counts memory and swap together, v2 swap alone.
fn swap(swap: Option<i64>, limit: Option<i64>, before: &Before) -> Result<Option<String>, BundleError> {
    let Some(swap) = swap else {
        // No limit of memory is none of both together, as in v1.
        return Ok((limit == Some(-1)).then(|| "max".to_owned()));
    };
    let before = before.memory.and_then(|limit| i64::try_from(limit).ok());
    match (swap, limit.or(before)) {
        (..0, _) => limited("memory.swap", swap).map(Some),
        (_, Some(-1)) => Ok(Some(swap.to_string())),
        (_, Some(limit @ 0..)) if limit <= swap => Ok(Some((swap - limit).to_string())),
        (_, Some(0..)) => Err(invalid_swap("is below linux.resources.memory.limit")),
        (_, _) => Err(invalid_swap("is set without linux.resources.memory.limit")),
    }
}

fn invalid_swap(fault: &'static str) -> BundleError {
    BundleError::Invalid {
        path: "linux.resources.memory.swap".into(),
        fault,
    }
}

/// A limit as a file of cgroup v2 takes it; -1 means that there is none.
fn limited(field: &str, value: i64) -> Result<String, BundleError> {
    match value {
        0.. => Ok(value.to_string()),
        -1 => Ok("max".into()),
        _ => Err(out_of_range(
            field,
            value,
            "a positive number, or -1 for no limit, is expected",
        )),
    }
}

/// `linux.resources.pids`; a limit of 0 is one of 1, as with runc from 1.4 on: there is always the first process.
pub(super) fn pids(pids: LinuxPids) -> Result<CgroupSetting, BundleError> {
    let limit = match pids.limit() {
        0 => 1,
        limit => limit,
    };
    Ok(setting("pids.max", limited("pids.limit", limit)?))
}

/// `linux.resources.hugepageLimits`: of what is used, and of what is reserved.
pub(super) fn hugepages(limits: &[LinuxHugepageLimit]) -> Result<Vec<CgroupSetting>, BundleError> {
    let mut settings = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        let size = limit.page_size().as_str();
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
        if !digits.is_some_and(|digits| {
            !digits.starts_with('0')
                && (1..=4).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_digit())
        }) {
            let field = format!("hugepageLimits[{index}].pageSize");
            return Err(out_of_range(&field, size, "a size such as 2MB is expected"));
        }
        let Ok(bytes) = u64::try_from(limit.limit()) else {
            let field = format!("hugepageLimits[{index}].limit");
            return Err(out_of_range(&field, limit.limit(), "a number of bytes is expected"));
        };
        settings.push(setting(&format!("hugetlb.{size}.max"), bytes));
        settings.push(CgroupSetting {
            optional: true,
            ..setting(&format!("hugetlb.{size}.rsvd.max"), bytes)
        });
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_meet_the_scales_ends_and_defaults() {
        assert_eq!(weight(1), 1);
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 100);
        assert_eq!(weight(512), 59);
        assert_eq!(weight(262_144), 10_000);
        assert_eq!(weight(u64::MAX), 10_000);
    }

    proptest! {
        #[test]
        fn weights_are_in_range_and_grow(shares in 2u64..300_000) {
            prop_assert!((1..=10_000).contains(&weight(shares)));
            prop_assert!(weight(shares) <= weight(shares + 1));
        }
    }
}
