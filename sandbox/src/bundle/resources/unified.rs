//! `linux.resources.unified`: files of cgroup v2 by their names.

use husk_protocol::agent::CgroupSetting;

use super::super::BundleError;
use super::disk::RootDisk;
use super::setting;

/// Files that are no limits: writing them moves, stops or ends processes, or makes the cgroup one that takes none.
const NO_LIMITS: [&str; 7] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.kill",
    "cgroup.freeze",
    "cgroup.type",
    "cgroup.subtree_control",
    "cgroup.controllers",
];

/// Translates one file, each line of it for itself.
pub(super) fn translate(name: &str, value: &str, disk: &RootDisk<'_>) -> Result<Vec<CgroupSetting>, BundleError> {
    let refused = |fault| {
        Err(BundleError::Invalid {
            path: format!("linux.resources.unified[{name:?}]"),
            fault,
        })
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !name.bytes().all(allowed) || name.len() > 255 || name.starts_with('.') || !name.contains('.') {
        return refused("is no name of a cgroup's file (CONTROLLER.PARAMETER)");
    }
    if NO_LIMITS.contains(&name) {
        return refused("is no limit");
    }
    if value.contains('\0') {
        return refused("holds a zero byte");
    }
    let mut settings = Vec::new();
    for line in value.lines().filter(|line| !line.trim().is_empty()) {
        match device(name, line) {
            None => settings.push(setting(name, line)),
            Some((major, minor, rest)) if disk.is(major, minor) => settings.push(CgroupSetting {
                on_root_disk: true,
                ..setting(name, rest)
            }),
            Some(_) => return refused("names a disk of the host that the container's root does not lie on"),
        }
    }
    Ok(settings)
}

/// The number of the host's device with which a line begins, and the rest of it.
fn device<'a>(name: &str, line: &'a str) -> Option<(u64, u64, &'a str)> {
    let line = line.trim();
    let (number, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (major, minor) = number.split_once(':').filter(|_| name.starts_with("io."))?;
    Some((major.parse().ok()?, minor.parse().ok()?, rest.trim_start()))
}
