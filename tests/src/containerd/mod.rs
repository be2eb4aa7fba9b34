//! containerd, Debian's and another version of it, with all of its files in the test's own directory.

mod cri;
mod events;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub use self::cri::Cri;
pub use self::events::{Event, Events};
use crate::daemon::Daemon;
use crate::images::{Compression, LAYER, Layout, config};
use crate::podman::{remove_empty_cgroups, unmount_below};
use crate::{Host, Husk, Outcome, Process, Tar, busybox, prepared, trees};

/// Where containerd has the sockets of shims and the pipes of tasks, whatever its configuration says.
const RUN: &str = "/run/containerd";
/// For a shim to end that has nothing more to do, in milliseconds.
const LIMIT: u16 = 60_000;
/// The last of what it logs when it answers.
const READY: &str = "containerd successfully booted";
/// The name that [`Containerd::import`] gives to what is not tagged with a whole name.
const NAME: &str = "localhost/busybox";

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Debian's: 1.6 in Debian 12.
    Debian,
    /// The one that `cargo xtask test` has built: the newest, or what its `--containerd` names.
    Built,
}

/// A containerd; it ends when it is dropped.
pub struct Containerd<'h> {
    host: &'h Host,
    directory: PathBuf,
    programs: PathBuf,
    daemon: Option<Daemon>,
    /// Whether nobody else has [`RUN`].
    has_run: bool,
}

impl<'h> Containerd<'h> {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It does not.
    pub fn start(host: &'h Host, release: Release) -> Self {
        Self::start_with(host, release, "")
    }

    /// The same with this at the end of its configuration.
    ///
    /// # Panics
    /// It does not.
    pub fn start_with(host: &'h Host, release: Release, more: &str) -> Self {
        let cri = [
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.nri.v1.nri",
        ];
        Self::launch(host, release, &cri, more)
    }

    /// Starts one without these plugins and with this at the end of its configuration.
    fn launch(host: &'h Host, release: Release, without: &[&str], more: &str) -> Self {
        let directory = host.scratch().join("containerd");
        fs::create_dir(&directory).expect("make containerd's directory");
        let place = |name: &str| directory.join(name);
        // Plugins that need what is not there, or that use directories of their own choice; versions ignore those of others.
        let mut disabled = vec![
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.zfs",
            "io.containerd.snapshotter.v1.aufs",
            "io.containerd.internal.v1.opt",
        ];
        disabled.extend(without);
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = {disabled:?}\n\
             [grpc]\naddress = {:?}\n[debug]\naddress = \"\"\n{more}",
            place("root"),
            place("state"),
            place("socket"),
        );
        fs::write(place("config.toml"), text).expect("write containerd's configuration");
        let programs = match release {
            Release::Debian => PathBuf::from("/usr/bin"),
            Release::Built => prepared::containerd(),
        };
        let mut containerd = Self {
            host,
            directory,
            programs,
            daemon: None,
            has_run: !Path::new(RUN).exists(),
        };
        containerd.restart();
        containerd
    }

    /// Starts it again, after a [`Containerd::crash`].
    ///
    /// # Panics
    /// It does not answer.
    pub fn restart(&mut self) {
        // Shims are looked for in PATH, and so is runc by runc's.
        let path = std::env::join_paths([
            self.programs.clone(),
            prepared::bin(),
            "/usr/sbin".into(),
            "/usr/bin".into(),
            "/sbin".into(),
            "/bin".into(),
        ]);
        let husk = self.host.husk().program(self.programs.join("containerd"));
        let husk = husk.variable("PATH", path.expect("no colons"));
        let config = self.directory.join("config.toml");
        let command = husk.into_command(["--config", config.to_str().expect("UTF-8")]);
        self.daemon = Some(Daemon::start("containerd", command, READY));
    }

    /// Kills it; what it runs goes on running.
    pub fn crash(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.end(Signal::SIGKILL);
        }
    }

    /// Where its plugins keep what outlives it.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Where it keeps what runs, the bundles of tasks among it.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The machine it runs on.
    pub fn host(&self) -> &'h Host {
        self.host
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// `ctr WORDS`, to be run.
    pub fn ctr<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> (Husk<'h>, Vec<String>) {
        let socket = self.socket();
        let mut all = vec!["--address".to_owned(), socket.to_str().expect("UTF-8").to_owned()];
        all.extend(
            words
                .into_iter()
                .map(|word| word.as_ref().to_str().expect("UTF-8").to_owned()),
        );
        (self.host.husk().program(self.programs.join("ctr")), all)
    }

    /// `ctr WORDS`, to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        let (husk, words) = self.ctr(words);
        husk.command(words)
    }

    /// Imports [`busybox`] and gives the image's name. It has two layers; the upper one is the file `/upper`.
    ///
    /// # Panics
    /// It cannot be made or imported.
    pub fn import(&self) -> String {
        let archive = archive();
        let archive = archive.to_str().expect("UTF-8");
        self.run(["images", "import", "--base-name", NAME, archive]).exits(0);
        format!("{NAME}:latest")
    }

    /// Listens to its events from now on.
    ///
    /// # Panics
    /// None comes.
    pub fn events(&self) -> Events<'h> {
        Events::listen(self)
    }

    /// The shim of a container.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn shim(&self, id: &str) -> Process {
        let id = format!(" -id {id} ");
        let below = Process::descendants(std::process::id().cast_signed());
        // The kernel keeps 15 bytes of a program's name.
        let mut shims = below.into_iter().filter(|process| process.name == "containerd-shim");
        let shim = shims.find(|process| format!("{process} ").contains(&id));
        shim.expect("a shim with this container's id")
    }

    /// Waits until no shim is left, with what belongs to it.
    ///
    /// # Panics
    /// One stays.
    pub(crate) fn await_shims(&self) {
        let names = ["containerd-shim", "husk-keeper", "husk-vmm"];
        let shims = self.host.new_processes();
        for shim in shims.iter().filter(|process| names.contains(&&*process.name)) {
            let Some(end) = shim.handle() else { continue };
            let ended = poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], LIMIT);
            assert_eq!(ended, Ok(1), "{shim} stays");
        }
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

