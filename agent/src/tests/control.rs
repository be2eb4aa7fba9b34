//! Control of containers that are there: rules for devices, Pause and Resume, Update, Processes, and where a cgroup lies.

use husk_protocol::agent::device_rule::Kind;
use husk_protocol::agent::{
    CgroupSetting, ContainerStatus, CreateRequest, DeviceRule, DeviceRules, ExecRequest, KillRequest, PauseRequest,
    Process, ProcessesRequest, Resources, ResumeRequest, StartRequest, StateRequest, StatsRequest, UpdateRequest,
};

use super::guest::{Guest, container, context, create, delete, read, run, shell, with_streams};

fn rule(allow: bool, kind: Kind, number: Option<(u32, u32)>) -> DeviceRule {
    DeviceRule {
        allow,
        kind: kind.into(),
        major: number.map(|number| number.0),
        minor: number.map(|number| number.1),
        read: true,
        write: true,
        make: true,
        ..DeviceRule::default()
    }
}

fn devices(rules: Vec<DeviceRule>) -> Resources {
    let rules = DeviceRules {
        rules,
        ..DeviceRules::default()
    };
    Resources {
        devices: Some(rules).into(),
        ..Resources::default()
    }
}

/// What the default devices need while a container is made: making nodes, and /dev/null.
fn needed() -> Vec<DeviceRule> {
    let make = DeviceRule {
        read: false,
        write: false,
        ..rule(true, Kind::ALL, None)
    };
    vec![make, rule(true, Kind::CHARACTER, Some((1, 3)))]
}

fn with(request: CreateRequest, resources: Resources) -> CreateRequest {
    CreateRequest {
        resources: Some(resources).into(),
        ..request
    }
}

#[test]
fn devices_are_what_the_rules_allow() {
    let Some(guest) = Guest::start() else { return };
    let script = "
        head -c 1 /dev/zero > /dev/null && echo zero
        head -c 1 /dev/urandom > /dev/null && echo urandom
        busybox mknod /tmp/full c 1 7 && echo made; (echo x > /tmp/full) 2>&1 | grep -o 'not permitted'
        echo x > /dev/null && echo null";
    let request = |rules| with(container("a", shell(script)), devices(rules));
    let only_null = needed();
    assert_eq!(run(&guest, request(only_null)).1, "made\nnot permitted\nnull\n");
    let mut all_but_zero = needed();
    all_but_zero.insert(0, rule(true, Kind::ALL, None));
    // What is denied first is allowed by what comes later.
    all_but_zero.insert(0, rule(false, Kind::CHARACTER, Some((1, 9))));
    for number in [(1, 5), (1, 7)] {
        all_but_zero.push(DeviceRule {
            make: false,
            ..rule(false, Kind::CHARACTER, Some(number))
        });
    }
    assert_eq!(
        run(&guest, request(all_but_zero)).1,
        "urandom\nmade\nnot permitted\nnull\n"
    );
    // Without rules nothing is denied.
    let (_, text) = run(
        &guest,
        container("a", shell("head -c 1 /dev/zero > /dev/null && echo zero")),
    );
    assert_eq!(text, "zero\n");
}

