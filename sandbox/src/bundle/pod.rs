//! The sandbox of a pod for which there is no `config.json`: the namespaces that the pod's containers share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Bundle, BundleError, SPEC_VERSION};

/// What is known of a pod before its first container is.
#[derive(Clone, Debug, Default)]
pub struct PodSandbox {
    /// The host name, if it has one of its own.
    pub hostname: String,
    /// The network namespace on the host.
    pub network: Option<PathBuf>,
    /// `linux.cgroupsPath`.
    pub cgroups_path: String,
    /// `linux.sysctl`.
    pub sysctls: BTreeMap<String, String>,
    /// Annotations, which also say how large the machine is to be.
    pub annotations: BTreeMap<String, String>,
}

impl Bundle {
    /// The container that holds a pod's namespaces, with a pause for its process; `dir` is where its bundle is.
    ///
    /// # Errors
    /// As [`Bundle::load`].
    pub fn pod_sandbox(dir: &Path, pod: &PodSandbox) -> Result<Self, BundleError> {
        let mut bundle = Self::parse(dir, pod.config().to_string().as_bytes())?;
        bundle.become_pause();
        Ok(bundle)
    }
}

impl PodSandbox {
    /// The `config.json` of the container that holds the pod's namespaces.
    #[must_use]
    pub fn config(&self) -> Value {
        let network = match &self.network {
            Some(path) => json!({"type": "network", "path": path}),
            None => json!({"type": "network"}),
        };
        let mut namespaces = vec![network];
        namespaces.extend(["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind})));
        json!({
            "ociVersion": SPEC_VERSION,
            "hostname": self.hostname,
            "root": {"path": "rootfs", "readonly": true},
            // Kubernetes' own pause is the same nobody.
            "process": {
                "user": {"uid": 65535, "gid": 65535},
                "args": ["pause"],
                "cwd": "/",
                "noNewPrivileges": true,
            },
            "annotations": self.annotations,
            "linux": {
                "namespaces": namespaces,
                "cgroupsPath": self.cgroups_path,
                "sysctl": self.sysctls,
                "resources": {"cpu": {"shares": 2}},
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Machine;

    #[test]
    fn a_pods_sandbox_is_a_pause_in_its_namespaces() {
        let pod = PodSandbox {
            hostname: "the-pod".into(),
            network: Some("/run/netns/pod".into()),
            cgroups_path: "/pods/one".into(),
            sysctls: [("net.ipv4.ping_group_range".to_owned(), "0 1".to_owned())].into(),
            annotations: [("dev.husk.memory".to_owned(), "1G".to_owned())].into(),
        };
        let bundle = Bundle::pod_sandbox(Path::new("/b"), &pod).unwrap();
        let request = &bundle.request;
        assert!(request.process.pause && request.process.args.is_empty() && request.mounts.is_empty());
        assert_eq!((request.hostname.as_str(), request.namespaces.len()), ("the-pod", 5));
        assert_eq!(request.cgroup_path, "pods/one");
        assert_eq!(request.sysctls.len(), 1);
        assert_eq!(bundle.network.unwrap().path, Path::new("/run/netns/pod"));
        assert_eq!(bundle.machine.at_least(Machine::default()).memory_mib, 1024);
        assert!(Bundle::pod_sandbox(Path::new("/b"), &PodSandbox::default()).is_ok());
    }
}
