//! `husk install`: every part in its place, a configuration changed by what was shown, and both taken back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use husk_tests::{Host, prepared};

/// A configuration with a comment, an order and a layout of its own.
const CONFIGURATION: &str = "# mine\nversion = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n\
                             \tsandbox_image = 'pause:3.9' # pinned\n[debug]\n  level = \"info\"";

const PARTS: [(&str, &str); 6] = [
    ("husk", "bin/husk"),
    ("containerd-shim-husk-v2", "bin/containerd-shim-husk-v2"),
    ("husk-vmm", "libexec/husk-vmm"),
    ("guest/vmlinux", "lib/husk/vmlinux"),
    ("guest/initramfs.cpio", "lib/husk/initramfs.cpio"),
    ("guest/guest.json", "lib/husk/guest.json"),
];

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// `husk install` with a configuration of containerd's, and `more`.
fn words(prefix: &Path, config: &Path, more: &[&str]) -> Vec<String> {
    let (prefix, config) = (prefix.to_str().unwrap(), config.to_str().unwrap());
    let own = ["install", "--prefix", prefix, "--containerd", "--config", config];
    own.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

#[test]
fn everything_is_installed_once_and_taken_back() {
    let host = Host::new();
    let (prefix, config) = (host.scratch().join("usr/local"), host.scratch().join("config.toml"));
    fs::write(&config, CONFIGURATION).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let done = host.husk().command(words(&prefix, &config, &["--yes"]));
    done.exits(0).is_quiet().says("systemctl restart containerd");
    for (built, installed) in PARTS {
        let (built, installed) = (prepared::bin().join(built), prefix.join(installed));
        assert!(
            fs::read(built).unwrap() == fs::read(&installed).unwrap(),
            "{} in {done}",
            installed.display()
        );
        done.says(installed.to_str().unwrap());
    }
    // What was there comes first and is the same; what was added is what was shown.
    let text = read(&config);
    let added = text.strip_prefix(CONFIGURATION).unwrap();
    assert!(
        added.contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]"),
        "{text}"
    );
    assert!(added.contains("runtime_type = \"io.containerd.husk.v2\""), "{text}");
    for line in added.trim().lines() {
        done.says(&format!("+{line}\n"));
    }
    assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o600);
    // Nothing is left to do, for the one that was built and for the one that was installed; so nothing is asked either.
    let again = host.husk().command(words(&prefix, &config, &[]));
    again.exits(0).is_quiet().says("nothing was changed");
    let installed = || host.husk().program(prefix.join("bin/husk"));
    let again = installed().command(words(&prefix, &config, &[]));
    again.exits(0).is_quiet().says("nothing was changed");
    // It removes itself.
    let undone = installed().command(words(&prefix, &config, &["--undo", "--yes"]));
    undone.exits(0).is_quiet().says("-  runtime_type");
    assert_eq!(read(&config), CONFIGURATION);
    for (_, installed) in PARTS {
        assert!(!prefix.join(installed).exists(), "{installed} after {undone}");
    }
    let again = host.husk().command(words(&prefix, &config, &["--undo"]));
    again.exits(0).is_quiet().says("nothing was changed");
}

#[test]
fn a_configuration_is_changed_only_when_somebody_agrees() {
    let host = Host::new();
    let (prefix, config) = (host.scratch().join("usr"), host.scratch().join("config.toml"));
    fs::write(&config, CONFIGURATION).unwrap();
    let unasked = host.husk().command(words(&prefix, &config, &[]));
    unasked
        .exits(125)
        .says("+  runtime_type")
        .reports(&["--yes", "config.toml"]);
    let mut refused = host.husk().command_on_terminal(words(&prefix, &config, &[]));
    refused.shows("Apply? [y/N]").types("n\n");
    refused.finish().exits(1);
    assert_eq!(read(&config), CONFIGURATION);
    assert!(!prefix.exists(), "nothing is done before the answer");
    let mut agreed = host.husk().command_on_terminal(words(&prefix, &config, &[]));
    agreed.shows("Apply? [y/N]").types("y\n");
    agreed.finish().exits(0);
    assert!(read(&config).contains("io.containerd.husk.v2") && prefix.join("bin/husk").exists());
}

#[test]
fn dockers_configuration_keeps_its_order() {
    let host = Host::new();
    let (prefix, config) = (host.scratch().join("usr"), host.scratch().join("daemon.json"));
    let before = "{\n  \"storage-driver\": \"overlay2\",\n  \"debug\": false\n}\n";
    fs::write(&config, before).unwrap();
    let docker = |more: &[&str]| {
        let (prefix, config) = (prefix.to_str().unwrap(), config.to_str().unwrap());
        let own = ["install", "--prefix", prefix, "--docker", "--config", config, "--yes"];
        host.husk().command(own.iter().chain(more))
    };
    docker(&[]).exits(0).says("systemctl restart docker");
    let text = read(&config);
    assert!(
        text.starts_with("{\n  \"storage-driver\": \"overlay2\",\n  \"debug\": false,\n"),
        "{text}"
    );
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["runtimes"]["husk"]["runtimeType"], "io.containerd.husk.v2");
    docker(&["--undo"]).exits(0);
    assert_eq!(read(&config), before);
}

#[test]
fn what_is_in_the_way_is_named_before_anything_is_done() {
    let host = Host::new();
    let (prefix, config) = (host.scratch().join("usr"), host.scratch().join("config.toml"));
    for (text, things) in [
        ("version = 2\nno toml\n", &["config.toml", "line 2"][..]),
        ("disabled_plugins = [\"cri\"]\n", &["config.toml", "version 1"]),
    ] {
        fs::write(&config, text).unwrap();
        host.husk()
            .command(words(&prefix, &config, &["--yes"]))
            .fails(125, things);
        assert_eq!(read(&config), text);
    }
    let alone = host.scratch().join("alone/husk");
    fs::create_dir(alone.parent().unwrap()).unwrap();
    fs::copy(prepared::bin().join("husk"), &alone).unwrap();
    let nothing = host.husk().program(&alone).command(words(&prefix, &config, &["--yes"]));
    nothing.fails(125, &["vmlinux", "husk-vmm", "cargo xtask build"]);
    assert!(!prefix.exists());
}
