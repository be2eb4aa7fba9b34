//! `linux.namespaces` and what belongs to them: ids of user namespaces, clocks of time namespaces.

use std::collections::HashSet;
use std::path::PathBuf;

use husk_protocol::agent::{self, namespace};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, LinuxTimeOffset};

use super::BundleError;

/// The most ranges that the kernel takes (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_RANGES: usize = 340;
/// What a path can be.
pub(crate) const OF_THE_SAME_SANDBOX: &str = "/proc/PID/ns/TYPE of the process that stands for a container of the same \
                                               sandbox is expected: other namespaces are not in the guest";
/// Nanoseconds of a second.
const NANOSECONDS: u32 = 1_000_000_000;

/// A namespace that is to be another container's: that for which the process with this id stands on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Which of the request's namespaces it is.
    pub index: usize,
    /// Its path in `config.json`.
    pub path: String,
    /// The process.
    pub pid: u32,
}

/// A network namespace on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Which of the request's namespaces it is.
    pub index: usize,
    /// Its file.
    pub path: PathBuf,
}

/// What the configuration's namespaces are.
#[derive(Debug, Default)]
pub(super) struct Translated {
    pub(super) namespaces: Vec<agent::Namespace>,
    /// Those that are other containers'.
    pub(super) joins: Vec<Join>,
    /// The network namespace, if it has a name on the host.
    pub(super) network: Option<Network>,
}

/// Translates the namespaces.
pub(super) fn translate(list: &[LinuxNamespace]) -> Result<Translated, BundleError> {
    let mut seen = HashSet::new();
    let mut translated = Vec::new();
    let mut joins = Vec::new();
    let mut network = None;
    for (index, entry) in list.iter().enumerate() {
        let kind = match entry.typ() {
            LinuxNamespaceType::Mount => namespace::Kind::MOUNT,
            LinuxNamespaceType::Pid => namespace::Kind::PID,
            LinuxNamespaceType::Ipc => namespace::Kind::IPC,
            LinuxNamespaceType::Uts => namespace::Kind::UTS,
            LinuxNamespaceType::Network => namespace::Kind::NETWORK,
            LinuxNamespaceType::Cgroup => namespace::Kind::CGROUP,
            LinuxNamespaceType::User => namespace::Kind::USER,
            LinuxNamespaceType::Time => namespace::Kind::TIME,
        };
        if !seen.insert(entry.typ().to_string()) {
            return Err(BundleError::Value {
                path: format!("linux.namespaces[{index}].type"),
                value: entry.typ().to_string(),
                expected: "each type may stand once",
            });
        }
        if let Some(path) = entry.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
            match kind {
                namespace::Kind::NETWORK if path.is_absolute() && !path.starts_with("/proc") => {
                    network = Some(Network {
                        index,
                        path: path.clone(),
                    });
                }
                _ => joins.push(join(index, kind, &path.to_string_lossy())?),
            }
        }
        translated.push(agent::Namespace {
            kind: kind.into(),
            ..Default::default()
        });
    }
    if !has(&translated, namespace::Kind::MOUNT) {
        return Err(BundleError::Invalid {
            path: "linux.namespaces".into(),
            fault: "has no mount namespace, without which husk makes no container",
        });
    }
    Ok(Translated {
        namespaces: translated,
        joins,
        network,
    })
}

