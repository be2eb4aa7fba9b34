//! OCI bundles: honoured or refused.

use husk_tests::{Bundle, Host, busybox};
use serde_json::{Value, json};

#[test]
fn what_runc_spec_writes_runs() {
    let host = Host::new();
    let bundle = Bundle::as_runc_writes_it(&host, busybox());
    let mut terminal = host.husk().bundle(&bundle).option("--interactive").bundle_on_terminal();
    terminal
        .shows("#")
        .types("echo $(hostname) $TERM $((6*7))\n")
        .shows("runc xterm 42");
    terminal.types("touch /x\n").shows("Read-only file system");
    terminal.types("exit 3\n");
    terminal.finish().exits(3);
}

#[test]
fn options_of_run_come_before_what_the_bundle_says() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "echo from the bundle");
    let husk = host
        .husk()
        .bundle(&bundle)
        .env("ADDED=yes")
        .user("tester")
        .workdir("/tmp");
    husk.run(["sh", "-c", "echo $ADDED $(id -u) $(pwd)"])
        .exits(0)
        .prints("yes 1234 /tmp\n");
}

#[test]
fn the_machine_is_what_annotations_say_unless_an_option_does() {
    let host = Host::new();
    let annotations = json!({"dev.husk.cpus": "2", "dev.husk.memory": "300M", "org.opencontainers.image.title": "x"});
    let script =
        "grep -c ^processor /proc/cpuinfo; read -r _ size _ < /proc/meminfo; [ $size -lt 310000 ] && echo small";
    let bundle = Bundle::of_script(&host, busybox(), script).with("/annotations", annotations);
    let husk = host.husk().bundle(&bundle);
    husk.run_bundle().exits(0).prints("2\nsmall\n");
    let husk = host.husk().bundle(&bundle).option("--cpus").option("1");
    husk.run_bundle().exits(0).prints("1\nsmall\n");
}

/// Fields that nothing honours yet: the place in config.json, a value, and the name that the error must give.
fn refused() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/listener"}),
            "linux.seccomp.listenerPath",
        ),
        ("/linux/sysctl", json!({"vm.swappiness": "1"}), "vm.swappiness"),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1000, "size": 1}]),
            "linux.uidMappings",
        ),
        ("/linux/namespaces/-", json!({"type": "user"}), "linux.uidMappings"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        (
            "/linux/personality",
            json!({"domain": "LINUX32", "flags": ["X"]}),
            "linux.personality.flags",
        ),
        (
            "/linux/resources/blockIO",
            json!({"throttleReadBpsDevice": [{"major": 4095, "minor": 0, "rate": 1}]}),
            "linux.resources.blockIO.throttleReadBpsDevice[0]",
        ),
        (
            "/linux/resources/blockIO",
            json!({"leafWeight": 10}),
            "linux.resources.blockIO.leafWeight",
        ),
        (
            "/linux/resources/rdma",
            json!({"mlx5_1": {"hcaHandles": 3}}),
            "linux.resources.rdma",
        ),
        (
            "/linux/resources/cpu",
            json!({"realtimeRuntime": 1000}),
            "linux.resources.cpu.realtimeRuntime",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]),
            "/dev/kvm",
        ),
        ("/process/apparmorProfile", json!("profile"), "process.apparmorProfile"),
        ("/process/selinuxLabel", json!("label"), "process.selinuxLabel"),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_ISO"}),
            "process.scheduler",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_IDLE", "priority": 8}),
            "process.ioPriority",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "bind", "source": "/etc", "options": ["bind"]}),
            "mounts",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "nfs", "source": "y:/"}),
            "mounts",
        ),
        ("/process/notInTheSpec", json!(true), "process.notInTheSpec"),
        ("/annotations", json!({"dev.husk.cpu": "2"}), "dev.husk.cpu"),
    ]
}

#[test]
fn a_field_that_is_not_honoured_is_refused_by_name() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "echo it ran");
    for (place, value, name) in refused() {
        host.husk()
            .bundle(&bundle.clone().with(place, value))
            .run_bundle()
            .fails(125, &[name]);
    }
}

/// Values that mean nothing: the place in config.json, the value, and the name that the error must give.
fn senseless() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("/ociVersion", json!("9.0.0"), "ociVersion"),
        ("/process/args", json!([]), "process.args"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/env", json!(["NOSIGN"]), "process.env"),
        ("/process/oomScoreAdj", json!(5000), "process.oomScoreAdj"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 3}]),
            "process.rlimits",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 3}]),
            "RLIMIT_NONSENSE",
        ),
        (
            "/process/capabilities/bounding",
            json!(["CAP_NONSENSE"]),
            "CAP_NONSENSE",
        ),
        ("/process/user", json!({"uid": -1, "gid": 0}), "-1"),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NONSENSE"}),
            "SCMP_ACT_NONSENSE",
        ),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 1}}),
            "linux.timeOffsets",
        ),
        ("/process/ioPriority", json!({"priority": 9}), "process.ioPriority"),
        ("/root/path", json!("no-such-directory"), "no-such-directory"),
        ("/hostname", json!("x".repeat(65)), "hostname"),
        ("/linux/namespaces/-", json!({"type": "pid"}), "namespaces"),
        ("/linux/resources/memory", json!({"limit": -5}), "memory"),
        ("/linux/resources/cpu", json!({"quota": -5}), "cpu.quota"),
        (
            "/linux/resources/unified",
            json!({"../memory.max": "1"}),
            "linux.resources.unified",
        ),
        ("/linux/cgroupsPath", json!("/../x"), "linux.cgroupsPath"),
        ("/linux/resources/pids", json!({"limit": "many"}), "many"),
    ]
}

#[test]
fn a_value_without_sense_is_refused_by_name() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "echo it ran");
    for (place, value, name) in senseless() {
        host.husk()
            .bundle(&bundle.clone().with(place, value))
            .run_bundle()
            .fails(125, &[name]);
    }
}

#[test]
fn a_bundle_that_is_none_is_an_error_that_says_so() {
    let host = Host::new();
    let directory = host.scratch().join("bundle");
    let husk = || host.husk().option("--bundle").option(&directory);
    husk().run_bundle().fails(125, &["bundle"]);
    std::fs::create_dir(&directory).unwrap();
    husk().run_bundle().fails(125, &["config.json"]);
    std::fs::write(directory.join("config.json"), "{ not json").unwrap();
    husk().run_bundle().fails(125, &["config.json"]);
    std::fs::write(directory.join("config.json"), "[]").unwrap();
    husk().run_bundle().fails(125, &["config.json"]);
    std::fs::remove_file(directory.join("config.json")).unwrap();
    std::fs::create_dir(directory.join("config.json")).unwrap();
    husk().run_bundle().fails(125, &["config.json"]);
    // Both at once make no sense.
    husk()
        .rootfs(busybox())
        .run(["true"])
        .exits(125)
        .mentions(&["--rootfs", "--bundle"]);
}
