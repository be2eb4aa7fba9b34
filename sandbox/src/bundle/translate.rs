//! A whole configuration to the agent's [`CreateRequest`].

use std::path::Path;

use husk_protocol::agent::{self, CreateRequest, namespace};
use oci_spec::runtime::{Linux, Spec};
use serde_json::Value;

use super::namespaces::{self, has};
use super::{Bundle, BundleError, devices, hooks, machine, mounts, process, resources, seccomp, sysctl};
use crate::confinement::Confinement;

/// The longest host name (`__NEW_UTS_LEN`), in bytes.
const MAX_NAME: usize = 64;

/// Translates the configuration of the bundle in `dir`; `config` is the same as it stands in the file.
pub(super) fn bundle(dir: &Path, spec: &Spec, config: &Value) -> Result<Bundle, BundleError> {
    if !is_known_version(spec.version()) {
        return Err(BundleError::Value {
            path: "ociVersion".into(),
            value: spec.version().clone(),
            expected: "a version 1.x.y is expected",
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
    let namespaces::Translated {
        namespaces,
        joins,
        network,
    } = namespaces::translate(linux.namespaces().as_deref().unwrap_or_default())?;
    let hooks = match spec.hooks() {
        Some(hooks) => hooks::translate(hooks)?,
        None => hooks::Translated::default(),
    };
    let mut request = CreateRequest {
        create_hooks: listed(hooks.create_container),
        start_hooks: listed(hooks.start_container),
        process: Some(process::translate(process)?).into(),
        root: Some(agent::Root {
            read_only: root.readonly().unwrap_or(false),
            ..Default::default()
        })
        .into(),
        hostname: name("hostname", spec.hostname().as_deref(), &namespaces)?,
        domainname: name("domainname", spec.domainname().as_deref(), &namespaces)?,
        sysctls: sysctl::translate(linux.sysctl().iter().flatten(), &namespaces)?,
        uid_mappings: namespaces::ids("linux.uidMappings", linux.uid_mappings().as_deref(), &namespaces)?,
        gid_mappings: namespaces::ids("linux.gidMappings", linux.gid_mappings().as_deref(), &namespaces)?,
        time_offsets: namespaces::clocks(linux.time_offsets().iter().flatten(), &namespaces)?,
        root_propagation: propagation(linux.rootfs_propagation().as_deref())?,
        personality: linux.personality().as_ref().map(process::persona),
        namespaces,
        devices: devices::translate(linux.devices().as_deref().unwrap_or_default())?,
        masked_paths: paths("linux.maskedPaths", linux.masked_paths().as_deref())?,
        readonly_paths: paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?,
        resources: Some(resources::create(linux.resources().as_ref(), config, &root_path)?).into(),
        cgroup_path: cgroup_path(linux)?,
        seccomp: linux.seccomp().as_ref().map(seccomp::translate).transpose()?.into(),
        ..Default::default()
    };
    let places = mounts::Places {
        bundle: dir,
        root: &root_path,
        uids: linux.uid_mappings().as_deref().unwrap_or_default(),
        gids: linux.gid_mappings().as_deref().unwrap_or_default(),
    };
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        request.mounts.push(mounts::translate(index, mount, places)?);
    }
    let annotations = spec.annotations().clone().into_iter().flatten().collect();
    Ok(Bundle {
        root: root_path,
        dir: Some(dir.to_owned()),
        machine: machine::wish(&annotations, linux.resources().as_ref())?,
        annotations,
        hooks: hooks.host,
        request,
        joins,
        network,
        confinement: Confinement {
            mount_label: linux.mount_label().clone().filter(|label| !label.is_empty()),
            ..process::confinement(process)
        },
    })
}

/// Hooks of the guest; what they are told comes when the container has a name.
fn listed(hooks: Vec<agent::Hook>) -> protobuf::MessageField<agent::Hooks> {
    let listed = (!hooks.is_empty()).then(|| agent::Hooks {
        hooks,
        ..Default::default()
    });
    listed.into()
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

/// Whether a version (semver.org) is of the specification's first major one, in which nothing changes its meaning.
fn is_known_version(version: &str) -> bool {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<_> = release.split('.').map(str::parse::<u32>).collect();
    matches!(numbers.as_slice(), [Ok(1), Ok(_), Ok(_)])
}

fn propagation(name: Option<&str>) -> Result<u64, BundleError> {
    match name.unwrap_or_default() {
        "" => Ok(0),
        name => mounts::propagation(name).ok_or_else(|| BundleError::Value {
            path: "linux.rootfsPropagation".into(),
            value: name.into(),
            expected: "private, slave, shared or unbindable is expected, or one of them with an r before it",
        }),
    }
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