#[test]
fn rules_for_devices_can_be_changed_and_others_are_refused() {
    let Some(guest) = Guest::start() else { return };
    let script = "while read line; do (head -c 1 /dev/zero > /dev/null) 2> /dev/null && echo yes || echo no; done";
    let (mut stdin, to) = guest.stream();
    let (stdout, from) = guest.stream();
    let process = with_streams(shell(script), [&to, &from, &[]]);
    assert_eq!(create(&guest, &with(container("a", process), devices(needed()))), None);
    guest.start_process("a", "");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    let mut ask = || {
        std::io::Write::write_all(&mut stdin, b"?\n").unwrap();
        lines.next().unwrap().unwrap()
    };
    assert_eq!(ask(), "no");
    let update = |resources: Resources| {
        let request = UpdateRequest {
            container: "a".to_owned(),
            resources: Some(resources).into(),
            ..UpdateRequest::default()
        };
        guest.client.update(context(), &request).map(drop)
    };
    let mut more = needed();
    more.push(rule(true, Kind::CHARACTER, Some((1, 5))));
    update(devices(more)).unwrap();
    assert_eq!(ask(), "yes");
    update(Resources::default()).unwrap();
    assert_eq!(ask(), "yes");
    update(devices(needed())).unwrap();
    assert_eq!(ask(), "no");
    let setting = CgroupSetting {
        file: "../cgroup.kill".to_owned(),
        value: "1".to_owned(),
        ..CgroupSetting::default()
    };
    let outside = Resources {
        settings: vec![setting],
        ..Resources::default()
    };
    assert!(update(outside).unwrap_err().to_string().contains("settings[0].file"));
    let too_many = devices(vec![rule(true, Kind::ALL, None); 501]);
    assert!(update(too_many).unwrap_err().to_string().contains("500"));
    kill(&guest, "a", 9);
    guest.wait("a", "");
    let refused = update(Resources::default()).unwrap_err().to_string();
    assert!(refused.contains("is stopped"), "{refused}");
    delete(&guest, "a", "");
}

fn kill(guest: &Guest, container: &str, signal: u32) {
    let request = KillRequest {
        container: container.to_owned(),
        signal,
        ..KillRequest::default()
    };
    guest.client.kill(context(), &request).unwrap();
}

fn status(guest: &Guest, container: &str) -> ContainerStatus {
    let request = StateRequest {
        container: container.to_owned(),
        ..StateRequest::default()
    };
    guest.client.state(context(), &request).unwrap().status.unwrap()
}

fn pause(guest: &Guest, container: &str) -> Result<(), String> {
    let request = PauseRequest {
        container: container.to_owned(),
        ..PauseRequest::default()
    };
    let answer = guest.client.pause(context(), &request);
    answer.map(drop).map_err(|error| error.to_string())
}

fn resume(guest: &Guest, container: &str) -> Result<(), String> {
    let request = ResumeRequest {
        container: container.to_owned(),
        ..ResumeRequest::default()
    };
    let answer = guest.client.resume(context(), &request);
    answer.map(drop).map_err(|error| error.to_string())
}

fn refused(result: Result<(), String>, part: &str) {
    let message = result.unwrap_err();
    assert!(
        message.contains(part) && message.contains("FAILED_PRECONDITION"),
        "{message}"
    );
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    let Some(guest) = Guest::start() else { return };
    let (stdout, token) = guest.stream();
    // Busy all the time, so that it moves whenever it may.
    let script = "while :; do read now rest < /proc/uptime; echo $now; done";
    let process = with_streams(shell(script), [&[], &token, &[]]);
    assert_eq!(create(&guest, &container("a", process)), None);
    assert_eq!(status(&guest, "a"), ContainerStatus::CONTAINER_CREATED);
    refused(resume(&guest, "a"), "must be paused");
    guest.start_process("a", "");
    assert_eq!(status(&guest, "a"), ContainerStatus::CONTAINER_RUNNING);
    pause(&guest, "a").unwrap();
    assert_eq!(status(&guest, "a"), ContainerStatus::CONTAINER_PAUSED);
    let usage = || {
        let request = StatsRequest {
            container: "a".to_owned(),
            ..StatsRequest::default()
        };
        guest.client.stats(context(), &request).unwrap().cpu_usage_us
    };
    let before = usage();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(usage(), before);
    refused(pause(&guest, "a"), "is paused");
    let exec = ExecRequest {
        container: "a".to_owned(),
        exec: "x".to_owned(),
        process: Some(shell("")).into(),
        ..ExecRequest::default()
    };
    let message = guest.client.exec(context(), &exec).unwrap_err().to_string();
    assert!(message.contains("is paused"), "{message}");
    resume(&guest, "a").unwrap();
    assert_eq!(status(&guest, "a"), ContainerStatus::CONTAINER_RUNNING);
    refused(resume(&guest, "a"), "is running");
    pause(&guest, "a").unwrap();
    kill(&guest, "a", 9);
    assert_eq!(guest.wait("a", "").status, 137);
    assert_eq!(status(&guest, "a"), ContainerStatus::CONTAINER_STOPPED);
    refused(pause(&guest, "a"), "is stopped");
    refused(resume(&guest, "a"), "is stopped");
    drop(stdout);
    delete(&guest, "a", "");
    assert!(pause(&guest, "a").unwrap_err().contains("no container"));
}

