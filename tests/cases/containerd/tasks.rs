//! What a runtime's shim does while nothing goes wrong.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use husk_tests::{Bundle, Event, Process, Release, busybox};
use serde_json::json;

use super::{Peer, cases};

cases! {
    exit_codes,
    streams,
    input,
    output_is_complete,
    logs,
    readers,
    terminals,
    execs,
    users,
    signals,
    pause,
    figures,
    out_of_memory,
    detached_and_attached,
    events,
    deletion_of_a_running_task,
    read_only,
    snapshotters,
    at_once,
    hooks,
}

/// A process that can be told to end: it says so when it is ready to be, by a file.
const WAITS: &str = "trap 'exit 9' TERM; touch /ready; while :; do sleep 1000 & wait; done";

fn exit_codes(peer: &mut Peer<'_>) {
    peer.once("zero", &["true"]).exits(0).prints("").is_quiet();
    peer.once("seven", &["sh", "-c", "exit 7"])
        .exits(7)
        .prints("")
        .is_quiet();
    let missing = peer.once("missing", &["/no/such"]);
    missing
        .exits(1)
        .prints("")
        .mentions(&["/no/such", "no such file or directory"]);
    let plain = peer.once("plain", &["/opt/plain"]);
    plain.exits(1).prints("").mentions(&["/opt/plain", "permission denied"]);
}

fn streams(peer: &mut Peer<'_>) {
    let told = peer.once("streams", &["sh", "-c", "echo out; echo err >&2; printf unfinished"]);
    told.exits(0).prints("out\nunfinished").complains("err\n");
    // A process that stays in the background has the streams and does not keep the container from its end.
    let told = peer.once("background", &["sh", "-c", "sleep 1000 & echo out; exit 3"]);
    told.exits(3).prints("out\n");
}

fn input(peer: &mut Peer<'_>) {
    // ctr forgets that its stdin has ended if that is before the task is made: so it ends when the process has answered.
    let start = |words: Vec<String>| {
        let (husk, words) = peer.containerd.ctr(words);
        let mut running = husk.open_input().start_command(words);
        running.await_output("up\n");
        running
    };
    let mut echo = start(peer.words(&["--rm"], "echo", &["sh", "-c", "echo up; cat; echo end"]));
    echo.send("hello\n").await_output("hello\n").end_input();
    echo.finish().exits(0).prints("up\nhello\nend\n");
    let mut much = start(peer.words(&["--rm"], "much", &["sh", "-c", "echo up; wc -c"]));
    much.send(vec![b'x'; 1 << 20]).end_input();
    much.finish().exits(0).prints("up\n1048576\n");
    peer.detached("box", WAITS);
    let exec = Peer::exec_words("box", "cat", &["sh", "-c", "echo up; wc -c; exit 4"]);
    let mut exec = start(exec.iter().map(|word| (*word).to_owned()).collect());
    exec.send("12345").end_input();
    exec.finish().exits(4).prints("up\n5\n");
    peer.remove("box");
}

fn output_is_complete(peer: &mut Peer<'_>) {
    let script = "head -c 1048576 /dev/zero | tr '\\0' x; head -c 65537 /dev/zero | tr '\\0' y >&2";
    let told = peer.once("much", &["sh", "-c", script]);
    told.exits(0).prints(&"x".repeat(1 << 20)).complains(&"y".repeat(65537));
}

