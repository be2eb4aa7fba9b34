//! A whole configuration to the agent's [`CreateRequest`].

use std::collections::HashSet;
use std::path::Path;

use husk_protocol::agent::{self, CreateRequest, namespace};
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Spec};
use serde_json::Value;

use super::{Bundle, BundleError, devices, mounts, process, resources};

/// The longest host name (`__NEW_UTS_LEN`), in bytes.
const MAX_NAME: usize = 64;

/// Translates the configuration of the bundle in `dir`; `config` is the same as it stands in the file.
pub(super) fn bundle(dir: &Path, spec: &Spec, config: &Value) -> Result<Bundle, BundleError> {
    if !spec.version().starts_with("1.") {
        return Err(BundleError::Value {
            path: "ociVersion".into(),
            value: spec.version().clone(),
            expected: "1.x is expected",
        });
    }
    let root = spec.root().as_ref().ok_or(BundleError::Missing("root"))?;
    if root.path().as_os_str().is_empty() {
        return Err(BundleError::Missing("root.path"));
    }
    // An absolute path replaces the bundle's directory.
    let root_path = dir.join(root.path());
    let process = spec.process().as_ref().ok_or(BundleError::Missing("process"))?;
    let linux = spec.linux().as_ref().ok_or(BundleError::Missing("linux"))?;
    let namespaces = namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
    let mut request = CreateRequest {
        process: Some(process::translate(process)?).into(),
        root: Some(agent::Root {
            read_only: root.readonly().unwrap_or(false),
            ..Default::default()
        })
        .into(),
        hostname: name("hostname", spec.hostname().as_deref(), &namespaces)?,
        domainname: name("domainname", spec.domainname().as_deref(), &namespaces)?,
        namespaces,
        devices: devices::translate(linux.devices().as_deref().unwrap_or_default())?,
        masked_paths: paths("linux.maskedPaths", linux.masked_paths().as_deref())?,
        readonly_paths: paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?,
        resources: Some(resources::create(linux.resources().as_ref(), config, &root_path)?).into(),
        cgroup_path: cgroup_path(linux)?,
        ..Default::default()
    };
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        request.mounts.push(mounts::translate(index, mount)?);
    }
    let annotations = spec.annotations().iter().flatten();
    Ok(Bundle {
        root: root_path,
        dir: Some(dir.into()),
        annotations: annotations.map(|(name, value)| (name.clone(), value.clone())).collect(),
        request,
    })
}

/// A path that is not UTF-8 could not be said to the agent.
fn cgroup_path(linux: &Linux) -> Result<String, BundleError> {
    let Some(path) = linux.cgroups_path() else {
        return Ok(String::new());
    };
    let path = path.to_str().ok_or_else(|| BundleError::Invalid {
        path: "linux.cgroupsPath".into(),
        fault: "is not UTF-8",
    })?;
    resources::cgroup_path(path)
}

fn namespaces(list: &[LinuxNamespace]) -> Result<Vec<agent::Namespace>, BundleError> {
    let mut seen = HashSet::new();
    let mut translated = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        let kind = match entry.typ() {
            LinuxNamespaceType::Mount => namespace::Kind::MOUNT,
            LinuxNamespaceType::Pid => namespace::Kind::PID,
            LinuxNamespaceType::Ipc => namespace::Kind::IPC,
            LinuxNamespaceType::Uts => namespace::Kind::UTS,
            LinuxNamespaceType::Network => namespace::Kind::NETWORK,
            LinuxNamespaceType::Cgroup => namespace::Kind::CGROUP,
            unsupported @ (LinuxNamespaceType::User | LinuxNamespaceType::Time) => {
                return Err(BundleError::UnsupportedValue {
                    path: format!("linux.namespaces[{index}].type"),
                    value: format!("{:?}", unsupported.to_string()),
                });
            }
        };
        if !seen.insert(entry.typ().to_string()) {
            return Err(BundleError::Value {
                path: format!("linux.namespaces[{index}].type"),
                value: entry.typ().to_string(),
                expected: "each type may stand once",
            });
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
    Ok(translated)
}

fn has(namespaces: &[agent::Namespace], kind: namespace::Kind) -> bool {
    namespaces.iter().any(|entry| entry.kind == kind.into())
}

/// A host or domain name, which needs a UTS namespace of the container's own.
fn name(field: &'static str, value: Option<&str>, namespaces: &[agent::Namespace]) -> Result<String, BundleError> {
    let value = value.unwrap_or_default();
    if value.len() > MAX_NAME {
        return Err(BundleError::Invalid {
            path: field.into(),
            fault: "is longer than 64 bytes",
        });
    }
    if !value.is_empty() && !has(namespaces, namespace::Kind::UTS) {
        return Err(BundleError::Invalid {
            path: field.into(),
            fault: "needs a uts namespace in linux.namespaces",
        });
    }
    Ok(value.into())
}

fn paths(field: &str, list: Option<&[String]>) -> Result<Vec<String>, BundleError> {
    let list = list.unwrap_or_default();
    match list.iter().position(|path| !path.starts_with('/')) {
        Some(index) => Err(BundleError::Value {
            path: format!("{field}[{index}]"),
            value: list[index].clone(),
            expected: "an absolute path is expected",
        }),
        None => Ok(list.to_vec()),
    }
}
