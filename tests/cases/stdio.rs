//! What flows between a process and whoever called husk.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use husk_tests::{Host, Pattern, busybox};

/// What comes must be the first `length` bytes of a [`Pattern`]; the position says how far it came.
fn expecting(length: u64) -> (Rc<RefCell<Pattern>>, impl FnMut(&[u8])) {
    let pattern = Rc::new(RefCell::new(Pattern::new(length)));
    let sink = Rc::clone(&pattern);
    (pattern, move |bytes: &[u8]| sink.borrow_mut().expect(bytes))
}

#[test]
fn a_hundred_megabytes_come_back_as_they_went_in() {
    const LENGTH: u64 = 100_000_000;
    let host = Host::new();
    let (received, sink) = expecting(LENGTH);
    let husk = host
        .husk()
        .rootfs(busybox())
        .input_stream(Pattern::new(LENGTH))
        .output_to(sink);
    husk.within(Duration::from_secs(300)).run(["cat"]).exits(0).is_quiet();
    assert_eq!(received.borrow().position(), LENGTH);
}

#[test]
fn both_outputs_flow_at_once_and_apart() {
    const LENGTH: u64 = 5_000_000;
    let host = Host::new();
    let (received, sink) = expecting(LENGTH);
    // /dev/stderr is opened anew by its path, which works with a pipe and not with a socket.
    let husk = host
        .husk()
        .rootfs(busybox())
        .input_stream(Pattern::new(LENGTH))
        .output_to(sink);
    let outcome = husk.run(["sh", "-c", "tee /dev/stderr; exit 4"]);
    outcome.exits(4);
    assert_eq!(received.borrow().position(), LENGTH);
    let (on_stderr, mut expected) = expecting(LENGTH);
    expected(outcome.stderr_bytes());
    assert_eq!(on_stderr.borrow().position(), LENGTH);
}

#[test]
fn without_interactive_stdin_is_at_its_end() {
    let host = Host::new();
    // The test's own end of the pipe stays open: it is husk that does not read it.
    let running = host
        .husk()
        .rootfs(busybox())
        .open_input()
        .start(["sh", "-c", "cat; echo end"]);
    running.finish().exits(0).prints("end\n").is_quiet();
}

#[test]
fn the_end_of_one_direction_leaves_the_others_open() {
    let host = Host::new();
    let script = "
        echo count=$(wc -c)          # until the end of stdin
        exec <&-
        head -c 300000 /dev/zero | tr '\\0' x; echo
        exec >&-                     # stdout ends, stderr goes on
        echo still here >&2; exit 5";
    let outcome = host.husk().rootfs(busybox()).input("12345\n").run(["sh", "-c", script]);
    outcome.exits(5).complains("still here\n").states("count", "6");
    assert_eq!(
        outcome.stdout().matches('x').count(),
        300_000,
        "the zeros that became x"
    );
}

#[test]
fn what_is_typed_arrives_at_once() {
    let host = Host::new();
    let mut running = host
        .husk()
        .rootfs(busybox())
        .option("--interactive")
        .open_input()
        .start(["cat"]);
    running.send("one\n").await_output("one\n");
    running
        .send([0, 255, b'\n'])
        .forget_output()
        .send("two\n")
        .await_output("two\n");
    running.end_input();
    running.finish().exits(0).is_quiet();
}

#[test]
fn a_process_that_does_not_read_its_stdin_ends_all_the_same() {
    let host = Host::new();
    let endless = Pattern::new(u64::MAX / 2);
    host.husk()
        .rootfs(busybox())
        .input_stream(endless)
        .run(["sh", "-c", "head -c 3 | wc -c; exit 6"])
        .exits(6)
        .prints("3\n");
}

#[test]
fn a_process_whose_output_nobody_reads_any_more_ends() {
    let host = Host::new();
    let mut running = host.husk().rootfs(busybox()).start(["sh", "-c", "yes; echo ended >&2"]);
    running.await_output("y\ny\n").close_output();
    let outcome = running.finish();
    assert!(
        !outcome.succeeded() || outcome.stderr().contains("ended"),
        "the writer noticed nothing in {outcome}"
    );
}
