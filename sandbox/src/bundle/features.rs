//! What this build supports: the features document of the OCI runtime specification ("Features").
//!
//! Nothing is claimed here by hand: each thing that the specification knows is put into a configuration, and named if
//! that is accepted.

use std::path::Path;

use serde_json::{Value, json};

use super::{Bundle, SPEC_VERSION, Standard, capabilities};

/// The oldest version of the specification whose configurations are read.
const OLDEST: &str = "1.0.0";

const HOOKS: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];
const NAMESPACES: &[&str] = &["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];
/// The options that say how any file system is mounted; a file system's own are not listed.
const MOUNT_OPTIONS: &[&str] = &[
    "acl",
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];
const SECCOMP_ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const SECCOMP_OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];
const SECCOMP_ARCHITECTURES: &[&str] = &[
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];
const SECCOMP_FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// The document.
#[must_use]
pub fn document() -> Value {
    let capabilities: Vec<_> = capabilities::NAMES.iter().map(|name| format!("CAP_{name}")).collect();
    let tmpfs = |option: &str| json!([{"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": [option]}]);
    let bind = |option: &str| json!([{"destination": "/x", "source": "/sys", "options": ["bind", option]}]);
    let idmapped = json!([{
        "destination": "/x", "source": "/sys", "options": ["bind", "idmap"],
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
        "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
    }]);
    json!({
        "ociVersionMin": OLDEST,
        "ociVersionMax": SPEC_VERSION,
        "hooks": those(HOOKS, |hook| accepts("/hooks", json!({hook: [{"path": "/bin/true"}]}))),
        "mountOptions": those(MOUNT_OPTIONS, |option| {
            accepts("/mounts", tmpfs(option)) || accepts("/mounts", bind(option))
        }),
        "linux": {
            "namespaces": those(NAMESPACES, has_namespace),
            "capabilities": capabilities,
            "cgroup": {
                "v1": false,
                "v2": true,
                "systemd": false,
                "systemdUser": false,
                "rdma": accepts("/linux/resources", json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}})),
            },
            "seccomp": seccomp(),
            "apparmor": {"enabled": accepts("/process/apparmorProfile", json!("husk-features"))},
            "selinux": {"enabled": accepts("/process/selinuxLabel", json!("system_u:system_r:container_t:s0"))},
            "intelRdt": {"enabled": accepts("/linux/intelRdt", json!({"closID": "husk"}))},
            "mountExtensions": {"idmap": {"enabled": accepts("/mounts", idmapped)}},
        },
        "annotations": {
            "dev.husk.version": env!("CARGO_PKG_VERSION"),
        },
    })
}

fn seccomp() -> Value {
    let allow = json!("SCMP_ACT_ALLOW");
    let has = |filter: Value| accepts("/linux/seccomp", filter);
    let rule = |op: &str| {
        json!({"defaultAction": allow, "syscalls": [{
            "names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 0, "op": op}],
        }]})
    };
    if !has(json!({"defaultAction": allow})) {
        return json!({"enabled": false});
    }
    let flags = those(SECCOMP_FLAGS, |flag| {
        has(json!({"defaultAction": allow, "flags": [flag]}))
    });
    json!({
        "enabled": true,
        "actions": those(SECCOMP_ACTIONS, |action| has(json!({"defaultAction": action}))),
        "operators": those(SECCOMP_OPERATORS, |op| has(rule(op))),
        "archs": those(SECCOMP_ARCHITECTURES, |arch| has(json!({"defaultAction": allow, "architectures": [arch]}))),
        "knownFlags": SECCOMP_FLAGS,
        "supportedFlags": flags,
    })
}

fn has_namespace(kind: &str) -> bool {
    let mut namespaces = vec![json!({"type": kind})];
    if kind != "mount" {
        namespaces.push(json!({"type": "mount"}));
    }
    let mut config = minimal();
    config["linux"]["namespaces"] = json!(namespaces);
    if kind == "user" {
        let mappings = json!([{"containerID": 0, "hostID": 1000, "size": 65536}]);
        config["linux"]["uidMappings"] = mappings.clone();
        config["linux"]["gidMappings"] = mappings;
    }
    is_accepted(&config)
}

fn those<'n>(names: &[&'n str], has: impl Fn(&str) -> bool) -> Vec<&'n str> {
    names.iter().copied().filter(|name| has(name)).collect()
}

/// Whether a configuration with this value at this place (a JSON pointer) is accepted.
fn accepts(place: &str, value: Value) -> bool {
    let mut config = minimal();
    let (parent, field) = place.rsplit_once('/').unwrap_or(("", place));
    if let Some(parent) = config.pointer_mut(parent) {
        parent[field] = value;
    }
    is_accepted(&config)
}

fn is_accepted(config: &Value) -> bool {
    Bundle::parse(Path::new("/"), config.to_string().as_bytes()).is_ok()
}

fn minimal() -> Value {
    let choice = Standard {
        args: vec!["sh".into()],
        terminal: false,
        hostname: String::new(),
    };
    let mut config = choice.config();
    config["mounts"] = json!([]);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_what_is_true() {
        assert!(is_accepted(&minimal()));
        let document = document();
        let names = |place: &str| -> Vec<String> {
            let list = document.pointer(place).unwrap().as_array().unwrap();
            list.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
        };
        for namespace in ["cgroup", "ipc", "mount", "network", "pid", "uts"] {
            assert!(
                names("/linux/namespaces").iter().any(|name| name == namespace),
                "{namespace}"
            );
        }
        for option in ["ro", "nosuid", "bind", "rprivate", "relatime"] {
            assert!(names("/mountOptions").iter().any(|name| name == option), "{option}");
        }
        assert_eq!(names("/linux/capabilities").len(), capabilities::NAMES.len());
        assert_eq!(document["linux"]["intelRdt"]["enabled"], false);
        assert_eq!(document["linux"]["cgroup"]["rdma"], false);
    }
}
