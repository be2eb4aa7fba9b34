//! containerd's shim for runc with husk in runc's place.

use husk_tests::{Containerd, Host, busybox};

#[test]
fn runcs_shim_runs_containers() {
    let host = Host::new();
    let containerd = Containerd::start(&host);
    let options = containerd.options();
    let run = |more: &[&str]| {
        let fixed = ["run".to_owned()].into_iter().chain(options.clone());
        fixed
            .chain(more.iter().map(|word| (*word).to_owned()))
            .collect::<Vec<_>>()
    };
    let root = busybox().to_str().unwrap();
    let once = run(&["--rm", "--rootfs", root, "once", "/bin/sh", "-c", "echo out; exit 7"]);
    containerd.run(once).exits(7).prints("out\n");
    let (husk, words) = containerd.ctr(run(&["--rm", "-t", "--rootfs", root, "tty", "/bin/sh"]));
    let mut terminal = husk.command_on_terminal(words);
    terminal
        .shows("#")
        .types("echo $((6*7))\n")
        .shows("42")
        .shows("#")
        .types("exit 3\n");
    terminal.finish().exits(3);
    let script = "trap 'exit 9' TERM; while :; do sleep 1000 & wait; done";
    containerd
        .run(run(&["-d", "--rootfs", root, "box", "/bin/sh", "-c", script]))
        .exits(0);
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "box",
        "/bin/sh",
        "-c",
        "echo inside; exit 5",
    ];
    containerd.run(exec).exits(5).prints("inside\n");
    containerd.run(["tasks", "ps", "box"]).exits(0);
    containerd.run(["tasks", "pause", "box"]).exits(0);
    containerd.run(["tasks", "list"]).exits(0).says("PAUSED");
    containerd.run(["tasks", "resume", "box"]).exits(0);
    containerd.run(["tasks", "kill", "--signal", "TERM", "box"]).exits(0);
    containerd
        .run(["tasks", "delete", "box"])
        .exits(0)
        .mentions(&["exit code 9"]);
    containerd.run(["containers", "delete", "box"]).exits(0);
}
