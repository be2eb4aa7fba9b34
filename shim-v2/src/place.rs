//! Where a shim and its sandbox are found: which containers belong together, their socket, their run directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use husk_sandbox::rundir::{RunRoot, check_name, default_root};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Where sockets are whose directory containerd does not name, as with its other shims.
const SOCKETS: &str = "/run/containerd/s";
/// Annotations that name the group to which a container belongs, the first that is there counts: containerd's own rule for
/// its shims, and the CRI's of containerd and CRI-O.
const GROUPS: [&str; 3] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
];

/// The part of a `config.json` that says to whom a container belongs.
#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// The container whose sandbox the container of a bundle belongs to: its own, unless its bundle says otherwise. A bundle
/// without a `config.json` is that of a sandbox.
pub(crate) fn group(bundle: &Path, id: &str) -> String {
    let text = fs::read(bundle.join("config.json")).unwrap_or_default();
    let annotations = serde_json::from_slice::<Annotated>(&text).ok();
    let annotations = annotations.and_then(|config| config.annotations).unwrap_or_default();
    let named = GROUPS.iter().find_map(|name| annotations.get(*name));
    named
        .filter(|name| !name.is_empty())
        .map_or(id, String::as_str)
        .to_owned()
}

/// The socket of a group's shim: the same for all that ask for it.
pub(crate) fn socket(directory: Option<&Path>, address: &str, namespace: &str, group: &str) -> PathBuf {
    let name = Sha256::digest(format!("{address}/{namespace}/{group}"));
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.unwrap_or(Path::new(SOCKETS)).join(name)
}

/// The directory of a namespace's run directories.
pub(crate) fn root(namespace: &str) -> Result<RunRoot> {
    check_name(namespace).with_context(|| format!("the namespace {namespace:?} cannot be used"))?;
    let root = std::env::var_os("HUSK_ROOT").map_or_else(default_root, PathBuf::from);
    Ok(RunRoot::open(&root.join("containerd").join(namespace))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_says_to_whom_it_belongs() {
        let directory = tempfile::tempdir().unwrap();
        let of = |config: &str| {
            fs::write(directory.path().join("config.json"), config).unwrap();
            group(directory.path(), "box")
        };
        assert_eq!(group(directory.path(), "box"), "box", "without a configuration");
        assert_eq!(of("{}"), "box");
        assert_eq!(of("no JSON"), "box");
        assert_eq!(of(r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}"#), "pod");
        let both = r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "all"}}"#;
        assert_eq!(of(both), "all");
    }

    #[test]
    fn sockets_are_told_apart_by_all_that_matters() {
        let one = socket(None, "/run/c.sock", "default", "box");
        assert_eq!(one.parent(), Some(Path::new(SOCKETS)));
        assert_eq!(one.file_name().unwrap().len(), 64);
        assert_ne!(one, socket(None, "/run/c.sock", "other", "box"));
        assert_eq!(
            socket(Some(Path::new("/s")), "a", "b", "c").parent(),
            Some(Path::new("/s"))
        );
    }
}
