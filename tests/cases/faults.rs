//! What breaks on the way: one clear error where somebody is left to read it, and nothing left behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use husk_tests::{Bundle, Host, Pattern, busybox, copy, prepared, tiny};
use nix::sys::signal::Signal;
use serde_json::json;

/// A guest directory with husk's own kernel and a first process that is not the agent.
fn guest_with_init(host: &Host, code: &[u8]) -> PathBuf {
    let own = prepared::bin().join("guest");
    let directory = host.scratch().join("guest");
    fs::create_dir(&directory).unwrap();
    for name in ["vmlinux", "guest.json"] {
        symlink(own.join(name), directory.join(name)).unwrap();
    }
    fs::write(directory.join("initramfs.cpio"), tiny::initramfs(&tiny::program(code))).unwrap();
    directory
}

/// A kernel file of these few instructions.
fn kernel(host: &Host, code: &[u8]) -> PathBuf {
    let path = host.scratch().join("kernel");
    fs::write(&path, tiny::kernel(code)).unwrap();
    path
}

#[test]
fn husk_killed_while_it_converts_a_tree_leaves_nothing() {
    let host = Host::with_own_image_cache();
    // Enough to be still at it when the signal comes.
    let tree = host.scratch().join("tree");
    copy(busybox(), &tree);
    fs::write(tree.join("large"), vec![1; 200 << 20]).unwrap();
    let mut running = host.husk().rootfs(&tree).start(["true"]);
    running.await_child("husk-vmm");
    running.signal(Signal::SIGKILL);
    running.finish().dies_of(Signal::SIGKILL);
    host.is_clean();
    let cached = fs::read_dir(host.image_cache())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name());
    assert_eq!(cached.filter(|name| name != "lock").count(), 0, "files in the cache");
    // What it had begun does not stand in the way.
    host.husk()
        .rootfs(busybox())
        .run(["echo", "works"])
        .exits(0)
        .prints("works\n");
}

#[test]
fn husk_killed_while_the_guest_boots_leaves_nothing() {
    let host = Host::new();
    let kernel = kernel(&host, tiny::LOOPS);
    let mut running = host.husk().rootfs(busybox()).kernel(kernel).start(["true"]);
    running.await_child("husk-vmm");
    running.signal(Signal::SIGKILL);
    running.finish().dies_of(Signal::SIGKILL);
    host.is_clean();
}

#[test]
fn husk_killed_at_any_moment_leaves_nothing() {
    let host = Host::new();
    let run = || {
        host.husk()
            .rootfs(busybox())
            .start(["sh", "-c", "echo up; head -c 300000 /dev/zero"])
    };
    // The first one also converts the tree.
    run().finish().exits(0);
    let whole = run().finish().exits(0).elapsed();
    const MOMENTS: u32 = 12;
    let mut killed = 0;
    for moment in 0..MOMENTS {
        let mut running = run();
        // The moment is the test: a time, and not something that happens.
        running.let_pass(whole * moment / MOMENTS);
        // One that was quicker than the first has ended by itself.
        if running.is_over() {
            running.finish().exits(0);
        } else {
            running.signal(Signal::SIGKILL);
            running.finish();
            killed += 1;
        }
        host.is_clean();
    }
    assert!(
        killed >= MOMENTS / 4,
        "{killed} of {MOMENTS} runs lived until their moment"
    );
    host.husk()
        .rootfs(busybox())
        .name("after")
        .run(["echo", "works"])
        .exits(0)
        .prints("works\n");
}

#[test]
fn husk_killed_while_its_process_runs_leaves_nothing() {
    let host = Host::new();
    let mut sandbox = host.husk().rootfs(busybox()).sandbox("orphan");
    let mut exec = sandbox
        .husk()
        .start_exec("orphan", ["sh", "-c", "echo up; exec sleep 1000"]);
    exec.await_output("up\n");
    sandbox.running().signal(Signal::SIGKILL);
    sandbox.finish().dies_of(Signal::SIGKILL);
    // Whoever was in there is told.
    exec.finish().exits(125).reports(&["orphan"]);
    host.is_clean();
    host.husk()
        .rootfs(busybox())
        .name("orphan")
        .run(["echo", "the name is free"])
        .exits(0);
}

#[test]
fn husk_told_to_stop_while_the_guest_boots_stops() {
    let host = Host::new();
    let kernel = kernel(&host, tiny::SLEEPS);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut running = host.husk().rootfs(busybox()).kernel(&kernel).start(["true"]);
        running.await_child("husk-vmm");
        running.signal(signal);
        let outcome = running.finish();
        outcome.exits(128 + signal as i32).prints("");
        assert!(
            outcome.elapsed() < Duration::from_secs(20),
            "it took too long: {outcome}"
        );
        host.is_clean();
    }
}

#[test]
fn a_killed_vmm_is_one_error() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).sandbox("crash");
    let mut exec = sandbox
        .husk()
        .start_exec("crash", ["sh", "-c", "echo up; exec cat /dev/zero"]);
    exec.await_output("up\n");
    sandbox.vmm().kill();
    sandbox.finish().exits(125).reports(&["husk-vmm", "SIGKILL"]);
    exec.finish().exits(125).reports(&["crash"]);
    host.is_clean();
}

