//! The ground a test stands on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use tempfile::TempDir;

use crate::leftovers::{OWN_PREFIX, Snapshot};
use crate::{Husk, Process, diagnosis, trees};

/// One test at a time: the check for leftovers looks at the whole machine.
static TURN: Mutex<()> = Mutex::new(());

/// A machine on which husk has not been yet, as far as can be seen, and must not have been afterwards.
#[derive(Debug)]
pub struct Host {
    before: Snapshot,
    image_cache: PathBuf,
    scratch: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Host {
    /// Waits for its turn, prepares empty directories and remembers what the machine looks like.
    ///
    /// # Panics
    /// The caller is not root, or a directory cannot be made.
    #[expect(
        clippy::new_without_default,
        reason = "it waits, makes directories and looks at the machine"
    )]
    pub fn new() -> Self {
        Self::prepare(|_| trees::shared().join("images"))
    }

    /// The same with an image cache of its own instead of the one that all tests share.
    ///
    /// # Panics
    /// As [`Host::new`].
    pub fn with_own_image_cache() -> Self {
        Self::prepare(|scratch| scratch.join("images"))
    }

    fn prepare(image_cache: impl FnOnce(&Path) -> PathBuf) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            nix::unistd::geteuid().is_root(),
            "the end-to-end tests need root: run `cargo xtask test`"
        );
        adopt_orphans();
        let scratch = scratch_directory();
        fs::create_dir(scratch.path().join("run")).expect("make the run directory");
        let image_cache = image_cache(scratch.path());
        fs::create_dir_all(&image_cache).expect("make the image cache");
        let before = Snapshot::take(&[&scratch.path().join("run")]);
        Self {
            before,
            image_cache,
            scratch,
            _turn: turn,
        }
    }

    /// Begins a command.
    pub fn husk(&self) -> Husk<'_> {
        Husk::new(self)
    }

    /// A directory of the test's own, readable by everybody.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// What `--root` is.
    pub fn run_directory(&self) -> PathBuf {
        self.scratch.path().join("run")
    }

    /// Where converted root file systems are kept.
    pub fn image_cache(&self) -> &Path {
        &self.image_cache
    }

    /// The processes of husk's that were not there when the test began.
    pub fn new_processes(&self) -> Vec<Process> {
        self.before.new_processes()
    }

    /// Waits for what is still ending, then says what is there that was not there before; empty when there is nothing.
    pub fn leftovers(&self) -> String {
        self.before.leftovers()
    }

    /// Fails if anything is left.
    ///
    /// # Panics
    /// Something is left; it is named.
    #[track_caller]
    pub fn is_clean(&self) -> &Self {
        let left = self.leftovers();
        assert!(
            left.is_empty(),
            "left behind:\n{left}{}",
            diagnosis::describe(&self.run_directory())
        );
        self
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // So that the next test does not suffer from this one.
            self.new_processes().iter().for_each(Process::kill);
            self.leftovers();
        } else {
            self.is_clean();
        }
    }
}

/// A new directory in /tmp that the check for leftovers knows as the tests' own.
pub(crate) fn scratch_directory() -> TempDir {
    let scratch = tempfile::Builder::new()
        .prefix(OWN_PREFIX)
        .tempdir_in("/tmp")
        .expect("make a directory in /tmp");
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("open the directory to all users");
    scratch
}

/// What a killed husk leaves running becomes this program's child, and so can be found.
fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| nix::sys::prctl::set_child_subreaper(true).expect("become the parent of orphans"));
}
