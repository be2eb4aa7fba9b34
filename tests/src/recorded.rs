//! The bundles that were recorded from engines (`data/bundles`), made to run without their engine.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::{Bundle, Host};

/// Every recorded bundle, by the name that documentation has for it.
pub const RECORDED: [(&str, &str); 6] = [
    ("docker", include_str!("../data/bundles/docker.json")),
    ("podman", include_str!("../data/bundles/podman.json")),
    ("ctr", include_str!("../data/bundles/ctr.json")),
    ("cri", include_str!("../data/bundles/cri.json")),
    ("cri-sandbox", include_str!("../data/bundles/cri-sandbox.json")),
    ("cri-privileged", include_str!("../data/bundles/cri-privileged.json")),
];

/// Where the files lie that engines write for each container.
const FILES: &str = "/bundle-file";
/// Where the hierarchy of cgroups is mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What `/dev/shm` is to containerd and podman: a tmpfs that they mount.
const SHARED_MEMORY: &str = "mode=1777,size=65536k";

/// What engines have made before they call a runtime: files, and memory for `/dev/shm`. It goes when it is dropped.
#[derive(Debug)]
pub struct Engine {
    files: PathBuf,
    /// Options of the hierarchy of cgroups.
    hierarchy: String,
}

impl Engine {
    /// Makes it.
    ///
    /// # Panics
    /// Something cannot be made.
    pub fn new(host: &Host) -> Self {
        let files = host.scratch().join("engine");
        let memory = files.join("shm");
        fs::create_dir_all(&memory).expect("make a directory");
        for name in ["hosts", "hostname", "resolv.conf", ".containerenv"] {
            fs::write(files.join(name), format!("the engine's {name}\n")).expect("write a file");
        }
        let restrictions = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), &memory, Some("tmpfs"), restrictions, Some(SHARED_MEMORY)).expect("mount a tmpfs");
        Self {
            files,
            hierarchy: hierarchy(),
        }
    }

    /// A bundle as it was recorded, but for what is of the machine on which it was: the root directory, the engine's files,
    /// the namespaces of its network and its pod (new ones in their place), the policies, the hook with which docker's
    /// daemon is called, and the cgroup, which is `/NAME`.
    ///
    /// # Panics
    /// There is no such recording.
    pub fn bundle(&self, host: &Host, name: &str, root: &Path) -> Bundle {
        let recorded = RECORDED.iter().find(|(recorded, _)| *recorded == name);
        let (_, text) = recorded.unwrap_or_else(|| panic!("{name} was not recorded"));
        let text = text.replace(FILES, self.files.to_str().expect("UTF-8"));
        let mut config: Value = serde_json::from_str(&text).expect("engines write JSON");
        config["root"]["path"] = json!(root);
        config["linux"]["cgroupsPath"] = json!(format!("/{name}"));
        let namespaces = config.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
        for namespace in namespaces.into_iter().flatten().filter_map(Value::as_object_mut) {
            namespace.remove("path");
        }
        for (parent, field) in [
            ("", "hooks"),
            ("/process", "apparmorProfile"),
            ("/process", "selinuxLabel"),
            ("/linux", "mountLabel"),
        ] {
            let parent = config.pointer_mut(parent).and_then(Value::as_object_mut);
            parent.expect("an object").remove(field);
        }
        Bundle::of(host, config)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // What stays is found by the search for leftovers.
        let _ = umount2(&self.files.join("shm"), MntFlags::MNT_DETACH);
        // runc mounts the hierarchy without them for a container that has no cgroup namespace, and so takes them away.
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let options = Some(self.hierarchy.as_str());
        let _ = mount(None::<&str>, CGROUPS, None::<&str>, flags, options);
    }
}

fn hierarchy() -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    let mount = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|mount| mount[1] == CGROUPS);
    let mount = mount.expect("cgroup v2 is mounted");
    let known = [
        "nsdelegate",
        "favordynmods",
        "memory_localevents",
        "memory_recursiveprot",
        "memory_hugetlb_accounting",
        "pids_localevents",
    ];
    let options: Vec<_> = mount[3].split(',').filter(|option| known.contains(option)).collect();
    options.join(",")
}
