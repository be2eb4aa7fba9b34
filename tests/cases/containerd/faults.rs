//! What a runtime's shim does when containerd, the shim itself, or what it needs comes to harm.

use std::fs;
use std::path::Path;

use husk_tests::{Bundle, Containerd, Event, Events, Host, Process, Release, SmallDisk, busybox, kill_agent};
use serde_json::json;

use super::{HUSK, Peer, cases};

cases! {
    containerd_is_killed,
    a_task_ends_without_containerd,
    the_shim_is_killed,
}

fn containerd_is_killed(peer: &mut Peer<'_>) {
    peer.detached(
        "box",
        "trap 'exit 9' TERM; touch /ready; while :; do sleep 1000 & wait; done",
    );
    peer.await_file("box", "/ready");
    peer.containerd.crash();
    peer.containerd.restart();
    peer.task(&["list"]).exits(0).says("RUNNING");
    peer.exec("box", "e", &["sh", "-c", "echo inside; exit 5"])
        .exits(5)
        .prints("inside\n");
    let mut events = peer.containerd.events();
    peer.task(&["kill", "box"]).exits(0);
    assert_eq!(events.until_end("box"), 9);
    peer.task(&["delete", "box"]).exits(0).mentions(&["exit code 9"]);
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
}

fn a_task_ends_without_containerd(peer: &mut Peer<'_>) {
    peer.detached("box", "sleep 2; exit 7");
    peer.containerd.crash();
    // Nobody is there to tell of its end. If it has not ended by then, containerd sees it end, which is as well.
    std::thread::sleep(std::time::Duration::from_secs(8));
    peer.containerd.restart();
    // containerd 1.7 and later clean a shim away that names no process, which runc's does when its own has ended.
    if !(peer.is_runc() && peer.release == Release::Built) {
        peer.task(&["delete", "box"]).exits(0).mentions(&["exit code 7"]);
    }
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
}

fn the_shim_is_killed(peer: &mut Peer<'_>) {
    let mut events = peer.containerd.events();
    peer.detached("box", "sleep 1000");
    peer.containerd.shim("box").kill();
    assert_eq!(events.until_end("box"), 137);
    events.until("box", |event| event.topic == "delete");
    peer.task(&["list", "-q"]).exits(0).prints("");
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
}

/// The machine of the only container that there is.
fn machine(host: &Host) -> Process {
    let processes = host.new_processes();
    let machine = processes
        .into_iter()
        .find(|process| process.name == "husk-vmm" && !process.is_zombie());
    machine.expect("a machine")
}

fn start<'h>(containerd: &Containerd<'h>, image: &str) -> Events<'h> {
    let events = containerd.events();
    let words = ["run", "--detach", "--runtime", HUSK, image, "box", "sleep", "1000"];
    containerd.run(words).exits(0);
    events
}

/// Everybody who waits is told of the end, and nothing is left.
#[test]
fn a_machine_comes_to_harm() {
    let host = Host::new();
    let containerd = Containerd::start(&host, Release::Built);
    let image = containerd.import();
    for harm in [Process::kill, kill_agent] {
        let mut events = start(&containerd, &image);
        let (husk, words) = containerd.ctr(["tasks", "attach", "box"]);
        let attached = husk.start_command(words);
        harm(&machine(&host));
        assert_eq!(events.until_end("box"), 137);
        // It deletes the task as well.
        attached.finish().exits(137);
        containerd.run(["containers", "delete", "box"]).exits(0);
    }
}

#[test]
fn a_bundle_vanishes() {
    let host = Host::new();
    let containerd = Containerd::start(&host, Release::Built);
    let image = containerd.import();
    let mut events = start(&containerd, &image);
    let bundle = containerd.state().join("io.containerd.runtime.v2.task/default/box");
    // The root file system is mounted in it: what is in that is the snapshot's.
    for entry in fs::read_dir(&bundle).expect("the bundle").flatten() {
        if entry.file_name() != "rootfs" {
            fs::remove_file(entry.path()).expect("remove the bundle's files");
        }
    }
    let exec = ["tasks", "exec", "--exec-id", "e", "box", "echo", "in"];
    containerd.run(exec).exits(0).prints("in\n");
    containerd.run(["tasks", "kill", "--signal", "KILL", "box"]).exits(0);
    assert_eq!(events.until_end("box"), 137);
    containerd
        .run(["tasks", "delete", "box"])
        .exits(0)
        .mentions(&["exit code 137"]);
    containerd.run(["containers", "delete", "box"]).exits(0);
    assert!(!bundle.exists());
}

/// Where there is no room for the image or for the sandbox's own files the error says so, and nothing is left.
#[test]
fn a_disk_is_full() {
    let host = Host::with_own_image_cache();
    let containerd = Containerd::start(&host, Release::Built);
    let image = containerd.import();
    for (place, size) in [(host.image_cache().to_owned(), "300k"), (host.run_directory(), "4k")] {
        let disk = SmallDisk::mount(&place, size);
        let words = ["run", "--rm", "--runtime", HUSK, &image, "box", "true"];
        let outcome = containerd.run(words);
        outcome.exits(1).mentions(&["no space left"]);
        assert_eq!(disk.files(), Vec::<&Path>::new(), "after {outcome}");
        containerd.run(["tasks", "list", "-q"]).exits(0).prints("");
    }
    let words = ["run", "--rm", "--runtime", HUSK, &image, "box", "echo", "out"];
    containerd.run(words).exits(0).prints("out\n");
}

/// Of a process whose start has been told its end is told too, also when that comes before the start is answered.
#[test]
fn a_machine_is_killed_while_its_container_starts() {
    let host = Host::new();
    let containerd = Containerd::start(&host, Release::Built);
    // Runs on the host when the process runs; what it reads tells the machine's process id.
    let script = "pid=$(grep -o '\"pid\":[0-9]*'); kill -9 ${pid#*:}; sleep 3";
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]);
    let bundle = Bundle::of_script(&host, busybox(), "exec sleep 1000").with("/root/path", json!(busybox()));
    let bundle = bundle
        .without_mount("/sys/fs/cgroup")
        .with("/hooks", json!({ "poststart": hook }));
    let config = bundle.path().join("config.json");
    let mut events = containerd.events();
    let options = ["--detach", "--runtime", HUSK, "--config", config.to_str().unwrap()];
    let told = containerd.run([&["run"], &options[..], &["box"]].concat());
    let seen = events.until("box", Event::is_end);
    assert_eq!(seen.last().unwrap().body["exit_status"], 137, "{told} {seen:?}");
    assert!(seen.iter().any(|event| event.topic == "start"), "{told} {seen:?}");
    containerd.run(["tasks", "delete", "box"]).exits(0);
    containerd.run(["containers", "delete", "box"]).exits(0);
}
