//! `husk stop` and `husk kill` without a signal: how containers are asked to end.

use std::fs;

use husk_tests::images::{Compression, Layout, config};
use husk_tests::{Host, Husk, Tar, busybox, prepared};
use serde_json::json;

/// Says what it hears; ends when it hears QUIT, with 5, or TERM, with 3.
const LISTENER: &str = "trap 'echo quit; exit 5' QUIT; trap 'echo term; exit 3' TERM; echo up; \
                        while :; do sleep 1000 & wait; done";

fn detached<'h>(host: &'h Host, name: &str) -> Husk<'h> {
    host.husk().rootfs(busybox()).name(name).option("--detach")
}

/// Waits until a container has said that it listens.
fn await_up(host: &Host, name: &str) {
    host.husk()
        .start_command(["logs", "--follow", name])
        .await_output("up\n");
}

#[test]
fn a_container_is_asked_to_end_and_one_that_does_not_listen_is_killed() {
    let host = Host::new();
    detached(&host, "polite").run(["sh", "-c", LISTENER]).exits(0);
    await_up(&host, "polite");
    // The first process of a pid namespace gets no signal for which it has no handler.
    detached(&host, "deaf").run(["sleep", "1000"]).exits(0);
    host.husk()
        .command(["stop", "polite"])
        .exits(0)
        .prints("polite\n")
        .is_quiet();
    host.husk().command(["wait", "polite"]).exits(0).prints("3\n");
    host.husk()
        .command(["stop", "--time", "0", "polite", "nobody", "deaf"])
        .reports(&["nobody", "does not exist"])
        .prints("polite\ndeaf\n");
    host.husk().command(["wait", "deaf"]).exits(0).prints("137\n");
    for name in ["polite", "deaf"] {
        host.husk().command(["rm", name]).exits(0);
    }
}

#[test]
fn one_that_was_created_and_not_started_is_stopped_too() {
    let host = Host::new();
    let bundle = husk_tests::Bundle::of_script(&host, busybox(), "echo never");
    let container = husk_tests::Container::create(&host, &bundle, "waiting");
    container.husk("stop").exits(0).prints("waiting\n");
    assert_eq!(container.wait(), 143);
    container.delete();
}

#[test]
fn a_detached_image_is_stopped_with_its_own_signal() {
    let host = Host::with_own_image_cache();
    let program = fs::read(prepared::busybox().join("bin/busybox")).unwrap();
    let base = Tar::new()
        .directory("bin/", 0o755)
        .file("bin/busybox", 0o755, program)
        .symlink("bin/sh", "busybox")
        .symlink("bin/sleep", "busybox");
    let mut layout = Layout::new();
    let configuration = config(json!({
        "Entrypoint": ["sh", "-c", LISTENER], "Env": ["PATH=/bin"], "StopSignal": "SIGQUIT",
    }));
    let descriptor = layout.image(configuration, &[(base, Compression::Gzip)]);
    layout.tag(descriptor, "latest");
    let directory = host.scratch().join("image");
    layout.write_directory(&directory);
    for (command, log, code) in [("stop", "up\nquit\n", "5\n"), ("kill", "up\nterm\n", "3\n")] {
        host.husk()
            .name(command)
            .option("--detach")
            .option("--image")
            .option(&directory)
            .run_bundle()
            .exits(0)
            .prints(&format!("{command}\n"));
        await_up(&host, command);
        host.husk().command([command, command]).exits(0).is_quiet();
        host.husk().command(["wait", command]).exits(0).prints(code);
        host.husk().command(["logs", command]).exits(0).prints(log);
        host.husk().command(["rm", command]).exits(0);
    }
}
