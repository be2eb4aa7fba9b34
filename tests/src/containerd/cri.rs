//! containerd's CRI: pods as Kubernetes makes them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Containerd, Release, archive, image_of};
use crate::podman::remove_empty_cgroups;
use crate::{Host, prepared};

/// containerd's namespace for what comes through the CRI.
const NAMESPACE: &str = "k8s.io";
/// Where containerd has the network namespaces of pods.
const NETWORKS: &str = "/run/netns";
/// The parent of the pods' cgroups.
const CGROUP: &str = "/husk-test-pods";
/// The sandbox's image, which its configuration names.
const PAUSE: &str = "localhost/pause";

/// A plugin that brings a pod no network, and says that it has.
const NETWORK: &str = r#"#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}';;
ADD) echo '{"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": "'$CNI_NETNS'"}],
  "ips": [{"version": "4", "interface": 0, "address": "10.0.0.2/24"}]}';;
esac
"#;

/// A containerd that serves the CRI.
pub struct Cri<'h> {
    containerd: Containerd<'h>,
    image: String,
    had_networks: bool,
}

impl<'h> Cri<'h> {
    /// Starts it, with husk as its runtime and this sandboxer, and imports the images.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start(host: &'h Host, release: Release, sandboxer: &str) -> Self {
        let had_networks = Path::new(NETWORKS).exists();
        let networks = host.scratch().join("cni");
        network(&networks);
        let cri = r#"plugins."io.containerd.grpc.v1.cri""#;
        let more = format!(
            "[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n\
             [{cri}]\nsandbox_image = \"{PAUSE}:latest\"\n\
             [{cri}.cni]\nbin_dir = {networks:?}\nconf_dir = {networks:?}\n\
             [{cri}.containerd]\ndefault_runtime_name = \"husk\"\n\
             [{cri}.containerd.runtimes.husk]\nruntime_type = \"io.containerd.husk.v2\"\n\
             sandboxer = {sandboxer:?}\npod_annotations = [\"dev.husk.*\"]\n",
        );
        let containerd = Containerd::launch(host, release, &[], &more);
        let mut cri = Self {
            containerd,
            image: String::new(),
            had_networks,
        };
        let pause = host.scratch().join("pause.tar");
        image_of(&json!({"Entrypoint": ["/pause"]}), vec![], "latest", &pause);
        for (path, name) in [(archive(), super::NAME), (pause, PAUSE)] {
            let path = path.to_str().expect("UTF-8");
            let words = ["-n", NAMESPACE, "images", "import", "--base-name", name, path];
            cri.containerd.run(words).exits(0);
        }
        cri.image = format!("{}:latest", super::NAME);
        cri
    }

    /// A call of the CRI's runtime service.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn call(&self, method: &str, request: &Value) -> Value {
        let socket = self.containerd.socket();
        let words = [socket.to_str().expect("UTF-8"), method];
        let client = self.containerd.host.husk().program(prepared::cri());
        let mut client = client.open_input().start_command(words);
        client.send(request.to_string());
        client.end_input();
        let outcome = client.finish();
        outcome.exits(0);
        serde_json::from_str(outcome.stdout()).expect("JSON")
    }

    /// Runs a pod and gives its id.
    #[track_caller]
    pub fn run_pod(&self) -> String {
        let request = json!({"config": self.pod(), "runtime_handler": "husk"});
        text(&self.call("RunPodSandbox", &request)["pod_sandbox_id"])
    }

    /// The pod's configuration.
    fn pod(&self) -> Value {
        json!({
            "metadata": {"name": "pod", "uid": "uid", "namespace": "default"},
            "hostname": "the-pod",
            "log_directory": self.logs(),
            "linux": {
                "cgroup_parent": CGROUP,
                "resources": {"memory_limit_in_bytes": 400 << 20},
            },
        })
    }

    fn logs(&self) -> PathBuf {
        self.containerd.host.scratch().join("logs")
    }

    /// Creates and starts a container of a pod; gives its id.
    #[track_caller]
    pub fn run_container(&self, pod: &str, name: &str, script: &str) -> String {
        self.run_container_with(pod, name, script, &json!([]))
    }

    /// The same with mounts.
    #[track_caller]
    pub fn run_container_with(&self, pod: &str, name: &str, script: &str, mounts: &Value) -> String {
        let request = json!({
            "pod_sandbox_id": pod,
            "sandbox_config": self.pod(),
            "config": {
                "metadata": {"name": name},
                "image": {"image": self.image},
                "command": ["/bin/sh", "-c", script],
                "log_path": format!("{name}.log"),
                "mounts": mounts,
                "linux": {"resources": {"memory_limit_in_bytes": 100 << 20}},
            },
        });
        let id = text(&self.call("CreateContainer", &request)["container_id"]);
        self.call("StartContainer", &json!({"container_id": id}));
        id
    }

    /// What a container has written.
    ///
    /// # Panics
    /// There is no log of it.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.logs().join(format!("{name}.log"))).expect("read the container's log")
    }

    /// Runs a script in a container; gives its exit code.
    #[track_caller]
    pub fn exec(&self, container: &str, script: &str) -> i64 {
        // What is zero is not written.
        self.exec_sync(container, script)["exit_code"].as_i64().unwrap_or(0)
    }

    /// Runs a script in a container; gives what it has written to stdout, in base64.
    #[track_caller]
    pub fn exec_output(&self, container: &str, script: &str) -> String {
        text(&self.exec_sync(container, script)["stdout"])
    }

    #[track_caller]
    fn exec_sync(&self, container: &str, script: &str) -> Value {
        let request = json!({"container_id": container, "cmd": ["/bin/sh", "-c", script]});
        self.call("ExecSync", &request)
    }

    /// Kills containerd and starts it again.
    pub fn restart(&mut self) {
        self.containerd.crash();
        self.containerd.restart();
    }

    /// The containerd.
    pub fn containerd(&self) -> &Containerd<'h> {
        &self.containerd
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// Puts the plugin and its configuration into a directory.
fn network(directory: &Path) {
    fs::create_dir(directory).expect("make the plugins' directory");
    // One of them is containerd's own way to bring loopback up.
    for name in ["none", "loopback"] {
        let path = directory.join(name);
        fs::write(&path, NETWORK).expect("write the plugin");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).expect("make the plugin executable");
    }
    let list = json!({"cniVersion": "0.4.0", "name": "of-the-tests", "plugins": [{"type": "none"}]});
    fs::write(directory.join("10-none.conflist"), list.to_string()).expect("write the network's configuration");
}

impl Drop for Cri<'_> {
    fn drop(&mut self) {
        remove_empty_cgroups(&Path::new("/sys/fs/cgroup").join(&CGROUP[1..]));
        if !self.had_networks {
            // Its namespaces are unmounted and removed by containerd.
            let _ = fs::remove_dir(NETWORKS);
        }
        for directory in [NAMESPACE, ""] {
            let _ = fs::remove_dir(self.containerd.host.run_directory().join("containerd").join(directory));
        }
    }
}
