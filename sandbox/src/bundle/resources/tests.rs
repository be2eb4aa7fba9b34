use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A directory whose disk no number means.
const NOWHERE: &str = "/no/such/directory";

fn made(resources: &Value) -> Result<agent::Resources, BundleError> {
    let config = json!({"linux": {"resources": resources}});
    fields::check_resources(resources)?;
    let resources = serde_json::from_value(resources.clone()).unwrap();
    create(Some(&resources), &config, Path::new(NOWHERE))
}

fn pairs(resources: &agent::Resources) -> Vec<(&str, &str)> {
    let settings = resources.settings.iter();
    settings
        .map(|entry| (entry.file.as_str(), entry.value.as_str()))
        .collect()
}

fn refusal(resources: Value) -> String {
    made(&resources).unwrap_err().to_string()
}

#[test]
fn limits_become_files() {
    for (resources, expected) in [
        (
            json!({"cpu": {"shares": 1024, "quota": 50_000, "burst": 10_000, "cpus": "0-1", "mems": "0"}}),
            &[
                ("cpu.weight", "100"),
                ("cpu.max", "50000"),
                ("cpu.max.burst", "10000"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
            ][..],
        ),
        (
            json!({"cpu": {"quota": -1, "period": 50_000}, "pids": {"limit": -1}}),
            &[("pids.max", "max"), ("cpu.max", "max 50000")],
        ),
        (
            json!({"memory": {"limit": 100, "swap": 150, "reservation": 50}}),
            &[("memory.swap.max", "50"), ("memory.max", "100"), ("memory.low", "50")],
        ),
        (
            json!({"memory": {"limit": 100, "swap": 100}}),
            &[("memory.swap.max", "0"), ("memory.max", "100")],
        ),
        (
            json!({"memory": {"limit": -1}}),
            &[("memory.swap.max", "max"), ("memory.max", "max")],
        ),
        (
            json!({"memory": {"limit": -1, "swap": 7}}),
            &[("memory.swap.max", "7"), ("memory.max", "max")],
        ),
        (json!({"cpu": {"idle": 1, "shares": 5}}), &[("cpu.idle", "1")]),
        (
            json!({"cpu": {"idle": 0, "shares": 2}}),
            &[("cpu.idle", "0"), ("cpu.weight", "1")],
        ),
        (json!({"pids": {"limit": 20}}), &[("pids.max", "20")]),
        (json!({"pids": {"limit": 0}}), &[("pids.max", "1")]),
        (json!({"pids": {}}), &[]),
        (json!({"blockIO": {"weight": 10}}), &[("io.weight", "1")]),
        (
            json!({"blockIO": {"weight": 1000, "leafWeight": 0}}),
            &[("io.weight", "10000")],
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]}),
            &[("hugetlb.2MB.max", "4194304"), ("hugetlb.2MB.rsvd.max", "4194304")],
        ),
        (
            json!({"unified": {"memory.high": "5\n", "cgroup.max.depth": "3"}}),
            &[("cgroup.max.depth", "3"), ("memory.high", "5")],
        ),
        (
            json!({
                "cpu": {"shares": 0, "quota": 0, "period": 0, "realtimeRuntime": 0, "cpus": ""},
                "memory": {"limit": 0, "swap": 0, "swappiness": 60, "disableOOMKiller": true, "useHierarchy": false,
                    "kernel": 1, "kernelTCP": 2},
                "network": {"classID": 7, "priorities": [{"name": "eth0", "priority": 1}]},
                "blockIO": {"weight": 0}
            }),
            &[],
        ),
    ] {
        assert_eq!(pairs(&made(&resources).unwrap()), expected, "{resources}");
    }
}

