//! OCI bundles with what every runtime takes.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::start::MEMORY;

/// Writes a bundle of a command on a root file system that is not written to. A cgroup's path stands for one in cgroup v2.
pub(crate) fn write(directory: &Path, rootfs: &Path, arguments: &[&str], cgroup: Option<&str>) -> Result<()> {
    let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    let mut linux = json!({ "namespaces": namespaces });
    if let Some(cgroup) = cgroup {
        linux["cgroupsPath"] = json!(cgroup);
    }
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": arguments, "cwd": "/", "env": ["PATH=/bin:/usr/bin"],
        },
        "root": { "path": rootfs, "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            // The root may be where no device can be opened.
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
        ],
        "annotations": { "dev.husk.memory": MEMORY },
        "linux": linux,
    });
    Ok(fs::write(directory.join("config.json"), config.to_string())?)
}
