//! What a container sees of the world: its own, and little else.

use husk_tests::{Bundle, Host, busybox};
use serde_json::json;

/// The bits of the 14 capabilities that container tools leave by default.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

#[test]
fn a_container_sees_its_own_world() {
    let host = Host::new();
    let script = "
        echo pid=$$; echo hostname=$(hostname)
        echo strangers=$(ls -d /proc/[0-9]* | wc -l)
        echo links=$(ls /sys/class/net | tr '\\n' ' '); echo lo=$(ip -o link show lo | grep -c 'LOOPBACK,UP')
        echo cgroup=$(cat /proc/self/cgroup); echo ping=$(ping -c 1 -W 5 127.0.0.1 >/dev/null && echo yes)
        echo queues=$(ls /dev/mqueue | wc -l); echo shm=$(touch /dev/shm/x && echo yes)
        echo fds=$(ls /proc/self/fd | tr '\\n' ' ')
        echo caps=$(grep CapEff /proc/self/status | cut -f 2); echo bound=$(grep CapBnd /proc/self/status | cut -f 2)
        echo kcore=$(head -c 1 /proc/kcore | wc -c); echo sysctl=$(echo 1 2>/dev/null >/proc/sys/kernel/pid_max || echo no)
        echo sysrq=$(echo c 2>/dev/null >/proc/sysrq-trigger || echo no)
        echo firmware=$(ls /sys/firmware | wc -l); echo sys=$(mkdir /sys/fs/x 2>/dev/null || echo no)
        echo cgroups=$(mkdir /sys/fs/cgroup/x 2>/dev/null || echo no)
        echo mount=$(mount -t tmpfs x /tmp 2>/dev/null || echo no); echo reboot=$(reboot -f 2>/dev/null || echo no)
        echo null=$(echo x >/dev/null && echo yes); echo zero=$(head -c 5 /dev/zero | wc -c)
        echo random=$(head -c 5 /dev/urandom | wc -c); echo full=$(echo x 2>/dev/null >/dev/full || echo no)
        echo ptmx=$(ls -l /dev/ptmx | grep -c pts/ptmx)
        for disk in /dev/vd* /dev/vsock /dev/kmsg /dev/mem; do [ -e $disk ] && echo device=$disk; done
        echo umask=$(umask); true";
    let outcome = host.husk().rootfs(busybox()).name("world").run(["sh", "-c", script]);
    outcome
        .exits(0)
        .states("pid", "1")
        .states("hostname", "world")
        .states("cgroup", "0::/");
    // The shell, the substitution's subshell, ls and wc: nobody else.
    assert!(outcome.number("strangers") <= 4, "processes of others in {outcome}");
    outcome
        .states("links", "lo")
        .states("lo", "1")
        .states("ping", "yes")
        .states("queues", "0")
        .states("shm", "yes");
    // Its streams, and the directory that ls reads.
    outcome.states("fds", "0 1 2 3");
    outcome
        .states("caps", DEFAULT_CAPABILITIES)
        .states("bound", DEFAULT_CAPABILITIES);
    outcome
        .states("kcore", "0")
        .states("sysctl", "no")
        .states("sysrq", "no")
        .states("firmware", "0");
    outcome
        .states("sys", "no")
        .states("cgroups", "no")
        .states("mount", "no")
        .states("reboot", "no");
    outcome
        .states("null", "yes")
        .states("zero", "5")
        .states("random", "5")
        .states("full", "no")
        .states("ptmx", "1");
    assert!(
        !outcome.stdout().contains("device="),
        "devices that are not the container's in {outcome}"
    );
    outcome.states("umask", "0022");
}

#[test]
fn a_bundles_restrictions_hold() {
    let host = Host::new();
    let script = "
        echo hostname=$(hostname); echo root=$(touch /written 2>/dev/null || echo no)
        echo masked=$(wc -c < /opt/plain); echo masked_directory=$(ls /home | wc -l)
        echo readonly=$(touch /own/x 2>/dev/null || echo no); echo writable=$(touch /own2/x && echo yes)
        grep -E 'CapEff|CapBnd|CapAmb|NoNewPrivs' /proc/self/status | sed 's/:.*\\t/=/'
        echo umask=$(umask); echo groups=$(id -G); echo score=$(cat /proc/self/oom_score_adj)
        echo own=$(grep -c '^own /own tmpfs' /proc/mounts); echo noexec=$(grep /own2 /proc/mounts | grep -c noexec)
        echo device=$(ls -ln /dev/null | cut -c 1-10)";
    let tmpfs =
        |path: &str| json!({"destination": path, "type": "tmpfs", "source": "own", "options": ["nosuid", "noexec"]});
    let bundle = Bundle::of_script(&host, busybox(), script)
        .with("/hostname", "restricted")
        .with("/mounts/-", tmpfs("/own"))
        .with("/mounts/-", tmpfs("/own2"))
        .with("/linux/maskedPaths", json!(["/opt/plain", "/home", "/no/such/path"]))
        .with("/linux/readonlyPaths", json!(["/proc/sys", "/own", "/no/such/path"]))
        .with("/process/oomScoreAdj", 321)
        // The kernel lets only what is inheritable be ambient.
        .with(
            "/process/capabilities/inheritable",
            json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]),
        )
        .with(
            "/process/user",
            json!({"uid": 1234, "gid": 1235, "umask": 0o027, "additionalGids": [29, 4000]}),
        );
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome.exits(0).states("hostname", "restricted").states("root", "no");
    outcome
        .states("masked", "0")
        .states("masked_directory", "0")
        .states("readonly", "no")
        .states("writable", "yes");
    // CAP_KILL, CAP_NET_BIND_SERVICE and CAP_AUDIT_WRITE, kept for another user than root by the ambient set.
    for set in ["CapEff", "CapBnd", "CapAmb"] {
        outcome.states(set, "0000000020000420");
    }
    outcome
        .states("NoNewPrivs", "1")
        .states("umask", "0027")
        .states("groups", "1235 29 4000")
        .states("score", "321");
    // The mount, and the read-only one over it.
    outcome
        .states("own", "2")
        .states("noexec", "1")
        .states("device", "crw-rw-rw-");
}
