//! Pods through containerd's CRI, as Kubernetes makes them.

use std::thread;
use std::time::{Duration, Instant};

use husk_tests::{Cri, Host, Process, Release};
use serde_json::{Value, json};

/// How long a container may take to end, and a pod to be seen without its machine.
const LIMIT: Duration = Duration::from_secs(60);

/// `CONTAINER_EXITED` and `SANDBOX_NOTREADY` of the CRI.
const EXITED: u64 = 2;
const NOT_READY: u64 = 1;

/// Asks until the answer is as it should be.
#[track_caller]
fn await_answer(cri: &Cri<'_>, method: &str, request: &Value, is_it: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = cri.call(method, request);
        if is_it(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{method} answers {answer}");
        thread::sleep(Duration::from_millis(500));
    }
}

fn a_pods_containers_share_a_machine(release: Release, sandboxer: &str) {
    let host = Host::new();
    let cri = Cri::start(&host, release, sandboxer);
    let pod = cri.run_pod();
    let one = cri.run_container(&pod, "one", "hostname; exec sleep 1000");
    let two = cri.run_container(&pod, "two", "hostname; echo error >&2; exit 3");
    let status = await_answer(&cri, "ContainerStatus", &json!({"container_id": two}), |answer| {
        answer["status"]["state"] == EXITED
    });
    assert_eq!(status["status"]["exit_code"], 3, "{status}");
    let said = cri.log("two");
    assert!(
        said.contains("stdout F the-pod\n") && said.contains("stderr F error\n"),
        "{said}"
    );
    assert_eq!(cri.exec(&one, "test $(cat /sys/fs/cgroup/memory.max) = 104857600"), 0);
    // The machine holds what the pod may use: 400 MiB.
    let total = "test $(awk '/MemTotal/{print $2}' /proc/meminfo) -gt 409600";
    assert_eq!((cri.exec(&one, total), cri.exec(&one, "exit 4")), (0, 4));
    // What a command leaves behind may speak after it, and late: "early\nlate\n", in base64.
    let late = cri.exec_output(&one, "(sleep 4; echo late) & echo early");
    assert_eq!(late, "ZWFybHkKbGF0ZQo=");
    let machines = host.new_processes();
    let machines = machines.iter().filter(|process| process.name == "husk-vmm").count();
    assert_eq!(machines, 1, "one machine for all");
    let stats = cri.call("ContainerStats", &json!({"container_id": one}));
    assert!(
        stats["stats"]["memory"]["usage_bytes"]["value"].as_u64() > Some(0),
        "{stats}"
    );
    for container in [&one, &two] {
        cri.call("StopContainer", &json!({"container_id": container}));
        cri.call("RemoveContainer", &json!({"container_id": container}));
    }
    cri.call("StopPodSandbox", &json!({"pod_sandbox_id": pod}));
    cri.call("RemovePodSandbox", &json!({"pod_sandbox_id": pod}));
}

#[test]
fn a_pod_of_debians_containerd() {
    a_pods_containers_share_a_machine(Release::Debian, "podsandbox");
}

#[test]
fn a_pod_whose_sandbox_is_a_container() {
    a_pods_containers_share_a_machine(Release::Built, "podsandbox");
}

#[test]
fn a_pod_whose_sandbox_is_the_shim() {
    a_pods_containers_share_a_machine(Release::Built, "shim");
}

#[test]
fn a_pod_loses_its_machine() {
    let host = Host::new();
    let cri = Cri::start(&host, Release::Built, "podsandbox");
    let pod = cri.run_pod();
    let container = cri.run_container(&pod, "one", "exec sleep 1000");
    let is_machine = |process: &&Process| process.name == "husk-vmm";
    host.new_processes().iter().find(is_machine).expect("a machine").kill();
    let ended = await_answer(&cri, "ContainerStatus", &json!({"container_id": container}), |answer| {
        answer["status"]["state"] == EXITED
    });
    assert_eq!(ended["status"]["exit_code"], 137, "{ended}");
    await_answer(&cri, "PodSandboxStatus", &json!({"pod_sandbox_id": pod}), |answer| {
        answer["status"]["state"] == NOT_READY
    });
    cri.call("RemovePodSandbox", &json!({"pod_sandbox_id": pod}));
}

/// containerd asks the shim to end when it deletes the sandbox's container, and not again when the others go.
#[test]
fn a_pod_loses_its_pause() {
    let host = Host::new();
    let cri = Cri::start(&host, Release::Built, "podsandbox");
    let pod = cri.run_pod();
    let container = cri.run_container(&pod, "one", "exec sleep 1000");
    let kill = ["--namespace", "k8s.io", "tasks", "kill", "--signal", "KILL", &pod];
    cri.containerd().run(kill).exits(0);
    await_answer(&cri, "PodSandboxStatus", &json!({"pod_sandbox_id": pod}), |answer| {
        answer["status"]["state"] == NOT_READY
    });
    cri.call("StopContainer", &json!({"container_id": container}));
    cri.call("RemoveContainer", &json!({"container_id": container}));
    cri.call("RemovePodSandbox", &json!({"pod_sandbox_id": pod}));
}
