//! `husk exec` and `husk kill`: more processes in a sandbox that runs.

use std::time::Duration;

use husk_tests::{Host, busybox};
use nix::sys::signal::Signal;

#[test]
fn an_exec_is_a_process_with_choices_of_its_own() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).env("FROM=run").sandbox("box");
    let script = "
        echo user=$(id -u):$(id -g); echo groups=$(id -G); echo pwd=$(pwd); echo home=$HOME; echo from=$FROM; echo own=$OWN
        echo first=$(cat /proc/1/comm); echo hostname=$(hostname)
        echo to stderr >&2; cat; exit 11";
    let husk = sandbox
        .husk()
        .user("tester")
        .workdir("/tmp")
        .env("OWN=mine")
        .input("from stdin\n");
    let outcome = husk.exec("box", ["sh", "-c", script]);
    outcome
        .exits(11)
        .complains("to stderr\n")
        .states("user", "1234:1235")
        .states("groups", "1235 29 44");
    outcome
        .states("pwd", "/tmp")
        .states("home", "/home/tester")
        .states("own", "mine")
        .states("from", "run");
    // The same namespaces as the container's first process.
    outcome.states("first", "sh").states("hostname", "box");
    assert!(outcome.stdout().ends_with("from stdin\n"), "the end of {outcome}");

    sandbox.exec(["/bin/true"]).exits(0).prints("").is_quiet();
    sandbox.exec(["no-such-command"]).fails(127, &["no-such-command"]);
    sandbox.exec(["/opt/plain"]).fails(126, &["/opt/plain"]);
    sandbox
        .husk()
        .user("nobody-here")
        .exec("box", ["true"])
        .fails(125, &["nobody-here"]);
    // A failed exec leaves a sandbox that works.
    sandbox.exec(["echo", "fine"]).exits(0).prints("fine\n");
    sandbox.end();
}

#[test]
fn two_hundred_execs_leave_the_sandbox_as_it_was() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).sandbox("many");
    let count = |sandbox: &husk_tests::Sandbox<'_>| {
        // The shell alone: how many programs a pipeline has started when one of them looks is chance.
        let script = "set -- /proc/[0-9]*; echo processes=$#";
        sandbox.exec(["sh", "-c", script]).exits(0).number("processes")
    };
    let (processes, descriptors) = (count(&sandbox), sandbox.vmm().descriptors());
    for round in 0..25 {
        // Eight at a time.
        let running: Vec<_> = (0..8)
            .map(|index| {
                let number = round * 8 + index;
                let script = format!("echo {number}; exit {}", number % 100);
                (number, sandbox.husk().start_exec("many", ["sh", "-c", &script]))
            })
            .collect();
        for (number, running) in running {
            running
                .finish()
                .exits(number % 100)
                .prints(&format!("{number}\n"))
                .is_quiet();
        }
    }
    assert_eq!(count(&sandbox), processes, "processes in the guest before and after");
    assert_eq!(
        sandbox.vmm().descriptors(),
        descriptors,
        "descriptors of husk-vmm before and after"
    );
    sandbox.end();
}

#[test]
fn a_signal_to_an_exec_is_one_to_its_process_alone() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).sandbox("signals");
    let mut first = sandbox.husk().start_exec(
        "signals",
        ["sh", "-c", "trap 'exit 21' TERM; echo a; sleep 1000 & wait"],
    );
    let mut second = sandbox
        .husk()
        .start_exec("signals", ["sh", "-c", "echo b; exec sleep 1000"]);
    first.await_output("a\n");
    second.await_output("b\n");
    first.signal(Signal::SIGTERM);
    first.finish().exits(21);
    second.signal(Signal::SIGTERM);
    second.finish().exits(128 + 15);
    sandbox.end();
}

#[test]
fn a_killed_exec_takes_its_process_with_it_and_nothing_else() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).sandbox("killed");
    let mut exec = sandbox
        .husk()
        .start_exec("killed", ["sh", "-c", "echo up; exec cat /dev/zero"]);
    exec.await_output("up\n").signal(Signal::SIGKILL);
    exec.finish().dies_of(Signal::SIGKILL);
    // Its streams are closed, so it cannot write any more; the sandbox knows nothing of that.
    sandbox
        .exec(["sh", "-c", "while pidof cat >/dev/null; do :; done; echo gone"])
        .exits(0)
        .prints("gone\n");
    sandbox.end();
}

#[test]
fn the_end_of_the_sandbox_is_the_end_of_its_execs() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).sandbox("ends");
    let mut exec = sandbox
        .husk()
        .start_exec("ends", ["sh", "-c", "echo up; exec sleep 1000"]);
    exec.await_output("up\n");
    sandbox.end();
    let outcome = exec.finish();
    assert!(!outcome.succeeded(), "a process that was killed in {outcome}");
    host.husk().exec("ends", ["true"]).fails(125, &["ends"]);
}

#[test]
fn a_name_that_nothing_has_is_an_error_that_says_it() {
    let host = Host::new();
    host.husk().exec("nothing-here", ["true"]).fails(125, &["nothing-here"]);
    host.husk()
        .command(["kill", "nothing-here"])
        .fails(125, &["nothing-here"]);
    host.husk()
        .command(["console", "nothing-here"])
        .fails(125, &["nothing-here"]);
    host.husk().exec("../escape", ["true"]).fails(125, &["../escape"]);
    let list = host.husk().within(Duration::from_secs(20)).command(["list"]);
    list.exits(0);
    assert!(list.stdout().lines().count() <= 1, "only a heading in {list}");
}

#[test]
fn a_name_belongs_to_one_sandbox_at_a_time() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).sandbox("taken");
    host.husk()
        .rootfs(busybox())
        .name("taken")
        .run(["true"])
        .fails(125, &["taken"]);
    sandbox.exec(["echo", "undisturbed"]).exits(0).prints("undisturbed\n");
    sandbox.end();
    host.husk()
        .rootfs(busybox())
        .name("taken")
        .run(["echo", "free again"])
        .exits(0)
        .prints("free again\n");
}
