//! `linux.resources` to files of cgroup v2 and rules for devices.
//!
//! The specification's values are those of cgroup v1; the translation is the one that runc and crun use, so that a limit
//! means the same under husk. What cgroup v2 cannot express and runc passes over there is passed over with a warning.

mod devices;
mod disk;
mod io;
mod limits;
mod path;
#[cfg(test)]
mod tests;
mod unified;

use std::collections::BTreeMap;
use std::path::Path;

use husk_protocol::agent::{self, CgroupSetting, StatsResponse};
use oci_spec::runtime::{LinuxNetwork, LinuxResources};
use serde_json::Value;

use super::{BundleError, fields};
use disk::RootDisk;
pub(super) use path::translate as cgroup_path;

/// A change of a container's limits: what `linux.resources` may say, of which only what is there is changed.
#[derive(Clone, Debug)]
pub struct Update {
    resources: LinuxResources,
}

impl Update {
    /// Reads the text of a JSON object of the form of `linux.resources` (OCI runtime specification, config-linux.md,
    /// "Control groups"); 0 stands for "not set" as it does there.
    ///
    /// # Errors
    /// What is no such object; a field that is not honoured or is out of its range, by its path.
    pub fn parse(text: &[u8]) -> Result<Self, BundleError> {
        let value: Value = serde_json::from_slice(text).map_err(BundleError::Json)?;
        fields::check_resources(&value)?;
        let mut resources: LinuxResources = serde_json::from_slice(text).map_err(BundleError::Spec)?;
        drop_unset(&mut resources, &value);
        Ok(Self { resources })
    }

    /// What the agent is to be told. `current` is what counts so far, which decides where the change names one of two
    /// values that cgroup v2 keeps in one; `root` is the directory that the root file system was made from.
    ///
    /// # Errors
    /// A value that is out of its range, by its path.
    pub fn message(&self, current: &StatsResponse, root: &Path) -> Result<agent::Resources, BundleError> {
        let before = Before {
            quota: current.cpu_quota_us,
            memory: (current.memory_limit > 0).then_some(current.memory_limit),
        };
        let mut message = translate(&self.resources, root, &before)?;
        message.devices = self
            .resources
            .devices()
            .as_deref()
            .map(devices::translate)
            .transpose()?
            .into();
        Ok(message)
    }
}

/// Limits that count before a change.
#[derive(Debug, Default)]
struct Before {
    /// `cpu.max` in microseconds.
    quota: Option<u64>,
    /// `memory.max` in bytes.
    memory: Option<u64>,
}

/// Translates the limits of a new container; `config` is the whole configuration as it stands in the file.
pub(super) fn create(
    resources: Option<&LinuxResources>,
    config: &Value,
    root: &Path,
) -> Result<agent::Resources, BundleError> {
    let mut resources = resources.cloned().unwrap_or_default();
    if let Some(value) = config.pointer("/linux/resources") {
        drop_unset(&mut resources, value);
    }
    let mut message = translate(&resources, root, &Before::default())?;
    let rules = resources.devices().as_deref().unwrap_or_default();
    message.devices = Some(devices::translate(rules)?).into();
    Ok(message)
}

/// In the order in which runc writes them.
fn translate(resources: &LinuxResources, root: &Path, before: &Before) -> Result<agent::Resources, BundleError> {
    let mut settings = Vec::new();
    let mut check_before_update = false;
    let disk = RootDisk::of(root);
    if let Some(pids) = resources.pids() {
        settings.push(limits::pids(*pids)?);
    }
    if let Some(memory) = resources.memory() {
        settings.extend(limits::memory(memory, before)?);
        check_before_update = memory.check_before_update().unwrap_or(false);
    }
    if let Some(io) = resources.block_io() {
        settings.extend(io::translate(io, &disk)?);
    }
    if let Some(cpu) = resources.cpu() {
        settings.extend(limits::cpu(cpu, before)?);
    }
    settings.extend(limits::hugepages(
        resources.hugepage_limits().as_deref().unwrap_or_default(),
    )?);
    if let Some(network) = resources.network() {
        pass_over_network(network);
    }
    let unified: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
    for (name, value) in unified {
        settings.extend(unified::translate(name, value, &disk)?);
    }
    Ok(agent::Resources {
        settings,
        check_before_update,
        ..Default::default()
    })
}

/// cgroup v2 has neither classes nor priorities; programs that mark packets take their place, in no runtime.
fn pass_over_network(network: &LinuxNetwork) {
    if network.class_id().is_some_and(|id| id != 0)
        || network.priorities().as_ref().is_some_and(|list| !list.is_empty())
    {
        tracing::warn!("linux.resources.network has no effect with cgroup v2");
    }
}

/// A limit of 0 processes is one, no limit at all is none: the type does not tell them apart.
fn drop_unset(resources: &mut LinuxResources, value: &Value) {
    if value.pointer("/pids/limit").is_none_or(Value::is_null) {
        resources.set_pids(None);
    }
}

fn setting(file: &str, value: impl ToString) -> CgroupSetting {
    CgroupSetting {
        file: file.to_owned(),
        value: value.to_string(),
        ..Default::default()
    }
}

fn out_of_range(field: &str, value: impl ToString, expected: &'static str) -> BundleError {
    BundleError::Value {
        path: format!("linux.resources.{field}"),
        value: value.to_string(),
        expected,
    }
}
