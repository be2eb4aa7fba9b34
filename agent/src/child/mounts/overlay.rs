//! The layers of an overlay that a container asks for: directories in its root.

use std::os::fd::OwnedFd;

use super::super::paths::{Root, by_descriptor};
use super::detached::{Choice, Fault};

/// Replaces each layer's path by one that leads to the same directory in the root, whatever lies there by then; `layers`
/// keeps them open.
pub(super) fn choices(root: &Root, choices: Vec<Choice>, layers: &mut Vec<OwnedFd>) -> Result<Vec<Choice>, Fault> {
    let mut replaced = Vec::new();
    let mut open = |path: &str| -> Result<String, Fault> {
        let layer = root.find(path).map_err(|source| Fault {
            source,
            detail: format!(": {path:?} in the container"),
        })?;
        let path = by_descriptor(&layer);
        layers.push(layer);
        Ok(path)
    };
    for (key, value) in choices {
        match (key.as_str(), value) {
            ("lowerdir", Some(paths)) => {
                for path in paths.split(':') {
                    // One by one: a value may be 255 bytes long.
                    replaced.push(("lowerdir+".to_owned(), Some(open(path)?)));
                }
            }
            ("upperdir" | "workdir", Some(path)) => replaced.push((key, Some(open(&path)?))),
            (_, value) => replaced.push((key, value)),
        }
    }
    Ok(replaced)
}
