//! `linux.sysctl`: settings of the kernel that a container's own namespaces have.
//!
//! What is not in a namespace would be the guest's and with it every container's, so it is refused, as by runc.

use husk_protocol::agent::namespace::Kind;
use husk_protocol::agent::{Namespace, Sysctl};

use super::BundleError;
use super::namespaces::has;

/// Settings of an IPC namespace, beside those below `fs.mqueue`.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Translates the settings, in the order of their names.
pub(super) fn translate<'a>(
    settings: impl Iterator<Item = (&'a String, &'a String)>,
    namespaces: &[Namespace],
) -> Result<Vec<Sysctl>, BundleError> {
    let mut sysctls = Vec::new();
    for (key, value) in settings {
        let path = path(key);
        if let Some(fault) = fault(&path, namespaces) {
            return Err(BundleError::Invalid {
                path: format!("linux.sysctl[{key:?}]"),
                fault,
            });
        }
        sysctls.push(Sysctl {
            path,
            value: value.clone(),
            ..Default::default()
        });
    }
    sysctls.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(sysctls)
}

/// A setting's file below `/proc/sys`. Either separator may be used; the other one is then part of a name (sysctl(8)).
fn path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key[first..].starts_with('.') => key
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

/// Why a setting may not be made.
fn fault(path: &str, namespaces: &[Namespace]) -> Option<&'static str> {
    if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Some("is not the name of a setting");
    }
    let below = |directory: &str| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
    let (kind, missing) = if IPC.contains(&path) || below("fs/mqueue") {
        (Kind::IPC, "needs an ipc namespace in linux.namespaces")
    } else if below("net") {
        (Kind::NETWORK, "needs a network namespace in linux.namespaces")
    } else if below("user") {
        (Kind::USER, "needs a user namespace in linux.namespaces")
    } else if path == "kernel/domainname" {
        (Kind::UTS, "needs a uts namespace in linux.namespaces")
    } else if path == "kernel/hostname" {
        return Some("is set by the field hostname");
    } else {
        return Some("is in no namespace of the container's");
    };
    (!has(namespaces, kind)).then_some(missing)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(kinds: &[Kind], key: &str) -> Result<String, String> {
        let namespaces: Vec<_> = kinds
            .iter()
            .map(|kind| Namespace {
                kind: (*kind).into(),
                ..Default::default()
            })
            .collect();
        let settings = [(key.to_owned(), "1".to_owned())];
        match translate(settings.iter().map(|(key, value)| (key, value)), &namespaces) {
            Ok(sysctls) => Ok(sysctls[0].path.clone()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn settings_of_the_containers_namespaces_are_files() {
        for (kind, key, path) in [
            (Kind::IPC, "kernel.shmmax", "kernel/shmmax"),
            (Kind::IPC, "fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            (Kind::NETWORK, "net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            (
                Kind::NETWORK,
                "net/ipv4/conf/eno2.100/rp_filter",
                "net/ipv4/conf/eno2.100/rp_filter",
            ),
            (
                Kind::NETWORK,
                "net.ipv4.conf.eno2/100.rp_filter",
                "net/ipv4/conf/eno2.100/rp_filter",
            ),
            (Kind::UTS, "kernel.domainname", "kernel/domainname"),
            (Kind::USER, "user.max_pid_namespaces", "user/max_pid_namespaces"),
        ] {
            assert_eq!(with(&[kind], key).unwrap(), path);
            let refusal = with(&[Kind::MOUNT], key).unwrap_err();
            assert!(refusal.contains(key) && refusal.contains("namespace"), "{refusal}");
        }
    }

    #[test]
    fn settings_of_the_guest_are_refused_by_name() {
        let all = [Kind::IPC, Kind::NETWORK, Kind::UTS, Kind::USER];
        for key in [
            "kernel.hostname",
            "kernel.core_pattern",
            "vm.swappiness",
            "fs.file-max",
            "network.x",
            "net",
            "",
            ".",
            "net.",
            "net..x",
            "net/../kernel/core_pattern",
            "/net/core/x",
        ] {
            let refusal = with(&all, key).unwrap_err();
            assert!(refusal.contains(&format!("linux.sysctl[{key:?}]")), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn no_setting_is_outside_what_is_allowed(key in "(net|user|fs|kernel)?[a-z./]{0,20}") {
            if let Ok(path) = with(&[Kind::NETWORK], &key) {
                let mut names = path.split('/');
                prop_assert_eq!(names.next(), Some("net"));
                prop_assert!(names.all(|name| !["", ".", ".."].contains(&name)), "{}", path);
            }
        }
    }
}
