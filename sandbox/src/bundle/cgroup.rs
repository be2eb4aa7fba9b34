//! `linux.resources` to files of cgroup v2.
//!
//! The specification's values are those of cgroup v1; the translation is the one that the other runtimes use, so that
//! a limit means the same under husk.

use husk_protocol::agent::CgroupSetting;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::BundleError;

/// The period of `cpu.max` where only a quota is given, in microseconds (the kernel's default).
const DEFAULT_PERIOD: u64 = 100_000;

/// Translates the limits, in the order in which they are to be written.
pub(super) fn translate(resources: &LinuxResources) -> Result<Vec<CgroupSetting>, BundleError> {
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        settings.extend(translate_cpu(cpu)?);
    }
    if let Some(memory) = resources.memory() {
        settings.extend(translate_memory(memory)?);
    }
    if let Some(pids) = resources.pids() {
        settings.extend(translate_pids(pids)?);
    }
    Ok(settings)
}

fn setting(file: &str, value: impl ToString) -> CgroupSetting {
    CgroupSetting {
        file: file.to_owned(),
        value: value.to_string(),
        ..Default::default()
    }
}

fn translate_cpu(cpu: &LinuxCpu) -> Result<Vec<CgroupSetting>, BundleError> {
    let mut settings = Vec::new();
    match cpu.idle().unwrap_or(0) {
        0 => {}
        1 => settings.push(setting("cpu.idle", 1)),
        other => {
            return Err(BundleError::Value {
                path: "linux.resources.cpu.idle".into(),
                value: other.to_string(),
                expected: "0 or 1 is expected",
            });
        }
    }
    // A weight cannot be written to an idle group, and 0 shares mean "not set".
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0)
        && settings.is_empty()
    {
        settings.push(setting("cpu.weight", weight(shares)));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(quota) => limited("cpu.quota", quota)?,
            None => "max".to_owned(),
        };
        let value = format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD));
        settings.push(setting("cpu.max", value));
    }
    // After the quota, which it may not exceed.
    if let Some(burst) = cpu.burst().filter(|burst| *burst > 0) {
        settings.push(setting("cpu.max.burst", burst));
    }
    Ok(settings)
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

fn translate_memory(memory: &LinuxMemory) -> Result<Vec<CgroupSetting>, BundleError> {
    let mut settings = Vec::new();
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(reservation) = memory.reservation().filter(|bytes| *bytes != 0) {
        settings.push(setting("memory.low", limited("memory.reservation", reservation)?));
    }
    if let Some(limit) = limit {
        settings.push(setting("memory.max", limited("memory.limit", limit)?));
    }
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        // v1 counts memory and swap together, v2 swap alone.
        let value = match (swap, limit) {
            (..0, _) => limited("memory.swap", swap)?,
            (_, Some(limit @ 0..)) if limit <= swap => (swap - limit).to_string(),
            (_, Some(0..)) => return Err(invalid_swap("is below linux.resources.memory.limit")),
            (_, _) => return Err(invalid_swap("is set without linux.resources.memory.limit")),
        };
        settings.push(setting("memory.swap.max", value));
    }
    Ok(settings)
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
        _ => Err(BundleError::Value {
            path: format!("linux.resources.{field}"),
            value: value.to_string(),
            expected: "a positive number, or -1 for no limit, is expected",
        }),
    }
}

fn translate_pids(pids: &LinuxPids) -> Result<Option<CgroupSetting>, BundleError> {
    match pids.limit() {
        0 => Ok(None),
        limit => Ok(Some(setting("pids.max", limited("pids.limit", limit)?))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn translated(resources: serde_json::Value) -> Vec<(String, String)> {
        let resources = serde_json::from_value(resources).unwrap();
        let settings = translate(&resources).unwrap();
        settings.into_iter().map(|entry| (entry.file, entry.value)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(file, value)| ((*file).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn weights_meet_the_scales_ends_and_defaults() {
        assert_eq!(weight(1), 1);
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 100);
        assert_eq!(weight(512), 59);
        assert_eq!(weight(262_144), 10_000);
        assert_eq!(weight(u64::MAX), 10_000);
    }

    #[test]
    fn limits_become_files() {
        assert_eq!(
            translated(json!({"cpu": {"shares": 1024, "quota": 50_000, "burst": 10_000}, "pids": {"limit": 20}})),
            pairs(&[
                ("cpu.weight", "100"),
                ("cpu.max", "50000 100000"),
                ("cpu.max.burst", "10000"),
                ("pids.max", "20")
            ])
        );
        assert_eq!(
            translated(json!({"cpu": {"quota": -1, "period": 50_000}, "pids": {"limit": -1}})),
            pairs(&[("cpu.max", "max 50000"), ("pids.max", "max")])
        );
        assert_eq!(
            translated(json!({"memory": {"limit": 100, "swap": 150, "reservation": 50}})),
            pairs(&[("memory.low", "50"), ("memory.max", "100"), ("memory.swap.max", "50")])
        );
        assert_eq!(
            translated(json!({"memory": {"limit": -1, "swap": -1}})),
            pairs(&[("memory.max", "max"), ("memory.swap.max", "max")])
        );
        assert_eq!(
            translated(json!({"cpu": {"idle": 1, "shares": 5}})),
            pairs(&[("cpu.idle", "1")])
        );
        assert_eq!(
            translated(
                json!({"cpu": {"shares": 0, "quota": 0, "period": 0}, "memory": {"limit": 0}, "pids": {"limit": 0}})
            ),
            pairs(&[])
        );
    }

    #[test]
    fn a_limit_is_positive_or_minus_one() {
        for resources in [
            json!({"memory": {"limit": -5}}),
            json!({"memory": {"reservation": -2}}),
            json!({"memory": {"swap": -2}}),
            json!({"cpu": {"quota": -2}}),
            json!({"pids": {"limit": i64::MIN}}),
        ] {
            let error = translate(&serde_json::from_value(resources).unwrap())
                .unwrap_err()
                .to_string();
            assert!(error.contains("linux.resources."), "{error}");
        }
    }

    #[test]
    fn a_swap_limit_needs_a_smaller_memory_limit() {
        for memory in [
            json!({"swap": 10}),
            json!({"swap": 10, "limit": 20}),
            json!({"swap": 10, "limit": -1}),
        ] {
            let resources = serde_json::from_value(json!({"memory": memory})).unwrap();
            let error = translate(&resources).unwrap_err().to_string();
            assert!(error.contains("linux.resources.memory.swap"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn weights_are_in_range_and_grow(shares in 2u64..300_000) {
            prop_assert!((1..=10_000).contains(&weight(shares)));
            prop_assert!(weight(shares) <= weight(shares + 1));
        }
    }
}
