//! `linux.seccomp`: what a profile says holds in the guest.

use husk_tests::{Bundle, Host, busybox};
use serde_json::{Value, json};

/// docker's default profile, as it stands in a `config.json`.
const DOCKER: &str = include_str!("../../sandbox/src/bundle/seccomp/profiles/docker.json");

#[test]
fn the_default_profile_of_docker_lets_programs_run_and_refuses_what_it_should() {
    let host = Host::new();
    let profile: Value = serde_json::from_str(DOCKER).unwrap();
    let script = "grep ^Seccomp: /proc/self/status; ls / > /dev/null && echo listed; \
                  unshare -U true 2> /dev/null || echo no namespace";
    for no_new_privileges in [false, true] {
        let bundle = Bundle::of_script(&host, busybox(), script)
            .with("/linux/seccomp", profile.clone())
            .with("/process/noNewPrivileges", no_new_privileges);
        let husk = host.husk().bundle(&bundle);
        husk.run_bundle().exits(0).prints("Seccomp:\t2\nlisted\nno namespace\n");
    }
}

#[test]
fn a_rule_decides_by_arguments() {
    let host = Host::new();
    // kill(2) with signal 12 fails as if there were no such process; with others it does what it does.
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["kill", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ESRCH,
            "args": [{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}],
        }],
    });
    let script = "kill -12 $$ 2>&1; kill -0 $$ && echo alive";
    let bundle = Bundle::of_script(&host, busybox(), script).with("/linux/seccomp", profile);
    let run = host.husk().bundle(&bundle).run_bundle();
    run.exits(0).mentions(&["no_such_call"]);
    assert!(run.stdout().contains("No such process") && run.stdout().ends_with("alive\n"));
}

#[test]
fn a_profile_that_kills_ends_the_process() {
    let host = Host::new();
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    });
    let bundle = Bundle::of_script(&host, busybox(), "mkdir /tmp/x; echo $?").with("/linux/seccomp", profile);
    // 128 + SIGSYS
    host.husk().bundle(&bundle).run_bundle().exits(0).prints("159\n");
}
