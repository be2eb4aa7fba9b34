//! `mounts` to what mount(2) takes.

use husk_protocol::agent;
use oci_spec::runtime::Mount;

use super::BundleError;

/// The file systems that the guest's kernel has and that need nothing of the host's.
const TYPES: &[&str] = &["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

/// What an option's name stands for.
enum Meaning {
    Set(u64),
    Clear(u64),
    Propagation(u64),
}

use Meaning::{Clear, Propagation, Set};

/// The options of mount(8) that are not the file system's own.
const OPTIONS: &[(&str, Meaning)] = &[
    ("defaults", Set(0)),
    ("ro", Set(libc::MS_RDONLY)),
    ("rw", Clear(libc::MS_RDONLY)),
    ("nosuid", Set(libc::MS_NOSUID)),
    ("suid", Clear(libc::MS_NOSUID)),
    ("nodev", Set(libc::MS_NODEV)),
    ("dev", Clear(libc::MS_NODEV)),
    ("noexec", Set(libc::MS_NOEXEC)),
    ("exec", Clear(libc::MS_NOEXEC)),
    ("sync", Set(libc::MS_SYNCHRONOUS)),
    ("async", Clear(libc::MS_SYNCHRONOUS)),
    ("dirsync", Set(libc::MS_DIRSYNC)),
    ("mand", Set(libc::MS_MANDLOCK)),
    ("nomand", Clear(libc::MS_MANDLOCK)),
    ("noatime", Set(libc::MS_NOATIME)),
    ("atime", Clear(libc::MS_NOATIME)),
    ("nodiratime", Set(libc::MS_NODIRATIME)),
    ("diratime", Clear(libc::MS_NODIRATIME)),
    ("relatime", Set(libc::MS_RELATIME)),
    ("norelatime", Clear(libc::MS_RELATIME)),
    ("strictatime", Set(libc::MS_STRICTATIME)),
    ("nostrictatime", Clear(libc::MS_STRICTATIME)),
    ("nosymfollow", Set(libc::MS_NOSYMFOLLOW)),
    ("symfollow", Clear(libc::MS_NOSYMFOLLOW)),
    ("silent", Set(libc::MS_SILENT)),
    ("loud", Clear(libc::MS_SILENT)),
    ("shared", Propagation(libc::MS_SHARED)),
    ("rshared", Propagation(libc::MS_SHARED | libc::MS_REC)),
    ("slave", Propagation(libc::MS_SLAVE)),
    ("rslave", Propagation(libc::MS_SLAVE | libc::MS_REC)),
    ("private", Propagation(libc::MS_PRIVATE)),
    ("rprivate", Propagation(libc::MS_PRIVATE | libc::MS_REC)),
    ("unbindable", Propagation(libc::MS_UNBINDABLE)),
    ("runbindable", Propagation(libc::MS_UNBINDABLE | libc::MS_REC)),
];

/// Options that the specification gives a meaning of their own, which is not honoured yet.
const UNSUPPORTED: &[&str] = &[
    "bind",
    "rbind",
    "remount",
    "tmpcopyup",
    "idmap",
    "ridmap",
    "rro",
    "rrw",
    "rnosuid",
    "rsuid",
    "rnodev",
    "rdev",
    "rnoexec",
    "rexec",
    "rnodiratime",
    "rdiratime",
    "rrelatime",
    "rnorelatime",
    "rnoatime",
    "ratime",
    "rstrictatime",
    "rnostrictatime",
    "rsymfollow",
    "rnosymfollow",
];

/// The flags of a propagation's name.
pub(super) fn propagation(name: &str) -> Option<u64> {
    OPTIONS.iter().find_map(|(option, meaning)| match meaning {
        Propagation(flags) if *option == name => Some(*flags),
        _ => None,
    })
}

/// Translates the mount at `mounts[index]`.
pub(super) fn translate(index: usize, mount: &Mount) -> Result<agent::Mount, BundleError> {
    let path = |field: &str| format!("mounts[{index}].{field}");
    let destination = mount.destination().to_str().ok_or_else(|| BundleError::Invalid {
        path: path("destination"),
        fault: "is not UTF-8",
    })?;
    if !destination.starts_with('/') {
        return Err(BundleError::Value {
            path: path("destination"),
            value: destination.into(),
            expected: "an absolute path is expected",
        });
    }
    let mut translated = agent::Mount {
        destination: destination.into(),
        source: mount
            .source()
            .as_ref()
            .map(|source| source.to_string_lossy().into_owned())
            .unwrap_or_default(),
        ..Default::default()
    };
    let mut data = Vec::new();
    for (position, option) in mount.options().iter().flatten().enumerate() {
        if UNSUPPORTED.contains(&option.as_str()) {
            return Err(BundleError::UnsupportedValue {
                path: path(&format!("options[{position}]")),
                value: format!("{option:?}"),
            });
        }
        match OPTIONS.iter().find(|(name, _)| name == option) {
            Some((_, Set(flag))) => translated.flags |= flag,
            Some((_, Clear(flag))) => translated.flags &= !flag,
            Some((_, Propagation(flags))) => translated.propagation = *flags,
            None => data.push(option.as_str()),
        }
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    if !TYPES.contains(&kind) {
        return Err(BundleError::UnsupportedValue {
            path: path("type"),
            value: format!("{kind:?}"),
        });
    }
    if kind == "cgroup" || kind == "cgroup2" {
        // The guest has cgroup v2 alone, which takes none of v1's options.
        translated.type_ = "cgroup2".into();
    } else {
        translated.type_ = kind.into();
        translated.data = data.join(",");
    }
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn translated(mount: serde_json::Value) -> Result<agent::Mount, BundleError> {
        translate(3, &serde_json::from_value(mount).unwrap())
    }

    #[test]
    fn options_become_flags_and_data() {
        let mount = translated(json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k", "rslave", "ro", "rw"]
        }))
        .unwrap();
        assert_eq!(mount.flags, libc::MS_NOSUID | libc::MS_STRICTATIME);
        assert_eq!(mount.propagation, libc::MS_SLAVE | libc::MS_REC);
        assert_eq!(mount.data, "mode=755,size=65536k");
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
    fn what_needs_the_host_is_refused_by_path() {
        let bind = json!({"destination": "/data", "type": "bind", "source": "/data", "options": ["rbind"]});
        let error = translated(bind).unwrap_err().to_string();
        assert!(
            error.contains("mounts[3].options[0]") && error.contains("rbind"),
            "{error}"
        );
        let untyped = json!({"destination": "/data", "source": "/data"});
        let error = translated(untyped).unwrap_err().to_string();
        assert!(error.contains("mounts[3].type"), "{error}");
        let relative = json!({"destination": "data", "type": "tmpfs"});
        let error = translated(relative).unwrap_err().to_string();
        assert!(error.contains("mounts[3].destination"), "{error}");
    }

    proptest! {
        #[test]
        fn no_option_is_lost(options in proptest::collection::vec("[a-z]{1,8}(=[a-z0-9]{1,4})?", 0..8)) {
            let result = translated(json!({"destination": "/x", "type": "tmpfs", "options": options}));
            if let Ok(mount) = result {
                for option in &options {
                    let known = OPTIONS.iter().any(|(name, _)| name == option);
                    prop_assert!(known || mount.data.split(',').any(|part| part == option));
                }
            }
        }
    }
}
