//! `linux.devices` to device nodes of the guest.
//!
//! A device that the host has and the guest has not could be made as a node, and would be one that nothing answers at.
//! So a configuration may name those whose number Linux has assigned and whose driver husk's guest kernel has.

use std::ops::RangeInclusive;

use husk_protocol::agent::Device;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::BundleError;

/// The devices that every container has (OCI runtime specification, "Default Devices"), all character devices.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Kind, major and minor numbers of what the guest has and a container may have (kernel: admin-guide/devices.txt).
const GUEST: [(u32, u32, RangeInclusive<u32>); 9] = [
    // null, zero, full, random, urandom, kmsg
    (libc::S_IFCHR, 1, 3..=3),
    (libc::S_IFCHR, 1, 5..=5),
    (libc::S_IFCHR, 1, 7..=9),
    (libc::S_IFCHR, 1, 11..=11),
    // tty, console
    (libc::S_IFCHR, 5, 0..=1),
    // net/tun, fuse
    (libc::S_IFCHR, 10, 200..=200),
    (libc::S_IFCHR, 10, 229..=229),
    // loop-control, loop0 and so on
    (libc::S_IFCHR, 10, 237..=237),
    (libc::S_IFBLK, 7, 0..=255),
];

/// The multiplexer of the container's own terminals: it is there always, as a link into /dev/pts.
const MULTIPLEXER: (&str, u32, i64, i64) = ("/dev/ptmx", libc::S_IFCHR, 5, 2);

/// Gives the default devices, with what the configuration says of any of them, and those that it adds.
pub(super) fn translate(list: &[LinuxDevice]) -> Result<Vec<Device>, BundleError> {
    let mut devices: Vec<_> = DEFAULT
        .iter()
        .map(|(path, major, minor)| Device {
            path: (*path).into(),
            mode: libc::S_IFCHR | 0o666,
            major: *major,
            minor: *minor,
            ..Default::default()
        })
        .collect();
    for (index, entry) in list.iter().enumerate() {
        let Some(device) = translate_one(index, entry)? else {
            continue;
        };
        match devices.iter_mut().find(|known| known.path == device.path) {
            Some(known) => *known = device,
            None => devices.push(device),
        }
    }
    Ok(devices)
}

fn translate_one(index: usize, entry: &LinuxDevice) -> Result<Option<Device>, BundleError> {
    let field = |name: &str| format!("linux.devices[{index}]{name}");
    let path = entry.path().to_str().ok_or_else(|| BundleError::Invalid {
        path: field(".path"),
        fault: "is not UTF-8",
    })?;
    if !path.starts_with('/') {
        return Err(BundleError::Value {
            path: field(".path"),
            value: path.into(),
            expected: "an absolute path is expected",
        });
    }
    let kind = match entry.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => {
            return Err(BundleError::Value {
                path: field(".type"),
                value: "a".into(),
                expected: "b, c, u or p is expected",
            });
        }
    };
    let (major, minor) = (entry.major(), entry.minor());
    if (path, kind, major, minor) == MULTIPLEXER {
        return Ok(None);
    }
    let number = match kind {
        libc::S_IFIFO => Some((0, 0)),
        _ => of_guest(kind, major, minor),
    };
    let Some((major, minor)) = number else {
        return Err(BundleError::UnsupportedValue {
            path: field(""),
            value: format!(
                "{path:?} ({} {major}:{minor}), a device that the guest has not",
                entry.typ().as_str()
            ),
        });
    };
    Ok(Some(Device {
        path: path.into(),
        mode: kind | entry.file_mode().unwrap_or(0o666) & 0o7777,
        major,
        minor,
        uid: entry.uid().unwrap_or(0),
        gid: entry.gid().unwrap_or(0),
        ..Default::default()
    }))
}

/// A device's number, if the guest has it.
fn of_guest(kind: u32, major: i64, minor: i64) -> Option<(u32, u32)> {
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    let has = |(of_kind, of_major, minors): &(u32, u32, RangeInclusive<u32>)| {
        *of_kind == kind && *of_major == major && minors.contains(&minor)
    };
    GUEST.iter().any(has).then_some((major, minor))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn translated(list: Value) -> Result<Vec<Device>, BundleError> {
        let list: Vec<LinuxDevice> = serde_json::from_value(list).unwrap();
        translate(&list)
    }

    #[test]
    fn devices_of_the_guest_are_made_beside_the_default_ones() {
        let devices = translated(json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438},
            {"path": "/dev/net/tun", "type": "u", "major": 10, "minor": 200},
            {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7},
            {"path": "/run/fifo", "type": "p", "major": 0, "minor": 0, "fileMode": 0o640},
            {"path": "/dev/loop3", "type": "b", "major": 7, "minor": 3},
        ]))
        .unwrap();
        assert_eq!(devices.len(), 6 + 4);
        assert_eq!((devices[0].mode, devices[0].uid), (libc::S_IFCHR | 0o600, 7));
        assert_eq!(
            (devices[7].path.as_str(), devices[7].mode),
            ("/dev/net/tun", libc::S_IFCHR | 0o666)
        );
        assert_eq!(devices[8].mode, libc::S_IFIFO | 0o640);
        assert_eq!((devices[9].major, devices[9].minor), (7, 3));
    }

    #[test]
    fn devices_of_the_host_are_refused_by_name() {
        for (device, part) in [
            (
                json!({"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}),
                "/dev/kvm",
            ),
            (
                json!({"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}),
                "/dev/sda",
            ),
            // null's number, but of a block device.
            (
                json!({"path": "/dev/x", "type": "b", "major": 1, "minor": 3}),
                "linux.devices[0]",
            ),
            (
                json!({"path": "/dev/x", "type": "c", "major": -1, "minor": 3}),
                "linux.devices[0]",
            ),
            (
                json!({"path": "dev/x", "type": "c", "major": 1, "minor": 3}),
                "linux.devices[0].path",
            ),
            (
                json!({"path": "/dev/x", "type": "a", "major": 1, "minor": 3}),
                "linux.devices[0].type",
            ),
        ] {
            let message = translated(json!([device])).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
