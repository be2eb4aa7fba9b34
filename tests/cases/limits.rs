//! Limits of a container: what it sees of them and what happens at them.

use husk_tests::{Bundle, Host, busybox};
use serde_json::json;

#[test]
fn the_memory_limit_ends_the_process_that_exceeds_it() {
    let host = Host::new();
    // dd takes a buffer of 200 MiB and fills it; it is the container's first process.
    let script = "
        echo limit=$(cat /sys/fs/cgroup/memory.max)
        exec dd if=/dev/zero of=/dev/null bs=200M count=1";
    let bundle = Bundle::of_script(&host, busybox(), script)
        .with("/linux/resources/memory", json!({"limit": 64 << 20, "swap": 64 << 20}));
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome.exits(137).states("limit", "67108864");
}

#[test]
fn a_child_killed_for_memory_leaves_its_parent_alive() {
    let host = Host::new();
    let script = "
        dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null; echo code=$?
        echo kills=$(grep -w oom_kill /sys/fs/cgroup/memory.events)";
    let bundle =
        Bundle::of_script(&host, busybox(), script).with("/linux/resources/memory", json!({"limit": 64 << 20}));
    host.husk()
        .bundle(&bundle)
        .run_bundle()
        .exits(0)
        .states("code", "137")
        .states("kills", "oom_kill 1");
}

/// A fork bomb, watched by a shell that forks nothing itself while it goes on.
const FORK_BOMB: &str = "
    bomb() { bomb | bomb & }
    (bomb) 2>/dev/null &
    while read name count < /sys/fs/cgroup/pids.events && [ $count = 0 ]; do :; done
    echo refused=$((count > 0))
    read current < /sys/fs/cgroup/pids.current; echo within=$((current <= 40))
    read peak < /sys/fs/cgroup/pids.peak; echo peak=$((peak <= 40))";

/// A busy loop of three seconds; bare shell, so that no time goes into starting programs.
const BUSY: &str = "
    uptime() { read now rest < /proc/uptime; now=${now%.*}${now#*.}; }
    usage() { while read name value; do [ $name = $1 ] && break; done < /sys/fs/cgroup/cpu.stat; }
    uptime; start=$now; usage usage_usec; used=$value
    while uptime; [ $((now - start)) -lt 300 ]; do :; done
    usage usage_usec; echo busy_percent=$(((value - used) / (now - start) / 100))
    usage nr_throttled; echo throttled=$value";

#[test]
fn limits_of_processes_processor_and_descriptors_are_seen_and_hold() {
    let host = Host::new();
    let script = format!(
        "echo descriptors=$(ulimit -n):$(ulimit -Hn); echo core=$(ulimit -c)
        echo pids_max=$(cat /sys/fs/cgroup/pids.max); echo cpu_max=$(cat /sys/fs/cgroup/cpu.max)
        echo weight=$(cat /sys/fs/cgroup/cpu.weight)
        {BUSY}
        {FORK_BOMB}
        exit 0"
    );
    let bundle = Bundle::of_script(&host, busybox(), &script)
        .with(
            "/process/rlimits",
            json!([
                {"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ]),
        )
        .with("/linux/resources/pids", json!({"limit": 40}))
        .with(
            "/linux/resources/cpu",
            json!({"quota": 20_000, "period": 100_000, "shares": 512}),
        );
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome.exits(0).states("descriptors", "77:99").states("core", "0");
    outcome.states("pids_max", "40").states("cpu_max", "20000 100000");
    assert!(
        outcome.number("weight") < 100,
        "512 shares are half of the usual weight in {outcome}"
    );
    // 20 % are allowed; a period that had begun may be used up on either end.
    let busy = outcome.number("busy_percent");
    assert!(
        (5..=30).contains(&busy),
        "a busy loop got {busy} % of a processor with a quota of 20 in {outcome}"
    );
    assert!(outcome.number("throttled") > 5, "throttled in {outcome}");
    outcome.states("refused", "1").states("within", "1").states("peak", "1");
}

#[test]
fn a_container_in_a_cgroup_namespace_cannot_lift_its_own_limits() {
    let host = Host::new();
    let script = "
        cd /sys/fs/cgroup
        for file in memory.max pids.max; do echo max 2>/dev/null > $file; echo $file=$(cat $file); done
        mkdir below && echo $$ > below/cgroup.procs && echo +pids > cgroup.subtree_control && echo 5 > below/pids.max
        echo below=$(cat below/pids.max)";
    let bundle = Bundle::of_script(&host, busybox(), script)
        .with("/linux/namespaces/-", json!({"type": "cgroup"}))
        .without_mount("/sys/fs/cgroup")
        .with(
            "/mounts/-",
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}),
        )
        .with("/linux/resources/memory", json!({"limit": 64 << 20}))
        .with("/linux/resources/pids", json!({"limit": 30}));
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome.states("memory.max", "67108864").states("pids.max", "30");
    // What it sets for those below is its own affair.
    outcome.exits(0).states("below", "5");
}
