//! `linux.resources`, `linux.devices` and `linux.cgroupsPath`: what the container finds of them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use husk_tests::{Bundle, Host, busybox, copy};
use nix::sys::stat::{major, minor};
use serde_json::json;

/// Tries the devices of which nodes can be made.
const TRY_DEVICES: &str = "
    try() { mknod /tmp/$1 $2 $3 $4 || return; (: < /tmp/$1) 2> /dev/null && echo $1=yes || echo $1=no; }
    mount -t tmpfs tmpfs /tmp
    try kmsg c 1 11; try zero c 1 5; try fuse c 10 229; try disk b $(cut -d: -f1 /sys/block/vda/dev) 0
    : < /dev/urandom && echo urandom=yes";

fn with_mknod(bundle: Bundle) -> Bundle {
    bundle.with_capabilities(&["CAP_MKNOD", "CAP_SYS_ADMIN"])
}

#[test]
fn devices_are_denied_but_for_the_default_ones_and_those_that_are_allowed() {
    let host = Host::new();
    let bundle = with_mknod(Bundle::of_script(&host, busybox(), TRY_DEVICES));
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome.exits(0).states("zero", "yes").states("urandom", "yes");
    outcome.states("kmsg", "no").states("fuse", "no").states("disk", "no");
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": true, "type": "c", "major": 1, "access": "rwm"},
        {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "r"},
    ]);
    let bundle = bundle.with("/linux/resources/devices", rules);
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome
        .exits(0)
        .states("zero", "yes")
        .states("fuse", "yes")
        .states("kmsg", "no");
    let everything = json!([{"allow": true, "access": "rwm"}]);
    let outcome = host
        .husk()
        .bundle(&bundle.with("/linux/resources/devices", everything))
        .run_bundle();
    outcome.exits(0).states("disk", "yes");
}

#[test]
fn limits_are_files_of_the_containers_cgroup() {
    let host = Host::new();
    let script = "
        cd /sys/fs/cgroup
        for f in cpuset.cpus cpuset.mems cpu.max.burst memory.low memory.high memory.swap.max io.weight \\
            hugetlb.2MB.max pids.max; do echo $f=$(cat $f); done
        echo devices=$(stat -c %t:%T:%a /dev/fuse)
        echo fifo=$(stat -c %F:%a /run/fifo)";
    let bundle = Bundle::of_script(&host, busybox(), script)
        .with(
            "/linux/resources/cpu",
            json!({"quota": 50_000, "burst": 20_000, "cpus": "0", "mems": "0"}),
        )
        .with(
            "/linux/resources/memory",
            json!({"limit": 64 << 20, "swap": 96 << 20, "reservation": 4 << 20, "swappiness": 10}),
        )
        .with("/linux/resources/pids", json!({"limit": 30}))
        .with("/linux/resources/blockIO", json!({"weight": 1000}))
        .with(
            "/linux/resources/hugepageLimits",
            json!([{"pageSize": "2MB", "limit": 4 << 20}]),
        )
        .with("/linux/resources/unified", json!({"memory.high": "60000000"}))
        .with(
            "/linux/devices",
            json!([
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640},
                {"path": "/run/fifo", "type": "p", "fileMode": 0o600, "major": 0, "minor": 0},
            ]),
        );
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome.exits(0).states("cpuset.cpus", "0").states("cpuset.mems", "0");
    outcome.states("cpu.max.burst", "20000").states("memory.low", "4194304");
    outcome
        .states("memory.high", "59998208")
        .states("memory.swap.max", "33554432");
    outcome
        .states("io.weight", "default 10000")
        .states("hugetlb.2MB.max", "4194304");
    outcome.states("pids.max", "30").states("devices", "a:e5:640");
    outcome.states("fifo", "fifo:600");
}

#[test]
fn processors_that_the_guest_lacks_are_named() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "true").with("/linux/resources/cpu", json!({"cpus": "0-63"}));
    host.husk()
        .bundle(&bundle)
        .run_bundle()
        .fails(125, &["cpuset.cpus", "the guest has processor"]);
}

#[test]
fn a_container_without_a_cgroup_namespace_is_where_the_bundle_says() {
    let host = Host::new();
    let script = "echo path=$(cat /proc/self/cgroup); echo pids=$(cat /sys/fs/cgroup/pids.max)";
    let bundle = Bundle::of_script(&host, busybox(), script)
        .without_namespace("cgroup")
        .with("/linux/cgroupsPath", "machine.slice:libpod:abc")
        .with("/linux/resources/pids", json!({"limit": 30}));
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome.exits(0).states("path", "0::/machine.slice/libpod-abc.scope");
    outcome.states("pids", "30");
}

/// An ext4 on a disk of the host's, in a file.
struct Disk(PathBuf);

impl Disk {
    fn mount(directory: &Path) -> Self {
        let (image, path) = (directory.join("image"), directory.join("disk"));
        fs::create_dir(&path).unwrap();
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        // The emulated host's kernel has it as a module; another's may have it built in.
        let _ = Command::new("modprobe").arg("loop").status();
        run("mkfs.ext4", &["-q".as_ref(), image.as_ref()]);
        run(
            "mount",
            &["-o".as_ref(), "loop".as_ref(), image.as_ref(), path.as_ref()],
        );
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

#[test]
fn limits_of_the_disk_with_the_root_hold_for_the_containers() {
    let host = Host::new();
    let disk = Disk::mount(host.scratch());
    let root = disk.0.join("root");
    copy(busybox(), &root);
    fs::write(root.join("large"), vec![7; 4 << 20]).unwrap();
    let device = fs::metadata(&root).unwrap().dev();
    let (major, minor) = (major(device), minor(device));
    // The disk is read for the first time: 4 MiB at 2 MiB a second.
    let script = "
        echo limit=$(cut -d' ' -f2- /sys/fs/cgroup/io.max)
        read start rest < /proc/uptime; cat /large > /dev/null; read end rest < /proc/uptime
        echo tenths=$((${end%.*}${end#*.} / 10 - ${start%.*}${start#*.} / 10))";
    let rate = json!([{"major": major, "minor": minor, "rate": 2 << 20}]);
    let bundle = Bundle::of_script(&host, &root, script)
        .with("/linux/resources/blockIO", json!({"throttleReadBpsDevice": rate}));
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome
        .exits(0)
        .states("limit", "rbps=2097152 wbps=max riops=max wiops=max");
    let tenths = outcome.number("tenths");
    assert!(
        tenths >= 10,
        "4 MiB took {tenths} tenths of a second at 2 MiB a second in {outcome}"
    );
    let elsewhere = json!([{"major": major, "minor": minor + 1, "rate": 2 << 20}]);
    host.husk()
        .bundle(&bundle.with("/linux/resources/blockIO", json!({"throttleReadBpsDevice": elsewhere})))
        .run_bundle()
        .fails(125, &["blockIO.throttleReadBpsDevice[0]"]);
}
