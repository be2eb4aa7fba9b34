//! A container's life against the table of what may be done when.

use std::sync::{Arc, Mutex};

use husk_sandbox::agent::{ContainerStatus, Empty, ProcessesResponse, StartResponse, StateResponse, StatsResponse};
use husk_sandbox::bundle::resources::Update;
use husk_sandbox::lifecycle::{Container, LifecycleError, Status};
use husk_sandbox::rundir::RunDirError;
use proptest::prelude::*;

use super::fake::{Call, Fake, PATIENCE};

/// What is done with a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Start,
    Pause,
    Resume,
    Update,
    Processes,
    Stats,
    Signal,
    Kill,
}

use Deed::{Kill, Pause, Processes, Resume, Signal, Start, Stats};
use Status::{Created, Paused, Running, Stopped};

/// The table: where a deed leads to, if it is allowed (OCI runtime specification, runtime.md; for what that does not
/// tell of, as runc does it).
fn led(from: Status, before_pause: Status, deed: Deed) -> Option<Status> {
    match (deed, from) {
        (_, Stopped | Status::Creating) => None,
        (Start, Created) => Some(Running),
        (Pause, Created | Running) => Some(Paused),
        (Resume, Paused) => Some(before_pause),
        (Start | Pause | Resume, _) => None,
        (Deed::Update | Processes | Stats | Signal, _) => Some(from),
        (Kill, _) => Some(Stopped),
    }
}

/// The agent's side: what it has been asked to do changes its status, and nothing is refused.
struct Agent {
    status: Status,
    before_pause: Status,
    asked: Vec<String>,
}

fn serve(agent: &Mutex<Agent>, mut call: Call<'_>) {
    let mut agent = agent.lock().unwrap();
    let method = call.request.method.clone();
    let kill = call.request.payload.contains(&9) && method == "Kill";
    match method.as_str() {
        "State" => {
            let status = match agent.status {
                Status::Creating => ContainerStatus::CONTAINER_CREATING,
                Created => ContainerStatus::CONTAINER_CREATED,
                Running => ContainerStatus::CONTAINER_RUNNING,
                Paused => ContainerStatus::CONTAINER_PAUSED,
                Stopped => ContainerStatus::CONTAINER_STOPPED,
            };
            return call.answer(&StateResponse {
                status: status.into(),
                ..Default::default()
            });
        }
        "Stats" => call.answer(&StatsResponse::default()),
        "Processes" => call.answer(&ProcessesResponse::default()),
        "Start" => {
            agent.status = Running;
            call.answer(&StartResponse::default());
        }
        _ => {
            match method.as_str() {
                "Pause" => {
                    agent.before_pause = agent.status;
                    agent.status = Paused;
                }
                "Resume" => agent.status = agent.before_pause,
                "Kill" if kill => agent.status = Stopped,
                _ => {}
            }
            call.answer(&Empty::default());
        }
    }
    agent.asked.push(method);
}

fn attempt(container: &Container, deed: Deed) -> Result<(), LifecycleError> {
    match deed {
        Start => container.start(),
        Pause => container.pause(),
        Resume => container.resume(),
        Deed::Update => container.update(&Update::parse(br#"{"pids": {"limit": 5}}"#).unwrap()),
        Processes => container.processes().map(drop),
        Stats => container.stats().map(drop),
        Signal => container.kill(15, false),
        Kill => container.kill(9, false),
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    // The end comes seldom, so that there is a life before it.
    prop_oneof![
        4 => Just(Start),
        6 => Just(Pause),
        6 => Just(Resume),
        2 => Just(Deed::Update),
        2 => Just(Processes),
        2 => Just(Stats),
        2 => Just(Signal),
        1 => Just(Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_life_follows_the_table(deeds in prop::collection::vec(deed(), 1..16)) {
        let agent = Arc::new(Mutex::new(Agent { status: Created, before_pause: Created, asked: Vec::new() }));
        let serving = Arc::clone(&agent);
        let fake = Fake::new(move |call| serve(&serving, call));
        let container = fake.container(PATIENCE);
        let (mut status, mut before_pause) = (Created, Created);
        for deed in deeds {
            agent.lock().unwrap().asked.clear();
            let result = attempt(&container, deed);
            let asked = std::mem::take(&mut agent.lock().unwrap().asked);
            match led(status, before_pause, deed) {
                Some(next) => {
                    prop_assert!(result.is_ok(), "{:?} while {:?}: {:?}", deed, status, result);
                    prop_assert!(!asked.is_empty());
                    if next == Paused && status != Paused {
                        before_pause = status;
                    }
                    status = next;
                }
                // A signal is the guest's to refuse: it alone knows whether there is somebody to send it to.
                None if matches!(deed, Signal | Kill) => {}
                None => {
                    let refused = match &result {
                        Err(LifecycleError::Status { status: named, .. }) => *named == status,
                        Err(LifecycleError::RunDir(RunDirError::Stopped(_))) => status == Stopped,
                        _ => false,
                    };
                    prop_assert!(refused, "{:?} while {:?}: {:?}", deed, status, result);
                    prop_assert!(asked.is_empty(), "the guest was asked: {:?}", asked);
                }
            }
            prop_assert_eq!(container.status().unwrap(), status);
        }
    }
}
