//! `mounts` to what the agent mounts.

mod host;
mod options;

use std::path::Path;

use husk_protocol::agent;
use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::BundleError;
use host::Source;
use options::Options;
pub(super) use options::propagation;

/// The file systems that the guest's kernel has and that need nothing of the host's.
const TYPES: &[&str] = &[
    "proc",
    "sysfs",
    "tmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "overlay",
    "ramfs",
    "hugetlbfs",
];

/// What may be mounted below /proc: what runc allows, for the file systems that show a container its own numbers there.
const IN_PROC: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Where a configuration's mounts come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    /// The bundle's directory, from which relative sources count.
    pub(super) bundle: &'a Path,
    /// The root directory on the host.
    pub(super) root: &'a Path,
    /// The mappings of the container's user namespace, which an idmapped mount without any takes over.
    pub(super) uids: &'a [LinuxIdMapping],
    pub(super) gids: &'a [LinuxIdMapping],
}

/// Translates the mount at `mounts[index]`.
pub(super) fn translate(index: usize, mount: &Mount, places: Places<'_>) -> Result<agent::Mount, BundleError> {
    let field = |name: &str| format!("mounts[{index}]{name}");
    let list = mount.options().as_deref().unwrap_or_default();
    let options = Options::parse(list);
    let mut kind = mount.typ().as_deref().unwrap_or_default();
    let mut translated = agent::Mount {
        destination: destination(index, mount)?,
        source: mount
            .source()
            .as_ref()
            .map(|source| source.to_string_lossy().into_owned())
            .unwrap_or_default(),
        flags: options.flags,
        cleared: options.cleared,
        propagation: options.propagation.clone(),
        recursive_set: options.recursive_set,
        recursive_clear: options.recursive_clear,
        ..Default::default()
    };
    if kind == "bind" {
        translated.flags |= libc::MS_BIND;
    }
    let is_remount = translated.flags & libc::MS_REMOUNT != 0;
    let is_bind = translated.flags & libc::MS_BIND != 0;
    map_owners(index, mount, &options, is_bind, places, &mut translated)?;
    if is_bind && !is_remount {
        if !options.data.is_empty() {
            return Err(BundleError::Value {
                path: field(".options"),
                value: options.data.join(","),
                expected: "a bind mount takes no options of a file system",
            });
        }
        kind = bind(index, mount, places, &mut translated)?;
    } else if !is_remount && !TYPES.contains(&kind) {
        return Err(BundleError::UnsupportedValue {
            path: field(".type"),
            value: format!("{kind:?}"),
        });
    }
    check_proc(index, &translated, kind)?;
    if options.copy_up {
        if kind != "tmpfs" {
            return Err(BundleError::Value {
                path: field(".options"),
                value: "tmpcopyup".into(),
                expected: "only a tmpfs can begin with what it covers",
            });
        }
        translated.copy_up = true;
    }
    match kind {
        // The guest has cgroup v2 alone, which takes none of v1's options.
        "cgroup" | "cgroup2" => translated.type_ = "cgroup2".into(),
        "overlay" => {
            translated.type_ = kind.into();
            translated.data = overlay(index, &options.data, places)?;
        }
        _ => {
            translated.type_ = kind.into();
            if translated.data.is_empty() {
                translated.data = options.data.join(",");
            }
        }
    }
    Ok(translated)
}

/// The destination without names that say nothing; `..` stays, as it counts after links.
fn destination(index: usize, mount: &Mount) -> Result<String, BundleError> {
    let path = || format!("mounts[{index}].destination");
    let destination = mount.destination().to_str().ok_or_else(|| BundleError::Invalid {
        path: path(),
        fault: "is not UTF-8",
    })?;
    let refused = |expected| BundleError::Value {
        path: path(),
        value: destination.into(),
        expected,
    };
    if !destination.starts_with('/') {
        return Err(refused("an absolute path is expected"));
    }
    let names: Vec<_> = destination
        .split('/')
        .filter(|name| !matches!(*name, "" | "."))
        .collect();
    if names.is_empty() {
        return Err(refused("the root itself cannot be mounted over"));
    }
    Ok(format!("/{}", names.join("/")))
}

/// Says what a bind mount shows in the guest; gives the type of what is mounted, empty for a bind mount.
fn bind(
    index: usize,
    mount: &Mount,
    places: Places<'_>,
    translated: &mut agent::Mount,
) -> Result<&'static str, BundleError> {
    let source = mount.source().as_deref().ok_or_else(|| BundleError::Invalid {
        path: format!("mounts[{index}].source"),
        fault: "is missing",
    })?;
    translated.source.clear();
    match host::find(index, &places.bundle.join(source), &translated.destination, places.root)? {
        Source::Inside(path) => translated.source = path,
        Source::Kernel(kind) => {
            translated.flags &= !(libc::MS_BIND | libc::MS_REC);
            return Ok(kind);
        }
        Source::Shared { name, data, flags } => {
            (translated.shared, translated.data) = (name, data);
            // As any bind mount it has its source's restrictions, but for those that its options take away.
            translated.flags |= flags & !translated.cleared;
        }
        Source::Copy(files) => (translated.is_copy, translated.files) = (true, files),
    }
    Ok("")
}

