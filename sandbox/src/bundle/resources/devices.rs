//! `linux.resources.devices` to rules for the guest's devices.
//!
//! The rules name device numbers. Those that Linux has assigned (Documentation/admin-guide/devices.txt) mean the same
//! device on the host and in the guest; the others are given out by each kernel as it likes.

use husk_protocol::agent::{DeviceRule, DeviceRules, device_rule::Kind};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::super::BundleError;

/// What every container may use, whatever its configuration says: runc's list, which other runtimes have taken over.
/// Kind, major, minor, and whether more than making a node is allowed.
const ALWAYS: [(Kind, Option<u32>, Option<u32>, bool); 11] = [
    (Kind::CHARACTER, None, None, false),
    (Kind::BLOCK, None, None, false),
    (Kind::CHARACTER, Some(1), Some(3), true),
    (Kind::CHARACTER, Some(1), Some(8), true),
    (Kind::CHARACTER, Some(1), Some(7), true),
    (Kind::CHARACTER, Some(5), Some(0), true),
    (Kind::CHARACTER, Some(1), Some(5), true),
    (Kind::CHARACTER, Some(1), Some(9), true),
    // Terminals, and the multiplexer that makes them.
    (Kind::CHARACTER, Some(136), None, true),
    (Kind::CHARACTER, Some(5), Some(2), true),
    // /dev/net/tun
    (Kind::CHARACTER, Some(10), Some(200), true),
];

/// Translates the rules and adds those for the devices that every container may use.
pub(super) fn translate(rules: &[LinuxDeviceCgroup]) -> Result<DeviceRules, BundleError> {
    let mut translated = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        translated.push(translate_one(index, rule)?);
    }
    for (kind, major, minor, all) in ALWAYS {
        translated.push(DeviceRule {
            allow: true,
            kind: kind.into(),
            major,
            minor,
            read: all,
            write: all,
            make: true,
            ..Default::default()
        });
    }
    Ok(DeviceRules {
        rules: translated,
        ..Default::default()
    })
}

fn translate_one(index: usize, rule: &LinuxDeviceCgroup) -> Result<DeviceRule, BundleError> {
    let path = |field: &str| format!("linux.resources.devices[{index}].{field}");
    let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        // Whatever else it says, such a rule is about everything, as it is in cgroup v1 and with runc.
        LinuxDeviceType::A => {
            return Ok(DeviceRule {
                allow: rule.allow(),
                kind: Kind::ALL.into(),
                read: true,
                write: true,
                make: true,
                ..Default::default()
            });
        }
        LinuxDeviceType::B => Kind::BLOCK,
        LinuxDeviceType::C => Kind::CHARACTER,
        other @ (LinuxDeviceType::U | LinuxDeviceType::P) => {
            return Err(BundleError::Value {
                path: path("type"),
                value: other.as_str().into(),
                expected: "a, b or c is expected",
            });
        }
    };
    let access = rule.access().as_deref().unwrap_or_default();
    if access.is_empty() || !access.chars().all(|kind| "rwm".contains(kind)) {
        return Err(BundleError::Value {
            path: path("access"),
            value: access.into(),
            expected: "a combination of r, w and m is expected",
        });
    }
    let major = number(rule.major(), || path("major"))?;
    if rule.allow() && major.is_some_and(|major| is_dynamic(kind, major)) {
        return Err(BundleError::Value {
            path: path("major"),
            value: major.unwrap_or_default().to_string(),
            expected: "the host's kernel has given this number out by itself, and it is another device in the guest",
        });
    }
    Ok(DeviceRule {
        allow: rule.allow(),
        kind: kind.into(),
        major,
        minor: number(rule.minor(), || path("minor"))?,
        read: access.contains('r'),
        write: access.contains('w'),
        make: access.contains('m'),
        ..Default::default()
    })
}

/// A device number; -1 stands for all, as in runc's own configurations.
fn number(value: Option<i64>, path: impl FnOnce() -> String) -> Result<Option<u32>, BundleError> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value).map(Some).map_err(|_| BundleError::Value {
            path: path(),
            value: value.to_string(),
            expected: "a device number is expected",
        }),
    }
}

/// Whether a major number is one that Linux leaves to each system ("LOCAL/EXPERIMENTAL USE" and dynamic assignment).
pub(in super::super) fn is_dynamic(kind: Kind, major: u32) -> bool {
    match kind {
        Kind::BLOCK => matches!(major, 234..=254 | 259 | 384..=511),
        _ => matches!(major, 234..=254 | 261 | 384..=511),
    }
}
