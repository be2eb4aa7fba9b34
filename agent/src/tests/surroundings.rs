//! What a process finds around it, and what it is.

use husk_protocol::agent::namespace::Kind;
use husk_protocol::agent::{Capabilities, Device, ExecRequest, KillRequest, Mount, Namespace, Process, Rlimit, User};
use nix::mount::MsFlags;

use super::guest::{Guest, container, context, create, delete, file_system, read, run, run_shell, shell, with_streams};

#[test]
fn the_surroundings_are_those_of_a_container() {
    let Some(guest) = Guest::start() else { return };
    for (script, expected) in [
        ("hostname", "box"),
        ("echo $$", "1"),
        ("pwd", "/"),
        ("echo $HOME", "/root"),
        (
            "stat -c %t:%T:%a /dev/null /dev/full /dev/tty",
            "1:3:666\n1:7:666\n5:0:666",
        ),
        (
            "for l in fd stdin ptmx; do readlink /dev/$l; done",
            "/proc/self/fd\n/proc/self/fd/0\npts/ptmx",
        ),
        (
            "ls -d /proc/self/fd/* | while read f; do case $f in */[0-3]) ;; *) echo $f;; esac; done",
            "",
        ),
        ("echo written > /file && cat /file", "written"),
        ("cat /sys/class/net/lo/flags", "0x9"),
        ("umask", "0022"),
    ] {
        let (status, text) = run_shell(&guest, script);
        assert_eq!((status, text.trim_end()), (0, expected), "{script}");
    }
}

/// What a container's shell with these credentials says.
fn as_process(guest: &Guest, change: impl FnOnce(&mut Process), script: &str) -> String {
    let mut process = shell(script);
    change(&mut process);
    let (exit, text) = run(guest, container("who", process));
    assert_eq!(exit.status, 0, "{text}");
    text
}

#[test]
fn a_process_is_who_it_should_be() {
    let Some(guest) = Guest::start() else { return };
    let user = |process: &mut Process| {
        let user = User {
            uid: 1000,
            gid: 1001,
            additional_gids: vec![5, 6],
            umask: Some(0o077),
            ..User::default()
        };
        process.user = Some(user).into();
        process.capabilities = Some(Capabilities {
            bounding: 0b11,
            ..Capabilities::default()
        })
        .into();
        process.no_new_privileges = true;
        process.oom_score_adj = Some(300);
        process.rlimits.push(Rlimit {
            resource: 7,
            soft: 33,
            hard: 44,
            ..Rlimit::default()
        });
    };
    let script = "id -u; id -g; id -G; umask; echo $HOME; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; \
                  grep -E '^(Cap|NoNew|SigBlk|SigIgn)' /proc/self/status; echo to stdout > /dev/stdout";
    let text = as_process(&guest, user, script);
    let none = "0000000000000000";
    let expected = format!(
        "1000\n1001\n1001 5 6\n0077\n/home/user\n33\n44\n300\nSigBlk:\t{none}\nSigIgn:\t{none}\nCapInh:\t{none}\n\
         CapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t0000000000000003\nCapAmb:\t{none}\nNoNewPrivs:\t1\nto stdout\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn ambient_capabilities_outlive_the_change_of_the_user() {
    let Some(guest) = Guest::start() else { return };
    let text = as_process(
        &guest,
        |process| {
            process.user.mut_or_insert_default().uid = 1000;
            let one = 1 << 10;
            let capabilities = Capabilities {
                bounding: one,
                effective: one,
                inheritable: one,
                permitted: one,
                ambient: one,
                ..Capabilities::default()
            };
            process.capabilities = Some(capabilities).into();
        },
        "grep ^Cap /proc/self/status | sort -u -k2 | wc -l; grep ^CapEff /proc/self/status",
    );
    assert_eq!(text, "1\nCapEff:\t0000000000000400\n");
}

#[test]
fn a_read_only_root_is_complete_and_cannot_be_written() {
    let Some(guest) = Guest::start() else { return };
    let mut request = container(
        "a",
        shell("pwd; ls -d /mnt/made; echo x > /file; echo x > /tmp/file && echo tmp"),
    );
    request.root.as_mut().unwrap().read_only = true;
    request.process.as_mut().unwrap().cwd = "/work/there".to_owned();
    request
        .mounts
        .push(file_system("/mnt/made", "tmpfs", MsFlags::empty(), ""));
    request
        .mounts
        .push(file_system("/tmp", "tmpfs", MsFlags::empty(), "mode=1777"));
    let (exit, text) = run(&guest, request);
    assert_eq!((exit.status, text.as_str()), (0, "/work/there\n/mnt/made\ntmp\n"));
}

#[test]
fn a_read_only_dev_has_its_devices_all_the_same() {
    let Some(guest) = Guest::start() else { return };
    let mut request = container("a", shell("echo x > /dev/null && echo x > /dev/file || echo refused"));
    request.mounts[1].flags |= MsFlags::MS_RDONLY.bits();
    request.mounts.truncate(2);
    assert_eq!(run(&guest, request).1, "refused\n");
}

#[test]
fn masked_and_protected_paths_are_that() {
    let Some(guest) = Guest::start() else { return };
    let mut request = container(
        "a",
        shell("cat /proc/keys; ls /etc; ls -A /proc/bus; echo x > /home/file || echo protected; wc -c < /bin/wc"),
    );
    request.masked_paths = ["/proc/keys", "/etc", "/proc/bus", "/no/such", "/bin/wc/no"]
        .map(str::to_owned)
        .into();
    request.readonly_paths = ["/home", "/no/such"].map(str::to_owned).into();
    let (_, text) = run(&guest, request);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("protected"));
    assert!(lines.next().unwrap().trim().parse::<u64>().unwrap() > 0);
}

