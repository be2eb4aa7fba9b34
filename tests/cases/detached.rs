//! Containers that no command waits for: `husk run --detach` and what a person does with them.

use std::time::Duration;

use husk_tests::{Host, Husk, busybox};
use serde_json::Value;

fn detached<'h>(host: &'h Host, name: &str) -> Husk<'h> {
    host.husk().rootfs(busybox()).name(name).option("--detach")
}

#[test]
fn a_detached_container_is_logged_waited_for_and_removed() {
    let host = Host::new();
    let script = "echo out; echo err >&2; printf unfinished; exit 4";
    detached(&host, "web")
        .run(["sh", "-c", script])
        .exits(0)
        .prints("web\n")
        .is_quiet();
    host.husk().command(["wait", "web"]).exits(0).prints("4\n").is_quiet();
    let logs = host.husk().command(["logs", "web"]);
    logs.exits(0).prints("out\nunfinished").complains("err\n");
    host.husk()
        .command(["logs", "--tail", "1", "web"])
        .exits(0)
        .says("unfinished");
    let stamped = host.husk().command(["logs", "--timestamps", "web"]);
    assert!(
        stamped.stdout().starts_with("20") && stamped.stdout().contains("Z out\n"),
        "{stamped}"
    );
    let list = host.husk().command(["list"]);
    assert!(
        list.stdout().contains("web") && list.stdout().contains("stopped"),
        "{list}"
    );
    let inspected = host.husk().command(["inspect", "web"]);
    let all: Value = serde_json::from_str(inspected.stdout()).expect("JSON");
    assert_eq!(
        (&all[0]["status"], &all[0]["exit"]["status"]),
        (&"stopped".into(), &4.into())
    );
    detached(&host, "web").run(["true"]).fails(125, &["web", "exists"]);
    host.husk().command(["rm", "web"]).exits(0).is_quiet();
    host.husk()
        .command(["rm", "web"])
        .fails(125, &["web", "does not exist"]);
}

#[test]
fn a_running_one_is_entered_followed_and_removed_by_force() {
    let host = Host::new();
    let script = "trap 'echo last; exit 3' TERM; echo first; while :; do sleep 1000 & wait; done";
    detached(&host, "busy")
        .run(["sh", "-c", script])
        .exits(0)
        .prints("busy\n");
    let mut follower = host.husk().start_command(["logs", "--follow", "busy"]);
    follower.await_output("first\n");
    host.husk().exec("busy", ["echo", "inside"]).exits(0).prints("inside\n");
    host.husk().command(["rm", "busy"]).fails(125, &["busy", "running"]);
    let waiter = host.husk().start_command(["wait", "busy"]);
    host.husk().command(["kill", "busy", "TERM"]).exits(0);
    waiter.finish().exits(0).prints("3\n");
    follower.finish().exits(0).prints("first\nlast\n").is_quiet();
    host.husk().command(["rm", "busy"]).exits(0);
    detached(&host, "busy").run(["sleep", "1000"]).exits(0);
    host.husk().command(["rm", "--force", "busy"]).exits(0).is_quiet();
}

#[test]
fn one_that_removes_itself_leaves_nothing() {
    let host = Host::new();
    let husk = detached(&host, "gone").option("--rm").within(Duration::from_secs(300));
    husk.run(["sh", "-c", "sleep 1; exit 6"]).exits(0).prints("gone\n");
    // Its code is known to those who asked while it ran. Who comes when it ends, or later, hears that it is gone.
    let waited = host.husk().command(["wait", "gone"]);
    match waited.stdout() {
        "6\n" => waited.exits(0),
        _ => waited.fails(125, &["gone"]),
    };
    host.leftovers();
    host.husk()
        .command(["inspect", "gone"])
        .fails(125, &["gone", "does not exist"]);
}

#[test]
fn a_detached_container_that_cannot_start_is_an_error_and_leaves_nothing() {
    let host = Host::new();
    detached(&host, "broken")
        .run(["no-such-command"])
        .fails(127, &["no-such-command"]);
    host.husk().command(["list", "-q"]).exits(0).prints("");
}
