//! Hooks of a bundle: on the host and in the guest.

use std::fs;

use husk_tests::{Bundle, Host, busybox};
use serde_json::{Value, json};

/// A bundle each of whose hooks says that it ran: on the host in the file `log` of the bundle, in the guest in /log.
fn logging(host: &Host) -> Bundle {
    let mut bundle = Bundle::of_script(host, busybox(), "cat /log; echo process").with("/root/readonly", false);
    bundle = bundle.with("/hooks", json!({}));
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ] {
        let log = match kind {
            "createContainer" | "startContainer" => "/log",
            _ => "log",
        };
        let script = format!("echo {kind} $1 >> {log}; cat >> state-{kind}");
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script, "sh", "argument"], "env": ["PATH=/bin"]}]);
        bundle = bundle.with(&format!("/hooks/{kind}"), hook);
    }
    bundle
}

fn log(bundle: &Bundle) -> String {
    fs::read_to_string(bundle.path().join("log")).unwrap_or_default()
}

#[test]
fn hooks_run_in_their_order_and_place() {
    let host = Host::new();
    let bundle = logging(&host);
    let run = host.husk().bundle(&bundle).run_bundle();
    run.exits(0)
        .prints("createContainer argument\nstartContainer argument\nprocess\n");
    let expected = "prestart argument\ncreateRuntime argument\npoststart argument\npoststop argument\n";
    assert_eq!(log(&bundle), expected);
    for (kind, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let text = fs::read(bundle.path().join(format!("state-{kind}"))).unwrap();
        let state: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(state["status"], status, "{kind}");
        assert_eq!(state["bundle"], json!(bundle.path()), "{kind}");
        assert!(state["pid"].as_u64().unwrap() > 0, "{kind}");
    }
}

#[test]
fn a_hook_that_fails_ends_the_container_and_poststop_hooks_run() {
    let host = Host::new();
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
    ] {
        let bundle = logging(&host)
            .with("/process/args", json!(["/bin/sleep", "1000"]))
            .with(
                &format!("/hooks/{kind}"),
                json!([{"path": "/bin/sh", "args": ["sh", "-c", "exit 7"]}]),
            );
        let name = format!("hooks.{kind}[0]");
        host.husk()
            .bundle(&bundle)
            .run_bundle()
            .fails(125, &[&name, "exit status: 7"]);
        assert!(
            log(&bundle).ends_with("poststop argument\n"),
            "{kind}: {}",
            log(&bundle)
        );
    }
}

#[test]
fn a_hook_that_hangs_is_killed_and_a_failed_end_is_a_warning() {
    let host = Host::new();
    let sleeping = json!([{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]);
    let bundle = logging(&host).with("/hooks/prestart", sleeping.clone());
    host.husk()
        .bundle(&bundle)
        .run_bundle()
        .fails(125, &["hooks.prestart[0]", "killed"]);
    let bundle = logging(&host).with("/hooks/poststop", sleeping);
    host.husk()
        .bundle(&bundle)
        .run_bundle()
        .exits(0)
        .mentions(&["hooks.poststop[0]"]);
}
