//! `linux.cgroupsPath` to a path below the guest's root cgroup.

use super::super::BundleError;

/// A path of the kernel's is at most 4,096 bytes long, and more lies before and below this one.
const MAX_PATH: usize = 2048;
/// A file's name (NAME_MAX).
const MAX_NAME: usize = 255;
/// Where systemd puts what is given no slice.
const DEFAULT_SLICE: &str = "system.slice";

/// Translates a path, or the form `slice:prefix:name` that names a scope of systemd: it becomes the path that systemd
/// would give it, so that a container without a cgroup namespace of its own sees itself where it would be on the host.
pub(in super::super) fn translate(path: &str) -> Result<String, BundleError> {
    let parts: Vec<_> = path.split(':').collect();
    let path = match parts[..] {
        [slice, prefix, name] if !path.contains('/') => systemd(slice, prefix, name)?,
        _ => path.to_owned(),
    };
    let names: Vec<_> = path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    if names.is_empty() && !path.is_empty() {
        return refused("names the root cgroup, which is not a container's");
    }
    if names.contains(&"..") {
        return refused("leads upwards");
    }
    if names.iter().any(|name| name.contains(['\n', '\0'])) {
        return refused("holds a line break or a zero byte");
    }
    let path = names.join("/");
    if path.len() > MAX_PATH || names.iter().any(|name| name.len() > MAX_NAME) {
        return refused("is too long");
    }
    Ok(path)
}

fn systemd(slice: &str, prefix: &str, name: &str) -> Result<String, BundleError> {
    let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
    let parent = expand(slice)?;
    if name.is_empty() {
        return refused("has no name after the second colon");
    }
    let unit = if name.ends_with(".slice") {
        name.to_owned()
    } else if prefix.is_empty() {
        format!("{name}.scope")
    } else {
        format!("{prefix}-{name}.scope")
    };
    Ok(format!("{parent}/{unit}"))
}

/// A slice's name says where it lies: `a-b.slice` in `a.slice` (systemd.slice(5)).
fn expand(slice: &str) -> Result<String, BundleError> {
    let Some(stem) = slice.strip_suffix(".slice") else {
        return refused("has no slice before the first colon");
    };
    if stem == "-" {
        return Ok(String::new());
    }
    if stem.split('-').any(str::is_empty) {
        return refused("has a slice with an empty part in its name");
    }
    let mut path = Vec::new();
    for (end, _) in stem.match_indices('-') {
        path.push(format!("{}.slice", &stem[..end]));
    }
    path.push(slice.to_owned());
    Ok(path.join("/"))
}

fn refused<T>(fault: &'static str) -> Result<T, BundleError> {
    Err(BundleError::Invalid {
        path: "linux.cgroupsPath".into(),
        fault,
    })
}
