//! husk, its machine monitor and the guest's agent, killed in each phase of a container's way: nothing is left behind of
//! any.

use husk_tests::{Bundle, Container, Host, Outcome, Running, busybox, kill_agent};
use nix::sys::signal::Signal;

/// What the log says when a phase is over, in the order of a run.
const PHASES: [&str; 9] = [
    "husk-vmm started",
    "image found",
    "disk attached",
    "agent ready",
    "agent connected",
    "streams connected",
    "container created",
    "process started",
    "exit reported",
];

/// A run in which `phase` has just ended. The image is there; the process goes on until its input ends.
fn reached<'h>(host: &'h Host, phase: &str) -> Running<'h> {
    let husk = host
        .husk()
        .rootfs(busybox())
        .name("phases")
        .variable("HUSK_LOG", "debug");
    let mut running = husk
        .option("--interactive")
        .open_input()
        .start(["sh", "-c", "read line; exit 3"]);
    if phase == "exit reported" {
        running.await_complaint("process started").end_input();
    }
    running.await_complaint(phase);
    running
}

fn prepare(host: &Host) {
    host.husk().rootfs(busybox()).run(["true"]).exits(0);
}

#[test]
fn husk_killed_after_each_phase_leaves_nothing() {
    let host = Host::new();
    prepare(&host);
    for phase in PHASES {
        let mut running = reached(&host, phase);
        running.signal(Signal::SIGKILL);
        running.finish();
        host.is_clean();
    }
}

#[test]
fn husk_vmm_killed_after_each_phase_is_one_error_and_leaves_nothing() {
    let host = Host::new();
    prepare(&host);
    // After the last one nobody needs the machine any more.
    for phase in &PHASES[..PHASES.len() - 1] {
        let running = reached(&host, phase);
        running.vmm().kill();
        let outcome = running.finish();
        is_one_error(&outcome, phase, &["husk-vmm has died", "SIGKILL"]);
        host.is_clean();
    }
}

#[test]
fn an_agent_killed_after_each_phase_is_one_error_and_leaves_nothing() {
    let host = Host::new();
    prepare(&host);
    // After the last one nobody needs the agent any more.
    for phase in &PHASES[..PHASES.len() - 1] {
        let mut running = reached(&host, phase);
        // husk waits, so that it is in this phase still when the agent is dead.
        running.signal(Signal::SIGSTOP);
        kill_agent(&running.vmm());
        // What the agent does next kills it: husk's next call, or the end of the process's input.
        running.signal(Signal::SIGCONT).end_input();
        is_one_error(&running.finish(), phase, &["panic"]);
        host.is_clean();
    }
}

#[test]
fn an_agent_killed_under_an_exec_is_one_error_for_each_command() {
    let host = Host::new();
    let mut sandbox = host.husk().rootfs(busybox()).sandbox("entered");
    let mut exec = sandbox
        .husk()
        .open_input()
        .option("--interactive")
        .start_exec("entered", ["sh", "-c", "echo up; exec cat"]);
    exec.await_output("up\n");
    kill_agent(&sandbox.vmm());
    exec.send("anything\n");
    exec.finish().exits(125).reports(&["entered"]);
    sandbox.running().await_exit();
    sandbox.finish().exits(125).reports(&["panic"]);
    host.is_clean();
}

#[test]
fn an_agent_killed_between_create_and_start_leaves_what_can_be_deleted() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "exit 0");
    let container = Container::create(&host, &bundle, "waiting");
    let vmm = host
        .new_processes()
        .into_iter()
        .find(|process| process.name == "husk-vmm");
    kill_agent(&vmm.unwrap());
    container.husk("start").fails(125, &["waiting"]);
    // To whoever stands above, a container whose machine has ended was killed.
    assert_eq!(container.wait(), 137);
    container.is("stopped");
    container.delete();
    host.is_clean();
}

/// A failure of husk's own, with one error that names each of `things`, beside the log, to which other threads write
/// until the end.
#[track_caller]
fn is_one_error(outcome: &Outcome, phase: &str, things: &[&str]) {
    let lines = outcome.exits(125).stderr().lines();
    let errors: Vec<_> = lines.filter(|line| line.starts_with("husk: ")).collect();
    assert!(
        matches!(errors[..], [error] if things.iter().all(|thing| error.contains(thing))),
        "after {phase:?}: {outcome}"
    );
}
