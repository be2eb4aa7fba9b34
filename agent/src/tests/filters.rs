//! Filters of system calls.

use husk_protocol::agent::{CreateRequest, ExecRequest, Seccomp};

use super::guest::{Guest, container, context, create, delete, read, run, shell, with_streams};

/// A filter that returns `EXDEV` for one call and allows all others.
fn without(call: libc::c_long) -> Seccomp {
    let number: u32 = call.try_into().unwrap();
    let refusal = libc::SECCOMP_RET_ERRNO | libc::EXDEV.cast_unsigned();
    let program: [(u16, [u8; 2], u32); 4] = [
        // Load the number; skip one unless it is the one; the results.
        (0x20, [0, 0], 0),
        (0x15, [0, 1], number),
        (0x06, [0, 0], refusal),
        (0x06, [0, 0], libc::SECCOMP_RET_ALLOW),
    ];
    let mut bytes = Vec::new();
    for (code, jumps, k) in program {
        bytes.extend(code.to_le_bytes());
        bytes.extend(jumps);
        bytes.extend(k.to_le_bytes());
    }
    Seccomp {
        program: bytes,
        ..Seccomp::default()
    }
}

fn filtered(script: &str, call: libc::c_long, no_new_privileges: bool) -> CreateRequest {
    let mut process = shell(script);
    process.no_new_privileges = no_new_privileges;
    CreateRequest {
        seccomp: Some(without(call)).into(),
        ..container("filtered", process)
    }
}

#[test]
fn a_filter_holds_with_and_without_no_new_privileges() {
    let Some(guest) = Guest::start() else { return };
    for no_new_privileges in [false, true] {
        // busybox's way to say that it does not know.
        let script = "hostname; grep -E '^(Seccomp|NoNew)' /proc/self/status";
        let expected = format!(
            "?\nNoNewPrivs:\t{}\nSeccomp:\t2\nSeccomp_filters:\t1\n",
            u8::from(no_new_privileges)
        );
        let text = run(&guest, filtered(script, libc::SYS_uname, no_new_privileges)).1;
        assert_eq!(text, expected);
    }
}

#[test]
fn with_no_new_privileges_only_the_execution_is_filtered() {
    let Some(guest) = Guest::start() else { return };
    // Without it the agent's own way to the execution would end here.
    let text = run(&guest, filtered("echo through", libc::SYS_setgroups, true)).1;
    assert_eq!(text, "through\n");
    let refused = create(&guest, &filtered("echo through", libc::SYS_setgroups, false)).unwrap();
    assert!(refused.message.contains("additional groups"), "{refused:?}");
}

#[test]
fn a_further_process_has_its_containers_filter() {
    let Some(guest) = Guest::start() else { return };
    let request = filtered("exec sleep 1000", libc::SYS_uname, false);
    assert_eq!(create(&guest, &request), None);
    guest.start_process("filtered", "");
    let (stdout, token) = guest.stream();
    let request = ExecRequest {
        container: "filtered".to_owned(),
        exec: "second".to_owned(),
        process: Some(with_streams(shell("hostname"), [&[], &token, &[]])).into(),
        ..ExecRequest::default()
    };
    let response = guest.client.exec(context(), &request).unwrap();
    assert!(response.failure.is_none(), "{:?}", response.failure);
    guest.start_process("filtered", "second");
    assert_eq!(read(stdout), "?\n");
    guest.wait("filtered", "second");
    delete(&guest, "filtered", "second");
}

#[test]
fn what_is_no_program_is_refused() {
    let Some(guest) = Guest::start() else { return };
    for length in [0, 7, 9, 4097 * 8] {
        let mut request = filtered("true", libc::SYS_uname, false);
        request.seccomp.mut_or_insert_default().program = vec![0; length];
        let refused = guest.client.create(context(), &request).unwrap_err().to_string();
        assert!(refused.contains("seccomp.program"), "{refused}");
    }
    // The kernel has the last word: no instruction has this code.
    let mut request = filtered("true", libc::SYS_uname, false);
    request.seccomp.mut_or_insert_default().program = vec![0xff; 8];
    let refused = create(&guest, &request).unwrap();
    assert!(refused.message.contains("seccomp filter"), "{refused:?}");
}
