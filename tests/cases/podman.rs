//! podman with husk as its runtime.

use husk_tests::{Host, Podman};

#[test]
fn podman_runs_a_container_to_its_end() {
    let host = Host::new();
    let podman = Podman::new(&host);
    let run = ["run", "--rm", "--network=none", podman.image()];
    let script = ["sh", "-c", "echo out; echo err >&2; exit 7"];
    podman
        .run(run.iter().chain(&script))
        .exits(7)
        .prints("out\n")
        .complains("err\n");
    podman.run(run.iter().chain(&["no-such-command"])).exits(127);
    podman.run(run.iter().chain(&["/opt/plain"])).exits(126);
    let (husk, words) = podman.command(["run", "--rm", "-i", "--network=none", podman.image(), "cat"]);
    let mut cat = husk.open_input().start_command(words);
    cat.send("hello\n").await_output("hello\n").end_input();
    cat.finish().exits(0);
    let (husk, words) = podman.command(["run", "--rm", "-it", "--network=none", podman.image(), "sh"]);
    let mut terminal = husk.command_on_terminal(words);
    terminal
        .shows("#")
        .types("stty size; echo $((6*7))\n")
        .shows("50 132")
        .shows("42");
    terminal.types("exit 3\n");
    terminal.finish().exits(3);
    let inside = "echo $(cat /etc/hostname); test -s /etc/hosts && df /dev/shm | grep -q shm; echo $?; \
                  grep Seccomp: /proc/self/status; mkdir /dev/shm/x";
    let told = podman.run(run.iter().chain(&["sh", "-c", inside]));
    told.exits(0).says("\n0\n").says("Seccomp:\t2");
}

#[test]
fn podman_lives_with_a_running_container() {
    let host = Host::new();
    let podman = Podman::new(&host);
    let script = "trap 'echo ended; exit 9' TERM; echo begun; while :; do sleep 1000 & wait; done";
    let run = [
        "run",
        "-d",
        "--name=box",
        "--network=none",
        "--memory=64m",
        podman.image(),
        "sh",
        "-c",
        script,
    ];
    podman.run(run).exits(0);
    podman.run(["logs", "box"]).exits(0).prints("begun\n");
    podman
        .run(["exec", "-e", "A=b", "box", "sh", "-c", "echo $A; exit 5"])
        .exits(5)
        .prints("b\n");
    let (husk, words) = podman.command(["exec", "-it", "box", "sh"]);
    let mut terminal = husk.command_on_terminal(words);
    terminal
        .shows("#")
        .types("echo $((6*7))\n")
        .shows("42")
        .types("exit 4\n");
    terminal.finish().exits(4);
    podman.run(["top", "box", "-o", "pid,comm"]).exits(0).says("sleep");
    let status = |expected: &str| {
        let told = podman.run(["inspect", "--format={{.State.Status}}", "box"]);
        told.exits(0).prints(&format!("{expected}\n"));
    };
    status("running");
    podman.run(["pause", "box"]).exits(0);
    status("paused");
    podman.run(["unpause", "box"]).exits(0);
    status("running");
    podman
        .run(["stats", "--no-stream", "--format={{.Name}} {{.PIDs}}", "box"])
        .exits(0)
        .says("box ");
    podman.run(["stop", "box"]).exits(0);
    podman.run(["wait", "box"]).exits(0).prints("9\n");
    podman.run(["logs", "box"]).exits(0).prints("begun\nended\n");
    podman.run(["start", "box"]).exits(0);
    podman.run(["kill", "box"]).exits(0);
    podman.run(["wait", "box"]).exits(0).prints("137\n");
    podman.run(["rm", "box"]).exits(0);
}