fn map_owners(
    index: usize,
    mount: &Mount,
    options: &Options<'_>,
    is_bind: bool,
    places: Places<'_>,
    translated: &mut agent::Mount,
) -> Result<(), BundleError> {
    let own = |list: &Option<Vec<LinuxIdMapping>>| list.clone().unwrap_or_default();
    let (mut uids, mut gids) = (own(mount.uid_mappings()), own(mount.gid_mappings()));
    if options.map_owners.is_none() && uids.is_empty() && gids.is_empty() {
        return Ok(());
    }
    let refused = |fault| {
        Err(BundleError::Invalid {
            path: format!("mounts[{index}].uidMappings"),
            fault,
        })
    };
    if !is_bind {
        return refused("count for bind mounts only");
    }
    if uids.is_empty() && gids.is_empty() {
        (uids, gids) = (places.uids.to_vec(), places.gids.to_vec());
    }
    if uids.is_empty() || gids.is_empty() {
        return refused("and gidMappings are both needed where owners are mapped");
    }
    let mapping = |mapping: &LinuxIdMapping| agent::IdMapping {
        inside: mapping.container_id(),
        outside: mapping.host_id(),
        size: mapping.size(),
        ..Default::default()
    };
    translated.uid_mappings = uids.iter().map(mapping).collect();
    translated.gid_mappings = gids.iter().map(mapping).collect();
    translated.recursive_mapping = options.map_owners.unwrap_or(false);
    Ok(())
}

/// A container's /proc is a real one, and nothing in it is covered: what is hidden or protected there relies on that.
fn check_proc(index: usize, mount: &agent::Mount, kind: &str) -> Result<(), BundleError> {
    let destination = mount.destination.as_str();
    let is_remount = mount.flags & libc::MS_REMOUNT != 0;
    let is_allowed = match destination.strip_prefix("/proc") {
        Some("") => kind == "proc" || is_remount,
        Some(rest) if rest.starts_with('/') => is_remount || IN_PROC.contains(&destination),
        _ => true,
    };
    if is_allowed {
        return Ok(());
    }
    Err(BundleError::Value {
        path: format!("mounts[{index}].destination"),
        value: destination.into(),
        expected: "nothing but proc may be mounted there",
    })
}

