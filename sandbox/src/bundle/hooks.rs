//! `hooks`: those for the host and those for the guest.

use std::path::Path;

use husk_protocol::agent;
use oci_spec::runtime;

use super::BundleError;
use crate::hooks::{DEFAULT_TIMEOUT, Hook, Hooks};

/// A container's hooks by where they run.
#[derive(Debug, Default)]
pub(super) struct Translated {
    pub(super) host: Hooks,
    pub(super) create_container: Vec<agent::Hook>,
    pub(super) start_container: Vec<agent::Hook>,
}

/// Translates the hooks.
#[allow(
    deprecated,
    reason = "prestart is deprecated by the specification and has to run all the same"
)]
pub(super) fn translate(hooks: &runtime::Hooks) -> Result<Translated, BundleError> {
    let mut create = list("prestart", hooks.prestart().as_deref())?;
    create.extend(list("createRuntime", hooks.create_runtime().as_deref())?);
    Ok(Translated {
        host: Hooks {
            create,
            poststart: list("poststart", hooks.poststart().as_deref())?,
            poststop: list("poststop", hooks.poststop().as_deref())?,
        },
        create_container: in_guest(list("createContainer", hooks.create_container().as_deref())?),
        start_container: in_guest(list("startContainer", hooks.start_container().as_deref())?),
    })
}

fn list(kind: &str, hooks: Option<&[runtime::Hook]>) -> Result<Vec<Hook>, BundleError> {
    let hooks = hooks.unwrap_or_default();
    hooks
        .iter()
        .enumerate()
        .map(|(index, hook)| translate_one(format!("hooks.{kind}[{index}]"), hook))
        .collect()
}

fn translate_one(field: String, hook: &runtime::Hook) -> Result<Hook, BundleError> {
    if !hook.path().is_absolute() {
        return Err(BundleError::Value {
            path: format!("{field}.path"),
            value: hook.path().to_string_lossy().into(),
            expected: "an absolute path is expected",
        });
    }
    let env = hook.env().clone().unwrap_or_default();
    if let Some(index) = env.iter().position(|entry| !entry.contains('=')) {
        return Err(BundleError::Value {
            path: format!("{field}.env[{index}]"),
            value: env[index].clone(),
            expected: "NAME=VALUE is expected",
        });
    }
    let timeout = match hook.timeout() {
        None => DEFAULT_TIMEOUT,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds @ 1..=MAX_TIMEOUT) => seconds,
            _ => {
                return Err(BundleError::Value {
                    path: format!("{field}.timeout"),
                    value: seconds.to_string(),
                    expected: "1 to 86400 seconds are expected",
                });
            }
        },
    };
    Ok(Hook {
        field,
        path: hook.path().clone(),
        args: hook.args().clone().unwrap_or_default(),
        env,
        timeout,
    })
}

/// The longest time that a hook may ask for: a day, in seconds.
const MAX_TIMEOUT: u64 = 86_400;

fn in_guest(hooks: Vec<Hook>) -> Vec<agent::Hook> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    hooks
        .into_iter()
        .map(|hook| agent::Hook {
            field: hook.field,
            path: path(&hook.path),
            args: hook.args,
            env: hook.env,
            // At most a day.
            timeout_s: u32::try_from(hook.timeout).unwrap_or(u32::MAX),
            ..Default::default()
        })
        .collect()
}
