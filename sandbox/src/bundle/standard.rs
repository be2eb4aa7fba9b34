//! The container that a root directory alone makes: the defaults that container tools agree on.

use std::path::Path;

use serde_json::{Value, json};

use super::{Bundle, BundleError, SPEC_VERSION};

/// What is chosen for a container without a `config.json`.
#[derive(Clone, Debug)]
pub struct Standard {
    /// Command and arguments.
    pub args: Vec<String>,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// The container's host name.
    pub hostname: String,
}

/// The capabilities that docker, podman and containerd leave a container by default.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

impl Bundle {
    /// The container that `root` makes with the usual defaults: docker's capabilities, mounts, masked and read-only
    /// paths, and all namespaces of its own.
    ///
    /// # Errors
    /// A choice that is not possible, such as a host name that is too long.
    pub fn standard(root: &Path, choice: &Standard) -> Result<Self, BundleError> {
        let mut bundle = Self::parse(Path::new("/"), choice.config().to_string().as_bytes())?;
        bundle.root = root.to_owned();
        bundle.dir = None;
        Ok(bundle)
    }
}

impl Standard {
    /// The `config.json` of such a container, whose root is the directory `rootfs` beside it.
    #[must_use]
    pub fn config(&self) -> Value {
        let mut env = vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            format!("HOSTNAME={}", self.hostname),
        ];
        if self.terminal {
            env.push("TERM=xterm".into());
        }
        json!({
            "ociVersion": SPEC_VERSION,
            "root": {"path": "rootfs"},
            "hostname": self.hostname,
            "process": {
                "args": self.args,
                "env": env,
                "cwd": "/",
                "terminal": self.terminal,
                "user": {"uid": 0, "gid": 0},
                "capabilities": {
                    "bounding": CAPABILITIES,
                    "effective": CAPABILITIES,
                    "permitted": CAPABILITIES,
                },
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 524_288}],
            },
            "mounts": mounts(),
            "linux": {
                "namespaces": [
                    {"type": "mount"}, {"type": "pid"}, {"type": "ipc"},
                    {"type": "uts"}, {"type": "network"}, {"type": "cgroup"},
                ],
                "maskedPaths": [
                    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                    "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
                    "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
                ],
                "readonlyPaths": [
                    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
                ],
            },
        })
    }
}

fn mounts() -> serde_json::Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["ro", "nosuid", "noexec", "nodev"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
    ])
}