/// Output that goes to a file or to another program.
fn logs(peer: &mut Peer<'_>) {
    let host = peer.containerd.host();
    let place = |name: &str| host.scratch().join(format!("{name}.{}", peer.runtime));
    let lines = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let logger = place("logger");
    // It says that it is ready by closing its third pipe. runc's shim ends it without waiting for what is left to read.
    let script = "#!/bin/sh\ntrap '' TERM\necho \"$CONTAINER_NAMESPACE $CONTAINER_ID $*\" > $2\nexec 5>&-\n\
                  cat <&3 >> $2\ncat <&4 >> $2\n";
    fs::write(&logger, script).unwrap();
    fs::set_permissions(&logger, Permissions::from_mode(0o755)).unwrap();
    let (file, taken, taken_of_exec) = (place("file"), place("taken"), place("exec"));
    let program = |taken: &Path| format!("binary://{}?to={}", logger.display(), taken.display());
    let script = "echo out; echo err >&2; exit 3";
    let mut events = peer.containerd.events();
    for (id, log) in [
        ("file", format!("file://{}", file.display())),
        ("program", program(&taken)),
    ] {
        let words = peer.words(&["--detach", "--log-uri", &log], id, &["sh", "-c", script]);
        peer.containerd.run(words).exits(0).prints("");
        assert_eq!(events.until_end(id), 3);
        peer.task(&["delete", id]).exits(0).mentions(&["exit code 3"]);
        peer.containerd.run(["containers", "delete", id]).exits(0);
    }
    assert_eq!(lines(&file), ["err", "out"]);
    let told = format!("default program to {}", taken.display());
    assert_eq!(lines(&taken), [&*told, "err", "out"]);
    peer.detached("box", WAITS);
    let log = program(&taken_of_exec);
    let exec = ["tasks", "exec", "--exec-id", "e", "--log-uri", &log, "box"];
    peer.containerd
        .run([&exec[..], &["sh", "-c", script]].concat())
        .exits(3)
        .prints("");
    assert_eq!(lines(&taken_of_exec)[1..], ["err", "out"]);
    peer.remove("box");
}

/// Readers that do not read, or that vanish, hold the process up and nobody else.
fn readers(peer: &mut Peer<'_>) {
    let script = "x=$(head -c 1000 /dev/zero | tr '\\0' x); while :; do echo $x; echo $x >> /written; done";
    peer.detached("box", script);
    let is_held_up = || {
        let size = "s=$(stat -c %s /written)";
        let script = format!("until {size}; l=$s; sleep 1; {size}; [ $l = $s ]; do :; done");
        peer.exec("box", "size", &["sh", "-c", &script]).exits(0);
    };
    is_held_up();
    let (husk, words) = peer.containerd.ctr(["tasks", "attach", "box"]);
    let mut attached = husk.start_command(words);
    attached.await_output("xxx");
    attached.process().kill();
    drop(attached);
    is_held_up();
    let mut events = peer.containerd.events();
    peer.task(&["kill", "--signal", "SIGKILL", "box"]).exits(0);
    assert_eq!(events.until_end("box"), 137);
    peer.task(&["delete", "box"]).exits(0).mentions(&["exit code 137"]);
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
}

fn terminals(peer: &mut Peer<'_>) {
    // The size comes after the process has begun.
    let sized = |size: &str| format!("until [ \"$(stty size)\" = '{size}' ]; do sleep 0.1; done; echo size=$((6*7))\n");
    let mut terminal = peer.on_terminal(peer.words(&["--rm", "-t"], "tty", &["sh"]));
    terminal
        .shows("#")
        .types("tty; echo $((6*7))\n")
        .shows("/dev/")
        .shows("42");
    terminal.types(sized("50 132")).shows("size=42");
    terminal.resize(24, 80).types(sized("24 80")).shows("size=42");
    terminal.types("exit 3\n");
    terminal.finish().exits(3);
    peer.detached("box", WAITS);
    let mut terminal = peer.on_terminal(["tasks", "exec", "--exec-id", "e", "-t", "box", "sh"]);
    terminal
        .shows("#")
        .types(sized("50 132"))
        .shows("size=42")
        .types("exit 4\n");
    terminal.finish().exits(4);
    peer.remove("box");
}

