//! Containers of one command, and of one that docker cannot start.

use std::fs;

use super::{Peer, each};

#[test]
fn what_is_asked_for_on_the_command_line() {
    each(|peer| {
        options(peer);
        commands_that_cannot_be_executed(peer);
        terminal(peer);
        what_the_host_has(peer);
    });
}

fn options(peer: &Peer<'_>) {
    let options = [
        "--network=none",
        "--rm",
        "--interactive",
        "--init",
        "--read-only",
        "--tmpfs=/small:size=1m",
        "--user=1234:29",
        "--cap-drop=ALL",
        "--cap-add=CHOWN",
        "--memory=100m",
        "--pids-limit=50",
        "--env=NAME=value",
        "--workdir=/opt",
        "--hostname=box",
    ];
    let script = "echo up; cat; echo end
        echo who=$(id -u):$(id -g)
        echo env=$NAME
        echo directory=$PWD
        echo host=$(hostname)
        echo first=$(cat /proc/1/comm)
        echo capabilities=$(awk '/CapBnd/{print $2}' /proc/self/status)
        echo memory=$(cat /sys/fs/cgroup/memory.max)
        echo pids=$(cat /sys/fs/cgroup/pids.max)
        touch /new 2>/dev/null && echo root=writable || echo root=fixed
        echo small=$(awk '$2 == \"/small\"{print $3, $4}' /proc/mounts | grep -o '^tmpfs\\|size=1024k' | tr '\\n' ' ')
        echo interfaces=$(ls /sys/class/net)
        echo error >&2
        exit 5";
    let (husk, words) = peer.docker.command(peer.words(&options, &["sh", "-c", script]));
    let mut running = husk.open_input().start_command(words);
    running
        .await_output("up\n")
        .send("typed\n")
        .await_output("typed\n")
        .end_input();
    let told = running.finish();
    told.exits(5)
        .says("up\ntyped\nend\n")
        .states("who", "1234:29")
        .states("env", "value")
        .states("directory", "/opt")
        .states("host", "box")
        .states("first", "docker-init")
        .states("capabilities", "0000000000000001")
        .states("memory", "104857600")
        .states("pids", "50")
        .states("root", "fixed")
        .states("small", "tmpfs size=1024k")
        .states("interfaces", "lo")
        .mentions(&["error\n"]);
}

fn commands_that_cannot_be_executed(peer: &Peer<'_>) {
    let missing = peer.once(&[], &["/no/such"]);
    missing
        .exits(127)
        .prints("")
        .mentions(&["/no/such", "no such file or directory"]);
    let plain = peer.once(&[], &["/opt/plain"]);
    plain
        .exits(126)
        .prints("")
        .mentions(&["/opt/plain", "permission denied"]);
}

fn terminal(peer: &Peer<'_>) {
    let options = ["--network=none", "--rm", "--interactive", "--tty"];
    let mut terminal = peer.on_terminal(peer.words(&options, &["sh"]));
    terminal
        .shows("#")
        .types("tty; echo $((6*7))\n")
        .shows("/dev/")
        .shows("42");
    terminal.types(sized("50 132")).shows("size=42");
    terminal.resize(24, 80).types(sized("24 80")).shows("size=42");
    terminal.types("exit 3\n");
    terminal.finish().exits(3);
}

/// Keys that wait until the terminal has this size: docker sets it after the process has begun.
pub(super) fn sized(size: &str) -> String {
    format!("until [ \"$(stty size)\" = '{size}' ]; do sleep 0.1; done; echo size=$((6*7))\n")
}

/// A machine of its own has neither: what husk cannot do it refuses by name.
fn what_the_host_has(peer: &Peer<'_>) {
    let directory = peer.docker.host().scratch().join("volume");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("file"), "on the host\n").unwrap();
    let volume = format!("--volume={}:/data", directory.display());
    let read = peer.once(&[&volume], &["cat", "/data/file"]);
    let network = ["--rm", "--network=host"];
    let network = peer.docker.run(peer.words(&network, &["true"]));
    if peer.is_husk() {
        let directory = directory.to_str().unwrap();
        read.exits(125)
            .prints("")
            .mentions(&["mounts[", directory, "on the host"]);
        network.exits(125).prints("").mentions(&["host's network"]);
    } else {
        read.exits(0).prints("on the host\n");
        network.exits(0);
    }
}