/// An overlay's layers are directories of the host, of which those in the root directory are in the guest too.
fn overlay(index: usize, data: &[&str], places: Places<'_>) -> Result<String, BundleError> {
    let layer = |path: &str| match host::find(index, &places.bundle.join(path), "", places.root) {
        Ok(Source::Inside(inside)) if !inside.contains([',', ':', '\\']) => Ok(inside),
        _ => Err(BundleError::UnsupportedValue {
            path: format!("mounts[{index}].options"),
            value: format!("a layer {path:?} on the host"),
        }),
    };
    let mut options = Vec::new();
    for option in data {
        options.push(match option.split_once('=') {
            Some((key @ "lowerdir", paths)) => {
                let layers: Result<Vec<_>, _> = paths.split(':').map(layer).collect();
                format!("{key}={}", layers?.join(":"))
            }
            Some((key @ ("upperdir" | "workdir"), path)) => format!("{key}={}", layer(path)?),
            _ => (*option).to_owned(),
        });
    }
    Ok(options.join(","))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn places(root: &Path) -> Places<'_> {
        Places {
            bundle: Path::new("/no/such/bundle"),
            root,
            uids: &[],
            gids: &[],
        }
    }

    fn translated(mount: Value) -> Result<agent::Mount, BundleError> {
        let mount = serde_json::from_value(mount).unwrap();
        translate(3, &mount, places(Path::new("/no/such/root")))
    }

    #[test]
    fn options_become_flags_and_data() {
        let mount = translated(json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k", "rslave", "ro", "rw", "tmpcopyup", "rro"]
        }))
        .unwrap();
        assert_eq!(mount.flags, libc::MS_NOSUID | libc::MS_STRICTATIME);
        assert_eq!(mount.cleared, libc::MS_RDONLY);
        assert_eq!(mount.propagation, [libc::MS_SLAVE | libc::MS_REC]);
        assert_eq!(mount.recursive_set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(mount.data, "mode=755,size=65536k");
        assert!(mount.copy_up);
        assert_eq!((mount.type_.as_str(), mount.source.as_str()), ("tmpfs", "tmpfs"));
    }

    #[test]
    fn cgroup_v1_becomes_v2_without_data() {
        let mount = translated(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "xattr"]
        }))
        .unwrap();
        assert_eq!((mount.type_.as_str(), mount.data.as_str()), ("cgroup2", ""));
        assert_eq!(mount.flags, libc::MS_RDONLY);
    }

    #[test]
    fn a_bind_mount_of_the_root_directory_is_one_in_the_container() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("data")).unwrap();
        let bound = |mount: Value| translate(0, &serde_json::from_value(mount).unwrap(), places(root.path()));
        let source = root.path().join("data");
        let mount = bound(json!({
            "destination": "/x//./y/", "type": "none", "source": source, "options": ["rbind", "rprivate", "rro", "ridmap"],
            "uidMappings": [{"containerID": 0, "hostID": 7, "size": 1}],
            "gidMappings": [{"containerID": 1, "hostID": 8, "size": 2}],
        }))
        .unwrap();
        assert_eq!((mount.source.as_str(), mount.destination.as_str()), ("/data", "/x/y"));
        assert_eq!((mount.type_.as_str(), mount.flags), ("", libc::MS_BIND | libc::MS_REC));
        let (uid, gid) = (&mount.uid_mappings[0], &mount.gid_mappings[0]);
        assert_eq!(
            (uid.inside, uid.outside, gid.size, mount.recursive_mapping),
            (0, 7, 2, true)
        );
        // The type alone says it too.
        let mount = bound(json!({"destination": "/x", "type": "bind", "source": source})).unwrap();
        assert_eq!(mount.flags, libc::MS_BIND);
        let layers = format!("lowerdir={0}:{0}", source.display());
        let overlay = json!({"destination": "/x", "type": "overlay", "options": [layers, "metacopy=off"]});
        assert_eq!(bound(overlay).unwrap().data, "lowerdir=/data:/data,metacopy=off");
    }

    #[test]
    fn the_kernels_file_systems_are_the_guests() {
        let mount = translated(json!({
            "destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro", "nosuid"]
        }))
        .unwrap();
        assert_eq!((mount.type_.as_str(), mount.source.as_str()), ("sysfs", ""));
        assert_eq!(mount.flags, libc::MS_RDONLY | libc::MS_NOSUID);
    }

    #[test]
    fn what_cannot_be_is_refused_by_path() {
        let mappings = json!([{"containerID": 0, "hostID": 7, "size": 1}]);
        for (mount, part) in [
            (
                json!({"destination": "/d", "type": "bind", "source": "/etc", "options": ["rbind"]}),
                ".source",
            ),
            (
                json!({"destination": "/d", "type": "bind", "source": "/no/such/file"}),
                ".source",
            ),
            (json!({"destination": "/d", "type": "bind"}), ".source"),
            (
                json!({"destination": "/d", "type": "bind", "source": "/etc", "options": ["size=1"]}),
                ".options",
            ),
            (json!({"destination": "/d", "source": "/d"}), ".type"),
            (
                json!({"destination": "/d", "type": "ext4", "source": "/dev/sda1"}),
                ".type",
            ),
            (json!({"destination": "d", "type": "tmpfs"}), ".destination"),
            (json!({"destination": "/.//", "type": "tmpfs"}), ".destination"),
            (json!({"destination": "/proc", "type": "tmpfs"}), ".destination"),
            (json!({"destination": "/proc/sys", "type": "tmpfs"}), ".destination"),
            (
                json!({"destination": "/proc", "type": "proc", "options": ["tmpcopyup"]}),
                ".options",
            ),
            (
                json!({"destination": "/d", "type": "tmpfs", "uidMappings": mappings}),
                ".uidMappings",
            ),
            (
                json!({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["idmap"]}),
                ".uidMappings",
            ),
            (
                json!({"destination": "/d", "type": "overlay", "options": ["lowerdir=/etc:/usr"]}),
                ".options",
            ),
        ] {
            let message = translated(mount).unwrap_err().to_string();
            assert!(message.contains(&format!("mounts[3]{part}")), "{message}");
        }
        translated(json!({"destination": "/process", "type": "tmpfs"})).unwrap();
        translated(json!({"destination": "/d", "options": ["remount", "ro"]})).unwrap();
    }

    proptest! {
        #[test]
        fn no_option_is_lost(options in proptest::collection::vec("[a-z]{1,8}(=[a-z0-9]{1,4})?", 0..8)) {
            let result = translated(json!({"destination": "/x", "type": "tmpfs", "options": options}));
            if let Ok(mount) = result {
                for option in &options {
                    let known = options::is_known(option);
                    prop_assert!(known || mount.data.split(',').any(|part| part == option));
                }
            }
        }
    }
}