#[test]
fn a_container_that_is_not_started_can_be_paused_but_not_started_then() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exit 3"))), None);
    pause(&guest, "a").unwrap();
    assert_eq!(status(&guest, "a"), ContainerStatus::CONTAINER_PAUSED);
    let start = StartRequest {
        container: "a".to_owned(),
        ..StartRequest::default()
    };
    let message = guest.client.start(context(), &start).unwrap_err().to_string();
    assert!(message.contains("is paused"), "{message}");
    resume(&guest, "a").unwrap();
    guest.start_process("a", "");
    assert_eq!(guest.wait("a", "").status, 3);
    let message = guest.client.start(context(), &start).unwrap_err().to_string();
    assert!(message.contains("is stopped"), "{message}");
    delete(&guest, "a", "");
}

#[test]
fn signals_need_a_container_that_is_there() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &container("a", shell("exec sleep 1000"))), None);
    guest.start_process("a", "");
    let all = |signal| KillRequest {
        container: "a".to_owned(),
        signal,
        all: true,
        ..KillRequest::default()
    };
    guest.client.kill(context(), &all(15)).unwrap();
    // The first process of a pid namespace has no default actions.
    guest.client.kill(context(), &all(9)).unwrap();
    assert_eq!(guest.wait("a", "").status, 137);
    for request in [all(9), KillRequest { all: false, ..all(9) }] {
        let message = guest.client.kill(context(), &request).unwrap_err().to_string();
        assert!(message.contains("FAILED_PRECONDITION"), "{message}");
    }
    delete(&guest, "a", "");
    let message = guest.client.kill(context(), &all(9)).unwrap_err().to_string();
    assert!(message.contains("NOT_FOUND"), "{message}");
}

#[test]
fn processes_are_listed_with_what_ps_shows() {
    let Some(guest) = Guest::start() else { return };
    let (stdout, token) = guest.stream();
    let script = "sleep 1000 & echo started; exec sleep 2000";
    let mut process = with_streams(shell(script), [&[], &token, &[]]);
    process.user.mut_or_insert_default().uid = 1000;
    assert_eq!(create(&guest, &container("a", process)), None);
    guest.start_process("a", "");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    assert_eq!(lines.next().unwrap().unwrap(), "started");
    let request = ProcessesRequest {
        container: "a".to_owned(),
        ..ProcessesRequest::default()
    };
    let list = loop {
        let list = guest.client.processes(context(), &request).unwrap().processes;
        // The shell is on its way to become the second.
        if list.iter().all(|process| process.name == "sleep") && list.len() == 2 {
            break list;
        }
        std::thread::yield_now();
    };
    let first = list.iter().find(|process| process.args[1] == "2000").unwrap();
    let second = list.iter().find(|process| process.args[1] == "1000").unwrap();
    assert_eq!((first.container_pid, first.uid, second.uid), (1, 1000, 1000));
    assert_eq!(second.parent, first.pid);
    assert!(second.container_pid > 1 && second.pid != second.container_pid);
    assert!(first.started_at_ns > 1_500_000_000_000_000_000 && first.resident_bytes > 0);
    kill(&guest, "a", 9);
    guest.wait("a", "");
    assert!(
        guest
            .client
            .processes(context(), &request)
            .unwrap()
            .processes
            .is_empty()
    );
    delete(&guest, "a", "");
}