fn execs(peer: &mut Peer<'_>) {
    peer.detached("box", WAITS);
    let told = peer.exec("box", "one", &["sh", "-c", "echo inside; echo err >&2; exit 5"]);
    told.exits(5).prints("inside\n").complains("err\n");
    // An id is free again when its process has been deleted.
    peer.exec("box", "one", &["cat", "/upper"]).exits(0).prints("upper\n");
    let missing = peer.exec("box", "none", &["/no/such"]);
    missing
        .exits(1)
        .prints("")
        .mentions(&["/no/such", "no such file or directory"]);
    peer.exec("box", "after", &["pwd"]).exits(0).prints("/\n");
    let told = peer
        .containerd
        .run(["tasks", "exec", "--exec-id", "e", "--cwd", "/tmp", "box", "pwd"]);
    told.exits(0).prints("/tmp\n");
    peer.remove("box");
}

fn users(peer: &mut Peer<'_>) {
    peer.detached("box", WAITS);
    let who = ["sh", "-c", "id -u; id -g"];
    for user in ["tester", "1234"] {
        let words = [&["tasks", "exec", "--exec-id", "e", "--user", user, "box"], &who[..]].concat();
        peer.containerd.run(words).exits(0).prints("1234\n1235\n");
    }
    peer.remove("box");
    // The ctr of 1.6 has no such option.
    if peer.release == Release::Built {
        let words = peer.words(&["--rm", "--user", "1234:29"], "user", &who);
        peer.containerd.run(words).exits(0).prints("1234\n29\n");
    }
}

fn signals(peer: &mut Peer<'_>) {
    let mut events = peer.containerd.events();
    peer.detached("box", WAITS);
    peer.await_file("box", "/ready");
    let pid = peer.pid("box");
    peer.task(&["kill", "box"]).exits(0);
    assert_eq!(events.until_end("box"), 9);
    // The process that stands for the task goes with it, though nobody has deleted it yet.
    assert!(Process::find(pid.cast_signed()).is_none(), "process {pid}");
    peer.task(&["list"]).exits(0).says("STOPPED");
    let again = peer.task(&["kill", "box"]);
    again.exits(1).mentions(&["process already finished"]);
    peer.task(&["delete", "box"]).exits(0).mentions(&["exit code 9"]);
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
    peer.detached("hard", "trap '' TERM; touch /ready; while :; do sleep 1000; done");
    peer.await_file("hard", "/ready");
    peer.task(&["kill", "hard"]).exits(0);
    peer.task(&["list"]).exits(0).says("RUNNING");
    peer.task(&["kill", "--signal", "SIGKILL", "hard"]).exits(0);
    assert_eq!(events.until_end("hard"), 137);
    peer.task(&["delete", "hard"]).exits(0).mentions(&["exit code 137"]);
    peer.containerd.run(["containers", "delete", "hard"]).exits(0);
}

fn pause(peer: &mut Peer<'_>) {
    peer.detached("box", WAITS);
    peer.task(&["pause", "box"]).exits(0);
    peer.task(&["list"]).exits(0).says("PAUSED");
    let refused = peer.exec("box", "e", &["true"]);
    refused.exits(1).mentions(&["paused"]);
    peer.task(&["resume", "box"]).exits(0);
    peer.task(&["list"]).exits(0).says("RUNNING");
    peer.exec("box", "f", &["echo", "resumed"]).exits(0).prints("resumed\n");
    // What is paused can be killed.
    let mut events = peer.containerd.events();
    peer.task(&["pause", "box"]).exits(0);
    peer.task(&["kill", "--signal", "SIGKILL", "box"]).exits(0);
    assert_eq!(events.until_end("box"), 137);
    peer.task(&["delete", "box"]).exits(0);
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
}

