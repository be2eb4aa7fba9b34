//! `husk run`: what goes into a process and what comes out of it.

use husk_tests::{Host, busybox};
use nix::sys::signal::Signal;

#[test]
fn output_exit_code_environment_and_identity_are_the_processs() {
    let host = Host::new();
    let script = "
        echo to stderr >&2
        echo pwd=$(pwd); echo user=$(id -u):$(id -g); echo groups=$(id -G); echo home=$HOME
        echo one=$ONE; echo two=$TWO; echo path=$PATH; echo arguments=$#:$1:$2
        touch /tmp/written /home/tester/written && echo writable=yes
        touch /etc/written 2>/dev/null || echo foreign=no
        echo tty=$(tty); echo mounts=$(grep -c ' / overlay ' /proc/mounts)
        exit 7";
    let outcome = host
        .husk()
        .rootfs(busybox())
        .user("tester")
        .workdir("/home/tester")
        .env("ONE=1")
        .env("TWO=two words = and signs")
        .run(["sh", "-c", script, "sh", "first", "second one"]);
    outcome.exits(7).complains("to stderr\n");
    outcome
        .states("pwd", "/home/tester")
        .states("user", "1234:1235")
        .states("groups", "1235 29 44");
    outcome
        .states("home", "/home/tester")
        .states("one", "1")
        .states("two", "two words = and signs");
    outcome.states("path", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    outcome
        .states("arguments", "2:first:second one")
        .states("tty", "not a tty");
    outcome
        .states("writable", "yes")
        .states("foreign", "no")
        .states("mounts", "1");
    assert!(
        !busybox().join("home/tester/written").exists(),
        "what a container writes stays in its guest"
    );
}

#[test]
fn a_process_that_says_nothing_leaves_no_trace() {
    let host = Host::new();
    host.husk()
        .rootfs(busybox())
        .run(["/bin/true"])
        .exits(0)
        .prints("")
        .is_quiet();
}

#[test]
fn a_user_by_number_needs_no_entry_and_may_not_read_roots_files() {
    let host = Host::new();
    let script = "echo user=$(id -u):$(id -g); cat /opt/private; echo code=$?; touch /tmp/mine && ls -n /tmp/mine";
    let outcome = host
        .husk()
        .rootfs(busybox())
        .user("4321:4322")
        .run(["sh", "-c", script]);
    outcome
        .exits(0)
        .states("user", "4321:4322")
        .states("code", "1")
        .mentions(&["permission denied"]);
    assert!(
        outcome.stdout().contains(" 4321 "),
        "the owner of a new file in {outcome}"
    );
}

#[test]
fn arguments_pass_byte_for_byte() {
    let host = Host::new();
    let arguments = [
        "",
        " ",
        "a b",
        "it's",
        "\"quoted\"",
        "$HOME `id` \\",
        "new\nline",
        "tab\t",
        "ä€𝄞",
        "--name",
        "-",
    ];
    let printed: String = arguments.iter().map(|argument| format!("[{argument}]")).collect();
    let command = ["printf", "[%s]"].into_iter().chain(arguments);
    host.husk()
        .rootfs(busybox())
        .run(command)
        .exits(0)
        .prints(&printed)
        .is_quiet();
}

#[test]
fn a_signal_to_husk_is_one_to_the_process() {
    let host = Host::new();
    let script = "
        trap 'echo got HUP' HUP; trap 'echo got USR1' USR1; trap 'echo got INT; exit 3' INT
        echo up; while :; do sleep 1000 & wait; done";
    let mut running = host.husk().rootfs(busybox()).start(["sh", "-c", script]);
    running.await_output("up\n");
    running.signal(Signal::SIGUSR1).await_output("got USR1\n");
    running.signal(Signal::SIGHUP).await_output("got HUP\n");
    running.signal(Signal::SIGINT);
    running
        .finish()
        .exits(3)
        .prints("up\ngot USR1\ngot HUP\ngot INT\n")
        .is_quiet();
}

#[test]
fn a_process_that_a_signal_ends_is_128_and_its_number() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).sandbox("one");
    // The first process of a pid namespace gets only those of its own signals for which it has a handler.
    sandbox.exec(["sh", "-c", "kill -TERM $$"]).exits(128 + 15).prints("");
    sandbox.exec(["sh", "-c", "kill -SEGV $$"]).exits(128 + 11);
    host.husk()
        .command(["kill", "one", "KILL"])
        .exits(0)
        .prints("")
        .is_quiet();
    sandbox.finish().exits(128 + 9).prints("up\n");
}

#[test]
fn timings_tell_where_the_time_went() {
    let host = Host::new();
    let outcome = host.husk().rootfs(busybox()).option("--timings").run(["echo", "done"]);
    outcome.exits(0).prints("done\n");
    // The figures depend on the machine; that each part of the way is named does not.
    outcome.mentions(&["kernel", "agent", "process", "exit", "ms"]);
}

#[test]
fn a_read_only_root_cannot_be_written_and_a_hostname_be_chosen() {
    let host = Host::new();
    let script = "
        echo hostname=$(hostname); echo variable=$HOSTNAME
        touch /etc/x 2>&1 | grep -o 'Read-only file system'; touch /dev/shm/x && echo shm=yes";
    let husk = host
        .husk()
        .rootfs(busybox())
        .option("--read-only")
        .option("--hostname=chosen");
    let outcome = husk.run(["sh", "-c", script]);
    outcome
        .exits(0)
        .states("hostname", "chosen")
        .states("variable", "chosen")
        .states("shm", "yes");
    outcome.says("Read-only file system\n");
}