#[test]
fn a_cgroup_lies_where_it_is_wanted() {
    let Some(guest) = Guest::start() else { return };
    let request = |id: &str, path: &str| CreateRequest {
        cgroup_path: path.to_owned(),
        ..container(id, shell("exec sleep 1000"))
    };
    assert_eq!(create(&guest, &request("a", "x.slice/x-y.slice/p-a.scope")), None);
    assert_eq!(create(&guest, &request("b", "x.slice/p-b.scope")), None);
    guest.start_process("b", "");
    for path in [
        "x.slice",
        "x.slice/p-b.scope",
        "x.slice/p-b.scope/below",
        "x.slice/../c",
        "/c",
    ] {
        let message = guest
            .client
            .create(context(), &request("c", path))
            .unwrap_err()
            .to_string();
        assert!(message.contains("cgroup"), "{path}: {message}");
    }
    assert_eq!(guest.cgroups().len(), 1);
    delete(&guest, "a", "");
    assert_eq!(status(&guest, "b"), ContainerStatus::CONTAINER_RUNNING);
    kill(&guest, "b", 9);
    guest.wait("b", "");
    delete(&guest, "b", "");
    assert!(guest.cgroups().is_empty());
    let failing = CreateRequest {
        resources: Some(Resources {
            settings: vec![CgroupSetting {
                file: "no.such.file".to_owned(),
                ..CgroupSetting::default()
            }],
            ..Resources::default()
        })
        .into(),
        ..request("a", "x.slice/y/z")
    };
    assert!(guest.client.create(context(), &failing).is_err());
    assert!(guest.cgroups().is_empty());
}

#[test]
fn a_container_without_a_cgroup_namespace_sees_its_path() {
    let Some(guest) = Guest::start() else { return };
    let (stdout, token) = guest.stream();
    let mut request = CreateRequest {
        cgroup_path: "system.slice/docker-a.scope".to_owned(),
        ..container("a", with_streams(shell("cat /proc/self/cgroup"), [&[], &token, &[]]))
    };
    request
        .namespaces
        .retain(|namespace| namespace.kind != husk_protocol::agent::namespace::Kind::CGROUP.into());
    assert_eq!(create(&guest, &request), None);
    guest.start_process("a", "");
    let text = read(stdout);
    assert!(text.trim_end().ends_with("/system.slice/docker-a.scope"), "{text}");
    guest.wait("a", "");
    delete(&guest, "a", "");
}

#[test]
fn a_pause_needs_no_image_and_ends_when_it_is_asked_to() {
    let Some(guest) = Guest::start() else { return };
    let process = Process {
        args: Vec::new(),
        pause: true,
        ..shell("")
    };
    let mut pause = container("pod", process);
    pause.root.as_mut().unwrap().disk.clear();
    assert_eq!(create(&guest, &pause), None);
    guest.start_process("pod", "");

    // An orphan comes to it, and is reaped.
    let (stdout, token) = guest.stream();
    let script = "(sleep 0 & readlink /proc/1/root); for try in 1 2 3 4 5 6 7 8 9; do ls -d /proc/[0-9]* | wc -l; sleep 0.1; done";
    let mut joined = container("a", with_streams(shell(script), [&[], &token, &[]]));
    for namespace in &mut joined.namespaces {
        if namespace.kind == husk_protocol::agent::namespace::Kind::PID.into() {
            namespace.container = "pod".to_owned();
        }
    }
    assert_eq!(create(&guest, &joined), None);
    guest.start_process("a", "");
    assert_eq!(guest.wait("a", "").status, 0);
    let said = read(stdout);
    // The pause, the shell, and the last two commands of the pipe.
    assert_eq!(said.lines().last(), Some("4"), "{said}");

    let term = KillRequest {
        container: "pod".to_owned(),
        signal: libc::SIGTERM.cast_unsigned(),
        ..KillRequest::default()
    };
    guest.client.kill(context(), &term).unwrap();
    assert_eq!(guest.wait("pod", "").status, 0);
    for container in ["a", "pod"] {
        delete(&guest, container, "");
    }
    let mut with_arguments = pause.clone();
    with_arguments.process.as_mut().unwrap().args.push("sh".to_owned());
    let refusal = guest.client.create(context(), &with_arguments).unwrap_err().to_string();
    assert!(refusal.contains("process.args"), "{refusal}");
}
