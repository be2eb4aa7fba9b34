//! The root file systems that the tests use.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::host::scratch_directory;
use crate::prepared;

static SHARED: OnceLock<PathBuf> = OnceLock::new();
static BUSYBOX: OnceLock<PathBuf> = OnceLock::new();
static DEBIAN: OnceLock<PathBuf> = OnceLock::new();

/// Users and groups of [`busybox`].
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ntester:x:1234:1235:a tester:/home/tester:/bin/sh\n";
const GROUP: &str = "root:x:0:\ntester:x:1235:\naudio:x:29:tester\nvideo:x:44:tester,root\n";

/// Busybox, and what the tests look for in it:
///
/// - the user `tester` (1234), of the group `tester` (1235), who is in `audio` (29) and `video` (44) too;
/// - `/opt/plain`, a text that may not be executed, `/opt/no-format`, which may but is no program, and
///   `/opt/no-interpreter`, a script whose interpreter is not there;
/// - `/home/tester`, the user's own, and `/opt/private`, root's alone.
///
/// # Panics
/// `cargo xtask test` has not prepared it.
pub fn busybox() -> &'static Path {
    BUSYBOX.get_or_init(|| {
        let complete = shared().join("busybox");
        if complete.exists() {
            return complete;
        }
        let tree = shared().join(format!("busybox-{}", std::process::id()));
        copy(&prepared::busybox(), &tree);
        for directory in ["etc", "opt", "proc", "sys", "dev", "tmp", "root", "home", "home/tester"] {
            fs::create_dir_all(tree.join(directory)).expect("make a directory");
        }
        let write = |path: &str, text: &str, mode: u32| {
            let path = tree.join(path);
            fs::write(&path, text).expect("write a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set a file's mode");
        };
        write("etc/passwd", PASSWD, 0o644);
        write("etc/group", GROUP, 0o644);
        write("opt/plain", "a text\n", 0o644);
        write("opt/no-format", "\u{1}\u{2}\u{3} no program\n", 0o755);
        write("opt/no-interpreter", "#!/opt/nothing\n", 0o755);
        write("opt/private", "root's\n", 0o600);
        fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("set a directory's mode");
        std::os::unix::fs::chown(tree.join("home/tester"), Some(1234), Some(1235)).expect("give a directory away");
        fs::rename(&tree, &complete).expect("rename a directory");
        complete
    })
}

/// Debian's minbase with python3. It lies beside [`busybox`] under another name, so that all users can read it.
///
/// # Panics
/// `cargo xtask test` has not prepared it.
pub fn debian() -> &'static Path {
    DEBIAN.get_or_init(prepared::debian)
}

/// What all tests share: the directory that `cargo xtask test` names, or one that is removed when the program ends.
pub(crate) fn shared() -> &'static Path {
    SHARED.get_or_init(|| {
        if let Some(path) = std::env::var_os("HUSK_TEST_SHARED") {
            return path.into();
        }
        // SAFETY: the function stays where it is, and may be called when main has returned: it only removes files.
        let registered = unsafe { libc::atexit(remove_shared) };
        assert_eq!(registered, 0, "register the removal of the tests' directory");
        scratch_directory().keep()
    })
}

extern "C" fn remove_shared() {
    if let Some(path) = SHARED.get() {
        // Nobody is left to be told.
        let _ = fs::remove_dir_all(path);
    }
}

/// Copies a file or a tree with owners, modes, links and times.
///
/// # Panics
/// It cannot be copied.
pub fn copy(from: &Path, to: &Path) {
    let parent = to.parent().expect("a path below the root");
    fs::create_dir_all(parent).expect("make a directory");
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}
