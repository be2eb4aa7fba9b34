//! `mounts`, `maskedPaths` and `readonlyPaths`: what the container finds mounted.

use std::fs;

use husk_tests::{Bundle, Host, SmallDisk, busybox};
use serde_json::json;

/// Prints the options of the mount on a path.
const OPTIONS: &str = "
    options() { awk -v path=$1 '$5 == path { found = $6 } END { print \"options_\" path \"=\" found }' \
        /proc/self/mountinfo; }";

#[test]
fn what_container_tools_mount_by_default_is_there() {
    let host = Host::new();
    let files = host.scratch().join("files");
    fs::create_dir_all(files.join("secrets")).unwrap();
    for (name, text) in [
        ("hosts", "127.0.0.1 box\n"),
        ("resolv.conf", "nameserver 192.0.2.1\n"),
        ("hostname", "box\n"),
        (".containerenv", ""),
        ("secrets/password", "geheim"),
    ] {
        fs::write(files.join(name), text).unwrap();
    }
    let script = format!(
        "{OPTIONS}
        options /etc/hosts; options /etc/resolv.conf; options /dev/shm
        echo hosts=$(cat /etc/hosts); echo resolver=$(cat /etc/resolv.conf); echo hostname=$(cat /etc/hostname)
        echo env=$(stat -c %s /run/.containerenv); echo secret=$(cat /run/secrets/password)
        echo 127.0.0.2 other >> /etc/hosts && echo lines=$(wc -l < /etc/hosts)
        echo x > /dev/shm/file && echo shm=$(stat -c %a /dev/shm):$(df -k /dev/shm | awk 'END {{ print $2 }}')"
    );
    let bind = |source: &str, destination: &str, options: &[&str]| {
        let options = [&["bind", "rprivate"], options].concat();
        json!({"destination": destination, "type": "bind", "source": files.join(source), "options": options})
    };
    let shm = host.scratch().join("shm");
    let _memory = SmallDisk::mount(&shm, "64m");
    let mut bundle = Bundle::of_script(&host, busybox(), &script).without_mount("/dev/shm");
    for mount in [
        bind("hosts", "/etc/hosts", &[]),
        bind("resolv.conf", "/etc/resolv.conf", &["ro", "nosuid"]),
        bind("hostname", "/etc/hostname", &[]),
        bind(".containerenv", "/run/.containerenv", &[]),
        bind("secrets", "/run/secrets", &[]),
        json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["bind", "nosuid", "nodev"]}),
    ] {
        bundle = bundle.with("/mounts/-", mount);
    }
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome
        .exits(0)
        .states("hosts", "127.0.0.1 box")
        .states("resolver", "nameserver 192.0.2.1");
    outcome
        .states("hostname", "box")
        .states("env", "0")
        .states("secret", "geheim")
        .states("lines", "2");
    outcome.states("options_/etc/resolv.conf", "ro,nosuid,relatime");
    outcome
        .states("options_/dev/shm", "rw,nosuid,nodev,relatime")
        .states("shm", "1777:65536");
    // What the container has written is its own.
    assert_eq!(fs::read_to_string(files.join("hosts")).unwrap(), "127.0.0.1 box\n");
}

#[test]
fn options_of_mounts_count() {
    let host = Host::new();
    let root = host.scratch().join("root");
    husk_tests::copy(busybox(), &root);
    fs::create_dir_all(root.join("data/below")).unwrap();
    fs::write(root.join("data/file"), "from the image").unwrap();
    let script = format!(
        "{OPTIONS}
        options /t; options /bound; options /recursive/below
        echo bound=$(cat /bound/file); echo copied=$(cat /data/file)
        echo new > /data/new && echo written=$(cat /data/new)
        echo mapped=$(stat -c %u:%g /mapped)
        grep ' /shared ' /proc/self/mountinfo | grep -q shared: && echo propagation=shared"
    );
    let ids = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let mut bundle = Bundle::of_script(&host, &root, &script);
    for mount in [
        json!({"destination": "/t", "type": "tmpfs", "options": ["ro", "noexec", "noatime", "size=1m"]}),
        json!({"destination": "/bound", "type": "bind", "source": root.join("data"), "options": ["bind", "ro", "nodev"]}),
        json!({"destination": "/data", "type": "tmpfs", "options": ["tmpcopyup"]}),
        json!({"destination": "/data/below", "type": "tmpfs"}),
        json!({"destination": "/recursive", "type": "bind", "source": root.join("data"), "options": ["rbind", "rro"]}),
        json!({"destination": "/mapped", "type": "bind", "source": root.join("data/below"), "options": ["bind", "idmap"],
            "uidMappings": ids, "gidMappings": ids}),
        json!({"destination": "/shared", "type": "tmpfs", "options": ["rshared"]}),
    ] {
        bundle = bundle.with("/mounts/-", mount);
    }
    let outcome = host.husk().bundle(&bundle).run_bundle();
    outcome.exits(0).states("options_/t", "ro,noexec,noatime");
    outcome.states("options_/bound", "ro,nodev,relatime");
    outcome.states("options_/recursive/below", "ro,relatime");
    outcome
        .states("bound", "from the image")
        .states("copied", "from the image")
        .states("written", "new");
    outcome.states("mapped", "5000:5000").states("propagation", "shared");
}

#[test]
fn what_the_host_alone_has_is_refused_by_name() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "echo it ran");
    let link = host.scratch().join("link");
    std::os::unix::fs::symlink("/etc/hosts", &link).unwrap();
    let large = host.scratch().join("large");
    fs::write(&large, vec![0; (1 << 20) + 1]).unwrap();
    for (mount, part) in [
        (
            json!({"destination": "/data", "type": "bind", "source": "/etc", "options": ["rbind"]}),
            "/etc",
        ),
        (
            json!({"destination": "/etc/hosts", "type": "bind", "source": link, "options": ["bind"]}),
            "symbolic",
        ),
        (
            json!({"destination": "/etc/hosts", "type": "bind", "source": large, "options": ["bind"]}),
            "1 MiB",
        ),
        (
            json!({"destination": "/etc/hosts", "type": "bind", "source": "/no/such/file"}),
            "/no/such/file",
        ),
        (
            json!({"destination": "/data", "type": "nfs", "source": "server:/"}),
            "nfs",
        ),
        (json!({"destination": "/proc/sys", "type": "tmpfs"}), "/proc/sys"),
        (
            json!({"destination": "/t", "type": "tmpfs", "options": ["no-such-option=1"]}),
            "no-such-option",
        ),
    ] {
        host.husk()
            .bundle(&bundle.clone().with("/mounts/-", mount))
            .run_bundle()
            .fails(125, &[part]);
    }
}
