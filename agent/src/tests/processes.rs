//! Processes from Create to Delete.

use std::io::{Read, Write};
use std::net::Shutdown;

use husk_protocol::agent::failure::Kind;
use husk_protocol::agent::{
    CloseStdinRequest, DeleteRequest, Empty, EventsRequest, ExecRequest, KillRequest, Process, StartRequest,
    StateRequest, WaitRequest,
};

use super::guest::{Guest, container, context, create, delete, read, shell, with_streams};

#[test]
fn streams_and_the_exit_code_come_back() {
    let Some(guest) = Guest::start() else { return };
    let (mut stdin, token_in) = guest.stream();
    let (stdout, token_out) = guest.stream();
    let (stderr, token_err) = guest.stream();
    let process = with_streams(
        shell("read x; echo out $x; echo err >&2; exit 7"),
        [&token_in, &token_out, &token_err],
    );
    assert_eq!(create(&guest, &container("a", process)), None);
    guest.start_process("a", "");
    stdin.write_all(b"word\n").unwrap();
    assert_eq!(read(stdout), "out word\n");
    assert_eq!(read(stderr), "err\n");
    let exit = guest.wait("a", "");
    assert_eq!((exit.status, exit.oom_killed), (7, false));
    assert!(exit.exited_at_ns > 0 && exit.exited_ns > 0);
    let deleted = delete(&guest, "a", "");
    assert_eq!((deleted.status, deleted.exited_at_ns), (7, exit.exited_at_ns));
    assert!(guest.cgroups().is_empty());
    assert!(guest.client.state(context(), &StateRequest::default()).is_err());
}

#[test]
fn many_bytes_pass_unchanged_and_end_where_stdin_ends() {
    let Some(guest) = Guest::start() else { return };
    let (mut stdin, token_in) = guest.stream();
    let (mut stdout, token_out) = guest.stream();
    let process = with_streams(
        Process {
            args: vec!["cat".to_owned()],
            ..shell("")
        },
        [&token_in, &token_out, &[]],
    );
    assert_eq!(create(&guest, &container("a", process)), None);
    guest.start_process("a", "");
    let block: Vec<u8> = (0..1_000_003_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let sent = block.clone();
    let writer = std::thread::spawn(move || {
        for _ in 0..100 {
            stdin.write_all(&sent).unwrap();
        }
        stdin.shutdown(Shutdown::Write).unwrap();
        stdin
    });
    let mut received = vec![0; block.len()];
    for _ in 0..100 {
        stdout.read_exact(&mut received).unwrap();
        assert!(received == block);
    }
    assert_eq!(read(stdout), "");
    writer.join().unwrap();
    assert_eq!(guest.wait("a", "").status, 0);
}

#[test]
fn a_command_that_is_missing_or_not_executable_says_so_and_leaves_nothing() {
    let Some(guest) = Guest::start() else { return };
    for (command, kind) in [
        ("no-such-command", Kind::COMMAND_NOT_FOUND),
        ("/no/such/command", Kind::COMMAND_NOT_FOUND),
        ("/etc/not-executable", Kind::COMMAND_NOT_EXECUTABLE),
        ("/bin", Kind::COMMAND_NOT_EXECUTABLE),
    ] {
        let process = Process {
            args: vec![command.to_owned()],
            ..shell("")
        };
        let failure = create(&guest, &container("a", process)).unwrap();
        assert_eq!(failure.kind.unwrap(), kind, "{failure:?}");
        assert!(failure.message.contains(command), "{failure:?}");
        assert!(guest.cgroups().is_empty());
    }
}

#[test]
fn a_background_child_that_holds_stdout_does_not_delay_the_exit() {
    let Some(guest) = Guest::start() else { return };
    let (mut stdout, token) = guest.stream();
    let mut request = container(
        "a",
        with_streams(shell("sleep 1000 & echo first; exit 3"), [&[], &token, &[]]),
    );
    // In the guest's pid namespace nothing but the cgroup connects the child with its parent.
    request
        .namespaces
        .retain(|namespace| namespace.kind != husk_protocol::agent::namespace::Kind::PID.into());
    assert_eq!(create(&guest, &request), None);
    guest.start_process("a", "");
    assert_eq!(guest.wait("a", "").status, 3);
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "first\n");
    delete(&guest, "a", "");
    assert!(guest.cgroups().is_empty());
}

