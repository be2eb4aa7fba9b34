//! What the bundles of engines become under runc and under husk: the same, but for what documentation lists.

use husk_tests::probe::Listed;
use husk_tests::{Engine, Facts, Host, PROBE, busybox, copy};
use serde_json::{Value, json};

/// Where the differences are listed.
const DOCUMENTATION: &str = include_str!("../../docs/oci.md");
const HEADING: &str = "## Differences from runc";
/// runc's limits are its caller's: those of a service of systemd's, with what the units of docker and containerd lift.
const SERVICE: [&str; 3] = ["prlimit", "--nofile=1024:524288", "--nproc=unlimited"];

#[test]
fn dockers_container_is_what_it_is_under_runc() {
    compare("docker");
}

#[test]
fn podmans_container_is_what_it_is_under_runc() {
    compare("podman");
}

#[test]
fn ctrs_container_is_what_it_is_under_runc() {
    compare("ctr");
}

#[test]
fn a_pods_container_is_what_it_is_under_runc() {
    compare("cri");
}

#[test]
fn a_pods_sandbox_is_what_it_is_under_runc() {
    compare("cri-sandbox");
}

#[test]
fn a_privileged_container_is_what_it_is_under_runc() {
    compare("cri-privileged");
}

/// Runs the probe in a recorded bundle under both runtimes. What differs is what is listed, and what is listed differs.
fn compare(name: &str) {
    let host = Host::new();
    let engine = Engine::new(&host);
    // runc makes mount points in the root directory, husk leaves it alone.
    let runcs_root = host.scratch().join("root");
    copy(busybox(), &runcs_root);
    let probing = |root| {
        let bundle = engine.bundle(&host, name, root);
        let field = |name: &str| bundle.get("/linux").get(name).and_then(Value::as_array).cloned();
        let paths = ["maskedPaths", "readonlyPaths"].map(|name| field(name).unwrap_or_default());
        let paths: Vec<_> = paths.iter().flatten().filter_map(Value::as_str).collect();
        bundle.with(
            "/process/args",
            json!(["/bin/sh", "-c", PROBE, "name", paths.join(" "), "a", "b c"]),
        )
    };
    let runc = probing(&runcs_root);
    let state = host.scratch().join("runc");
    let words = ["--root", path(&state), "run", "--bundle", path(runc.path()), name];
    let runc = host.husk().program("/usr/sbin/runc").through(SERVICE).command(words);
    let husk = host.husk().bundle(&probing(busybox())).option("--interactive");
    let (runc, husk) = (Facts::of(&runc), Facts::of(&husk.run_bundle()));

    let differences = runc.differences(&husk);
    let listed = Listed::in_table(DOCUMENTATION, HEADING);
    let listed: Vec<_> = listed.iter().filter(|row| row.is_for(name)).collect();
    let unlisted = differences
        .iter()
        .filter(|difference| !listed.iter().any(|row| row.is(difference)));
    let unlisted: String = unlisted
        .map(|difference| format!("| {name} | {difference} |\n"))
        .collect();
    let equal = listed
        .iter()
        .filter(|row| !differences.iter().any(|difference| row.is(difference)));
    let equal: String = equal.map(|row| format!("| {row} |\n")).collect();
    assert!(
        unlisted.is_empty() && equal.is_empty(),
        "not listed in docs/oci.md, {HEADING}:\n{unlisted}listed there, but not so:\n{equal}"
    );
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}
