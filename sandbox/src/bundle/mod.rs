//! OCI bundles: `config.json` becomes what the agent is sent.
//!
//! This is the one place that knows OCI JSON. [`Bundle::load`] reads a bundle's `config.json`, refuses every field
//! that would not be honoured by its JSON path ([`fields`]), and translates the rest into a
//! [`CreateRequest`]: names become numbers, mount options become flags and cgroup
//! values become files of cgroup v2. [`Bundle::standard`] makes the same from a root directory alone, with the
//! defaults that container tools agree on.

mod capabilities;
mod devices;
pub mod features;
mod fields;
mod hooks;
mod machine;
mod mounts;
mod namespaces;
mod process;
pub mod resources;
mod schedule;
mod seccomp;
mod standard;
mod sysctl;
#[cfg(test)]
mod tests;
mod translate;
pub mod users;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use husk_protocol::agent::{self, CreateRequest};
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};
use thiserror::Error;

use crate::confinement::Confinement;
use crate::hooks::Hooks;
pub use machine::{Machine, Wish};
pub(crate) use namespaces::OF_THE_SAME_SANDBOX;
pub use namespaces::{Join, Network};
pub use standard::Standard;
use users::UserError;

/// The longest `config.json` that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// A flag that oci-spec 0.10 spells otherwise than the specification does.
const DEADLINE_OVERRUN: &str = "SCHED_FLAG_DL_OVERRUN";
const DEADLINE_OVERRUN_OF_THE_CRATE: &str = "SCHED_FLAG_D_L_OVERRUN";

/// A container that can be created: its root directory on the host, and what the agent is to be told.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The root file system's directory on the host.
    pub root: PathBuf,
    /// The directory of the `config.json`, if there is one.
    pub dir: Option<PathBuf>,
    /// The annotations of the `config.json`.
    pub annotations: BTreeMap<String, String>,
    /// What it wants of the size of its machine.
    pub machine: Wish,
    /// Programs of the host that run at points of the container's life.
    pub hooks: Hooks,
    /// Everything but the container's name, its root disk's serial and the tokens of its streams.
    pub request: CreateRequest,
    /// The namespaces of the request that are other containers'.
    pub joins: Vec<Join>,
    /// The network namespace on the host that is to be the container's.
    pub network: Option<Network>,
    /// The host's policies that are to confine the container.
    pub confinement: Confinement,
}

/// Why a bundle is not accepted.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum BundleError {
    #[error("{} cannot be read: an OCI bundle is a directory with a config.json and a root file system", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("{} is longer than {MAX_CONFIG} bytes", .0.display())]
    TooLong(PathBuf),
    #[error("config.json is not valid JSON")]
    Json(#[source] serde_json::Error),
    #[error("config.json is not an OCI runtime configuration")]
    Spec(#[source] serde_json::Error),
    #[error("config.json: {0} is not supported by husk yet")]
    Unsupported(String),
    #[error("config.json: {path} is {value}, which husk does not support yet")]
    UnsupportedValue { path: String, value: String },
    #[error("config.json: {path} {fault}")]
    Invalid { path: String, fault: &'static str },
    #[error("config.json: {path} names {}, which cannot be read", file.display())]
    Source {
        path: String,
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("config.json: {0} is missing")]
    Missing(&'static str),
    #[error("config.json: {path} is {value:?}; {expected}")]
    Value {
        path: String,
        value: String,
        expected: &'static str,
    },
    #[error("there is no capability {0:?}")]
    Capability(String),
    #[error(transparent)]
    User(#[from] UserError),
}

impl Bundle {
    /// Reads and translates the bundle in `dir`.
    ///
    /// # Errors
    /// What cannot be read or is not an OCI configuration; a field that is not honoured or is out of its range, by its
    /// JSON path.
    pub fn load(dir: &Path) -> Result<Self, BundleError> {
        let text = read_config(&dir.join("config.json"))?;
        Self::parse(dir, &text)
    }

    /// Translates the text of a `config.json` whose bundle is `dir`.
    ///
    /// # Errors
    /// As [`Bundle::load`].
    pub fn parse(dir: &Path, text: &[u8]) -> Result<Self, BundleError> {
        let value: Value = serde_json::from_slice(text).map_err(BundleError::Json)?;
        fields::check(&value)?;
        let spec = typed(text, value.clone())?;
        translate::bundle(dir, &spec, &value)
    }
}

impl Bundle {
    /// Refuses a network namespace that has a name on the host, where no sandbox is to be in it.
    ///
    /// # Errors
    /// There is one.
    pub fn check_no_network(&self) -> Result<(), BundleError> {
        match &self.network {
            None => Ok(()),
            Some(network) => Err(BundleError::Value {
                path: format!("linux.namespaces[{}].path", network.index),
                value: network.path.to_string_lossy().into_owned(),
                expected: OF_THE_SAME_SANDBOX,
            }),
        }
    }
}

/// The version of the runtime specification whose `config.json` is read and whose documents are written.
pub const SPEC_VERSION: &str = "1.3.0";

/// Translates the text of a `process` object alone, as it is given for a further process of a container; gives also how
/// the host is to confine it.
///
/// # Errors
/// As [`Bundle::load`]; the paths begin with `process`.
pub fn process(text: &[u8]) -> Result<(agent::Process, Confinement), BundleError> {
    let value: Value = serde_json::from_slice(text).map_err(BundleError::Json)?;
    fields::check(&json!({"process": value}))?;
    let process: Process = serde_json::from_slice(text).map_err(BundleError::Spec)?;
    Ok((process::translate(&process)?, process::confinement(&process)))
}

/// The set of the capabilities that are named, with or without `CAP_`; bit n is number n (capability.h).
///
/// # Errors
/// A name that no capability has.
pub fn capability_set(names: &[String]) -> Result<u64, BundleError> {
    capabilities::from_names(names).map_err(|name| BundleError::Capability(name.into()))
}

/// The configuration in its types.
fn typed(text: &[u8], mut value: Value) -> Result<Spec, BundleError> {
    // From the text and not from the value, so that a type error tells line and column.
    let error = match serde_json::from_slice(text) {
        Ok(spec) => return Ok(spec),
        Err(error) => error,
    };
    if adapt(&mut value) {
        return serde_json::from_value(value).map_err(BundleError::Spec);
    }
    Err(BundleError::Spec(error))
}

/// Changes what the types do not take though the specification does; says whether there is any of it.
fn adapt(value: &mut Value) -> bool {
    let mut is_adapted = false;
    let flags = value
        .pointer_mut("/process/scheduler/flags")
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten().filter(|flag| *flag == DEADLINE_OVERRUN) {
        *flag = DEADLINE_OVERRUN_OF_THE_CRATE.into();
        is_adapted = true;
    }
    // Objects without content ask for nothing, but the types want members of some.
    let mut left = vec![value];
    while let Some(value) = left.pop() {
        match value {
            Value::Object(members) => {
                let before = members.len();
                members.retain(|_, member| !member.as_object().is_some_and(serde_json::Map::is_empty));
                is_adapted |= members.len() < before;
                left.extend(members.values_mut());
            }
            Value::Array(elements) => left.extend(elements),
            _ => {}
        }
    }
    is_adapted
}

fn read_config(path: &Path) -> Result<Vec<u8>, BundleError> {
    let failed = |source| BundleError::Read {
        path: path.to_owned(),
        source,
    };
    // A FIFO in the place of the file must not block the open.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(BundleError::NotAFile(path.to_owned()));
    }
    let mut text = Vec::new();
    file.take(MAX_CONFIG + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(BundleError::TooLong(path.to_owned()));
    }
    Ok(text)
}