#[test]
fn signals_end_processes_created_and_running() {
    let Some(guest) = Guest::start() else { return };
    let kill = |signal: i32| {
        let signal = signal.cast_unsigned();
        guest.client.kill(
            context(),
            &KillRequest {
                container: "a".to_owned(),
                signal,
                ..KillRequest::default()
            },
        )
    };
    for (script, start, signal, status) in [
        ("exec sleep 1000", true, libc::SIGKILL, 137),
        (
            "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done",
            true,
            libc::SIGTERM,
            9,
        ),
        ("exec sleep 1000", false, libc::SIGTERM, 143),
        ("exec sleep 1000", false, libc::SIGKILL, 137),
    ] {
        let (mut stdout, token) = guest.stream();
        assert_eq!(
            create(&guest, &container("a", with_streams(shell(script), [&[], &token, &[]]))),
            None
        );
        if start {
            guest.start_process("a", "");
        }
        if script.contains("ready") {
            stdout.read_exact(&mut [0; 6]).unwrap();
        }
        kill(signal).unwrap();
        assert_eq!(guest.wait("a", "").status, status, "{script} {signal}");
        assert!(kill(signal).is_err());
        delete(&guest, "a", "");
    }
}

#[test]
fn execs_join_the_container_and_end_with_it() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exec sleep 1000"))), None);
    guest.start_process("a", "");
    let (stdout, token) = guest.stream();
    let script = "hostname; readlink /proc/1/exe; cat /proc/self/cgroup; exit 4";
    let request = |exec: &str, process: Process| ExecRequest {
        container: "a".to_owned(),
        exec: exec.to_owned(),
        process: Some(process).into(),
        ..ExecRequest::default()
    };
    let response = guest
        .client
        .exec(
            context(),
            &request("x", with_streams(shell(script), [&[], &token, &[]])),
        )
        .unwrap();
    assert!(response.failure.is_none(), "{response:?}");
    guest.start_process("a", "x");
    assert_eq!(
        read(stdout)
            .lines()
            .filter(|line| !line.contains(':'))
            .collect::<Vec<_>>(),
        ["box", "/bin/busybox"]
    );
    assert_eq!(guest.wait("a", "x").status, 4);
    assert_eq!(delete(&guest, "a", "x").status, 4);

    assert!(
        guest
            .client
            .exec(context(), &request("y", shell("exec sleep 1000")))
            .unwrap()
            .failure
            .is_none()
    );
    guest.start_process("a", "y");
    let kill = KillRequest {
        container: "a".to_owned(),
        signal: 9,
        ..KillRequest::default()
    };
    guest.client.kill(context(), &kill).unwrap();
    assert_eq!(guest.wait("a", "").status, 137);
    assert_eq!(guest.wait("a", "y").status, 137);
    let refused = guest.client.exec(context(), &request("z", shell(""))).unwrap_err();
    assert!(refused.to_string().contains("is stopped"), "{refused}");
    delete(&guest, "a", "");
    assert!(guest.cgroups().is_empty());
}

#[test]
fn a_bound_process_ends_with_its_connection() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exec sleep 1000"))), None);
    guest.start_process("a", "");
    for (exec, start) in [("started", true), ("waiting", false)] {
        let owner = guest.another_client();
        let (stdout, token) = guest.stream();
        let request = ExecRequest {
            container: "a".to_owned(),
            exec: exec.to_owned(),
            process: Some(with_streams(shell("echo begun; exec sleep 1000"), [&[], &token, &[]])).into(),
            bound: true,
            ..ExecRequest::default()
        };
        assert!(owner.exec(context(), &request).unwrap().failure.is_none());
        if start {
            guest.start_process("a", exec);
        }
        drop(owner);
        assert_eq!(read(stdout), if start { "begun\n" } else { "" });
        let wait = WaitRequest {
            container: "a".to_owned(),
            exec: exec.to_owned(),
            ..WaitRequest::default()
        };
        // Its end may be heard of, or it is forgotten already.
        match guest.client.wait(context(), &wait) {
            Ok(exit) => assert_eq!(exit.status, 137),
            Err(error) => assert!(error.to_string().contains("no process"), "{error}"),
        }
    }
}