#[test]
fn what_is_out_of_range_is_named() {
    for (resources, path) in [
        (json!({"memory": {"limit": -5}}), "memory.limit"),
        (json!({"memory": {"reservation": -2}}), "memory.reservation"),
        (json!({"memory": {"swap": -2}}), "memory.swap"),
        (json!({"memory": {"swap": 10}}), "memory.swap"),
        (json!({"memory": {"swap": 10, "limit": 20}}), "memory.swap"),
        (json!({"memory": {"swappiness": 101}}), "memory.swappiness"),
        (json!({"cpu": {"quota": -2}}), "cpu.quota"),
        (json!({"cpu": {"quota": 999}}), "cpu.quota"),
        (json!({"cpu": {"period": 999}}), "cpu.period"),
        (json!({"cpu": {"period": 1_000_001}}), "cpu.period"),
        (json!({"cpu": {"idle": 2}}), "cpu.idle"),
        (json!({"cpu": {"cpus": "all"}}), "cpu.cpus"),
        (json!({"cpu": {"mems": "0\n1"}}), "cpu.mems"),
        (json!({"cpu": {"realtimeRuntime": 1}}), "cpu.realtimeRuntime"),
        (json!({"cpu": {"realtimePeriod": 1}}), "cpu.realtimePeriod"),
        (json!({"pids": {"limit": i64::MIN}}), "pids.limit"),
        (json!({"blockIO": {"weight": 9}}), "blockIO.weight"),
        (json!({"blockIO": {"leafWeight": 10}}), "blockIO.leafWeight"),
        (
            json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}}),
            "blockIO.weightDevice[0]",
        ),
        (
            json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 10}]}}),
            "blockIO.throttleReadBpsDevice[0]",
        ),
        (
            json!({"blockIO": {"throttleWriteIOPSDevice": [{"major": -8, "minor": 0, "rate": 10}]}}),
            "blockIO.throttleWriteIOPSDevice[0]",
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "../../x", "limit": 1}]}),
            "hugepageLimits[0].pageSize",
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "MB", "limit": 1}]}),
            "hugepageLimits[0].pageSize",
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": -1}]}),
            "hugepageLimits[0].limit",
        ),
        (json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}), "rdma"),
        (json!({"unified": {"../memory.max": "1"}}), "unified[\"../memory.max\"]"),
        (json!({"unified": {"memory/max": "1"}}), "unified"),
        (json!({"unified": {"": "1"}}), "unified"),
        (json!({"unified": {"tasks": "1"}}), "unified"),
        (json!({"unified": {"cgroup.freeze": "1"}}), "unified[\"cgroup.freeze\"]"),
        (json!({"unified": {"memory.max": "1\u{0}"}}), "unified"),
        (json!({"unified": {"io.max": "8:0 rbps=1"}}), "unified[\"io.max\"]"),
    ] {
        let message = refusal(resources);
        assert!(message.contains(&format!("linux.resources.{path}")), "{message}");
    }
}

#[test]
fn devices_are_denied_by_default_and_some_are_always_allowed() {
    let none = made(&json!({})).unwrap().devices;
    assert_eq!(none.rules.len(), 11);
    assert!(none.rules.iter().all(|rule| rule.allow && rule.make));
    let made = made(&json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": true, "type": "b", "major": -1, "access": "r"},
        {"allow": false, "type": "c", "major": 240, "access": "m"},
    ]}))
    .unwrap();
    let rules = &made.devices.rules;
    assert_eq!(rules.len(), 15);
    assert!(!rules[0].allow && rules[0].read && rules[0].write && rules[0].make);
    assert_eq!(
        (rules[1].major, rules[1].minor, rules[1].make),
        (Some(10), Some(229), false)
    );
    assert_eq!((rules[2].major, rules[2].minor), (None, None));
}

#[test]
fn rules_for_devices_that_cannot_be_kept_are_named() {
    for (rule, field) in [
        (json!({"allow": true, "type": "c"}), "access"),
        (json!({"allow": true, "type": "c", "access": "rx"}), "access"),
        (json!({"allow": true, "type": "p", "access": "r"}), "type"),
        (json!({"allow": true, "type": "c", "major": -2, "access": "r"}), "major"),
        (
            json!({"allow": true, "type": "c", "minor": i64::MAX, "access": "r"}),
            "minor",
        ),
        // /dev/vda in the guest, something else on the host.
        (
            json!({"allow": true, "type": "b", "major": 254, "minor": 0, "access": "r"}),
            "major",
        ),
    ] {
        let message = refusal(json!({"devices": [rule]}));
        assert!(
            message.contains(&format!("linux.resources.devices[0].{field}")),
            "{message}"
        );
    }
}

