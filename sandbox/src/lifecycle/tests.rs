use super::*;
use crate::confinement::Confinement;
use crate::rundir::{RunDir, State};

const PATIENCE: Duration = Duration::from_secs(5);

/// A sandbox without a machine, whose owner is this process.
fn sandbox(dir: &tempfile::TempDir, kept: bool) -> (RunRoot, RunDir) {
    let root = RunRoot::open(&dir.path().join("run")).unwrap();
    let owner = RunRoot::open(&dir.path().join("run")).unwrap().create("box").unwrap();
    let state = State {
        name: "box".into(),
        pid: std::process::id(),
        vmm_pid: 0,
        created: 0,
        cpus: 1,
        memory_mib: 128,
        console: false,
        containers: Vec::new(),
        cgroup: None,
        confinement: Confinement::default(),
        kept,
        exit: None,
    };
    owner.write_state(&state).unwrap();
    (root, owner)
}

#[test]
fn a_container_that_is_being_created_can_do_nothing_yet() {
    let dir = tempfile::tempdir().unwrap();
    let (root, _owner) = sandbox(&dir, false);
    let container = Container::find(&root, "box", PATIENCE).unwrap();
    assert_eq!(container.status().unwrap(), Status::Creating);
    for result in [
        container.start(),
        container.pause(),
        container.resume(),
        container.kill(15, false),
    ] {
        assert!(matches!(
            result,
            Err(LifecycleError::Status {
                status: Status::Creating,
                ..
            })
        ));
    }
    assert!(container.owner(&root).unwrap().is_some());
    let waited = container.wait(&root, Some(Duration::from_millis(1)));
    assert!(matches!(waited, Err(LifecycleError::Alive { .. })));
    let deleted = container.delete(&root, false);
    assert!(matches!(deleted, Err(LifecycleError::RunDir(RunDirError::Running(_)))));
}

#[test]
fn a_stopped_container_can_be_waited_for_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (root, owner) = sandbox(&dir, true);
    drop(owner);
    let container = Container::find(&root, "box", PATIENCE).unwrap();
    assert_eq!(container.status().unwrap(), Status::Stopped);
    assert!(container.owner(&root).unwrap().is_none());
    container.wait(&root, None).unwrap();
    let killed = container.kill(9, false).unwrap_err();
    assert!(
        killed.means_stopped() || matches!(killed, LifecycleError::Status { .. }),
        "{killed}"
    );
    container.delete(&root, false).unwrap();
    let again = Container::find(&root, "box", PATIENCE).unwrap_err();
    assert!(again.to_string().contains("does not exist"), "{again}");
}

#[test]
fn statuses_have_the_specifications_names() {
    let all = [
        Status::Creating,
        Status::Created,
        Status::Running,
        Status::Paused,
        Status::Stopped,
    ];
    for status in all {
        assert_eq!(serde_json::to_string(&status).unwrap(), format!("\"{status}\""));
    }
}