fn figures(peer: &mut Peer<'_>) {
    peer.detached("box", WAITS);
    let metrics = peer.task(&["metrics", "--format", "json", "box"]);
    let metrics: serde_json::Value = serde_json::from_str(metrics.exits(0).stdout()).unwrap();
    for (part, figure) in [("memory", "usage"), ("cpu", "usage_usec"), ("pids", "current")] {
        assert!(
            metrics[part][figure].as_u64().is_some_and(|value| value > 0),
            "{part}.{figure} in {metrics}"
        );
    }
    let told = peer.task(&["ps", "box"]);
    let pids = told.exits(0).stdout().lines().skip(1);
    let pids: Vec<u32> = pids
        .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
        .collect();
    assert!(!pids.is_empty(), "{told}");
    // Of husk's all others are the guest's.
    assert!(pids.contains(&peer.pid("box")), "the task's process in {told}");
    peer.remove("box");
}

fn out_of_memory(peer: &mut Peer<'_>) {
    let mut events = peer.containerd.events();
    let limit = (32 << 20).to_string();
    // The shell survives what it has started.
    let script = "tail /dev/zero; exec sleep 1000";
    let words = peer.words(&["--detach", "--memory-limit", &limit], "box", &["sh", "-c", script]);
    peer.containerd.run(words).exits(0);
    let seen = events.until("box", |event| event.topic == "oom");
    assert!(!seen.iter().any(Event::is_end), "{seen:?}");
    peer.remove("box");
}

fn detached_and_attached(peer: &mut Peer<'_>) {
    let mut events = peer.containerd.events();
    peer.detached(
        "box",
        "echo first; until [ -e /go ]; do sleep 0.1; done; echo last; exit 7",
    );
    // What was said before somebody listened was kept for the first who does.
    let (husk, words) = peer.containerd.ctr(["tasks", "attach", "box"]);
    let mut attached = husk.open_input().start_command(words);
    attached.await_output("first\n");
    peer.exec("box", "go", &["touch", "/go"]).exits(0);
    attached.finish().exits(7).prints("first\nlast\n");
    assert_eq!(events.until_end("box"), 7);
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
}

fn events(peer: &mut Peer<'_>) {
    // runc's shim of containerd 2 ends without having told of all that happened when its task was deleted.
    let tells_all = !(peer.is_runc() && peer.release == Release::Built);
    let is_last = |event: &Event| {
        if tells_all {
            event.topic == "delete"
        } else {
            event.is_end()
        }
    };
    let are = |seen: &[Event], topics: &[&str]| {
        let seen_topics: Vec<_> = seen.iter().map(|event| &*event.topic).collect();
        let is_told = |topic: &&str| tells_all || *topic != "delete";
        let topics: Vec<_> = topics.iter().copied().filter(is_told).collect();
        assert_eq!(seen_topics, topics, "{seen:?}");
    };
    let mut events = peer.containerd.events();
    for round in 0..5 {
        let id = format!("quick-{round}");
        // It may end before Start has answered.
        if tells_all {
            peer.once(&id, &["sh", "-c", "exit 7"]).exits(7);
        } else {
            peer.detached(&id, "exit 7");
            events.until_end(&id);
            peer.task(&["delete", &id]).exits(0);
            peer.containerd.run(["containers", "delete", &id]).exits(0);
        }
        let seen = events.until(&id, is_last);
        are(&seen, &["create", "start", "exit", "delete"]);
        assert_eq!(seen[2].body["id"], *id, "{seen:?}");
        for end in &seen[2..] {
            let expected = (&seen[0].body["pid"], &7.into());
            assert_eq!((&end.body["pid"], &end.body["exit_status"]), expected, "{seen:?}");
        }
    }
    peer.detached("box", WAITS);
    peer.exec("box", "e", &["sh", "-c", "exit 5"]).exits(5);
    let seen = events.until("box", |event| event.topic == "exit");
    are(&seen, &["create", "start", "exec-added", "exec-started", "exit"]);
    assert_eq!(
        (&seen[4].body["id"], &seen[4].body["exit_status"]),
        (&"e".into(), &5.into()),
        "{seen:?}"
    );
    peer.task(&["pause", "box"]).exits(0);
    peer.task(&["resume", "box"]).exits(0);
    peer.remove("box");
    let seen = events.until("box", is_last).split_off(5);
    are(&seen, &["paused", "resumed", "exit", "delete"]);
    assert_eq!(
        (&seen[2].body["id"], &seen[2].body["exit_status"]),
        (&"box".into(), &137.into()),
        "{seen:?}"
    );
}

