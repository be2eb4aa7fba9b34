//! Limits and statistics, where the machine's controllers are there for cgroup v2.

use husk_protocol::agent::event::Kind;
use husk_protocol::agent::{CgroupSetting, EventsRequest, Resources, StatsRequest};

use super::guest::{Guest, container, context, create, delete, run, shell};

fn limits(settings: Vec<CgroupSetting>) -> Resources {
    Resources {
        settings,
        ..Resources::default()
    }
}

fn setting(file: &str, value: &str) -> CgroupSetting {
    CgroupSetting {
        file: file.to_owned(),
        value: value.to_owned(),
        ..CgroupSetting::default()
    }
}

#[test]
fn the_memory_limit_kills_and_is_reported() {
    let Some(guest) = Guest::start() else { return };
    if !guest.has_controllers() {
        return;
    }
    let mut request = container("a", shell("head -c 100000000 /dev/zero | tail -c 90000000 > /dev/null"));
    request.resources = Some(limits(vec![
        setting("memory.max", "16777216"),
        setting("memory.oom.group", "1"),
    ]))
    .into();
    assert_eq!(create(&guest, &request), None);
    guest.start_process("a", "");
    let exit = guest.wait("a", "");
    assert_eq!((exit.status, exit.oom_killed), (137, true));
    let events = guest
        .client
        .events(context(), &EventsRequest::default())
        .unwrap()
        .events;
    let kinds: Vec<_> = events.iter().map(|event| event.kind.unwrap()).collect();
    // The kills of a group may be heard of one by one.
    let (last, before) = kinds.split_last().unwrap();
    assert!(
        *last == Kind::EXIT && !before.is_empty() && before.iter().all(|kind| *kind == Kind::OOM),
        "{kinds:?}"
    );
    let stats = StatsRequest {
        container: "a".to_owned(),
        ..StatsRequest::default()
    };
    let stats = guest.client.stats(context(), &stats).unwrap();
    assert!(
        stats.oom_kills >= 1 && stats.memory_limit == 16_777_216 && stats.memory_peak > 8_000_000,
        "{stats:?}"
    );
    delete(&guest, "a", "");
}

#[test]
fn the_pids_limit_stops_forks() {
    let Some(guest) = Guest::start() else { return };
    if !guest.has_controllers() {
        return;
    }
    let mut request = container(
        "a",
        shell("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo unreachable"),
    );
    request.resources = Some(limits(vec![setting("pids.max", "4")])).into();
    let (exit, text) = run(&guest, request);
    assert_ne!(exit.status, 0);
    assert_eq!(text, "");
}

#[test]
fn a_setting_that_the_kernel_refuses_is_named() {
    let Some(guest) = Guest::start() else { return };
    let mut request = container("a", shell(""));
    request.resources = Some(limits(vec![setting("no.such.file", "1")])).into();
    let refused = guest.client.create(context(), &request).unwrap_err().to_string();
    assert!(refused.contains("no.such.file"), "{refused}");
    assert!(guest.cgroups().is_empty());
}
