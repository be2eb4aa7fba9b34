mod recorded;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// What `runc spec` writes, and a little more.
fn minimal() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true,
            "consoleSize": {"width": 80, "height": 24},
            "user": {"uid": 7, "gid": 8, "additionalGids": [9], "umask": 18},
            "args": ["sh", "-c", "true"],
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"], "ambient": ["CAP_CHECKPOINT_RESTORE"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2048, "soft": 1024}],
            "noNewPrivileges": true,
            "oomScoreAdj": 10
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "box",
        "domainname": "example",
        "annotations": {"org.example": "kept"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "resources": {"memory": {"limit": 1024}, "pids": {"limit": 5}},
            "devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 384, "uid": 1, "gid": 2}],
            "namespaces": [{"type": "pid"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn parse(value: &Value) -> Result<Bundle, BundleError> {
    Bundle::parse(Path::new("/bundle"), value.to_string().as_bytes())
}

/// Sets the value at a JSON pointer and gives the message of the refusal.
fn refusal(pointer: &str, value: Value) -> String {
    let mut spec = minimal();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match spec.pointer_mut(parent).unwrap() {
        Value::Array(elements) => elements.push(value),
        parent => parent[name] = value,
    }
    parse(&spec).unwrap_err().to_string()
}

#[test]
fn a_namespace_of_another_container_is_named_by_a_process() {
    let mut spec = minimal();
    spec["linux"]["namespaces"] = json!([
        {"type": "mount", "path": ""}, {"type": "uts", "path": "/proc/42/ns/uts"}, {"type": "network", "path": "/proc/7/ns/net"},
    ]);
    let joins = parse(&spec).unwrap().joins;
    let found: Vec<_> = joins.iter().map(|join| (join.index, join.pid)).collect();
    assert_eq!(found, [(1, 42), (2, 7)]);
}

#[test]
fn a_whole_configuration_is_translated() {
    let Bundle { root, request, .. } = parse(&minimal()).unwrap();
    assert_eq!(root, Path::new("/bundle/rootfs"));
    let process = &request.process;
    assert_eq!(process.args, ["sh", "-c", "true"]);
    assert_eq!(process.env, ["PATH=/bin", "TERM=xterm"]);
    assert_eq!(process.cwd, "/");
    assert_eq!(
        (process.user.uid, process.user.gid, process.user.umask),
        (7, 8, Some(0o22))
    );
    assert_eq!(process.user.additional_gids, [9]);
    assert_eq!(process.capabilities.bounding, 1 << 5 | 1);
    assert_eq!(process.capabilities.ambient, 1 << 40);
    assert_eq!(process.capabilities.effective, 0);
    let limit = &process.rlimits[0];
    assert_eq!((limit.resource, limit.soft, limit.hard), (7, 1024, 2048));
    assert!(process.no_new_privileges && process.stdio.terminal && request.root.read_only);
    assert_eq!(process.oom_score_adj, Some(10));
    assert_eq!((process.stdio.window.columns, process.stdio.window.rows), (80, 24));
    assert_eq!(
        (request.hostname.as_str(), request.domainname.as_str()),
        ("box", "example")
    );
    assert_eq!(request.namespaces.len(), 3);
    assert_eq!(request.masked_paths, ["/proc/kcore"]);
    assert_eq!(request.readonly_paths, ["/proc/sys"]);
    let null = &request.devices[0];
    assert_eq!(
        (null.path.as_str(), null.mode, null.uid, null.gid),
        ("/dev/null", libc::S_IFCHR | 0o600, 1, 2)
    );
    assert_eq!(request.devices.len(), 6);
    let files: Vec<_> = request
        .resources
        .settings
        .iter()
        .map(|entry| entry.file.as_str())
        .collect();
    assert_eq!(files, ["pids.max", "memory.max"]);
}

#[test]
fn what_a_container_has_of_its_own_is_translated() {
    let mut spec = minimal();
    for (pointer, value) in [
        (
            "/process/scheduler",
            json!({"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_DL_OVERRUN"]}),
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_IDLE", "priority": 7}),
        ),
        ("/process/execCPUAffinity", json!({"initial": "0", "final": "0-1"})),
        ("/process/apparmorProfile", json!("docker-default")),
        ("/process/selinuxLabel", json!("")),
        ("/linux/mountLabel", json!("label")),
        ("/linux/personality", json!({"domain": "LINUX32"})),
        ("/linux/rootfsPropagation", json!("rshared")),
        ("/linux/sysctl", json!({"kernel.domainname": "place"})),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": -5, "nanosecs": 7}, "boottime": {"secs": 1}}),
        ),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1000, "size": 10}]),
        ),
        (
            "/linux/gidMappings",
            json!([{"containerID": 0, "hostID": 2000, "size": 10}]),
        ),
    ] {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[name] = value;
    }
    for kind in ["user", "time"] {
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": kind}));
    }
    let Bundle {
        request, confinement, ..
    } = parse(&spec).unwrap();
    let process = &request.process;
    assert_eq!((process.scheduler.policy, process.scheduler.flags), (6, 4));
    assert_eq!(process.io_priority, Some(3 << 13 | 7));
    assert_eq!(
        (process.initial_cpus.as_slice(), process.final_cpus.as_slice()),
        (&[0][..], &[0, 1][..])
    );
    assert_eq!(request.personality, Some(8));
    assert_eq!(request.root_propagation, libc::MS_SHARED | libc::MS_REC);
    assert_eq!(
        (request.sysctls[0].path.as_str(), request.sysctls[0].value.as_str()),
        ("kernel/domainname", "place")
    );
    let offsets: Vec<_> = request
        .time_offsets
        .iter()
        .map(|offset| (offset.clock.as_str(), offset.seconds, offset.nanoseconds))
        .collect();
    assert_eq!(offsets, [("boottime", 1, 0), ("monotonic", -5, 7)]);
    assert_eq!(
        (request.uid_mappings[0].outside, request.gid_mappings[0].outside),
        (1000, 2000)
    );
    assert_eq!(confinement.apparmor_profile.as_deref(), Some("docker-default"));
    assert_eq!(
        (confinement.selinux_label, confinement.mount_label.as_deref()),
        (None, Some("label"))
    );
}

