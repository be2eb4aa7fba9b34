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
    told(Command::new("modprobe").arg("--all").args(modules));
}

/// An empty file system for the blockfile snapshotter to begin with.
fn scratch(path: &Path) {
    told(Command::new("mkfs.ext4").args(["-q", "-m0"]).arg(path).arg("48M"));
}

/// Space that the devmapper snapshotter cuts its devices from.
struct ThinPool {
    name: String,
}

impl ThinPool {
    /// A pool in sparse files of the directory.
    fn new(directory: &Path) -> Self {
        let name = format!("husk-test-{}", std::process::id());
        let [metadata, data] = [("metadata", 4 << 20), ("data", 512_u64 << 20)].map(|(name, size)| {
            let path = directory.join(name);
            let file = fs::File::create(&path).expect("create a file for a pool");
            file.set_len(size).expect("make the file large");
            told(Command::new("losetup").args(["--find", "--show"]).arg(path))
        });
        // In sectors: of the data, of a block of it, of what is left when a warning is due.
        let table = format!(
            "0 {} thin-pool {metadata} {data} 128 1024 1 skip_block_zeroing",
            (512 << 20) / 512
        );
        told(Command::new("dmsetup").args(["create", &name, "--table", &table]));
        for device in [metadata, data] {
            // It goes with the pool.
            told(Command::new("losetup").args(["--detach", &device]));
        }
        Self { name }
    }
}

impl Drop for ThinPool {
    fn drop(&mut self) {
        let listed = Command::new("dmsetup").arg("ls").output();
        let listed = listed.map_or_else(|error| error.to_string().into_bytes(), |listed| listed.stdout);
        let listed = String::from_utf8_lossy(&listed);
        let cut = format!("{}-", self.name);
        let devices = listed.lines().filter_map(|line| line.split_whitespace().next());
        let devices = devices.filter(|name| name.starts_with(&cut));
        for device in devices.chain([&*self.name]) {
            let removed = Command::new("dmsetup").args(["remove", "--retry", device]).status();
            let removed = removed.is_ok_and(|status| status.success());
            assert!(removed || std::thread::panicking(), "remove {device}");
        }
    }
}

/// What a command says that has to succeed.
fn told(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
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
    load(&["erofs", "loop", "ext4", "dm-thin-pool"]);
    let ext4 = host.scratch().join("scratch.ext4");
    scratch(&ext4);
    let pool = ThinPool::new(host.scratch());
    let more = format!(
        "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nscratch_file = {ext4:?}\nfs_type = \"ext4\"\n\
         mount_options = []\nrecreate_scratch = true\n\
         [plugins.\"io.containerd.snapshotter.v1.devmapper\"]\npool_name = {:?}\nroot_path = {:?}\n\
         base_image_size = \"48MB\"\n",
        pool.name,
        host.scratch().join("devmapper")
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
    // Two layers are two parts of a disk; the other snapshotters have both on one file system.
    for (snapshotter, devices) in [("erofs", 3), ("blockfile", 1), ("devmapper", 1)] {
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
