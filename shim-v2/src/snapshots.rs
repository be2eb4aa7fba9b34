//! Root file systems that containerd hands over unmounted, because the shim has said that it mounts them itself: the
//! guest does.
//!
//! The mounts of a container are then one file system, or several of EROFS and an overlay of them, whose options name
//! them by templates: `{{ overlay 0 2 }}` is the mounts from the first to the third one, the uppermost first, and
//! `{{ mount 0 }}` is the first one alone.

use std::path::PathBuf;

use containerd_shim_protos::types::mount::Mount;
use husk_sandbox::image::{FileSystem, Snapshot};

use crate::error::ShimError;

/// The types of mounts that the shim takes as they are (containerd's `MountCapabilities.types`).
pub(crate) const TYPES: [&str; 1] = ["erofs"];
/// The transformations of mounts that it makes itself (`MountCapabilities.transforms`).
pub(crate) const TRANSFORMS: [&str; 2] = ["format", "mkdir"];

/// File systems for the guest, the uppermost first, and the directory whose contents lie over them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) upper: Option<PathBuf>,
}

/// The stack that the mounts are, if they are file systems for the guest.
pub(crate) fn stack(mounts: &[Mount]) -> Result<Option<Stack>, ShimError> {
    let Some(kind) = mounts.first().and_then(|mount| kind(&mount.type_)) else {
        return Ok(None);
    };
    match mounts {
        [mount] => Ok(Some(Stack {
            snapshots: vec![snapshot(mount, kind)?],
            upper: None,
        })),
        [file_systems @ .., top] => {
            let snapshots = file_systems
                .iter()
                .map(|mount| match mount.type_.as_str() {
                    "erofs" => snapshot(mount, FileSystem::Erofs),
                    _ => Err(unsupported(
                        mount,
                        "under an overlay; unset the snapshotter's default_size",
                    )),
                })
                .collect::<Result<Vec<_>, _>>()?;
            overlay(snapshots, top).map(Some)
        }
        [] => Ok(None),
    }
}

/// Kinds that the guest's kernel has; one of its drivers reads all of ext's.
fn kind(name: &str) -> Option<FileSystem> {
    match name {
        "erofs" => Some(FileSystem::Erofs),
        "ext2" | "ext3" | "ext4" => Some(FileSystem::Ext4),
        _ => None,
    }
}

fn unsupported(mount: &Mount, what: &str) -> ShimError {
    ShimError::Snapshot(format!("{} {} {what}", mount.type_, mount.source))
}

fn snapshot(mount: &Mount, kind: FileSystem) -> Result<Snapshot, ShimError> {
    for option in &mount.options {
        let name = option.split('=').next().unwrap_or_default();
        match name {
            "X-containerd.dmverity" => return Err(unsupported(mount, "with dm-verity; set dmverity_mode to \"off\"")),
            "device" => return Err(unsupported(mount, "of layers that were merged into one image")),
            // The guest only reads it, in its own way.
            _ => {}
        }
    }
    Ok(Snapshot {
        path: mount.source.clone().into(),
        kind,
    })
}

/// The last of the mounts puts the others over each other.
fn overlay(snapshots: Vec<Snapshot>, mount: &Mount) -> Result<Stack, ShimError> {
    let option = |name: &str| {
        let options = mount.options.iter().filter_map(|option| option.split_once('='));
        options.rev().find_map(|(key, value)| (key == name).then_some(value))
    };
    if let Some(name) = ["uidmap", "gidmap"].into_iter().find(|name| option(name).is_some()) {
        return Err(unsupported(
            mount,
            &format!("with {name}; unset the snapshotter's remap_ids"),
        ));
    }
    // "format/mkdir/overlay" is what containerd would do to it one after the other.
    let (lower, upper) = match mount.type_.rsplit('/').next() {
        Some("overlay") => (option("lowerdir"), option("upperdir")),
        Some("bind") => (Some(mount.source.as_str()), None),
        _ => (None, None),
    };
    let chosen = lower.and_then(|lower| choose(snapshots, lower));
    let is_template = upper.is_some_and(|upper| upper.contains("{{"));
    match chosen {
        Some(snapshots) if !is_template => Ok(Stack {
            snapshots,
            upper: upper.map(PathBuf::from),
        }),
        _ => Err(unsupported(mount, "over file systems in a way that is not known")),
    }
}

