use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;

use super::*;
use crate::confinement::Confinement;

fn root(dir: &tempfile::TempDir) -> RunRoot {
    RunRoot::open(&dir.path().join("run")).unwrap()
}

fn state(name: &str) -> State {
    State {
        name: name.into(),
        pid: 1,
        vmm_pid: 2,
        created: 3,
        cpus: 4,
        memory_mib: 5,
        console: false,
        containers: Vec::new(),
        cgroup: None,
        confinement: Confinement::default(),
        kept: false,
        exit: None,
    }
}

/// Makes a directory as an owner leaves it that is killed.
fn abandon(root: &RunRoot, name: &str) {
    let (dir, lock) = root.make(name).unwrap();
    UnixListener::bind(short_path(&dir, VSOCK)).unwrap();
    drop(lock);
}

#[test]
fn a_sandbox_is_found_until_its_owner_removes_it() {
    let dir = tempfile::tempdir().unwrap();
    let owner = root(&dir).create("box").unwrap();
    assert!(
        matches!(root(&dir).find("box"), Err(RunDirError::NotFound(_))),
        "not yet"
    );
    owner.write_state(&state("box")).unwrap();
    assert_eq!(root(&dir).find("box").unwrap().state, state("box"));
    assert!(root(&dir).find("box").unwrap().running().is_ok());
    assert_eq!(root(&dir).list().unwrap()[0].state, state("box"));
    assert!(matches!(root(&dir).create("box"), Err(RunDirError::InUse(_))));
    owner.remove().unwrap();
    assert!(matches!(root(&dir).find("box"), Err(RunDirError::NotFound(_))));
    let next = root(&dir).create("box").unwrap();
    owner.remove().unwrap();
    next.write_state(&state("box")).unwrap();
    assert_eq!(
        root(&dir).list().unwrap().len(),
        1,
        "the name's new owner is left alone"
    );
}

#[test]
fn what_the_dead_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    abandon(&root(&dir), "dead");
    assert!(path.join("dead").exists());
    root(&dir).list().unwrap();
    assert!(!path.join("dead").exists());
    abandon(&root(&dir), "dead");
    root(&dir).prune("dead").unwrap();
    assert!(!path.join("dead").exists());
    abandon(&root(&dir), "dead");
    root(&dir).create("dead").unwrap();
    fs::create_dir(path.join(".husk-half")).unwrap();
    fs::write(path.join(".husk-half/lock"), "").unwrap();
    assert!(root(&dir).list().unwrap().is_empty());
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn what_is_kept_stays_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let owner = root(&dir).create("box").unwrap();
    let kept = State {
        kept: true,
        ..state("box")
    };
    owner.write_state(&kept).unwrap();
    assert!(matches!(root(&dir).forget("box"), Err(RunDirError::Running(_))));
    drop(owner);
    root(&dir).prune("box").unwrap();
    let found = root(&dir).list().unwrap();
    assert!(!found[0].alive && found[0].state == kept);
    assert!(matches!(root(&dir).create("box"), Err(RunDirError::InUse(_))));
    let found = root(&dir).find("box").unwrap();
    assert!(matches!(found.running(), Err(RunDirError::Stopped(_))));
    root(&dir).forget("box").unwrap();
    assert!(matches!(root(&dir).forget("box"), Err(RunDirError::NotFound(_))));
    assert_eq!(fs::read_dir(dir.path().join("run")).unwrap().count(), 0);
}

#[test]
fn an_impossible_name_is_shown_in_part() {
    for name in ["", "../x", "a/b", &"x".repeat(5000), "é"] {
        assert!(check_name(name).unwrap_err().to_string().len() < 250, "{name:.10}");
    }
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(&dir);
    let path = dir.path().join("run");
    for foreign in ["empty", "project", "locked", ".husk-like"] {
        fs::create_dir(path.join(foreign)).unwrap();
    }
    for file in [
        "file",
        "project/state.json",
        "locked/lock",
        "locked/thesis.tex",
        ".husk-like/thesis.tex",
    ] {
        fs::write(path.join(file), "precious").unwrap();
    }
    assert!(root.list().unwrap().is_empty());
    for foreign in [
        "empty",
        "project/state.json",
        "locked/lock",
        "locked/thesis.tex",
        "file",
        ".husk-like/thesis.tex",
    ] {
        assert!(path.join(foreign).exists(), "{foreign}");
    }
    assert!(matches!(root.create("project"), Err(RunDirError::InUse(_))));
}

#[test]
fn an_owner_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    drop(root(&dir).create("box").unwrap());
    assert_eq!(fs::read_dir(dir.path().join("run")).unwrap().count(), 0);
}

#[test]
fn sockets_are_reached_below_paths_of_any_length() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
    let owner = RunRoot::open(&deep).unwrap().create("box").unwrap();
    owner.write_state(&state("box")).unwrap();
    let listener = UnixListener::bind(short_path(owner.dir(), VSOCK)).unwrap();
    let found = RunRoot::open(&deep).unwrap().find("box").unwrap();
    UnixStream::connect(short_path(found.dir(), VSOCK)).unwrap();
    listener.accept().unwrap();
}

#[test]
fn a_root_that_others_can_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(RunRoot::open(&path), Err(RunDirError::Unsafe(_))));
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/tmp", &link).unwrap();
    assert!(RunRoot::open(&link).is_err());
}

#[test]
fn a_process_survives_the_way_through_the_state() {
    let choice = crate::bundle::Standard {
        args: vec!["sh".into()],
        terminal: false,
        hostname: "box".into(),
    };
    let bundle = crate::bundle::Bundle::standard(Path::new("/"), &choice).unwrap();
    let kept = ContainerProcess::from(&*bundle.request.process);
    let text = serde_json::to_string(&kept).unwrap();
    let read: ContainerProcess = serde_json::from_str(&text).unwrap();
    let mut process = husk_protocol::agent::Process::from(&read);
    process.stdio = bundle.request.process.stdio.clone();
    assert_eq!(process, *bundle.request.process);
}

proptest! {
    #[test]
    fn accepted_names_are_plain(name in "\\PC{0,70}") {
        if check_name(&name).is_ok() {
            prop_assert!(!name.contains('/') && !name.starts_with('.') && name.len() <= MAX_NAME);
        }
    }
}
