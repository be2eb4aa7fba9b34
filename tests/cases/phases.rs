//! husk and its machine monitor, killed in each phase of a container's way: nothing is left behind of any.

use husk_tests::{Host, Running, busybox};
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
        // Beside the log, to which other threads write until the end.
        let lines = outcome.exits(125).stderr().lines();
        let errors: Vec<_> = lines.filter(|line| line.starts_with("husk: ")).collect();
        assert!(
            matches!(errors[..], [error] if error.contains("husk-vmm has died") && error.contains("SIGKILL")),
            "after {phase:?}: {outcome}"
        );
        host.is_clean();
    }
}
