//! Hooks inside a container.

use std::time::{Duration, Instant};

use husk_protocol::agent::{CreateRequest, Hook, Hooks, StartRequest};

use super::guest::{Guest, container, context, create, delete, run, shell};

fn hooks(scripts: &[&str]) -> Hooks {
    let hook = |(index, script): (usize, &&str)| Hook {
        field: format!("hooks.x[{index}]"),
        path: "/bin/sh".to_owned(),
        args: ["sh", "-c", *script].map(str::to_owned).into(),
        timeout_s: 10,
        ..Hook::default()
    };
    Hooks {
        hooks: scripts.iter().enumerate().map(hook).collect(),
        before_pid: "{\"pid\":".to_owned(),
        after_pid: ",\"id\":\"a\"}".to_owned(),
        ..Hooks::default()
    }
}

fn hooked(script: &str, created: &[&str], started: &[&str]) -> CreateRequest {
    let mut process = shell(script);
    process.user.mut_or_insert_default().uid = 1000;
    CreateRequest {
        create_hooks: Some(hooks(created)).into(),
        start_hooks: Some(hooks(started)).into(),
        ..container("a", process)
    }
}

#[test]
fn hooks_run_in_the_container_before_its_process() {
    let Some(guest) = Guest::start() else { return };
    // The first as the container's root without any variable, the second as its user with the process's.
    let created = "cat > /state; echo \"$PATH\" $(/bin/id -u) $(/bin/hostname) > /created";
    let created = created.replace("cat", "/bin/cat");
    let mut request = hooked(
        "cat /state; echo; cat /created /tmp/started",
        &[&created],
        &["cat > /tmp/state; echo $PATH $(id -u) > /tmp/started"],
    );
    request.mounts.push(super::guest::file_system(
        "/tmp",
        "tmpfs",
        nix::mount::MsFlags::empty(),
        "mode=1777",
    ));
    let (exit, text) = run(&guest, request);
    assert_eq!(exit.status, 0, "{text}");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("{\"pid\":1,\"id\":\"a\"}"));
    assert!(lines.next().unwrap().ends_with("0 box"), "{text}");
    assert_eq!(lines.next(), Some("/bin 1000"));
}

#[test]
fn a_hook_of_the_creation_has_no_more_capabilities_than_the_container() {
    let Some(guest) = Guest::start() else { return };
    let script = "/bin/cat /proc/self/status > /status";
    let mut request = hooked(
        "while read -r a b; do [ $a != CapEff: ] || echo $b; done < /status",
        &[script],
        &[],
    );
    request
        .process
        .as_mut()
        .unwrap()
        .capabilities
        .as_mut()
        .unwrap()
        .bounding = 0b11;
    assert_eq!(run(&guest, request).1, "0000000000000003\n");
}

#[test]
fn a_failing_hook_ends_the_creation() {
    let Some(guest) = Guest::start() else { return };
    let failure = create(&guest, &hooked("true", &["true", "exit 3", "true"], &[])).unwrap();
    for word in ["hooks.x[1]", "/bin/sh", "exit status: 3"] {
        assert!(failure.message.contains(word), "{failure:?}");
    }
    let mut missing = hooked("true", &["true"], &[]);
    missing.create_hooks.as_mut().unwrap().hooks[0].path = "/usr/bin/of-the-host".to_owned();
    let failure = create(&guest, &missing).unwrap();
    assert!(failure.message.contains("/usr/bin/of-the-host"), "{failure:?}");
    let begun = Instant::now();
    let mut slow = hooked("true", &["sleep 1000"], &[]);
    slow.create_hooks.as_mut().unwrap().hooks[0].timeout_s = 1;
    let failure = create(&guest, &slow).unwrap();
    assert!(failure.message.contains("killed after 1 seconds"), "{failure:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(guest.cgroups().is_empty());
}

#[test]
fn a_failing_hook_ends_the_start() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(create(&guest, &hooked("true", &[], &["exit 5"])), None);
    let request = StartRequest {
        container: "a".to_owned(),
        ..StartRequest::default()
    };
    let failure = guest.client.start(context(), &request).unwrap().failure.unwrap();
    assert!(failure.message.contains("exit status: 5"), "{failure:?}");
    guest.wait("a", "");
    delete(&guest, "a", "");
}
