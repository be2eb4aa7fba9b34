//! Debian's podman with husk as its runtime, and all of its files in the test's own directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Host, Husk, Outcome, busybox, prepared};

/// The image of [`busybox`].
const IMAGE: &str = "localhost/busybox";
/// What podman leaves in places that cannot be chosen.
const LEFT: [&str; 6] = [
    "/run/libpod",
    "/run/containers",
    "/run/crun",
    "/run/netns",
    "/run/lock/podman",
    "/dev/shm/libpod_lock",
];

/// A podman; it forgets everything when it is dropped.
pub struct Podman<'h> {
    host: &'h Host,
    directory: PathBuf,
}

impl<'h> Podman<'h> {
    /// Prepares its directories and imports an image.
    ///
    /// # Panics
    /// Something cannot be made.
    pub fn new(host: &'h Host) -> Self {
        let directory = host.scratch().join("podman");
        fs::create_dir(&directory).expect("make podman's directory");
        let podman = Self { host, directory };
        let runtime = podman.directory.join("husk");
        runtime_script(host, &runtime);
        let config = format!(
            "[containers]\nlog_driver = \"k8s-file\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\n\
             runtime = \"husk\"\nruntime_supports_json = [\"husk\"]\nruntime_supports_nocgroups = [\"husk\"]\n\
             tmp_dir = {:?}\nstatic_dir = {:?}\nvolume_path = {:?}\n\
             [engine.runtimes]\nhusk = [{runtime:?}]\n",
            podman.directory.join("tmp"),
            podman.directory.join("static"),
            podman.directory.join("volumes"),
        );
        fs::write(podman.directory.join("containers.conf"), config).expect("write containers.conf");
        let tar = podman.directory.join("busybox.tar");
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(busybox()).arg("-cf").arg(&tar).arg(".");
        assert!(pack.status().expect("run tar").success(), "pack the image");
        podman.run(["import", tar.to_str().expect("UTF-8"), IMAGE]).exits(0);
        podman
    }

    /// `podman WORDS`, to be run.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> (Husk<'h>, Vec<String>) {
        let husk = self.host.husk().program("/usr/bin/podman");
        let husk = husk.variable("CONTAINERS_CONF", self.directory.join("containers.conf"));
        let place = |name: &str| self.directory.join(name).to_str().expect("UTF-8").to_owned();
        let mut all = vec![
            format!("--root={}", place("root")),
            format!("--runroot={}", place("run")),
            "--storage-driver=vfs".to_owned(),
        ];
        all.extend(
            words
                .into_iter()
                .map(|word| word.as_ref().to_str().expect("UTF-8").to_owned()),
        );
        (husk, all)
    }

    /// `podman WORDS`, to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        let (husk, words) = self.command(words);
        husk.command(words)
    }

    /// The name of the image.
    pub fn image(&self) -> &'static str {
        IMAGE
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let (husk, words) = self.command(["rm", "--all", "--force", "--time", "0"]);
        let removed = husk.command(words);
        if !removed.succeeded() {
            eprintln!("{removed}");
        }
        unmount_below(&self.directory);
        for place in LEFT {
            // What is not there needs no removal, and what stays is found by the search for leftovers.
            let _ = fs::remove_file(place);
            let _ = fs::remove_dir_all(place);
        }
        for cgroup in ["libpod_parent", "podman_probe"] {
            remove_empty_cgroups(&Path::new("/sys/fs/cgroup").join(cgroup));
        }
    }
}

/// A program that is husk with the test's directories: engines do not hand their environment on.
pub(crate) fn runtime_script(host: &Host, path: &Path) {
    let script = format!(
        "#!/bin/sh\nexport HUSK_ROOT='{}' HUSK_IMAGE_CACHE='{}'\nexec '{}' \"$@\"\n",
        host.run_directory().display(),
        host.image_cache().display(),
        prepared::bin().join("husk").display()
    );
    fs::write(path, script).expect("write the runtime's script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make the script executable");
}

/// Takes away the mounts that an engine keeps for the next container.
pub(crate) fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = mounts.lines().rev().filter_map(|line| {
        let place = Path::new(line.split(' ').nth(4)?);
        place.starts_with(directory).then_some(place)
    });
    for place in below {
        // What stays is found by the search for leftovers.
        let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Removes a cgroup and those below it as far as nobody is in them.
pub(crate) fn remove_empty_cgroups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty_cgroups(&entry.path());
        }
    }
    // What stays is found by the search for leftovers.
    let _ = fs::remove_dir(path);
}