#[test]
fn the_disk_with_the_root_can_be_limited() {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata("/").unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    if major == 0 {
        return;
    }
    let device = json!({"major": major, "minor": minor, "rate": 1000});
    let resources = json!({
        "blockIO": {
            "throttleReadBpsDevice": [device],
            "throttleWriteIOPSDevice": [{"major": major, "minor": minor, "rate": 0}],
            "weightDevice": [{"major": major, "minor": minor, "weight": 1000}],
        },
        "unified": {"io.max": format!("{major}:{minor} rbps=7\n")},
    });
    let resources = serde_json::from_value(resources).unwrap();
    let made = create(Some(&resources), &json!({}), Path::new("/")).unwrap();
    assert_eq!(
        pairs(&made),
        [
            ("io.weight", "10000"),
            ("io.max", "rbps=1000"),
            ("io.max", "wiops=max"),
            ("io.max", "rbps=7")
        ]
    );
    let on_disk: Vec<_> = made.settings.iter().map(|setting| setting.on_root_disk).collect();
    assert_eq!(on_disk, [false, true, true, true]);
}

#[test]
fn an_update_changes_what_it_names() {
    let current = StatsResponse {
        cpu_quota_us: Some(20_000),
        memory_limit: 1000,
        ..Default::default()
    };
    let update = |text: &str, current: &StatsResponse| {
        let update = Update::parse(text.as_bytes()).unwrap();
        update.message(current, Path::new(NOWHERE))
    };
    let changed = update(
        r#"{"cpu": {"period": 50000, "burst": 10}, "memory": {"swap": 1500, "checkBeforeUpdate": true}}"#,
        &current,
    );
    let changed = changed.unwrap();
    assert_eq!(
        pairs(&changed),
        [
            ("memory.swap.max", "500"),
            ("cpu.max.burst", "0"),
            ("cpu.max", "20000 50000"),
            ("cpu.max.burst", "10")
        ]
    );
    assert!(changed.check_before_update && changed.devices.is_none());
    assert!(update(r#"{"memory": {"swap": 1500}}"#, &StatsResponse::default()).is_err());
    let devices = update(r#"{"devices": [{"allow": true, "access": "rwm"}]}"#, &current).unwrap();
    assert_eq!((devices.devices.rules.len(), devices.settings.len()), (12, 0));
    for (text, part) in [
        ("[]", "linux.resources"),
        ("{", "JSON"),
        (r#"{"cpus": 1}"#, "linux.resources.cpus"),
        (r#"{"cpu": {"quota": "1"}}"#, "configuration"),
    ] {
        let error = Update::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn paths_of_cgroups_stay_below_the_root() {
    for (path, expected) in [
        ("", ""),
        ("/docker/abc", "docker/abc"),
        ("relative//./x/", "relative/x"),
        ("system.slice:docker:abc", "system.slice/docker-abc.scope"),
        (":cri-containerd:abc", "system.slice/cri-containerd-abc.scope"),
        ("a-b-c.slice:p:n", "a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
        ("-.slice::n", "n.scope"),
        ("user.slice:p:n.slice", "user.slice/n.slice"),
        ("/with:two:colons", "with:two:colons"),
        ("a:b", "a:b"),
    ] {
        assert_eq!(cgroup_path(path).unwrap(), expected, "{path}");
    }
    let long = format!("/{}", "x".repeat(256));
    for path in [
        "/",
        "/../x",
        "a/..",
        "x:y:z",
        "a--b.slice:p:n",
        "a.slice:p:",
        "/a\nb",
        "/a\0",
        &long,
    ] {
        let message = cgroup_path(path).unwrap_err().to_string();
        assert!(message.contains("linux.cgroupsPath"), "{message}");
    }
}

proptest! {
    #[test]
    fn a_cgroup_path_never_leads_out(path in "[a-z.:/-]{0,40}") {
        if let Ok(path) = cgroup_path(&path) {
            prop_assert!(!path.starts_with('/'));
            prop_assert!(path.split('/').all(|name| !matches!(name, "." | "..")));
        }
    }

    #[test]
    fn a_unified_name_never_leads_out(name in "[a-z./\\\\]{0,20}") {
        let resources = json!({"unified": {name: "1"}});
        if let Ok(made) = made(&resources) {
            prop_assert!(made.settings.iter().all(|setting| !setting.file.contains('/')));
        }
    }
}
