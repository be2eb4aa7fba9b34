//! `annotations`: those that are for husk.
//!
//! Names that begin with `dev.husk.` are husk's own: an unknown one is an error, so that a misspelt one is not without
//! effect. All others, `org.opencontainers.*` among them, mean nothing to husk and are handed on with the container's
//! state.

use std::collections::BTreeMap;

use husk_vmm_config::MAX_VCPUS;

use super::BundleError;
use crate::size;

const PREFIX: &str = "dev.husk.";

/// What the machine of a container is to be where its owner does not say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// vCPUs (`dev.husk.cpus`).
    pub cpus: u32,
    /// Guest memory in MiB (`dev.husk.memory`).
    pub memory_mib: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory_mib: 512,
        }
    }
}

/// Reads husk's own annotations.
pub(super) fn machine(annotations: &BTreeMap<String, String>) -> Result<Machine, BundleError> {
    let mut machine = Machine::default();
    for (name, value) in annotations {
        let Some(key) = name.strip_prefix(PREFIX) else { continue };
        let wrong = |expected| {
            Err(BundleError::Value {
                path: format!("annotations[{name:?}]"),
                value: value.clone(),
                expected,
            })
        };
        match key {
            "cpus" => match value.parse() {
                Ok(cpus @ 1..=MAX_VCPUS) => machine.cpus = cpus,
                _ => return wrong("1 to 64 is expected"),
            },
            "memory" => match size::memory_mib(value) {
                Ok(mib) => machine.memory_mib = mib,
                Err(_) => return wrong("a size between 32M and 1T such as 512M is expected"),
            },
            _ => return Err(BundleError::Unsupported(format!("annotations[{name:?}]"))),
        }
    }
    Ok(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<Machine, String> {
        machine(&[(name.to_owned(), value.to_owned())].into()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_machine_is_what_annotations_say() {
        assert_eq!(read("dev.husk.cpus", "4").unwrap().cpus, 4);
        assert_eq!(read("dev.husk.memory", "2G").unwrap().memory_mib, 2048);
        for (name, value) in [
            ("org.opencontainers.image.title", "x"),
            ("dev.huskier.cpus", "many"),
            ("io.kubernetes.cri.sandbox-id", ""),
        ] {
            assert_eq!(read(name, value).unwrap(), Machine::default());
        }
    }

    #[test]
    fn husks_own_are_known_and_in_range() {
        for (name, value) in [
            ("dev.husk.cpu", "1"),
            ("dev.husk.", "1"),
            ("dev.husk.cpus", "0"),
            ("dev.husk.cpus", "65"),
            ("dev.husk.cpus", "many"),
            ("dev.husk.memory", "1M"),
            ("dev.husk.memory", ""),
        ] {
            let refusal = read(name, value).unwrap_err();
            assert!(refusal.contains(&format!("annotations[{name:?}]")), "{refusal}");
        }
    }
}
