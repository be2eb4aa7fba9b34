//! Names in a layer, and what they stand for.

use super::{LayerError, lossy};
use crate::limits::{MAX_NAME, MAX_PATH};

/// The start of names that stand for something else (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS's own files.
const AUFS: &[u8] = b".wh..wh.";

/// What a name in a layer says.
pub(super) enum Name {
    Plain,
    Ignored,
    Opaque(Vec<u8>),
    Whiteout(Vec<u8>),
}

pub(super) fn whiteout(path: &[u8]) -> Result<Name, LayerError> {
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = path.split_at(start);
    let Some(hidden) = name.strip_prefix(WHITEOUT) else {
        return Ok(Name::Plain);
    };
    if name == OPAQUE {
        return Ok(Name::Opaque(parent.strip_suffix(b"/").unwrap_or(parent).to_vec()));
    }
    if name.starts_with(AUFS) {
        return Ok(Name::Ignored);
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(LayerError::Name(lossy(path)));
    }
    Ok(Name::Whiteout([parent, hidden].concat()))
}

/// A path from the root on, without empty components and dots; none if it has two dots.
pub(crate) fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return None,
            _ => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(component);
            }
        }
    }
    Some(clean)
}

pub(super) fn check_path(path: &[u8]) -> Result<(), LayerError> {
    let long = path
        .split(|byte| *byte == b'/')
        .any(|component| component.len() > MAX_NAME);
    if long || path.len() > MAX_PATH || path.contains(&0) {
        return Err(LayerError::Name(lossy(&path[..path.len().min(MAX_NAME)])));
    }
    Ok(())
}