#[test]
fn hooks_are_parted_between_host_and_guest() {
    let mut spec = minimal();
    let hook = |name: &str| json!([{"path": format!("/{name}"), "args": [name, "x"], "env": ["A=b"], "timeout": 5}]);
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ] {
        spec["hooks"][kind] = hook(kind);
    }
    spec["hooks"]["poststop"][0]["timeout"] = json!(null);
    let Bundle {
        hooks, request, dir, ..
    } = parse(&spec).unwrap();
    let paths: Vec<_> = hooks.create.iter().map(|hook| hook.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["/prestart", "/createRuntime"]);
    assert_eq!((hooks.poststart.len(), hooks.poststart[0].timeout), (1, 5));
    assert_eq!(
        (hooks.poststop[0].field.as_str(), hooks.poststop[0].timeout),
        ("hooks.poststop[0]", 60)
    );
    let created = &request.create_hooks.hooks[0];
    assert_eq!((created.path.as_str(), created.timeout_s), ("/createContainer", 5));
    assert_eq!(
        (created.args.as_slice(), created.env.as_slice()),
        (
            &["createContainer".to_owned(), "x".to_owned()][..],
            &["A=b".to_owned()][..]
        )
    );
    assert_eq!(request.start_hooks.hooks[0].field, "hooks.startContainer[0]");
    assert_eq!(dir.as_deref(), Some(Path::new("/bundle")));
}

