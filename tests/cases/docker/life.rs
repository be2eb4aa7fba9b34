//! Containers that go on: what docker says of them, does to them, and does when they end.

use husk_tests::Process;
use serde_json::Value;

use super::once::sized;
use super::{Peer, WAITS, each};

#[test]
fn what_is_done_to_a_container_that_runs() {
    each(|peer| {
        let limits = ["--memory=100m", "--pids-limit=50"];
        peer.detached(&limits, "box", WAITS);
        execs(peer);
        figures(peer);
        limits_are_changed(peer);
        pause(peer);
        signals(peer);
        peer.remove(&["box"]);
    });
}

fn execs(peer: &Peer<'_>) {
    let script = "until [ -e /ready ]; do sleep 0.1; done
        cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; echo error >&2; exit 4";
    let told = peer.exec("box", script);
    told.exits(4).prints("104857600\n50\n").complains("error\n");
    let missing = peer.docker.run(["exec", "box", "/no/such"]);
    missing
        .exits(127)
        .says("\"/no/such\"")
        .says("no such file or directory");
    let mut terminal = peer.on_terminal(["exec", "--interactive", "--tty", "box", "sh"]);
    terminal.shows("#").types(sized("50 132")).shows("size=42");
    terminal.resize(24, 80).types(sized("24 80")).shows("size=42");
    terminal.types("exit 6\n");
    terminal.finish().exits(6);
}

fn figures(peer: &Peer<'_>) {
    let told = peer.docker.run(["stats", "--no-stream", "--format=json", "box"]);
    let stats: Value = serde_json::from_str(told.exits(0).stdout().trim()).unwrap();
    let figure = |name: &str| stats[name].as_str().unwrap().to_owned();
    let is_some = |text: &str| text.starts_with(|first: char| first.is_ascii_digit()) && !text.starts_with("0B");
    let (usage, limit) = (figure("MemUsage"), " / 100MiB");
    assert!(is_some(&usage) && usage.ends_with(limit), "{told}");
    assert_ne!(figure("CPUPerc"), "0.00%", "{told}");
    assert!(figure("PIDs").parse::<u32>().is_ok_and(|count| count > 0), "{told}");
    // docker looks for the processes on the host.
    let top = peer.docker.run(["top", "box", "-o", "pid,comm"]);
    let pid = peer.inspect("box", "{{.State.Pid}}");
    let line = top
        .exits(0)
        .stdout()
        .lines()
        .find(|line| line.starts_with(&pid))
        .unwrap();
    assert_eq!(
        line.split_whitespace().nth(1),
        Some(if peer.is_husk() { "husk-vmm" } else { "sh" })
    );
}

fn limits_are_changed(peer: &Peer<'_>) {
    let words = [
        "update",
        "--memory=150m",
        "--memory-swap=150m",
        "--cpus=0.5",
        "--pids-limit=60",
        "box",
    ];
    peer.docker.run(words).exits(0);
    let told = peer.exec("box", "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max");
    told.exits(0).prints("157286400\n50000 100000\n60\n");
}

fn pause(peer: &Peer<'_>) {
    peer.docker.run(["pause", "box"]).exits(0);
    assert_eq!(peer.inspect("box", "{{.State.Status}}"), "paused");
    peer.docker
        .run(["exec", "box", "true"])
        .exits(1)
        .mentions(&["is paused"]);
    peer.docker.run(["unpause", "box"]).exits(0);
}

fn signals(peer: &Peer<'_>) {
    let (husk, words) = peer.docker.command(["logs", "--follow", "box"]);
    let mut logs = husk.start_command(words);
    logs.await_output("started\n");
    peer.docker.run(["kill", "--signal=HUP", "box"]).exits(0);
    logs.await_output("hangup\n");
    peer.docker.run(["stop", "--timeout=60", "box"]).exits(0);
    logs.finish().exits(0).prints("started\nhangup\n");
    assert_eq!(peer.inspect("box", "{{.State.Status}} {{.State.ExitCode}}"), "exited 9");
    // Once more, with its streams on docker's.
    let (husk, words) = peer.docker.command(["start", "--attach", "box"]);
    let mut attached = husk.start_command(words);
    attached.await_output("started\n");
    peer.docker.run(["kill", "--signal=TERM", "box"]).exits(0);
    attached.finish().exits(9).prints("started\n");
}

#[test]
fn what_docker_does_when_a_container_ends() {
    each(|peer| {
        let stubborn = "trap '' TERM; echo ready; while :; do sleep 1000; done";
        peer.detached(&[], "stubborn", stubborn);
        let (husk, words) = peer.docker.command(["logs", "--follow", "stubborn"]);
        let mut logs = husk.start_command(words);
        logs.await_output("ready\n");
        peer.docker.run(["stop", "--timeout=1", "stubborn"]).exits(0);
        logs.finish().exits(0);
        assert_eq!(
            peer.inspect("stubborn", "{{.State.Status}} {{.State.ExitCode}}"),
            "exited 137"
        );
        peer.detached(&["--restart=on-failure:2"], "failing", "echo try; exit 3");
        let template = "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}";
        peer.await_inspection("failing", template, |state| state == "2 exited 3");
        peer.docker.run(["logs", "failing"]).exits(0).prints("try\ntry\ntry\n");
        always(peer);
        peer.remove(&["stubborn", "failing", "lasting"]);
    });
}

/// A container that is to run always is started again when what stands for it on the host is killed: its first process,
/// or its machine.
fn always(peer: &Peer<'_>) {
    peer.detached(&["--restart=always"], "lasting", WAITS);
    let pid = peer.inspect("lasting", "{{.State.Pid}}").parse().unwrap();
    Process::find(pid).unwrap().kill();
    let template = "{{.RestartCount}} {{.State.Status}}";
    peer.await_inspection("lasting", template, |state| state == "1 running");
    peer.exec("lasting", "until [ -e /ready ]; do sleep 0.1; done").exits(0);
}
