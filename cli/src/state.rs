//! `husk state`: the state document of the OCI runtime specification, with what runc adds to it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use husk_sandbox::bundle::SPEC_VERSION;
use husk_sandbox::lifecycle::{Container, Status};
use serde::Serialize;

use crate::answer;
use crate::args::{Global, IdArgs};

/// A container's state (OCI runtime specification, "State"; the last four fields are runc's).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    oci_version: &'static str,
    pub(crate) id: String,
    /// The process that stands for the container's; 0 when it has stopped.
    pub(crate) pid: u32,
    pub(crate) status: Status,
    bundle: PathBuf,
    annotations: BTreeMap<String, String>,
    rootfs: PathBuf,
    created: String,
    owner: String,
}

impl State {
    pub(crate) fn of(container: &Container, status: Status) -> Self {
        let state = &container.found().state;
        let definition = state.containers.first();
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(state.created);
        Self {
            oci_version: SPEC_VERSION,
            id: state.name.clone(),
            pid: match status {
                Status::Stopped => 0,
                _ => state.pid,
            },
            status,
            bundle: definition.and_then(|one| one.bundle.clone()).unwrap_or_default(),
            annotations: definition.map(|one| one.annotations.clone()).unwrap_or_default(),
            rootfs: definition.map(|one| one.root.clone()).unwrap_or_default(),
            created: humantime::format_rfc3339(created).to_string(),
            owner: String::new(),
        }
    }
}

pub(crate) fn state(global: &Global, args: &IdArgs) -> Result<u8> {
    let container = global.container(&args.id)?;
    answer::json(&State::of(&container, container.status()?))?;
    Ok(0)
}
