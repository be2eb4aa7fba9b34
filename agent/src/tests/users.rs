//! Containers in a user namespace.

use husk_protocol::agent::namespace::Kind;
use husk_protocol::agent::{CreateRequest, ExecRequest, File, IdMapping, Mount, Namespace, Process};
use nix::mount::MsFlags;

use super::guest::{Guest, container, context, create, delete, file_system, read, run, shell, with_streams};

/// A guest with an image of root of the user namespace.
pub(super) fn guest() -> Option<Guest> {
    let guest = Guest::start()?;
    guest.give_image(OUTSIDE);
    Some(guest)
}

const OUTSIDE: u32 = 100_000;

/// A container whose ids begin at 100,000 in the guest.
pub(super) fn mapped(process: Process) -> CreateRequest {
    let mut request = container("mapped", process);
    request.namespaces.push(Namespace {
        kind: Kind::USER.into(),
        ..Namespace::default()
    });
    let range = IdMapping {
        outside: OUTSIDE,
        size: 65_536,
        ..IdMapping::default()
    };
    request.uid_mappings = vec![range.clone()];
    request.gid_mappings = vec![range];
    request
}

fn says(guest: &Guest, request: CreateRequest) -> String {
    let (exit, text) = run(guest, request);
    assert_eq!(exit.status, 0, "{text}");
    text
}

#[test]
fn root_of_a_user_namespace_is_root_there_alone() {
    let Some(guest) = guest() else { return };
    let script = "id -u; cat /proc/self/uid_map; cat /proc/self/gid_map; stat -L -c %u /proc/self; \
                  stat -c %u /bin; grep ^CapEff /proc/self/status; hostname other && hostname; mount -t tmpfs x /tmp && echo mounted";
    let text = says(&guest, mapped(shell(script)));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "0");
    for line in &lines[1..3] {
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    }
    assert_eq!(lines[3..5], ["0", "0"]);
    assert_eq!(lines[6..], ["other", "mounted"], "{text}");
}

#[test]
fn devices_and_streams_work_in_a_user_namespace() {
    let Some(guest) = guest() else { return };
    let script =
        "echo x > /dev/null && head -c 1 /dev/zero | wc -c && echo out > /dev/stdout && ls -d /dev/shm /dev/mqueue";
    for uid in [0, 1000] {
        let mut process = shell(script);
        process.user.mut_or_insert_default().uid = uid;
        process.user.mut_or_insert_default().gid = uid;
        let text = says(&guest, mapped(process));
        assert_eq!(text, "1\nout\n/dev/mqueue\n/dev/shm\n");
    }
}

#[test]
fn a_further_process_is_in_the_user_namespace() {
    let Some(guest) = guest() else { return };
    assert_eq!(create(&guest, &mapped(shell("exec sleep 1000"))), None);
    guest.start_process("mapped", "");
    let (stdout, token) = guest.stream();
    let mut process = with_streams(
        shell("id -u; [ $(readlink /proc/1/ns/user) = $(readlink /proc/self/ns/user) ] && echo same"),
        [&[], &token, &[]],
    );
    process.oom_score_adj = Some(5);
    let request = ExecRequest {
        container: "mapped".to_owned(),
        exec: "b".to_owned(),
        process: Some(process).into(),
        ..ExecRequest::default()
    };
    let response = guest.client.exec(context(), &request).unwrap();
    assert!(response.failure.is_none(), "{:?}", response.failure);
    guest.start_process("mapped", "b");
    assert_eq!(read(stdout), "0\nsame\n");
    guest.wait("mapped", "b");
    delete(&guest, "mapped", "b");
}

#[test]
fn a_user_whom_the_namespace_does_not_know_is_refused() {
    let Some(guest) = guest() else { return };
    let mut process = shell("true");
    process.user.mut_or_insert_default().uid = 70_000;
    let refused = guest.client.create(context(), &mapped(process)).unwrap_err();
    assert!(refused.to_string().contains("process.user.uid"), "{refused}");
    let mut request = mapped(shell("true"));
    request.gid_mappings[0].inside = 1;
    let refused = guest.client.create(context(), &request).unwrap_err();
    assert!(refused.to_string().contains("gid_mappings"), "{refused}");
}

#[test]
fn mounts_are_the_same_in_a_user_namespace() {
    let Some(guest) = guest() else { return };
    let file = |uid| File {
        mode: 0o640,
        uid,
        contents: b"127.0.0.1 box\n".to_vec(),
        ..File::default()
    };
    let copy = |destination: &str, uid| Mount {
        destination: destination.to_owned(),
        is_copy: true,
        files: vec![file(uid)],
        ..Mount::default()
    };
    let shared = Mount {
        destination: "/shared".to_owned(),
        shared: "x".to_owned(),
        data: "mode=1777".to_owned(),
        ..Mount::default()
    };
    let read_only = MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
    let script = "cat /etc/hosts; stat -c %u /etc/hosts /etc/other; echo x > /shared/file && echo shared; \
                  echo x 2> /dev/null > /t/file || echo protected; ls -A /home; ls /";
    let mut request = mapped(shell(script));
    request.mounts.extend([
        copy("/etc/hosts", 0),
        // An owner that the namespace does not know.
        copy("/etc/other", 1_000_000),
        shared,
        file_system("/t", "tmpfs", read_only, "size=1m"),
        file_system("/t/below", "tmpfs", MsFlags::empty(), ""),
    ]);
    request.masked_paths = vec!["/home".to_owned()];
    request.readonly_paths = vec!["/tmp".to_owned()];
    let text = says(&guest, request);
    assert!(text.starts_with("127.0.0.1 box\n0\n0\nshared\nprotected\n"), "{text}");
    // What the agent and the process needed for it is not to be seen.
    assert!(!text.contains("mount-") && !text.contains("upper"), "{text}");
}