#[test]
fn binds_and_devices_are_made() {
    let Some(guest) = Guest::start() else { return };
    let mut request = container(
        "a",
        shell(
            "cat /copy/passwd > /tmp/x; echo x > /copy/passwd || echo read-only; cat /single; stat -c %t:%T:%a:%u /d/n",
        ),
    );
    let bind = |source: &str, destination: &str, flags: MsFlags| Mount {
        source: source.to_owned(),
        destination: destination.to_owned(),
        flags: (flags | MsFlags::MS_BIND | MsFlags::MS_REC).bits(),
        ..Mount::default()
    };
    request.mounts.push(bind("/etc", "/copy", MsFlags::MS_RDONLY));
    request
        .mounts
        .push(bind("/etc/not-executable", "/single", MsFlags::empty()));
    let mode = libc::S_IFCHR | 0o640;
    let path = "/d/n".to_owned();
    request.devices.push(Device {
        path,
        mode,
        major: 1,
        minor: 3,
        uid: 7,
        ..Device::default()
    });
    assert_eq!(run(&guest, request).1, "read-only\nx1:3:640:7\n");
}

#[test]
fn a_mount_that_fails_names_itself() {
    let Some(guest) = Guest::start() else { return };
    let mut request = container("a", shell(""));
    request
        .mounts
        .push(file_system("/x", "no-such-type", MsFlags::empty(), ""));
    let failure = create(&guest, &request).unwrap();
    assert!(
        failure.message.contains("no-such-type") && failure.message.contains("/x"),
        "{failure:?}"
    );
    assert!(guest.cgroups().is_empty());
}

#[test]
fn containers_share_the_namespaces_they_ask_for() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("pause", shell("exec sleep 1000"))), None);
    guest.start_process("pause", "");
    let script = "hostname; readlink /proc/1/exe; echo $(($$ > 1))";
    assert_eq!(run_shell(&guest, script).1, "box\n/bin/busybox\n0\n");
    let mut request = container("b", shell(script));
    request.hostname.clear();
    for namespace in &mut request.namespaces {
        if [Kind::PID, Kind::UTS, Kind::IPC, Kind::NETWORK].contains(&namespace.kind.unwrap()) {
            namespace.container = "pause".to_owned();
        }
    }
    let (stdout, token) = guest.stream();
    request.process = Some(with_streams(shell(script), [&[], &token, &[]])).into();
    assert_eq!(create(&guest, &request), None);
    guest.start_process("b", "");
    assert_eq!(read(stdout), "box\n/bin/busybox\n1\n");

    request.container = "c".to_owned();
    let joined = Namespace {
        kind: Kind::IPC.into(),
        container: "no".to_owned(),
        ..Namespace::default()
    };
    request
        .namespaces
        .retain(|namespace| namespace.kind != Kind::IPC.into());
    request.namespaces.push(joined);
    request.process.as_mut().unwrap().stdio.clear();
    let refused = guest.client.create(super::guest::context(), &request).unwrap_err();
    assert!(refused.to_string().contains("no container"), "{refused}");
}

#[test]
fn what_one_container_writes_no_other_sees() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(run_shell(&guest, "echo x > /bin/new && cat /bin/new").1, "x\n");
    assert_ne!(run_shell(&guest, "cat /bin/new").0, 0);
}

#[test]
fn an_exec_has_its_own_user_directory_environment_and_capabilities() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exec sleep 1000"))), None);
    guest.start_process("a", "");
    let (stdout, token) = guest.stream();
    let script = "id -u; id -g; pwd; echo $WORD; umask; grep ^CapBnd /proc/self/status";
    let mut process = with_streams(shell(script), [&[], &token, &[]]);
    process.user = Some(User {
        uid: 1000,
        gid: 1001,
        umask: Some(0o077),
        ..User::default()
    })
    .into();
    process.cwd = "/home/user".to_owned();
    process.env.push("WORD=seven".to_owned());
    process.capabilities = Some(Capabilities {
        bounding: 1,
        ..Capabilities::default()
    })
    .into();
    let request = |exec: &str, process: &Process| ExecRequest {
        container: "a".to_owned(),
        exec: exec.to_owned(),
        process: Some(process.clone()).into(),
        ..ExecRequest::default()
    };
    let response = guest.client.exec(context(), &request("x", &process)).unwrap();
    assert!(response.failure.is_none(), "{response:?}");
    guest.start_process("a", "x");
    let expected = "1000\n1001\n/home/user\nseven\n0077\nCapBnd:\t0000000000000001\n";
    assert_eq!(read(stdout), expected);
    assert_eq!(guest.wait("a", "x").status, 0);
    delete(&guest, "a", "x");
    process.stdio.clear();
    process.cwd = "/no/such".to_owned();
    let failure = guest.client.exec(context(), &request("y", &process)).unwrap().failure;
    assert!(failure.message.contains("/no/such"), "{failure:?}");
    let kill = KillRequest {
        container: "a".to_owned(),
        signal: 9,
        ..KillRequest::default()
    };
    guest.client.kill(context(), &kill).unwrap();
    guest.wait("a", "");
    delete(&guest, "a", "");
}