/// The mounts that a template names, in its order.
fn choose(mut snapshots: Vec<Snapshot>, template: &str) -> Option<Vec<Snapshot>> {
    let inner = template.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let words: Vec<_> = inner.split_whitespace().collect();
    let (first, last) = match words[..] {
        ["mount", index] => (index.parse().ok()?, index.parse().ok()?),
        ["overlay", first, last] => (first.parse().ok()?, last.parse().ok()?),
        _ => return None,
    };
    let (from, to): (usize, usize) = (first, last);
    if from.max(to) >= snapshots.len() {
        return None;
    }
    let mut chosen: Vec<_> = snapshots.drain(from.min(to)..=from.max(to)).collect();
    if from > to {
        chosen.reverse();
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.into(),
            source: source.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn erofs(source: &str) -> Mount {
        mount("erofs", source, &["ro", "loop"])
    }

    fn names(stack: &Stack) -> Vec<&str> {
        stack.snapshots.iter().map(|one| one.path.to_str().unwrap()).collect()
    }

    #[test]
    fn what_containerd_mounts_is_none() {
        assert_eq!(stack(&[]).unwrap(), None);
        assert_eq!(
            stack(&[mount("overlay", "overlay", &["lowerdir=/a:/b"])]).unwrap(),
            None
        );
        assert_eq!(stack(&[mount("xfs", "/dev/mapper/x", &[])]).unwrap(), None);
    }

    #[test]
    fn one_file_system_is_a_root() {
        let found = stack(&[mount("ext4", "/dev/mapper/x", &["rw"])]).unwrap().unwrap();
        assert_eq!(found.snapshots[0].kind, FileSystem::Ext4);
        assert_eq!(names(&found), ["/dev/mapper/x"]);
        assert_eq!(names(&stack(&[erofs("/a")]).unwrap().unwrap()), ["/a"]);
    }

    #[test]
    fn templates_name_layers() {
        let upper = ["X-containerd.mkdir.path=/u:0755", "workdir=/w", "upperdir=/u"];
        let with = |lower| [&upper[..], &[lower]].concat();
        let over = |lower| {
            let top = mount("format/mkdir/overlay", "overlay", &with(lower));
            stack(&[erofs("/2"), erofs("/1"), erofs("/0"), top])
        };
        let found = over("lowerdir={{ overlay 0 2 }}").unwrap().unwrap();
        assert_eq!(names(&found), ["/2", "/1", "/0"]);
        assert_eq!(found.upper, Some("/u".into()));
        assert_eq!(
            names(&over("lowerdir={{ overlay 2 1 }}").unwrap().unwrap()),
            ["/0", "/1"]
        );
        assert_eq!(names(&over("lowerdir={{ mount 1 }}").unwrap().unwrap()), ["/1"]);
        for bad in [
            "lowerdir={{ overlay 0 3 }}",
            "lowerdir=/x",
            "lowerdir={{ source 0 }}",
            "index=off",
        ] {
            assert!(over(bad).is_err(), "{bad}");
        }
        let view = [erofs("/0"), mount("format/bind", "{{ mount 0 }}", &["ro", "rbind"])];
        assert_eq!(names(&stack(&view).unwrap().unwrap()), ["/0"]);
    }

    #[test]
    fn what_the_guest_cannot_do_is_refused_by_name() {
        let verity = mount("erofs", "/a", &["ro", "X-containerd.dmverity=/a.json"]);
        let merged = mount("erofs", "/a", &["ro", "device=/b"]);
        let block = [
            mount("ext4", "/rw.img", &["rw", "loop"]),
            erofs("/0"),
            mount(
                "format/mkdir/overlay",
                "overlay",
                &["lowerdir={{ mount 1 }}", "upperdir={{ mount 0 }}/upper"],
            ),
        ];
        let mapped = [
            erofs("/0"),
            mount("format/overlay", "overlay", &["lowerdir={{ mount 0 }}", "uidmap=0:1:2"]),
        ];
        for (mounts, word) in [
            (&[verity][..], "dmverity_mode"),
            (&[merged], "merged"),
            (&block, "default_size"),
            (&mapped, "remap_ids"),
        ] {
            let error = stack(mounts).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_template_is_survived(template in "\\PC{0,40}", numbers in "\\{\\{ overlay [0-9]{1,3} [0-9]{1,3} \\}\\}") {
            for lower in [template, numbers] {
                let top = mount("overlay", "overlay", &[&format!("lowerdir={lower}")]);
                let _ = stack(&[erofs("/1"), erofs("/0"), top]);
            }
        }
    }
}
