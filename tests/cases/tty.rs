//! A person at a terminal.

use husk_tests::{Bundle, Host, busybox};
use nix::sys::signal::Signal;
use serde_json::json;

/// A prompt that no other output looks like.
const PROMPT: &str = "<ready>";

#[test]
fn a_shell_on_a_terminal_is_as_on_any_other() {
    let host = Host::new();
    let mut terminal = host
        .husk()
        .rootfs(busybox())
        .tty()
        .env("PS1=<ready>")
        .on_terminal(["sh"]);
    terminal.shows(PROMPT);
    terminal
        .types("stty size; tty\n")
        .shows("50 132")
        .shows("/dev/")
        .shows(PROMPT);
    // The process hears of a new size, and asks for it.
    terminal
        .types(
            "trap 'echo size:$(stty size); seen=1' WINCH; echo armed$((1+1)); while [ -z $seen ]; do sleep 1 & wait; done\n",
        )
        .shows("armed2");
    terminal.resize(31, 77).shows("size:31 77").shows(PROMPT);
    // Ctrl-C ends what runs in the foreground, and not the shell. At the prompt the key would be one like any other.
    terminal
        .types("sh -c 'echo in front$((1+1)); exec sleep 1000'; echo not reached\n")
        .shows("in front2");
    terminal.types("\x03").shows(PROMPT);
    terminal.types("echo still $((40+2))\n").shows("still 42");
    terminal.types("exit 5\n");
    terminal.finish().exits(5);
}

#[test]
fn a_terminal_in_an_exec_is_one_too() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).sandbox("term");
    let mut terminal = sandbox.husk().tty().env("PS1=<ready>").exec_on_terminal("term", ["sh"]);
    terminal
        .shows(PROMPT)
        .types("stty size\n")
        .shows("50 132")
        .shows(PROMPT);
    terminal
        .resize(20, 60)
        // Keys and sizes go different ways: the size may come after them.
        .types("until stty size | grep -x '20 60'; do :; done\n")
        .shows("20 60")
        .shows(PROMPT);
    // Ctrl-D at the prompt.
    terminal.types("\x04");
    terminal.finish().exits(0);
    sandbox.end();
}

#[test]
fn a_closed_window_takes_everything_with_it() {
    let host = Host::new();
    let mut terminal = host
        .husk()
        .rootfs(busybox())
        .tty()
        .env("PS1=<ready>")
        .on_terminal(["sh"]);
    terminal.shows(PROMPT).types("trap '' HUP; sleep 1000\n");
    terminal.close_window();
    host.is_clean();
}

#[test]
fn a_bundle_that_wants_a_terminal_gets_one() {
    let host = Host::new();
    let bundle = Bundle::as_runc_writes_it(&host, busybox());
    let bundle = bundle.with("/process/args", json!(["sh", "-c", "tty; stty size; exit 6"]));
    let mut terminal = host.husk().bundle(&bundle).bundle_on_terminal();
    terminal.shows("/dev/").shows("50 132");
    terminal.finish().exits(6);
}

#[test]
fn ctrl_c_without_a_terminal_in_the_container_reaches_the_process() {
    let host = Host::new();
    let script = "trap 'echo interrupted; exit 4' INT; echo up; while :; do sleep 1000 & wait; done";
    // No --tty: the terminal stays as it is, and turns the key into a signal to husk.
    let mut terminal = host.husk().rootfs(busybox()).on_terminal(["sh", "-c", script]);
    terminal.shows("up").types("\x03").shows("interrupted");
    terminal.finish().exits(4);
}

#[test]
fn a_stopped_husk_leaves_the_sandbox_running() {
    let host = Host::new();
    let mut sandbox = host.husk().rootfs(busybox()).sandbox("stopped");
    sandbox.running().signal(Signal::SIGSTOP);
    // Another husk reaches the guest without the help of the first.
    sandbox.exec(["echo", "here"]).exits(0).prints("here\n");
    sandbox.running().signal(Signal::SIGCONT);
    sandbox.end();
}
