//! `linux.resources.blockIO` to `io.weight` and `io.max`.

use husk_protocol::agent::CgroupSetting;
use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::super::BundleError;
use super::disk::RootDisk;
use super::{out_of_range, setting};

/// Translates weights and throttles.
pub(super) fn translate(io: &LinuxBlockIo, disk: &RootDisk<'_>) -> Result<Vec<CgroupSetting>, BundleError> {
    let mut weight = weight("blockIO.weight", io.weight())?;
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let field = format!("blockIO.weightDevice[{index}]");
        check_device(&field, device.major(), device.minor(), disk)?;
        // The container has one disk: what is said of it is said of all.
        weight = self::weight(&format!("{field}.weight"), device.weight())?.or(weight);
    }
    let mut settings: Vec<_> = weight.map(|weight| setting("io.weight", weight)).into_iter().collect();
    for (name, key, list) in [
        ("throttleReadBpsDevice", "rbps", io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", "wbps", io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", "riops", io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", "wiops", io.throttle_write_iops_device()),
    ] {
        for (index, device) in list.iter().flatten().enumerate() {
            settings.push(throttle(&format!("blockIO.{name}[{index}]"), key, device, disk)?);
        }
    }
    Ok(settings)
}

fn throttle(
    field: &str,
    key: &str,
    device: &LinuxThrottleDevice,
    disk: &RootDisk<'_>,
) -> Result<CgroupSetting, BundleError> {
    check_device(field, device.major(), device.minor(), disk)?;
    // Nothing a second would be no limit in cgroup v1, and is refused by the kernel in v2.
    let rate = match device.rate() {
        0 => "max".to_owned(),
        rate => rate.to_string(),
    };
    Ok(CgroupSetting {
        on_root_disk: true,
        ..setting("io.max", format!("{key}={rate}"))
    })
}

/// `blkio.weight` (10 to 1,000) to `io.weight` (1 to 10,000), linearly as runc does it; 0 means "not set".
fn weight(field: &str, value: Option<u16>) -> Result<Option<u64>, BundleError> {
    match value {
        None | Some(0) => Ok(None),
        Some(value @ 10..=1000) => Ok(Some(1 + (u64::from(value) - 10) * 9999 / 990)),
        Some(value) => Err(out_of_range(field, value, "10 to 1000 is expected")),
    }
}

fn check_device(field: &str, major: i64, minor: i64, disk: &RootDisk<'_>) -> Result<(), BundleError> {
    let is_root = u64::try_from(major)
        .and_then(|major| u64::try_from(minor).map(|minor| disk.is(major, minor)))
        .unwrap_or(false);
    if is_root {
        return Ok(());
    }
    Err(out_of_range(
        field,
        format!("{major}:{minor}"),
        "the guest has no disk of the host but the one that the container's root lies on",
    ))
}
