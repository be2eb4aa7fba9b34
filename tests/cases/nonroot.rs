//! Without root: whoever may open /dev/kvm may use husk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use husk_tests::{Host, busybox, copy};

/// The unprivileged user of the tests.
const NOBODY: u32 = 65534;

/// A home of nobody's.
fn home(host: &Host) -> PathBuf {
    let home = host.scratch().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    home
}

#[test]
fn a_user_who_may_open_kvm_runs_lists_and_enters_sandboxes() {
    let host = Host::new();
    let home = home(&host);
    let tree = host.scratch().join("tree");
    copy(busybox(), &tree);
    let husk = || {
        let husk = host
            .husk()
            .as_nobody()
            .without_variable("HUSK_ROOT")
            .without_variable("HUSK_IMAGE_CACHE");
        husk.variable("HOME", &home)
    };
    // The image needs every file, and one of them is for root alone.
    let private = tree.join("opt/private");
    let outcome = husk().rootfs(&tree).run(["true"]);
    outcome.fails(125, &[private.to_str().unwrap(), "Permission denied"]);
    fs::remove_file(private).unwrap();
    let mut sandbox =
        husk()
            .rootfs(&tree)
            .name("mine")
            .start(["sh", "-c", "id -u; trap 'exit 9' TERM; echo up; sleep 1000 & wait"]);
    sandbox.await_output("0\nup\n");
    let run = fs::metadata(format!("/tmp/husk-{NOBODY}")).expect("the run directory of a user without a session");
    assert_eq!(
        (run.uid(), run.permissions().mode() & 0o777),
        (NOBODY, 0o700),
        "owner and mode of the run directory"
    );
    assert!(home.join(".cache/husk/images").is_dir(), "the user's own image cache");
    husk().exec("mine", ["echo", "inside"]).exits(0).prints("inside\n");
    assert!(
        husk().command(["list"]).stdout().contains("mine"),
        "the user's own sandbox is listed"
    );
    assert!(
        !host.husk().command(["list"]).stdout().contains("mine"),
        "root has a run directory of its own"
    );
    husk().command(["kill", "mine", "TERM"]).exits(0);
    sandbox.finish().exits(9);
}

#[test]
fn a_run_directory_of_somebody_elses_is_not_trusted() {
    let host = Host::new();
    let home = home(&host);
    let place = PathBuf::from(format!("/tmp/husk-{NOBODY}"));
    // From an earlier test, and then empty.
    let _ = fs::remove_dir(&place);
    let husk = || {
        let husk = host
            .husk()
            .as_nobody()
            .without_variable("HUSK_ROOT")
            .variable("HOME", &home);
        husk.variable("HUSK_IMAGE_CACHE", home.join("images")).rootfs(busybox())
    };
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
    let outcome = husk().run(["true"]);
    fs::remove_dir_all(&place).unwrap();
    outcome.fails(125, &[place.to_str().unwrap()]);
    std::os::unix::fs::symlink(&home, &place).unwrap();
    let outcome = husk().run(["true"]);
    fs::remove_file(&place).unwrap();
    outcome.fails(125, &[place.to_str().unwrap()]);
}
