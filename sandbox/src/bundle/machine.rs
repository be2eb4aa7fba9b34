//! What the configuration says of the machine: husk's own annotations, and limits that the machine must hold.
//!
//! Names that begin with `dev.husk.` are husk's own: an unknown one is an error, so that a misspelt one is not without
//! effect. All others, `org.opencontainers.*` among them, are handed on with the container's state. Of those, a pod's
//! sandbox tells by containerd's own ones what the pod's containers together may use.

use std::collections::BTreeMap;

use husk_vmm_config::MAX_VCPUS;
use oci_spec::runtime::LinuxResources;

use super::BundleError;
use crate::size;

const PREFIX: &str = "dev.husk.";
/// A pod's limit of memory in bytes, and of processor time in microseconds (containerd's CRI plugin).
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// The guest's kernel and agent, in MiB; its page tables and `struct page`s are a share of its memory besides.
const GUEST_MIB: u64 = 64;
const GUEST_SHARE: u64 = 50;
/// The period that counts where none is given, in microseconds.
const PERIOD: u64 = 100_000;

/// The size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
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

/// What a configuration wants of its machine's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// `dev.husk.cpus`.
    cpus: Option<u32>,
    /// `dev.husk.memory` in MiB.
    memory_mib: Option<u32>,
    /// The vCPUs that the limit of processor time can keep busy.
    used_cpus: u32,
    /// What holds the limit of memory, in MiB.
    used_memory_mib: u32,
}

impl Wish {
    /// The machine's size: what the annotations say, and otherwise `least` or what the limits can use, if that is more.
    #[must_use]
    pub fn at_least(&self, least: Machine) -> Machine {
        Machine {
            cpus: self.cpus.unwrap_or_else(|| least.cpus.max(self.used_cpus)),
            memory_mib: self
                .memory_mib
                .unwrap_or_else(|| least.memory_mib.max(self.used_memory_mib)),
        }
    }
}

/// Reads husk's own annotations, and the limits.
pub(super) fn wish(
    annotations: &BTreeMap<String, String>,
    resources: Option<&LinuxResources>,
) -> Result<Wish, BundleError> {
    let mut wish = Wish {
        used_cpus: cpus(annotations, resources),
        used_memory_mib: memory_mib(annotations, resources),
        ..Wish::default()
    };
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
                Ok(cpus @ 1..=MAX_VCPUS) => wish.cpus = Some(cpus),
                _ => return wrong("1 to 64 is expected"),
            },
            "memory" => match size::memory_mib(value) {
                Ok(mib) => wish.memory_mib = Some(mib),
                Err(_) => return wrong("a size between 32M and 1T such as 512M is expected"),
            },
            _ => return Err(BundleError::Unsupported(format!("annotations[{name:?}]"))),
        }
    }
    Ok(wish)
}

/// A number of an annotation that is not husk's: one that is none says nothing.
fn number(annotations: &BTreeMap<String, String>, name: &str) -> Option<u64> {
    annotations.get(name)?.parse().ok().filter(|number| *number > 0)
}

fn cpus(annotations: &BTreeMap<String, String>, resources: Option<&LinuxResources>) -> u32 {
    let own = resources.and_then(|resources| resources.cpu().as_ref());
    let quota = own.and_then(|cpu| u64::try_from(cpu.quota()?).ok());
    let quotas = [
        (quota, own.and_then(oci_spec::runtime::LinuxCpu::period)),
        (number(annotations, POD_QUOTA), number(annotations, POD_PERIOD)),
    ];
    let most = quotas.iter().filter_map(|(quota, period)| {
        let period = period.filter(|period| *period > 0).unwrap_or(PERIOD);
        Some((*quota)?.div_ceil(period))
    });
    let most = most.max().unwrap_or(0);
    u32::try_from(most).unwrap_or(MAX_VCPUS).min(MAX_VCPUS)
}

fn memory_mib(annotations: &BTreeMap<String, String>, resources: Option<&LinuxResources>) -> u32 {
    let own = resources.and_then(|resources| resources.memory().as_ref()?.limit());
    let own = own.and_then(|limit| u64::try_from(limit).ok());
    let most = own.max(number(annotations, POD_MEMORY)).unwrap_or(0);
    let most = match most.div_ceil(1 << 20) {
        0 => 0,
        mib => mib + mib / GUEST_SHARE + GUEST_MIB,
    };
    // A limit that no machine holds limits nothing.
    u32::try_from(most)
        .ok()
        .filter(|mib| *mib <= size::MAX_MEMORY_MIB)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn annotations(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        list.iter().map(own).collect()
    }

    fn size(list: &[(&str, &str)], resources: serde_json::Value) -> Machine {
        let resources = serde_json::from_value(resources).unwrap();
        let wish = wish(&annotations(list), Some(&resources)).unwrap();
        wish.at_least(Machine::default())
    }

    fn machine(cpus: u32, memory_mib: u32) -> Machine {
        Machine { cpus, memory_mib }
    }

    #[test]
    fn the_machine_is_what_annotations_say() {
        assert_eq!(size(&[("dev.husk.cpus", "4")], json!({})), machine(4, 512));
        assert_eq!(size(&[("dev.husk.memory", "2G")], json!({})), machine(1, 2048));
        let limits = json!({"memory": {"limit": 8_u64 << 30}, "cpu": {"quota": 800_000}});
        let both = [("dev.husk.memory", "64M"), ("dev.husk.cpus", "1")];
        assert_eq!(size(&both, limits), machine(1, 64), "whatever the limits are");
        for (name, value) in [
            ("org.opencontainers.image.title", "x"),
            ("dev.huskier.cpus", "many"),
            ("io.kubernetes.cri.sandbox-id", ""),
            (POD_MEMORY, "much"),
        ] {
            assert_eq!(size(&[(name, value)], json!({})), Machine::default());
        }
    }

    #[test]
    fn the_machine_holds_what_the_limits_allow() {
        let memory = |limit: i64| size(&[], json!({"memory": {"limit": limit}})).memory_mib;
        assert_eq!([memory(-1), memory(0), memory(64 << 20)], [512; 3]);
        assert_eq!(memory(1 << 30), 1024 + 20 + 64);
        assert_eq!(memory(i64::MAX), 512, "docker's way to say that there is none");
        let cpus = |cpu| size(&[], json!({"cpu": cpu})).cpus;
        assert_eq!(cpus(json!({"quota": -1, "period": 100_000})), 1);
        assert_eq!(cpus(json!({"quota": 150_000})), 2);
        assert_eq!(cpus(json!({"quota": 50_000, "period": 10_000})), 5);
        assert_eq!(cpus(json!({"quota": i64::MAX, "period": 1})), MAX_VCPUS);
        let pod = [
            (POD_MEMORY, "2147483648"),
            (POD_QUOTA, "300000"),
            (POD_PERIOD, "100000"),
        ];
        assert_eq!(size(&pod, json!({"cpu": {"shares": 2}})), machine(3, 2048 + 40 + 64));
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
            let refusal = wish(&annotations(&[(name, value)]), None).unwrap_err().to_string();
            assert!(refusal.contains(&format!("annotations[{name:?}]")), "{refusal}");
        }
    }
}
