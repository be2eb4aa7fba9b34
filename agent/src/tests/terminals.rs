//! Processes with a terminal.

use std::io::{BufRead, BufReader, Read, Write};

use husk_protocol::agent::{ExecRequest, Process, ResizeRequest, Stdio, WindowSize};

use super::guest::{Guest, container, context, create, shell};

fn with_terminal(mut process: Process, token: &[u8]) -> Process {
    let window = WindowSize {
        columns: 101,
        rows: 37,
        ..WindowSize::default()
    };
    let stdio = Stdio {
        stdin: token.to_vec(),
        terminal: true,
        window: Some(window).into(),
        ..Stdio::default()
    };
    process.stdio = Some(stdio).into();
    process
}

#[test]
fn a_terminal_has_a_size_and_controls_its_session() {
    let Some(guest) = Guest::start() else { return };
    let (stream, token) = guest.stream();
    let script = "trap 'echo interrupted; exit 5' INT; stty size; [ -t 0 ] && [ -t 2 ] && echo terminal > /dev/tty; \
                  echo hello > /dev/console; read x; stty size; read x";
    assert_eq!(
        create(&guest, &container("a", with_terminal(shell(script), &token))),
        None
    );
    guest.start_process("a", "");
    let mut writer = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert_eq!(
        lines.by_ref().take(3).collect::<Vec<_>>(),
        ["37 101", "terminal", "hello"]
    );
    let window = Some(WindowSize {
        columns: 200,
        rows: 50,
        ..WindowSize::default()
    })
    .into();
    let resize = ResizeRequest {
        container: "a".to_owned(),
        window,
        ..ResizeRequest::default()
    };
    guest.client.resize(context(), &resize).unwrap();
    writer.write_all(b"one\n").unwrap();
    assert_eq!(lines.by_ref().take(2).collect::<Vec<_>>(), ["one", "50 200"]);
    writer.write_all(b"\x03").unwrap();
    let rest: Vec<_> = lines.collect();
    assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:?}");
    assert_eq!(guest.wait("a", "").status, 5);
    guest.client.resize(context(), &resize).unwrap();
}

#[test]
fn all_output_arrives_before_the_end() {
    let Some(guest) = Guest::start() else { return };
    let (mut stream, token) = guest.stream();
    let script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done";
    assert_eq!(
        create(&guest, &container("a", with_terminal(shell(script), &token))),
        None
    );
    guest.start_process("a", "");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 5000);
    assert!(text.ends_with("line 4999\r\n"));
}

#[test]
fn a_lost_connection_hangs_the_terminal_up() {
    let Some(guest) = Guest::start() else { return };
    let (stream, token) = guest.stream();
    let script = "echo ready; exec sleep 1000";
    assert_eq!(
        create(&guest, &container("a", with_terminal(shell(script), &token))),
        None
    );
    guest.start_process("a", "");
    let mut stream = BufReader::new(stream);
    stream.read_line(&mut String::new()).unwrap();
    drop(stream);
    // As the first of its pid namespace it ignores signals by default, SIGHUP among them: it has to hear of it.
    let kill = husk_protocol::agent::KillRequest {
        container: "a".to_owned(),
        signal: 9,
        ..Default::default()
    };
    guest.client.kill(context(), &kill).unwrap();
    assert_eq!(guest.wait("a", "").status, 137);
}

#[test]
fn an_exec_may_have_one_too() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exec sleep 1000"))), None);
    guest.start_process("a", "");
    let (stream, token) = guest.stream();
    let request = ExecRequest {
        container: "a".to_owned(),
        exec: "x".to_owned(),
        process: Some(with_terminal(shell("stty size; exec sleep 1000"), &token)).into(),
        ..ExecRequest::default()
    };
    assert!(guest.client.exec(context(), &request).unwrap().failure.is_none());
    guest.start_process("a", "x");
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "37 101\r\n");
    // Nothing but the terminal's loss ends it.
    drop(stream);
    assert_eq!(guest.wait("a", "x").status, 129);
}
