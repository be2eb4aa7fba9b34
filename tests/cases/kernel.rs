//! Fields of `config.json` that the guest's kernel keeps: namespaces with contents of their own, schedules, settings.

use husk_tests::{Bundle, Host, busybox};
use serde_json::json;

/// Runs a script under a bundle with these changes and gives what it printed.
fn says(host: &Host, script: &str, changes: &[(&str, serde_json::Value)]) -> String {
    let mut bundle = Bundle::of_script(host, busybox(), script);
    for (pointer, value) in changes {
        bundle = bundle.with(pointer, value.clone());
    }
    let run = host.husk().bundle(&bundle).run_bundle();
    run.exits(0).stdout().to_owned()
}

#[test]
fn a_user_namespace_maps_ids() {
    let host = Host::new();
    let ranges =
        json!([{"containerID": 0, "hostID": 0, "size": 1}, {"containerID": 1, "hostID": 100_000, "size": 1000}]);
    let text = says(
        &host,
        "id -u; cat /proc/self/uid_map | tr -s ' '; echo x > /dev/null && echo writes",
        &[
            ("/linux/namespaces/-", json!({"type": "user"})),
            ("/linux/uidMappings", ranges.clone()),
            ("/linux/gidMappings", ranges),
        ],
    );
    assert_eq!(text, "0\n 0 0 1\n 1 100000 1000\nwrites\n");
}

#[test]
fn a_time_namespace_has_its_own_clocks() {
    let host = Host::new();
    let text = says(
        &host,
        "read -r up _ < /proc/uptime; [ ${up%.*} -ge 1000000 ] && echo late",
        &[
            ("/linux/namespaces/-", json!({"type": "time"})),
            ("/linux/timeOffsets", json!({"boottime": {"secs": 1_000_000}})),
        ],
    );
    assert_eq!(text, "late\n");
}

#[test]
fn settings_of_the_containers_namespaces_are_made() {
    let host = Host::new();
    let text = says(
        &host,
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced",
        &[(
            "/linux/sysctl",
            json!({"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shm_rmid_forced": "1"}),
        )],
    );
    assert_eq!(text, "7\n1\n");
}

#[test]
fn schedules_and_the_personality_are_as_asked_for() {
    let host = Host::new();
    let text = says(
        &host,
        "uname -m; ionice -p $$; read -r line < /proc/self/stat; set -- ${line##*)}; echo ${17} ${39}",
        &[
            ("/linux/personality", json!({"domain": "LINUX32"})),
            (
                "/process/ioPriority",
                json!({"class": "IOPRIO_CLASS_BE", "priority": 2}),
            ),
            ("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 3})),
        ],
    );
    assert_eq!(text, "i686\nbest-effort: prio 2\n3 3\n");
}

#[test]
fn the_root_is_shared_where_that_is_asked_for() {
    let host = Host::new();
    let script = "while read -r a b c d point f tags; do [ $point != / ] || echo $tags; done < /proc/self/mountinfo";
    let text = says(&host, script, &[("/linux/rootfsPropagation", json!("rshared"))]);
    assert!(text.starts_with("shared:"), "{text}");
}

#[test]
fn no_policy_of_the_host_is_asked_for_by_unconfined() {
    let host = Host::new();
    let text = says(&host, "echo runs", &[("/process/apparmorProfile", json!("unconfined"))]);
    assert_eq!(text, "runs\n");
    // Whether the host has the module or not: there is no such profile.
    let bundle = Bundle::of_script(&host, busybox(), "true").with("/process/apparmorProfile", "no-such-profile");
    host.husk()
        .bundle(&bundle)
        .run_bundle()
        .fails(125, &["process.apparmorProfile"]);
}