#[test]
fn fields_that_are_not_honoured_are_named() {
    for (pointer, value, path) in [
        (
            "/hooks",
            json!({"prestart": [{"path": "/x", "dir": "/"}]}),
            "hooks.prestart[0].dir",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/listener"}),
            "linux.seccomp.listenerPath",
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX", "flags": ["X"]}),
            "linux.personality.flags",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_ISO"}),
            "process.scheduler.policy",
        ),
        (
            "/linux/devices/-",
            json!({"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}),
            "linux.devices[1]",
        ),
        (
            "/mounts/-",
            json!({"destination": "/d", "type": "bind", "source": "/"}),
            "mounts[1].source",
        ),
        ("/process/surprise", json!(1), "process.surprise"),
        ("/a strange name", json!(false), "[\"a strange name\"]"),
    ] {
        let message = refusal(pointer, value);
        assert!(
            message.contains(path) && message.contains("support"),
            "{pointer}: {message}"
        );
    }
}

#[test]
fn values_out_of_range_are_named() {
    for (pointer, value, path) in [
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/ociVersion", json!("1.x"), "ociVersion"),
        ("/ociVersion", json!(""), "ociVersion"),
        ("/process/args", json!([]), "process.args"),
        ("/process/cwd", json!("tmp"), "process.cwd"),
        ("/process/env", json!(["PATH"]), "process.env[0]"),
        ("/process/env", json!(["A=\u{0}"]), "process.env[0]"),
        ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        ("/process/user/umask", json!(512), "process.user.umask"),
        ("/process/consoleSize/width", json!(70_000), "process.consoleSize.width"),
        (
            "/process/rlimits/-",
            json!({"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}),
            "process.rlimits[1].type",
        ),
        (
            "/process/rlimits/-",
            json!({"type": "RLIMIT_CORE", "hard": 1, "soft": 2}),
            "process.rlimits[1].soft",
        ),
        ("/hostname", json!("h".repeat(65)), "hostname"),
        ("/linux/namespaces", json!([{"type": "mount"}]), "hostname"),
        ("/linux/namespaces", json!([{"type": "pid"}]), "linux.namespaces"),
        (
            "/linux/namespaces/-",
            json!({"type": "ipc", "path": "/run/ipcns/shared"}),
            "linux.namespaces[3].path",
        ),
        (
            "/linux/namespaces/-",
            json!({"type": "ipc", "path": "/proc/1/ns/net"}),
            "linux.namespaces[3].path",
        ),
        (
            "/linux/namespaces/-",
            json!({"type": "user", "path": "/proc/1/ns/user"}),
            "linux.namespaces[3].path",
        ),
        (
            "/linux/namespaces/-",
            json!({"type": "pid"}),
            "linux.namespaces[3].type",
        ),
        ("/linux/maskedPaths", json!(["proc"]), "linux.maskedPaths[0]"),
        ("/linux/cgroupsPath", json!("/../x"), "linux.cgroupsPath"),
        (
            "/linux/resources/cpu",
            json!({"quota": -7}),
            "linux.resources.cpu.quota",
        ),
        ("/linux/rootfsPropagation", json!("ro"), "linux.rootfsPropagation"),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1, "size": 2}]),
            "linux.uidMappings",
        ),
        ("/linux/namespaces/-", json!({"type": "user"}), "linux.uidMappings"),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 1}}),
            "linux.timeOffsets.monotonic",
        ),
        ("/linux/sysctl", json!({"vm.swappiness": "1"}), "vm.swappiness"),
        (
            "/linux/sysctl",
            json!({"net.core.somaxconn": "1"}),
            "net.core.somaxconn",
        ),
        (
            "/process/ioPriority",
            json!({"priority": 8}),
            "process.ioPriority.priority",
        ),
        (
            "/process/execCPUAffinity",
            json!({"final": "5-1"}),
            "process.execCPUAffinity.final",
        ),
        ("/hooks", json!({"poststop": [{"path": "x"}]}), "hooks.poststop[0].path"),
        (
            "/hooks",
            json!({"poststart": [{"path": "/x", "timeout": 0}]}),
            "hooks.poststart[0].timeout",
        ),
        (
            "/hooks",
            json!({"createContainer": [{"path": "/x", "env": ["X"]}]}),
            "hooks.createContainer[0].env[0]",
        ),
        ("/root", json!(null), "root"),
        ("/process", json!(null), "process"),
    ] {
        let message = refusal(pointer, value);
        assert!(message.contains(path), "{pointer}: {message}");
    }
}

#[test]
fn wrong_types_are_told_with_their_place() {
    let error = Bundle::parse(Path::new("/"), b"{\"ociVersion\": \"1.0.0\",\n \"mounts\": 3}").unwrap_err();
    let BundleError::Spec(source) = error else {
        panic!("{error}");
    };
    assert_eq!(source.line(), 2);
    assert!(matches!(Bundle::parse(Path::new("/"), b"{"), Err(BundleError::Json(_))));
    assert!(matches!(
        Bundle::parse(Path::new("/"), b"[]"),
        Err(BundleError::Value { .. })
    ));
}

#[test]
fn objects_without_content_ask_for_nothing() {
    let mut spec = minimal();
    for (pointer, name) in [
        ("/linux", "seccomp"),
        ("/linux", "personality"),
        ("/process", "scheduler"),
        ("/process", "ioPriority"),
        ("", "hooks"),
        ("", "windows"),
    ] {
        spec.pointer_mut(pointer).unwrap()[name] = json!({});
    }
    let request = parse(&spec).unwrap().request;
    assert!(request.seccomp.is_none() && request.process.scheduler.is_none());
    assert_eq!(request.process.args, ["sh", "-c", "true"]);
}