/// The archive of the image with a tag that its importer completes, made once.
fn archive() -> PathBuf {
    archive_as("busybox", "latest")
}

/// The archive of the image, named so in the archive, as a file of this name; made once.
pub(crate) fn archive_as(file: &str, name: &str) -> PathBuf {
    let archive = trees::shared().join(format!("{file}.tar"));
    if archive.exists() {
        return archive;
    }
    let mut pack = Command::new("tar");
    pack.args(["--numeric-owner", "-C"])
        .arg(busybox())
        .args(["-cf", "-", "."]);
    let packed = pack.output().expect("run tar");
    assert!(packed.status.success(), "pack the image");
    let upper = Tar::new().file("upper", 0o644, "upper\n").finish();
    let configuration = json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]});
    let unfinished = trees::shared().join(format!("{file}-{}.tar", std::process::id()));
    image_of(&configuration, vec![packed.stdout, upper], name, &unfinished);
    fs::rename(&unfinished, &archive).expect("rename the image's archive");
    archive
}

/// Writes the archive of an image with these layers.
fn image_of(configuration: &Value, layers: Vec<Vec<u8>>, name: &str, archive: &Path) {
    let mut layout = Layout::new();
    let layers: Vec<_> = layers.iter().map(|layer| layout.blob(LAYER, layer)).collect();
    let mut configuration = config(configuration.clone());
    // An uncompressed layer's identity is its digest.
    configuration["rootfs"]["diff_ids"] = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let manifest = layout.manifest(&configuration, &layers);
    layout.tag(manifest, name);
    layout.write_archive(archive, Compression::None);
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.end(Signal::SIGTERM);
        }
        unmount_below(&self.directory);
        remove_empty_cgroups(Path::new("/sys/fs/cgroup/default"));
        if self.has_run {
            let _ = fs::remove_dir_all(RUN);
        }
        // The shims make a directory for each namespace of containerd's and keep it. A container in it would keep it from being
        // removed. `moby` is docker's.
        for directory in ["default", "containerd/default", "containerd/moby", "containerd"] {
            let _ = fs::remove_dir(self.host.run_directory().join(directory));
        }
    }
}
