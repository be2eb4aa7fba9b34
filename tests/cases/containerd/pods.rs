//! Pods through containerd's CRI, as Kubernetes makes them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
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

/// What a kubelet mounts into a container that asks for nothing (a token, a file for its last words), and of a ConfigMap;
/// gives the mounts.
fn kubelets_files(directory: &Path) -> Value {
    let pod = directory.join("kubelet/pods/uid");
    let volume = |kind: &str, name: &str, file: &str, contents: &str| {
        let volume = pod.join("volumes").join(kind).join(name);
        fs::create_dir_all(volume.join("..2026_11_27")).expect("make a volume");
        fs::write(volume.join("..2026_11_27").join(file), contents).expect("write a volume's file");
        symlink("..2026_11_27", volume.join("..data")).expect("link a volume's files");
        symlink(format!("..data/{file}"), volume.join(file)).expect("link a volume's file");
        volume
    };
    let token = volume("kubernetes.io~projected", "kube-api-access", "token", "token ");
    let map = volume("kubernetes.io~configmap", "settings", "key", "key ");
    let part = pod.join("volume-subpaths/settings/box/0");
    let words = pod.join("containers/box/1234");
    for (file, contents) in [(&part, "part"), (&words, "")] {
        fs::create_dir_all(file.parent().expect("a directory")).expect("make a directory");
        fs::write(file, contents).expect("write a file");
    }
    json!([
        {"container_path": "/var/run/secrets/kubernetes.io/serviceaccount", "host_path": token, "readonly": true},
        {"container_path": "/etc/app", "host_path": map, "readonly": true},
        {"container_path": "/etc/part", "host_path": part, "readonly": true},
        {"container_path": "/dev/termination-log", "host_path": words},
    ])
}

/// Waits until a pod is seen without its sandbox.
#[track_caller]
fn await_end(cri: &Cri<'_>, pod: &str) {
    await_answer(cri, "PodSandboxStatus", &json!({"pod_sandbox_id": pod}), |answer| {
        answer["status"]["state"] == NOT_READY
    });
}

/// Stops and removes a pod with its containers.
#[track_caller]
fn remove(cri: &Cri<'_>, pod: &str, containers: &[&str]) {
    for container in containers {
        cri.call("StopContainer", &json!({"container_id": container}));
        cri.call("RemoveContainer", &json!({"container_id": container}));
    }
    cri.call("StopPodSandbox", &json!({"pod_sandbox_id": pod}));
    cri.call("RemovePodSandbox", &json!({"pod_sandbox_id": pod}));
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
    let mounts = kubelets_files(host.scratch());
    let script = "cat /var/run/secrets/kubernetes.io/serviceaccount/token /etc/app/key /etc/part; echo; \
                  echo last > /dev/termination-log; touch /etc/app/new || echo fixed";
    let three = cri.run_container_with(&pod, "three", script, &mounts);
    await_answer(&cri, "ContainerStatus", &json!({"container_id": three}), |answer| {
        answer["status"]["state"] == EXITED
    });
    let said = cri.log("three");
    assert!(
        said.contains("stdout F token key part\n") && said.contains("stdout F fixed\n"),
        "{said}"
    );
    if release == Release::Built {
        // As the kubelet tells that a pod is resized. It goes on to its containers.
        let resources = json!({"memory_limit_in_bytes": 300 << 20});
        cri.call(
            "UpdatePodSandboxResources",
            &json!({"pod_sandbox_id": pod, "resources": resources}),
        );
    }
    let stats = cri.call("ContainerStats", &json!({"container_id": one}));
    assert!(
        stats["stats"]["memory"]["usage_bytes"]["value"].as_u64() > Some(0),
        "{stats}"
    );
    remove(&cri, &pod, &[&one, &two, &three]);
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
    await_end(&cri, &pod);
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
    await_end(&cri, &pod);
    remove(&cri, &pod, &[&container]);
}

/// Where no container stands for the sandbox its namespaces have a process in the guest all the same.
#[test]
fn a_pod_whose_sandbox_is_the_shim_loses_its_namespaces() {
    let host = Host::new();
    let cri = Cri::start(&host, Release::Built, "shim");
    let pod = cri.run_pod();
    let container = cri.run_container(&pod, "one", "kill 1; exec sleep 1000");
    await_end(&cri, &pod);
    remove(&cri, &pod, &[&container]);
}

/// A pod outlives many containerds, each of which waits for the end of its containers.
#[test]
fn a_shim_keeps_nothing_of_containerds_that_have_gone() {
    let host = Host::new();
    let mut cri = Cri::start(&host, Release::Built, "podsandbox");
    let pod = cri.run_pod();
    let container = cri.run_container(&pod, "one", "exec sleep 1000");
    let shim = cri.containerd().shim(&pod);
    let before = shim.descriptors();
    for _ in 0..4 {
        cri.restart();
        assert_eq!(cri.exec(&container, "exit 5"), 5);
    }
    let deadline = Instant::now() + LIMIT;
    while shim.descriptors() > before {
        let now = shim.descriptors();
        assert!(Instant::now() < deadline, "{before} descriptors before, {now} now");
        thread::sleep(Duration::from_millis(500));
    }
    remove(&cri, &pod, &[&container]);
}