#[test]
fn a_vmm_killed_while_bytes_flow_is_one_error() {
    let host = Host::new();
    let endless = Pattern::new(u64::MAX / 2);
    let mut running =
        host.husk()
            .rootfs(busybox())
            .input_stream(endless)
            .start(["sh", "-c", "echo up >&2; cat >/dev/null"]);
    running.await_complaint("up\n");
    running.vmm().kill();
    running.finish().exits(125).reports(&["husk-vmm"]);
}

#[test]
fn a_guest_that_panics_before_its_agent_is_up_is_one_error() {
    let host = Host::new();
    // The end of the first process is the kernel's panic.
    let guest = guest_with_init(&host, tiny::EXITS);
    let outcome = host
        .husk()
        .rootfs(busybox())
        .variable("HUSK_GUEST_DIR", guest)
        .run(["true"]);
    outcome.fails(125, &["panic"]);
}

#[test]
fn a_guest_whose_agent_never_answers_is_one_error() {
    let host = Host::new();
    let guest = guest_with_init(&host, tiny::PAUSES);
    let husk = host
        .husk()
        .rootfs(busybox())
        .variable("HUSK_GUEST_DIR", guest)
        .variable("HUSK_TIMEOUT", "8");
    husk.run(["true"]).fails(125, &["agent", "8 s"]);
}

#[test]
fn a_kernel_that_hangs_is_one_error() {
    let host = Host::new();
    for code in [tiny::LOOPS, tiny::SLEEPS] {
        let kernel = kernel(&host, code);
        let husk = host
            .husk()
            .rootfs(busybox())
            .kernel(kernel)
            .variable("HUSK_TIMEOUT", "3");
        husk.run(["true"]).fails(125, &["3 s"]);
    }
}

#[test]
fn a_kernel_that_faults_at_once_is_one_error() {
    let host = Host::new();
    let started = Instant::now();
    host.husk()
        .rootfs(busybox())
        .kernel(kernel(&host, tiny::FAULTS))
        .run(["true"])
        .fails(125, &["triple"]);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "the fault is noticed, not waited for"
    );
}

/// A container without a pid namespace of its own: the agent is process 1 among its processes.
fn beside_the_agent(host: &Host, script: &str) -> Bundle {
    let bundle = Bundle::of_script(host, busybox(), script).without_namespace("pid");
    bundle
        .with_capabilities(&[
            "CAP_SYS_PTRACE",
            "CAP_SYS_ADMIN",
            "CAP_SYS_BOOT",
            "CAP_KILL",
            "CAP_DAC_OVERRIDE",
        ])
        .with("/linux/maskedPaths", json!([]))
        .with("/linux/readonlyPaths", json!([]))
}

#[test]
fn an_agent_that_dies_is_one_error() {
    let host = Host::new();
    // Nothing kills process 1 but itself: its code is overwritten, and the next instruction is its last.
    let script = "
        echo up
        region=$(grep -m 1 'r-xp' /proc/1/maps); range=${region%% *}
        start=$((0x${range%-*})); end=$((0x${range#*-}))
        dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$((start / 4096)) count=$(((end - start) / 4096)) conv=notrunc
        exec sleep 1000";
    let outcome = host.husk().bundle(&beside_the_agent(&host, script)).run_bundle();
    outcome.exits(125).prints("up\n").mentions(&["panic"]);
}

#[test]
fn a_guest_that_switches_itself_off_is_one_error() {
    let host = Host::new();
    for (command, word) in [("poweroff", "shut down"), ("reboot", "reboot")] {
        let script = format!("echo up; {command} -f; exec sleep 1000");
        let outcome = host.husk().bundle(&beside_the_agent(&host, &script)).run_bundle();
        outcome.exits(125).prints("up\n").reports(&[word]);
    }
}

#[test]
fn a_guest_without_memory_for_its_work_ends_in_an_error_of_the_process() {
    let host = Host::new();
    // No limit on the container: the guest's own memory is the limit. The agent outlives it.
    let script = "dd if=/dev/zero of=/dev/null bs=500M count=1 2>/dev/null; echo code=$?; exit 12";
    let outcome = host.husk().rootfs(busybox()).memory("128M").run(["sh", "-c", script]);
    outcome.exits(12);
    assert_ne!(outcome.fact("code"), "0", "500 MB in 128 in {outcome}");
}

#[test]
fn a_full_guest_file_system_is_the_processs_affair() {
    let host = Host::new();
    let script = "dd if=/dev/zero of=/tmp/fill bs=1M count=500 2>/dev/null; echo code=$?; rm /tmp/fill; echo fine";
    let outcome = host.husk().rootfs(busybox()).memory("128M").run(["sh", "-c", script]);
    outcome.exits(0).says("fine\n");
    assert_ne!(outcome.fact("code"), "0", "500 MB in 128 in {outcome}");
}

#[test]
fn a_sandbox_whose_run_directory_is_taken_away_still_ends() {
    let host = Host::new();
    let mut running =
        host.husk()
            .rootfs(busybox())
            .start(["sh", "-c", "trap 'exit 4' TERM; echo up; sleep 1000 & wait"]);
    running.await_output("up\n");
    empty(&host.run_directory());
    running.signal(Signal::SIGTERM);
    running.finish().exits(4);
}

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    }
}
