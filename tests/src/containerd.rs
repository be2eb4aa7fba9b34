//! Debian's containerd with runc's own shim, which is given husk in runc's place.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::podman::{remove_empty_cgroups, unmount_below};
use crate::{Host, Husk, Outcome, Running, prepared};

/// A containerd; it ends when it is dropped.
pub struct Containerd<'h> {
    host: &'h Host,
    directory: PathBuf,
    daemon: Option<Running<'h>>,
}

impl<'h> Containerd<'h> {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It does not.
    pub fn start(host: &'h Host) -> Self {
        let directory = host.scratch().join("containerd");
        fs::create_dir(&directory).expect("make containerd's directory");
        let config = directory.join("config.toml");
        let place = |name: &str| directory.join(name);
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\",\n\
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\",\n\
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {:?}\n[debug]\naddress = \"\"\n",
            place("root"),
            place("state"),
            place("socket"),
        );
        fs::write(&config, text).expect("write containerd's configuration");
        let husk = host.husk().program("/usr/bin/containerd");
        let mut daemon = husk.start_command(["--config", config.to_str().expect("UTF-8")]);
        daemon.await_complaint("containerd successfully booted");
        Self {
            host,
            directory,
            daemon: Some(daemon),
        }
    }

    /// `ctr WORDS`, to be run.
    pub fn ctr<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> (Husk<'h>, Vec<String>) {
        let socket = self.directory.join("socket");
        let mut all = vec!["--address".to_owned(), socket.to_str().expect("UTF-8").to_owned()];
        all.extend(
            words
                .into_iter()
                .map(|word| word.as_ref().to_str().expect("UTF-8").to_owned()),
        );
        (self.host.husk().program("/usr/bin/ctr"), all)
    }

    /// `ctr WORDS`, to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        let (husk, words) = self.ctr(words);
        husk.command(words)
    }

    /// The options of `ctr run` that put husk in runc's place.
    pub fn options(&self) -> [String; 4] {
        let husk = prepared::bin().join("husk");
        [
            "--runc-binary".to_owned(),
            husk.to_str().expect("UTF-8").to_owned(),
            "--runc-root".to_owned(),
            self.host.run_directory().to_str().expect("UTF-8").to_owned(),
        ]
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(nix::sys::signal::Signal::SIGTERM);
            daemon.let_pass(Duration::from_secs(10));
        }
        unmount_below(&self.directory);
        remove_empty_cgroups(Path::new("/sys/fs/cgroup/default"));
        // Where shims have their sockets, whatever the daemon's configuration says.
        let _ = fs::remove_dir_all("/run/containerd");
        // The shim names a root directory below husk's for each namespace of containerd's. Runtimes make it and keep it; a
        // container in it would keep it from being removed.
        let _ = fs::remove_dir(self.host.run_directory().join("default"));
    }
}