#[test]
fn words_that_nobody_knows_are_told() {
    let seccomp = |key: &str, value: Value| {
        let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        profile[key] = value;
        profile
    };
    for (pointer, value, word) in [
        (
            "/linux/seccomp",
            seccomp("defaultAction", json!("SCMP_ACT_X")),
            "SCMP_ACT_X",
        ),
        (
            "/linux/seccomp",
            seccomp("architectures", json!(["SCMP_ARCH_X"])),
            "SCMP_ARCH_X",
        ),
        (
            "/linux/seccomp",
            seccomp("flags", json!(["SECCOMP_FILTER_FLAG_X"])),
            "SECCOMP_FILTER_FLAG_X",
        ),
        (
            "/linux/seccomp",
            seccomp(
                "syscalls",
                json!([{"names": ["x"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_X"}]}]),
            ),
            "SCMP_CMP_X",
        ),
        ("/linux/personality", json!({"domain": "SOLARIS"}), "SOLARIS"),
        ("/linux/namespaces/-", json!({"type": "dreams"}), "dreams"),
        ("/process/scheduler", json!({"policy": "SCHED_X"}), "SCHED_X"),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_X"}),
            "IOPRIO_CLASS_X",
        ),
    ] {
        let mut spec = minimal();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match spec.pointer_mut(parent).unwrap() {
            Value::Array(elements) => elements.push(value),
            parent => parent[name] = value,
        }
        let BundleError::Spec(source) = parse(&spec).unwrap_err() else {
            panic!("{pointer} {word}")
        };
        assert!(source.to_string().contains(word), "{source}");
    }
}

#[test]
fn what_stands_twice_or_is_too_deep_is_refused() {
    let text = minimal().to_string();
    let twice = text.replacen('{', "{\"hostname\": \"other\", ", 1);
    let BundleError::Spec(source) = Bundle::parse(Path::new("/"), twice.as_bytes()).unwrap_err() else {
        panic!()
    };
    assert!(source.to_string().contains("hostname"), "{source}");
    let deep = "[".repeat(100_000);
    for text in [deep.as_bytes(), b"{} {}", b"\xff\xfe", b"", b"{\"a\": 1,}"] {
        assert!(matches!(Bundle::parse(Path::new("/"), text), Err(BundleError::Json(_))));
    }
}

#[test]
fn a_bundle_without_a_configuration_is_told_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let error = Bundle::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("OCI bundle"), "{error}");
    std::fs::create_dir(dir.path().join("config.json")).unwrap();
    assert!(matches!(Bundle::load(dir.path()), Err(BundleError::NotAFile(_))));
}

#[test]
fn the_standard_container_passes_its_own_check() {
    let choice = Standard {
        args: vec!["/bin/true".into()],
        terminal: true,
        hostname: "box".into(),
    };
    let Bundle { root, request, .. } = Bundle::standard(Path::new("/some/root"), &choice).unwrap();
    assert_eq!(root, Path::new("/some/root"));
    assert_eq!(request.namespaces.len(), 6);
    assert_eq!(request.process.capabilities.effective.count_ones(), 14);
    assert_eq!(request.process.capabilities.ambient, 0);
    assert!(request.process.env.contains(&"TERM=xterm".to_owned()));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z/=:\0]{0,12}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        proptest::sample::select(vec![
            "process",
            "linux",
            "mounts",
            "root",
            "path",
            "args",
            "env",
            "cwd",
            "user",
            "resources",
            "cpu",
            "memory",
            "pids",
            "limit",
            "namespaces",
            "type",
            "devices",
            "rlimits",
            "capabilities",
            "hostname",
            "ociVersion",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,6}",
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name.clone(), inner, 0..5).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_json_never_panics(value in json_value()) {
        let _ = parse(&value);
    }

    #[test]
    fn arbitrary_bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Bundle::parse(Path::new("/"), &text);
    }

    /// A value in the place of any of the valid configuration's is translated or refused, and a new name anywhere
    /// is refused.
    #[test]
    fn unknown_names_are_never_dropped(name in "[a-z]{9,12}x", depth in 0usize..6) {
        let pointers = ["", "/process", "/process/user", "/linux", "/linux/resources", "/linux/resources/memory"];
        let mut spec = minimal();
        spec.pointer_mut(pointers[depth]).unwrap()[&name] = json!(1);
        let message = parse(&spec).unwrap_err().to_string();
        prop_assert!(message.contains(&name), "{}", message);
    }
}