/// The process that a path names, `/proc/PID/ns/TYPE`: a namespace of a container has no other name on the host.
fn join(index: usize, kind: namespace::Kind, path: &str) -> Result<Join, BundleError> {
    let refuse = |expected| {
        Err(BundleError::Value {
            path: format!("linux.namespaces[{index}].path"),
            value: path.into(),
            expected,
        })
    };
    let file = match kind {
        // The root is mounted in a new mount namespace, and a new user namespace owns all the others.
        namespace::Kind::MOUNT => return refuse("a mount namespace is always a new one"),
        namespace::Kind::USER => return refuse("a user namespace is always a new one"),
        namespace::Kind::PID => "pid",
        namespace::Kind::IPC => "ipc",
        namespace::Kind::UTS => "uts",
        namespace::Kind::NETWORK => "net",
        namespace::Kind::CGROUP => "cgroup",
        namespace::Kind::TIME => "time",
        namespace::Kind::UNKNOWN => "",
    };
    let process = path.strip_prefix("/proc/").and_then(|rest| rest.split_once("/ns/"));
    let pid = process
        .filter(|(_, name)| *name == file)
        .and_then(|(pid, _)| pid.parse().ok());
    match pid {
        Some(pid) => Ok(Join {
            index,
            path: path.into(),
            pid,
        }),
        None => refuse(OF_THE_SAME_SANDBOX),
    }
}

/// Whether there is a namespace of this kind.
pub(super) fn has(namespaces: &[agent::Namespace], kind: namespace::Kind) -> bool {
    namespaces.iter().any(|entry| entry.kind == kind.into())
}

/// The ranges of ids that a user namespace has; without one there may be none.
pub(super) fn ids(
    field: &str,
    ranges: Option<&[LinuxIdMapping]>,
    namespaces: &[agent::Namespace],
) -> Result<Vec<agent::IdMapping>, BundleError> {
    let ranges = ranges.unwrap_or_default();
    let invalid = |fault| {
        Err(BundleError::Invalid {
            path: field.into(),
            fault,
        })
    };
    match (has(namespaces, namespace::Kind::USER), ranges.is_empty()) {
        (false, true) => return Ok(Vec::new()),
        (false, false) => return invalid("needs a user namespace in linux.namespaces"),
        (true, _) => {}
    }
    if !ranges.iter().any(|range| range.container_id() == 0 && range.size() > 0) {
        return invalid("has no range with the containerID 0, as which every container begins");
    }
    if ranges.len() > MAX_RANGES {
        return invalid("has more than 340 ranges");
    }
    for (index, range) in ranges.iter().enumerate() {
        let fits = |first: u32| first.checked_add(range.size()).is_some();
        if range.size() == 0 || !fits(range.container_id()) || !fits(range.host_id()) {
            return Err(BundleError::Value {
                path: format!("{field}[{index}].size"),
                value: range.size().to_string(),
                expected: "1 to what is left up to the greatest id is expected",
            });
        }
    }
    Ok(ranges
        .iter()
        .map(|range| agent::IdMapping {
            inside: range.container_id(),
            outside: range.host_id(),
            size: range.size(),
            ..Default::default()
        })
        .collect())
}

/// How far the clocks of a time namespace are from the guest's.
pub(super) fn clocks<'a>(
    offsets: impl Iterator<Item = (&'a String, &'a LinuxTimeOffset)>,
    namespaces: &[agent::Namespace],
) -> Result<Vec<agent::TimeOffset>, BundleError> {
    let mut translated = Vec::new();
    for (clock, offset) in offsets {
        let path = format!("linux.timeOffsets.{clock}");
        if !has(namespaces, namespace::Kind::TIME) {
            return Err(BundleError::Invalid {
                path,
                fault: "needs a time namespace in linux.namespaces",
            });
        }
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            return Err(BundleError::Unsupported(path));
        }
        let nanoseconds = offset.nanosecs().unwrap_or_default();
        if nanoseconds >= NANOSECONDS {
            return Err(BundleError::Value {
                path: format!("{path}.nanosecs"),
                value: nanoseconds.to_string(),
                expected: "less than 1000000000 is expected",
            });
        }
        translated.push(agent::TimeOffset {
            clock: clock.clone(),
            seconds: offset.secs().unwrap_or_default(),
            nanoseconds,
            ..Default::default()
        });
    }
    translated.sort_by(|one, other| one.clock.cmp(&other.clock));
    Ok(translated)
}