fn deletion_of_a_running_task(peer: &mut Peer<'_>) {
    peer.detached("box", WAITS);
    peer.task(&["delete", "box"])
        .exits(1)
        .mentions(&["must be stopped before deletion"]);
    peer.containerd
        .run(["containers", "delete", "box"])
        .exits(1)
        .mentions(&["non stopped"]);
    peer.exec("box", "e", &["echo", "alive"]).exits(0).prints("alive\n");
    peer.remove("box");
}

fn read_only(peer: &mut Peer<'_>) {
    let words = peer.words(&["--rm", "--read-only"], "fixed", &["touch", "/x"]);
    peer.containerd.run(words).exits(1).mentions(&["read-only file system"]);
    peer.once("free", &["touch", "/x"]).exits(0);
}

fn snapshotters(peer: &mut Peer<'_>) {
    for snapshotter in ["overlayfs", "native"] {
        // Each container has a root of its own.
        for id in ["one", "two"] {
            let script =
                "cat /upper; test ! -e /mine && echo mine > /mine && rm /upper && stat -c '%a %u %g' /tmp /opt/private";
            let words = peer.words(&["--rm", "--snapshotter", snapshotter], id, &["sh", "-c", script]);
            peer.containerd.run(words).exits(0).prints("upper\n1777 0 0\n600 0 0\n");
        }
    }
}

fn at_once(peer: &mut Peer<'_>) {
    let start = |number: usize| {
        let (id, script) = (format!("box-{number}"), format!("echo {number}; exit {number}"));
        let (husk, words) = peer.containerd.ctr(peer.words(&["--rm"], &id, &["sh", "-c", &script]));
        husk.start_command(words)
    };
    let running: Vec<_> = (0..10).map(start).collect();
    for (number, running) in running.into_iter().enumerate() {
        running
            .finish()
            .exits(number.try_into().unwrap())
            .prints(&format!("{number}\n"));
    }
}

/// A `prestart` hook, as docker had one until its version 23 to set up the container's network namespace: it finds that of
/// the process that it is told of.
fn hooks(peer: &mut Peer<'_>) {
    let host = peer.containerd.host();
    let state = host.scratch().join("state");
    let script = |end: &str| {
        format!(
            "cat > {0}; pid=$(grep -o '\"pid\":[0-9]*' {0}); readlink /proc/${{pid#*:}}/ns/net >> {0}; {end}",
            state.display()
        )
    };
    let run = |id: &str, hook: &str| {
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script(hook)], "env": ["PATH=/bin:/usr/bin"]}]);
        let bundle = Bundle::of_script(host, busybox(), "echo process").with("/root/path", json!(busybox()));
        // Without a cgroup namespace runc mounts the host's hierarchy anew, with other options.
        let bundle = bundle.without_mount("/sys/fs/cgroup");
        let bundle = bundle.with("/hooks", json!({ "prestart": hook }));
        let config = bundle.path().join("config.json");
        let words = [
            "run",
            "--rm",
            "--runtime",
            peer.runtime,
            "--config",
            config.to_str().unwrap(),
            id,
        ];
        let told = peer.containerd.run(words);
        (told, fs::read_to_string(&state).unwrap())
    };
    let (told, state) = run("passing", "exit 0");
    told.exits(0).prints("process\n");
    let (state, network) = state.rsplit_once("net:").unwrap_or_else(|| panic!("{state}"));
    assert!(state.contains("\"id\":\"passing\""), "{state}");
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(format!("net:{}", network.trim_end()), own.to_str().unwrap());
    let (told, _) = run("failing", "echo reason >&2; exit 7");
    told.exits(1)
        .prints("")
        .mentions(&["hook", "exit status", "7", "reason"]);
}
