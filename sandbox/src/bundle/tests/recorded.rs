//! Bundles that were recorded from engines.

use std::path::Path;

use serde_json::Value;

use super::super::{Bundle, capabilities};
use super::parse;

/// What engines hand to their runtime: `tests/data/bundles/README.md` says how it was recorded.
const RECORDED: &[(&str, &str)] = &[
    ("docker", include_str!("../../../../tests/data/bundles/docker.json")),
    ("podman", include_str!("../../../../tests/data/bundles/podman.json")),
    ("ctr", include_str!("../../../../tests/data/bundles/ctr.json")),
    (
        "a pod's sandbox",
        include_str!("../../../../tests/data/bundles/cri-sandbox.json"),
    ),
    (
        "a pod's container",
        include_str!("../../../../tests/data/bundles/cri.json"),
    ),
    (
        "a privileged container",
        include_str!("../../../../tests/data/bundles/cri-privileged.json"),
    ),
];

/// A recorded bundle, with files in the place of those that its engine made.
fn recorded(text: &str, files: &Path) -> Value {
    for name in ["hosts", "hostname", ".containerenv", "resolv.conf"] {
        std::fs::write(files.join(name), "text\n").unwrap();
    }
    // Engines mount a tmpfs of their own there.
    let text = text.replace("/bundle-file/shm", "/dev/shm");
    serde_json::from_str(&text.replace("/bundle-file", files.to_str().unwrap())).unwrap()
}

/// Takes the paths out of namespaces; gives how many there were.
fn make_namespaces_new(spec: &mut Value) -> usize {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    let paths = namespaces
        .iter_mut()
        .filter_map(|namespace| namespace.as_object_mut()?.remove("path"));
    paths.count()
}

#[test]
fn what_engines_write_is_accepted() {
    let files = tempfile::tempdir().unwrap();
    for (engine, text) in RECORDED {
        let mut spec = recorded(text, files.path());
        let paths = make_namespaces_new(&mut spec.clone());
        // What a pod's containers share is named by the process that stands for its sandbox; networks that were made for
        // podman and for a pod have names of their own.
        let bundle = parse(&spec).unwrap_or_else(|error| panic!("{engine}: {error}"));
        let named = usize::from(bundle.network.is_some());
        assert_eq!(bundle.joins.len() + named, paths, "{engine}");
        assert_eq!(bundle.check_no_network().is_err(), bundle.network.is_some(), "{engine}");
        make_namespaces_new(&mut spec);
        let Bundle {
            request,
            confinement,
            hooks,
            ..
        } = parse(&spec).unwrap_or_else(|error| panic!("{engine}: {error}"));
        let policies = [
            &confinement.apparmor_profile,
            &confinement.selinux_label,
            &confinement.mount_label,
        ];
        let policies = policies.iter().filter(|policy| policy.is_some()).count();
        let expected = match *engine {
            "docker" => (true, 1, 1),
            "podman" => (true, 1, 0),
            "a pod's sandbox" => (true, 0, 0),
            "a pod's container" => (true, 3, 0),
            _ => (false, 0, 0),
        };
        assert_eq!(
            (request.seccomp.is_some(), policies, hooks.create.len()),
            expected,
            "{engine}"
        );
    }
}

#[test]
fn a_pods_security_context_arrives() {
    let files = tempfile::tempdir().unwrap();
    let container = |text: &str| {
        let mut spec = recorded(text, files.path());
        make_namespaces_new(&mut spec);
        parse(&spec).unwrap().request
    };
    let bits = |names: [&str; 2]| capabilities::from_names(&names.map(str::to_owned)).unwrap();
    let sandbox = container(include_str!("../../../../tests/data/bundles/cri-sandbox.json"));
    let sysctls = sandbox
        .sysctls
        .iter()
        .map(|sysctl| (sysctl.path.as_str(), sysctl.value.as_str()));
    assert_eq!(
        sysctls.collect::<Vec<_>>(),
        [
            ("kernel/shm_rmid_forced", "1"),
            ("net/ipv4/ip_local_port_range", "20000 30000"),
            ("net/ipv4/ping_group_range", "0 2147483647"),
        ]
    );
    let restricted = container(include_str!("../../../../tests/data/bundles/cri.json"));
    let process = &restricted.process;
    assert_eq!((process.user.uid, process.user.gid), (1000, 2000));
    assert_eq!(process.user.additional_gids, [2000, 3000, 4000]);
    assert!(process.no_new_privileges && restricted.root.read_only);
    let (added, dropped) = (
        bits(["CAP_NET_ADMIN", "CAP_SYS_TIME"]),
        bits(["CAP_MKNOD", "CAP_CHOWN"]),
    );
    let bounding = process.capabilities.bounding;
    assert_eq!((bounding & added, bounding & dropped), (added, 0));
    // procMount: Unmasked
    assert!(restricted.masked_paths.is_empty() && restricted.readonly_paths.is_empty());
    let privileged = container(include_str!("../../../../tests/data/bundles/cri-privileged.json"));
    assert_eq!(privileged.process.capabilities.effective.count_ones(), 41);
    assert!(!privileged.process.no_new_privileges && privileged.masked_paths.is_empty());
}
