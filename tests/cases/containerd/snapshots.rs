//! Snapshotters whose layers are file systems of their own: the guest mounts them as they are.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use husk_tests::{Containerd, Host, Release};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::{XattrFlags, setxattr};

use super::HUSK;

const IMAGE: &str = "localhost/busybox:latest";

/// What the emulated host has not needed so far.
fn load(modules: &[&str]) {
    let status = Command::new("modprobe").arg("--all").args(modules).status();
    assert!(status.expect("run modprobe").success(), "load {modules:?}");
}

/// An empty file system for the blockfile snapshotter to begin with.
fn scratch(path: &Path) {
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-m0"])
        .arg(path)
        .arg("48M")
        .output();
    let made = made.expect("run mkfs.ext4");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// The root directories that husk has converted.
fn converted(host: &Host) -> Vec<OsString> {
    let entries = fs::read_dir(host.image_cache()).expect("list the image cache");
    let names = entries.map(|entry| entry.expect("list the image cache").file_name());
    names.filter(|name| Path::new(name).extension().is_some()).collect()
}

/// What lies over the layers of the newest snapshot.
fn newest_upper(containerd: &Containerd<'_>) -> PathBuf {
    let snapshots = containerd.root().join("io.containerd.snapshotter.v1.erofs/snapshots");
    let entries = fs::read_dir(&snapshots).expect("list the snapshots");
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let newest = numbers.max().expect("a snapshot");
    snapshots.join(newest.to_string()).join("fs")
}

#[test]
fn file_systems_are_the_guests_disks() {
    let host = Host::with_own_image_cache();
    load(&["erofs", "loop", "ext4"]);
    let ext4 = host.scratch().join("scratch.ext4");
    scratch(&ext4);
    let more = format!(
        "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nscratch_file = {ext4:?}\nfs_type = \"ext4\"\n\
         mount_options = []\nrecreate_scratch = true\n"
    );
    let containerd = Containerd::start_with(&host, Release::Built, &more);
    containerd.import();
    let run = |verb: &[&str], snapshotter: &str, id: &str, script: &str| {
        let options = [
            "--snapshotter",
            snapshotter,
            "--runtime",
            HUSK,
            IMAGE,
            id,
            "sh",
            "-c",
            script,
        ];
        containerd.run([verb, &options].concat())
    };
    let script = "cat /upper; test ! -e /mine && echo mine > /mine && rm /upper && stat -c '%a %u %g' /tmp /opt/private;\
                  grep -c vda /proc/partitions";
    // Two layers are two parts of a disk; the other snapshotter has both on one file system.
    for (snapshotter, devices) in [("erofs", 3), ("blockfile", 1)] {
        for id in ["one", "two"] {
            let told = run(&["run", "--rm"], snapshotter, id, script);
            told.exits(0).prints(&format!("upper\n1777 0 0\n600 0 0\n{devices}\n"));
        }
    }
    assert!(converted(&host).is_empty(), "{:?}", converted(&host));

    // What somebody has put over the layers before the start is there, and so is the lack of what they have taken away.
    let script = "cat /over; ls -d /upper; ls /opt";
    run(&["containers", "create"], "erofs", "changed", script).exits(0);
    let upper = newest_upper(&containerd);
    fs::write(upper.join("over"), "over\n").expect("write above the layers");
    mknod(&upper.join("upper"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).expect("hide a file");
    let opaque = upper.join("opt");
    fs::create_dir(&opaque).expect("make a directory");
    setxattr(&opaque, "trusted.overlay.opaque", b"y", XattrFlags::empty()).expect("hide a directory's contents");
    let told = containerd.run(["tasks", "start", "changed"]);
    told.exits(0).prints("over\n").mentions(&["/upper: No such file"]);
    containerd.run(["containers", "delete", "changed"]).exits(0);
    let converted = converted(&host);
    assert_eq!(converted.len(), 1, "{converted:?}: what lay over the layers");
}
