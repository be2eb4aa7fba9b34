//! What a process is given from outside, and clocks and settings of the kernel that are a container's own.

use husk_protocol::agent::namespace::Kind;
use husk_protocol::agent::{CreateRequest, ExecRequest, Namespace, Process, Rlimit, Scheduler, Sysctl, TimeOffset};
use nix::mount::MsFlags;

use super::guest::{Guest, container, context, create, delete, read, run, shell, with_streams};

/// What a container says that differs from the usual one.
fn changed(guest: &Guest, script: &str, change: impl FnOnce(&mut CreateRequest)) -> String {
    let mut request = container("a", shell(script));
    change(&mut request);
    let (exit, text) = run(guest, request);
    assert_eq!(exit.status, 0, "{text}");
    text
}

fn scheduler(policy: libc::c_int) -> Scheduler {
    Scheduler {
        policy: policy.cast_unsigned(),
        ..Scheduler::default()
    }
}

#[test]
fn a_process_is_scheduled_as_it_should_be() {
    let Some(guest) = Guest::start() else { return };
    let nice = Scheduler {
        nice: 7,
        ..scheduler(libc::SCHED_OTHER)
    };
    // Nice value and policy (proc_pid_stat(5)), without the first two fields.
    let script = "read -r line < /proc/self/stat; set -- ${line##*)}; echo ${17} ${39}";
    let text = changed(&guest, script, |request| {
        request.process.as_mut().unwrap().scheduler = Some(nice).into();
    });
    assert_eq!(text, "7 0\n");
    let text = changed(&guest, script, |request| {
        request.process.as_mut().unwrap().scheduler = Some(scheduler(libc::SCHED_BATCH)).into();
    });
    assert_eq!(text, "0 3\n");
}

#[test]
fn what_the_kernel_refuses_is_named() {
    let Some(guest) = Guest::start() else { return };
    let refused = |change: fn(&mut Process)| {
        let mut request = container("a", shell("true"));
        change(request.process.as_mut().unwrap());
        let failure = create(&guest, &request).unwrap_or_else(|| panic!("{:?} is taken", request.process));
        assert!(guest.cgroups().is_empty());
        failure.message
    };
    for (message, name) in [
        (
            refused(|process| process.scheduler = Some(scheduler(77)).into()),
            "process.scheduler",
        ),
        (
            refused(|process| process.io_priority = Some(7 << 13)),
            "process.io_priority",
        ),
        (
            refused(|process| {
                process.rlimits.push(Rlimit {
                    resource: 77,
                    ..Rlimit::default()
                });
            }),
            "resource limit 77",
        ),
        (refused(|process| process.oom_score_adj = Some(5000)), "oom_score_adj"),
    ] {
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn a_further_process_runs_where_it_should() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exec sleep 1000"))), None);
    guest.start_process("a", "");
    let (stdout, token) = guest.stream();
    let mut process = with_streams(shell("grep ^Cpus_allowed_list /proc/self/status"), [&[], &token, &[]]);
    process.initial_cpus = vec![0, 1];
    process.final_cpus = vec![0];
    let request = ExecRequest {
        container: "a".to_owned(),
        exec: "b".to_owned(),
        process: Some(process).into(),
        ..ExecRequest::default()
    };
    assert!(guest.client.exec(context(), &request).unwrap().failure.is_none());
    guest.start_process("a", "b");
    assert_eq!(read(stdout), "Cpus_allowed_list:\t0\n");
    guest.wait("a", "b");
    delete(&guest, "a", "b");
}

#[test]
fn settings_of_the_containers_namespaces_are_set() {
    let Some(guest) = Guest::start() else { return };
    let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/domainname";
    let text = changed(&guest, script, |request| {
        for (path, value) in [
            ("kernel/shm_rmid_forced", "1"),
            ("net/ipv4/ip_forward", "1"),
            ("kernel/domainname", "place"),
        ] {
            request.sysctls.push(Sysctl {
                path: path.to_owned(),
                value: value.to_owned(),
                ..Sysctl::default()
            });
        }
    });
    assert_eq!(text, "1\n1\nplace\n");
    let mut request = container("a", shell("true"));
    request.sysctls.push(Sysctl {
        path: "net/no/such".to_owned(),
        ..Sysctl::default()
    });
    let failure = create(&guest, &request).unwrap();
    assert!(failure.message.contains("net/no/such"), "{failure:?}");
}

#[test]
fn a_personality_is_that_of_every_process() {
    let Some(guest) = Guest::start() else { return };
    let text = changed(&guest, "cat /proc/self/personality", |request| {
        request.personality = Some(8);
    });
    assert_eq!(text, "00000008\n");
}

#[test]
fn the_root_is_propagated_as_it_should_be() {
    let Some(guest) = Guest::start() else { return };
    let script = "while read -r a b c d point f tags; do [ $point != / ] || echo $tags; done < /proc/self/mountinfo";
    for (propagation, word) in [(MsFlags::MS_SHARED, "shared:"), (MsFlags::MS_UNBINDABLE, "unbindable")] {
        let text = changed(&guest, script, |request| request.root_propagation = propagation.bits());
        assert!(text.starts_with(word), "{text}");
    }
}

#[test]
fn clocks_of_a_time_namespace_are_its_own() {
    let Some(guest) = Guest::start() else { return };
    let with_time = |request: &mut CreateRequest, offsets: &[(&str, i64)]| {
        request.namespaces.push(Namespace {
            kind: Kind::TIME.into(),
            ..Namespace::default()
        });
        request.time_offsets = offsets
            .iter()
            .map(|(clock, seconds)| TimeOffset {
                clock: (*clock).to_owned(),
                seconds: *seconds,
                ..TimeOffset::default()
            })
            .collect();
    };
    let uptime = |text: &str| text.split('.').next().unwrap().parse::<i64>().unwrap();
    let script = "cat /proc/uptime";
    let plain = uptime(&changed(&guest, script, |_| {}));
    let far = uptime(&changed(&guest, script, |request| {
        with_time(request, &[("boottime", 1_000_000), ("monotonic", 50)]);
    }));
    assert!((1_000_000..1_000_100).contains(&(far - plain)), "{plain} {far}");
    // The agent's own clocks and the next container's are the guest's again.
    let again = uptime(&changed(&guest, script, |_| {}));
    assert!((0..100).contains(&(again - plain)), "{plain} {again}");
    let mut request = container("a", shell("true"));
    with_time(&mut request, &[("monotonic", i64::MAX)]);
    let refused = guest.client.create(context(), &request).unwrap_err().to_string();
    assert!(refused.contains("time_offsets"), "{refused}");
}

#[test]
fn a_further_process_is_in_the_time_namespace() {
    let Some(guest) = Guest::start() else { return };
    let mut request = container("a", shell("exec sleep 1000"));
    request.namespaces.push(Namespace {
        kind: Kind::TIME.into(),
        ..Namespace::default()
    });
    assert_eq!(create(&guest, &request), None);
    guest.start_process("a", "");
    let (stdout, token) = guest.stream();
    let script = "[ $(readlink /proc/1/ns/time) = $(readlink /proc/self/ns/time) ] && echo same";
    let request = ExecRequest {
        container: "a".to_owned(),
        exec: "b".to_owned(),
        process: Some(with_streams(shell(script), [&[], &token, &[]])).into(),
        ..ExecRequest::default()
    };
    assert!(guest.client.exec(context(), &request).unwrap().failure.is_none());
    guest.start_process("a", "b");
    assert_eq!(read(stdout), "same\n");
    guest.wait("a", "b");
    delete(&guest, "a", "b");
}
