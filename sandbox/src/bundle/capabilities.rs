//! Capability names to numbers (`include/uapi/linux/capability.h`).

use husk_protocol::agent;
use oci_spec::runtime::{Capabilities, LinuxCapabilities};

/// The names in the order of their numbers.
pub(super) const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The bit of a capability that is named without `CAP_`.
fn bit(name: &str) -> Option<u64> {
    let number = NAMES.iter().position(|known| *known == name)?;
    Some(1 << number)
}

fn set(names: Option<&Capabilities>) -> u64 {
    names
        .into_iter()
        .flatten()
        // The type prints the name without its prefix; every name that it knows is in the table, which a test checks.
        .filter_map(|capability| bit(&capability.to_string()))
        .fold(0, |set, bit| set | bit)
}

/// A set from names with or without `CAP_`; the first name that is unknown if there is one.
pub(super) fn from_names(names: &[String]) -> Result<u64, &str> {
    names.iter().try_fold(0, |set, name| {
        let upper = name.to_ascii_uppercase();
        let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
        bit(plain).map(|bit| set | bit).ok_or(name.as_str())
    })
}

/// Translates the five sets.
pub(super) fn translate(sets: &LinuxCapabilities) -> agent::Capabilities {
    agent::Capabilities {
        bounding: set(sets.bounding().as_ref()),
        effective: set(sets.effective().as_ref()),
        inheritable: set(sets.inheritable().as_ref()),
        permitted: set(sets.permitted().as_ref()),
        ambient: set(sets.ambient().as_ref()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use oci_spec::runtime::Capability;

    use super::*;

    #[test]
    fn every_name_of_the_specification_is_known() {
        for name in NAMES {
            let capability = Capability::from_str(name).unwrap();
            assert_eq!(bit(&capability.to_string()), bit(name), "{name}");
        }
        // The last one that the kernel and the crate know: a new one must be added to both.
        assert_eq!(bit("CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(bit("SYS_ADMIN"), Some(1 << 21));
        assert_eq!(bit("AUDIT_READ"), Some(1 << 37));
        assert_eq!(bit("MKNOD"), Some(1 << 27));
        assert_eq!(bit("NONSENSE"), None);
        let names = ["CAP_KILL", "mknod"].map(str::to_owned);
        assert_eq!(from_names(&names), Ok(1 << 5 | 1 << 27));
        assert_eq!(from_names(&["CAP_NONSENSE".to_owned()]), Err("CAP_NONSENSE"));
    }
}