#[test]
fn what_the_state_does_not_allow_is_refused() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exec sleep 1000"))), None);
    let code = |result: ttrpc::Result<()>| match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("{other}"),
    };
    let client = &guest.client;
    let again = client.create(context(), &container("a", shell("")));
    assert_eq!(code(again.map(drop)), ttrpc::Code::ALREADY_EXISTS);
    guest.start_process("a", "");
    let start = StartRequest {
        container: "a".to_owned(),
        ..StartRequest::default()
    };
    assert_eq!(
        code(client.start(context(), &start).map(drop)),
        ttrpc::Code::FAILED_PRECONDITION
    );
    let running = DeleteRequest {
        container: "a".to_owned(),
        ..DeleteRequest::default()
    };
    assert_eq!(
        code(client.delete(context(), &running).map(drop)),
        ttrpc::Code::FAILED_PRECONDITION
    );
    let unknown = WaitRequest {
        container: "b".to_owned(),
        ..WaitRequest::default()
    };
    assert_eq!(code(client.wait(context(), &unknown).map(drop)), ttrpc::Code::NOT_FOUND);
    let exec = WaitRequest {
        container: "a".to_owned(),
        exec: "x".to_owned(),
        ..WaitRequest::default()
    };
    assert_eq!(code(client.wait(context(), &exec).map(drop)), ttrpc::Code::NOT_FOUND);
    let signal = KillRequest {
        container: "a".to_owned(),
        signal: 65,
        ..KillRequest::default()
    };
    assert_eq!(
        code(client.kill(context(), &signal).map(drop)),
        ttrpc::Code::INVALID_ARGUMENT
    );
}

#[test]
fn a_created_container_can_be_deleted() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exec sleep 1000"))), None);
    assert_eq!(delete(&guest, "a", "").status, 137);
    assert!(guest.cgroups().is_empty());
}

#[test]
fn connections_and_requests_may_come_in_any_order() {
    let Some(guest) = Guest::start() else { return };
    let token = [0xee; 16];
    let request = container("a", with_streams(shell("echo late"), [&[], &token, &[]]));
    let stdout = std::thread::scope(|scope| {
        let created = scope.spawn(|| create(&guest, &request));
        // Whichever comes first, the answer comes after both.
        let stdout = guest.connect(&token);
        assert_eq!(created.join().unwrap(), None);
        stdout
    });
    guest.start_process("a", "");
    assert_eq!(read(stdout), "late\n");
}

#[test]
fn closing_stdin_delivers_what_was_sent() {
    let Some(guest) = Guest::start() else { return };
    let (mut stdin, token_in) = guest.stream();
    let (stdout, token_out) = guest.stream();
    let process = with_streams(shell("cat; echo end"), [&token_in, &token_out, &[]]);
    assert_eq!(create(&guest, &container("a", process)), None);
    guest.start_process("a", "");
    stdin.write_all(b"words\n").unwrap();
    let close = CloseStdinRequest {
        container: "a".to_owned(),
        ..CloseStdinRequest::default()
    };
    guest.client.close_stdin(context(), &close).unwrap();
    assert_eq!(read(stdout), "words\nend\n");
}

#[test]
fn events_tell_of_exits_in_order() {
    let Some(guest) = Guest::start() else { return };
    for (id, code) in [("a", 1), ("b", 2)] {
        assert_eq!(create(&guest, &container(id, shell(&format!("exit {code}")))), None);
        guest.start_process(id, "");
        guest.wait(id, "");
    }
    let events = guest
        .client
        .events(context(), &EventsRequest::default())
        .unwrap()
        .events;
    let seen: Vec<_> = events
        .iter()
        .map(|event| (event.sequence, event.container.as_str(), event.status))
        .collect();
    assert_eq!(seen, [(1, "a", 1), (2, "b", 2)]);
    let state = guest.client.state(
        context(),
        &StateRequest {
            container: "b".to_owned(),
            ..StateRequest::default()
        },
    );
    let state = state.unwrap();
    assert_eq!(
        (state.processes.len(), state.processes[0].exit_status, state.pids.len()),
        (1, 2, 0)
    );
}

#[test]
fn many_calls_wait_without_delaying_others() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exec sleep 1000"))), None);
    guest.start_process("a", "");
    std::thread::scope(|scope| {
        let waits: Vec<_> = (0..100).map(|_| scope.spawn(|| guest.wait("a", "").status)).collect();
        let state = StateRequest {
            container: "a".to_owned(),
            ..StateRequest::default()
        };
        assert_eq!(guest.client.state(context(), &state).unwrap().pids.len(), 1);
        let kill = KillRequest {
            container: "a".to_owned(),
            signal: 9,
            all: true,
            ..KillRequest::default()
        };
        guest.client.kill(context(), &kill).unwrap();
        for wait in waits {
            assert_eq!(wait.join().unwrap(), 137);
        }
    });
}

#[test]
fn shutting_down_ends_everything() {
    let Some(mut guest) = Guest::start() else { return };
    assert_eq!(
        create(
            &guest,
            &container("a", shell("trap '' TERM; while :; do sleep 1; done"))
        ),
        None
    );
    guest.start_process("a", "");
    guest.client.shutdown(context(), &Empty::default()).unwrap();
    guest.join();
    let procs = std::fs::read_to_string(guest.cgroups()[0].join("cgroup.procs")).unwrap();
    assert_eq!(procs, "");
}
