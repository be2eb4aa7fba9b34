//! docker over containerd, with all of its files in the test's own directory.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::containerd::archive_as;
use crate::daemon::Daemon;
use crate::podman::{remove_empty_cgroups, unmount_below};
use crate::{Containerd, Host, Husk, Outcome, Release, prepared};

/// The last of what dockerd logs when it answers.
const READY: &str = "API listen on";
/// The image that is loaded, by the name that `busybox` is short for.
const IMAGE: &str = "docker.io/library/busybox:latest";
/// The runtime that is runc's shim with a newer runc than Debian's, where there is one.
const RUNC: &str = "newer-runc";
/// Directories that it makes, whatever it is told.
const LEFT: [&str; 2] = ["/run/docker/plugins", "/run/docker"];
/// What Debian calls the init that docker puts into containers.
const INIT: &str = "/usr/bin/tini-static";

/// A dockerd and its containerd; they end when it is dropped.
pub struct Docker<'h> {
    host: &'h Host,
    directory: PathBuf,
    daemon: Option<Daemon>,
    /// Ends after dockerd.
    containerd: Containerd<'h>,
}

impl<'h> Docker<'h> {
    /// husk's runtime.
    pub const HUSK: &'static str = "io.containerd.husk.v2";

    /// Starts both, and loads the tests' image.
    ///
    /// # Panics
    /// Something does not come up.
    pub fn start(host: &'h Host) -> Self {
        let containerd = Containerd::start(host, Release::Built);
        let directory = host.scratch().join("docker");
        fs::create_dir(&directory).expect("make docker's directory");
        let place = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
        let socket = containerd.socket();
        let words = [
            "--containerd".to_owned(),
            socket.to_str().expect("UTF-8").to_owned(),
            format!("--host=unix://{}", place("socket")),
            format!("--data-root={}", place("data")),
            format!("--exec-root={}", place("exec")),
            format!("--pidfile={}", place("pid")),
            format!("--config-file={}", place("daemon.json")),
            format!("--init-path={INIT}"),
            // Nothing of the machine's network is touched.
            "--bridge=none".to_owned(),
            "--iptables=false".to_owned(),
            "--ip6tables=false".to_owned(),
            "--userland-proxy=false".to_owned(),
        ];
        let runtimes = match prepared::runc() {
            Some(runc) => json!({ RUNC: {"path": runc} }),
            None => json!({}),
        };
        let config = json!({"runtimes": runtimes}).to_string();
        fs::write(place("daemon.json"), config).expect("write docker's configuration");
        let husk = host.husk().program(prepared::docker().join("dockerd"));
        let daemon = Daemon::start("dockerd", husk.into_command(words), READY);
        let docker = Self {
            host,
            directory,
            daemon: Some(daemon),
            containerd,
        };
        let archive = archive_as("busybox-of-docker", IMAGE);
        docker
            .run(["load", "--input", archive.to_str().expect("UTF-8")])
            .exits(0);
        docker
    }

    /// `docker WORDS`, to be run.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> (Husk<'h>, Vec<String>) {
        let husk = self.host.husk().program(prepared::docker().join("docker"));
        let husk = husk
            .variable(
                "DOCKER_HOST",
                format!("unix://{}", self.directory.join("socket").display()),
            )
            .variable("DOCKER_CONFIG", self.directory.join("client"));
        let words = words
            .into_iter()
            .map(|word| word.as_ref().to_str().expect("UTF-8").to_owned());
        (husk, words.collect())
    }

    /// `docker WORDS`, to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        let (husk, words) = self.command(words);
        husk.command(words)
    }

    /// The runtimes with which each case runs: runc's where it is asked for, to measure the cases by.
    pub fn runtimes() -> &'static [&'static str] {
        match prepared::runc().is_some() {
            true => &[RUNC, Self::HUSK],
            false => &[Self::HUSK],
        }
    }

    /// The machine it runs on.
    pub fn host(&self) -> &'h Host {
        self.host
    }

    /// The name of the image.
    pub fn image(&self) -> &'static str {
        "busybox"
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        // docker answers while a shim is still on its way out; without containerd it would not go.
        if !std::thread::panicking() {
            self.containerd.await_shims();
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.end(Signal::SIGTERM);
        }
        unmount_below(&self.directory);
        remove_empty_cgroups(Path::new("/sys/fs/cgroup/docker"));
        for directory in LEFT {
            // What was there before stays, for it is not empty; what stays otherwise is found by the search for leftovers.
            let _ = fs::remove_dir(directory);
        }
    }
}
